/* A gather on the register tile: pixels × out-channels.
 *
 * Work is cut into units: some images, or some rows of one image, or (1×1 convolutions, whose
 * pixels form one long row) some pixels of a row. Where taps reach outside the image the unit is
 * first copied, with its border of zeros, into scratch that stays in the cache; then every tap of
 * every pixel is a fixed distance from where the pixel starts, and a row of taps is one stretch of
 * memory. Rows of taps that lie in the border for a whole tile are skipped.
 *
 * Packed weights: [group][panel][tap row][tap column][c][16*NV]. */
#include <math.h>
#include <string.h>

#include "core/kern/conv.h"

struct tile_plan {
    gather g;
    conv_shape s;
    int64_t y_pixels;            /* images × grid */
    int imgs, rows, cols;        /* of a unit, at most */
    int units_n, units_h, units_w;
    int units_per_task, panels, panels_per_task;         /* panels of all groups */
    bool copy;
    int src_w, src_h;            /* what the tile reads: the copy of a unit, or an image */
    int runs_per_row, run_len;   /* a row of taps is runs_per_row stretches */
    bool by_rows;                /* a tile never crosses the end of a row */
    conv_run *run[2];            /* [NV-1]: th * runs_per_row */
    int32_t *ox, *oy;            /* every pixel of a unit */
    int workers;
    size_t copy_floats, packed_at;
    int64_t input_floats;        /* that a unit reads, at most */
};

int panel_count(int channels) { return (int)kern_div_up(channels, 2 * kern.lanes); }

panel panel_at(int channels, int i)
{
    int first = i * 2 * kern.lanes, left = (int)kern_min(channels - first, 2 * kern.lanes);
    int nv = left > kern.lanes ? 2 : 1;
    return (panel){ first, nv, left - (nv - 1) * kern.lanes };
}

/* Floats of packed weights before panel i of a group; i = panel_count: of the whole group. */
static int64_t panel_offset(const gather *g, int i)
{
    int64_t lanes = 0;
    for (int k = 0; k < i; k++) lanes += panel_at(g->o, k).nv * kern.lanes;
    return lanes * g->th * g->tw * g->c;
}

/* Pixels at whose edge a tap leaves the image? */
static bool needs_border(const gather *g)
{
    return g->th * g->tw > 0
        && (g->row[0] < 0 || (g->qh - 1) * g->sh + g->row[g->th - 1] >= g->ih
         || g->col[0] < 0 || (g->qw - 1) * g->sw + g->col[g->tw - 1] >= g->iw);
}

/* 1×1, stride 1, no padding: all pixels are one row. */
static bool is_pointwise(const gather *g)
{
    return g->th == 1 && g->tw == 1 && g->sh == 1 && g->sw == 1 && !g->row[0] && !g->col[0]
        && g->qh == g->ih && g->qw == g->iw && g->y_col * g->qw == g->y_row && g->y_row * g->qh == g->y_img;
}

static int span_h(const gather *g, int rows) { return g->th ? (rows - 1) * g->sh + g->row[g->th - 1] - g->row[0] + 1 : 0; }
static int span_w(const gather *g) { return g->tw ? (g->qw - 1) * g->sw + g->col[g->tw - 1] - g->col[0] + 1 : 0; }

/* Units of at least UNIT_PIXELS where there are as many, small enough for COPY_FLOATS, and as many
 * as make PIECES tasks; then panels are divided too, if that is not enough. */
enum { UNIT_PIXELS = 96, COPY_FLOATS = 1 << 15 };

static int even(int total, int at_most)
{
    return (int)kern_div_up(total, kern_div_up(total, kern_max(1, at_most)));
}

