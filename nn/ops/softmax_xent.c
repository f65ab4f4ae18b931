/* Cross entropy of logits z against a distribution t, with label smoothing e, mean over the batch:
 *   (1-e) sum_c t_c nll_c + e mean_c nll_c,   nll_c = log sum_k exp(z_k) - z_c */
#include <math.h>

#include "nn/op.h"

static double row_loss(const nn_step *s, int64_t i)
{
    const nn_loss_row r = nn_loss_row_at(s, i);
    const double lse = nn_log_sum_exp(r.z, r.n, 1), e = (double)s->node->attr.smoothing;
    double hit = 0, all = 0;
    for (int64_t c = 0; c < r.n; c++) {
        hit += (double)r.t[c] * (lse - (double)r.z[c]);
        all += lse - (double)r.z[c];
    }
    return (1 - e) * hit + e * all / (double)r.n;
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
    const nn_step *s = ctx;
    const nn_loss_row r = nn_loss_row_at(s, i);
    const double lse = nn_log_sum_exp(r.z, r.n, 1), e = (double)s->node->attr.smoothing;
    const double scale = (double)s->node->attr.weight / s->batch;
    double sum = 0;
    for (int64_t c = 0; c < r.n; c++)
        sum += (double)r.t[c];
    for (int64_t c = 0; c < r.n; c++) {
        const double p = exp((double)r.z[c] - lse);
        nn_loss_row_put(&r, c, scale * ((1 - e) * (sum * p - (double)r.t[c]) + e * (p - 1 / (double)r.n)));
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
