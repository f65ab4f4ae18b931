/* Largest value of a window; padding never wins. */
#include "nn/op.h"

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
    .shape = nn_pool_shape, .forward = maxpool_run, .backward = maxpool_back,
};
