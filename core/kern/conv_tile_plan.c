/* Planning for the register tile: see conv_tile.h. */
#include <math.h>
#include <string.h>

#include "core/kern/conv_tile.h"

int panel_count(int channels) { return (int)kern_div_up(channels, 2 * kern.lanes); }

panel panel_at(int channels, int i)
{
    int first = i * 2 * kern.lanes, left = (int)kern_min(channels - first, 2 * kern.lanes);
    int nv = left > kern.lanes ? 2 : 1;
    return (panel){ first, nv, left - (nv - 1) * kern.lanes };
}

panel panels_at(int channels, int i, int left, bool pairs, int *n, int *nv)
{
    panel v = panel_at(channels, i);
    *n = pairs && left > 1 && i + 1 < panel_count(channels) && panel_at(channels, i + 1).nv == 2 ? 2 : 1;
    *nv = *n * v.nv;
    if (*n == 2) v.lanes = panel_at(channels, i + 1).lanes;
    return v;
}

int64_t gather_panel_offset(const gather *g, int i)
{
    const int64_t wide = kern_min((int64_t)i * 2 * kern.lanes, kern_div_up(g->o, kern.lanes) * kern.lanes);
    return wide * g->th * g->tw * g->c;
}

int gather_span(int outputs, int stride, const int *offset, int taps)
{
    return taps ? (outputs - 1) * stride + offset[taps - 1] - offset[0] + 1 : 0;
}

/* 1×1, stride 1, no padding: all pixels of all images are one row. False: it is another convolution. */
static bool flatten_pointwise(gather *g)
{
    int64_t all = (int64_t)g->n * g->qh * g->qw;
    if (g->th != 1 || g->tw != 1 || g->sh != 1 || g->sw != 1 || g->row[0] || g->col[0] || g->qh != g->ih || g->qw != g->iw
        || g->y_col * g->qw != g->y_row || g->y_row * g->qh != g->y_img || all > INT32_MAX)
        return false;
    g->n = g->qh = g->ih = 1;
    g->qw = g->iw = (int)all;
    return true;
}

/* ---- units ------------------------------------------------------------------------------------ */

/* Units of at least UNIT_PIXELS where there are as many and at most UNIT_MOST, that read no more
 * than UNIT_FLOATS or copy COPY_FLOATS (COPY_LONG where sums are long), and as many as make PIECES tasks together with the panels. */
enum { UNIT_PIXELS = 96, UNIT_MOST = 1024, UNIT_FLOATS = 1 << 17, COPY_FLOATS = 1 << 15, COPY_LONG = 1 << 17 };
/* … a unit with a prologue is there twice. */
enum { PROLOGUE_FLOATS = 1 << 15 };

/* total in pieces of about equal size, at_most or less: of the sizes down to half of that the one
 * that lets pairs of pieces finish soonest. */
static int even(int total, int at_most)
{
    int least = (int)kern_div_up(total, kern_max(1, at_most)), best = total;
    int64_t soonest = INT64_MAX;
    for (int pieces = least; pieces < 2 * least && pieces <= total; pieces++) {
        int64_t size = kern_div_up(total, pieces), end = size * kern_div_up(kern_div_up(total, size), 2);
        if (end < soonest) { soonest = end; best = (int)size; }
    }
    return best;
}

/* Sums over a task's outputs are parts of a norm's sums, and those are the same for any number of threads. Else a thread
 * wants a few tasks, to help others with, and one that is alone a single one: smaller ones have more tiles that are not full,
 * and of a layer of few microseconds what a task costs by itself is a part. */
enum { TASKS_OF_THREAD = 4 };

static int64_t tasks_at_most(const tile_plan *p)
{
    if (p->sums && !p->inside) return PIECES;
    return p->inside || p->workers == 1 ? 1 : kern_min(PIECES, TASKS_OF_THREAD * p->workers);
}

static int64_t tasks_wanted(const tile_plan *p)
{
    const gather *g = &p->g;
    int64_t macs = (int64_t)g->n * g->qh * g->qw * g->th * g->tw * g->c * g->o * g->groups;
    return kern_max(1, kern_min(tasks_at_most(p), macs / PIECE_MACS));
}

