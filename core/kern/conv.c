/* Convolution: shapes, and the roads a plan may take. */
#include <assert.h>
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


typedef enum { REFERENCE, IM2COL, DIRECT, DEPTHWISE, FULL } road_kind;

/* One pass: Winograd's, or its gathers, all on the tile or all depthwise. */
typedef struct { wino_plan *wino; tile_plan **tile; dw_plan **dw; int M, n; size_t packed; } gather_set;

struct conv_plan {
    conv_shape s;
    road_kind road;
    unsigned passes;
    bool prologue, joins;
    gather_set forward, back, unit;                      /* unit: data gradient of WGRAD_UNIT pixels */
    wgrad_plan *wgrad;           /* dense; depthwise uses forward's plan */
    wino_wgrad_plan *wino;       /* … instead */
    wgrad_one_plan *one;         /* … or this */
    int wino_M;
    im2col_plan *im2col;
    full_plan *full;
};

static bool set_add(gather_set *set, const gather *g, const conv_shape *s, unsigned how, err *e)
{
    if (set->dw) {
        if (!(set->dw[set->n] = dw_plan_new(g, s, set->packed, e))) return false;
        set->packed += dw_packed_floats(set->dw[set->n++]);
    } else {
        if (!(set->tile[set->n] = tile_plan_new(g, s, how, set->packed, e))) return false;
        set->packed += tile_packed_floats(set->tile[set->n++]);
    }
    return true;
}

/* Side of Winograd's tiles; 0: not his. */
static int wino_for(const conv_shape *s, conv_pass pass)
{
    const char *road = conv_road();
    if (conv_exact() || !wino_can(s, pass)) return 0;
    if (!strncmp(road, "winograd", 8)) return road[8] - '0';
    return pass == CONV_WEIGHT_GRAD ? wino_wgrad_choose(s) : wino_choose(s, pass);
}

static bool set_new(gather_set *set, conv_plan *p, const conv_shape *s, conv_pass pass, err *e)
{
    set->M = p->road == DIRECT ? wino_for(s, pass) : 0;
    if (set->M) {
        set->wino = wino_plan_new(s, pass, set->M, e);
        set->packed = set->wino ? wino_packed_floats(set->wino) : 0;
        return set->wino;
    }
    size_t phases = pass == CONV_FORWARD ? 1 : (size_t)s->sh * (size_t)s->sw;
    gather *g = mem_new(phases, sizeof *g, e);
    if (g && p->road == DEPTHWISE) set->dw = mem_new(phases, sizeof *set->dw, e);
    if (g && p->road == DIRECT) set->tile = mem_new(phases, sizeof *set->tile, e);
    int n = set->dw || set->tile ? gathers_new(s, pass, g, e) : 0, i = 0;
    const unsigned how = pass == CONV_FORWARD ? (p->prologue ? CONV_PROLOGUE : 0) | (p->passes & (CONV_SUMS | CONV_INSIDE)) : CONV_SUMS;
    while (i < n && set_add(set, &g[i], s, how, e)) i++;
    if (i < n) gathers_free(g + i + 1, n - i - 1);
    mem_free(g);
    return n && i == n;
}

static void set_free(gather_set *set)
{
    wino_plan_free(set->wino);
    for (int i = 0; set->tile && i < set->n; i++) tile_plan_free(set->tile[i]);
    for (int i = 0; set->dw && i < set->n; i++) dw_plan_free(set->dw[i]);
    mem_free(set->tile);
    mem_free(set->dw);
}

static void set_pack(const gather_set *set, const float *w, float *packed)
{
    if (set->wino) wino_pack(set->wino, w, packed);
    for (int i = 0; i < set->n; i++) {
        if (set->dw) dw_pack(set->dw[i], w, packed);
        else tile_pack(set->tile[i], w, packed);
    }
}

