/* Depthwise convolution: as many groups as channels, one channel to a group.
 *
 * A gather again, cut into rows of outputs; a row into tiles of neighbouring outputs, and each
 * tile's taps into chunks that know which of their pixels are inside the image, so nothing is
 * copied and no zero is multiplied. Packed weights: [tap row][tap column][c]. */
#include <math.h>
#include <string.h>

#include "core/kern/conv.h"

const int dw_widths[DW_WIDTHS] = { 4, 7, 8 };

typedef struct { int first, count; } dw_tile;           /* outputs of a row */

struct dw_plan {
    gather g;                    /* groups holds the channels */
    conv_shape s;
    int width;                   /* index into dw_widths */
    int inner;                   /* stride the tile knows: 1 or 2 */
    int tiles, chunks;
    dw_tile *tile;
    dw_chunk *chunk;             /* [tile][chunks] */
    int rows, bands;             /* of outputs, for one task */
    int channels, parts;         /* of a task; channel parts */
    int blocks, imgs, lines;     /* weight gradient: sums; images and output rows of a unit */
    size_t packed_at;
};

/* ---- planning ----------------------------------------------------------------------------------- */

static int best_width(int outputs)
{
    int best = 0;
    double least = 1e300;
    for (int i = 0; i < DW_WIDTHS; i++) {
        double cost = (double)kern_div_up(outputs, dw_widths[i]) * (dw_widths[i] + 1.5);
        if (cost < least) { least = cost; best = i; }
    }
    return best;
}

/* Taps [b, b+taps) for outputs [first, first+count). */
static dw_chunk chunk_of(const dw_plan *p, int b, int taps, dw_tile t)
{
    const gather *g = &p->g;
    int at = t.first * g->sw + g->col[b], step = g->sw / p->inner;      /* step > 1: taps is 1 */
    int first = at < 0 ? (-at + step - 1) / step : 0, end = at < g->iw ? (g->iw - 1 - at) / step + 1 : 0;
    int used = (t.count - 1) * p->inner + taps;
    return (dw_chunk){ .x = g->col[b] * g->groups, .w = b * g->groups, .taps = (int16_t)taps,
                       .j0 = (int16_t)kern_min(first, used), .j1 = (int16_t)kern_min(end, used) };
}

static void make_tiles(dw_plan *p, int per_chunk)
{
    const gather *g = &p->g;
    int width = dw_widths[p->width];
    for (int i = 0; i < p->tiles; i++) {
        p->tile[i] = (dw_tile){ i * width, (int)kern_min(width, g->qw - i * width) };
        for (int k = 0, b = 0; k < p->chunks; k++) {
            int taps = per_chunk == 1 ? 1 : (int)kern_div_up(g->tw - b, p->chunks - k);
            p->chunk[i * p->chunks + k] = chunk_of(p, b, taps, p->tile[i]);
            b += taps;
        }
    }
}

/* A task has some rows of one image and some channels: all of them unless there are many. */
enum { PART = 128, TASK_MACS = 1 << 16, UNIT_PIXELS = 224 };

static void cut(dw_plan *p)
{
    const gather *g = &p->g;
    p->parts = (int)kern_div_up(g->groups, PART);
    p->channels = (int)kern_div_up(kern_div_up(g->groups, p->parts), 16) * 16;
    p->parts = (int)kern_div_up(g->groups, p->channels);
    int64_t row = (int64_t)g->qw * kern_max(1, g->th * g->tw) * p->channels;
    int64_t rows = kern_max(1, TASK_MACS / kern_max(1, row));
    p->bands = (int)kern_div_up(g->qh, kern_min(rows, g->qh));
    p->rows = (int)kern_div_up(g->qh, p->bands);
    p->bands = (int)kern_div_up(g->qh, p->rows);
}

dw_plan *dw_plan_new(const gather *from, const conv_shape *s, size_t packed_at, err *e)
{
    dw_plan *p = mem_new(1, sizeof *p, e);
    if (!p) { mem_free(from->row); return NULL; }
    p->g = *from;
    p->s = *s;
    p->packed_at = packed_at;
    const gather *g = &p->g;
    bool dense = g->tw > 1 && g->col[1] - g->col[0] == 1;
    p->inner = g->sw == 2 && (dense || g->tw == 1) ? 2 : 1;
    int per_chunk = g->sw == p->inner && dense ? CHUNK_TAPS : 1;
    p->width = best_width(g->qw);
    p->tiles = (int)kern_div_up(g->qw, dw_widths[p->width]);
    p->chunks = (int)kern_div_up(g->tw, per_chunk);
    p->tile = mem_new((size_t)p->tiles, sizeof *p->tile, e);
    p->chunk = p->tile ? mem_new((size_t)p->tiles * (size_t)p->chunks, sizeof *p->chunk, e) : NULL;
    if (!p->chunk) { dw_plan_free(p); return NULL; }
    make_tiles(p, per_chunk);
    cut(p);
    /* Weight gradient: units of which one vector of channels stays in L1; as many blocks as make tasks. */
    int64_t map = (int64_t)g->qh * g->qw, work = conv_macs(s) / TASK_MACS;
    p->imgs = (int)kern_max(1, kern_min(s->n, UNIT_PIXELS / map));
    p->lines = (int)kern_div_up(g->qh, kern_div_up(g->qh, kern_max(1, kern_min(g->qh, UNIT_PIXELS / g->qw))));
    int64_t units = kern_div_up(s->n, p->imgs) * kern_div_up(g->qh, p->lines);
    p->blocks = (int)kern_max(1, kern_min(kern_div_up(kern_min(PIECES, work), p->parts), units));
    return p;
}