/* A panel above PANEL_FLOATS leaves the second-level cache no room for anything else: its sums are
 * cut into blocks of at most BLOCK_FLOATS, half of the first-level cache (of strips, which are short and rest
 * often, a part of the second), and its units are as large as LONG_TASKS allow, because each reads all weights
 * from afar. */
enum { PANEL_FLOATS = 96 << 10, BLOCK_FLOATS = 6 << 10, STRIP_BLOCK_FLOATS = 48 << 10, LONG_TASKS = 8 };

bool tile_is_long(int64_t steps) { return steps * 2 * kern.lanes > PANEL_FLOATS; }
static bool is_long(const gather *g) { return tile_is_long((int64_t)g->th * g->tw * g->c); }

/* Neighbouring tasks run on one core. The layers before and after are cut along the pixels, so that
 * is where a core finds what it wrote itself; but many weights are better read by one core only. */
enum { FEW_WEIGHTS = 1 << 17 };

static void cut_units(tile_plan *p)
{
    const gather *g = &p->g;
    p->by_panel = tile_packed_floats(p) > FEW_WEIGHTS;
    bool far = is_long(g);
    int64_t map = (int64_t)g->qh * g->qw, all = g->groups * panel_count(g->o);
    int64_t tasks = kern_min(tasks_wanted(p), far ? kern_max(LONG_TASKS, all) : PIECES), panels = kern_min(tasks, all);
    int64_t most = kern_min(UNIT_MOST, (p->prologue ? PROLOGUE_FLOATS : UNIT_FLOATS) / ((int64_t)g->c * g->groups * g->sh * g->sw));
    int64_t want = kern_min(map * g->n * panels / tasks, most);
    if (!p->inside && !p->sums && !p->by_panel) want = kern_min(want, kern_div_up(map * g->n, p->workers));
    want = kern_max(UNIT_PIXELS, want);
    if (want >= map * g->n && panels > 1 && panels % 2) want = kern_div_up(map * g->n, 2);
    p->imgs = even(g->n, (int)kern_max(1, want / map));
    p->rows = map <= want ? g->qh : even(g->qh, (int)(want / g->qw));
    p->cols = g->qh > 1 || p->copy || p->strips ? g->qw : even(g->qw, (int)want);
    if (p->copy) {
        int64_t line = (int64_t)gather_span(g->qw, g->sw, g->col, g->tw) * g->c * g->groups, room = far ? COPY_LONG : COPY_FLOATS;
        while (p->imgs > 1 && line * gather_span(p->rows, g->sh, g->row, g->th) * p->imgs > room)
            p->imgs = even(g->n, p->imgs - 1);
        while (p->imgs == 1 && p->rows > 1 && line * gather_span(p->rows, g->sh, g->row, g->th) > room)
            p->rows = even(g->qh, p->rows - 1);
    }
    if (p->rows < g->qh) p->imgs = 1;
    p->units_n = (int)kern_div_up(g->n, p->imgs);
    p->units_h = (int)kern_div_up(g->qh, p->rows);
    p->units_w = (int)kern_div_up(g->qw, p->cols);
}

/* Short sums of pixels that are no row, and whose outputs are near: their tiles make lists. */
enum { LIST_SUM = 64 };
static bool can_list(const tile_plan *p)
{
    return !p->flat && !p->strips && !p->far && p->g.th * p->g.tw * p->g.c <= LIST_SUM;
}

/* Two panels at once, where both stay in the first-level cache, or nearly, while the tiles pass over them. */
enum { PAIR_FLOATS = 1 << 14 };

static bool can_pair(const tile_plan *p)
{
    const gather *g = &p->g;
    return kern.tallest[2] && !p->strips && !can_list(p) && g->o > 3 * kern.lanes && (int64_t)g->th * g->tw * g->c * 4 * kern.lanes <= PAIR_FLOATS;
}

