/* The second road: unfold some pixels, multiply with gemm. Slower, and plain enough to check the
 * first by.
 *   col  (pixels, K)  K = kh*kw*c of one group, ordered tap row, tap column, channel
 *   packed weights [group][K][o of the group] */
#include <string.h>

#include "core/kern/conv.h"

struct im2col_plan {
    conv_shape s;
    int OH, OW, cg, og, K;
    int rows, bands;             /* output rows of one image unfolded at a time */
    int blocks, workers;         /* weight gradient: partial sums */
    size_t own;                  /* scratch floats of one worker */
};

enum { COL_FLOATS = 1 << 16, BLOCKS = 16 };

im2col_plan *im2col_plan_new(const conv_shape *s, err *e)
{
    im2col_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    *p = (im2col_plan){ .s = *s, .OH = conv_out_h(s), .OW = conv_out_w(s), .cg = s->c / s->groups,
                        .og = s->o / s->groups, .workers = par_threads() };
    p->K = s->kh * s->kw * p->cg;
    p->bands = (int)kern_div_up(p->OH, kern_max(1, kern_min(p->OH, COL_FLOATS / ((int64_t)p->OW * p->K))));
    p->rows = (int)kern_div_up(p->OH, p->bands);
    p->bands = (int)kern_div_up(p->OH, p->rows);
    p->blocks = (int)kern_min(BLOCKS, (int64_t)s->n * p->bands);
    p->own = (size_t)p->rows * (size_t)p->OW * (size_t)(p->K + p->og);
    return p;
}

void im2col_plan_free(im2col_plan *p) { mem_free(p); }

size_t im2col_packed_floats(const im2col_plan *p) { return (size_t)p->K * (size_t)p->s.o; }

size_t im2col_scratch_floats(const im2col_plan *p)
{
    return p->own * (size_t)p->workers + im2col_packed_floats(p) * (size_t)p->blocks;
}

/* Where row k of group's packed weights has out-channel 0 in OIHW; the next is K further on. */
static int64_t weight_at(const im2col_plan *p, int group, int k)
{
    int c = k % p->cg, tap = k / p->cg;
    return ((int64_t)group * p->og * p->cg + c) * p->s.kh * p->s.kw + tap;
}

void im2col_pack(const im2col_plan *p, const float *w_oihw, float *packed)
{
    for (int g = 0; g < p->s.groups; g++)
        for (int k = 0; k < p->K; k++)
            for (int o = 0; o < p->og; o++) *packed++ = w_oihw[weight_at(p, g, k) + (int64_t)o * p->K];
}

typedef struct {
    const im2col_plan *p;
    const float *x, *dy, *packed;
    const conv_epilogue *ep;
    bool accumulate;
    float *out, *scratch;
} im2col_job;

/* Unfold rows [r0,r1) of image n, or with `back` add the unfolded to the image again. */
static void unfold(const im2col_plan *p, const float *x, int group, int64_t n, int r0, int r1, float *col, float *back)
{
    const conv_shape *s = &p->s;
    for (int r = r0; r < r1; r++)
        for (int q = 0; q < p->OW; q++)
            for (int t = 0; t < s->kh * s->kw; t++, col += p->cg) {
                int ih = r * s->sh - s->pt + t / s->kw * s->dh, iw = q * s->sw - s->pl + t % s->kw * s->dw;
                bool in = ih >= 0 && iw >= 0 && ih < s->h && iw < s->w;
                int64_t at = ((n * s->h + ih) * s->w + iw) * s->c + group * p->cg;
                if (back)
                    for (int c = 0; in && c < p->cg; c++) back[at + c] += col[c];
                else if (in)
                    memcpy(col, x + at, (size_t)p->cg * sizeof *col);
                else
                    memset(col, 0, (size_t)p->cg * sizeof *col);
            }
}

