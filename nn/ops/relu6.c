/* y = min(max(x, 0), 6), for the places where no neighbour could take it along. */
#include "nn/op.h"

static bool relu6_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param, (void)e;
    nn_same_shape(n, in[0]);
    return true;
}

static void relu6_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    affine_forward(nn_rows(s, s->node), (int)s->node->dim[3], s->x[0], NULL, NULL, NULL, s->op->act, s->y);
}

static void relu6_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    act_backward(nn_count(s, s->node), s->op->act, s->x[0], s->y, s->dy, s->dx[0].accumulate, s->dx[0].p);
}

const nn_op nn_op_relu6 = {
    .name = "relu6", .onnx = "Clip",
    .flags = NN_INPLACE | NN_GRAD_INPLACE | NN_NEEDS_OUT, .act = ACT_RELU6,
    .in_min = 1, .in_max = 1,
    .shape = relu6_shape, .forward = relu6_forward, .backward = relu6_backward,
};