static void set_run(const gather_set *set, const float *x, const conv_prologue *pro, const float *packed,
                    const conv_epilogue *ep, const grad_moments *moments, float *y, float *scratch)
{
    assert(!moments || set->tile);
    if (set->wino) wino_run(set->wino, x, packed, ep, y, scratch);
    else if (set->dw) dw_run(set->dw, set->n, x, pro, packed, ep, y);
    else tile_run(set->tile, set->n, x, pro, packed, ep, moments, y, scratch);
}

static size_t set_scratch(const gather_set *set)
{
    size_t most = set->wino ? wino_scratch_floats(set->wino) : 0;
    for (int i = 0; set->tile && i < set->n; i++)
        if (tile_scratch_floats(set->tile[i]) > most) most = tile_scratch_floats(set->tile[i]);
    return most;
}

static bool roads_new(conv_plan *p, unsigned passes, err *e)
{
    const bool dw = p->road == DEPTHWISE;
    conv_shape unit = p->s;
    unit.n = unit.h = 1, unit.w = WGRAD_UNIT;
    if (p->road == REFERENCE) return true;
    if (p->road == IM2COL) return (p->im2col = im2col_plan_new(&p->s, e));
    if (p->road == FULL) return (p->full = full_plan_new(&p->s, e));
    if ((passes & CONV_FORWARD || (dw && passes & CONV_WEIGHT_GRAD)) && !set_new(&p->forward, p, &p->s, CONV_FORWARD, e)) return false;
    if (passes & CONV_DATA_GRAD && !set_new(&p->back, p, &p->s, CONV_DATA_GRAD, e)) return false;
    if (p->joins && !dw && passes & CONV_DATA_GRAD && !set_new(&p->unit, p, &unit, CONV_DATA_GRAD, e)) return false;
    assert(!p->unit.tile || !set_scratch(&p->unit));     /* wgrad_joins has seen to it */
    p->wino_M = passes & CONV_WEIGHT_GRAD && p->road == DIRECT ? wino_for(&p->s, CONV_WEIGHT_GRAD) : 0;
    if (p->wino_M) return (p->wino = wino_wgrad_plan_new(&p->s, p->wino_M, e));
    if (dw || !(passes & CONV_WEIGHT_GRAD)) return true;
    if (!p->joins && wgrad_one_can(&p->s)) return (p->one = wgrad_one_plan_new(&p->s, e));
    return (p->wgrad = wgrad_plan_new(&p->s, p->prologue, p->joins, e));
}

static road_kind road_for(const conv_shape *s)
{
    const char *road = conv_road();
    if (!strcmp(road, "reference")) return REFERENCE;
    if (!strcmp(road, "im2col")) return IM2COL;
    return is_depthwise(s) ? DEPTHWISE : DIRECT;
}

/* Dense 1×1 kernels see each value of a unit many times and prepare it once; of depthwise kernels the small
 * ones are as fast as memory anyway. */
bool conv_has_prologue(const conv_shape *s)
{
    const road_kind road = road_for(s);
    return (road == DIRECT && !full_can(s) && is_one(s) && s->groups == 1 && (int64_t)s->n * s->h * s->w <= INT32_MAX)
        || (road == DEPTHWISE && s->kh * s->kw <= 9);
}

bool conv_joins_norm(const conv_shape *s)
{
    const road_kind road = road_for(s);
    return (road == DIRECT && !full_can(s) && wgrad_joins(s)) || (road == DEPTHWISE && dw_joins(s));
}

conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e)
{
    if (!conv_shape_check(s, e)) return NULL;
    conv_plan *p = mem_new(1, sizeof *p, e);
    if (!p) return NULL;
    p->s = *s;
    p->road = road_for(s);
    p->passes = passes;
    p->prologue = passes & CONV_PROLOGUE && conv_has_prologue(s);
    p->joins = passes & CONV_NORM_GRAD && conv_joins_norm(s);
    if (p->road == DIRECT && passes & CONV_WEIGHT_GRAD && full_can(s)) p->road = FULL;
    if (!roads_new(p, passes, e)) { conv_plan_free(p); return NULL; }
    return p;
}

