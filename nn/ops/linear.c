/* Fully connected: a convolution whose one window is the whole map, so that PyTorch's weight over a
 * flattened C,H,W image (O, C*H*W) is read as (O, C, H, W) and nothing is transposed. */
#include "nn/op.h"

static bool linear_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    if (!nn_conv_shapes(n, in, param, e))
        return false;
    param[0] = (nn_dims){ 2, { n->attr.out, in[0]->dim[1] * in[0]->dim[2] * in[0]->dim[3] } };
    return true;
}

const nn_op nn_op_linear = {
    .name = "linear", .onnx = "Gemm",
    .flags = NN_NEEDS_IN | NN_FUSE_INFER | NN_FOLD_NORM,
    .attrs = NN_HAS(out) | NN_HAS(bias),
    .in_min = 1, .in_max = 1,
    .param = { { "weight", NN_WEIGHT, 0, false }, { "bias", NN_BIAS, 0, true } },
    .shape = linear_shape, .prepare = nn_conv_prepare, .refresh = nn_conv_refresh,
    .forward = nn_conv_forward, .backward = nn_conv_backward,
};
