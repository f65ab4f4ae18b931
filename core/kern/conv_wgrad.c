/* Weight gradient on the register tile: in-channels × out-channels of one tap, summed over pixels.
 *
 * Pixels are cut into units that stay in the nearest cache (some images, or some rows of one), and
 * consecutive units into blocks. A task is one block and one panel of out-channels; for each of its
 * units it visits every tile of in-channels and every tap. The sums of the blocks are then added in
 * order. Padding costs nothing: each tap sums over the pixels that it finds inside the image.
 *
 * Where sums are few and pixels many, pixels come from far: then a task is one block and all panels,
 * so that each unit is fetched once, while the one before it is summed.
 *
 * A tile reads a few channels of each pixel. Where pixels have many, those few are first copied
 * side by side into memory of the worker: the panel's slice of dy for all tiles and taps, the
 * tile's slice of x for all taps. Where pixels have few, a row of taps is one stretch of x, whose
 * values are summed like channels; only where the border cuts it, tap by tap.
 *
 * A block's sums: [group][panel][tap][c][16*NV], like packed weights. A single block needs those of
 * one panel only, in memory of the worker. */
#include <assert.h>
#include <string.h>

#include "core/kern/conv.h"

struct wgrad_plan {
    conv_shape s;
    int OH, OW, cg, og;
    int imgs, rows;              /* of a unit */
    int units_n, units_h, blocks;
    int panels;                  /* of all groups */
    int64_t group_floats;        /* sums of one group */
    bool near, together, copy_dy, copy_x, prologue, joins;
    bool merge;                  /* a row of taps is summed as one, */
    int q0, q1;                  /* … for these outputs of a row */
    int workers;
    int64_t dy_floats, x_floats, own_floats;             /* of one worker: slices of a unit, or all; with sums */
};

/* Each visit of a tile loads and stores its sums, so a unit has at least FEWEST pixels, more where
 * the sums of a panel come from far, and is as large as lets its UNIT_FLOATS stay in the cache. Where
 * many taps read the same slices, it has about NEAR_PIXELS, so that these stay in the nearest. All sums
 * together are few up to SUMS_NEAR. */
enum { FEWEST = WGRAD_UNIT, UNIT_FLOATS = 1 << 16, SUMS_FAR = 1 << 16, NEAR_PIXELS = 192, NEAR_SUMS_FAR = 1 << 18, NEAR_CHANNELS = 16,
       SUMS_NEAR = 1 << 14 };

static int64_t panel_floats(const wgrad_plan *p, int i)
{
    int64_t lanes = 0;
    for (int k = 0; k < i; k++) lanes += panel_at(p->og, k).nv * kern.lanes;
    return lanes * p->s.kh * p->s.kw * p->cg;
}

/* 1×1: all pixels are alike; "rows" of FEWEST where they divide, else of an image. */
static void make_one_image(conv_shape *s)
{
    int64_t all = (int64_t)s->n * s->h * s->w;
    if (all % FEWEST) return;
    s->n = 1;
    s->h = (int)(all / FEWEST);
    s->w = FEWEST;
}

/* Rows of the image that the taps of `rows` output rows reach. */
static int64_t rows_read(const conv_shape *s, int rows)
{
    return kern_min(s->h, (int64_t)(rows - 1) * s->sh + (int64_t)(s->kh - 1) * s->dh + 1);
}

/* Output rows of a unit, of one image or of several; `most` lets there be enough units. */
static int64_t unit_rows(const wgrad_plan *p, int64_t most)
{
    const conv_shape *s = &p->s;
    int64_t sums = panel_floats(p, 1), row = (int64_t)p->OW * s->o + (int64_t)s->sh * s->w * s->c;
    if (p->near)
        return kern_max((sums > NEAR_SUMS_FAR ? 2 : 1) * NEAR_PIXELS / p->OW, kern_min(s->kh, p->OH));
    if (p->together) return kern_div_up(FEWEST, p->OW);
    return kern_max(kern_div_up(sums > SUMS_FAR ? 4 * FEWEST : FEWEST, p->OW), kern_min(UNIT_FLOATS / row, most));
}

static bool is_few(int64_t sums, int64_t values) { return sums <= SUMS_NEAR && values >= PIECES * sums; }

/* … units of WGRAD_UNIT pixels, and blocks for two threads at least (of the PIECES/2 that there are at most, threads beyond
 * have nothing to do); and a data gradient that wants no scratch. */
