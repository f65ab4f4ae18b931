/* Rows × channels: batch norm, scale and shift, activations, sums over rows. */
#include <math.h>
#include <string.h>

#include "core/kern/kern.h"

/* Rows are cut into at most MAX_BLOCKS blocks; each leaves two double sums per channel in scratch,
 * which are then added in block order. */
enum { MAX_BLOCKS = 32, BLOCK_FLOATS = 16384 };

/* Patterns of few channels are repeated until they fill vectors. */
enum { PATTERN = 128, PATTERN_STEP = 16 };

typedef struct {
    norm_args a;                 /* of all rows */
    int64_t rows_per_block;
} norm_job;

static int64_t block_rows(int64_t rows, int c)
{
    return kern_max(kern_div_up(rows, MAX_BLOCKS), kern_max(1, BLOCK_FLOATS / c));
}

static const float *skip(const float *p, int64_t n) { return p ? p + n : NULL; }

/* The arguments of block i. */
static norm_args block_args(const norm_job *j, int64_t i)
{
    norm_args a = j->a;
    int64_t r0 = i * j->rows_per_block, at = r0 * a.c;
    a.rows = kern_min(j->rows_per_block, a.rows - r0);
    a.count = a.rows * a.c;
    a.x = skip(a.x, at);
    a.y = skip(a.y, at);
    a.dy = skip(a.dy, at);
    a.residual = skip(a.residual, at);
    if (a.sum) a.sum += i * 2 * a.c;
    if (a.out) a.out += at;
    if (a.dx.p) a.dx.p += at;
    if (a.dres.p) a.dres.p += at;
    return a;
}

#define BLOCK_FN(name) \
    static void name##_block(void *ctx, int64_t i, int worker) \
    { \
        (void)worker; \
        norm_args a = block_args(ctx, i); \
        kern.name(&a); \
    }
BLOCK_FN(affine)
BLOCK_FN(bn_back)
BLOCK_FN(act_back)

static void back_moments_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    norm_args a = block_args(ctx, i);
    memset(a.sum, 0, (size_t)a.c * 2 * sizeof *a.sum);
    kern.back_moments(&a);
}

static void part_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const norm_job *j = ctx;
    norm_args a = block_args(j, i);
    row_part p = row_part_open(j->a.sum + i * ROW_PART(a.c), a.c, 0, a.c, a.c);
    row_part_add(&p, a.x, a.rows);
    row_part_close(&p);
}

static int64_t blocks_of(const norm_job *j) { return kern_div_up(j->a.rows, j->rows_per_block); }
static void over_blocks(norm_job *j, par_fn *fn) { par_for(blocks_of(j), fn, j); }

/* Sums of all blocks, in order, into block 0. */
static void sum_blocks(norm_job *j, par_fn *fn)
{
    int64_t n = 2 * j->a.c;
    j->a.step = j->a.sum_step = j->a.c;
    over_blocks(j, fn);
    for (int64_t b = 1; b < blocks_of(j); b++)
        for (int64_t i = 0; i < n; i++) j->a.sum[i] += j->a.sum[b * n + i];
}

row_part row_part_open(double *part, int all, int c0, int c, int64_t step)
{
    memset(part + 1 + c0, 0, (size_t)c * sizeof *part);
    memset(part + 1 + all + c0, 0, (size_t)c * sizeof *part);
    return (row_part){ .part = part, .step = step, .all = all, .c0 = c0, .c = c };
}

void row_part_add(row_part *p, const float *x, int64_t rows)
{
    if (!p->first) p->first = x;
    p->n += rows;
    kern.moments(&(norm_args){ .rows = rows, .c = p->c, .x = x, .pivot = p->first, .step = p->step, .sum = p->part + 1 + p->c0,
                               .sum_step = p->all });
}

void row_part_close(const row_part *p)
{
    double *sum = p->part + 1 + p->c0, *square = sum + p->all, n = (double)p->n;
    if (!p->c0) p->part[0] = n;
    for (int i = 0; i < p->c; i++) {
        square[i] -= sum[i] * sum[i] / n;
        sum[i] += n * (double)p->first[i];
    }
}

/* Means of all channels, then biased variances, from all parts (Chan, Golub, LeVeque 1979). */
static void combine(const row_sums *s, int c, double *mean)
{
    double n = 0, *var = mean + c;
    memset(mean, 0, 2 * (size_t)c * sizeof *mean);
    for (int64_t i = 0; i < s->parts; i++) {
        const double *p = s->part + i * ROW_PART(c);
        n += p[0];
        for (int k = 0; k < c; k++) mean[k] += p[1 + k];
    }
    for (int k = 0; k < c; k++) mean[k] /= n;
    for (int64_t i = 0; i < s->parts; i++) {
        const double *p = s->part + i * ROW_PART(c), rows = p[0], each = 1 / rows;
        for (int k = 0; k < c; k++) {
            double away = p[1 + k] * each - mean[k];
            var[k] += p[1 + c + k] + rows * away * away;
        }
    }
    for (int k = 0; k < c; k++) var[k] = var[k] < 0 ? 0 : var[k] / n;
}

