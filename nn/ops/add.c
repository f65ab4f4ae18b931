/* y = act(x[0] + x[1]), for the sums that no norm or convolution could take along. */
#include "nn/op.h"

static bool add_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    for (int i = 1; i < 4; i++)
        if (in[0]->dim[i] != in[1]->dim[i])
            return err_set(e, ERR_CONFIG, "adding %s (%lldx%lldx%lld) and %s (%lldx%lldx%lld)",
                           in[0]->name, (long long)in[0]->dim[1], (long long)in[0]->dim[2],
                           (long long)in[0]->dim[3], in[1]->name, (long long)in[1]->dim[1],
                           (long long)in[1]->dim[2], (long long)in[1]->dim[3]);
    return nn_same_shape(n, in, param, e);
}

static void add_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    affine_forward(nn_rows(s, s->node), (int)s->node->dim[3], s->x[0], NULL, NULL, s->x[1], s->act,
                   s->y);
}

/* In order: the plan lets only the last of them be dy's memory. */
static void add_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    for (int k = 0; k < 2; k++)
        if (s->dx[k].p)
            act_backward(nn_count(s, s->node), s->act, NULL, s->y, s->dy, s->dx[k].accumulate,
                         s->dx[k].p);
}

const nn_op nn_op_add = {
    .name = "add", .onnx = "Add",
    .flags = NN_INPLACE | NN_GRAD_INPLACE | NN_FUSE_INFER | NN_FUSE_TRAIN | NN_ACT_ONLY | NN_IS_SUM,
    .in_min = 2, .in_max = 2,
    .shape = add_shape, .forward = add_forward, .backward = add_backward,
};