void dw_plan_free(dw_plan *p)
{
    if (!p) return;
    mem_free(p->g.row);
    mem_free(p->tile);
    mem_free(p->chunk);
    mem_free(p);
}

/* ---- packing ---------------------------------------------------------------------------------- */

size_t dw_packed_floats(const dw_plan *p) { return (size_t)p->g.th * (size_t)p->g.tw * (size_t)p->g.groups; }

void dw_pack(const dw_plan *p, const float *w_oihw, float *packed)
{
    const gather *g = &p->g;
    packed += p->packed_at;
    for (int a = 0; a < g->th; a++)
        for (int b = 0; b < g->tw; b++)
            for (int c = 0; c < g->groups; c++) *packed++ = w_oihw[(c * p->s.kh + g->kr[a]) * p->s.kw + g->kc[b]];
}

/* ---- forward and data gradient ---------------------------------------------------------------- */

typedef struct {
    dw_plan *const *phase; int phases;
    const dw_plan *p;            /* of the task at hand */
    const float *x, *packed;
    const conv_epilogue *ep;
    float *y, lo, hi;
} dw_job;

static int64_t row_step(const gather *g) { return g->th > 1 ? g->row[1] - g->row[0] : 0; }

static void run_row(const dw_job *j, int64_t n, int r, int c0, int channels)
{
    const dw_plan *p = j->p;
    const gather *g = &p->g;
    int64_t C = g->groups, line = g->iw * C;
    int a0, a1;
    taps_live(g->row, g->th, r, r, g->sh, g->ih, &a0, &a1);
    int64_t ih = g->th ? r * g->sh + g->row[0] + a0 * row_step(g) : 0;
    for (int i = 0; i < p->tiles; i++) {
        dw_tile t = p->tile[i];
        int64_t at = g->y_base + n * g->y_img + r * g->y_row + t.first * g->y_col + c0;
        dw_args d = {
            .x = j->x + (n * g->ih + ih) * line + t.first * g->sw * C + c0, .x_row = row_step(g) * line,
            .x_step = g->sw / p->inner * C, .w = j->packed + p->packed_at + a0 * g->tw * C + c0, .w_row = g->tw * C, .w_step = C,
            .chunk = p->chunk + i * p->chunks, .chunks = p->chunks, .rows = a1 - a0, .y = j->y + at, .y_step = g->y_col,
            .bias = j->ep->bias ? j->ep->bias + c0 : NULL, .residual = j->ep->residual ? j->ep->residual + at : NULL,
            .lo = j->lo, .hi = j->hi, .count = t.count, .channels = channels };
        kern.dw[p->width][p->inner - 1](&d);
        for (int q = 0; j->ep->act == ACT_SILU && q < t.count; q++) silu_in_place(d.y + q * g->y_col, channels);
    }
}

static void run_task(void *ctx, int64_t i, int worker)
{
    (void)worker;
    dw_job j = *(const dw_job *)ctx;
    const dw_plan *p = j.p = j.phase[i % j.phases];
    i /= j.phases;
    int part = (int)(i % p->parts), band = (int)(i / p->parts % p->bands), c0 = part * p->channels;
    int64_t n = i / p->parts / p->bands;
    if (n >= p->g.n) return;                            /* a phase with fewer bands than others */
    for (int r = band * p->rows; r < kern_min(p->g.qh, (band + 1) * p->rows); r++)
        run_row(&j, n, r, c0, (int)kern_min(p->channels, p->g.groups - c0));
}

