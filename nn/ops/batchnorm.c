/* Batch norm over N,H,W. TRAIN: batch statistics, running ones updated as PyTorch does (variance
 * unbiased); residual and activation are fused into the pass. INFER: scale and shift, for the norms
 * that could not be folded into a convolution. */
#include <math.h>

#include "nn/op.h"

enum { STATS, SCRATCH, SCRATCH_BACK, COEF };            /* TRAIN */
enum { SCALE, SHIFT };                                  /* INFER */

static bool batchnorm_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    nn_same_shape(n, in, param, e);
    for (int i = 0; i < 4; i++)
        param[i] = (nn_dims){ 1, { n->dim[3] } };
    return true;
}

static bool batchnorm_prepare(nn_step *s, err *e)
{
    (void)e;
    const int c = (int)s->node->dim[3];
    const size_t row = (size_t)c * sizeof(float);
    const size_t scratch = bn_scratch_bytes(nn_rows(s, s->node), c);
    if (s->mode == NN_INFER) {
        nn_ask(s, SCALE, NN_ALWAYS, row);
        nn_ask(s, SHIFT, NN_ALWAYS, row);
        return true;
    }
    nn_ask(s, STATS, s->active || s->lazy ? NN_FORWARD_TO_BACKWARD : NN_AT_FORWARD, 5 * row);
    nn_ask(s, SCRATCH, NN_AT_FORWARD, scratch);
    if (s->active)
        nn_ask(s, SCRATCH_BACK, NN_AT_BACKWARD, scratch);
    if (s->active && s->half)
        nn_ask(s, COEF, NN_BACK_TO_GIVER, bn_grad_floats(c) * sizeof(float));
    return true;
}

static void batchnorm_refresh(nn_step *s)
{
    float *scale = s->mem[SCALE].p, *shift = s->mem[SHIFT].p;
    for (int64_t c = 0; c < s->node->dim[3]; c++) {
        const double g =
            (double)s->w[0]->x[c] / sqrt((double)s->w[3]->x[c] + (double)s->node->attr.eps);
        scale[c] = (float)g;
        shift[c] = (float)((double)s->w[1]->x[c] - g * (double)s->w[2]->x[c]);
    }
}

static bn_stats stats_of(const nn_step *s)
{
    float *p = s->mem[STATS].p;
    const int64_t c = s->node->dim[3];
    return (bn_stats){ .mean = p, .var = p + c, .invstd = p + 2 * c, .scale = p + 3 * c, .shift = p + 4 * c };
}

conv_prologue nn_norm_prologue(const nn_step *norm)
{
    const bn_stats st = stats_of(norm);
    return (conv_prologue){ st.scale, st.shift, norm->act };
}

const float *nn_norm_mean(const nn_step *norm) { return stats_of(norm).mean; }

bn_grad nn_norm_grad(const nn_step *norm)
{
    return (bn_grad){ (int)norm->node->dim[3], norm->act, norm->x[0], norm->mem[COEF].p };
}

/* running = (1-m) running + m batch */
static void follow(nn_step *s, const bn_stats *st, double m)
{
    const double n = (double)nn_rows(s, s->node), unbiased = n > 1 ? n / (n - 1) : 1;
    for (int64_t c = 0; c < s->node->dim[3]; c++) {
        float *to_mean = &s->w[2]->x[c], *to_var = &s->w[3]->x[c];
        *to_mean = (float)((1 - m) * (double)*to_mean + m * (double)st->mean[c]);
        *to_var = (float)((1 - m) * (double)*to_var + m * unbiased * (double)st->var[c]);
    }
}

static void batchnorm_forward(nn_step *s, const nn_run *r)
{
    const int c = (int)s->node->dim[3];
    const int64_t rows = nn_rows(s, s->node);
    if (s->mode == NN_INFER) {
        affine_forward(rows, c, s->x[0], s->mem[SCALE].p, s->mem[SHIFT].p, s->res, s->act, s->y);
        return;
    }
    const bn_stats st = stats_of(s);
    const row_sums *known = s->giver && s->giver->sums.parts ? &s->giver->sums : NULL;
    bn_forward(rows, c, s->x[0], known, s->w[0]->x, s->w[1]->x, s->node->attr.eps, s->res, s->act, &st, s->lazy ? NULL : s->y,
               s->mem[SCRATCH].p);
    follow(s, &st, r->momentum >= 0 ? r->momentum : (double)s->node->attr.momentum);
}

static void batchnorm_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    const bn_stats st = stats_of(s);
    const row_sums *known = s->applier && s->applier->back_sums.parts ? &s->applier->back_sums : NULL;
    if (s->half) {
        bn_backward_sums(nn_rows(s, s->node), (int)s->node->dim[3], s->x[0], s->dy, known, s->w[0]->x, &st, s->act, s->dw[0], s->dw[1],
                         s->mem[COEF].p, s->mem[SCRATCH_BACK].p);
        return;
    }
    bn_backward(nn_rows(s, s->node), (int)s->node->dim[3], s->x[0], s->residual >= 0 ? s->y : NULL, s->dy, known, s->w[0]->x,
                &st, s->act, s->dx[0], s->dres, s->dw[0], s->dw[1], s->mem[SCRATCH_BACK].p);
}

const nn_op nn_op_batchnorm = {
    .name = "batchnorm", .onnx = "BatchNormalization",
    .flags = NN_INPLACE | NN_GRAD_INPLACE | NN_NEEDS_IN | NN_FUSE_INFER | NN_FUSE_TRAIN
           | NN_IS_NORM,
    .attrs = NN_HAS(eps) | NN_HAS(momentum),
    .in_min = 1, .in_max = 1,
    .param = { { "weight", NN_NORM_WEIGHT, 1, false }, { "bias", NN_NORM_BIAS, 0, false },
               { "running_mean", NN_RUNNING, 0, false }, { "running_var", NN_RUNNING, 1, false } },
    .shape = batchnorm_shape, .prepare = batchnorm_prepare, .refresh = batchnorm_refresh,
    .forward = batchnorm_forward, .backward = batchnorm_backward,
};
