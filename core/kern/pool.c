/* Pooling. Windows are cut to the image, so padding costs nothing. */
#include <math.h>
#include <string.h>

#include "core/kern/kern.h"

typedef struct {
    const conv_shape *s;
    const float *x, *dy;
    float *out;
    bool count_pad, accumulate;
} pool_job;

typedef struct { int h0, h1, w0, w1; } window;          /* taps inside the image, [h0,h1) × [w0,w1) */

static window window_of(const conv_shape *s, int oh, int ow)
{
    int h = oh * s->sh - s->pt, w = ow * s->sw - s->pl;
    return (window){ (int)kern_max(h, 0), (int)kern_min(h + s->kh, s->h),
                     (int)kern_max(w, 0), (int)kern_min(w + s->kw, s->w) };
}

/* The pooling shape has no dilation; conv_out_* reads one. */
static int out_h(const conv_shape *s) { return (s->h + s->pt + s->pb - s->kh) / s->sh + 1; }
static int out_w(const conv_shape *s) { return (s->w + s->pl + s->pr - s->kw) / s->sw + 1; }

static float average_weight(const pool_job *j, window v)
{
    int taps = j->count_pad ? j->s->kh * j->s->kw : (v.h1 - v.h0) * (v.w1 - v.w0);
    return taps > 0 ? 1.0f / (float)taps : 0;
}

/* Output row i = (n, oh). A NaN wins over everything, as in PyTorch. */
static void max_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s), C = s->c;
    for (int ow = 0; ow < OW; ow++) {
        float *y = j->out + (i * OW + ow) * C;
        window v = window_of(s, (int)(i % OH), ow);
        for (int c = 0; c < C; c++) y[c] = -INFINITY;
        for (int h = v.h0; h < v.h1; h++)
            for (int w = v.w0; w < v.w1; w++) {
                const float *x = j->x + ((i / OH * s->h + h) * s->w + w) * C;
                for (int c = 0; c < C; c++) y[c] = y[c] >= x[c] || y[c] != y[c] ? y[c] : x[c];
            }
    }
}

void maxpool_forward(const conv_shape *s, const float *x, float *y)
{
    par_for((int64_t)s->n * out_h(s), max_row, &(pool_job){ .s = s, .x = x, .out = y });
}

enum { LANES = 64 };                                    /* channels that one image task handles at a time */

/* dx of image and channel block i: windows overlap, so one task owns all rows of its channels. */
static void max_back(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s), C = s->c, blocks = (int)kern_div_up(C, LANES);
    int c0 = (int)(i % blocks) * LANES, lanes = (int)kern_min(LANES, C - c0);
    int64_t n = i / blocks;
    float *dx = j->out + n * s->h * s->w * C + c0;
    const float *x = j->x + n * s->h * s->w * C + c0;
    if (!j->accumulate)
        for (int64_t p = 0; p < (int64_t)s->h * s->w; p++) memset(dx + p * C, 0, (size_t)lanes * sizeof *dx);
    for (int oh = 0; oh < OH; oh++)
        for (int ow = 0; ow < OW; ow++) {
            const float *dy = j->dy + ((n * OH + oh) * OW + ow) * C + c0;
            window v = window_of(s, oh, ow);
            float best[LANES];
            int at[LANES];
            for (int c = 0; c < lanes; c++) { best[c] = -INFINITY; at[c] = -1; }
            for (int h = v.h0; h < v.h1; h++)
                for (int w = v.w0; w < v.w1; w++) {
                    int p = h * s->w + w;
                    const float *row = x + (int64_t)p * C;
                    for (int c = 0; c < lanes; c++) {
                        bool keep = at[c] >= 0 && (best[c] >= row[c] || best[c] != best[c]);
                        best[c] = keep ? best[c] : row[c];
                        at[c] = keep ? at[c] : p;
                    }
                }
            for (int c = 0; c < lanes; c++)
                if (at[c] >= 0) dx[(int64_t)at[c] * C + c] += dy[c];
        }
}

void maxpool_backward(const conv_shape *s, const float *x, const float *dy, bool accumulate, float *dx)
{
    par_for(s->n * kern_div_up(s->c, LANES), max_back,
            &(pool_job){ .s = s, .x = x, .dy = dy, .accumulate = accumulate, .out = dx });
}

static void average_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s), C = s->c;
    for (int ow = 0; ow < OW; ow++) {
        float *y = j->out + (i * OW + ow) * C;
        window v = window_of(s, (int)(i % OH), ow);
        float weight = average_weight(j, v);
        memset(y, 0, (size_t)C * sizeof *y);
        for (int h = v.h0; h < v.h1; h++)
            for (int w = v.w0; w < v.w1; w++) {
                const float *x = j->x + ((i / OH * s->h + h) * s->w + w) * C;
                for (int c = 0; c < C; c++) y[c] += x[c];
            }
        for (int c = 0; c < C; c++) y[c] *= weight;
    }
}

void avgpool_forward(const conv_shape *s, bool count_pad, const float *x, float *y)
{
    par_for((int64_t)s->n * out_h(s), average_row, &(pool_job){ .s = s, .x = x, .count_pad = count_pad, .out = y });
}

static void average_back(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const pool_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = out_h(s), OW = out_w(s), C = s->c, blocks = (int)kern_div_up(C, LANES);
    int c0 = (int)(i % blocks) * LANES, lanes = (int)kern_min(LANES, C - c0);
    int64_t n = i / blocks;
    float *dx = j->out + n * s->h * s->w * C + c0;
    if (!j->accumulate)
        for (int64_t p = 0; p < (int64_t)s->h * s->w; p++) memset(dx + p * C, 0, (size_t)lanes * sizeof *dx);
    for (int oh = 0; oh < OH; oh++)
        for (int ow = 0; ow < OW; ow++) {
            const float *dy = j->dy + ((n * OH + oh) * OW + ow) * C + c0;
            window v = window_of(s, oh, ow);
            float weight = average_weight(j, v);
            for (int h = v.h0; h < v.h1; h++)
                for (int w = v.w0; w < v.w1; w++) {
                    float *to = dx + ((int64_t)h * s->w + w) * C;
                    for (int c = 0; c < lanes; c++) to[c] += dy[c] * weight;
                }
        }
}

void avgpool_backward(const conv_shape *s, bool count_pad, const float *dy, bool accumulate, float *dx)
{
    par_for(s->n * kern_div_up(s->c, LANES), average_back,
            &(pool_job){ .s = s, .dy = dy, .count_pad = count_pad, .accumulate = accumulate, .out = dx });
}
