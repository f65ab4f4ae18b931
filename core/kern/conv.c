/* Convolution: shapes, and the roads a plan may take. */
#include <string.h>

#include "core/kern/conv.h"

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


typedef enum { REFERENCE, DIRECT } road_kind;

struct conv_plan {
    conv_shape s;
    road_kind road;
    tile_plan *forward, **back;  /* back: one per phase */
    int phases;
    wgrad_plan *wgrad;
};

static bool direct_new(conv_plan *p, unsigned passes, err *e)
{
    const conv_shape *s = &p->s;
    if (passes & CONV_FORWARD) {
        gather g;
        if (!gathers_new(s, CONV_FORWARD, &g, e) || !(p->forward = tile_plan_new(&g, s, e))) return false;
    }
    if (passes & CONV_DATA_GRAD) {
        size_t phases = (size_t)s->sh * (size_t)s->sw;
        gather *g = mem_new(phases, sizeof *g, e);
        p->back = g ? mem_new(phases, sizeof(tile_plan *), e) : NULL;
        int n = p->back ? gathers_new(s, CONV_DATA_GRAD, g, e) : 0, i = 0;
        for (; i < n; i++)
            if (!(p->back[i] = tile_plan_new(&g[i], s, e))) break;
        if (i < n) gathers_free(g + i + 1, n - i - 1);
        mem_free(g);
        p->phases = i;
        if (!n || i < n) return false;
    }
    return !(passes & CONV_WEIGHT_GRAD) || (p->wgrad = wgrad_plan_new(s, e));
}

conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e)
{
    if (!conv_shape_check(s, e)) return NULL;
    conv_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    p->s = *s;
    p->road = strcmp(conv_road(), "direct") ? REFERENCE : DIRECT;
    if (p->road == DIRECT && !direct_new(p, passes, e)) { conv_plan_free(p); return NULL; }
    return p;
}

void conv_plan_free(conv_plan *p)
{
    if (!p) return;
    tile_plan_free(p->forward);
    for (int i = 0; i < p->phases; i++) tile_plan_free(p->back[i]);
    mem_free(p->back);
    wgrad_plan_free(p->wgrad);
    mem_free(p);
}

const conv_shape *conv_plan_shape(const conv_plan *p) { return &p->s; }

const char *conv_plan_road(const conv_plan *p)
{
    static const char *const name[] = { [REFERENCE] = "reference", [DIRECT] = "direct" };
    return name[p->road];
}

static size_t weight_floats(const conv_shape *s)
{
    return (size_t)s->o * (size_t)(s->c / s->groups) * (size_t)s->kh * (size_t)s->kw;
}

size_t conv_packed_floats(const conv_plan *p, conv_pass pass)
{
    if (p->road == REFERENCE) return weight_floats(&p->s);
    if (pass == CONV_FORWARD) return tile_packed_floats(p->forward);
    size_t sum = 0;
    for (int i = 0; i < p->phases; i++) sum += tile_packed_floats(p->back[i]);
    return sum;
}

void conv_pack(const conv_plan *p, conv_pass pass, const float *w_oihw, float *packed)
{
    if (p->road == REFERENCE) { memcpy(packed, w_oihw, weight_floats(&p->s) * sizeof *packed); return; }
    if (pass == CONV_FORWARD) { tile_pack(p->forward, w_oihw, packed); return; }
    for (int i = 0; i < p->phases; i++) {
        tile_pack(p->back[i], w_oihw, packed);
        packed += tile_packed_floats(p->back[i]);
    }
}

size_t conv_scratch_floats(const conv_plan *p)
{
    size_t most = p->forward ? tile_scratch_floats(p->forward) : 0;
    for (int i = 0; i < p->phases; i++)
        if (tile_scratch_floats(p->back[i]) > most) most = tile_scratch_floats(p->back[i]);
    if (p->wgrad && wgrad_scratch_floats(p->wgrad) > most) most = wgrad_scratch_floats(p->wgrad);
    return most;
}

void conv_forward(const conv_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                  float *y, float *scratch)
{
    conv_epilogue none = { .act = ACT_NONE };
    if (!ep) ep = &none;
    if (p->road == REFERENCE) ref_conv_forward(&p->s, x, packed, ep, y);
    else tile_run(p->forward, x, packed, ep, y, scratch);
}

void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch)
{
    if (p->road == REFERENCE) { ref_conv_data_grad(&p->s, dy, packed, accumulate, dx); return; }
    conv_epilogue ep = { .residual = accumulate ? dx : NULL, .act = ACT_NONE };
    for (int i = 0; i < p->phases; i++) {
        tile_run(p->back[i], dy, packed, &ep, dx, scratch);
        packed += tile_packed_floats(p->back[i]);
    }
}

void conv_weight_grad(const conv_plan *p, const float *x, const float *dy, bool accumulate,
                      float *dw, float *scratch)
{
    if (p->road == REFERENCE) ref_conv_weight_grad(&p->s, x, dy, accumulate, dw);
    else wgrad_run(p->wgrad, x, dy, accumulate, dw, scratch);
}
