/* A 3×3 convolution of stride 1, forward or data gradient, as Winograd's F(M×M,3×3), M = 2 or 4: (M+2)² products of
 * transformed patches with transformed weights for 9M² multiply-adds, on the register tile of the
 * direct road. The transforms are body_wino.h's, the choice between the roads is wino_choose's.
 *
 * Output tiles of all images stand in one row and are cut into units. A task transforms a unit's
 * patches into scratch that stays in a cache; then, for a panel of out-channels at a time, come
 * (M+2)² small products and the output transform with its epilogue. Nothing as large as a tensor is
 * stored. The sum of an output does not depend on the cut.
 *
 *   packed weights  [group][panel][(M+2)²][c][16*NV]
 *   scratch of a worker: patches [(M+2)²][tiles][row], products [(M+2)²][tiles][16*NV] */
#include <math.h>
#include <string.h>

#include "core/kern/conv.h"

/* Gaps keep rows and planes that are used together out of each other's cache lines. */
enum { PATCH_MOST = 36, ROW_GAP = 16, PLANE_GAP = 16 };
/* Two panels at once, if their weights of one place are so few floats: a third of the first-level cache. */
enum { PAIR_PLACE = 1 << 12 };

struct wino_plan {
    conv_shape s;                /* of what runs: the data gradient reads out-channels and writes in-channels */
    bool transposed;             /* … with the kernels turned round */
    int M, A;                    /* outputs and pixels along a tile's side */
    wino_grid grid;
    int64_t tiles;               /* of all images */
    int unit, row;               /* tiles of a unit; floats from one tile's channels to the next one's */
    int64_t units, in_plane, out_plane;
    int panels, panels_per_task, workers;
    bool pairs;                  /* two panels of two vectors are multiplied at once */
    bool in_far, out_far;        /* pixels are fetched a tile ahead */
    bool fetches;                /* while a place is multiplied, weights of a later one are fetched */
    size_t own;                  /* scratch floats of a worker */
};

/* ---- which road ------------------------------------------------------------------------------- */

bool wino_can(const conv_shape *s, conv_pass pass)
{
    bool fits = pass == CONV_WEIGHT_GRAD ? s->groups == 1 : pass == CONV_FORWARD || (s->pt <= 2 && s->pb <= 2 && s->pl <= 2 && s->pr <= 2);
    return fits && s->kh == 3 && s->kw == 3 && s->sh == 1 && s->sw == 1 && s->dh == 1 && s->dw == 1;
}

/* The data gradient as a convolution: of dy, with the kernels turned round. */
static conv_shape shape_of(const conv_shape *s, conv_pass pass)
{
    if (pass == CONV_FORWARD) return *s;
    conv_shape t = *s;
    t.h = conv_out_h(s);
    t.w = conv_out_w(s);
    t.c = s->o;
    t.o = s->c;
    t.pt = 2 - s->pt;
    t.pb = 2 - s->pb;
    t.pl = 2 - s->pl;
    t.pr = 2 - s->pr;
    return t;
}

wino_grid wino_grid_of(const conv_shape *s, int M) { return (wino_grid){ M, conv_out_h(s), conv_out_w(s) }; }

int64_t wino_tiles(const conv_shape *s, int M)
{
    return (int64_t)s->n * kern_div_up(conv_out_h(s), M) * kern_div_up(conv_out_w(s), M);
}

/* Costs by shape alone, in multiply-adds that the register tile does in the same time, from the layers
 * of ResNet-20 and -34 at batches 1 and 16, AVX-512, one thread. Never by a clock: a shape takes the
 * same road, and gives the same bits, in every run. */
enum { TRANSFORM_2 = 195, TRANSFORM_4 = 520 };           /* of one channel of a tile, in or out */
enum { STREAM = 20, CACHED_FLOATS = 1 << 18 };           /* of a float from beyond the L2, and what fits there */
static const double tile_loss = 1.1;                     /* tiles reach 90 % of the peak */

/* Taps of three that lie inside, summed over the outputs of an axis. */
static int64_t live_taps(int outputs, int pad, int size)
{
    int64_t live = 0;
    for (int q = 0; q < outputs; q++) live += kern_max(0, kern_min(size, q - pad + 3) - kern_max(0, q - pad));
    return live;
}

static double direct_cost(const conv_shape *s)
{
    double pairs = (double)(s->c / s->groups) * s->o;
    double live = (double)live_taps(conv_out_h(s), s->pt, s->h) * (double)live_taps(conv_out_w(s), s->pl, s->w);
    return tile_loss * s->n * live * pairs + STREAM * 9 * pairs;
}

