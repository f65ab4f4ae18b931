/* Hinton et al. 2015: cross entropy between softened teacher t and student s logits,
 *   -T^2 sum_c softmax(t/T)_c log softmax(s/T)_c,  mean over the batch;  ds = T (p - q) / batch. */
#include <math.h>

#include "nn/op.h"

static double row_loss(const nn_step *s, int64_t i)
{
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    const double T = (double)s->node->attr.temperature;
    const double student = nn_log_sum_exp(z, C, T), teacher = nn_log_sum_exp(t, C, T);
    double sum = 0;
    for (int64_t c = 0; c < C; c++)
        sum += exp((double)t[c] / T - teacher) * (student - (double)z[c] / T);
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
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    float *dz = s->dx[0].p + i * C;
    const double T = (double)s->node->attr.temperature;
    const double scale = (double)s->node->attr.weight * T / s->batch;
    const double student = nn_log_sum_exp(z, C, T), teacher = nn_log_sum_exp(t, C, T);
    for (int64_t c = 0; c < C; c++) {
        const double g =
            scale * (exp((double)z[c] / T - student) - exp((double)t[c] / T - teacher));
        dz[c] = s->dx[0].accumulate ? dz[c] + (float)g : (float)g;
    }
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