static void cut(tile_plan *p)
{
    const gather *g = &p->g;
    int64_t map = (int64_t)g->qh * g->qw, pixels = map * g->n;
    int64_t macs = pixels * g->th * g->tw * g->c * g->o * g->groups;
    int64_t tasks = kern_max(1, kern_min(PIECES, macs / PIECE_MACS));
    int64_t want = kern_max(UNIT_PIXELS, kern_min(pixels / tasks, 1024));
    p->imgs = even(g->n, (int)kern_max(1, want / map));
    p->rows = map <= want ? g->qh : even(g->qh, (int)(want / g->qw));
    p->cols = g->qh > 1 ? g->qw : even(g->qw, (int)want);
    if (p->copy) {
        p->cols = g->qw;
        int64_t line = (int64_t)span_w(g) * g->c * g->groups;
        while (p->imgs > 1 && line * span_h(g, p->rows) * p->imgs > COPY_FLOATS) p->imgs = even(g->n, p->imgs - 1);
        while (p->imgs == 1 && p->rows > 1 && line * span_h(g, p->rows) > COPY_FLOATS) p->rows = even(g->qh, p->rows - 1);
    }
    if (p->rows < g->qh) p->imgs = 1;
    p->units_n = (int)kern_div_up(g->n, p->imgs);
    p->units_h = (int)kern_div_up(g->qh, p->rows);
    p->units_w = (int)kern_div_up(g->qw, p->cols);
    int64_t units = (int64_t)p->units_n * p->units_h * p->units_w;
    p->units_per_task = (int)kern_max(1, units / PIECES);
    p->panels = g->groups * panel_count(g->o);
    p->panels_per_task = even(p->panels, (int)(p->panels / kern_max(1, kern_min(p->panels, kern_div_up(tasks, units)))));
}

/* Height of the tiles over `pixels` pixels: as even as can be. */
static int tiles_for(int pixels, int nv) { return (int)kern_div_up(pixels, kern.tallest[nv - 1]); }

/* Does skipping taps outside the image pay for more tiles? Counts steps of the inner loop over one
 * image, both ways. */
static bool rows_are_cheaper(const tile_plan *p, int nv)
{
    const gather *g = &p->g;
    int64_t flat = 0, by_row = 0, overhead = 24;
    for (int r0 = 0; r0 < g->qh; r0 += p->rows) {
        int rows = (int)kern_min(p->rows, g->qh - r0), pixels = rows * g->qw, t0, t1;
        for (int way = 0; way < 2; way++) {
            int pieces = way ? rows : 1, size = way ? g->qw : pixels, n = tiles_for(size, nv);
            for (int k = 0; k < pieces * n; k++) {
                int a = k / n * size + k % n * size / n, z = k / n * size + (k % n + 1) * size / n;
                taps_live(g->row, g->th, r0 + a / g->qw, r0 + (z - 1) / g->qw, g->sh, g->ih, &t0, &t1);
                int64_t steps = (int64_t)(t1 - t0) * g->tw * g->c * kern_max((z - a) * nv, 8) + overhead;
                *(way ? &by_row : &flat) += steps;
            }
        }
    }
    return by_row < flat;
}

static void make_tables(tile_plan *p)
{
    const gather *g = &p->g;
    int ic = g->c * g->groups;
    for (int nv = 1; nv <= 2; nv++)
        for (int a = 0; a < g->th; a++)
            for (int b = 0; b < p->runs_per_row; b++)
                p->run[nv - 1][a * p->runs_per_row + b] = (conv_run){
                    ((g->row[a] - g->row[0]) * p->src_w + g->col[b] - g->col[0]) * ic,
                    (a * g->tw + b) * g->c * nv * kern.lanes };
    for (int i = 0, k = 0; i < p->imgs; i++)
        for (int r = 0; r < p->rows; r++)
            for (int q = 0; q < p->cols; q++, k++) {
                p->ox[k] = ((i * p->src_h + r * g->sh) * p->src_w + q * g->sw) * ic;
                p->oy[k] = (int32_t)(i * g->y_img + r * g->y_row + q * g->y_col);
            }
}