/* Patches of a unit, in floats and tiles: every unit reads all weights again. */
enum { UNIT_FLOATS = 1 << 17, UNIT_TILES = 28 };

static int64_t unit_tiles(int places, int row) { return kern_max(UNIT_TILES, UNIT_FLOATS / ((int64_t)places * row)); }
int wino_row_floats(int channels) { return (int)kern_div_up(channels, LANES_MAX) * LANES_MAX + ROW_GAP; }

static double wino_cost(const conv_shape *s, int M)
{
    int places = (M + 2) * (M + 2), row = wino_row_floats(s->c);
    double pairs = (double)(s->c / s->groups) * s->o, tiles = (double)wino_tiles(s, M);
    double unit = fmin(tiles, (double)unit_tiles(places, row)), units = ceil(tiles / unit);
    double channels = (double)(kern_div_up(s->c, LANES_MAX) + kern_div_up(s->o, LANES_MAX)) * LANES_MAX;
    double patches = unit * places * row, panels = ceil((double)s->o / WIDEST);
    double streamed = units * (places * pairs + (patches > CACHED_FLOATS ? patches * panels : 0));
    return tile_loss * places * tiles * pairs + (M == 2 ? TRANSFORM_2 : TRANSFORM_4) * tiles * channels + STREAM * streamed;
}

int wino_choose(const conv_shape *shape, conv_pass pass)
{
    conv_shape one = shape_of(shape, pass), *s = &one;
    one.n = 1;                                           /* an image's answer must not depend on its batch */
    double direct = direct_cost(s), two = wino_cost(s, 2), four = wino_cost(s, 4);
    return direct <= fmin(two, four) ? 0 : two <= four ? 2 : 4;
}

/* ---- planning --------------------------------------------------------------------------------- */

/* A tile lower than SHORT waits for its own sums; weights that lie in the cache cost NEAR_STREAM a float, those fetched by
 * the way FAR_STREAM, being dealt a task TASK. */
enum { SHORT = 4, NEAR_STREAM = 2, FAR_STREAM = 10, TASK = 1 << 14 };

/* One task of `unit` tiles and `panels` panels, in the unit of wino_cost. Where others do the other panels, each comes for
 * pixels that another has just written, which cost the patches' transform once more. */
static double task_cost(const wino_plan *p, int64_t unit, int panels)
{
    const conv_shape *s = &p->s;
    int og = s->o / s->groups, nv = og > kern.lanes ? 2 : 1;
    double weights = (double)p->A * p->A * (s->c / s->groups) * nv * kern.lanes, transform = p->M == 2 ? TRANSFORM_2 : TRANSFORM_4;
    double pieces = (double)kern_div_up(unit, kern.tallest[nv - 1]), slots = pieces * fmax(SHORT, ceil((double)unit / pieces));
    double stream = weights * p->panels > CACHED_FLOATS ? FAR_STREAM : NEAR_STREAM, in = panels < p->panels ? 2 : 1;
    return TASK + transform * (double)unit * (in * s->c + panels * nv * kern.lanes) + panels * weights * (tile_loss * slots + stream);
}

/* Tiles of a unit whose weights are far. Patches of many channels leave the second-level cache then, which costs less than
 * more units would that all read the weights again. */
enum { UNIT_FAR = 56 };

/* Units, and slices of the panels that each transform a unit's patches again, so that the workers finish soonest.
 * No cut changes an output's sum, so it may depend on how many workers there are. */
static void cut(wino_plan *p)
{
    p->panels = p->s.groups * panel_count(p->s.o / p->s.groups);
    const int least = wino_packed_floats(p) > CACHED_FLOATS ? UNIT_FAR : UNIT_TILES;
    int64_t fewest = kern_div_up(p->tiles, kern_max(least, unit_tiles(p->A * p->A, p->row) / 2)), most = kern_max(fewest, PIECES);
    double soonest = HUGE_VAL;
    for (int64_t units = fewest; units <= kern_min(p->tiles, most); units++)
        for (int64_t slices = 1; slices <= p->panels && units * slices <= most; slices++) {
            int64_t unit = kern_div_up(p->tiles, units), panels = kern_div_up(p->panels, slices);
            int64_t tasks = kern_div_up(p->tiles, unit) * kern_div_up(p->panels, panels);
            double end = (double)kern_div_up(tasks, p->workers) * task_cost(p, unit, (int)panels);
            if (end >= soonest) continue;
            soonest = end;
            p->unit = (int)unit;
            p->units = kern_div_up(p->tiles, unit);
            p->panels_per_task = (int)panels;
        }
}

