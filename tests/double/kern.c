/* core/kern.h for the double world: every kernel as the plainest loop, written apart from the ones
 * it is compared with. */
#include <math.h>
#include <string.h>

#include "core/kern.h"

int conv_out_h(const conv_shape *s)
{
    return (s->h + s->pt + s->pb - s->dh * (s->kh - 1) - 1) / s->sh + 1;
}
int conv_out_w(const conv_shape *s)
{
    return (s->w + s->pl + s->pr - s->dw * (s->kw - 1) - 1) / s->sw + 1;
}
int64_t conv_macs(const conv_shape *s) { return s->n; }

bool conv_shape_check(const conv_shape *s, err *e)
{
    return (s->n > 0 && conv_out_h(s) > 0 && conv_out_w(s) > 0) || err_set(e, ERR_CONFIG, "empty");
}

struct conv_plan { conv_shape s; };

conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e)
{
    conv_plan *p = mem_new(1, sizeof *p, e);
    (void)passes;
    if (p)
        p->s = *s;
    return p;
}

void   conv_plan_free(conv_plan *p) { mem_free(p); }
size_t conv_scratch_floats(const conv_plan *p) { return (size_t)p->s.n; }
int64_t conv_parts(const conv_plan *p) { return 0 * p->s.n; }
const char *conv_plan_road(const conv_plan *p) { return p ? "double" : ""; }

/* Linear layers do not, so that gradients are checked both ways. */
bool conv_packs(const conv_plan *p) { return p->s.kh != p->s.h || p->s.kw != p->s.w; }

size_t conv_packed_floats(const conv_plan *p, conv_pass pass)
{
    (void)pass;
    return (size_t)(p->s.o * p->s.c / p->s.groups * p->s.kh * p->s.kw);
}

void conv_pack(const conv_plan *p, conv_pass pass, const float *w, float *packed)
{
    memcpy(packed, w, conv_packed_floats(p, pass) * sizeof *w);
}

static double activate(act_kind act, double v)
{
    return act == ACT_RELU ? fmax(v, 0) : act == ACT_RELU6 ? fmin(fmax(v, 0), 6) : v;
}

bool conv_has_prologue(const conv_shape *s) { return s->c > 0; }

/* Nothing runs in bands here. */
bool   conv_bands_win(const conv_shape *s, int n) { (void)s, (void)n; return false; }
conv_bands *conv_bands_new(const conv_shape *s, int n, int rows, err *e) { (void)s, (void)n, (void)rows, (void)e; return NULL; }
void   conv_bands_free(conv_bands *b) { (void)b; }
size_t conv_bands_scratch_floats(const conv_bands *b) { (void)b; return 0; }
void   conv_bands_forward(const conv_bands *b, const float *x, const conv_link *link, float *y, float *scratch, int64_t *ns)
{
    (void)b, (void)x, (void)link, (void)y, (void)scratch, (void)ns;
}

static double prepared(const float *x, int64_t at, const conv_prologue *pro, int c)
{
    return pro ? activate(pro->act, x[at] * pro->scale[at % c] + pro->shift[at % c]) : x[at];
}

/* One loop for all passes: every product of an input, a weight and an output, each of which may be
 * written. */
static void convolve(const conv_shape *s, const float *x, const conv_prologue *pro, const float *w,
                     const float *dy, float *y, float *dx, float *dw)
{
    const int OH = conv_out_h(s), OW = conv_out_w(s), ci = s->c / s->groups, co = s->o / s->groups;
    for (int n = 0; n < s->n; n++)
        for (int oh = 0; oh < OH; oh++)
            for (int ow = 0; ow < OW; ow++)
                for (int o = 0; o < s->o; o++)
                    for (int i = 0; i < s->kh; i++)
                        for (int j = 0; j < s->kw; j++)
                            for (int c = 0; c < ci; c++) {
                                const int h = oh * s->sh - s->pt + i * s->dh;
                                const int v = ow * s->sw - s->pl + j * s->dw;
                                if (h < 0 || v < 0 || h >= s->h || v >= s->w)
                                    continue;
                                const int64_t at_x =
                                    ((n * s->h + h) * s->w + v) * s->c + o / co * ci + c;
                                const int64_t at_w = ((o * ci + c) * s->kh + i) * s->kw + j;
                                const int64_t at_y = ((n * OH + oh) * OW + ow) * s->o + o;
                                if (y)
                                    y[at_y] += prepared(x, at_x, pro, s->c) * w[at_w];
                                if (dx)
                                    dx[at_x] += dy[at_y] * w[at_w];
                                if (dw)
                                    dw[at_w] += dy[at_y] * prepared(x, at_x, pro, s->c);
                            }
}