tile_plan *tile_plan_new(const gather *from, const conv_shape *s, size_t packed_at, err *e)
{
    tile_plan *p = mem_new(1, sizeof *p, e);
    if (!p) { mem_free(from->row); return NULL; }
    p->g = *from;
    p->s = *s;
    p->packed_at = packed_at;
    gather *g = &p->g;
    if (is_pointwise(g)) {
        int64_t all = (int64_t)g->n * g->qh * g->qw;
        if (all <= INT32_MAX) {
            g->ih = g->qh = g->n = 1;
            g->iw = g->qw = (int)all;
        }
    }
    p->copy = needs_border(g);
    cut(p);
    p->src_w = p->copy ? span_w(g) : g->iw;
    p->src_h = p->copy ? span_h(g, p->rows) : g->ih;
    bool merge = g->groups == 1 && g->tw > 0 && g->col[g->tw - 1] - g->col[0] == g->tw - 1;
    p->runs_per_row = merge ? 1 : g->tw;
    p->run_len = merge ? g->tw * g->c : g->c;
    p->by_rows = p->copy && rows_are_cheaper(p, panel_at(g->o, 0).nv);
    p->workers = par_threads();
    p->copy_floats = p->copy ? (size_t)kern_div_up((int64_t)p->imgs * p->src_h * p->src_w * g->c * g->groups, 16) * 16 : 0;
    p->input_floats = p->rows < g->qh ? (int64_t)span_h(g, p->rows) * g->iw * g->c * g->groups
                    : (int64_t)p->imgs * g->ih * kern_min(g->iw, (int64_t)p->cols * g->sw) * g->c * g->groups;
    size_t runs = (size_t)g->th * (size_t)p->runs_per_row, pixels = (size_t)p->imgs * (size_t)p->rows * (size_t)p->cols;
    p->run[0] = mem_new(2 * runs, sizeof(conv_run), e);
    p->ox = p->run[0] ? mem_new(2 * pixels, sizeof *p->ox, e) : NULL;
    if (!p->ox) { tile_plan_free(p); return NULL; }
    p->run[1] = p->run[0] + runs;
    p->oy = p->ox + pixels;
    make_tables(p);
    return p;
}

void tile_plan_free(tile_plan *p)
{
    if (!p) return;
    mem_free(p->g.row);
    mem_free(p->run[0]);
    mem_free(p->ox);
    mem_free(p);
}

size_t tile_scratch_floats(const tile_plan *p) { return p->copy_floats * (size_t)p->workers; }

/* ---- packing ---------------------------------------------------------------------------------- */

size_t tile_packed_floats(const tile_plan *p)
{
    return (size_t)(panel_offset(&p->g, panel_count(p->g.o)) * p->g.groups);
}

enum { PACK_ROWS = 128, WIDEST = 2 * LANES_MAX };

typedef struct { const tile_plan *p; const float *w; float *packed; } pack_job;

/* Some rows (c, a, b) of one panel. Through a small table, so that weights are read and packed
 * rows written in the order of memory; its odd width keeps columns out of each other's lines. */
static void pack_piece(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pack_job *j = ctx;
    const gather *g = &j->p->g;
    int taps = g->th * g->tw, rows = taps * g->c, chunks = (int)kern_div_up(rows, PACK_ROWS), per_group = panel_count(g->o);
    int r0 = (int)(i % chunks) * PACK_ROWS, n = (int)kern_min(PACK_ROWS, rows - r0), which = (int)(i / chunks);
    panel v = panel_at(g->o, which % per_group);
    int wide = v.nv * kern.lanes, valid = (v.nv - 1) * kern.lanes + v.lanes;
    float *to = j->packed + panel_offset(g, per_group) * (which / per_group) + panel_offset(g, which % per_group);
    float turn[PACK_ROWS][WIDEST + 1];
    for (int o = 0; o < wide; o++)
        for (int r = 0; r < n; r++) {
            int c = (r0 + r) / taps, t = (r0 + r) % taps;
            turn[r][o] = o < valid ? j->w[gather_weight(g, &j->p->s, which / per_group, v.first + o, c, t / g->tw, t % g->tw)] : 0;
        }
    for (int r = 0; r < n; r++)
        memcpy(to + ((int64_t)((r0 + r) % taps) * g->c + (r0 + r) / taps) * wide, turn[r], (size_t)wide * sizeof *to);
}

void tile_pack(const tile_plan *p, const float *w_oihw, float *packed)
{
    int64_t rows = (int64_t)p->g.th * p->g.tw * p->g.c;
    if (rows) par_for(p->panels * kern_div_up(rows, PACK_ROWS), pack_piece, &(pack_job){ p, w_oihw, packed + p->packed_at });
}

/* ---- running ---------------------------------------------------------------------------------- */