/* Weights that are far when a network comes to them, other layers' having passed meanwhile: so many floats, or what no near
 * cache holds. Fewer tiles leave no time to fetch. */
enum { FAR_WEIGHTS = 1 << 16, FETCHED_TILES = 12 };

static bool weights_are_fetched(const wino_plan *p)
{
    return p->unit >= FETCHED_TILES && wino_packed_floats(p) > (p->s.n == 1 ? FAR_WEIGHTS : CACHED_FLOATS);
}

enum { FAR_CHANNELS = 64, FAR_MAP = 1 << 19 };
bool wino_is_far(int64_t pixels, int channels) { return channels >= FAR_CHANNELS && pixels * channels >= FAR_MAP; }

wino_plan *wino_plan_new(const conv_shape *shape, conv_pass pass, int M, err *e)
{
    wino_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    const conv_shape run = shape_of(shape, pass), *s = &run;
    *p = (wino_plan){ .s = run, .transposed = pass == CONV_DATA_GRAD, .M = M, .A = M + 2, .grid = wino_grid_of(s, M), .tiles = wino_tiles(s, M), .workers = par_threads(),
                      .row = wino_row_floats(s->c) };
    cut(p);
    p->fetches = weights_are_fetched(p);
    p->in_far = wino_is_far((int64_t)s->n * s->h * s->w, s->c);
    p->out_far = wino_is_far((int64_t)s->n * p->grid.OH * p->grid.OW, s->o);
    p->pairs = kern.tallest[2] && s->c / s->groups * 2 * WIDEST <= PAIR_PLACE && s->o / s->groups > 3 * kern.lanes;
    p->in_plane = (int64_t)p->unit * p->row + PLANE_GAP;
    p->out_plane = (int64_t)p->unit * (p->pairs ? 2 : 1) * WIDEST + PLANE_GAP;
    p->own = scratch_of_worker((size_t)(p->A * p->A * (p->in_plane + p->out_plane)));
    return p;
}

void   wino_plan_free(wino_plan *p) { mem_free(p); }
size_t wino_scratch_floats(const wino_plan *p) { return p->own * (size_t)p->workers; }

/* Floats of packed weights before panel i of a group; i = panel_count: of the whole group. */
static int64_t panel_offset(const wino_plan *p, int i)
{
    int64_t lanes = 0;
    for (int k = 0; k < i; k++) lanes += panel_at(p->s.o / p->s.groups, k).nv * kern.lanes;
    return lanes * p->A * p->A * (p->s.c / p->s.groups);
}

size_t wino_packed_floats(const wino_plan *p)
{
    return (size_t)(panel_offset(p, panel_count(p->s.o / p->s.groups)) * p->s.groups);
}

/* ---- weights ---------------------------------------------------------------------------------- */

/* G: row i evaluates a kernel of three taps at point i and divides by the product of the point's
 * distances from the others; the last row is the point at infinity. */
void wino_kernel_transform(int M, double G[][3])
{
    static const double points[2][5] = { { 0, 1, -1 }, { 0, (double)WINO_P, -(double)WINO_P, (double)WINO_Q, -(double)WINO_Q } };
    const double *at = points[M == 4];
    for (int i = 0; i <= M; i++) {
        double away = 1;
        for (int j = 0; j <= M; j++)
            if (j != i) away *= at[i] - at[j];
        for (int k = 0; k < 3; k++) G[i][k] = (k == 0 ? 1 : k == 1 ? at[i] : at[i] * at[i]) / away;
    }
    G[M + 1][0] = G[M + 1][1] = 0;
    G[M + 1][2] = 1;
}

typedef struct { const wino_plan *p; const float *w; float *packed; wino_w_args transform; } pack_job;

/* Some in-channels of one panel. Kernels are read in the order of memory, as near as can be. */
enum { PACK_CHANNELS = 16 };

