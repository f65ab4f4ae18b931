/* y = max(x, 0), for the places where no neighbour could take it along. */
#include "nn/op.h"

const nn_op nn_op_relu = {
    .name = "relu", .onnx = "Relu",
    .flags = NN_INPLACE | NN_GRAD_INPLACE | NN_NEEDS_OUT, .act = ACT_RELU,
    .in_min = 1, .in_max = 1,
    .shape = nn_same_shape, .forward = nn_act_forward, .backward = nn_act_backward,
};
