/* Hinton et al. 2015: cross entropy between softened teacher t and student s logits,
 *   -T^2 sum_c softmax(t/T)_c log softmax(s/T)_c,  mean over the batch;  ds = T (p - q) / batch.
 * Everything of a row is formed in double; y holds each image's loss. */
#include <math.h>

#include "nn/op.h"

enum { ROW_LOSS };

static bool distill_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    for (int i = 1; i < 4; i++)
        if (in[0]->dim[i] != in[1]->dim[i] || (i < 3 && in[0]->dim[i] != 1))
            return err_set(e, ERR_CONFIG, "%s and %s are not rows of as many classes", in[0]->name, in[1]->name);
    n->dim[1] = n->dim[2] = n->dim[3] = 1;
    return true;
}

static bool distill_prepare(nn_step *s, err *e)
{
    (void)e;
    nn_ask(s, ROW_LOSS, NN_AT_FORWARD, (size_t)s->batch * sizeof(double));
    return true;
}

static double log_sum_exp(const float *z, int64_t n, double T)
{
    double top = (double)z[0], sum = 0;
    for (int64_t c = 1; c < n; c++)
        top = (double)z[c] > top ? (double)z[c] : top;
    for (int64_t c = 0; c < n; c++)
        sum += exp(((double)z[c] - top) / T);
    return top / T + log(sum);
}

static void loss_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    const double T = (double)s->node->attr.temperature;
    const double student = log_sum_exp(z, C, T), teacher = log_sum_exp(t, C, T);
    double sum = 0;
    for (int64_t c = 0; c < C; c++)
        sum += exp((double)t[c] / T - teacher) * (student - (double)z[c] / T);
    double *row = s->mem[ROW_LOSS].p;
    row[i] = T * T * sum;
    s->y[i] = (float)row[i];
}

static void distill_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for(s->batch, loss_row, s);
    const double *row = s->mem[ROW_LOSS].p;
    s->loss = 0;
    for (int i = 0; i < s->batch; i++)
        s->loss += row[i];
    s->loss /= s->batch;
}

static void grad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    float *dz = s->dx[0].p + i * C;
    const double T = (double)s->node->attr.temperature, scale = (double)s->node->attr.weight * T / s->batch;
    const double student = log_sum_exp(z, C, T), teacher = log_sum_exp(t, C, T);
    for (int64_t c = 0; c < C; c++) {
        const double g = scale * (exp((double)z[c] / T - student) - exp((double)t[c] / T - teacher));
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
    .shape = distill_shape, .prepare = distill_prepare,
    .forward = distill_forward, .backward = distill_backward,
};
