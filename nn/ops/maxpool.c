/* Largest value of a window; padding never wins. */
#include "nn/op.h"

static bool maxpool_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    const conv_shape s = nn_window(n, in[0], 1);
    if (!conv_shape_check(&s, e))
        return false;
    if (s.pt >= s.kh || s.pb >= s.kh || s.pl >= s.kw || s.pr >= s.kw)
        return err_set(e, ERR_CONFIG, "padding %d,%d,%d,%d makes windows of nothing but padding for a %dx%d kernel",
                       s.pt, s.pb, s.pl, s.pr, s.kh, s.kw);
    n->dim[1] = conv_out_h(&s);
    n->dim[2] = conv_out_w(&s);
    n->dim[3] = s.c;
    return true;
}

static void maxpool_run(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = nn_window(s->node, s->src[0], s->batch);
    maxpool_forward(&w, s->x[0], s->y);
}

static void maxpool_back(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = nn_window(s->node, s->src[0], s->batch);
    maxpool_backward(&w, s->x[0], s->dy, s->dx[0].accumulate, s->dx[0].p);
}

const nn_op nn_op_maxpool = {
    .name = "maxpool", .onnx = "MaxPool",
    .flags = NN_NEEDS_IN, .attrs = NN_HAS(k) | NN_HAS(stride) | NN_HAS(pad),
    .in_min = 1, .in_max = 1,
    .shape = maxpool_shape, .forward = maxpool_run, .backward = maxpool_back,
};