typedef struct {
    tile_plan *const *phase; int phases;
    const tile_plan *p;          /* of the task at hand */
    const float *x, *packed;
    const conv_epilogue *ep;
    float *y, *scratch, lo, hi;
    size_t own;                  /* scratch of one worker, whichever phase it is at */
} tile_job;

typedef struct { int n0, imgs, r0, rows, q0, cols; } unit;

static unit unit_at(const tile_plan *p, int64_t i)
{
    const gather *g = &p->g;
    unit u = { .q0 = (int)(i % p->units_w) * p->cols, .r0 = (int)(i / p->units_w % p->units_h) * p->rows,
               .n0 = (int)(i / p->units_w / p->units_h) * p->imgs };
    u.imgs = (int)kern_min(p->imgs, g->n - u.n0);
    u.rows = (int)kern_min(p->rows, g->qh - u.r0);
    u.cols = (int)kern_min(p->cols, g->qw - u.q0);
    return u;
}

/* The rows that the unit's taps reach, and their border of zeros. */
static void copy_unit(const tile_plan *p, unit u, const float *x, float *to)
{
    const gather *g = &p->g;
    int64_t ic = (int64_t)g->c * g->groups;
    int left = (int)kern_min(kern_max(0, -g->col[0]), p->src_w), from = (int)kern_max(0, g->col[0]);
    int inside = (int)kern_max(0, kern_min(p->src_w - left, g->iw - from)), right = p->src_w - left - inside;
    for (int i = 0; i < u.imgs; i++)
        for (int r = 0; r < span_h(g, u.rows); r++) {
            int ih = u.r0 * g->sh + g->row[0] + r;
            float *line = to + ((int64_t)i * p->src_h + r) * p->src_w * ic;
            if (ih < 0 || ih >= g->ih) {
                memset(line, 0, (size_t)(p->src_w * ic) * sizeof *line);
                continue;
            }
            memset(line, 0, (size_t)(left * ic) * sizeof *line);
            memcpy(line + left * ic, x + (((int64_t)(u.n0 + i) * g->ih + ih) * g->iw + from) * ic,
                   (size_t)(inside * ic) * sizeof *line);
            memset(line + (left + inside) * ic, 0, (size_t)(right * ic) * sizeof *line);
        }
}

/* Tiles over pixels [first, first+count) of a unit. */
static void run_tiles(const tile_job *j, unit u, tile_args t, int nv, int first, int count, fetch *next)
{
    const tile_plan *p = j->p;
    const gather *g = &p->g;
    int n = tiles_for(count, nv), map = u.rows * u.cols;
    for (int k = 0; k < n; k++) {
        int a = first + (int)((int64_t)k * count / n), z = first + (int)((int64_t)(k + 1) * count / n), t0 = 0, t1 = g->th;
        if (p->copy && a / map == (z - 1) / map)
            taps_live(g->row, g->th, u.r0 + a % map / u.cols, u.r0 + (z - 1) % map / u.cols, g->sh, g->ih, &t0, &t1);
        t.ox = p->ox + a;
        t.oy = p->oy + a;
        t.run = p->run[nv - 1] + t0 * p->runs_per_row;
        t.runs = (t1 - t0) * p->runs_per_row;
        kern.tile[nv - 1][z - a](&t);
        fetch_some(next);
    }
}

/* SiLU is no clamp: it follows while the outputs are still in the cache. */
void silu_in_place(float *y, int channels)
{
    kern.affine(&(norm_args){ .count = channels, .width = channels, .x = y, .act = ACT_SILU, .out = y });
}

/* Panels [first, end) of one unit. */
static void run_unit(const tile_job *j, unit u, const float *x, int first, int end, fetch *next)
{
    const tile_plan *p = j->p;
    const gather *g = &p->g;
    int64_t at = g->y_base + u.n0 * g->y_img + u.r0 * g->y_row + u.q0 * g->y_col;
    int pixels = u.imgs * u.rows * u.cols, per_group = panel_count(g->o);
    for (int k = first; k < end; k++) {
        int group = k / per_group;
        panel v = panel_at(g->o, k % per_group);
        int64_t o = (int64_t)group * g->o + v.first;
        tile_args t = {
            .x = x + group * g->c, .len = p->run_len, .y = j->y + at + o, .lanes = v.lanes,
            .w = j->packed + p->packed_at + panel_offset(g, per_group) * group + panel_offset(g, k % per_group),
            .bias = j->ep->bias ? j->ep->bias + o : NULL,
            .residual = j->ep->residual ? j->ep->residual + at + o : NULL, .lo = j->lo, .hi = j->hi };
        for (int r = 0; p->by_rows && r < pixels; r += u.cols) run_tiles(j, u, t, v.nv, r, u.cols, next);
        if (!p->by_rows) run_tiles(j, u, t, v.nv, 0, pixels, next);
        for (int i = 0; j->ep->act == ACT_SILU && i < pixels; i++)
            silu_in_place(t.y + p->oy[i], (v.nv - 1) * kern.lanes + v.lanes);
    }
}

