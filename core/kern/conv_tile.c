/* Forward and data gradient on the register tile, as conv_tile_plan.c has planned them.
 *
 * Packed weights: [group][panel][tap row][tap column][c][16*NV], of strips [group][panel][tap row][chunk][c][tap][16*NV]. A
 * panel of one and a half vectors has the half twice; twins are [c/2][16][2]. */
#include <math.h>
#include <string.h>

#include "core/kern/conv_tile.h"

static size_t own_scratch(const tile_plan *p) { return scratch_of_worker(p->copy_floats + p->sum_floats); }
size_t tile_scratch_floats(const tile_plan *p) { return own_scratch(p) * (size_t)p->workers; }

/* ---- packing ---------------------------------------------------------------------------------- */

size_t tile_packed_floats(const tile_plan *p)
{
    return (size_t)(gather_panel_offset(&p->g, panel_count(p->g.o)) * p->g.groups);
}

enum { PACK_ROWS = 128 };

typedef struct { const tile_plan *p; const float *w; float *packed; } pack_job;

/* Some rows (c, a, b) of one panel. Forward goes through a small table, so that weights are read
 * and packed rows written in the order of memory; its odd width keeps columns out of each other's
 * cache lines. For the data gradient out-channels lie close together already. */
static void pack_piece(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pack_job *j = ctx;
    const gather *g = &j->p->g;
    int taps = g->th * g->tw, rows = taps * g->c, chunks = (int)kern_div_up(rows, PACK_ROWS), per_group = panel_count(g->o);
    int r0 = (int)(i % chunks) * PACK_ROWS, n = (int)kern_min(PACK_ROWS, rows - r0), which = (int)(i / chunks);
    panel v = panel_at(g->o, which % per_group);
    const int wide = v.nv * kern.lanes, valid = (v.nv - 1) * kern.lanes + v.lanes, half = panel_is_half(v) ? kern.lanes / 2 : 0;
    float *to = j->packed + gather_panel_offset(g, per_group) * (which / per_group) + gather_panel_offset(g, which % per_group);
    const float *w = j->w + gather_weight(g, &j->p->s, which / per_group, v.first, 0, 0, 0);
    int64_t step = gather_weight(g, &j->p->s, 0, 1, 0, 0, 0) - gather_weight(g, &j->p->s, 0, 0, 0, 0, 0);
    int64_t from[PACK_ROWS], row[PACK_ROWS];
    float turn[PACK_ROWS][WIDEST + 1];
    for (int r = 0; r < n; r++) {
        int c = (r0 + r) / taps, t = (r0 + r) % taps;
        from[r] = gather_weight(g, &j->p->s, 0, 0, c, t / g->tw, t % g->tw) - gather_weight(g, &j->p->s, 0, 0, 0, 0, 0);
        tap_chunk k = tile_chunk_of(j->p, t % g->tw);
        row[r] = (((int64_t)t / g->tw * g->tw + k.first) * g->c + (int64_t)c * k.taps + t % g->tw - k.first) * wide;
        memset(turn[r] + valid, 0, (size_t)(wide - valid) * sizeof(float));
    }
    if (g->transposed)
        for (int r = 0; r < n; r++)
            for (int o = 0; o < valid; o++) turn[r][o] = w[o * step + from[r]];
    else
        for (int o = 0; o < valid; o++)
            for (int r = 0; r < n; r++) turn[r][o] = w[o * step + from[r]];
    if (tile_is_twin(j->p, v.nv)) {
        for (int r = 0; r < n; r++)
            for (int o = 0; o < wide; o++) to[(int64_t)(r0 + r) / 2 * 2 * wide + 2 * o + (r0 + r) % 2] = turn[r][o];
        return;
    }
    for (int r = 0; r < n; r++) {
        memcpy(turn[r] + wide - half, turn[r] + wide - 2 * half, (size_t)half * sizeof(float));
        memcpy(to + row[r], turn[r], (size_t)wide * sizeof *to);
    }
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
    const conv_prologue *pro;
    const conv_epilogue *ep;
    const grad_moments *moments;
    float *y, *scratch, lo, hi;
    size_t own;                  /* scratch of one worker, whichever phase it is at */
} tile_job;

