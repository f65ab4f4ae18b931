/* Weight gradient of 1×1 kernels with many channels of both sides: a product of matrices, dw[o][c] = sum of
 * dy[pixel][o]·x[pixel][c].
 *
 * A task is a rectangle of the weights, some tiles of in-channels and some panels of out-channels, so sums are added to by
 * one thread, in the order of the pixels. These go by in stretches: the first to read the tiles' channels or a panel's
 * puts them side by side, where the others find them line after line in the two nearest caches; what comes next is fetched.
 *
 *   memory of a worker: x [tile][pixel][TILE_MAX], dy [pixel][WIDEST], sums [panel][c][WIDEST or what is full of it] */
#include <string.h>

#include "core/kern/conv.h"

struct wgrad_one_plan {
    conv_shape s;
    int64_t pixels;
    int tiles, panels;           /* of in-channels, of out-channels */
    int c_parts, o_parts;        /* tasks that share them */
    int workers;
    int64_t x_floats, sums_floats, own_floats;           /* of a worker: a stretch of x, sums of a panel; all */
};

/* STRETCH pixels of a panel and of one tile fit in the nearest cache, of TILES_MOST tiles in the next. For each thread
 * there are TASKS tasks or a few more. Below WEIGHTS_LEAST, and where fewer than PANELS_LEAST share what is copied of x, that
 * takes longer than it brings. */
enum { STRETCH = 128, TILES_MOST = 24, TASKS = 4, WEIGHTS_LEAST = 24576, PANELS_LEAST = 3 };

bool wgrad_one_can(const conv_shape *s)
{
    return is_one(s) && s->groups == 1 && (int64_t)s->c * s->o >= WEIGHTS_LEAST && panel_count(s->o) >= PANELS_LEAST;
}

/* Of the rectangles the one that takes least, with four multiply-adds' time for every float copied. */
static void cut(wgrad_one_plan *p)
{
    double least = 1e300;
    const int most = 2 * TASKS * p->workers;
    for (int c = (int)kern_div_up(p->tiles, TILES_MOST); c <= p->tiles; c++)
        for (int o = 1; o <= p->panels && (o == 1 || c * o <= most); o++) {
            const double t = (double)kern_div_up(p->tiles, c), v = (double)kern_div_up(p->panels, o);
            const double cost = (double)kern_div_up((int64_t)c * o, p->workers) * (t * v * kern.wtallest[1] + 4 * (t + v));
            if (cost < least) { least = cost; p->c_parts = c; p->o_parts = o; }
        }
}

static int first_channel(const wgrad_one_plan *p, int tile) { return (int)((int64_t)tile * p->s.c / p->tiles); }

wgrad_one_plan *wgrad_one_plan_new(const conv_shape *s, err *e)
{
    wgrad_one_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    *p = (wgrad_one_plan){ .s = *s, .pixels = (int64_t)s->n * s->h * s->w, .tiles = (int)kern_div_up(s->c, kern.wtallest[1]),
                           .panels = panel_count(s->o), .workers = par_threads() };
    cut(p);
    const int64_t tiles = kern_div_up(p->tiles, p->c_parts), panels = kern_div_up(p->panels, p->o_parts);
    p->x_floats = tiles * STRETCH * TILE_MAX;
    p->sums_floats = tiles * kern.wtallest[1] * WIDEST;
    p->own_floats = (int64_t)scratch_of_worker((size_t)(p->x_floats + STRETCH * WIDEST + panels * p->sums_floats));
    return p;
}

void wgrad_one_plan_free(wgrad_one_plan *p) { mem_free(p); }

size_t wgrad_one_scratch_floats(const wgrad_one_plan *p) { return (size_t)(p->own_floats * p->workers); }

typedef struct {
    const wgrad_one_plan *p;
    const float *x, *dy;
    const conv_prologue *pro;
    bool accumulate;
    float *dw, *own;             /* the latter of all workers */
} job;

/* Of a task: tiles [t0, t1) and panels [v0, v1); its memory. */
typedef struct { int t0, t1, v0, v1; float *x, *dy, *sums; } part;

static int part_from(int all, int parts, int i) { return (int)((int64_t)all * i / parts); }

static part part_at(const job *j, int64_t i, int worker)
{
    const wgrad_one_plan *p = j->p;
    const int c = (int)(i % p->c_parts), o = (int)(i / p->c_parts);
    float *own = j->own + worker * p->own_floats;
    return (part){ part_from(p->tiles, p->c_parts, c), part_from(p->tiles, p->c_parts, c + 1), part_from(p->panels, p->o_parts, o),
                   part_from(p->panels, p->o_parts, o + 1), own, own + p->x_floats, own + p->x_floats + STRETCH * WIDEST };
}

