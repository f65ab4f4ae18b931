/* The weight gradient of a 3×3 convolution of stride 1 behind Winograd's transforms, see winograd.c: an output tile
 * is A'((G g G') · (B' d B))A of a patch d, so the gradient of g is G'(sum over tiles of (A dy A') · (B' d B))G, with
 * (M+2)² products of a channel with a channel for every tile where the definition has 9M².
 *
 * Tiles of all images stand in one row and are cut into units. The patches and output tiles of a unit are transformed
 * into scratch; then every place of the patch is a sum over tiles of channels × channels, on the weight gradient's register
 * tile; units are added up one after the other, and at the end comes the transform by G.
 *
 *   scratch  x [place][tile][c], dy [place][tile][o], sums [place][panel][c][16*NV] */
#include <string.h>

#include "core/kern/conv.h"

enum { WIDEST = 2 * LANES_MAX, GAP = 16 };              /* gaps keep rows and planes out of each other's cache lines */

struct wino_wgrad_plan {
    conv_shape s;
    int M, A;
    wino_grid grid;
    int64_t tiles, units;
    int unit, panels, x_row, y_row;
    int64_t x_plane, y_plane, sum_plane;
};

/* Few tiles to a unit load and store the sums often, many do not stay near. */
enum { UNIT_LEAST = 128, UNIT_MOST = 512, UNIT_FLOATS = 1 << 20 };

static int unit_of(const conv_shape *s, int M)
{
    const int64_t tiles = wino_tiles(s, M), tile = (int64_t)(M + 2) * (M + 2) * (wino_row_floats(s->c) + wino_row_floats(s->o));
    const int64_t most = kern_max(UNIT_LEAST, kern_min(UNIT_MOST, UNIT_FLOATS / tile));
    return (int)kern_div_up(tiles, kern_div_up(tiles, most));
}

/* In multiply-adds that the register tile does in the same time, from the 3×3 layers of ResNet-20, ResNet-34 and VGG19. */
enum { TRANSFORM_2 = 700, TRANSFORM_4 = 1900, STREAM = 20, NEAR_STREAM = 4, CACHED_FLOATS = 1 << 18 };
static const double direct_loss = 1.3, wino_loss = 1.2;

static double wino_cost(const conv_shape *s, int M)
{
    const double places = (M + 2) * (M + 2), pairs = (double)s->c * s->o, tiles = (double)wino_tiles(s, M);
    const double channels = (double)(kern_div_up(s->c, LANES_MAX) + kern_div_up(s->o, LANES_MAX)) * LANES_MAX;
    const double units = (double)kern_div_up((int64_t)tiles, unit_of(s, M)), stream = places * pairs > CACHED_FLOATS ? STREAM : NEAR_STREAM;
    return wino_loss * places * tiles * pairs + (M == 2 ? TRANSFORM_2 : TRANSFORM_4) * tiles * channels + stream * places * pairs * (units + 1);
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
                            .unit = unit_of(s, M), .panels = panel_count(s->o), .x_row = wino_row_floats(s->c), .y_row = wino_row_floats(s->o) };
    p->units = kern_div_up(p->tiles, p->unit);
    p->x_plane = (int64_t)p->unit * p->x_row + GAP;
    p->y_plane = (int64_t)p->unit * p->y_row + GAP;
    p->sum_plane = (int64_t)s->c * kern_div_up(s->o, LANES_MAX) * LANES_MAX + GAP;
    return p;
}

void   wino_wgrad_plan_free(wino_wgrad_plan *p) { mem_free(p); }
size_t wino_wgrad_scratch_floats(const wino_wgrad_plan *p)
{
    return (size_t)(p->A * p->A * (p->x_plane + p->y_plane + p->sum_plane));
}

typedef struct {
    const wino_wgrad_plan *p;
    const float *x, *dy;
    bool accumulate;
    float *dw, *vx, *vy, *sums;
    int64_t first;               /* tile of the unit at hand */
    int tiles;                   /* … and how many */
    float G[6][3];
} wgrad_job;

