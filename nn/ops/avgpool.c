/* Mean of a window; with count_pad the zeros of the padding count in the divisor. */
#include "nn/op.h"

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
    .shape = nn_pool_shape, .forward = avgpool_run, .backward = avgpool_back,
};
