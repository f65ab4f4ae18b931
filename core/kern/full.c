/* Kernels as large as their map, without a border: fully connected layers, one output pixel.
 *
 * Every weight meets every image once, and there are many weights and few images: the time goes into reading
 * weights. Training packs them anew in every step, which takes many times as long; so here they are taken as
 * PyTorch has them, and each pass reads (or writes) them once, in the order of memory. Images are put into the
 * weights' order, C,H,W, instead. Inference packs once, and stays with the register tile.
 *
 *   forward        dot products of an image with a row of weights
 *   data grad      on the weight gradient's register tile, images × columns of weights, summed over out-channels
 *   weight grad    the same tile, out-channels × columns, summed over images */
#include <string.h>

#include "core/kern/conv.h"

/* Forward: out-channels of a task, and so much of an image at a time. Data gradient: columns of a task, and out-channels
 * at a time, whose rows are as many streams from memory. Weight gradient: columns of a task. */
enum { TASK_OUTS = 16, BLOCK = 1024, COLS_LEAST = 64, COLS_MOST = 512, FEW_OUTS = 16, MANY_OUTS = 64, TASK_COLS = 4096 };

struct full_plan {
    conv_shape s;
    int64_t row;                 /* weights of an out-channel */
    int map;                     /* pixels */
    bool turn;                   /* images are to be put into the weights' order */
    int cols, outs;              /* data gradient */
    int64_t flat, turned, own;   /* scratch floats: images in order, dy turned round, of one worker */
    int workers;
};

bool full_can(const conv_shape *s)
{
    return s->groups == 1 && s->kh == s->h && s->kw == s->w && s->dh == 1 && s->dw == 1 && !s->pt && !s->pb && !s->pl && !s->pr;
}

full_plan *full_plan_new(const conv_shape *s, err *e)
{
    full_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    const int wide = 2 * kern.lanes;
    *p = (full_plan){ .s = *s, .map = s->h * s->w, .row = (int64_t)s->h * s->w * s->c, .workers = par_threads() };
    p->turn = p->map > 1 && s->c > 1;
    p->flat = p->turn ? s->n * p->row : 0;
    p->turned = (int64_t)s->n * s->o;
    p->cols = (int)kern_div_up(kern_max(COLS_LEAST, kern_min(COLS_MOST, p->row / PIECES)), wide) * wide;
    p->outs = s->n > FEW_OUTS ? MANY_OUTS : FEW_OUTS;  /* … and many want the sums less often */
    p->own = kern_max((int64_t)s->n * kern_max(TASK_OUTS, p->cols), (int64_t)TILE_MAX * wide);
    return p;
}

void   full_plan_free(full_plan *p) { mem_free(p); }
size_t full_scratch_floats(const full_plan *p) { return (size_t)(p->flat + p->turned + p->own * p->workers); }

typedef struct {
    const full_plan *p;
    const float *x, *w, *dy;
    const conv_epilogue *ep;
    grad_out out;
    float *y, *flat, *turned, *own;
} full_job;

static full_job job_for(const full_plan *p, float *scratch)
{
    return (full_job){ .p = p, .flat = scratch, .turned = scratch + p->flat, .own = scratch + p->flat + p->turned };
}

/* ---- orders ------------------------------------------------------------------------------------ */

/* to[b][a] = from[a][b]. */
static void turn_round(int64_t rows, int64_t cols, const float *from, float *to)
{
    enum { SIDE = 16 };
    for (int64_t a = 0; a < rows; a += SIDE)
        for (int64_t b = 0; b < cols; b++)
            for (int64_t i = a; i < kern_min(rows, a + SIDE); i++) to[b * rows + i] = from[i * cols + b];
}

static void flatten_image(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const full_job *j = ctx;
    turn_round(j->p->map, j->p->s.c, j->x + i * j->p->row, j->flat + i * j->p->row);
}

static const float *in_order(full_job *j)
{
    if (!j->p->turn) return j->x;
    par_for(j->p->s.n, flatten_image, j);
    return j->flat;
}

/* ---- forward ----------------------------------------------------------------------------------- */

static void dot_task(void *ctx, int64_t task, int worker)
{
    const full_job *j = ctx;
    const full_plan *p = j->p;
    const conv_epilogue *ep = j->ep;
    const int n = p->s.n, O = p->s.o, first = (int)task * TASK_OUTS, end = (int)kern_min(O, first + TASK_OUTS);
    float *sums = j->own + worker * p->own;
    for (int64_t k = 0; k < p->row; k += BLOCK)
        for (int o = first; o < end; o += kern.dot_outs)
            for (int i = 0; i < n; i += DOT_IMAGES)
                kern.dot(&(dot_args){ .x = j->x + i * p->row + k, .w = j->w + o * p->row + k, .step = p->row,
                                      .count = kern_min(BLOCK, p->row - k), .images = (int)kern_min(DOT_IMAGES, n - i),
                                      .outs = (int)kern_min(kern.dot_outs, end - o), .add = k > 0,
                                      .sum = sums + i * TASK_OUTS + o - first, .sum_step = TASK_OUTS });
    for (int i = 0; i < n; i++)
        for (int o = first; o < end; o++) {
            const int64_t at = (int64_t)i * O + o;
            float v = sums[i * TASK_OUTS + o - first] + (ep->bias ? ep->bias[o] : 0);
            if (ep->residual) v += ep->residual[at];
            j->y[at] = act_value(ep->act, v);
        }
}

