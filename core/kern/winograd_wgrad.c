/* The weight gradient of a 3×3 convolution of stride 1 behind Winograd's transforms, see winograd.c: an output tile
 * is A'((G g G') · (B' d B))A of a patch d, so the gradient of g is G'(sum over tiles of (A dy A') · (B' d B))G, with
 * (M+2)² products of a channel with a channel for every tile where the definition has 9M².
 *
 * Tiles of all images stand in one row and are cut into blocks, and those into units. The patches and output tiles of a
 * unit are transformed into scratch; then every place of the patch is a sum over tiles of channels × channels, on the weight
 * gradient's register tile; units are added up one after the other, then blocks, and at the end comes the transform by G.
 *
 * Each block has its own sums and is one task: what a core has transformed it finds in its own caches when it multiplies.
 * Where the sums are too many for that there is one block, whose tiles and then whose places are dealt out.
 *
 *   scratch  of a worker: x [place][tile][c], dy [place][tile][o]; of a block: sums [place][panel][c][16*NV] */
#include <string.h>

#include "core/kern/conv.h"

enum { GAP = 16 };               /* gaps keep rows and planes out of each other's cache lines */

struct wino_wgrad_plan {
    conv_shape s;
    int M, A;
    wino_grid grid;
    int64_t tiles;
    int blocks, unit, panels, workers, x_row, y_row;
    bool x_far, y_far;           /* pixels are fetched a tile ahead */
    int64_t x_plane, y_plane, sum_plane;
    size_t own, sums;            /* floats of a worker, of a block's sums */
};

/* As many blocks for any number of threads, of BLOCK_TILES or more, if the sums of one are at most SUMS_NEAR floats: they
 * stay in the second-level cache, and so do UNIT_NEAR floats of transformed tiles. Up to SUMS_OWN floats there are FAR_BLOCKS
 * at most, because all blocks' sums are added up; of those, and of a block that all threads share, units are larger: few
 * tiles to a unit load and store the sums often, and threads that share wait for each other each time. */
enum { BLOCKS = 8, BLOCK_TILES = 64, SUMS_NEAR = 5 << 16, UNIT_NEAR = 1 << 18, NEAR_LEAST = 40, FAR_BLOCKS = 4, SUMS_OWN = 1 << 20,
       UNIT_LEAST = 128, UNIT_MOST = 512, UNIT_FLOATS = 1 << 20 };

static int64_t sums_of(const conv_shape *s, int M) { return (int64_t)(M + 2) * (M + 2) * s->c * s->o; }
static bool sums_are_near(const conv_shape *s, int M) { return sums_of(s, M) <= SUMS_NEAR; }

static int blocks_of(const conv_shape *s, int M)
{
    const bool near = sums_are_near(s, M);
    if (sums_of(s, M) > SUMS_OWN) return 1;
    return (int)kern_max(1, kern_min(near ? BLOCKS : FAR_BLOCKS, wino_tiles(s, M) / (near ? BLOCK_TILES : UNIT_LEAST)));
}

static bool units_are_near(const conv_shape *s, int M) { return sums_are_near(s, M) && blocks_of(s, M) > 1; }

static int unit_of(const conv_shape *s, int M)
{
    const int64_t tiles = kern_div_up(wino_tiles(s, M), blocks_of(s, M));
    const int64_t tile = (int64_t)(M + 2) * (M + 2) * (wino_row_floats(s->c) + wino_row_floats(s->o));
    const int64_t most = units_are_near(s, M) ? kern_max(NEAR_LEAST, UNIT_NEAR / tile) : kern_max(UNIT_LEAST, kern_min(UNIT_MOST, UNIT_FLOATS / tile));
    return (int)kern_div_up(tiles, kern_div_up(tiles, most));
}

/* In multiply-adds that the register tile does in the same time, from the 3×3 layers of ResNet-20, ResNet-34 and VGG19. */
enum { NEAR_2 = 210, NEAR_4 = 700, TRANSFORM_2 = 700, TRANSFORM_4 = 1900, STREAM = 20, NEAR_STREAM = 4, CACHED_FLOATS = 1 << 18 };
static const double direct_loss = 1.3, wino_loss = 1.2;