/* The rows that the unit's taps reach, and their border of zeros. */
static void copy_unit(const tile_plan *p, unit u, const float *x, float *to)
{
    const gather *g = &p->g;
    int64_t ic = (int64_t)g->c * g->groups;
    int left = (int)kern_min(kern_max(0, -g->col[0]), p->src_w), from = (int)kern_max(0, g->col[0]);
    int inside = (int)kern_max(0, kern_min(p->src_w - left, g->iw - from)), right = p->src_w - left - inside;
    for (int i = 0; i < u.imgs; i++)
        for (int r = 0; r < gather_span(u.rows, g->sh, g->row, g->th); r++) {
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

/* SiLU is no clamp: it follows while the outputs are still in the cache. */
void silu_in_place(float *y, int channels)
{
    kern.affine(&(norm_args){ .count = channels, .width = channels, .x = y, .act = ACT_SILU, .out = y });
}

/* A line that is stored to must be there first: memory is too far to be waited for. */
static void fetch_outputs(const tile_plan *p, const tile_args *t, int nv, const tile_piece *piece)
{
    for (const int32_t *oy = p->oy + piece->pixel; oy < p->oy + piece->pixel + piece->height; oy++)
        for (int v = 0; v < nv; v++) __builtin_prefetch(t->y + *oy + v * kern.lanes, 1, 2);
}

static const tile_kernel *kernels_of(const tile_plan *p, int nv, int lanes, bool series)
{
    const bool half = panel_is_half((panel){ .nv = nv, .lanes = lanes });
    if (p->strips) return series ? kern.strip_list[nv - 1] : kern.strip[nv - 1];
    if (series && !p->flat) return kern.list;
    if (series) return half ? kern.series_half : kern.series[nv / 2];
    return half ? kern.tile_half : kern.tile[nv / 2];
}

/* Tiles of a call, where they have a series: fetching goes on between calls. */
enum { SERIES = 64 };

/* One panel, or two: its tiles, which differ in where they read, write, and which taps they find. The first ones fetch
 * what comes next, each a part in the order of memory. */
static void run_tiles(const tile_plan *p, tile_args *t, int nv, const tile_list *list, fetch *next)
{
    const tile_kernel *kernel = kernels_of(p, nv, t->lanes, list->piece->series);
    const int wide = p->fetches ? nv * kern.lanes : 0, panel_wide = 2 * kern.lanes;
    int at = 0;                  /* of every step's floats */
    for (const tile_piece *piece = list->piece; piece < list->piece + list->n; piece += t->tiles, at += TILE_FETCH) {
        t->ox = p->ox + piece->pixel;
        t->oy = p->oy + piece->pixel;
        t->run = p->run[nv > 1] + piece->run;
        t->runs = piece->runs;
        t->len = piece->len;
        t->tiles = p->far || at < wide ? 1 : (int)kern_max(1, kern_min(SERIES, piece->series));
        if (p->far && piece + 1 < list->piece + list->n) fetch_outputs(p, t, nv, piece + 1);
        t->far = at < wide ? t->w + (1 + nv / 4 + at / panel_wide) * t->pair + (int64_t)t->len * (at % panel_wide) : NULL;
        kernel[piece->height](t);
        for (int i = 0; i < t->tiles && next->at < next->end; i++) fetch_some(next);
    }
}

/* A part of the sums: steps [from, end) of a row of taps, or channels of a chunk of it. */
typedef struct { int row, chunk, from, end; } block;

static block block_at(const tile_plan *p, int b)
{
    int steps = p->strips ? p->g.c : p->g.tw * p->g.c, part = b % p->parts;
    return (block){ b / p->parts / p->chunks, b / p->parts % p->chunks, (int)((int64_t)steps * part / p->parts) & ~3,
                    part + 1 == p->parts ? steps : (int)((int64_t)steps * (part + 1) / p->parts) & ~3 };
}

/* What a piece finds of a block, one stretch: false where that is nothing. first, last: of the piece's sums. */
static bool find_block(const tile_plan *p, const tile_piece *piece, block b, int nv, conv_run *run, int *len, bool *first,
                       bool *last)
{
    int which = piece->run / p->runs_max, wide = nv * kern.lanes;
    tap_class d = p->down.c[which / p->across.n], a = p->across.c[which % p->across.n];
    int t0 = a.t0 * p->g.c, t1 = a.t1 * p->g.c, before = 0, per_row = 1, taps = 1;
    if (p->strips) {             /* a block has channels of one chunk */
        int k0 = tile_chunk_of(p, a.t0).which;
        before = b.chunk - k0;
        per_row = piece->runs / (int)kern_max(1, d.t1 - d.t0);
        if (before < 0 || before >= per_row) return false;
        t0 = 0;
        t1 = p->g.c;
    }
    int at = (int)kern_max(b.from, t0), to = (int)kern_min(b.end, t1);
    if (b.row < d.t0 || b.row >= d.t1 || at >= to) return false;
    *run = p->run[nv > 1][piece->run + (b.row - d.t0) * per_row + before];
    if (p->strips) taps = run->taps;
    run->x += at - t0;
    run->w += (at - t0) * wide * taps;
    *len = to - at;
    *first = b.row == d.t0 && before == 0 && at == t0;
    *last = b.row == d.t1 - 1 && before == per_row - 1 && to == t1;
    return true;
}

/* The same for one block only. Its first tiles fetch the block that follows, in the order of memory. */
static void run_block(const tile_plan *p, tile_args *t, int nv, const tile_list *list, block b, float *sums)
{
    const tile_kernel *kernel = kernels_of(p, nv, t->lanes, false);
    const int wide = nv * kern.lanes, each = p->strips ? STRIP_FETCH : TILE_FETCH, steps = b.end - b.from;
    int fetched = 0;             /* of every step's floats */
    for (const tile_piece *piece = list->piece; piece < list->piece + list->n; piece++) {
        conv_run run = { 0 };
        bool empty = piece->runs == 0, first = true, last = true;
        int len = 0;
        if (empty ? b.row || b.chunk || b.from : !find_block(p, piece, b, nv, &run, &len, &first, &last)) continue;
        t->ox = p->ox + piece->pixel;
        t->oy = p->oy + piece->pixel;
        t->run = &run;
        t->runs = !empty;
        t->len = len;
        t->resume = !first;
        t->suspend = !last;
        t->sum = sums + (int64_t)(piece->pixel - list->piece->pixel) * wide;
        const int of_step = wide * (p->strips ? run.taps : 1);
        t->far = fetched < of_step ? t->w + run.w + (int64_t)(of_step + fetched) * steps : NULL;
        fetched += each;
        kernel[piece->height](t);
    }
}

/* One panel, its sums in blocks. */
static void run_blocks(const tile_plan *p, tile_args *t, int nv, const tile_list *list, float *sums, fetch *next)
{
    for (int b = 0; b < p->g.th * p->chunks * p->parts; b++) {
        run_block(p, t, nv, list, block_at(p, b), sums);
        fetch_some(next);
    }
}

/* Panels [first, end) of one unit; sums is scratch. */
static void run_unit(const tile_job *j, unit u, const float *x, int first, int end, float *sums, fetch *next)
{
    const tile_plan *p = j->p;
    const gather *g = &p->g;
    int64_t at = g->y_base + u.n0 * g->y_img + u.r0 * g->y_row + u.q0 * g->y_col;
    int pixels = u.imgs * u.rows * u.cols, per_group = panel_count(g->o), kind = tile_kind_of(p, u);
    for (int k = first, n; k < end; k += n) {
        int group = k / per_group, nv;
        panel v = panels_at(g->o, k % per_group, end - k, p->pairs, &n, &nv);
        int64_t o = (int64_t)group * g->o + v.first, w0 = gather_panel_offset(g, k % per_group);
        tile_args t = {
            .y = j->y + at + o, .lanes = v.lanes, .lo = j->lo, .hi = j->hi,
            .w = j->packed + p->packed_at + gather_panel_offset(g, per_group) * group + w0,
            .pair = gather_panel_offset(g, k % per_group + 1) - w0,
            .bias = j->ep->bias ? j->ep->bias + o : NULL,
            .residual = j->ep->residual ? j->ep->residual + at + o : NULL, .x = x + group * g->c,
            .x_step = (int64_t)g->c * g->groups, .y_step = g->y_col };
        const tile_list *list = &p->list[nv / 2][kind];
        if (p->parts) run_blocks(p, &t, nv, list, sums, next);
        else run_tiles(p, &t, nv, list, next);
        for (int i = 0; j->ep->act == ACT_SILU && i < pixels; i++)
            silu_in_place(t.y + p->oy[list->piece->pixel + i], (nv - 1) * kern.lanes + v.lanes);
    }
}

/* What unit u reads first: rows of one image, or whole images. */
static const float *input_of(const tile_plan *p, unit u, const float *x)
{
    const gather *g = &p->g;
    int64_t ic = (int64_t)g->c * g->groups, row = kern_max(0, u.r0 * g->sh + (g->th ? g->row[0] : 0));
    return x + ((u.n0 * g->ih + row) * g->iw + (p->copy ? 0 : u.q0 * g->sw)) * ic;
}

int64_t tile_parts(const tile_plan *p) { return p->stretches; }

/* The first out-channel of panel k; k = panels: all of them. */
static int first_channel(const tile_plan *p, int k)
{
    int per_group = panel_count(p->g.o);
    return k / per_group * p->g.o + (k % per_group ? panel_at(p->g.o, k % per_group).first : 0);
}

/* A unit's outputs lie side by side, image after image. */
static void sum_unit(const tile_plan *p, unit u, const float *y, row_part *part)
{
    const gather *g = &p->g;
    const float *at = y + g->y_base + u.r0 * g->y_row + u.q0 * g->y_col + part->c0;
    for (int i = 0; i < u.imgs; i++) row_part_add(part, at + (u.n0 + i) * g->y_img, (int64_t)u.rows * u.cols);
}

static void sum_grads(const tile_plan *p, unit u, const float *y, const grad_moments *m, int64_t part, int c0, int c)
{
    const gather *g = &p->g;
    const int64_t all = m->all, at = g->y_base + u.r0 * g->y_row + u.q0 * g->y_col + c0;
    for (int i = 0; i < u.imgs; i++) {
        const int64_t image = at + (u.n0 + i) * g->y_img;
        grad_moments_add(m, part, c0, c, (int64_t)u.rows * u.cols, image, all, y + image);
    }
}

/* Some floats, spread over the tiles of so many panels of a unit. */
static fetch fetch_over(const tile_plan *p, unit u, int panels, const float *from, int64_t floats)
{
    const int64_t calls = p->parts ? p->g.th * p->chunks * p->parts : (int64_t)u.imgs * u.rows * u.cols / kern.tallest[0];
    return (fetch){ (const char *)from, (const char *)(from + floats), kern_div_up(floats * 4, kern_max(1, calls * panels)) };
}

/* Some units one after another; while one is computed the next is fetched, and with the last what the caller reads next. */
static void run_task(const tile_job *j, int64_t i, int worker)
{
    const tile_plan *p = j->p;
    const gather *g = &p->g;
    int64_t slice = p->by_panel ? i / p->stretches : i % p->slices, stretch = p->by_panel ? i % p->stretches : i / p->slices;
    int64_t u0 = stretch * p->units_per_task, u1 = kern_min(p->units, u0 + p->units_per_task), ic = (int64_t)g->c * g->groups;
    int first = (int)slice * p->panels_per_task, end = (int)kern_min(p->panels, first + p->panels_per_task);
    float *own = j->scratch + (size_t)worker * j->own;
    const grad_moments *moments = j->moments;
    const bool sums = j->ep->part || moments;
    int channels = g->o * g->groups, c0 = sums ? first_channel(p, first) : 0, nc = sums ? first_channel(p, end) - c0 : 0;
    row_part part = { 0 };
    if (j->ep->part) part = row_part_open(j->ep->part + stretch * ROW_PART(channels), channels, c0, nc, channels);
    if (moments) grad_moments_open(moments, stretch, c0, nc);
    for (int64_t k = u0; k < u1; k++) {
        unit u = tile_unit_at(p, k);
        const float *x = j->x + (((int64_t)u.n0 * g->ih + u.r0 * g->sh) * g->iw + u.q0 * g->sw) * ic;
        if (p->copy) {
            copy_unit(p, u, j->x, own);
            x = own;
        } else if (j->pro) {
            affine_forward(u.cols, (int)ic, x, j->pro->scale, j->pro->shift, NULL, j->pro->act, own);
            x = own;
        }
        fetch next = { 0 };
        if (k + 1 < u1) {
            const float *from = input_of(p, tile_unit_at(p, k + 1), j->x), *all = j->x + (int64_t)g->n * g->ih * g->iw * ic;
            next = fetch_over(p, u, end - first, from, kern_min(p->input_floats, all - from));
        } else if (j->ep->next) {
            const int64_t tasks = p->tasks, from = j->ep->n_next * i / tasks, to = j->ep->n_next * (i + 1) / tasks;
            next = fetch_over(p, u, end - first, j->ep->next + from, to - from);
        }
        run_unit(j, u, x, first, end, own + p->copy_floats, &next);
        if (j->ep->part) sum_unit(p, u, j->y, &part);
        if (moments) sum_grads(p, u, j->y, moments, stretch, c0, nc);
    }
    if (j->ep->part) row_part_close(&part);
}

/* Phases side by side, unit by unit: what one has read is still in the cache for the others. */
static void run_phase(void *ctx, int64_t i, int worker)
{
    tile_job j = *(const tile_job *)ctx;
    const int64_t task = j.phases > 1 ? i / j.phases : i;
    j.p = j.phase[i - task * j.phases];
    if (task < j.p->tasks) run_task(&j, task, worker);
}

void tile_run(tile_plan *const *phase, int phases, const float *x, const conv_prologue *pro, const float *packed,
              const conv_epilogue *ep, const grad_moments *moments, float *y, float *scratch)
{
    tile_job j = { .phase = phase, .phases = phases, .x = x, .pro = pro, .packed = packed, .ep = ep, .moments = moments, .y = y, .scratch = scratch,
                   .lo = act_low(ep->act), .hi = act_high(ep->act) };
    int64_t most = 0;
    for (int i = 0; i < phases; i++) {
        most = kern_max(most, phase[i]->tasks);
        if (own_scratch(phase[i]) > j.own) j.own = own_scratch(phase[i]);
    }
    par_for(most * phases, run_phase, &j);
}