void full_forward(const full_plan *p, const float *x, const float *w, const conv_epilogue *ep, float *y, float *scratch)
{
    full_job j = job_for(p, scratch);
    j.x = x, j.w = w, j.ep = ep, j.y = y;
    j.x = in_order(&j);
    par_for(kern_div_up(p->s.o, TASK_OUTS), dot_task, &j);
}

/* ---- data gradient ------------------------------------------------------------------------------ */

static int tiles_of(int count, int nv) { return (int)kern_div_up(count, kern.wtallest[nv - 1]); }

/* Some columns of all images: [tile of images][panel of columns][image][2*lanes]. */
static void data_task(void *ctx, int64_t task, int worker)
{
    const full_job *j = ctx;
    const full_plan *p = j->p;
    const int n = p->s.n, O = p->s.o, wide = 2 * kern.lanes;
    const int64_t first = task * p->cols;
    const int cols = (int)kern_min(p->cols, p->row - first), tiles = tiles_of(n, 2);
    float *sums = j->own + worker * p->own;
    for (int o = 0; o < O; o += p->outs)
        for (int k = 0; k < panel_count(cols); k++)
            for (int t = 0; t < tiles; t++) {
                const int i0 = t * n / tiles, i1 = (t + 1) * n / tiles;
                const panel v = panel_at(cols, k);
                kern.wtile[v.nv - 1][i1 - i0](&(wtile_args){ .x = j->turned + (int64_t)o * n + i0, .dy = j->w + o * p->row + first + v.first,
                    .x_step = n, .x_far = n, .dy_step = p->row, .dy_far = p->row, .imgs = 1, .lines = 1, .count = (int)kern_min(p->outs, O - o), .lanes = v.lanes, .add = o > 0,
                    .dy_ahead = t == 0 && o + 2 * p->outs <= O ? p->outs * p->row : 0, .sum = sums + (int64_t)i0 * p->cols + k * wide * (i1 - i0) });
            }
    for (int t = 0; t < tiles; t++)
        for (int i0 = t * n / tiles, i1 = (t + 1) * n / tiles, i = i0; i < i1; i++)
            for (int c = 0; c < cols; c++) {
                const panel v = panel_at(cols, c / wide);
                const float sum = sums[(int64_t)i0 * p->cols + c / wide * wide * (i1 - i0) + (i - i0) * v.nv * kern.lanes + c % wide];
                const int64_t at = first + c, k = p->turn ? at % p->map * p->s.c + at / p->map : at;
                float *dx = j->out.p + i * p->row + k;
                *dx = j->out.accumulate ? *dx + sum : sum;
            }
}

void full_data_grad(const full_plan *p, const float *dy, const float *w, grad_out dx, float *scratch)
{
    full_job j = job_for(p, scratch);
    j.w = w, j.out = dx;
    turn_round(p->s.n, p->s.o, dy, j.turned);
    par_for(kern_div_up(p->row, p->cols), data_task, &j);
}

/* ---- weight gradient ---------------------------------------------------------------------------- */

/* Some out-channels, some columns. */
static void weight_task(void *ctx, int64_t task, int worker)
{
    const full_job *j = ctx;
    const full_plan *p = j->p;
    const int O = p->s.o, tiles = tiles_of(O, 2), t = (int)(task % tiles), o0 = (int)((int64_t)t * O / tiles), o1 = (int)((int64_t)(t + 1) * O / tiles);
    const int64_t first = task / tiles * TASK_COLS;
    const int cols = (int)kern_min(TASK_COLS, p->row - first);
    float *sums = j->own + worker * p->own;
    for (int k = 0; k < panel_count(cols); k++) {
        const panel v = panel_at(cols, k);
        const int valid = (v.nv - 1) * kern.lanes + v.lanes;
        kern.wtile[v.nv - 1][o1 - o0](&(wtile_args){ .x = j->dy + o0, .dy = j->x + first + v.first, .x_step = O, .dy_step = p->row,
            .imgs = 1, .lines = 1, .count = p->s.n, .lanes = v.lanes, .sum = sums });
        for (int o = o0; o < o1; o++) {
            float *dw = j->out.p + o * p->row + first + v.first;
            const float *sum = sums + (o - o0) * v.nv * kern.lanes;
            for (int c = 0; c < valid; c++) dw[c] = j->out.accumulate ? dw[c] + sum[c] : sum[c];
        }
    }
}

void full_weight_grad(const full_plan *p, const float *x, const float *dy, grad_out dw, float *scratch)
{
    full_job j = job_for(p, scratch);
    j.x = x, j.dy = dy, j.out = dw;
    j.x = in_order(&j);
    par_for(tiles_of(p->s.o, 2) * kern_div_up(p->row, TASK_COLS), weight_task, &j);
}