static double wino_cost(const conv_shape *s, int M)
{
    const double places = (M + 2) * (M + 2), pairs = (double)s->c * s->o, tiles = (double)wino_tiles(s, M);
    const double channels = (double)(kern_div_up(s->c, LANES_MAX) + kern_div_up(s->o, LANES_MAX)) * LANES_MAX;
    const double units = (double)kern_div_up((int64_t)tiles, unit_of(s, M)), stream = places * pairs > CACHED_FLOATS ? STREAM : NEAR_STREAM;
    const double transform = units_are_near(s, M) ? (M == 2 ? NEAR_2 : NEAR_4) : M == 2 ? TRANSFORM_2 : TRANSFORM_4;
    return wino_loss * places * tiles * pairs + transform * tiles * channels + stream * places * pairs * (units + 1);
}

int wino_wgrad_choose(const conv_shape *s)
{
    const double pairs = (double)s->c * s->o, pixels = (double)s->n * conv_out_h(s) * conv_out_w(s);
    const double direct = 9 * pairs * (direct_loss * pixels + STREAM), two = wino_cost(s, 2), four = wino_cost(s, 4);
    return direct <= two && direct <= four ? 0 : two <= four ? 2 : 4;
}

wino_wgrad_plan *wino_wgrad_plan_new(const conv_shape *s, int M, err *e)
{
    wino_wgrad_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    *p = (wino_wgrad_plan){ .s = *s, .M = M, .A = M + 2, .grid = wino_grid_of(s, M), .tiles = wino_tiles(s, M),
                            .blocks = blocks_of(s, M), .unit = unit_of(s, M), .panels = panel_count(s->o), .x_row = wino_row_floats(s->c), .y_row = wino_row_floats(s->o) };
    p->x_far = wino_is_far((int64_t)s->n * s->h * s->w, s->c);
    p->y_far = wino_is_far((int64_t)s->n * p->grid.OH * p->grid.OW, s->o);
    p->workers = p->blocks > 1 ? par_threads() : 1;
    p->x_plane = (int64_t)p->unit * p->x_row + GAP;
    p->y_plane = (int64_t)p->unit * p->y_row + GAP;
    p->sum_plane = (int64_t)s->c * kern_div_up(s->o, LANES_MAX) * LANES_MAX + GAP;
    p->own = scratch_of_worker((size_t)(p->A * p->A * (p->x_plane + p->y_plane)));
    p->sums = (size_t)(p->A * p->A * p->sum_plane);
    return p;
}

void   wino_wgrad_plan_free(wino_wgrad_plan *p) { mem_free(p); }
size_t wino_wgrad_scratch_floats(const wino_wgrad_plan *p) { return p->own * (size_t)p->workers + p->sums * (size_t)p->blocks; }

typedef struct {
    const wino_wgrad_plan *p;
    const float *x, *dy;
    bool accumulate;
    float *dw, *own, *sums;      /* scratch of the workers, of the blocks */
    float G[6][3];
} wgrad_job;

/* A unit: tiles from `first` on, and what their sums are added to, if anything. */
typedef struct {
    const wgrad_job *j;
    int64_t first;
    int tiles;
    bool add;
    float *vx, *vy, *sums;
} visit;

static void transform_tile(const visit *u, wino_place at, int64_t t)
{
    const wgrad_job *j = u->j;
    const wino_wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    const wino_grid *g = &p->grid;
    const bool beside = at.w + p->M < g->OW;
    wino_patch(s, p->M, j->x, at, beside && p->x_far, u->vx + t * p->x_row, p->x_plane);
    wino_in_args y = { .x_row = (int64_t)g->OW * s->o, .x_col = s->o, .ahead = beside && p->y_far ? p->M * s->o : 0,
                       .plane = p->y_plane, .channels = s->o, .v = u->vy + t * p->y_row,
                       .r1 = (int)kern_min(p->M, g->OH - at.h), .c1 = (int)kern_min(p->M, g->OW - at.w) };
    y.x = j->dy + ((int64_t)at.n * g->OH + at.h) * y.x_row + at.w * y.x_col;
    kern.wino_dy[p->M == 4](&y);
}

enum { SOME = 8 };

static void transform_some(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const visit *u = ctx;
    const wino_grid *g = &u->j->p->grid;
    wino_place at = wino_place_of(g, u->first + i * SOME);
    for (int64_t t = i * SOME; t < kern_min(u->tiles, (i + 1) * SOME); t++, at = wino_next(g, at)) transform_tile(u, at, t);
}