void dw_run(dw_plan *const *phase, int phases, const float *x, const float *packed, const conv_epilogue *ep, float *y)
{
    dw_job j = { .phase = phase, .phases = phases, .x = x, .packed = packed, .ep = ep, .y = y,
                 .lo = ep->act == ACT_RELU || ep->act == ACT_RELU6 ? 0 : -INFINITY,
                 .hi = ep->act == ACT_RELU6 ? 6 : INFINITY };
    int64_t most = 0;
    for (int i = 0; i < phases; i++) most = kern_max(most, (int64_t)phase[i]->g.n * phase[i]->bands * phase[i]->parts);
    par_for(most * phases, run_task, &j);
}

/* ---- weight gradient: sums [block][tap row][tap column][c] ------------------------------------ */

typedef struct {
    const dw_plan *p;
    const float *x, *dy;
    bool accumulate;
    float *dw, *sums;
} dw_wjob;

static int64_t padded(const dw_plan *p) { return kern_div_up(p->g.groups, LANES_MAX) * LANES_MAX; }

size_t dw_wgrad_scratch_floats(const dw_plan *p)
{
    return (size_t)(p->blocks * padded(p)) * (size_t)p->g.th * (size_t)p->g.tw;
}

/* One tap row of one vector of channels, over rows [r0,r1) of some images. */
static void sum_tap_row(const dw_wjob *j, int n0, int imgs, int r0, int r1, int a, int c, bool add, float *sums)
{
    const dw_plan *p = j->p;
    const gather *g = &p->g;
    int64_t C = g->groups;
    while (r0 < r1 && r0 * g->sh + g->row[a] < 0) r0++;
    while (r0 < r1 && (r1 - 1) * g->sh + g->row[a] >= g->ih) r1--;
    const dw_tile *last = &p->tile[p->tiles - 1];
    for (int k = 0; k < p->chunks; k++) {
        dw_wargs d = {
            .x = j->x + ((int64_t)n0 * g->ih + r0 * g->sh + g->row[a]) * g->iw * C + c, .dy = j->dy + (int64_t)(n0 * g->qh + r0) * g->qw * C + c,
            .x_img = g->ih * g->iw * C, .dy_img = g->qh * g->qw * C, .x_line = g->sh * g->iw * C, .dy_line = g->qw * C,
            .x_tile = dw_widths[p->width] * g->sw * C, .dy_tile = dw_widths[p->width] * C, .x_step = g->sw / p->inner * C, .dy_step = C,
            .sum_step = padded(p), .chunk = p->chunk + k, .chunk_step = p->chunks, .imgs = imgs, .lines = r1 - r0,
            .tiles = p->tiles, .last = last->count, .lanes = (int)kern_min(kern.lanes, C - c), .add = add };
        d.sum = sums + d.chunk->w / C * padded(p);
        kern.dw_wgrad[p->width][p->inner - 1](&d);
    }
}

static void sum_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const dw_wjob *j = ctx;
    const dw_plan *p = j->p;
    const gather *g = &p->g;
    int part = (int)(i % p->parts), block = (int)(i / p->parts), c0 = part * p->channels;
    int64_t bands = kern_div_up(g->qh, p->lines), units = kern_div_up(g->n, p->imgs) * bands, first = units * block / p->blocks, last = units * (block + 1) / p->blocks;
    float *sums = j->sums + block * padded(p) * g->th * g->tw;
    for (int64_t u = first; u < last; u++) {
        int n0 = (int)(u / bands) * p->imgs, r0 = (int)(u % bands) * p->lines;
        int imgs = (int)kern_min(p->imgs, g->n - n0), r1 = (int)kern_min(g->qh, r0 + p->lines);
        for (int c = c0; c < kern_min(g->groups, c0 + p->channels); c += kern.lanes)
            for (int a = 0; a < g->th; a++)
                sum_tap_row(j, n0, imgs, r0, r1, a, c, u > first, sums + a * g->tw * padded(p) + c);
    }
}

static void add_blocks(void *ctx, int64_t part, int worker)
{
    (void)worker;
    const dw_wjob *j = ctx;
    const dw_plan *p = j->p;
    int taps = p->g.th * p->g.tw, c0 = (int)part * p->channels;
    for (int c = c0; c < kern_min(p->g.groups, c0 + p->channels); c++)
        for (int t = 0; t < taps; t++) {
            const float *from = j->sums + t * padded(p) + c;
            float sum = from[0], *to = j->dw + (int64_t)c * taps + t;
            for (int k = 1; k < p->blocks; k++) sum += from[k * padded(p) * taps];
            *to = j->accumulate ? *to + sum : sum;
        }
}

void dw_wgrad_run(const dw_plan *p, const float *x, const float *dy, bool accumulate, float *dw, float *scratch)
{
    dw_wjob j = { .p = p, .x = x, .dy = dy, .accumulate = accumulate, .dw = dw, .sums = scratch };
    par_for((int64_t)p->blocks * p->parts, sum_block, &j);
    par_for(p->parts, add_blocks, &j);
}