static void pack_piece(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pack_job *j = ctx;
    const wino_plan *p = j->p;
    int cg = p->s.c / p->s.groups, og = p->s.o / p->s.groups, per_group = panel_count(og);
    int chunks = (int)kern_div_up(cg, PACK_CHANNELS), c0 = (int)(i % chunks) * PACK_CHANNELS, k = (int)(i / chunks), group = k / per_group;
    int n = (int)kern_min(PACK_CHANNELS, cg - c0);
    panel v = panel_at(og, k % per_group);
    int wide = v.nv * kern.lanes, valid = (v.nv - 1) * kern.lanes + v.lanes;
    int64_t o_step = p->transposed ? 9 : (int64_t)cg * 9, c_step = p->transposed ? (int64_t)og * 9 : 9;
    const float *w = j->w + (int64_t)group * og * cg * 9 + v.first * o_step + c0 * c_step;
    float *to = j->packed + panel_offset(p, per_group) * group + panel_offset(p, k % per_group) + (int64_t)c0 * wide;
    float g[PACK_CHANNELS][9][WIDEST] = { { { 0 } } };
    for (int o = 0; o < valid; o++)
        for (int c = 0; c < n; c++)
            for (int t = 0; t < 9; t++) g[c][p->transposed ? 8 - t : t][o] = w[o * o_step + c * c_step + t];
    for (int c = 0; c < n; c++) {
        wino_w_args a = j->transform;
        a.g = g[c][0];
        a.u = to + (int64_t)c * wide;
        a.plane = (int64_t)cg * wide;
        a.wide = wide;
        kern.wino_w(&a);
    }
}

void wino_pack(const wino_plan *p, const float *w_oihw, float *packed)
{
    pack_job j = { .p = p, .w = w_oihw, .packed = packed, .transform = { .A = p->A } };
    wino_kernel_transform(p->M, j.transform.G);
    par_for(p->panels * kern_div_up(p->s.c / p->s.groups, PACK_CHANNELS), pack_piece, &j);
}

/* ---- running ---------------------------------------------------------------------------------- */

typedef struct {
    const wino_plan *p;
    const float *x, *packed;
    const conv_epilogue *ep;
    float *y, *scratch;
} wino_job;

wino_place wino_place_of(const wino_grid *g, int64_t tile)
{
    const int64_t across = kern_div_up(g->OW, g->M), each = kern_div_up(g->OH, g->M) * across;
    return (wino_place){ (int)(tile / each), (int)(tile % each / across) * g->M, (int)(tile % across) * g->M };
}

void wino_patch(const conv_shape *s, int M, const float *x, wino_place at, bool fetched, float *v, int64_t plane)
{
    const int h = at.h - s->pt, w = at.w - s->pl;
    wino_in_args a = { .x_row = (int64_t)s->w * s->c, .x_col = s->c, .plane = plane, .channels = s->c, .v = v,
                       .r0 = (int)kern_max(0, -h), .r1 = (int)kern_min(M + 2, s->h - h),
                       .c0 = (int)kern_max(0, -w), .c1 = (int)kern_min(M + 2, s->w - w) };
    a.x = x + ((int64_t)at.n * s->h + h) * a.x_row + w * a.x_col;
    if (fetched) a.ahead = 2 * a.x_row + (M + 2) * a.x_col;      /* what the tile above has not read, nor this one */
    kern.wino_in[M == 4](&a);
}

/* m[k][tile] = patches[k][tile] · weights[k], for every place k of the patch and all tiles of the unit; nv vectors,
 * four being those of a panel and, `pair` floats away, the next. The first pieces fetch the weights of
 * the place after the next, each a part in the order of memory. */
static void multiply(const wino_plan *p, int nv, int tiles, const float *patches, const float *weights, int64_t pair, float *m)
{
    int tall = kern.tallest[nv / 2], pieces = (int)kern_div_up(tiles, tall), wide = nv * kern.lanes, cg = p->s.c / p->s.groups;
    const int panel_wide = (int)kern_min(wide, 2 * kern.lanes), fetched = p->fetches && nv > 1 ? wide : 0;
    int32_t ox[TILE_MAX];
    for (int i = 0; i < TILE_MAX; i++) ox[i] = i * p->row;
    conv_run run = { 0 };
    tile_args t = { .ox = ox, .run = &run, .runs = 1, .len = cg, .pair = pair, .lanes = kern.lanes, .suspend = true };
    for (int k = 0; k < p->A * p->A; k++) {
        t.w = weights + (int64_t)k * cg * panel_wide;
        for (int i = 0; i < pieces; i++) {
            int first = (int)((int64_t)tiles * i / pieces), height = (int)((int64_t)tiles * (i + 1) / pieces) - first, at = i * TILE_FETCH;
            t.x = patches + k * p->in_plane + (int64_t)first * p->row;
            t.sum = m + k * p->out_plane + (int64_t)first * wide;
            t.far = at < fetched ? t.w + at / panel_wide * pair + (int64_t)cg * (2 * panel_wide + at % panel_wide) : NULL;
            kern.tile[nv / 2][height](&t);
        }
    }
}