static void cut_tasks(tile_plan *p)
{
    p->pairs = can_pair(p);
    const int64_t tasks = tasks_wanted(p);
    p->units = (int64_t)p->units_n * p->units_h * p->units_w;
    p->units_per_task = (int)kern_max(1, p->units / PIECES);
    p->panels = p->g.groups * panel_count(p->g.o);
    int most = (int)(p->panels / kern_max(1, kern_min(p->panels, kern_div_up(tasks, p->units))));
    p->panels_per_task = even(p->panels, p->pairs ? (int)kern_max(3, most) : most);
    p->stretches = kern_div_up(p->units, p->units_per_task);
    p->slices = kern_div_up(p->panels, p->panels_per_task);
    p->tasks = p->stretches * p->slices;
}

unit tile_unit_at(const tile_plan *p, int64_t i)
{
    const gather *g = &p->g;
    if (p->units == 1) return (unit){ .imgs = p->imgs, .rows = p->rows, .cols = p->cols };
    unit u = { .q0 = (int)(i % p->units_w) * p->cols, .r0 = (int)(i / p->units_w % p->units_h) * p->rows,
               .n0 = (int)(i / p->units_w / p->units_h) * p->imgs };
    u.imgs = (int)kern_min(p->imgs, g->n - u.n0);
    u.rows = (int)kern_min(p->rows, g->qh - u.r0);
    u.cols = (int)kern_min(p->cols, g->qw - u.q0);
    return u;
}

/* Units of a kind have the same tiles: the same size and, where classes differ, the same place. */
static int kind_along(int first, int step, int units, int kinds) { return kinds == units ? first / step : first / step == units - 1; }

int tile_kind_of(const tile_plan *p, unit u)
{
    if (p->units == 1) return 0;
    int h = kind_along(u.r0, p->rows, p->units_h, p->kinds_h), w = kind_along(u.q0, p->cols, p->units_w, p->kinds_w);
    return ((u.imgs < p->imgs) * p->kinds_h + h) * p->kinds_w + w;
}

/* ---- classes ---------------------------------------------------------------------------------- */

/* together: all outputs are one class that finds every tap, be it in the border. */
static bool classes_new(classes *k, int outputs, const int *offset, int taps, int stride, int size, bool together, err *e)
{
    if (!(k->c = mem_new((size_t)outputs, sizeof *k->c, e))) return false;
    k->n = 0;
    for (int q = 0; q < outputs; q++) {
        tap_class c = { q, q + 1, 0, taps };
        if (!together) taps_live(offset, taps, q, q, stride, size, &c.t0, &c.t1);
        tap_class *last = k->n ? &k->c[k->n - 1] : NULL;
        if (last && last->t0 == c.t0 && last->t1 == c.t1) last->end = c.end;
        else k->c[k->n++] = c;
    }
    return true;
}

/* The order of a sum must not depend on how many pixels there are: twins are of one channel count, whatever else. */
bool tile_is_twin(const tile_plan *p, int nv) { return nv == 1 && p->flat && p->g.c % 2 == 0 && !is_long(&p->g); }

/* All panels of nv vectors are one, and that is half. */
static bool is_half(const gather *g, int nv) { return nv == 2 && panel_is_half(panel_at(g->o, 0)); }

/* What comes from memory is fetched tile by tile: calls of several leave gaps. Tall tiles want more pointers than there are
 * registers. */
enum { SERIES_FLOATS = 1 << 22, SHORT_SUM = 128 };
static bool is_short(const tile_plan *p) { return p->g.th * p->g.tw * p->g.c <= SHORT_SUM; }
static bool has_series(const tile_plan *p, int nv)       /* of kernels of several taps, or with a stride: a list */
{
    const gather *g = &p->g;
    if (p->strips) return !p->far && g->th * g->tw * g->c <= LIST_SUM;
    if (!p->flat) return can_list(p) && nv == 2 && !is_half(g, nv);
    if (nv == 1) return tile_is_twin(p, nv);
    return (nv == 4 || is_half(g, nv) || is_short(p)) && (int64_t)g->qw * (g->c + g->o) * g->groups < SERIES_FLOATS;
}

static int tiles_for(const tile_plan *p, int64_t pixels, int nv)
{
    const bool series = has_series(p, nv);
    const int *tall = series && (nv == 1 || is_short(p)) ? kern.tallest_short : kern.tallest;
    return (int)kern_div_up(pixels, series && is_half(&p->g, nv) ? kern.tallest_half : tall[nv / 2]);
}