bool wgrad_joins(const conv_shape *s)
{
    const int64_t pixels = (int64_t)s->n * s->h * s->w, sums = (int64_t)s->c * kern_div_up(s->o, kern.lanes) * kern.lanes;
    return is_one(s) && s->groups == 1 && pixels % WGRAD_UNIT == 0 && is_few(sums, pixels * (s->c + s->o))
        && conv_macs(s) >= 2 * PIECE_MACS && pixels >= 2 * WGRAD_UNIT && pixels <= INT32_MAX && !tile_is_long(s->o);
}

static void plan_units(wgrad_plan *p)
{
    const conv_shape *s = &p->s;
    /* Blocks: enough for PIECES/2 tasks, but their sums should not outweigh what is summed. */
    int64_t map = (int64_t)p->OH * p->OW, work = conv_macs(s) / PIECE_MACS, sums = p->group_floats * s->groups;
    int64_t values = s->n * map * (s->c + s->o);
    p->together = !p->near && is_few(sums, values);
    int64_t want = kern_max(1, kern_min(kern_div_up(kern_min(PIECES / 2, work), p->together ? 1 : p->panels), kern_div_up(values, sums)));
    int64_t rows = unit_rows(p, (int64_t)s->n * p->OH / want);
    p->imgs = (int)kern_max(1, kern_min(s->n, rows / p->OH));
    p->rows = (int)kern_div_up(p->OH, kern_div_up(p->OH, kern_min(rows, p->OH)));
    p->units_n = (int)kern_div_up(s->n, p->imgs);
    p->units_h = (int)kern_div_up(p->OH, p->rows);
    p->blocks = (int)kern_min(want, (int64_t)p->units_n * p->units_h);
    p->together &= p->blocks > 1;
}

/* Output positions [*q0, *q1) of [from, to) whose tap lies inside [0, size). */
static void inside(int from, int to, int stride, int offset, int size, int *q0, int *q1)
{
    *q0 = offset < 0 ? (int)kern_max(from, (-offset + stride - 1) / stride) : from;
    *q1 = offset < size ? (int)kern_min(to, (size - 1 - offset) / stride + 1) : from;
    if (*q1 < *q0) *q1 = *q0;
}

static void plan_merge(wgrad_plan *p)
{
    const conv_shape *s = &p->s;
    int none;
    p->merge = !p->near && s->groups == 1 && s->kw > 1 && s->dw == 1;
    inside(0, p->OW, s->sw, -s->pl, s->w, &p->q0, &none);
    p->q0 = (int)kern_min(p->q0, p->OW);
    inside(p->q0, p->OW, s->sw, s->kw - 1 - s->pl, s->w, &none, &p->q1);
}

static void plan_copies(wgrad_plan *p)
{
    const conv_shape *s = &p->s;
    p->copy_dy = p->near && s->o > 2 * kern.lanes;
    p->copy_x = p->near && s->c > 2 * TILE_MAX;
    const int64_t pixels = (int64_t)p->imgs * p->rows * p->OW;
    p->dy_floats = p->joins ? pixels * s->o : p->copy_dy ? pixels * 2 * kern.lanes : 0;
    p->x_floats = p->copy_x || p->prologue ? p->imgs * rows_read(s, p->rows) * s->w * (p->copy_x ? TILE_MAX : s->c) : 0;
    p->own_floats = p->dy_floats + p->x_floats + (p->blocks == 1 ? panel_floats(p, 1) : 0);
    p->workers = par_threads();
}

wgrad_plan *wgrad_plan_new(const conv_shape *s, bool prologue, bool joins, err *e)
{
    wgrad_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    p->s = *s;
    p->prologue = prologue;
    p->joins = joins;
    if (is_one(s)) make_one_image(&p->s);
    p->OH = conv_out_h(&p->s);
    p->OW = conv_out_w(&p->s);
    p->cg = s->c / s->groups;
    p->og = s->o / s->groups;
    p->panels = s->groups * panel_count(p->og);
    p->group_floats = panel_floats(p, panel_count(p->og));
    p->near = s->kh * s->kw > 1 && s->c >= NEAR_CHANNELS;
    plan_units(p);
    plan_copies(p);
    plan_merge(p);
    assert(!joins || (p->together && p->imgs == 1 && p->rows * p->OW == WGRAD_UNIT));    /* as wgrad_joins foresaw */
    return p;
}

int wgrad_blocks(const wgrad_plan *p) { return p->blocks; }

void wgrad_plan_free(wgrad_plan *p) { mem_free(p); }

static int64_t shared_floats(const wgrad_plan *p)
{
    return p->blocks == 1 ? 0 : p->group_floats * p->s.groups * p->blocks;
}