static int64_t panel_at_float(const wino_wgrad_plan *p, int k) { return (int64_t)panel_at(p->s.o, k).first * p->s.c; }

/* One place of the patch, one panel of out-channels. */
static void sum_place(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const visit *u = ctx;
    const wino_wgrad_plan *p = u->j->p;
    const int64_t place = i / p->panels;
    const int k = (int)(i % p->panels), c = p->s.c;
    const panel v = panel_at(p->s.o, k);
    const int wide = v.nv * kern.lanes, n = (int)kern_div_up(c, kern.wtallest[v.nv - 1]);
    float *sums = u->sums + place * p->sum_plane + panel_at_float(p, k);
    for (int t = 0; t < n; t++) {
        const int c0 = t * c / n, c1 = (t + 1) * c / n;
        const wtile_args a = { .x = u->vx + place * p->x_plane + c0, .dy = u->vy + place * p->y_plane + v.first, .x_step = p->x_row,
                               .dy_step = p->y_row, .imgs = 1, .lines = 1, .count = u->tiles, .lanes = v.lanes, .add = u->add,
                               .sum = sums + (int64_t)c0 * wide };
        kern.wtile[v.nv - 1][c1 - c0](&a);
    }
}

/* Inside a task the loops are serial, see par_for. */
static void run_block(void *ctx, int64_t block, int worker)
{
    const wgrad_job *j = ctx;
    const wino_wgrad_plan *p = j->p;
    const int64_t first = p->tiles * block / p->blocks, end = p->tiles * (block + 1) / p->blocks;
    visit u = { .j = j, .vx = j->own + p->own * (size_t)worker, .sums = j->sums + p->sums * (size_t)block };
    u.vy = u.vx + p->A * p->A * p->x_plane;
    for (u.first = first; u.first < end; u.first += p->unit) {
        u.tiles = (int)kern_min(p->unit, end - u.first);
        u.add = u.first > first;
        par_for(kern_div_up(u.tiles, SOME), transform_some, &u);
        par_for((int64_t)p->A * p->A * p->panels, sum_place, &u);
    }
}

/* Sums of all blocks, in order. */
static void add_blocks(const wino_wgrad_plan *p, float *sums, int count)
{
    for (int place = 0; place < p->A * p->A; place++, sums += p->sum_plane)
        for (int b = 1; b < p->blocks; b++)
            for (int i = 0; i < count; i++) sums[i] += sums[p->sums * (size_t)b + (size_t)i];
}

/* Some in-channels of one panel. */
enum { CHUNK = 16 };

static void put_chunk(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wino_wgrad_plan *p = j->p;
    const int chunks = (int)kern_div_up(p->s.c, CHUNK), c0 = (int)(i % chunks) * CHUNK, n = (int)kern_min(CHUNK, p->s.c - c0);
    const panel v = panel_at(p->s.o, (int)(i / chunks));
    const int wide = v.nv * kern.lanes;
    float turn[CHUNK * 9][WIDEST + 1], *sums = j->sums + panel_at_float(p, (int)(i / chunks)) + (int64_t)c0 * wide;
    add_blocks(p, sums, n * wide);
    for (int c = 0; c < n; c++) {
        wino_dw_args a = { .m = sums + (int64_t)c * wide, .plane = p->sum_plane, .nv = v.nv,
                           .G = j->G, .out = turn[c * 9], .step = WIDEST + 1 };
        kern.wino_dw[p->M == 4](&a);
    }
    wgrad_put(turn, n * 9, (v.nv - 1) * kern.lanes + v.lanes, j->accumulate, j->dw + ((int64_t)v.first * p->s.c + c0) * 9,
              (int64_t)p->s.c * 9);
}

void wino_wgrad_run(const wino_wgrad_plan *p, const float *x, const float *dy, bool accumulate, float *dw, float *scratch)
{
    wgrad_job j = { .p = p, .x = x, .dy = dy, .accumulate = accumulate, .dw = dw, .own = scratch, .sums = scratch + p->own * (size_t)p->workers };
    double G[6][3];
    wino_kernel_transform(p->M, G);
    for (int i = 0; i < p->A; i++)
        for (int k = 0; k < 3; k++) j.G[i][k] = (float)G[i][k];
    if (p->blocks == 1) run_block(&j, 0, 0);
    else par_for(p->blocks, run_block, &j);
    par_for((int64_t)p->panels * kern_div_up(p->s.c, CHUNK), put_chunk, &j);
}
