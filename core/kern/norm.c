/* Rows × channels: batch norm, scale and shift, activations, sums over rows. */
#include <math.h>
#include <string.h>

#include "core/kern/kern.h"

/* Rows are cut into at most MAX_BLOCKS blocks; each leaves two double sums per channel in scratch,
 * which are then added in block order. */
enum { MAX_BLOCKS = 64, BLOCK_FLOATS = 16384 };

static int64_t block_rows(int64_t rows, int c)
{
    return kern_max(kern_div_up(rows, MAX_BLOCKS), kern_max(1, BLOCK_FLOATS / c));
}

size_t bn_scratch_bytes(int64_t rows, int c)
{
    int64_t blocks = kern_div_up(rows, block_rows(rows, c));
    return (size_t)blocks * 2 * (size_t)c * sizeof(double) + 3 * (size_t)c * sizeof(float);
}

typedef struct {
    int64_t rows, per_block;
    int c;
    const float *x, *y, *dy, *residual;
    const float *mean, *invstd, *scale, *shift;
    const float *mul_dz, *mul_x, *add;                  /* backward: dx = dz*mul_dz + x*mul_x + add */
    act_kind act;
    double *sum;                                        /* [block][2][c] */
    grad_out dx, dres;
    float *out;
} norm_job;

static void moments_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const norm_job *j = ctx;
    int C = j->c;
    double *s = j->sum + i * 2 * C, *q = s + C;
    memset(s, 0, 2 * (size_t)C * sizeof *s);
    for (int64_t r = i * j->per_block; r < kern_min(j->rows, (i + 1) * j->per_block); r++)
        for (int c = 0; c < C; c++) {
            double v = (double)j->x[r * C + c];
            s[c] += v;
            q[c] += v * v;
        }
}

/* Block sums into block 0, in order. */
static void add_blocks(double *sum, int64_t blocks, int c)
{
    for (int64_t b = 1; b < blocks; b++)
        for (int i = 0; i < 2 * c; i++) sum[i] += sum[b * 2 * c + i];
}

static void affine_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const norm_job *j = ctx;
    int C = j->c;
    for (int64_t r = i * j->per_block; r < kern_min(j->rows, (i + 1) * j->per_block); r++)
        for (int c = 0; c < C; c++) {
            float v = j->x[r * C + c];
            if (j->scale) v *= j->scale[c];
            if (j->shift) v += j->shift[c];
            if (j->residual) v += j->residual[r * C + c];
            j->out[r * C + c] = act_value(j->act, v);
        }
}

void bn_forward(int64_t rows, int c, const float *x, const float *gamma, const float *beta, float eps,
                const float *residual, act_kind act, float *mean, float *var, float *invstd,
                float *y, void *scratch)
{
    int64_t per = block_rows(rows, c), blocks = kern_div_up(rows, per);
    norm_job j = { .rows = rows, .per_block = per, .c = c, .x = x, .residual = residual, .act = act,
                   .sum = scratch, .out = y };
    float *scale = (float *)(j.sum + blocks * 2 * c), *shift = scale + c;
    par_for(blocks, moments_block, &j);
    add_blocks(j.sum, blocks, c);
    for (int i = 0; i < c; i++) {
        double m = j.sum[i] / (double)rows, v = j.sum[c + i] / (double)rows - m * m;
        v = v < 0 ? 0 : v;
        double s = 1 / sqrt(v + (double)eps);
        mean[i] = (float)m;
        var[i] = (float)v;
        invstd[i] = (float)s;
        scale[i] = (float)((double)gamma[i] * s);
        shift[i] = (float)((double)beta[i] - m * (double)gamma[i] * s);
    }
    j.scale = scale;
    j.shift = shift;
    par_for(blocks, affine_block, &j);
}

static void backward_sums_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const norm_job *j = ctx;
    int C = j->c;
    double *s = j->sum + i * 2 * C, *q = s + C;
    memset(s, 0, 2 * (size_t)C * sizeof *s);
    for (int64_t r = i * j->per_block; r < kern_min(j->rows, (i + 1) * j->per_block); r++)
        for (int c = 0; c < C; c++) {
            float dz = j->dy[r * C + c];
            if (j->act != ACT_NONE) dz *= act_slope(j->act, j->y[r * C + c]);
            s[c] += (double)dz;
            q[c] += (double)dz * (double)((j->x[r * C + c] - j->mean[c]) * j->invstd[c]);
        }
}

