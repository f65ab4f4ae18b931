/* Optimiser steps and whole-vector loops: one pass over memory each. */
#include <math.h>

#include "core/kern/kern.h"

enum { BLOCK = 16384, MAX_SUMS = 64 };

typedef struct {
    optim_args a;
    void (*fn)(const optim_args *);
} optim_job;

static void optim_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const optim_job *j = ctx;
    optim_args a = j->a;
    int64_t at = i * BLOCK;
    a.count = kern_min(BLOCK, a.count - at);
    a.w += at;
    a.g += at;
    if (a.m) a.m += at;
    if (a.v) a.v += at;
    j->fn(&a);
}

static void over_blocks(optim_args a, void (*fn)(const optim_args *))
{
    par_for(kern_div_up(a.count, BLOCK), optim_block, &(optim_job){ a, fn });
}

void vec_add(int64_t count, const float *a, bool accumulate, float *y)
{
    if (accumulate) over_blocks((optim_args){ .count = count, .w = y, .g = a, .a = 1, .b = 1 }, kern.blend);
    else affine_forward(count, 1, a, NULL, NULL, NULL, ACT_NONE, y);
}

void sgd_step(int64_t count, float *w, const float *g, float *m, float gscale, float lr, float mu,
              float wd, bool nesterov, bool first)
{
    over_blocks((optim_args){ .count = count, .w = w, .g = g, .m = m, .gscale = gscale, .lr = lr, .mu = mu, .wd = wd,
                              .nesterov = nesterov, .flag = first }, kern.sgd);
}

void adam_step(int64_t count, float *w, const float *g, float *m, float *v, float gscale, float lr,
               float b1, float b2, float eps, float wd, bool decoupled, int64_t t)
{
    double c1 = 1 - pow((double)b1, (double)t), c2 = 1 - pow((double)b2, (double)t);
    over_blocks((optim_args){ .count = count, .w = w, .g = g, .m = m, .v = v, .gscale = gscale, .lr = lr, .b1 = b1,
                              .b2 = b2, .eps = eps, .wd = wd, .flag = decoupled, .step = (float)((double)lr / c1),
                              .root_c2 = (float)sqrt(c2) }, kern.adam);
}

void ema_step(int64_t count, float *avg, const float *w, float decay)
{
    over_blocks((optim_args){ .count = count, .w = avg, .g = w, .a = decay, .b = 1 - decay }, kern.blend);
}

/* ---- sums of a whole vector --------------------------------------------------------------------- */

typedef struct {
    int64_t count, per_block;
    const float *x;
    double sum[MAX_SUMS];
} sum_job;

static void squares_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    sum_job *j = ctx;
    int64_t at = i * j->per_block;
    j->sum[i] = kern.squares(kern_min(j->per_block, j->count - at), j->x + at);
}

static void finite_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    sum_job *j = ctx;
    int64_t at = i * j->per_block;
    j->sum[i] = kern.finite(kern_min(j->per_block, j->count - at), j->x + at) ? 0 : 1;
}

static double sum_blocks(int64_t count, const float *x, par_fn *fn)
{
    sum_job j = { .count = count, .per_block = kern_max(BLOCK, kern_div_up(count, MAX_SUMS)), .x = x };
    int64_t blocks = kern_div_up(count, j.per_block);
    double total = 0;
    par_for(blocks, fn, &j);
    for (int64_t i = 0; i < blocks; i++) total += j.sum[i];
    return total;
}

double vec_sum_squares(int64_t count, const float *x) { return sum_blocks(count, x, squares_block); }
bool   vec_is_finite(int64_t count, const float *x) { return sum_blocks(count, x, finite_block) == 0; }
