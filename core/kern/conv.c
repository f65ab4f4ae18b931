/* Convolution: shapes and plans. */
#include <string.h>

#include "core/kern/kern.h"

int conv_out_h(const conv_shape *s)
{
    return (s->h + s->pt + s->pb - s->dh * (s->kh - 1) - 1) / s->sh + 1;
}

int conv_out_w(const conv_shape *s)
{
    return (s->w + s->pl + s->pr - s->dw * (s->kw - 1) - 1) / s->sw + 1;
}

bool conv_shape_check(const conv_shape *s, err *e)
{
    if (s->n < 1 || s->h < 1 || s->w < 1 || s->c < 1)
        return err_set(e, ERR_CONFIG, "convolution input %d×%d×%d×%d has an empty side", s->n, s->h, s->w, s->c);
    if (s->o < 1 || s->kh < 1 || s->kw < 1)
        return err_set(e, ERR_CONFIG, "convolution with %d out-channels and a %d×%d kernel", s->o, s->kh, s->kw);
    if (s->sh < 1 || s->sw < 1 || s->dh < 1 || s->dw < 1)
        return err_set(e, ERR_CONFIG, "convolution with stride %d×%d and dilation %d×%d", s->sh, s->sw, s->dh, s->dw);
    if (s->pt < 0 || s->pb < 0 || s->pl < 0 || s->pr < 0)
        return err_set(e, ERR_CONFIG, "convolution with negative padding %d %d %d %d", s->pt, s->pb, s->pl, s->pr);
    if (s->groups < 1 || s->c % s->groups || s->o % s->groups)
        return err_set(e, ERR_CONFIG, "convolution of %d to %d channels in %d groups", s->c, s->o, s->groups);
    int64_t h = (int64_t)s->h + s->pt + s->pb, kh = (int64_t)s->dh * (s->kh - 1) + 1;
    int64_t w = (int64_t)s->w + s->pl + s->pr, kw = (int64_t)s->dw * (s->kw - 1) + 1;
    if (h < kh || w < kw)
        return err_set(e, ERR_CONFIG, "a %lld×%lld kernel does not fit a padded image of %lld×%lld",
                       (long long)kh, (long long)kw, (long long)h, (long long)w);
    return true;
}

int64_t conv_macs(const conv_shape *s)
{
    return (int64_t)s->n * conv_out_h(s) * conv_out_w(s) * s->o * (s->c / s->groups) * s->kh * s->kw;
}

struct conv_plan { conv_shape s; };

conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e)
{
    (void)passes;
    if (!conv_shape_check(s, e)) return NULL;
    conv_plan *p = mem_new(1, sizeof *p, e);
    if (p) p->s = *s;
    return p;
}

void conv_plan_free(conv_plan *p) { mem_free(p); }
const conv_shape *conv_plan_shape(const conv_plan *p) { return &p->s; }
const char *conv_plan_road(const conv_plan *p) { (void)p; return "reference"; }

size_t conv_packed_floats(const conv_plan *p, conv_pass pass)
{
    (void)pass;
    return (size_t)p->s.o * (size_t)(p->s.c / p->s.groups) * (size_t)p->s.kh * (size_t)p->s.kw;
}

void conv_pack(const conv_plan *p, conv_pass pass, const float *w_oihw, float *packed)
{
    memcpy(packed, w_oihw, conv_packed_floats(p, pass) * sizeof *packed);
}

size_t conv_scratch_floats(const conv_plan *p) { (void)p; return 0; }

void conv_forward(const conv_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                  float *y, float *scratch)
{
    (void)scratch;
    ref_conv_forward(&p->s, x, packed, ep, y);
}

void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch)
{
    (void)scratch;
    ref_conv_data_grad(&p->s, dy, packed, accumulate, dx);
}

void conv_weight_grad(const conv_plan *p, const float *x, const float *dy, bool accumulate,
                      float *dw, float *scratch)
{
    (void)scratch;
    ref_conv_weight_grad(&p->s, x, dy, accumulate, dw);
}