static void put(grad_out g, int64_t at, float v)
{
    if (g.p) g.p[at] = g.accumulate ? g.p[at] + v : v;
}

static void backward_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const norm_job *j = ctx;
    int C = j->c;
    for (int64_t r = i * j->per_block; r < kern_min(j->rows, (i + 1) * j->per_block); r++)
        for (int c = 0; c < C; c++) {
            int64_t at = r * C + c;
            float dz = j->dy[at];
            if (j->act != ACT_NONE) dz *= act_slope(j->act, j->y[at]);
            put(j->dx, at, dz * j->mul_dz[c] + j->x[at] * j->mul_x[c] + j->add[c]);
            put(j->dres, at, dz);
        }
}

void bn_backward(int64_t rows, int c, const float *x, const float *y, const float *dy,
                 const float *gamma, const float *mean, const float *invstd, act_kind act,
                 grad_out dx, grad_out dres, grad_out dgamma, grad_out dbeta, void *scratch)
{
    int64_t per = block_rows(rows, c), blocks = kern_div_up(rows, per);
    norm_job j = { .rows = rows, .per_block = per, .c = c, .x = x, .y = y, .dy = dy, .mean = mean,
                   .invstd = invstd, .act = act, .sum = scratch, .dx = dx, .dres = dres };
    par_for(blocks, backward_sums_block, &j);
    add_blocks(j.sum, blocks, c);
    /* dx = gamma*invstd*(dz - mean(dz) - xhat*mean(dz*xhat)), xhat = (x-mean)*invstd */
    float *mul_dz = (float *)(j.sum + blocks * 2 * c), *mul_x = mul_dz + c, *add = mul_x + c;
    for (int i = 0; i < c; i++) {
        double g = (double)gamma[i] * (double)invstd[i], s = j.sum[i] / (double)rows;
        double q = j.sum[c + i] / (double)rows * (double)invstd[i];
        put(dbeta, i, (float)j.sum[i]);
        put(dgamma, i, (float)j.sum[c + i]);
        mul_dz[i] = (float)g;
        mul_x[i] = (float)(-g * q);
        add[i] = (float)(g * (q * (double)mean[i] - s));
    }
    j.mul_dz = mul_dz;
    j.mul_x = mul_x;
    j.add = add;
    par_for(blocks, backward_block, &j);
}

void affine_forward(int64_t rows, int c, const float *x, const float *scale, const float *shift,
                    const float *residual, act_kind act, float *y)
{
    int64_t per = kern_max(1, BLOCK_FLOATS / c);
    norm_job j = { .rows = rows, .per_block = per, .c = c, .x = x, .scale = scale, .shift = shift,
                   .residual = residual, .act = act, .out = y };
    par_for(kern_div_up(rows, per), affine_block, &j);
}

typedef struct {
    int64_t count;
    act_kind act;
    const float *x, *y, *dy;
    bool accumulate;
    float *out;
} act_job;

static void act_back_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const act_job *j = ctx;
    const float *by = j->act == ACT_SILU ? j->x : j->y;
    for (int64_t k = i * BLOCK_FLOATS; k < kern_min(j->count, (i + 1) * BLOCK_FLOATS); k++) {
        float v = j->dy[k] * (j->act == ACT_NONE ? 1 : act_slope(j->act, by[k]));
        j->out[k] = j->accumulate ? j->out[k] + v : v;
    }
}

void act_backward(int64_t count, act_kind act, const float *x, const float *y, const float *dy,
                  bool accumulate, float *dx)
{
    par_for(kern_div_up(count, BLOCK_FLOATS), act_back_block,
            &(act_job){ .count = count, .act = act, .x = x, .y = y, .dy = dy, .accumulate = accumulate, .out = dx });
}

void channel_sum(int64_t rows, int c, const float *x, bool accumulate, float *out, void *scratch)
{
    int64_t per = block_rows(rows, c), blocks = kern_div_up(rows, per);
    norm_job j = { .rows = rows, .per_block = per, .c = c, .x = x, .sum = scratch };
    par_for(blocks, moments_block, &j);
    add_blocks(j.sum, blocks, c);
    for (int i = 0; i < c; i++) put((grad_out){ out, accumulate }, i, (float)j.sum[i]);
}