static void transform_tile(const wgrad_job *j, wino_place at, int64_t i)
{
    const wino_wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    const wino_grid *g = &p->grid;
    wino_patch(s, p->M, j->x, at, j->vx + i * p->x_row, p->x_plane);
    wino_in_args y = { .x_row = (int64_t)g->OW * s->o, .x_col = s->o, .plane = p->y_plane, .channels = s->o, .v = j->vy + i * p->y_row,
                       .r1 = (int)kern_min(p->M, g->OH - at.h), .c1 = (int)kern_min(p->M, g->OW - at.w) };
    y.x = j->dy + ((int64_t)at.n * g->OH + at.h) * y.x_row + at.w * y.x_col;
    kern.wino_dy[p->M == 4](&y);
}

enum { SOME = 8 };

static void transform_some(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    wino_place at = wino_place_of(&j->p->grid, j->first + i * SOME);
    for (int64_t t = i * SOME; t < kern_min(j->tiles, (i + 1) * SOME); t++, at = wino_next(&j->p->grid, at)) transform_tile(j, at, t);
}

static int64_t panel_at_float(const wino_wgrad_plan *p, int k) { return (int64_t)panel_at(p->s.o, k).first * p->s.c; }

/* One place of the patch, one panel of out-channels. */
static void sum_place(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wino_wgrad_plan *p = j->p;
    const int64_t place = i / p->panels;
    const int k = (int)(i % p->panels), c = p->s.c;
    const panel v = panel_at(p->s.o, k);
    const int wide = v.nv * kern.lanes, n = (int)kern_div_up(c, kern.wtallest[v.nv - 1]);
    float *sums = j->sums + place * p->sum_plane + panel_at_float(p, k);
    for (int t = 0; t < n; t++) {
        const int c0 = t * c / n, c1 = (t + 1) * c / n;
        const wtile_args a = { .x = j->vx + place * p->x_plane + c0, .dy = j->vy + place * p->y_plane + v.first, .x_step = p->x_row,
                               .dy_step = p->y_row, .imgs = 1, .lines = 1, .count = j->tiles, .lanes = v.lanes, .add = j->first > 0,
                               .sum = sums + (int64_t)c0 * wide };
        kern.wtile[v.nv - 1][c1 - c0](&a);
    }
}

/* Some in-channels of one panel. The odd width keeps the columns out of each other's cache lines. */
enum { CHUNK = 16 };

static void put_chunk(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wino_wgrad_plan *p = j->p;
    const int chunks = (int)kern_div_up(p->s.c, CHUNK), c0 = (int)(i % chunks) * CHUNK, n = (int)kern_min(CHUNK, p->s.c - c0);
    const panel v = panel_at(p->s.o, (int)(i / chunks));
    const int wide = v.nv * kern.lanes;
    float turn[CHUNK * 9][WIDEST + 1];
    for (int c = 0; c < n; c++) {
        wino_dw_args a = { .m = j->sums + panel_at_float(p, (int)(i / chunks)) + (int64_t)(c0 + c) * wide, .plane = p->sum_plane, .nv = v.nv,
                           .G = j->G, .out = turn[c * 9], .step = WIDEST + 1 };
        kern.wino_dw[p->M == 4](&a);
    }
    for (int o = 0; o < (v.nv - 1) * kern.lanes + v.lanes; o++) {
        float *dw = j->dw + ((int64_t)(v.first + o) * p->s.c + c0) * 9;
        for (int r = 0; r < n * 9; r++) dw[r] = j->accumulate ? dw[r] + turn[r][o] : turn[r][o];
    }
}

void wino_wgrad_run(const wino_wgrad_plan *p, const float *x, const float *dy, bool accumulate, float *dw, float *scratch)
{
    wgrad_job j = { .p = p, .x = x, .dy = dy, .accumulate = accumulate, .dw = dw, .vx = scratch };
    double G[6][3];
    j.vy = j.vx + p->A * p->A * p->x_plane;
    j.sums = j.vy + p->A * p->A * p->y_plane;
    wino_kernel_transform(p->M, G);
    for (int i = 0; i < p->A; i++)
        for (int k = 0; k < 3; k++) j.G[i][k] = (float)G[i][k];
    for (; j.first < p->tiles; j.first += p->unit) {
        j.tiles = (int)kern_min(p->unit, p->tiles - j.first);
        par_for(kern_div_up(j.tiles, SOME), transform_some, &j);
        par_for((int64_t)p->A * p->A * p->panels, sum_place, &j);
    }
    par_for((int64_t)p->panels * kern_div_up(p->s.c, CHUNK), put_chunk, &j);
}