/* Rows to a pattern: 1, or as many as make whole vectors of few channels. */
static int pattern_rows(int c)
{
    int best = 1;
    for (int k = 1; k * c <= PATTERN; k++) {
        best = k;
        if (k * c % PATTERN_STEP == 0 && k * c >= PATTERN / 2) break;
    }
    return best;
}

static void repeat(float *pattern, int c, int width)
{
    for (int i = c; i < width; i++) pattern[i] = pattern[i - c];
}

/* Scratch: sums of the blocks, two doubles per channel, patterns. */
enum { PATTERNS = 5 };
static size_t pattern_room(int c) { return (size_t)kern_max(c, PATTERN); }

size_t bn_scratch_bytes(int64_t rows, int c)
{
    int64_t blocks = kern_div_up(rows, block_rows(rows, c));
    return (size_t)(blocks * ROW_PART(c) + 2 * c) * sizeof(double) + PATTERNS * pattern_room(c) * sizeof(float);
}

static double *totals_of(const norm_job *j) { return j->a.sum + blocks_of(j) * ROW_PART(j->a.c); }

static float *pattern_at(const norm_job *j, int i)
{
    return (float *)(totals_of(j) + 2 * j->a.c) + (size_t)i * pattern_room(j->a.c);
}

/* Pattern i: the c floats of from, repeated. */
static const float *pattern_of(const norm_job *j, int i, const float *from)
{
    float *pattern = pattern_at(j, i);
    memcpy(pattern, from, (size_t)j->a.c * sizeof *from);
    repeat(pattern, j->a.c, j->a.width);
    return pattern;
}

static float gate_high(act_kind act) { return act == ACT_RELU6 ? 6 : NAN; }

void bn_forward(int64_t rows, int c, const float *x, const row_sums *known, const float *gamma, const float *beta,
                float eps, const float *residual, act_kind act, const bn_stats *st, float *y, void *scratch)
{
    norm_job j = { { .rows = rows, .c = c, .width = c * pattern_rows(c), .x = x, .act = act, .sum = scratch }, block_rows(rows, c) };
    row_sums own = { scratch, blocks_of(&j) };
    if (!known) over_blocks(&j, part_block);
    double *total = totals_of(&j);
    combine(known ? known : &own, c, total);
    for (int i = 0; i < c; i++) {
        double m = total[i], v = total[c + i], s = 1 / sqrt(v + (double)eps);
        st->mean[i] = (float)m;
        st->var[i] = (float)v;
        st->invstd[i] = (float)s;
        st->scale[i] = (float)((double)gamma[i] * s);
        st->shift[i] = (float)((double)beta[i] - m * (double)gamma[i] * s);
    }
    if (!y) return;
    j.a.p0 = pattern_of(&j, 0, st->scale);
    j.a.p1 = pattern_of(&j, 1, st->shift);
    j.a.residual = residual;
    j.a.out = y;
    over_blocks(&j, affine_block);
}

static void put(grad_out g, int64_t at, double v)
{
    if (g.p) g.p[at] = g.accumulate ? g.p[at] + (float)v : (float)v;
}

static norm_job back_job(int64_t rows, int c, const float *x, const float *y, const float *dy, const bn_stats *st, act_kind act,
                         void *scratch)
{
    return (norm_job){ { .rows = rows, .c = c, .width = c * pattern_rows(c), .x = x, .y = y, .dy = dy, .mean = st->mean, .act = act,
                         .g0 = st->scale, .g1 = st->shift, .gate_high = gate_high(act), .sum = scratch }, block_rows(rows, c) };
}

size_t bn_grad_floats(int c) { return PATTERNS * pattern_room(c); }

static void add_parts(const row_sums *s, int64_t n, double *sum)
{
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t i = 0; i < s->parts * n; i++) sum[i % n] += s->part[i];
}

void grad_moments_open(const grad_moments *m, int64_t part, int c0, int c)
{
    double *sum = m->part + part * 2 * m->all + c0;
    memset(sum, 0, (size_t)c * sizeof *sum);
    memset(sum + m->all, 0, (size_t)c * sizeof *sum);
}

/* Rows [at, at + rows*step) of all floats, dx at channel c0 of the first. */
void grad_moments_add(const grad_moments *m, int64_t part, int c0, int c, int64_t rows, int64_t at, int64_t step, const float *dx)
{
    kern.back_moments(&(norm_args){ .rows = rows, .c = c, .x = m->x + at, .dy = dx, .mean = m->mean + c0, .g0 = m->gate.scale + c0,
                                    .g1 = m->gate.shift + c0, .act = m->gate.act, .gate_high = gate_high(m->gate.act),
                                    .sum = m->part + part * 2 * m->all + c0, .step = step, .sum_step = m->all });
}

/* What backward multiplies with, PATTERNS of them: sums once, then rows.
 * dx = gamma*invstd*(dz - mean(dz) - xhat*mean(dz*xhat)), xhat = (x-mean)*invstd */