static void forward_band(void *ctx, int64_t i, int worker)
{
    const im2col_job *j = ctx;
    const im2col_plan *p = j->p;
    int64_t n = i / p->bands, o = p->s.o;
    int r0 = (int)(i % p->bands) * p->rows, r1 = (int)kern_min(p->OH, r0 + p->rows), pixels = (r1 - r0) * p->OW;
    float *col = j->scratch + (size_t)worker * p->own, *out = col + (int64_t)pixels * p->K;
    for (int g = 0; g < p->s.groups; g++) {
        unfold(p, j->x, g, n, r0, r1, col, NULL);
        gemm_f32(false, false, pixels, p->og, p->K, col, p->K, j->packed + (int64_t)g * p->K * p->og, p->og, 0, out, p->og);
        for (int64_t q = 0; q < pixels; q++)
            for (int k = 0; k < p->og; k++) {
                int64_t at = ((n * p->OH + r0) * p->OW + q) * o + g * p->og + k;
                float v = out[q * p->og + k];
                if (j->ep->bias) v += j->ep->bias[g * p->og + k];
                if (j->ep->residual) v += j->ep->residual[at];
                j->out[at] = act_value(j->ep->act, v);
            }
    }
}

void im2col_forward(const im2col_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                    float *y, float *scratch)
{
    im2col_job j = { .p = p, .x = x, .packed = packed, .ep = ep, .out = y, .scratch = scratch };
    par_for((int64_t)p->s.n * p->bands, forward_band, &j);
}

static void data_grad_image(void *ctx, int64_t n, int worker)
{
    const im2col_job *j = ctx;
    const im2col_plan *p = j->p;
    int64_t image = (int64_t)p->s.h * p->s.w * p->s.c, o = p->s.o;
    float *col = j->scratch + (size_t)worker * p->own;
    if (!j->accumulate) memset(j->out + n * image, 0, (size_t)image * sizeof *j->out);
    for (int r0 = 0; r0 < p->OH; r0 += p->rows)
        for (int g = 0; g < p->s.groups; g++) {
            int r1 = (int)kern_min(p->OH, r0 + p->rows), pixels = (r1 - r0) * p->OW;
            const float *dy = j->dy + (n * p->OH + r0) * p->OW * o + g * p->og;
            gemm_f32(false, true, pixels, p->K, p->og, dy, o, j->packed + (int64_t)g * p->K * p->og, p->og, 0, col, p->K);
            unfold(p, NULL, g, n, r0, r1, col, j->out);
        }
}

void im2col_data_grad(const im2col_plan *p, const float *dy, const float *packed, bool accumulate,
                      float *dx, float *scratch)
{
    im2col_job j = { .p = p, .dy = dy, .packed = packed, .accumulate = accumulate, .out = dx, .scratch = scratch };
    par_for(p->s.n, data_grad_image, &j);
}

/* Sums of one block of bands: like packed weights. */
static void sum_block(void *ctx, int64_t block, int worker)
{
    const im2col_job *j = ctx;
    const im2col_plan *p = j->p;
    int64_t bands = (int64_t)p->s.n * p->bands, first = bands * block / p->blocks, last = bands * (block + 1) / p->blocks, o = p->s.o;
    float *col = j->scratch + (size_t)worker * p->own, *sums = j->scratch + p->own * (size_t)p->workers + block * p->K * o;
    for (int64_t i = first; i < last; i++) {
        int64_t n = i / p->bands;
        int r0 = (int)(i % p->bands) * p->rows, r1 = (int)kern_min(p->OH, r0 + p->rows), pixels = (r1 - r0) * p->OW;
        for (int g = 0; g < p->s.groups; g++) {
            unfold(p, j->x, g, n, r0, r1, col, NULL);
            gemm_f32(true, false, p->K, p->og, pixels, col, p->K, j->dy + (n * p->OH + r0) * p->OW * o + g * p->og, o,
                     i > first, sums + (int64_t)g * p->K * p->og, p->og);
        }
    }
}

void im2col_weight_grad(const im2col_plan *p, const float *x, const float *dy, bool accumulate,
                        float *dw, float *scratch)
{
    im2col_job j = { .p = p, .x = x, .dy = dy, .scratch = scratch };
    par_for(p->blocks, sum_block, &j);
    const float *sums = scratch + p->own * (size_t)p->workers;
    for (int g = 0; g < p->s.groups; g++)
        for (int k = 0; k < p->K; k++)
            for (int o = 0; o < p->og; o++, sums++) {
                float sum = sums[0], *to = dw + weight_at(p, g, k) + (int64_t)o * p->K;
                for (int b = 1; b < p->blocks; b++) sum += sums[(int64_t)b * p->K * p->s.o];
                *to = accumulate ? *to + sum : sum;
            }
}
