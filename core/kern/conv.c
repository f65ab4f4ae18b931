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


/* A gather on the road of its plan. */
typedef struct { tile_plan *tile; dw_plan *dw; } gather_plan;

typedef enum { REFERENCE, IM2COL, DIRECT, DEPTHWISE } road_kind;

struct conv_plan {
    conv_shape s;
    road_kind road;
    gather_plan forward, *back;  /* back: one per phase */
    int phases;
    wgrad_plan *wgrad;           /* dense; depthwise uses forward's plan */
    im2col_plan *im2col;
};

static bool gather_plan_new(gather_plan *p, const gather *g, const conv_shape *s, road_kind road, err *e)
{
    if (road == DEPTHWISE) return (p->dw = dw_plan_new(g, s, e));
    return (p->tile = tile_plan_new(g, s, e));
}

static void gather_plan_free(gather_plan *p)
{
    tile_plan_free(p->tile);
    dw_plan_free(p->dw);
}

static size_t gather_packed(const gather_plan *p) { return p->dw ? dw_packed_floats(p->dw) : tile_packed_floats(p->tile); }

static void gather_pack(const gather_plan *p, const float *w, float *packed)
{
    if (p->dw) dw_pack(p->dw, w, packed);
    else tile_pack(p->tile, w, packed);
}

static void gather_run(const gather_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                       float *y, float *scratch)
{
    if (p->dw) dw_run(p->dw, x, packed, ep, y);
    else tile_run(p->tile, x, packed, ep, y, scratch);
}

static bool back_new(conv_plan *p, err *e)
{
    const conv_shape *s = &p->s;
    size_t phases = (size_t)s->sh * (size_t)s->sw;
    gather *g = mem_new(phases, sizeof *g, e);
    p->back = g ? mem_new(phases, sizeof *p->back, e) : NULL;
    int n = p->back ? gathers_new(s, CONV_DATA_GRAD, g, e) : 0, i = 0;
    while (i < n && gather_plan_new(&p->back[i], &g[i], s, p->road, e)) i++;
    if (i < n) gathers_free(g + i + 1, n - i - 1);
    mem_free(g);
    p->phases = i;
    return n && i == n;
}

static bool direct_new(conv_plan *p, unsigned passes, err *e)
{
    gather g;
    bool dw = p->road == DEPTHWISE;
    if (p->road == IM2COL) return (p->im2col = im2col_plan_new(&p->s, e));
    if (passes & CONV_FORWARD || (dw && passes & CONV_WEIGHT_GRAD))
        if (!gathers_new(&p->s, CONV_FORWARD, &g, e) || !gather_plan_new(&p->forward, &g, &p->s, p->road, e)) return false;
    if (passes & CONV_DATA_GRAD && !back_new(p, e)) return false;
    return dw || !(passes & CONV_WEIGHT_GRAD) || (p->wgrad = wgrad_plan_new(&p->s, e));
}

conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e)
{
    if (!conv_shape_check(s, e)) return NULL;
    conv_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    bool depthwise = s->groups > 1 && s->groups == s->c && s->groups == s->o;
    p->s = *s;
    p->road = !strcmp(conv_road(), "reference") ? REFERENCE : !strcmp(conv_road(), "im2col") ? IM2COL
            : depthwise ? DEPTHWISE : DIRECT;
    if (p->road != REFERENCE && !direct_new(p, passes, e)) { conv_plan_free(p); return NULL; }
    return p;
}

void conv_plan_free(conv_plan *p)
{
    if (!p) return;
    gather_plan_free(&p->forward);
    for (int i = 0; i < p->phases; i++) gather_plan_free(&p->back[i]);
    mem_free(p->back);
    wgrad_plan_free(p->wgrad);
    im2col_plan_free(p->im2col);
    mem_free(p);
}

const conv_shape *conv_plan_shape(const conv_plan *p) { return &p->s; }

const char *conv_plan_road(const conv_plan *p)
{
    static const char *const name[] = { [REFERENCE] = "reference", [IM2COL] = "im2col", [DIRECT] = "direct", [DEPTHWISE] = "depthwise" };
    return name[p->road];
}

static size_t weight_floats(const conv_shape *s)
{
    return (size_t)s->o * (size_t)(s->c / s->groups) * (size_t)s->kh * (size_t)s->kw;
}

size_t conv_packed_floats(const conv_plan *p, conv_pass pass)
{
    if (p->road == REFERENCE) return weight_floats(&p->s);
    if (p->road == IM2COL) return im2col_packed_floats(p->im2col);
    if (pass == CONV_FORWARD) return gather_packed(&p->forward);
    size_t sum = 0;
    for (int i = 0; i < p->phases; i++) sum += gather_packed(&p->back[i]);
    return sum;
}

void conv_pack(const conv_plan *p, conv_pass pass, const float *w_oihw, float *packed)
{
    if (p->road == REFERENCE) { memcpy(packed, w_oihw, weight_floats(&p->s) * sizeof *packed); return; }
    if (p->road == IM2COL) { im2col_pack(p->im2col, w_oihw, packed); return; }
    if (pass == CONV_FORWARD) { gather_pack(&p->forward, w_oihw, packed); return; }
    for (int i = 0; i < p->phases; i++) {
        gather_pack(&p->back[i], w_oihw, packed);
        packed += gather_packed(&p->back[i]);
    }
}

size_t conv_scratch_floats(const conv_plan *p)
{
    if (p->road == IM2COL) return im2col_scratch_floats(p->im2col);
    int64_t most = p->wgrad ? (int64_t)wgrad_scratch_floats(p->wgrad) : 0;
    if (p->forward.dw) most = (int64_t)dw_wgrad_scratch_floats(p->forward.dw);
    if (p->forward.tile) most = kern_max(most, (int64_t)tile_scratch_floats(p->forward.tile));
    for (int i = 0; i < p->phases; i++)
        if (p->back[i].tile) most = kern_max(most, (int64_t)tile_scratch_floats(p->back[i].tile));
    return (size_t)most;
}

void conv_forward(const conv_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                  float *y, float *scratch)
{
    conv_epilogue none = { .act = ACT_NONE };
    if (!ep) ep = &none;
    if (p->road == REFERENCE) ref_conv_forward(&p->s, x, packed, ep, y);
    else if (p->road == IM2COL) im2col_forward(p->im2col, x, packed, ep, y, scratch);
    else gather_run(&p->forward, x, packed, ep, y, scratch);
}

void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch)
{
    if (p->road == REFERENCE) { ref_conv_data_grad(&p->s, dy, packed, accumulate, dx); return; }
    if (p->road == IM2COL) { im2col_data_grad(p->im2col, dy, packed, accumulate, dx, scratch); return; }
    conv_epilogue ep = { .residual = accumulate ? dx : NULL, .act = ACT_NONE };
    for (int i = 0; i < p->phases; i++) {
        gather_run(&p->back[i], dy, packed, &ep, dx, scratch);
        packed += gather_packed(&p->back[i]);
    }
}

void conv_weight_grad(const conv_plan *p, const float *x, const float *dy, bool accumulate,
                      float *dw, float *scratch)
{
    if (p->road == REFERENCE) ref_conv_weight_grad(&p->s, x, dy, accumulate, dw);
    else if (p->road == IM2COL) im2col_weight_grad(p->im2col, x, dy, accumulate, dw, scratch);
    else if (p->road == DEPTHWISE) dw_wgrad_run(p->forward.dw, x, dy, accumulate, dw, scratch);
    else wgrad_run(p->wgrad, x, dy, accumulate, dw, scratch);
}