static float *x_of(const part *q, int tile) { return q->x + (int64_t)(tile - q->t0) * STRETCH * TILE_MAX; }
static float *sums_of(const job *j, const part *q, int v) { return q->sums + (v - q->v0) * j->p->sums_floats; }

/* A tile's channels of n pixels as the prologue makes them, and those beside that fill the vector. */
static void prepare_x(const job *j, const part *q, int tile, int64_t at, int n)
{
    const int c = j->p->s.c, c0 = first_channel(j->p, tile), c1 = first_channel(j->p, tile + 1);
    kern.slice(&(slice_args){ .rows = n, .x_step = c, .y_step = TILE_MAX, .x = j->x + at * c + c0, .y = x_of(q, tile),
                              .floats = (int)kern_min(kern_div_up(c1 - c0, kern.lanes) * kern.lanes, c - c0),
                              .scale = j->pro->scale + c0, .shift = j->pro->shift + c0,
                              .lo = act_low(j->pro->act), .hi = act_high(j->pro->act) });
}

/* n pixels from `at` on. The first panel's tiles copy their channels, and the first tile of a panel copies that, by the
 * way. The first tile also fetches the panel that follows; each tile its channels of the next stretch, beside one of the
 * panels. */
static void add_stretch(const job *j, const part *q, int64_t at, int n)
{
    const wgrad_one_plan *p = j->p;
    const conv_shape *s = &p->s;
    const bool more = at + 2 * STRETCH <= p->pixels;
    for (int t = q->t0; j->pro && t < q->t1; t++) prepare_x(j, q, t, at, n);
    for (int i = q->v0; i < q->v1; i++) {
        const panel v = panel_at(s->o, i);
        const float *x = j->x + at * s->c, *dy = j->dy + at * s->o + v.first, *dy_next = NULL;
        if (i + 1 < q->v1) dy_next = j->dy + at * s->o + panel_at(s->o, i + 1).first;
        else if (more) dy_next = j->dy + (at + n) * s->o + panel_at(s->o, q->v0).first;
        for (int t = q->t0; t < q->t1; t++) {
            const int c0 = first_channel(p, t), done = c0 - first_channel(p, q->t0);
            const bool copies_x = i == q->v0 && !j->pro, copies_dy = t == q->t0;
            wtile_args a = { .x = copies_x ? x + c0 : x_of(q, t), .x_step = copies_x ? s->c : TILE_MAX,
                             .dy = copies_dy ? dy : q->dy, .dy_step = copies_dy ? s->o : WIDEST,
                             .imgs = 1, .lines = 1, .count = n, .lanes = v.lanes, .add = at > 0, .x_far = s->c, .dy_far = s->o,
                             .x_to = copies_x && q->v1 > q->v0 + 1 ? x_of(q, t) : NULL,
                             .dy_to = copies_dy && q->t1 > q->t0 + 1 ? q->dy : NULL,
                             .sum = sums_of(j, q, i) + (int64_t)done * v.nv * kern.lanes };
            const bool x_too = (t - q->t0) % (q->v1 - q->v0) == i - q->v0;
            if (more && x_too) a.x_ahead = floats_to(a.x, x + n * s->c + c0);
            if (dy_next && t == q->t0) a.dy_ahead = floats_to(a.dy, dy_next);
            kern.wtile[v.nv - 1][first_channel(p, t + 1) - c0](&a);
        }
    }
}

static void put(const job *j, const part *q, int i)
{
    const wgrad_one_plan *p = j->p;
    const panel v = panel_at(p->s.o, i);
    const int c0 = first_channel(p, q->t0), c1 = first_channel(p, q->t1), wide = v.nv * kern.lanes;
    float turn[WGRAD_CHUNK][WIDEST + 1];
    for (int c = c0, n; c < c1; c += n) {
        n = (int)kern_min(WGRAD_CHUNK, c1 - c);
        for (int r = 0; r < n; r++) memcpy(turn[r], sums_of(j, q, i) + (int64_t)(c - c0 + r) * wide, (size_t)wide * sizeof **turn);
        wgrad_put(turn, n, (v.nv - 1) * kern.lanes + v.lanes, j->accumulate, j->dw + (int64_t)v.first * p->s.c + c, p->s.c);
    }
}

static void run_part(void *ctx, int64_t i, int worker)
{
    const job *j = ctx;
    const part q = part_at(j, i, worker);
    for (int64_t at = 0; at < j->p->pixels; at += STRETCH) add_stretch(j, &q, at, (int)kern_min(STRETCH, j->p->pixels - at));
    for (int v = q.v0; v < q.v1; v++) put(j, &q, v);
}

void wgrad_one_run(const wgrad_one_plan *p, const float *x, const conv_prologue *pro, const float *dy, bool accumulate, float *dw,
                   float *scratch)
{
    job j = { p, x, dy, pro, accumulate, dw, scratch };
    par_for((int64_t)p->c_parts * p->o_parts, run_part, &j);
}
