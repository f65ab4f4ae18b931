/* Optimiser steps and whole-vector loops: one pass over memory each. */
#include <math.h>

#include "core/kern/kern.h"

enum { BLOCK = 16384, MAX_SUMS = 64 };

typedef struct {
    int64_t count, per_block;
    float *w, *m, *v;
    const float *g;
    float gscale, lr, mu, wd, b1, b2, eps, decay;
    double step_size, root_c2;
    bool flag, nesterov;                                /* flag: first step, decoupled, accumulate */
    double *sum;
} vec_job;

#define FOR_BLOCK(j, i, k) for (int64_t k = (i) * BLOCK; k < kern_min((j)->count, ((i) + 1) * BLOCK); k++)

static void add_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    FOR_BLOCK(j, i, k) j->w[k] = j->flag ? j->w[k] + j->g[k] : j->g[k];
}

void vec_add(int64_t count, const float *a, bool accumulate, float *y)
{
    par_for(kern_div_up(count, BLOCK), add_block, &(vec_job){ .count = count, .w = y, .g = a, .flag = accumulate });
}

static void sgd_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    FOR_BLOCK(j, i, k) {
        float g = j->g[k] * j->gscale + j->wd * j->w[k];
        float m = j->flag ? g : j->mu * j->m[k] + g;
        j->m[k] = m;
        j->w[k] -= j->lr * (j->nesterov ? g + j->mu * m : m);
    }
}

void sgd_step(int64_t count, float *w, const float *g, float *m, float gscale, float lr, float mu,
              float wd, bool nesterov, bool first)
{
    par_for(kern_div_up(count, BLOCK), sgd_block,
            &(vec_job){ .count = count, .w = w, .g = g, .m = m, .gscale = gscale, .lr = lr, .mu = mu, .wd = wd,
                        .nesterov = nesterov, .flag = first });
}

static void adam_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    float keep = j->flag ? 1 - j->lr * j->wd : 1, step = (float)j->step_size, root = (float)j->root_c2;
    FOR_BLOCK(j, i, k) {
        float w = j->w[k] * keep, g = j->g[k] * j->gscale + (j->flag ? 0 : j->wd * w);
        float m = j->b1 * j->m[k] + (1 - j->b1) * g, v = j->b2 * j->v[k] + (1 - j->b2) * g * g;
        j->m[k] = m;
        j->v[k] = v;
        j->w[k] = w - step * (m / (sqrtf(v) / root + j->eps));
    }
}

void adam_step(int64_t count, float *w, const float *g, float *m, float *v, float gscale, float lr,
               float b1, float b2, float eps, float wd, bool decoupled, int64_t t)
{
    double c1 = 1 - pow((double)b1, (double)t), c2 = 1 - pow((double)b2, (double)t);
    par_for(kern_div_up(count, BLOCK), adam_block,
            &(vec_job){ .count = count, .w = w, .g = g, .m = m, .v = v, .gscale = gscale, .lr = lr, .b1 = b1,
                        .b2 = b2, .eps = eps, .wd = wd, .flag = decoupled, .step_size = (double)lr / c1,
                        .root_c2 = sqrt(c2) });
}

static void ema_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    FOR_BLOCK(j, i, k) j->w[k] = j->decay * j->w[k] + (1 - j->decay) * j->g[k];
}

void ema_step(int64_t count, float *avg, const float *w, float decay)
{
    par_for(kern_div_up(count, BLOCK), ema_block, &(vec_job){ .count = count, .w = avg, .g = w, .decay = decay });
}

static void squares_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    double s[8] = { 0 };
    for (int64_t k = i * j->per_block; k < kern_min(j->count, (i + 1) * j->per_block); k++)
        s[k % 8] += (double)j->g[k] * (double)j->g[k];
    j->sum[i] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

double vec_sum_squares(int64_t count, const float *x)
{
    double sum[MAX_SUMS], total = 0;
    vec_job j = { .count = count, .per_block = kern_max(BLOCK, kern_div_up(count, MAX_SUMS)), .g = x, .sum = sum };
    int64_t blocks = kern_div_up(count, j.per_block);
    par_for(blocks, squares_block, &j);
    for (int64_t i = 0; i < blocks; i++) total += sum[i];
    return total;
}

static void finite_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const vec_job *j = ctx;
    uint32_t bad = 0;
    for (int64_t k = i * j->per_block; k < kern_min(j->count, (i + 1) * j->per_block); k++) {
        float d = j->g[k] - j->g[k];                    /* 0 for finite values, NaN otherwise */
        bad |= d != 0;
    }
    j->sum[i] = bad;
}

bool vec_is_finite(int64_t count, const float *x)
{
    double bad[MAX_SUMS];
    vec_job j = { .count = count, .per_block = kern_max(BLOCK, kern_div_up(count, MAX_SUMS)), .g = x, .sum = bad };
    int64_t blocks = kern_div_up(count, j.per_block);
    par_for(blocks, finite_block, &j);
    for (int64_t i = 0; i < blocks; i++)
        if (bad[i] != 0) return false;
    return true;
}
