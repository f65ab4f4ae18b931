/* Pooling. Windows are cut to the image, so padding costs nothing. */
#include <string.h>

#include "core/kern/kern.h"

typedef struct {
    const conv_shape *s;
    void (*window)(const pool_args *);
    const float *x, *dy;
    float *out;
    bool count_pad, accumulate;
} pool_job;

/* The pooling shape has no dilation; conv_out_* reads one. */
static int out_h(const conv_shape *s) { return (s->h + s->pt + s->pb - s->kh) / s->sh + 1; }
static int out_w(const conv_shape *s) { return (s->w + s->pl + s->pr - s->kw) / s->sw + 1; }

/* The window of output (oh, ow), and in *first its first pixel inside the image, in floats. */
static pool_args window_of(const pool_job *j, int oh, int ow, int channels, int64_t *first)
{
    const conv_shape *s = j->s;
    int h = oh * s->sh - s->pt, w = ow * s->sw - s->pl;
    int h0 = (int)kern_max(h, 0), w0 = (int)kern_max(w, 0);
    pool_args a = { .line = (int64_t)s->w * s->c, .step = s->c, .channels = channels,
                    .rows = (int)kern_max(0, kern_min(h + s->kh, s->h) - h0),
                    .cols = (int)kern_max(0, kern_min(w + s->kw, s->w) - w0) };
    int taps = j->count_pad ? s->kh * s->kw : a.rows * a.cols;
    a.weight = taps > 0 ? 1.0f / (float)taps : 0;
    *first = h0 * a.line + (int64_t)w0 * a.step;
    return a;
}

/* Output row i = (n, oh). */
static void forward_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s);
    for (int ow = 0; ow < OW; ow++) {
        int64_t first;
        pool_args a = window_of(j, (int)(i % OH), ow, s->c, &first);
        a.x = j->x + i / OH * s->h * a.line + first;
        a.out = j->out + (i * OW + ow) * s->c;
        j->window(&a);
    }
}

enum { BLOCK = 64 };                                    /* channels that one image task handles at a time */

/* dx of image and channel block i: windows overlap, so one task owns all rows of its channels. */
static void back_block(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s), C = s->c, blocks = (int)kern_div_up(C, BLOCK);
    int c0 = (int)(i % blocks) * BLOCK, lanes = (int)kern_min(BLOCK, C - c0);
    int64_t n = i / blocks, image = n * s->h * s->w * C + c0;
    float *dx = j->out + image;
    if (!j->accumulate)
        for (int64_t p = 0; p < (int64_t)s->h * s->w; p++) memset(dx + p * C, 0, (size_t)lanes * sizeof *dx);
    for (int oh = 0; oh < OH; oh++)
        for (int ow = 0; ow < OW; ow++) {
            int64_t first;
            pool_args a = window_of(j, oh, ow, lanes, &first);
            a.x = j->x ? j->x + image + first : NULL;
            a.dy = j->dy + ((n * OH + oh) * OW + ow) * C + c0;
            a.out = dx + first;
            j->window(&a);
        }
}

static void forward(pool_job j) { par_for((int64_t)j.s->n * out_h(j.s), forward_row, &j); }
static void back(pool_job j) { par_for(j.s->n * kern_div_up(j.s->c, BLOCK), back_block, &j); }

void maxpool_forward(const conv_shape *s, const float *x, float *y)
{
    forward((pool_job){ .s = s, .window = kern.pool_max, .x = x, .out = y });
}

void maxpool_backward(const conv_shape *s, const float *x, const float *dy, bool accumulate, float *dx)
{
    back((pool_job){ .s = s, .window = kern.pool_max_back, .x = x, .dy = dy, .accumulate = accumulate, .out = dx });
}

void avgpool_forward(const conv_shape *s, bool count_pad, const float *x, float *y)
{
    forward((pool_job){ .s = s, .window = kern.pool_mean, .x = x, .count_pad = count_pad, .out = y });
}

void avgpool_backward(const conv_shape *s, bool count_pad, const float *dy, bool accumulate, float *dx)
{
    back((pool_job){ .s = s, .window = kern.pool_mean_back, .dy = dy, .count_pad = count_pad,
                     .accumulate = accumulate, .out = dx });
}