static int chunk_start(const tile_plan *p, int k) { return (int)((int64_t)k * p->g.tw / p->chunks); }

tap_chunk tile_chunk_of(const tile_plan *p, int b)
{
    int k = 0;
    if (!p->strips) return (tap_chunk){ b, b, 1 };
    while (chunk_start(p, k + 1) <= b) k++;
    return (tap_chunk){ k, chunk_start(p, k), chunk_start(p, k + 1) - chunk_start(p, k) };
}

/* Bits of the pixels inside the image that a strip reads through a chunk. */
static uint32_t strip_live(const tile_plan *p, tap_class strip, tap_chunk k)
{
    int at = strip.first + p->g.col[k.first], reach = strip.end - strip.first + k.taps - 1;
    int first = (int)kern_min(kern_max(0, -at), reach), end = (int)kern_max(first, kern_min(reach, p->g.iw - at));
    return (1u << end) - (1u << first);
}

/* A strip's taps are all those of its chunks that find something. */
static bool strips_new(tile_plan *p, err *e)
{
    const gather *g = &p->g;
    int n = (int)kern_div_up(g->qw, kern.longest[panel_at(g->o, 0).nv - 1]);
    if (!(p->across.c = mem_new((size_t)n, sizeof *p->across.c, e))) return false;
    p->across.n = n;
    for (int i = 0; i < n; i++) {
        tap_class *c = &p->across.c[i];
        *c = (tap_class){ (int)((int64_t)i * g->qw / n), (int)((int64_t)(i + 1) * g->qw / n), 0, 0 };
        for (int k = 0; k < p->chunks; k++) {
            tap_chunk chunk = tile_chunk_of(p, chunk_start(p, k));
            if (!strip_live(p, *c, chunk)) continue;
            if (c->t1 == 0) c->t0 = chunk.first;
            c->t1 = chunk.first + chunk.taps;
        }
    }
    return true;
}

/* How pixels are told apart; all others than EXACT and STRIPS copy. */
typedef enum { EXACT, ROWS, TOGETHER, STRIPS } strategy;

static bool can_be(const gather *g, strategy how)
{
    bool neighbours = g->th && g->tw > 1 && g->sw == 1 && g->col[g->tw - 1] - g->col[0] == g->tw - 1;
    bool border = g->th * g->tw > 0 && (g->row[0] < 0 || (g->qh - 1) * g->sh + g->row[g->th - 1] >= g->ih
                                 || g->col[0] < 0 || (g->qw - 1) * g->sw + g->col[g->tw - 1] >= g->iw);
    return how == EXACT || (how == STRIPS ? kern.longest[0] && neighbours : border);
}

static bool make_classes(tile_plan *p, strategy how, err *e)
{
    const gather *g = &p->g;
    mem_free(p->down.c);
    mem_free(p->across.c);
    p->across.c = NULL;
    p->copy = how == ROWS || how == TOGETHER;
    p->strips = how == STRIPS;
    p->chunks = p->strips ? (int)kern_div_up(g->tw, STRIP_TAPS) : 1;
    return classes_new(&p->down, g->qh, g->row, g->th, g->sh, g->ih, how == TOGETHER, e)
        && (p->strips ? strips_new(p, e) : classes_new(&p->across, g->qw, g->col, g->tw, g->sw, g->iw, p->copy, e));
}

/* The part of a class inside [first, first+count). */
static tap_class part_of(tap_class c, int first, int count)
{
    c.first = (int)kern_max(c.first, first);
    c.end = (int)kern_min(c.end, first + count);
    return c;
}

/* Time, about, of so many steps with as many multiply-adds of a vector and loads each, in multiply-adds: loads count
 * too, and sums wait for themselves `taps` times. */
static double steps_cost(double steps, int64_t fmas, int loads, int taps)
{
    enum { SHORT = 6 };
    return steps * kern_max(SHORT * taps, (double)fmas + 0.25 * loads);
}