/* From the output. */
static double slope(act_kind act, double y)
{
    return act == ACT_NONE ? 1 : act == ACT_RELU ? y > 0 : y > 0 && y < 6;
}

void conv_forward(const conv_plan *p, const float *x, const conv_prologue *pro, const float *packed,
                  const conv_epilogue *ep, float *y, float *scratch)
{
    const conv_shape *s = &p->s;
    const int64_t count = (int64_t)s->n * conv_out_h(s) * conv_out_w(s) * s->o;
    (void)scratch;
    for (int64_t i = 0; i < count; i++)
        y[i] = ep && ep->bias ? ep->bias[i % s->o] : 0;
    convolve(s, x, pro, packed, NULL, y, NULL, NULL);
}

void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch)
{
    const conv_shape *s = &p->s;
    (void)scratch;
    for (int64_t i = 0; i < (int64_t)s->n * s->h * s->w * s->c && !accumulate; i++)
        dx[i] = 0;
    convolve(s, NULL, NULL, packed, dy, NULL, dx, NULL);
}

void conv_weight_grad(const conv_plan *p, const float *x, const conv_prologue *pro, const float *dy,
                      bool accumulate, float *dw, float *scratch)
{
    (void)scratch;
    for (size_t i = 0; i < conv_packed_floats(p, CONV_FORWARD) && !accumulate; i++)
        dw[i] = 0;
    convolve(&p->s, x, pro, NULL, dy, NULL, NULL, dw);
}

static void put(grad_out g, int64_t i, double v)
{
    if (g.p)
        g.p[i] = (g.accumulate ? g.p[i] : 0) + v;
}

bool conv_joins_norm(const conv_shape *s) { return s->c > 0; }

int64_t conv_grad_parts(const conv_plan *p) { return p->s.n; }

void conv_backward(const conv_plan *p, const conv_grads *g, float *scratch)
{
    const conv_shape *s = &p->s;
    const int64_t rows = (int64_t)s->n * conv_out_h(s) * conv_out_w(s), image = (int64_t)s->h * s->w * s->c;
    float *dz = mem_new((size_t)(rows * s->o), sizeof *dz, NULL);
    if (g->norm)
        bn_grad_rows(g->norm, 0, rows, g->dy, dz);
    conv_weight_grad(p, g->x, g->pro, g->norm ? dz : g->dy, g->dw.accumulate, g->dw.p, scratch);
    if (g->dx.p)
        conv_data_grad(p, g->norm ? dz : g->dy, g->packed, g->dx.accumulate, g->dx.p, scratch);
    mem_free(dz);
    for (int64_t i = 0; g->sums.part && i < s->n * image; i++) {
        double *part = g->sums.part + i / image * 2 * s->c;
        const int c = (int)(i % s->c);
        if (i % image < s->c)
            part[c] = part[s->c + c] = 0;
        const double dz_i = g->dx.p[i] * (g->pro->act == ACT_NONE ? 1 : slope(g->pro->act, prepared(g->x, i, g->pro, s->c)));
        part[c] += dz_i;
        part[s->c + c] += dz_i * (g->x[i] - g->sums.mean[c]);
    }
}

size_t bn_scratch_bytes(int64_t rows, int c) { return (size_t)(rows + c) * sizeof(double); }

