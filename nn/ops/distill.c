/* Hinton et al. 2015: cross entropy between softened teacher t and student s logits,
 *   -T^2 sum_c softmax(t/T)_c log softmax(s/T)_c,  mean over the batch;  ds = T (p - q) / batch. */
#include <math.h>

#include "nn/op.h"

static double row_loss(const nn_step *s, int64_t i)
{
    const nn_loss_row r = nn_loss_row_at(s, i);
    const double T = (double)s->node->attr.temperature;
    const double student = nn_log_sum_exp(r.z, r.n, T), teacher = nn_log_sum_exp(r.t, r.n, T);
    double sum = 0;
    for (int64_t c = 0; c < r.n; c++)
        sum += exp((double)r.t[c] / T - teacher) * (student - (double)r.z[c] / T);
    return T * T * sum;
}

static void distill_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    nn_loss_forward(s, row_loss);
}

static void grad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const nn_step *s = ctx;
    const nn_loss_row r = nn_loss_row_at(s, i);
    const double T = (double)s->node->attr.temperature;
    const double scale = (double)s->node->attr.weight * T / s->batch;
    const double student = nn_log_sum_exp(r.z, r.n, T), teacher = nn_log_sum_exp(r.t, r.n, T);
    for (int64_t c = 0; c < r.n; c++)
        nn_loss_row_put(&r, c, scale * (exp((double)r.z[c] / T - student)
                                        - exp((double)r.t[c] / T - teacher)));
}

static void distill_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for(s->batch, grad_row, s);
}

const nn_op nn_op_distill = {
    .name = "distill", .onnx = "",
    .flags = NN_NEEDS_IN | NN_IS_LOSS, .attrs = NN_HAS(temperature) | NN_HAS(weight),
    .in_min = 2, .in_max = 2,
    .shape = nn_loss_shape, .prepare = nn_loss_prepare,
    .forward = distill_forward, .backward = distill_backward,
};
