/* Cross entropy of logits z against a distribution t, with label smoothing e, mean over the batch:
 *   (1-e) sum_c t_c nll_c + e mean_c nll_c,   nll_c = log sum_k exp(z_k) - z_c */
#include <math.h>

#include "nn/op.h"

static double row_loss(const nn_step *s, int64_t i)
{
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    const double lse = nn_log_sum_exp(z, C, 1), e = (double)s->node->attr.smoothing;
    double hit = 0, all = 0;
    for (int64_t c = 0; c < C; c++) {
        hit += (double)t[c] * (lse - (double)z[c]);
        all += lse - (double)z[c];
    }
    return (1 - e) * hit + e * all / (double)C;
}

static void softmax_xent_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    nn_loss_forward(s, row_loss);
}

/* dz_c = weight/batch * ((1-e) (sum(t) p_c - t_c) + e (p_c - 1/C)) */
static void grad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    float *dz = s->dx[0].p + i * C;
    const double lse = nn_log_sum_exp(z, C, 1), e = (double)s->node->attr.smoothing;
    const double scale = (double)s->node->attr.weight / s->batch;
    double sum = 0;
    for (int64_t c = 0; c < C; c++)
        sum += (double)t[c];
    for (int64_t c = 0; c < C; c++) {
        const double p = exp((double)z[c] - lse);
        const double g = scale * ((1 - e) * (sum * p - (double)t[c]) + e * (p - 1 / (double)C));
        dz[c] = s->dx[0].accumulate ? dz[c] + (float)g : (float)g;
    }
}

static void softmax_xent_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for(s->batch, grad_row, s);
}

const nn_op nn_op_softmax_xent = {
    .name = "softmax_xent", .onnx = "",
    .flags = NN_NEEDS_IN | NN_IS_LOSS, .attrs = NN_HAS(smoothing) | NN_HAS(weight),
    .in_min = 2, .in_max = 2,
    .shape = nn_loss_shape, .prepare = nn_loss_prepare,
    .forward = softmax_xent_forward, .backward = softmax_xent_backward,
};