static void back_sums(norm_job *j, const row_sums *known, const float *gamma, const bn_stats *st, grad_out dgamma, grad_out dbeta, float *coef)
{
    const int64_t rows = j->a.rows;
    const int c = j->a.c;
    const size_t room = pattern_room(c);
    const double *sum = j->a.sum;
    float *by_dz = coef, *by_x = coef + room, *add = coef + 2 * room;
    if (known) add_parts(known, 2 * c, j->a.sum);
    else sum_blocks(j, back_moments_block);
    for (int i = 0; i < c; i++) {
        double inv = (double)st->invstd[i], g = (double)gamma[i] * inv, dz = sum[i], dz_xhat = sum[c + i] * inv;
        double slope = dz_xhat / (double)rows * inv;
        put(dbeta, i, dz);
        put(dgamma, i, dz_xhat);
        by_dz[i] = (float)g;
        by_x[i] = (float)(-g * slope);
        add[i] = (float)(g * (slope * (double)st->mean[i] - dz / (double)rows));
    }
    memcpy(coef + 3 * room, st->scale, (size_t)c * sizeof *coef);
    memcpy(coef + 4 * room, st->shift, (size_t)c * sizeof *coef);
    for (int i = 0; i < PATTERNS; i++) repeat(coef + (size_t)i * room, c, j->a.width);
}

static void use_coef(norm_args *a, const float *coef)
{
    const size_t room = pattern_room(a->c);
    a->p0 = coef;
    a->p1 = coef + room;
    a->p2 = coef + 2 * room;
    a->g0 = coef + 3 * room;
    a->g1 = coef + 4 * room;
}

void bn_backward_sums(int64_t rows, int c, const float *x, const float *dy, const row_sums *known, const float *gamma,
                      const bn_stats *st, act_kind act, grad_out dgamma, grad_out dbeta, float *coef, void *scratch)
{
    norm_job j = back_job(rows, c, x, NULL, dy, st, act, scratch);
    back_sums(&j, known, gamma, st, dgamma, dbeta, coef);
}

void bn_grad_rows(const bn_grad *g, int64_t first, int64_t rows, const float *dy, float *dx)
{
    const int64_t at = first * g->c;
    norm_args a = { .rows = rows, .count = rows * g->c, .c = g->c, .width = g->c * pattern_rows(g->c), .x = g->x + at, .dy = dy + at,
                    .act = g->act, .gate_high = gate_high(g->act), .dx = { dx, false } };
    use_coef(&a, g->coef);
    kern.bn_back(&a);
}

void bn_backward(int64_t rows, int c, const float *x, const float *y, const float *dy, const row_sums *known, const float *gamma,
                 const bn_stats *st, act_kind act, grad_out dx, grad_out dres, grad_out dgamma, grad_out dbeta, void *scratch)
{
    norm_job j = back_job(rows, c, x, y, dy, st, act, scratch);
    back_sums(&j, known, gamma, st, dgamma, dbeta, pattern_at(&j, 0));
    use_coef(&j.a, pattern_at(&j, 0));
    j.a.dx = dx;
    j.a.dres = dres;
    over_blocks(&j, bn_back_block);
}

/* p repeated to `width` floats in own; many channels are used where they are. */
static const float *widen(const float *p, int c, int width, float own[PATTERN])
{
    if (!p || width == c) return p;
    memcpy(own, p, (size_t)c * sizeof *own);
    repeat(own, c, width);
    return own;
}

void affine_forward(int64_t rows, int c, const float *x, const float *scale, const float *shift,
                    const float *residual, act_kind act, float *y)
{
    float own[2][PATTERN];
    int width = c * pattern_rows(c);
    norm_job j = { { .rows = rows, .c = c, .width = width, .x = x, .p0 = widen(scale, c, width, own[0]),
                     .p1 = widen(shift, c, width, own[1]), .residual = residual, .act = act, .out = y },
                   kern_max(1, BLOCK_FLOATS / c) };
    over_blocks(&j, affine_block);
}

void act_backward(int64_t count, act_kind act, const float *x, const float *y, const float *dy,
                  bool accumulate, float *dx)
{
    norm_job j = { { .rows = count, .c = 1, .x = x, .y = y, .dy = dy, .act = act, .gate_high = gate_high(act),
                     .dx = { dx, accumulate } }, BLOCK_FLOATS };
    over_blocks(&j, act_back_block);
}

static void moments_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    norm_args a = block_args(ctx, i);
    memset(a.sum, 0, (size_t)a.c * 2 * sizeof *a.sum);
    kern.moments(&a);
}

void channel_sum(int64_t rows, int c, const float *x, bool accumulate, float *out, void *scratch)
{
    norm_job j = { { .rows = rows, .c = c, .x = x, .sum = scratch }, block_rows(rows, c) };
    sum_blocks(&j, moments_block);
    for (int i = 0; i < c; i++) put((grad_out){ out, accumulate }, i, j.a.sum[i]);
}
