/* Mean over the whole map: an average pool whose one window is the image. */
#include "nn/op.h"

static bool globalpool_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param, (void)e;
    n->dim[1] = n->dim[2] = 1;
    n->dim[3] = in[0]->dim[3];
    return true;
}

static conv_shape whole_map(const nn_step *s)
{
    conv_shape w = nn_window(s->node, s->src[0], s->batch);
    w.kh = w.h;
    w.kw = w.w;
    return w;
}

static void globalpool_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = whole_map(s);
    avgpool_forward(&w, true, s->x[0], s->y);
}

static void globalpool_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    const conv_shape w = whole_map(s);
    avgpool_backward(&w, true, s->dy, s->dx[0].accumulate, s->dx[0].p);
}

const nn_op nn_op_globalpool = {
    .name = "globalpool", .onnx = "GlobalAveragePool",
    .in_min = 1, .in_max = 1,
    .shape = globalpool_shape, .forward = globalpool_forward, .backward = globalpool_backward,
};