void bn_forward(int64_t rows, int c, const float *x, const row_sums *known, const float *gamma,
                const float *beta, float eps, const float *residual, act_kind act,
                const bn_stats *st, float *y, void *scratch)
{
    (void)known;
    (void)scratch;
    for (int k = 0; k < c; k++) {
        double mean = 0, var = 0;
        for (int64_t r = 0; r < rows; r++)
            mean += x[r * c + k] / (double)rows;
        for (int64_t r = 0; r < rows; r++)
            var += (x[r * c + k] - mean) * (x[r * c + k] - mean) / (double)rows;
        st->mean[k] = mean;
        st->var[k] = var;
        st->invstd[k] = 1 / sqrt(var + eps);
        st->scale[k] = st->invstd[k] * gamma[k];
        st->shift[k] = beta[k] - mean * st->scale[k];
        for (int64_t i = k; y && i < rows * c; i += c)
            y[i] = activate(act, (x[i] - mean) * st->scale[k] + beta[k] + (residual ? residual[i] : 0));
    }
}

/* known is put to use only in bn_backward_sums: so both ways are taken. */
void bn_backward(int64_t rows, int c, const float *x, const float *y, const float *dy, const row_sums *known,
                 const float *gamma, const bn_stats *st, act_kind act, grad_out dx, grad_out dres,
                 grad_out dgamma, grad_out dbeta, void *scratch)
{
    double *dz = scratch;
    (void)known;
    const double *mean = st->mean, *invstd = st->invstd;
    for (int k = 0; k < c; k++) {
        double sum = 0, dot = 0;
        for (int64_t r = 0, i = k; r < rows; r++, i += c) {
            const double out = y ? y[i] : activate(act, x[i] * st->scale[k] + st->shift[k]);
            dz[r] = dy[i] * (act == ACT_NONE ? 1 : slope(act, out));
            sum += dz[r];
            dot += dz[r] * (x[i] - mean[k]) * invstd[k];
        }
        put(dgamma, k, dot);
        put(dbeta, k, sum);
        for (int64_t r = 0, i = k; r < rows; r++, i += c) {
            const double hat = (x[i] - mean[k]) * invstd[k];
            put(dx, i,
                gamma[k] * invstd[k] * (dz[r] - sum / (double)rows - hat * dot / (double)rows));
            put(dres, i, dz[r]);
        }
    }
}

/* coef: for every channel mean, 1/deviation, gamma, scale, shift, and the means of dz and dz*xhat. */
enum { COEFS = 7 };
size_t bn_grad_floats(int c) { return (size_t)(COEFS * c); }

void bn_backward_sums(int64_t rows, int c, const float *x, const float *dy, const row_sums *known, const float *gamma,
                      const bn_stats *st, act_kind act, grad_out dgamma, grad_out dbeta, float *coef, void *scratch)
{
    (void)scratch;
    for (int k = 0; k < c; k++) {
        double sum = 0, dot = 0;
        for (int64_t i = k; i < rows * c; i += c) {
            const double out = activate(act, x[i] * st->scale[k] + st->shift[k]), dz = dy[i] * slope(act, out);
            sum += dz;
            dot += dz * (x[i] - st->mean[k]) * st->invstd[k];
        }
        if (known)
            sum = dot = 0;
        for (int64_t i = 0; known && i < known->parts; i++) {
            sum += known->part[i * 2 * c + k];
            dot += known->part[(i * 2 + 1) * c + k] * st->invstd[k];
        }
        put(dgamma, k, dot);
        put(dbeta, k, sum);
        const double all[COEFS] = { st->mean[k], st->invstd[k], gamma[k], st->scale[k], st->shift[k], sum / (double)rows, dot / (double)rows };
        for (int i = 0; i < COEFS; i++)
            coef[k * COEFS + i] = all[i];
    }
}

void bn_grad_rows(const bn_grad *g, int64_t first, int64_t rows, const float *dy, float *dx)
{
    for (int64_t i = first * g->c; i < (first + rows) * g->c; i++) {
        const float *k = g->coef + i % g->c * COEFS;
        const double dz = dy[i] * slope(g->act, activate(g->act, g->x[i] * k[3] + k[4])), hat = (g->x[i] - k[0]) * k[1];
        dx[i - first * g->c] = k[2] * k[1] * (dz - k[5] - hat * k[6]);
    }
}

