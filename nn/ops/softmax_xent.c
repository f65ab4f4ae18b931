/* Cross entropy of logits z against a distribution t, with label smoothing e, mean over the batch:
 *   (1-e) sum_c t_c nll_c + e mean_c nll_c,   nll_c = log sum_k exp(z_k) - z_c
 * Everything of a row is formed in double; y holds each image's loss. */
#include <math.h>

#include "nn/op.h"

enum { ROW_LOSS };

static bool softmax_xent_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    for (int k = 0; k < 2; k++)
        if (in[k]->dim[1] != 1 || in[k]->dim[2] != 1)
            return err_set(e, ERR_CONFIG, "%s is an image of %lldx%lld, not a row of classes", in[k]->name,
                           (long long)in[k]->dim[1], (long long)in[k]->dim[2]);
    if (in[0]->dim[3] != in[1]->dim[3])
        return err_set(e, ERR_CONFIG, "%s has %lld classes, %s %lld", in[0]->name,
                       (long long)in[0]->dim[3], in[1]->name, (long long)in[1]->dim[3]);
    n->dim[1] = n->dim[2] = n->dim[3] = 1;
    return true;
}

static bool softmax_xent_prepare(nn_step *s, err *e)
{
    (void)e;
    nn_ask(s, ROW_LOSS, NN_AT_FORWARD, (size_t)s->batch * sizeof(double));
    return true;
}

static double log_sum_exp(const float *z, int64_t n)
{
    double top = (double)z[0], sum = 0;
    for (int64_t c = 1; c < n; c++)
        top = (double)z[c] > top ? (double)z[c] : top;
    for (int64_t c = 0; c < n; c++)
        sum += exp((double)z[c] - top);
    return top + log(sum);
}

static void loss_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    const double lse = log_sum_exp(z, C), e = (double)s->node->attr.smoothing;
    double hit = 0, all = 0;
    for (int64_t c = 0; c < C; c++) {
        hit += (double)t[c] * (lse - (double)z[c]);
        all += lse - (double)z[c];
    }
    double *row = s->mem[ROW_LOSS].p;
    row[i] = (1 - e) * hit + e * all / (double)C;
    s->y[i] = (float)row[i];
}

static void softmax_xent_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for(s->batch, loss_row, s);
    const double *row = s->mem[ROW_LOSS].p;
    s->loss = 0;
    for (int i = 0; i < s->batch; i++)
        s->loss += row[i];
    s->loss /= s->batch;
}

/* dz_c = weight/batch * ((1-e) (sum(t) p_c - t_c) + e (p_c - 1/C)) */
static void grad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    nn_step *s = ctx;
    const int64_t C = s->src[0]->dim[3];
    const float *z = s->x[0] + i * C, *t = s->x[1] + i * C;
    float *dz = s->dx[0].p + i * C;
    const double lse = log_sum_exp(z, C), e = (double)s->node->attr.smoothing;
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
    .shape = softmax_xent_shape, .prepare = softmax_xent_prepare,
    .forward = softmax_xent_forward, .backward = softmax_xent_backward,
};
