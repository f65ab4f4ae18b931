/* Weight gradient on the register tile: in-channels × out-channels of one tap, summed over pixels.
 *
 * Pixels are cut into units that stay in the cache (some images, or some rows of one), and
 * consecutive units into blocks. A task is one block and one panel of out-channels; for each of its
 * units it visits every tap and every tile of in-channels. The sums of the blocks are then added in
 * order. Padding costs nothing: each tap sums over the pixels that it finds inside the image.
 *
 * A block's sums: [group][panel][tap][c][16*NV], like packed weights. */
#include <string.h>

#include "core/kern/conv.h"

struct wgrad_plan {
    conv_shape s;
    int OH, OW, cg, og;
    int imgs, rows;              /* of a unit */
    int units_n, units_h, blocks;
    int panels;                  /* of all groups */
    int64_t group_floats;        /* sums of one group */
};

/* A unit has at least UNIT_PIXELS, because each visit of a tile loads and stores its sums, more
 * where the sums of a panel come from beyond the cache; and reads no more than UNIT_FLOATS beyond. */
enum { UNIT_PIXELS = 128, UNIT_FLOATS = 1 << 16, SUMS_NEAR = 1 << 16 };

static int64_t panel_floats(const wgrad_plan *p, int i)
{
    int64_t lanes = 0;
    for (int k = 0; k < i; k++) lanes += panel_at(p->og, k).nv * kern.lanes;
    return lanes * p->s.kh * p->s.kw * p->cg;
}

wgrad_plan *wgrad_plan_new(const conv_shape *s, err *e)
{
    wgrad_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    p->s = *s;
    if (s->kh == 1 && s->kw == 1 && s->sh == 1 && s->sw == 1 && !s->pt && !s->pb && !s->pl && !s->pr) {
        /* 1×1: all pixels are alike; "rows" of UNIT_PIXELS where they divide, else of an image. */
        int64_t all = (int64_t)s->n * s->h * s->w;
        if (all % UNIT_PIXELS == 0) {
            p->s.n = 1;
            p->s.h = (int)(all / UNIT_PIXELS);
            p->s.w = UNIT_PIXELS;
        }
    }
    s = &p->s;
    p->OH = conv_out_h(s);
    p->OW = conv_out_w(s);
    p->cg = s->c / s->groups;
    p->og = s->o / s->groups;
    p->panels = s->groups * panel_count(p->og);
    p->group_floats = panel_floats(p, panel_count(p->og));
    /* Blocks: enough for PIECES/2 tasks, but their sums should not outweigh what is summed. */
    int64_t map = (int64_t)p->OH * p->OW, work = conv_macs(s) / PIECE_MACS, sums = p->group_floats * s->groups;
    int64_t want = kern_max(1, kern_min(kern_div_up(kern_min(PIECES / 2, work), p->panels),
                                        kern_div_up(s->n * map * (s->c + s->o), sums)));
    int64_t least = kern_div_up(panel_floats(p, 1) > SUMS_NEAR ? 4 * UNIT_PIXELS : UNIT_PIXELS, p->OW);
    int64_t row = (int64_t)p->OW * s->o + (int64_t)s->sh * s->w * s->c;
    int64_t rows = kern_max(least, kern_min(UNIT_FLOATS / row, (int64_t)s->n * p->OH / want));
    p->imgs = (int)kern_max(1, kern_min(s->n, rows / p->OH));
    p->rows = (int)kern_div_up(p->OH, kern_div_up(p->OH, kern_min(rows, p->OH)));
    p->units_n = (int)kern_div_up(s->n, p->imgs);
    p->units_h = (int)kern_div_up(p->OH, p->rows);
    p->blocks = (int)kern_min(want, (int64_t)p->units_n * p->units_h);
    return p;
}

void wgrad_plan_free(wgrad_plan *p) { mem_free(p); }

size_t wgrad_scratch_floats(const wgrad_plan *p)
{
    return (size_t)(p->group_floats * p->s.groups) * (size_t)p->blocks;
}

typedef struct {
    const wgrad_plan *p;
    const float *x, *dy;
    bool accumulate;
    float *dw, *sums;
} wgrad_job;

/* Output positions [*q0, *q1) of [from, to) whose tap lies inside [0, size). */
static void inside(int from, int to, int stride, int offset, int size, int *q0, int *q1)
{
    *q0 = offset < 0 ? (int)kern_max(from, (-offset + stride - 1) / stride) : from;
    *q1 = offset < size ? (int)kern_min(to, (size - 1 - offset) / stride + 1) : from;
    if (*q1 < *q0) *q1 = *q0;
}

/* Height of the tiles over cg in-channels, as even as can be. */
static int tile_count(int cg, int nv) { return (int)kern_div_up(cg, kern.wtallest[nv - 1]); }