/* A row of taps. */
static double strip_cost(const tile_plan *p, tap_class strip, int nv)
{
    int length = strip.end - strip.first;
    double sum = 0;
    for (int b = strip.t0; b < strip.t1; b += tile_chunk_of(p, b).taps) {
        tap_chunk k = tile_chunk_of(p, b);
        uint32_t live = strip_live(p, strip, k);
        int fmas = 0, loads = nv * k.taps;
        for (int j = 0, end = length + k.taps - 1; j < end; j++) {
            if (!(live >> j & 1)) continue;
            loads++;
            fmas += nv * (int)(kern_min(j, k.taps - 1) - kern_max(0, j - length + 1) + 1);
        }
        sum += steps_cost(p->g.c, fmas, loads, k.taps);
    }
    return sum;
}

/* The same of one panel's tiles over all units, with something for every stretch, tile and copied float. */
static double cost(const tile_plan *p, int nv)
{
    enum { PER_RUN = 8, PER_TILE = 40 };
    const gather *g = &p->g;
    double sum = 0;
    for (int h = 0; h < p->units_h; h++)
        for (int i = 0; i < p->down.n; i++)
            for (int k = 0; k < p->across.n; k++) {
                tap_class d = part_of(p->down.c[i], h * p->rows, p->rows), a = p->across.c[k];
                if (d.end <= d.first) continue;
                int64_t pixels = (int64_t)p->imgs * (d.end - d.first) * (a.end - a.first), n = tiles_for(p, pixels, nv);
                int rows = d.t1 - d.t0, tall = (int)kern_div_up(pixels, n);
                double steps = steps_cost((double)rows * (a.t1 - a.t0) * g->c, tall * nv, tall + nv, 1);
                sum += (double)n * (steps + PER_RUN * rows + PER_TILE);
            }
    if (p->copy)
        sum += (double)p->imgs * p->units_h * gather_span(p->rows, g->sh, g->row, g->th) * gather_span(g->qw, g->sw, g->col, g->tw)
             * g->c / 4 / (double)kern_max(1, p->panels_per_task / g->groups);
    return sum * p->units_n;
}

static bool follow(tile_plan *p, strategy how, err *e)
{
    if (!make_classes(p, how, e)) return false;
    cut_units(p);
    cut_tasks(p);
    return true;
}

/* Lines shorter than SHORTEST make strips whose sums wait for themselves, while many images fill tiles.
 * Strips add up in another order than tiles, so that a line alone decides, whatever images and rows there are: bands of
 * rows and groups of images have the same sums. Tiles of pixels of many lines are full, and know halves of vectors. */
enum { SHORTEST = 5 };
static bool strips_pay(const tile_plan *p)
{
    const panel v = panel_at(p->g.o, 0);
    const int tall = kern.tallest[v.nv / 2], fmas = panel_is_half(v) ? tall * 3 / 2 : tall * v.nv;
    double strips = 0, tiles = steps_cost((double)p->g.qw / tall * p->g.tw * p->g.c, fmas, tall + v.nv, 1);
    for (int i = 0; i < p->across.n; i++) strips += strip_cost(p, p->across.c[i], v.nv);
    return p->g.qw >= SHORTEST && strips < tiles;
}

static bool choose_strategy(tile_plan *p, err *e)
{
    double best = HUGE_VAL;
    strategy pick = EXACT;
    if (can_be(&p->g, STRIPS)) {
        if (!follow(p, STRIPS, e)) return false;
        if (strips_pay(p)) return true;
    }
    for (strategy how = EXACT; how < STRIPS; how++) {
        if (!can_be(&p->g, how)) continue;
        if (!follow(p, how, e)) return false;
        double c = cost(p, panel_at(p->g.o, 0).nv);
        if (c < best) { best = c; pick = how; }
    }
    return follow(p, pick, e);
}

/* ---- tables ----------------------------------------------------------------------------------- */