void conv_plan_free(conv_plan *p)
{
    if (!p) return;
    set_free(&p->forward);
    set_free(&p->back);
    set_free(&p->unit);
    wgrad_plan_free(p->wgrad);
    wino_wgrad_plan_free(p->wino);
    wgrad_one_plan_free(p->one);
    im2col_plan_free(p->im2col);
    full_plan_free(p->full);
    mem_free(p);
}

const conv_shape *conv_plan_shape(const conv_plan *p) { return &p->s; }

const char *conv_plan_road(const conv_plan *p)
{
    static const char *const name[] = { [REFERENCE] = "reference", [IM2COL] = "im2col", [DIRECT] = "direct", [DEPTHWISE] = "depthwise", [FULL] = "full" };
    const int M = p->forward.M ? p->forward.M : p->back.M ? p->back.M : p->wino_M;
    return M == 4 ? "winograd4" : M == 2 ? "winograd2" : name[p->road];
}

static size_t weight_floats(const conv_shape *s)
{
    return (size_t)s->o * (size_t)(s->c / s->groups) * (size_t)s->kh * (size_t)s->kw;
}

bool conv_packs(const conv_plan *p) { return p->road != REFERENCE && p->road != FULL; }

size_t conv_packed_floats(const conv_plan *p, conv_pass pass)
{
    if (!conv_packs(p)) return weight_floats(&p->s);
    if (p->road == IM2COL) return im2col_packed_floats(p->im2col);
    return pass == CONV_FORWARD ? p->forward.packed : p->back.packed;
}

void conv_pack(const conv_plan *p, conv_pass pass, const float *w_oihw, float *packed)
{
    if (!conv_packs(p)) { memcpy(packed, w_oihw, weight_floats(&p->s) * sizeof *packed); return; }
    if (p->road == IM2COL) { im2col_pack(p->im2col, w_oihw, packed); return; }
    set_pack(pass == CONV_FORWARD ? &p->forward : &p->back, w_oihw, packed);
}

size_t conv_scratch_floats(const conv_plan *p)
{
    if (p->road == IM2COL) return im2col_scratch_floats(p->im2col);
    if (p->road == FULL) return full_scratch_floats(p->full);
    size_t most = p->wgrad ? wgrad_scratch_floats(p->wgrad) : p->forward.dw && p->passes & CONV_WEIGHT_GRAD ? dw_wgrad_scratch_floats(*p->forward.dw) : 0;
    if (p->one) most = wgrad_one_scratch_floats(p->one);
    if (p->wino) most = wino_wgrad_scratch_floats(p->wino);
    if (p->joins && p->road == DEPTHWISE) most = dw_join_scratch_floats(*p->forward.dw, p->back.dw, p->back.n);
    if (set_scratch(&p->forward) > most) most = set_scratch(&p->forward);
    return set_scratch(&p->back) > most ? set_scratch(&p->back) : most;
}

int64_t conv_parts(const conv_plan *p)
{
    const gather_set *f = &p->forward;
    if (!(p->passes & CONV_SUMS)) return 0;
    return f->tile ? tile_parts(*f->tile) : f->dw ? dw_parts(*f->dw) : 0;
}

void conv_forward(const conv_plan *p, const float *x, const conv_prologue *pro, const float *packed,
                  const conv_epilogue *ep, float *y, float *scratch)
{
    conv_epilogue none = { .act = ACT_NONE };
    if (!ep) ep = &none;
    if (p->road == REFERENCE) ref_conv_forward(&p->s, x, packed, ep, y);
    else if (p->road == IM2COL) im2col_forward(p->im2col, x, packed, ep, y, scratch);
    else if (p->road == FULL) full_forward(p->full, x, packed, ep, y, scratch);
    else set_run(&p->forward, x, pro, packed, ep, NULL, y, scratch);
}