size_t wgrad_scratch_floats(const wgrad_plan *p)
{
    return (size_t)(shared_floats(p) + p->own_floats * p->workers);
}

typedef struct {
    const wgrad_plan *p;
    const float *x, *dy;
    const conv_prologue *pro;
    const wgrad_join *join;
    bool accumulate;
    float *dw, *sums, *own;      /* sums of all blocks; memory of the workers */
} wgrad_job;

/* A piece of work: one unit, one panel of a group. */
typedef struct {
    int n0, imgs, r0, rows;
    int h0, lines;               /* rows of the image that are read */
    int group;
    panel v;
    bool add;                    /* to sums of units before */
    float *sums, *x, *dy;        /* of the panel; copies, or what is read instead */
    fetch next;                  /* x of the unit that follows */
    bool more;                   /* it follows, and what it reads lies side by side with this one's */
} visit;

static void copy_dy(const wgrad_job *j, const visit *u)
{
    const wgrad_plan *p = j->p;
    int64_t pixels = (int64_t)u->rows * p->OW, o = u->group * p->og + u->v.first;
    for (int n = 0; n < u->imgs; n++)
        kern.slice(&(slice_args){ .rows = pixels, .floats = (u->v.nv - 1) * kern.lanes + u->v.lanes, .x_step = p->s.o, .y_step = 2 * kern.lanes,
                                  .x = j->dy + ((int64_t)(u->n0 + n) * p->OH + u->r0) * p->OW * p->s.o + o,
                                  .y = u->dy + n * pixels * 2 * kern.lanes });
}

/* Channels from c0 of the group on: TILE_MAX of them, where the pixel has so many left. */
static void copy_x(const wgrad_job *j, const visit *u, int c0)
{
    const conv_shape *s = &j->p->s;
    int64_t pixels = (int64_t)u->lines * s->w, c = u->group * j->p->cg + c0;
    for (int n = 0; n < u->imgs; n++)
        kern.slice(&(slice_args){ .rows = pixels, .floats = (int)kern_min(TILE_MAX, s->c - c), .x_step = s->c, .y_step = TILE_MAX,
                                  .x = j->x + ((int64_t)(u->n0 + n) * s->h + u->h0) * s->w * s->c + c, .y = u->x + n * pixels * TILE_MAX });
}

/* All of the unit, as the prologue says: 1×1, so its pixels lie side by side. */
static void prepare_x(const wgrad_job *j, const visit *u)
{
    const conv_shape *s = &j->p->s;
    affine_forward((int64_t)u->imgs * u->lines * s->w, s->c, j->x + ((int64_t)u->n0 * s->h + u->h0) * s->w * s->c,
                   j->pro->scale, j->pro->shift, NULL, j->pro->act, u->x);
}

/* Height of the tiles over cg in-channels, as even as can be. */
static int tile_count(int cg, int nv) { return (int)kern_div_up(cg, kern.wtallest[nv - 1]); }

/* From a unit's dy to what the next one's is made of: the first tile fetches one half, the second the other. */
static int64_t to_join(const wgrad_job *j, const visit *u, int c0)
{
    const wgrad_plan *p = j->p;
    const float *from = c0 == 0 ? j->dy : c0 == p->cg / tile_count(p->cg, u->v.nv) ? j->join->norm->x : NULL;
    const int64_t at = ((int64_t)u->r0 + u->rows) * p->OW * p->s.o;
    return from ? floats_to(u->dy, from + at) : 0;
}

/* One tap of one tile for outputs [from, to) of a row: in-channels c0 … c0+height, those of the taps beside it
 * counted on where a row of taps is one. add: to sums that are there already. */