/* Stretches of live taps of every pair of classes. */
static bool make_runs(tile_plan *p, err *e)
{
    const gather *g = &p->g;
    int ic = g->c * g->groups;
    p->merge = !p->strips && g->groups == 1 && g->tw > 0 && g->col[g->tw - 1] - g->col[0] == g->tw - 1;
    p->runs_max = g->th * (p->strips ? p->chunks : p->merge ? 1 : g->tw);
    size_t all = (size_t)p->down.n * (size_t)p->across.n * (size_t)p->runs_max;
    if (!(p->run[0] = mem_new(2 * all, sizeof(conv_run), e))) return false;
    p->run[1] = p->run[0] + all;
    int row0 = p->copy ? g->row[0] : 0, col0 = p->copy ? g->col[0] : 0;
    for (int nv = 1; nv <= 2; nv++)
        for (int i = 0; i < p->down.n * p->across.n; i++) {
            tap_class d = p->down.c[i / p->across.n], a = p->across.c[i % p->across.n];
            conv_run *r = p->run[nv - 1] + (size_t)i * (size_t)p->runs_max;
            for (int t = d.t0; t < d.t1; t++)
                for (int b = a.t0, taps; b < a.t1; b += taps) {
                    tap_chunk chunk = tile_chunk_of(p, b);
                    taps = p->merge ? a.t1 - b : chunk.taps;
                    *r++ = (conv_run){ ((g->row[t] - row0) * p->src_w + g->col[b] - col0) * ic,
                                       (t * g->tw + b) * g->c * nv * kern.lanes, taps, p->strips ? strip_live(p, a, chunk) : 0 };
                }
        }
    return true;
}

/* Of a row of the taps that a class finds. */
static int stretches(const tile_plan *p, tap_class a)
{
    if (a.t1 == a.t0) return 0;
    if (p->strips) return tile_chunk_of(p, a.t1 - 1).which - tile_chunk_of(p, a.t0).which + 1;
    return p->merge ? 1 : a.t1 - a.t0;
}

/* Tiles of one kind of unit. Pixels are counted from *pixels on, and written if there is room. */
static void make_list(tile_plan *p, unit u, int nv, tile_list *list, tile_piece *room, int32_t *pixels)
{
    const gather *g = &p->g;
    int ic = g->c * g->groups;
    *list = (tile_list){ .piece = room };
    for (int i = 0; i < p->down.n; i++)
        for (int k = 0; k < p->across.n; k++) {
            tap_class d = part_of(p->down.c[i], u.r0, u.rows), a = part_of(p->across.c[k], u.q0, u.cols);
            if (d.end <= d.first || a.end <= a.first) continue;
            int first = *pixels, lines = u.imgs * (d.end - d.first), count = lines * (a.end - a.first);
            int n = p->strips ? lines : tiles_for(p, count, nv);
            for (int m = 0; p->ox && m < u.imgs; m++)
                for (int r = d.first; r < d.end; r++)
                    for (int q = a.first; q < a.end; q++) {
                        p->ox[*pixels] = ((m * p->src_h + (r - u.r0) * g->sh) * p->src_w + (q - u.q0) * g->sw) * ic;
                        p->oy[(*pixels)++] = (int32_t)(m * g->y_img + (r - u.r0) * g->y_row + (q - u.q0) * g->y_col);
                    }
            for (int t = n - 1; room && t >= 0; t--) {
                const int height = count / n + (t < count % n), from = count / n * t + (int)kern_min(t, count % n);
                tile_piece *piece = &room[list->n + t];
                *piece = (tile_piece){
                    .pixel = first + from, .run = (i * p->across.n + k) * p->runs_max, .height = height,
                    .runs = (d.t1 - d.t0) * stretches(p, a), .len = p->merge ? (a.t1 - a.t0) * g->c : g->c };
                if (has_series(p, nv)) piece->series = t + 1 < n && piece[1].height == height ? piece[1].series + 1 : 1;
            }
            if (!p->ox) *pixels += count;
            list->n += n;
        }
}