/* What unit u reads first: rows of one image, or whole images. */
static const float *input_of(const tile_plan *p, unit u, const float *x)
{
    const gather *g = &p->g;
    int64_t ic = (int64_t)g->c * g->groups, row = kern_max(0, u.r0 * g->sh + (g->th ? g->row[0] : 0));
    return x + ((u.n0 * g->ih + row) * g->iw + (p->copy ? 0 : u.q0 * g->sw)) * ic;
}

static int64_t tasks_of(const tile_plan *p)
{
    int64_t units = (int64_t)p->units_n * p->units_h * p->units_w;
    return kern_div_up(units, p->units_per_task) * kern_div_up(p->panels, p->panels_per_task);
}

/* Some units one after another; while one is computed the next is fetched. */
static void run_task(const tile_job *j, int64_t i, int worker)
{
    const tile_plan *p = j->p;
    const gather *g = &p->g;
    int64_t units = (int64_t)p->units_n * p->units_h * p->units_w, stretches = kern_div_up(units, p->units_per_task);
    int64_t u0 = i % stretches * p->units_per_task, u1 = kern_min(units, u0 + p->units_per_task), ic = (int64_t)g->c * g->groups;
    int first = (int)(i / stretches) * p->panels_per_task, end = (int)kern_min(p->panels, first + p->panels_per_task);
    for (int64_t k = u0; k < u1; k++) {
        unit u = unit_at(p, k);
        const float *x = j->x;
        if (p->copy) {
            float *own = j->scratch + (size_t)worker * j->own;
            copy_unit(p, u, j->x, own);
            x = own;
        } else if (g->th * g->tw > 0) {
            x += (((int64_t)u.n0 * g->ih + u.r0 * g->sh + g->row[0]) * g->iw + u.q0 * g->sw + g->col[0]) * ic;
        }
        fetch next = { 0 };
        if (k + 1 < u1) {
            const float *from = input_of(p, unit_at(p, k + 1), j->x), *all = j->x + (int64_t)g->n * g->ih * g->iw * ic;
            int64_t floats = kern_min(p->input_floats, all - from);
            int tiles = (int)kern_max(1, (int64_t)u.imgs * u.rows * u.cols * (end - first) / kern.tallest[0]);
            next = (fetch){ (const char *)from, (const char *)(from + floats), kern_div_up(floats * 4, tiles) };
        }
        run_unit(j, u, x, first, end, &next);
    }
}

/* Phases side by side, unit by unit: what one has read is still in the cache for the others. */
static void run_phase(void *ctx, int64_t i, int worker)
{
    tile_job j = *(const tile_job *)ctx;
    j.p = j.phase[i % j.phases];
    if (i / j.phases < tasks_of(j.p)) run_task(&j, i / j.phases, worker);
}

void tile_run(tile_plan *const *phase, int phases, const float *x, const float *packed,
              const conv_epilogue *ep, float *y, float *scratch)
{
    tile_job j = { .phase = phase, .phases = phases, .x = x, .packed = packed, .ep = ep, .y = y, .scratch = scratch,
                   .lo = ep->act == ACT_RELU || ep->act == ACT_RELU6 ? 0 : -INFINITY,
                   .hi = ep->act == ACT_RELU6 ? 6 : INFINITY };
    int64_t most = 0;
    for (int i = 0; i < phases; i++) {
        most = kern_max(most, tasks_of(phase[i]));
        if (phase[i]->copy_floats > j.own) j.own = phase[i]->copy_floats;
    }
    par_for(most * phases, run_phase, &j);
}