/* Channels [o, …) of one tile of outputs. */
static void finish(const wino_job *j, wino_place at, int o, panel v, const float *m)
{
    const wino_plan *p = j->p;
    const wino_grid *g = &p->grid;
    const act_kind act = j->ep->act;
    int64_t y = (((int64_t)at.n * g->OH + at.h) * g->OW + at.w) * p->s.o + o;
    wino_out_args a = { .m = m, .plane = p->out_plane, .y = j->y + y, .y_row = (int64_t)g->OW * p->s.o, .y_col = p->s.o,
                        .bias = j->ep->bias ? j->ep->bias + o : NULL, .residual = j->ep->residual ? j->ep->residual + y : NULL,
                        .rows = (int)kern_min(p->M, g->OH - at.h), .cols = (int)kern_min(p->M, g->OW - at.w),
                        .ahead = p->out_far ? p->M * (int64_t)p->s.o : 0, .nv = v.nv, .lanes = v.lanes, .lo = act_low(act), .hi = act_high(act) };
    kern.wino_out[p->M == 4](&a);
    for (int r = 0; act == ACT_SILU && r < a.rows; r++)
        for (int c = 0; c < a.cols; c++) silu_in_place(a.y + r * a.y_row + c * a.y_col, (v.nv - 1) * kern.lanes + v.lanes);
}

/* Where others do the other panels, half of a pixel's lines are such as another core has just written. They come sooner in
 * the order of memory than in that of patches: so each is read once. */
static void bring_near(const wino_plan *p, const float *x, wino_place first, wino_place last, float *any)
{
    const conv_shape *s = &p->s;
    const int64_t row = (int64_t)s->w * s->c, line = LANES_MAX;
    const int r0 = first.n < last.n ? 0 : (int)kern_max(0, first.h - s->pt), r1 = first.n < last.n ? s->h : (int)kern_min(s->h, last.h - s->pt + p->A);
    float sum = 0;
    for (int64_t i = (first.n * s->h + r0) * row; i < (last.n * s->h + r1) * row; i += line) sum += x[i];
    *any = sum;
}

/* Some panels of one unit. */
static void run_task(void *ctx, int64_t i, int worker)
{
    const wino_job *j = ctx;
    const wino_plan *p = j->p;
    int64_t t0 = i % p->units * p->unit;
    int tiles = (int)kern_min(p->unit, p->tiles - t0), cg = p->s.c / p->s.groups, og = p->s.o / p->s.groups, per_group = panel_count(og);
    int first = (int)(i / p->units) * p->panels_per_task, end = (int)kern_min(p->panels, first + p->panels_per_task);
    float *patches = j->scratch + (size_t)worker * p->own, *m = patches + p->A * p->A * p->in_plane;
    const wino_place start = wino_place_of(&p->grid, t0);
    wino_place at = start;
    if (end - first < p->panels) bring_near(p, j->x, start, wino_place_of(&p->grid, t0 + tiles - 1), m);
    for (int t = 0; t < tiles; t++, at = wino_next(&p->grid, at)) wino_patch(&p->s, p->M, j->x, at, p->in_far, patches + (int64_t)t * p->row, p->in_plane);
    for (int k = first, n; k < end; k += n) {
        const int group = k / per_group, g0 = k % per_group;
        int nv;
        panels_at(og, g0, end - k, p->pairs, &n, &nv);
        const int64_t w0 = panel_offset(p, g0);
        multiply(p, nv, tiles, patches + group * cg, j->packed + panel_offset(p, per_group) * group + w0, panel_offset(p, g0 + 1) - w0, m);
        const panel v[2] = { panel_at(og, g0), panel_at(og, g0 + n - 1) };
        at = start;
        for (int t = 0; t < tiles; t++, at = wino_next(&p->grid, at))
            for (int h = 0; h < n; h++) finish(j, at, group * og + v[h].first, v[h], m + ((int64_t)t * nv + h * 2) * kern.lanes);
    }
}

void wino_run(const wino_plan *p, const float *x, const float *packed, const conv_epilogue *ep, float *y, float *scratch)
{
    wino_job j = { .p = p, .x = x, .packed = packed, .ep = ep, .y = y, .scratch = scratch };
    par_for(p->units * kern_div_up(p->panels, p->panels_per_task), run_task, &j);
}