static void sum_tap(const wgrad_job *j, visit *u, int a, int b, int c0, int height, int from, int to, bool add)
{
    const wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    int oh = a * s->dh - s->pt, ow = b * s->dw - s->pl, l0, l1, q0, q1, wide = u->v.nv * kern.lanes;
    inside(u->r0, u->r0 + u->rows, s->sh, oh, s->h, &l0, &l1);
    inside(from, to, s->sw, ow, s->w, &q0, &q1);
    const bool fetches = u->more && a + b == 0;
    fetch_some(&u->next);
    if (add && (l1 == l0 || q1 == q0)) return;
    const float *x = p->copy_x ? u->x : (j->pro ? u->x : j->x + ((int64_t)u->n0 * s->h + u->h0) * s->w * s->c) + u->group * p->cg + c0;
    const float *dy = p->copy_dy ? u->dy : (j->join ? u->dy : j->dy + ((int64_t)u->n0 * p->OH + u->r0) * p->OW * s->o)
                                             + u->group * p->og + u->v.first;
    int64_t xc = p->copy_x ? TILE_MAX : s->c, xh = p->copy_x || j->pro ? u->lines : s->h;
    int64_t dc = p->copy_dy ? 2 * kern.lanes : s->o, dh = p->copy_dy || j->join ? u->rows : p->OH;
    wtile_args t = {
        .x = x + ((int64_t)(l0 * s->sh + oh - u->h0) * s->w + q0 * s->sw + ow) * xc,
        .dy = dy + ((int64_t)(l0 - u->r0) * p->OW + q0) * dc,
        .x_img = xh * s->w * xc, .dy_img = dh * p->OW * dc,
        .x_line = (int64_t)s->sh * s->w * xc, .dy_line = p->OW * dc,
        .x_step = s->sw * xc, .dy_step = dc, .x_far = s->sw * xc, .dy_far = dc,
        .imgs = u->imgs, .lines = q1 > q0 ? l1 - l0 : 0, .count = q1 - q0, .lanes = u->v.lanes, .add = add,
        .x_ahead = fetches && !j->pro && (!p->together || u->v.first == 0) ? (int64_t)u->imgs * u->lines * s->w * s->c : 0,
        .dy_ahead = !fetches ? 0 : j->join ? to_join(j, u, c0) : c0 == 0 ? (int64_t)u->imgs * u->rows * p->OW * s->o : 0,
        .sum = u->sums + ((int64_t)(a * s->kw + b) * p->cg + c0) * wide };
    kern.wtile[u->v.nv - 1][height](&t);
}

/* Rows of taps where they are whole, single taps beside. */
static void sum_merged(const wgrad_job *j, visit *u)
{
    const wgrad_plan *p = j->p;
    const int cg = p->cg, all = p->s.kw * cg, wide = tile_count(all, u->v.nv), n = tile_count(cg, u->v.nv);
    for (int a = 0; a < p->s.kh; a++) {
        for (int k = 0; k < wide; k++) {
            int r0 = k * all / wide, r1 = (k + 1) * all / wide;
            sum_tap(j, u, a, 0, r0, r1 - r0, p->q0, p->q1, u->add);
        }
        for (int i = 0; i < p->s.kw * n; i++) {
            int b = i / n, c0 = i % n * cg / n, c1 = (i % n + 1) * cg / n;
            sum_tap(j, u, a, b, c0, c1 - c0, 0, p->q0, true);
            sum_tap(j, u, a, b, c0, c1 - c0, p->q1, p->OW, true);
        }
    }
}

static void sum_unit(const wgrad_job *j, visit *u)
{
    const wgrad_plan *p = j->p;
    int n = tile_count(p->cg, u->v.nv);
    if (p->copy_dy) copy_dy(j, u);
    if (j->pro && (!p->together || u->v.first + u->group == 0)) prepare_x(j, u);
    if (p->merge) { sum_merged(j, u); return; }
    for (int k = 0; k < n; k++) {
        int c0 = k * p->cg / n, c1 = (k + 1) * p->cg / n;
        if (p->copy_x) copy_x(j, u, c0);
        for (int a = 0; a < p->s.kh; a++)
            for (int b = 0; b < p->s.kw; b++) sum_tap(j, u, a, b, c0, c1 - c0, 0, p->OW, u->add);
    }
}

/* The unit's pixels. Where many visits follow, the input of the next unit is fetched by the way. */
static void go_to(const wgrad_job *j, visit *u, int64_t unit, bool more)
{
    const wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    u->n0 = (int)(unit / p->units_h) * p->imgs;
    u->r0 = (int)(unit % p->units_h) * p->rows;
    u->imgs = (int)kern_min(p->imgs, s->n - u->n0);
    u->rows = (int)kern_min(p->rows, p->OH - u->r0);
    u->h0 = (int)kern_min(s->h - 1, kern_max(0, u->r0 * s->sh - s->pt));
    u->lines = (int)kern_min(s->h - u->h0, rows_read(s, u->rows));
    u->next = (fetch){ 0 };
    u->more = more && !p->near;
    if (!more || !p->near) return;
    int64_t line = (int64_t)s->w * s->c, whole = (int64_t)u->imgs * s->h * line;
    int64_t floats = p->units_h == 1 ? whole : (int64_t)p->rows * s->sh * line;
    const float *from = j->x + ((int64_t)u->n0 * s->h + u->h0) * line + (p->units_h == 1 ? whole : u->lines * line);
    const float *end = j->x + s->n * s->h * line;
    int64_t visits = (int64_t)tile_count(p->cg, u->v.nv) * s->kh * s->kw;
    if (from < end) u->next = (fetch){ (const char *)from, (const char *)(from + kern_min(floats, end - from)),
                                       kern_div_up(floats * 4, visits) };
}