/* One tap of one unit: every tile of in-channels of one panel. */
static void sum_tap(const wgrad_job *j, int n0, int imgs, int r0, int rows, int a, int b, int group,
                    panel v, bool add, float *sums)
{
    const wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    int oh = a * s->dh - s->pt, ow = b * s->dw - s->pl, l0, l1, q0, q1;
    inside(r0, r0 + rows, s->sh, oh, s->h, &l0, &l1);
    inside(0, p->OW, s->sw, ow, s->w, &q0, &q1);
    wtile_args t = {
        .x = j->x + (((int64_t)n0 * s->h + l0 * s->sh + oh) * s->w + q0 * s->sw + ow) * s->c + group * p->cg,
        .dy = j->dy + (((int64_t)n0 * p->OH + l0) * p->OW + q0) * s->o + group * p->og + v.first,
        .x_img = (int64_t)s->h * s->w * s->c, .dy_img = (int64_t)p->OH * p->OW * s->o,
        .x_line = (int64_t)s->sh * s->w * s->c, .dy_line = (int64_t)p->OW * s->o,
        .x_step = (int64_t)s->sw * s->c, .dy_step = s->o,
        .imgs = imgs, .lines = q1 > q0 ? l1 - l0 : 0, .count = q1 - q0, .lanes = v.lanes, .add = add };
    int n = tile_count(p->cg, v.nv), wide = v.nv * kern.lanes;
    const float *x = t.x;
    if (add && !t.lines) return;
    for (int k = 0; k < n; k++) {
        int c0 = k * p->cg / n, c1 = (k + 1) * p->cg / n;
        t.x = x + c0;
        t.sum = sums + (int64_t)c0 * wide;
        kern.wtile[v.nv - 1][c1 - c0](&t);
    }
}

static void sum_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wgrad_plan *p = j->p;
    const conv_shape *s = &p->s;
    int per_group = panel_count(p->og), block = (int)(i / p->panels), which = (int)(i % p->panels);
    int group = which / per_group;
    panel v = panel_at(p->og, which % per_group);
    int64_t units = (int64_t)p->units_n * p->units_h, wide = v.nv * kern.lanes;
    int64_t first = units * block / p->blocks, last = units * (block + 1) / p->blocks;
    float *sums = j->sums + p->group_floats * (block * s->groups + group) + panel_floats(p, which % per_group);
    for (int64_t u = first; u < last; u++) {
        int n0 = (int)(u / p->units_h) * p->imgs, r0 = (int)(u % p->units_h) * p->rows;
        int imgs = (int)kern_min(p->imgs, s->n - n0), rows = (int)kern_min(p->rows, p->OH - r0);
        for (int a = 0; a < s->kh; a++)
            for (int b = 0; b < s->kw; b++)
                sum_tap(j, n0, imgs, r0, rows, a, b, group, v, u > first, sums + (a * s->kw + b) * p->cg * wide);
    }
}

/* Weights of one out-channel that one piece of the last pass handles, and out-channels in a panel. */
enum { CHUNK = 128, WIDEST = 2 * LANES_MAX };

/* Adds the blocks and puts the result where PyTorch wants it: rows (c, tap) of a panel become
 * columns. The odd width keeps the columns out of each other's cache lines. */
static void add_blocks(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const wgrad_job *j = ctx;
    const wgrad_plan *p = j->p;
    int taps = p->s.kh * p->s.kw, rows = p->cg * taps, chunks = (int)kern_div_up(rows, CHUNK);
    int r0 = (int)(i % chunks) * CHUNK, n = (int)kern_min(CHUNK, rows - r0), which = (int)(i / chunks);
    int per_group = panel_count(p->og), group = which / per_group;
    panel v = panel_at(p->og, which % per_group);
    int wide = v.nv * kern.lanes;
    int64_t step = p->group_floats * p->s.groups;
    const float *sums = j->sums + p->group_floats * group + panel_floats(p, which % per_group);
    float turn[CHUNK][WIDEST + 1];
    for (int r = 0; r < n; r++) {
        const float *from = sums + ((int64_t)((r0 + r) % taps) * p->cg + (r0 + r) / taps) * wide;
        memcpy(turn[r], from, (size_t)wide * sizeof *from);
        for (int k = 1; k < p->blocks; k++)
            for (int o = 0; o < wide; o++) turn[r][o] += from[k * step + o];
    }
    for (int o = 0; o < (v.nv - 1) * kern.lanes + v.lanes; o++) {
        float *dw = j->dw + (int64_t)(group * p->og + v.first + o) * rows + r0;
        for (int r = 0; r < n; r++) dw[r] = j->accumulate ? dw[r] + turn[r][o] : turn[r][o];
    }
}

void wgrad_run(const wgrad_plan *p, const float *x, const float *dy, bool accumulate, float *dw,
               float *scratch)
{
    wgrad_job j = { .p = p, .x = x, .dy = dy, .accumulate = accumulate, .dw = dw, .sums = scratch };
    par_for((int64_t)p->blocks * p->panels, sum_block, &j);
    par_for((int64_t)p->panels * kern_div_up((int64_t)p->cg * p->s.kh * p->s.kw, CHUNK), add_blocks, &j);
}