void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch)
{
    if (p->road == REFERENCE) { ref_conv_data_grad(&p->s, dy, packed, accumulate, dx); return; }
    if (p->road == IM2COL) { im2col_data_grad(p->im2col, dy, packed, accumulate, dx, scratch); return; }
    if (p->road == FULL) { full_data_grad(p->full, dy, packed, (grad_out){ dx, accumulate }, scratch); return; }
    conv_epilogue ep = { .residual = accumulate ? dx : NULL, .act = ACT_NONE };
    set_run(&p->back, dy, NULL, packed, &ep, NULL, dx, scratch);
}

void conv_weight_grad(const conv_plan *p, const float *x, const conv_prologue *pro, const float *dy,
                      bool accumulate, float *dw, float *scratch)
{
    if (p->road == REFERENCE) ref_conv_weight_grad(&p->s, x, dy, accumulate, dw);
    else if (p->road == IM2COL) im2col_weight_grad(p->im2col, x, dy, accumulate, dw, scratch);
    else if (p->road == FULL) full_weight_grad(p->full, x, dy, (grad_out){ dw, accumulate }, scratch);
    else if (p->road == DEPTHWISE) dw_wgrad_run(*p->forward.dw, x, pro, dy, accumulate, dw, scratch);
    else if (p->one) wgrad_one_run(p->one, x, pro, dy, accumulate, dw, scratch);
    else if (p->wino) wino_wgrad_run(p->wino, x, dy, accumulate, dw, scratch);
    else wgrad_run(p->wgrad, x, pro, dy, NULL, accumulate, dw, scratch);
}

int64_t conv_grad_parts(const conv_plan *p)
{
    if (p->joins) return p->road == DEPTHWISE ? dw_blocks(*p->forward.dw) : wgrad_blocks(p->wgrad);
    return p->back.tile && p->back.n == 1 ? tile_parts(*p->back.tile) : 0;
}

typedef struct { const conv_plan *p; const conv_grads *g; const grad_moments *moments; } unit_job;

/* On the thread that has just made dy. */
static void unit_data_grad(void *ctx, int block, bool first, int64_t pixel, const float *dy)
{
    const unit_job *j = ctx;
    const conv_grads *g = j->g;
    const int c = j->p->s.c;
    if (!g->dx.p) return;
    float *dx = g->dx.p + pixel * c;
    const conv_epilogue ep = { .residual = g->dx.accumulate ? dx : NULL, .act = ACT_NONE };
    set_run(&j->p->unit, dy, NULL, g->packed, &ep, NULL, dx, NULL);
    if (!j->moments) return;
    if (first) grad_moments_open(j->moments, block, 0, c);
    grad_moments_add(j->moments, block, 0, c, WGRAD_UNIT, pixel * c, c, dx);
}

void conv_backward(const conv_plan *p, const conv_grads *g, float *scratch)
{
    const grad_moments own = { g->pro ? *g->pro : (conv_prologue){ 0 }, g->x, g->sums.mean, g->sums.part, p->s.c };
    const grad_moments *moments = g->sums.part ? &own : NULL;
    assert(!moments || !g->dx.accumulate);
    if (g->norm && p->road == DEPTHWISE) {
        dw_join_run(*p->forward.dw, p->back.dw, g->dx.p ? p->back.n : 0, g, moments, scratch);
        return;
    }
    if (g->norm) {
        unit_job j = { p, g, moments };
        wgrad_run(p->wgrad, g->x, g->pro, g->dy, &(wgrad_join){ g->norm, unit_data_grad, &j }, g->dw.accumulate, g->dw.p, scratch);
        return;
    }
    conv_weight_grad(p, g->x, g->pro, g->dy, g->dw.accumulate, g->dw.p, scratch);
    if (!g->dx.p) return;
    if (!moments) { conv_data_grad(p, g->dy, g->packed, g->dx.accumulate, g->dx.p, scratch); return; }
    assert(!p->joins);
    set_run(&p->back, g->dy, NULL, g->packed, &(conv_epilogue){ .act = ACT_NONE }, moments, g->dx.p, scratch);
}
