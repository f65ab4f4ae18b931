/* Depthwise convolution: as many groups as channels, one channel to a group.
 *
 * A gather again, cut into rows of outputs; a row into tiles of neighbouring outputs, and each
 * tile's taps into chunks that know which of their pixels are inside the image, so nothing is
 * copied and no zero is multiplied. Packed weights: [tap row][tap column][c]. */
#include <math.h>
#include <string.h>

#include "core/kern/conv.h"

const int dw_widths[DW_WIDTHS] = { 4, 7, 8 };

typedef struct { int first, count, alike; } dw_tile;    /* outputs of a row; tiles like it from here on */

struct dw_plan {
    gather g;                    /* groups holds the channels */
    conv_shape s;
    int width;                   /* index into dw_widths */
    int inner;                   /* stride the tile knows: 1 or 2 */
    int tiles, chunks;
    dw_tile *tile;
    dw_chunk *chunk;             /* [tile][chunks] */
    int rows, bands;             /* of outputs, for one task */
    int channels, parts;         /* of a part; how many there are */
    int blocks;                  /* weight gradient: sums */
    bool far;                    /* a worker goes through more in a pass than stays in the last cache until the next */
    size_t packed_at;
};

/* ---- planning ----------------------------------------------------------------------------------- */

/* Narrow tiles, if they fill a row, where the first-level cache holds no more: of stride 2 two rows for the next tile. */
static int best_width(int outputs, bool narrow)
{
    int best = 0;
    double least = 1e300;
    if (narrow && outputs % dw_widths[0] == 0) return 0;
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
    first = (int)kern_min(first, used);
    end = (int)kern_max(first, kern_min(end, used));
    return (dw_chunk){ .x = g->col[b] * g->groups, .w = b, .taps = taps, .live = (1u << end) - (1u << first) };
}

static bool tiles_alike(const dw_plan *p, int a, int b)
{
    for (int k = 0; k < p->chunks; k++)
        if (p->chunk[a * p->chunks + k].live != p->chunk[b * p->chunks + k].live) return false;
    return p->tile[a].count == p->tile[b].count;
}

static void make_tiles(dw_plan *p, int per_chunk)
{
    const gather *g = &p->g;
    int width = dw_widths[p->width];
    for (int i = 0; i < p->tiles; i++) {
        p->tile[i] = (dw_tile){ i * width, (int)kern_min(width, g->qw - i * width), 1 };
        for (int k = 0, b = 0; k < p->chunks; k++) {
            int taps = per_chunk == 1 ? 1 : (int)kern_div_up(g->tw - b, p->chunks - k);
            p->chunk[i * p->chunks + k] = chunk_of(p, b, taps, p->tile[i]);
            b += taps;
        }
    }
    for (int i = p->tiles - 2; i >= 0; i--)
        if (tiles_alike(p, i, i + 1)) p->tile[i].alike = 1 + p->tile[i + 1].alike;
}

/* A task has some rows of one image, and goes through their channels in parts whose weights fill a quarter of L1.
 * Bands of rows come in pairs, so that the halves of an image stay on the cores that wrote them. Parts are no tasks of
 * their own: two cores that write neighbouring channels of the same pixels take the lines between them from each other. */
enum { PART = 256, PART_WEIGHTS = 2560, TASK_MACS = 1 << 19 };