void wgrad_put(float (*turned)[WIDEST + 1], int rows, int outs, bool accumulate, float *dw, int64_t step)
{
    for (int o = 0; o < outs; o++, dw += step)
        for (int r = 0; r < rows; r++) dw[r] = accumulate ? dw[r] + turned[r][o] : turned[r][o];
}

/* WGRAD_CHUNK weights of one out-channel are one piece of the last pass. */
static int chunks_of(const wgrad_plan *p) { return (int)kern_div_up((int64_t)p->cg * p->s.kh * p->s.kw, WGRAD_CHUNK); }

/* Adds the blocks and puts the result where PyTorch wants it: some rows (c, tap) of a panel become columns. */
static void put_rows(const wgrad_job *j, int which, int chunk, const float *sums)
{
    const wgrad_plan *p = j->p;
    int taps = p->s.kh * p->s.kw, rows = p->cg * taps;
    int r0 = chunk * WGRAD_CHUNK, n = (int)kern_min(WGRAD_CHUNK, rows - r0);
    int per_group = panel_count(p->og), group = which / per_group;
    panel v = panel_at(p->og, which % per_group);
    int wide = v.nv * kern.lanes;
    int64_t step = p->group_floats * p->s.groups;
    float turn[WGRAD_CHUNK][WIDEST + 1];
    for (int r = 0; r < n; r++) {
        const float *from = sums + ((int64_t)((r0 + r) % taps) * p->cg + (r0 + r) / taps) * wide;
        memcpy(turn[r], from, (size_t)wide * sizeof *from);
        for (int k = 1; k < p->blocks; k++)
            for (int o = 0; o < wide; o++) turn[r][o] += from[k * step + o];
    }
    wgrad_put(turn, n, (v.nv - 1) * kern.lanes + v.lanes, j->accumulate, j->dw + (int64_t)(group * p->og + v.first) * rows + r0, rows);
}

static void sum_block(void *ctx, int64_t i, int worker)
{
    const wgrad_job *j = ctx;
    const wgrad_plan *p = j->p;
    int per_group = panel_count(p->og), panels = p->together ? p->panels : 1;
    int block = (int)(i * panels / p->panels), which = (int)(i * panels % p->panels);
    int64_t units = (int64_t)p->units_n * p->units_h;
    int64_t first = units * block / p->blocks, last = units * (block + 1) / p->blocks;
    float *own = j->own + worker * p->own_floats;
    visit u = { .group = which / per_group, .v = panel_at(p->og, which % per_group),
                .x = own, .dy = own + p->x_floats };
    for (int64_t k = first; k < last; k++) {
        u.add = k > first;
        go_to(j, &u, k, k + 1 < last);
        if (j->join) bn_grad_rows(j->join->norm, k * WGRAD_UNIT, WGRAD_UNIT, j->dy, u.dy);
        for (int v = which; v < which + panels; v++) {
            u.group = v / per_group;
            u.v = panel_at(p->og, v % per_group);
            u.sums = p->blocks == 1 ? u.dy + p->dy_floats
                   : j->sums + p->group_floats * (block * p->s.groups + u.group) + panel_floats(p, v % per_group);
            sum_unit(j, &u);
        }
        if (j->join) j->join->then(j->join->ctx, block, k == first, k * WGRAD_UNIT, u.dy);
    }
    if (p->blocks == 1)
        for (int c = 0; c < chunks_of(p); c++) put_rows(j, which, c, u.sums);
}

static void add_blocks(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wgrad_plan *p = j->p;
    int chunks = chunks_of(p), which = (int)(i / chunks), per_group = panel_count(p->og);
    put_rows(j, which, (int)(i % chunks),
             j->sums + p->group_floats * (which / per_group) + panel_floats(p, which % per_group));
}

void wgrad_run(const wgrad_plan *p, const float *x, const conv_prologue *pro, const float *dy, const wgrad_join *join,
               bool accumulate, float *dw, float *scratch)
{
    wgrad_job j = { .p = p, .x = x, .pro = pro, .dy = dy, .join = join, .accumulate = accumulate, .dw = dw, .sums = scratch,
                    .own = scratch + shared_floats(p) };
    par_for((int64_t)p->blocks * (p->together ? 1 : p->panels), sum_block, &j);
    if (p->blocks > 1) par_for((int64_t)p->panels * chunks_of(p), add_blocks, &j);
}
