/* Convolution as its definition reads: the standard every other road is held to. */
#include <math.h>

#include "core/kern/kern.h"

float act_value(act_kind act, float v)
{
    switch (act) {
    case ACT_RELU:  return v < 0 ? 0 : v;
    case ACT_RELU6: return v < 0 ? 0 : v > 6 ? 6 : v;
    case ACT_SILU:  return v / (1 + expf(-v));
    default:        return v;
    }
}

/* Input row that tap a of output row oh reads; -1: it lies in the padding. */
static int source(int out, int tap, int stride, int dilation, int pad, int size)
{
    int at = out * stride + tap * dilation - pad;
    return at < 0 || at >= size ? -1 : at;
}

typedef struct {
    const conv_shape *s;
    const float *x, *w, *dy;
    const conv_epilogue *ep;
    bool accumulate;
    float *out;
} ref_job;

/* All out-channels of output row i = (n, oh). */
static void forward_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const ref_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = conv_out_h(s), OW = conv_out_w(s), oh = (int)(i % OH), cg = s->c / s->groups, og = s->o / s->groups;
    for (int ow = 0; ow < OW; ow++)
        for (int o = 0; o < s->o; o++) {
            int c0 = o / og * cg;
            double sum = 0;
            for (int a = 0; a < s->kh; a++)
                for (int b = 0; b < s->kw; b++) {
                    int ih = source(oh, a, s->sh, s->dh, s->pt, s->h), iw = source(ow, b, s->sw, s->dw, s->pl, s->w);
                    if (ih < 0 || iw < 0) continue;
                    const float *x = j->x + ((i / OH * s->h + ih) * s->w + iw) * s->c + c0;
                    for (int c = 0; c < cg; c++)
                        sum += (double)x[c] * (double)j->w[(((int64_t)o * cg + c) * s->kh + a) * s->kw + b];
                }
            int64_t at = (i * OW + ow) * s->o + o;
            float v = (float)sum;
            if (j->ep && j->ep->bias) v += j->ep->bias[o];
            if (j->ep && j->ep->residual) v += j->ep->residual[at];
            j->out[at] = act_value(j->ep ? j->ep->act : ACT_NONE, v);
        }
}

void ref_conv_forward(const conv_shape *s, const float *x, const float *w, const conv_epilogue *ep,
                      float *y)
{
    par_for((int64_t)s->n * conv_out_h(s), forward_row, &(ref_job){ .s = s, .x = x, .w = w, .ep = ep, .out = y });
}

/* All channels of input row i = (n, h). */
static void data_grad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const ref_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = conv_out_h(s), OW = conv_out_w(s), h = (int)(i % s->h), cg = s->c / s->groups, og = s->o / s->groups;
    for (int w = 0; w < s->w; w++)
        for (int c = 0; c < s->c; c++) {
            double sum = 0;
            for (int a = 0; a < s->kh; a++)
                for (int b = 0; b < s->kw; b++) {
                    int dh = h + s->pt - a * s->dh, dw = w + s->pl - b * s->dw;
                    if (dh < 0 || dw < 0 || dh % s->sh || dw % s->sw || dh / s->sh >= OH || dw / s->sw >= OW) continue;
                    const float *dy = j->dy + ((i / s->h * OH + dh / s->sh) * OW + dw / s->sw) * s->o;
                    for (int o = c / cg * og; o < (c / cg + 1) * og; o++)
                        sum += (double)dy[o] * (double)j->w[(((int64_t)o * cg + c % cg) * s->kh + a) * s->kw + b];
                }
            float *dx = j->out + (i * s->w + w) * s->c + c;
            *dx = (j->accumulate ? *dx : 0) + (float)sum;
        }
}

void ref_conv_data_grad(const conv_shape *s, const float *dy, const float *w, bool accumulate,
                        float *dx)
{
    par_for((int64_t)s->n * s->h, data_grad_row,
            &(ref_job){ .s = s, .dy = dy, .w = w, .accumulate = accumulate, .out = dx });
}

/* All weights of out-channel o. */
static void weight_grad_channel(void *ctx, int64_t o, int worker)
{
    (void)worker;
    const ref_job *j = ctx;
    const conv_shape *s = j->s;
    int OH = conv_out_h(s), OW = conv_out_w(s), cg = s->c / s->groups, og = s->o / s->groups;
    for (int c = 0; c < cg; c++)
        for (int a = 0; a < s->kh; a++)
            for (int b = 0; b < s->kw; b++) {
                double sum = 0;
                for (int64_t row = 0; row < (int64_t)s->n * OH; row++)
                    for (int ow = 0; ow < OW; ow++) {
                        int ih = source((int)(row % OH), a, s->sh, s->dh, s->pt, s->h);
                        int iw = source(ow, b, s->sw, s->dw, s->pl, s->w);
                        if (ih < 0 || iw < 0) continue;
                        sum += (double)j->dy[(row * OW + ow) * s->o + o]
                             * (double)j->x[((row / OH * s->h + ih) * s->w + iw) * s->c + o / og * cg + c];
                    }
                float *dw = j->out + ((o * cg + c) * s->kh + a) * s->kw + b;
                *dw = (j->accumulate ? *dw : 0) + (float)sum;
            }
}

void ref_conv_weight_grad(const conv_shape *s, const float *x, const float *dy, bool accumulate,
                          float *dw)
{
    par_for(s->o, weight_grad_channel, &(ref_job){ .s = s, .x = x, .dy = dy, .accumulate = accumulate, .out = dw });
}