void affine_forward(int64_t rows, int c, const float *x, const float *scale, const float *shift,
                    const float *residual, act_kind act, float *y)
{
    for (int64_t i = 0; i < rows * c; i++)
        y[i] = activate(act, x[i] * (scale ? scale[i % c] : 1) + (shift ? shift[i % c] : 0)
                             + (residual ? residual[i] : 0));
}

void act_backward(int64_t count, act_kind act, const float *x, const float *y, const float *dy,
                  bool accumulate, float *dx)
{
    (void)x;
    for (int64_t i = 0; i < count; i++)
        put((grad_out){ dx, accumulate }, i, dy[i] * (act == ACT_NONE ? 1 : slope(act, y[i])));
}

void channel_sum(int64_t rows, int c, const float *x, bool accumulate, float *out, void *scratch)
{
    (void)scratch;
    for (int k = 0; k < c; k++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++)
            sum += x[r * c + k];
        put((grad_out){ out, accumulate }, k, sum);
    }
}

/* ---- pools: visit(output, input) for every tap inside the image ------------------------------ */

typedef struct {
    const conv_shape *s;
    const float *x, *dy;
    float *y, *dx;
    bool largest, count_pad;
} pool;

static void pool_window(const pool *p, int n, int oh, int ow, int c, int64_t at_y)
{
    const conv_shape *s = p->s;
    int64_t best = -1;
    int taps = 0;
    double sum = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < s->kh; i++)
            for (int j = 0; j < s->kw; j++) {
                const int h = oh * s->sh - s->pt + i, w = ow * s->sw - s->pl + j;
                if (h < 0 || w < 0 || h >= s->h || w >= s->w)
                    continue;
                const int64_t at = ((n * s->h + h) * s->w + w) * s->c + c;
                if (pass == 1) {
                    if (p->dx && !p->largest)
                        p->dx[at] += p->dy[at_y] / (p->count_pad ? s->kh * s->kw : taps);
                    continue;
                }
                taps++;
                if (p->x) {
                    sum += p->x[at];
                    best = best < 0 || p->x[at] > p->x[best] ? at : best;
                }
            }
    if (p->y)
        p->y[at_y] = p->largest ? p->x[best] : sum / (p->count_pad ? s->kh * s->kw : taps);
    if (p->dx && p->largest)
        p->dx[best] += p->dy[at_y];
}

static void pool_all(pool p, bool accumulate)
{
    const conv_shape *s = p.s;
    const int OH = (s->h + s->pt + s->pb - s->kh) / s->sh + 1;
    const int OW = (s->w + s->pl + s->pr - s->kw) / s->sw + 1;
    for (int64_t i = 0; p.dx && !accumulate && i < (int64_t)s->n * s->h * s->w * s->c; i++)
        p.dx[i] = 0;
    int64_t at = 0;
    for (int n = 0; n < s->n; n++)
        for (int oh = 0; oh < OH; oh++)
            for (int ow = 0; ow < OW; ow++)
                for (int c = 0; c < s->c; c++)
                    pool_window(&p, n, oh, ow, c, at++);
}

void maxpool_forward(const conv_shape *s, const float *x, float *y)
{
    pool_all((pool){ .s = s, .x = x, .y = y, .largest = true }, true);
}

void maxpool_backward(const conv_shape *s, const float *x, const float *dy, bool accumulate,
                      float *dx)
{
    pool_all((pool){ .s = s, .x = x, .dy = dy, .dx = dx, .largest = true }, accumulate);
}

void avgpool_forward(const conv_shape *s, bool count_pad, const float *x, float *y)
{
    pool_all((pool){ .s = s, .x = x, .y = y, .count_pad = count_pad }, true);
}

void avgpool_backward(const conv_shape *s, bool count_pad, const float *dy, bool accumulate,
                      float *dx)
{
    pool_all((pool){ .s = s, .dy = dy, .dx = dx, .count_pad = count_pad }, accumulate);
}
