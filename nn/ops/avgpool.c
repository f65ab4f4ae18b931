/* Mean of a window; with count_pad the zeros of the padding count in the divisor. */
#include "nn/op.h"

static bool avgpool_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
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

static void avgpool_run(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = nn_window(s->node, s->src[0], s->batch);
    avgpool_forward(&w, s->node->attr.count_pad, s->x[0], s->y);
}

static void avgpool_back(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = nn_window(s->node, s->src[0], s->batch);
    avgpool_backward(&w, s->node->attr.count_pad, s->dy, s->dx[0].accumulate, s->dx[0].p);
}

const nn_op nn_op_avgpool = {
    .name = "avgpool", .onnx = "AveragePool",
    .attrs = NN_HAS(k) | NN_HAS(stride) | NN_HAS(pad) | NN_HAS(count_pad),
    .in_min = 1, .in_max = 1,
    .shape = avgpool_shape, .forward = avgpool_run, .backward = avgpool_back,
};