/* Every kind of unit for every height of panel: first to count, then to fill. */
static bool make_lists(tile_plan *p, err *e)
{
    bool differ_h = p->down.n > 1, differ_w = p->across.n > 1, used[3] = { false, false, p->pairs };
    p->kinds_h = differ_h ? p->units_h : (int)kern_min(p->units_h, 2);
    p->kinds_w = differ_w ? p->units_w : (int)kern_min(p->units_w, 2);
    size_t kinds = 2 * (size_t)p->kinds_h * (size_t)p->kinds_w;
    for (int i = 0; i < panel_count(p->g.o); i++) used[panel_at(p->g.o, i).nv - 1] = true;
    if (!(p->list[0] = mem_new(3 * kinds, sizeof(tile_list), e))) return false;
    for (int i = 1; i < 3; i++) p->list[i] = p->list[0] + kinds * (size_t)i;
    tile_piece *room = NULL;
    for (int fill = 0; fill < 2; fill++) {
        int32_t pixels = 0;
        int64_t pieces = 0;
        for (int64_t i = 0; i < p->units; i++) {
            unit u = tile_unit_at(p, i);
            int kind = tile_kind_of(p, u);
            for (int nv = 1; nv <= 4; nv *= 2) {
                tile_list *list = &p->list[nv / 2][kind];
                if (!used[nv / 2] || (fill ? list->piece != NULL : list->n > 0)) continue;
                make_list(p, u, nv, list, fill ? room + pieces : NULL, &pixels);
                pieces += list->n;
            }
        }
        if (fill) break;
        room = mem_new((size_t)pieces, sizeof *room, e);
        p->pieces = room;
        p->ox = room ? mem_new(2 * (size_t)pixels, sizeof *p->ox, e) : NULL;
        if (!p->ox) return false;
        p->oy = p->ox + pixels;
    }
    return true;
}

/* One image finds its weights far away, other layers' having passed meanwhile; fewer floats are there at once. */
enum { FAR_WEIGHTS = 1 << 14 };

/* One tile to a unit reads its weights once anyway. */
static void cut_sums(tile_plan *p)
{
    const gather *g = &p->g;
    int64_t wide = 2 * kern.lanes, row = kern_div_up(g->tw, p->chunks) * g->c * wide;
    bool one_tile = p->imgs * p->rows * p->cols <= kern.tallest[1];
    if ((!p->merge && !p->strips) || one_tile || !is_long(g)) return;
    p->parts = (int)kern_div_up(row, p->strips ? STRIP_BLOCK_FLOATS : BLOCK_FLOATS);
    p->sum_floats = (size_t)(p->imgs * p->rows * p->cols * wide);
}

tile_plan *tile_plan_new(const gather *from, const conv_shape *s, unsigned how, size_t packed_at, err *e)
{
    tile_plan *p = mem_new(1, sizeof *p, e);
    if (!p) { mem_free(from->row); return NULL; }
    p->g = *from;
    p->s = *s;
    p->prologue = how & CONV_PROLOGUE;
    p->sums = how & CONV_SUMS;
    p->inside = how & CONV_INSIDE;
    p->packed_at = packed_at;
    p->workers = par_threads();
    gather *g = &p->g;
    p->flat = flatten_pointwise(g);
    p->far = (int64_t)g->n * g->qh * g->qw * g->o * g->groups >= FAR_FLOATS;
    if (!choose_strategy(p, e)) goto failed;
    p->src_w = p->copy ? gather_span(g->qw, g->sw, g->col, g->tw) : g->iw;
    p->src_h = p->copy ? gather_span(p->rows, g->sh, g->row, g->th) : g->ih;
    int64_t ic = (int64_t)g->c * g->groups;
    if (p->copy) p->copy_floats = (size_t)kern_div_up((int64_t)p->imgs * p->src_h * p->src_w * ic, 16) * 16;
    if (p->prologue) p->copy_floats = (size_t)kern_div_up(p->cols * ic, 16) * 16;
    p->fetches = s->n == 1 && g->th == 1 && g->tw == 1 && (int64_t)g->c * g->o >= FAR_WEIGHTS;
    p->input_floats = p->rows < g->qh ? (int64_t)gather_span(p->rows, g->sh, g->row, g->th) * g->iw * ic
                    : (int64_t)p->imgs * g->ih * kern_min(g->iw, (int64_t)p->cols * g->sw) * ic;
    if (!make_runs(p, e) || !make_lists(p, e)) goto failed;
    cut_sums(p);
    return p;
failed:
    tile_plan_free(p);
    return NULL;
}

void tile_plan_free(tile_plan *p)
{
    if (!p) return;
    mem_free(p->g.row);
    mem_free(p->down.c);
    mem_free(p->across.c);
    mem_free(p->run[0]);
    mem_free(p->list[0]);
    mem_free(p->pieces);
    mem_free(p->ox);
    mem_free(p);
}
