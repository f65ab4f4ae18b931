/* TRAIN: each value is dropped with probability p, the others grow by 1/(1-p). The mask is a
 * function of (seed, epoch, step, node, element), so backward draws it again instead of keeping it. */
#include "nn/op.h"

enum { PIECE = 4096 };           /* values of one random stream */

typedef struct {
    const nn_step *s;
    const nn_run *r;
    const float *from;
    float *to;
    bool accumulate;
} job;

static void mask_piece(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const job *j = ctx;
    const int64_t count = nn_count(j->s, j->s->node),
                  end = (i + 1) * PIECE < count ? (i + 1) * PIECE : count;
    /* 56 bits of index: 20 of step, 12 of node, 24 of piece */
    const uint64_t index = ((uint64_t)j->r->step & 0xFFFFF) << 36 |
                           ((uint64_t)j->s->id & 0xFFF) << 24 | ((uint64_t)i & 0xFFFFFF);
    rng draw = rng_at(j->r->seed, RNG_DROPOUT, (uint32_t)j->r->epoch, index);
    const double p = (double)j->s->node->attr.p;
    const float keep = (float)(1 / (1 - p));
    for (int64_t k = i * PIECE; k < end; k++) {
        const float v = j->from[k] * (rng_uniform(&draw) < p ? 0 : keep);   /* a NaN stays one */
        j->to[k] = j->accumulate ? j->to[k] + v : v;
    }
}

static void mask(nn_step *s, const nn_run *r, const float *from, float *to, bool accumulate)
{
    job j = { s, r, from, to, accumulate };
    par_for((nn_count(s, s->node) + PIECE - 1) / PIECE, mask_piece, &j);
}

static void dropout_forward(nn_step *s, const nn_run *r) { mask(s, r, s->x[0], s->y, false); }
static void dropout_backward(nn_step *s, const nn_run *r)
{
    mask(s, r, s->dy, s->dx[0].p, s->dx[0].accumulate);
}

const nn_op nn_op_dropout = {
    .name = "dropout", .onnx = "Dropout",
    .flags = NN_INPLACE | NN_GRAD_INPLACE | NN_TRAIN_ONLY, .attrs = NN_HAS(p),
    .in_min = 1, .in_max = 1,
    .shape = nn_same_shape, .forward = dropout_forward, .backward = dropout_backward,
};