static void cut(dw_plan *p)
{
    const gather *g = &p->g;
    int most = (int)kern_max(16, kern_min(PART, PART_WEIGHTS / kern_max(1, g->th * g->tw) / 16 * 16));
    p->parts = (int)kern_div_up(g->groups, most);
    p->channels = (int)kern_div_up(kern_div_up(g->groups, p->parts), 16) * 16;
    p->parts = (int)kern_div_up(g->groups, p->channels);
    int64_t row = (int64_t)g->qw * kern_max(1, g->th * g->tw) * p->channels;
    int64_t rows = kern_max(1, TASK_MACS / kern_max(1, row));
    p->bands = (int)kern_div_up(g->qh, kern_min(rows, g->qh));
    if (g->n * p->bands % 2) p->bands = (int)kern_min(p->bands + 1, g->qh);
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
    const int64_t floats = g->n * ((int64_t)g->ih * g->iw * g->groups + g->y_img);
    p->far = floats / par_threads() >= FAR_FLOATS / 2;
    bool dense = g->tw > 1 && g->col[1] - g->col[0] == 1;
    p->inner = g->sw == 2 && (dense || g->tw == 1) ? 2 : 1;
    int per_chunk = g->sw == p->inner && dense ? CHUNK_TAPS : 1;
    p->width = best_width(g->qw, p->inner > 1 && floats >= FAR_FLOATS / 2);  /* of all workers: weight gradients add up tile by tile */
    p->tiles = (int)kern_div_up(g->qw, dw_widths[p->width]);
    p->chunks = (int)kern_div_up(g->tw, per_chunk);
    p->tile = mem_new((size_t)p->tiles, sizeof *p->tile, e);
    p->chunk = p->tile ? mem_new((size_t)p->tiles * (size_t)p->chunks, sizeof *p->chunk, e) : NULL;
    if (!p->chunk) { dw_plan_free(p); return NULL; }
    make_tiles(p, per_chunk);
    cut(p);
    /* Weight gradient: as many blocks of tasks as there are, or as make PIECES. */
    p->blocks = (int)kern_min(kern_div_up(PIECES, p->parts), (int64_t)g->n * p->bands);
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

/* ---- one tile after the other ------------------------------------------------------------------ */

static int64_t row_step(const gather *g) { return g->th > 1 ? g->row[1] - g->row[0] : 0; }

/* A kernel's tiles of one image, band of rows and part of the channels. */
typedef struct { int64_t n; int r0, r1, c0, channels; } dw_piece;

static dw_piece piece_at(const dw_plan *p, int64_t image_band, int part)
{
    int r0 = (int)(image_band % p->bands) * p->rows, c0 = part * p->channels;
    return (dw_piece){ image_band / p->bands, r0, (int)kern_min(p->g.qh, r0 + p->rows), c0, (int)kern_min(p->channels, p->g.groups - c0) };
}

/* Output rows from r on that have the same tap rows inside the image. */
static int rows_alike(const dw_plan *p, int r, int end)
{
    const gather *g = &p->g;
    int a0, a1, b0, b1, n = 1;
    taps_live(g->row, g->th, r, r, g->sh, g->ih, &a0, &a1);
    for (; r + n < end; n++) {
        taps_live(g->row, g->th, r + n, r + n, g->sh, g->ih, &b0, &b1);
        if (a0 != b0 || a1 != b1) break;
    }
    return n;
}

/* Tiles from i on that are alike, of output rows r, r+1, ...: n of them, alike too. What both kernels want to know; *a0
 * is their first tap row inside the image. y_row, y_col: floats from a row and a column of y or dy to the next. */
static dw_args tiles_at(const dw_plan *p, const dw_piece *q, int i, int r, int n, int64_t w_step, const float *x, int64_t x_back,
                        int64_t y_row, int64_t y_col, int *a0)
{
    const gather *g = &p->g;
    const dw_tile *t = &p->tile[i];
    int64_t C = g->groups, line = g->iw * C;
    int a1, width = dw_widths[p->width];
    taps_live(g->row, g->th, r, r, g->sh, g->ih, a0, &a1);
    int64_t ih = g->th ? r * g->sh + g->row[0] + *a0 * row_step(g) : 0;
    return (dw_args){ .x = x + ((q->n * g->ih + ih) * line + t->first * g->sw * C + q->c0 - x_back), .x_row = row_step(g) * line,
                      .x_step = g->sw / p->inner * C, .w_row = g->tw * w_step, .w_step = w_step, .y_step = y_col,
                      .x_next = (int64_t)width * g->sw * C, .x_line = g->sh * line, .y_next = width * y_col, .y_line = y_row,
                      .tiles = t->alike, .lines = n, .chunk = p->chunk + i * p->chunks, .chunks = p->chunks,
                      .at = g->tw ? p->chunk[i * p->chunks].x : 0, .rows = a1 - *a0, .count = t->count, .channels = q->channels };
}

/* What tiles to come will read and write is fetched, where it is far; what is near the loads by themselves have sooner. So
 * many tiles ahead that the first-level cache still has it when it is wanted, one at least and a line at most. */
enum { FETCHED_AHEAD = 3072 };                          /* floats of x */

static void add_fetch(dw_args *d, const dw_plan *p)
{
    if (!p->far) return;
    d->fetched = (int)kern_min(p->g.sh, d->rows);
    const int on = (int)kern_max(1, kern_min(d->tiles, FETCHED_AHEAD / kern_max(1, d->fetched * d->x_next)));
    d->turn = d->tiles - on;
    d->ahead[0] = (dw_ahead){ on * d->x_next, on * d->y_next };
    d->ahead[1] = (dw_ahead){ d->x_line - d->turn * d->x_next, d->y_line - d->turn * d->y_next };
}

static void add_prologue(dw_args *d, const conv_prologue *pro, int c0)
{
    if (!pro) return;
    d->scale = pro->scale + c0;
    d->shift = pro->shift + c0;
    d->in_lo = act_low(pro->act);
    d->in_hi = act_high(pro->act);
}

/* ---- forward and data gradient ---------------------------------------------------------------- */

typedef struct {
    dw_plan *const *phase; int phases;
    const float *x, *packed;
    int64_t x_back, away;        /* floats before x that are not there; to what is fetched instead of x, or 0 */
    const conv_prologue *pro;
    const conv_epilogue *ep;
    float *y, lo, hi;
    bool stream;
} dw_job;

static void run_tiles(const dw_job *j, const dw_plan *p, const dw_piece *q, int i, int r, int n)
{
    const gather *g = &p->g;
    int a0;
    dw_args d = tiles_at(p, q, i, r, n, g->groups, j->x, j->x_back, g->y_row, g->y_col, &a0);
    int64_t at = g->y_base + q->n * g->y_img + r * g->y_row + p->tile[i].first * g->y_col + q->c0;
    d.w = j->packed + p->packed_at + a0 * d.w_row + q->c0;
    d.y = j->y + at;
    add_fetch(&d, p);
    if (j->away) d.ahead[0].x = d.ahead[1].x = j->away;
    d.bias = j->ep->bias ? j->ep->bias + q->c0 : NULL;
    d.residual = j->ep->residual ? j->ep->residual + at : NULL;
    add_prologue(&d, j->pro, q->c0);
    d.lo = j->lo;
    d.hi = j->hi;
    (j->stream ? kern.dw_stream : kern.dw)[p->width][p->inner - 1](&d);
    for (int k = 0; j->ep->act == ACT_SILU && k < n * d.tiles; k++)
        for (int t = 0; t < d.count; t++)
            silu_in_place(d.y + k / d.tiles * d.y_line + k % d.tiles * d.y_next + t * d.y_step, d.channels);
}

int64_t dw_parts(const dw_plan *p) { return (int64_t)p->g.n * p->bands; }

static void sum_piece(const dw_job *j, const gather *g, const dw_piece *q, int64_t which)
{
    row_part part = row_part_open(j->ep->part + which * ROW_PART(g->groups), g->groups, q->c0, q->channels, g->groups);
    row_part_add(&part, j->y + q->n * g->y_img + q->r0 * g->y_row + q->c0, (int64_t)(q->r1 - q->r0) * g->qw);
    row_part_close(&part);
}

static void run_piece(const dw_job *j, const dw_plan *p, const dw_piece *q)
{
    for (int i = 0; i < p->tiles; i += p->tile[i].alike)
        for (int r = q->r0, n; r < q->r1; r += n) run_tiles(j, p, q, i, r, n = rows_alike(p, r, q->r1));
}

static void run_task(void *ctx, int64_t task, int worker)
{
    (void)worker;
    const dw_job *j = ctx;
    const dw_plan *p = j->phase[task % j->phases];
    task /= j->phases;
    for (int part = 0; part < p->parts; part++) {
        dw_piece q = piece_at(p, task, part);
        if (q.n >= p->g.n) break;                       /* a phase with fewer bands than others */
        run_piece(j, p, &q);
        if (j->ep->part) sum_piece(j, &p->g, &q, task);
    }
    if (j->stream) stream_end();
}

/* Outputs that are far when somebody wants them need not pass through the caches, which would first have to read them. */
static bool streams(const dw_plan *p, const dw_job *j)
{
    const conv_epilogue *ep = j->ep;
    return p->far && kern.dw_stream[p->width][p->inner - 1] && p->g.groups % LANES_MAX == 0 && (uintptr_t)j->y % (LANES_MAX * sizeof *j->y) == 0
        && !j->pro && !ep->residual && !ep->part && ep->act != ACT_SILU;
}

void dw_run(dw_plan *const *phase, int phases, const float *x, const conv_prologue *pro, const float *packed,
            const conv_epilogue *ep, float *y)
{
    dw_job j = { .phase = phase, .phases = phases, .x = x, .packed = packed, .pro = pro, .ep = ep, .y = y,
                 .lo = act_low(ep->act), .hi = act_high(ep->act) };
    j.stream = phases == 1 && streams(*phase, &j);
    int64_t most = 0;
    for (int i = 0; i < phases; i++) most = kern_max(most, dw_parts(phase[i]));
    par_for(most * phases, run_task, &j);
}

/* ---- weight gradient: sums [block][tap row][tap column][c] ------------------------------------ */

typedef struct {
    const dw_plan *p;
    const float *x, *dy;
    const conv_prologue *pro;
    bool accumulate;
    int64_t away;                /* floats to what is fetched instead of dy, or 0 */
    float *dw, *sums;
} dw_wjob;

static int64_t padded(const dw_plan *p) { return kern_div_up(p->g.groups, LANES_MAX) * LANES_MAX; }

size_t dw_wgrad_scratch_floats(const dw_plan *p)
{
    return (size_t)(p->blocks * padded(p)) * (size_t)p->g.th * (size_t)p->g.tw;
}

/* row: of dy, counted over all images. */
static void wgrad_piece(const dw_wjob *j, const dw_piece *q, float *sums, int64_t row)
{
    const dw_plan *p = j->p;
    const gather *g = &p->g;
    for (int t = 0; t < p->tiles; t += p->tile[t].alike)
        for (int r = q->r0, n; r < q->r1; r += n) {
            int a0;
            n = rows_alike(p, r, q->r1);
            dw_args d = tiles_at(p, q, t, r, n, padded(p), j->x, 0, (int64_t)g->qw * g->groups, g->groups, &a0);
            d.dy = j->dy + ((row + r - q->r0) * g->qw + p->tile[t].first) * g->groups + q->c0;
            add_fetch(&d, p);
            if (j->away) d.ahead[0].y = d.ahead[1].y = j->away;
            d.sum = sums + a0 * d.w_row + q->c0;
            add_prologue(&d, j->pro, q->c0);
            kern.dw_wgrad[p->width][p->inner - 1](&d);
        }
}

/* Bands [*b0, *b1) of block i, and its sums, which are none yet. */
static float *open_block(const dw_wjob *j, int64_t block, int part, int64_t *b0, int64_t *b1)
{
    const dw_plan *p = j->p;
    const int64_t bands = (int64_t)p->g.n * p->bands, taps = p->g.th * p->g.tw;
    const dw_piece q = piece_at(p, 0, part);
    float *sums = j->sums + block * padded(p) * taps;
    for (int64_t t = 0; t < taps; t++)
        memset(sums + t * padded(p) + q.c0, 0, (size_t)kern_div_up(q.channels, LANES_MAX) * LANES_MAX * sizeof *sums);
    *b0 = bands * block / p->blocks;
    *b1 = bands * (block + 1) / p->blocks;
    return sums;
}

static void sum_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const dw_wjob *j = ctx;
    const dw_plan *p = j->p;
    const int part = (int)(i % p->parts);
    int64_t b0, b1;
    float *sums = open_block(j, i / p->parts, part, &b0, &b1);
    for (int64_t b = b0; b < b1; b++) {
        const dw_piece q = piece_at(p, b, part);
        wgrad_piece(j, &q, sums, q.n * p->g.qh + q.r0);
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

void dw_wgrad_run(const dw_plan *p, const float *x, const conv_prologue *pro, const float *dy, bool accumulate, float *dw,
                  float *scratch)
{
    dw_wjob j = { .p = p, .x = x, .pro = pro, .dy = dy, .accumulate = accumulate, .dw = dw, .sums = scratch };
    par_for((int64_t)p->blocks * p->parts, sum_block, &j);
    par_for(p->parts, add_blocks, &j);
}

/* ---- both gradients behind a norm ----------------------------------------------------------------
 *
 * A task is a block of bands, and dy's rows of a band, with those beside it that dx's rows read, are made of the
 * norm's in memory of the worker. Row r of every phase belongs to dy's row r. */

typedef struct {
    dw_wjob w;
    dw_plan *const *phase; int phases;
    const conv_grads *g;
    const grad_moments *m;
    float *rows;                 /* of dy, of all workers */
    size_t own;                  /* floats of one */
    int above, below;            /* rows of dy beside a band's */
} dw_join;

/* Large enough not to stay in the cache, and channels few enough to be one part. */
enum { JOIN_FLOATS = 1 << 20, JOIN_TAPS = 9 };
bool dw_joins(const conv_shape *s)
{
    return s->kh * s->kw <= JOIN_TAPS && s->c <= PART
        && (int64_t)s->n * conv_out_h(s) * conv_out_w(s) * s->o >= JOIN_FLOATS;
}

int dw_blocks(const dw_plan *p) { return p->blocks; }

static void rows_beside(dw_plan *const *phase, int phases, int *above, int *below)
{
    *above = *below = 0;
    for (int i = 0; i < phases; i++) {
        const gather *g = &phase[i]->g;
        if (!g->th) continue;
        *above = (int)kern_max(*above, -g->row[0]);
        *below = (int)kern_max(*below, g->row[g->th - 1]);
    }
}

/* Floats of a worker's rows of dy: of a band and those beside it, at most of an image. */
static size_t join_rows(const dw_plan *p, int above, int below)
{
    return scratch_of_worker((size_t)(kern_min(p->g.qh, p->rows + above + below) * p->g.qw * p->g.groups));
}

static size_t join_sums(const dw_plan *p) { return (dw_wgrad_scratch_floats(p) + 15) / 16 * 16; }

size_t dw_join_scratch_floats(const dw_plan *p, dw_plan *const *phase, int phases)
{
    int above, below;
    rows_beside(phase, phases, &above, &below);
    return join_sums(p) + join_rows(p, above, below) * (size_t)par_threads();
}

/* Rows of dx that belong to the band q, while what they read is in `rows`, from row `first` of dy's on. */
static void join_data_grad(const dw_join *j, const dw_piece *q, const float *rows, int first, int64_t away)
{
    const conv_epilogue ep = { .residual = j->g->dx.accumulate ? j->g->dx.p : NULL, .act = ACT_NONE };
    dw_job d = { .packed = j->g->packed, .ep = &ep, .y = j->g->dx.p, .lo = act_low(ACT_NONE), .hi = act_high(ACT_NONE) };
    for (int i = 0; i < j->phases; i++) {
        const gather *g = &j->phase[i]->g;
        dw_piece f = *q;
        f.r1 = q->r1 == j->w.p->g.qh ? g->qh : (int)kern_min(q->r1, g->qh);
        d.x_back = (q->n * g->ih + first) * g->iw * g->groups;
        d.x = rows;
        d.away = away;
        run_piece(&d, j->phase[i], &f);
    }
}

static void join_moments(const dw_join *j, const dw_piece *q, int64_t block)
{
    const conv_shape *s = &j->w.p->s;
    const int r0 = q->r0 * s->sh, r1 = q->r1 == j->w.p->g.qh ? s->h : (int)kern_min(s->h, q->r1 * s->sh);
    const int64_t at = (q->n * s->h + r0) * (int64_t)s->w * s->c;
    if (r1 > r0) grad_moments_add(j->m, block, 0, s->c, (int64_t)(r1 - r0) * s->w, at, s->c, j->g->dx.p + at);
}

static void join_block(void *ctx, int64_t block, int worker)
{
    const dw_join *j = ctx;
    const gather *g = &j->w.p->g;
    dw_wjob w = j->w;
    float *rows = j->rows + j->own * (size_t)worker;
    int64_t b0, b1;
    float *sums = open_block(&w, block, 0, &b0, &b1);
    if (j->m) grad_moments_open(j->m, block, 0, g->groups);
    w.dy = rows;
    const int64_t line = (int64_t)g->qw * g->groups;
    int was = 0, there = 0;      /* rows [was, there) of dy are in memory */
    for (int64_t b = b0; b < b1; b++) {
        const dw_piece q = piece_at(w.p, b, 0);
        const int first = (int)kern_max(0, q.r0 - j->above), end = (int)kern_min(g->qh, q.r1 + j->below);
        const int from = b > b0 && q.r0 ? there : first;
        if (from > first) memmove(rows, rows + (first - was) * line, (size_t)((from - first) * line) * sizeof *rows);
        bn_grad_rows(j->g->norm, (q.n * g->qh + from) * g->qw, (int64_t)(end - from) * g->qw, j->g->dy, rows + (from - first) * line);
        const int64_t next = (q.n * g->qh + first + w.p->rows) * line;
        w.away = floats_to(rows, j->g->norm->x + next);
        wgrad_piece(&w, &q, sums, q.r0 - first);
        if (j->phases) join_data_grad(j, &q, rows, first, floats_to(rows, j->g->dy + next));
        was = first, there = end;
        if (j->m) join_moments(j, &q, block);
    }
}

void dw_join_run(const dw_plan *p, dw_plan *const *phase, int phases, const conv_grads *g, const grad_moments *m, float *scratch)
{
    dw_join j = { .w = { .p = p, .x = g->x, .pro = g->pro, .accumulate = g->dw.accumulate, .dw = g->dw.p, .sums = scratch },
                  .phase = phase, .phases = phases, .g = g, .m = m, .rows = scratch + join_sums(p) };
    rows_beside(phase, phases, &j.above, &j.below);
    j.own = join_rows(p, j.above, j.below);
    par_for(p->blocks, join_block, &j);
    par_for(p->parts, add_blocks, &j.w);
}
