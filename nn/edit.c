/* The affine algebra: convolutions as values, composed and added in double, rounded to float once
 * when they go back into a graph. Every formula is exact for full maps, borders included, provided
 * that padding sits in front of the first convolution only (ALGORITHM 2.3). */
#include "nn/nn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { KERNEL_MAX = 4096 };      /* rows or columns of a merged kernel; larger is a mistake */

/* ---- making and freeing ------------------------------------------------------------------------ */

static bool affine_init(nn_affine *out, int cin, int cout, int groups, int64_t kh, int64_t kw, err *e)
{
    *out = (nn_affine){ .cin = cin, .cout = cout, .groups = groups, .stride = { 1, 1 } };
    if (kh > KERNEL_MAX || kw > KERNEL_MAX)
        return err_set(e, ERR_CONFIG, "a merged kernel of %lld x %lld is too large",
                       (long long)kh, (long long)kw);
    out->k[0] = (int)kh;
    out->k[1] = (int)kw;
    size_t n;
    if (!size_mul((size_t)cout, (size_t)(cin / groups), &n) || !size_mul(n, (size_t)(kh * kw), &n))
        return err_set(e, ERR_NOMEM, "a merged convolution of %d x %d channels is too large", cout, cin);
    out->w = mem_new(n, sizeof *out->w, e);
    out->b = mem_new((size_t)cout, sizeof *out->b, e);
    if (out->w && out->b)
        return true;
    nn_affine_free(out);
    return false;
}

void nn_affine_free(nn_affine *a)
{
    mem_free(a->w);
    mem_free(a->b);
    *a = (nn_affine){ 0 };
}

nn_affine nn_affine_identity(int channels)
{
    return (nn_affine){ .identity = true, .cin = channels, .cout = channels, .groups = channels,
                        .k = { 1, 1 }, .stride = { 1, 1 } };
}

static int gcd(int a, int b)
{
    while (b) {
        int r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* The weights from output o to the o-group's i-th input: kh*kw doubles. */
static double *tap_of(const nn_affine *a, int64_t o, int64_t i)
{
    return a->w + (o * (a->cin / a->groups) + i) * a->k[0] * a->k[1];
}

/* The same map with `groups` groups (a divisor of the present number) and a kernel and padding
 * larger by grow (top, bottom, left, right). An identity becomes a depthwise 1×1 convolution of
 * ones first. `out` is a new value. */
static bool affine_embed(nn_affine *out, const nn_affine *a, int groups, const int grow[4], err *e)
{
    assert(a->groups % groups == 0);
    if (!affine_init(out, a->cin, a->cout, groups, (int64_t)a->k[0] + grow[0] + grow[1],
                     (int64_t)a->k[1] + grow[2] + grow[3], e))
        return false;
    memcpy(out->stride, a->stride, sizeof out->stride);
    for (int i = 0; i < 4; i++)
        out->pad[i] = a->pad[i] + grow[i];
    int ci = a->cin / a->groups, co = a->cout / a->groups;
    int wide_ci = a->cin / groups, wide_co = a->cout / groups;
    for (int o = 0; o < a->cout; o++) {
        int first = o / co * ci - o / wide_co * wide_ci;   /* where the narrow group begins */
        for (int i = 0; i < ci; i++)
            for (int u = 0; u < a->k[0]; u++) {
                double *to = tap_of(out, o, first + i) + (u + grow[0]) * out->k[1] + grow[2];
                if (a->identity)
                    *to = 1;
                else
                    memcpy(to, tap_of(a, o, i) + u * a->k[1], (size_t)a->k[1] * sizeof *to);
            }
        if (!a->identity)
            out->b[o] = a->b[o];
    }
    return true;
}

static bool affine_replace(nn_affine *a, int groups, const int grow[4], err *e)
{
    nn_affine wide;
    if (!affine_embed(&wide, a, groups, grow, e))
        return false;
    nn_affine_free(a);
    *a = wide;
    return true;
}

bool nn_affine_dense(nn_affine *a, err *e)
{
    if (a->groups == 1 && !a->identity)
        return true;
    return affine_replace(a, 1, (int[4]){ 0 }, e);
}

/* ---- from and to graphs ------------------------------------------------------------------------ */

static const float *node_values(const nn_graph *g, const nn_node *n, int which)
{
    return g->param[n->w[which]].x;
}

bool nn_affine_conv(nn_affine *out, const nn_graph *g, int conv, int norm, err *e)
{
    *out = (nn_affine){ 0 };
    const nn_node *c = &g->node[conv], *bn = norm < 0 ? NULL : &g->node[norm];
    if (c->op != NN_OP_conv2d || (bn && bn->op != NN_OP_batchnorm))
        return err_set(e, ERR_INTERNAL, "%s: only a convolution and its batch norm can be folded", c->name);
    const nn_attr *t = &c->attr;
    int cin = (int)g->node[c->in[0]].dim[3], ci = cin / t->groups;
    const int *d = t->dilation;
    if (!affine_init(out, cin, t->out, t->groups, (int64_t)d[0] * (t->k[0] - 1) + 1,
                     (int64_t)d[1] * (t->k[1] - 1) + 1, e))
        return err_note(e, "%s", c->name);
    memcpy(out->stride, t->stride, sizeof out->stride);
    memcpy(out->pad, t->pad, sizeof out->pad);

    const float *w = node_values(g, c, 0), *bias = t->bias ? node_values(g, c, 1) : NULL;
    for (int o = 0; o < t->out; o++) {
        double scale = 1, mean = 0, beta = 0;
        if (bn) {
            scale = (double)node_values(g, bn, 0)[o] /
                    sqrt((double)node_values(g, bn, 3)[o] + (double)bn->attr.eps);
            beta = (double)node_values(g, bn, 1)[o];
            mean = (double)node_values(g, bn, 2)[o];
        }
        for (int i = 0; i < ci; i++)
            for (int u = 0; u < t->k[0]; u++)
                for (int v = 0; v < t->k[1]; v++)
                    tap_of(out, o, i)[u * d[0] * out->k[1] + v * d[1]] = scale * (double)*w++;
        out->b[o] = scale * ((bias ? (double)bias[o] : 0) - mean) + beta;
    }
    return true;
}

bool nn_affine_slice(nn_affine *out, const nn_graph *g, int slice, err *e)
{
    *out = (nn_affine){ 0 };
    const nn_node *s = &g->node[slice];
    if (s->op != NN_OP_slice)
        return err_set(e, ERR_INTERNAL, "%s: is not a slice", s->name);
    const int *chan = s->attr.chan;
    int cin = (int)g->node[s->in[0]].dim[3];
    bool same = !chan[0] && !chan[1];            /* only subsampling: stays depthwise */
    if (!affine_init(out, cin, cin + chan[0] + chan[1], same ? cin : 1, 1, 1, e))
        return err_note(e, "%s", s->name);
    memcpy(out->stride, s->attr.stride, sizeof out->stride);
    for (int c = 0; c < cin; c++)
        *tap_of(out, chan[0] + c, same ? 0 : c) = 1;
    return true;
}

int nn_affine_node(nn_graph *g, const char *name, int in, const nn_affine *a, err *e)
{
    if (in < 0 || a->identity)
        return in;
    nn_attr attr = { .out = a->cout, .groups = a->groups, .bias = true };
    memcpy(attr.k, a->k, sizeof attr.k);
    memcpy(attr.stride, a->stride, sizeof attr.stride);
    memcpy(attr.pad, a->pad, sizeof attr.pad);
    if (g->node[in].dim[3] != a->cin) {
        err_set(e, ERR_CONFIG, "%s: input has %lld channels, the merged convolution wants %d", name,
                (long long)g->node[in].dim[3], a->cin);
        return -1;
    }
    int id = nn_node_add(g, NN_OP_conv2d, name, &in, 1, &attr, e);
    if (id < 0)
        return -1;
    nn_param *w = &g->param[g->node[id].w[0]], *b = &g->param[g->node[id].w[1]];
    for (int64_t i = 0, n = nn_param_count(w); i < n; i++)
        w->x[i] = (float)a->w[i];
    for (int i = 0; i < a->cout; i++)
        b->x[i] = (float)a->b[i];
    return id;
}

/* ---- composition --------------------------------------------------------------------------------- */

/* Channels m0 … m1-1 between two convolutions that leave group a of the first and enter group b of
 * the second. Groups are contiguous, so a pair of groups shares one run of channels at most, and
 * the outputs of b with the inputs of a are computed from this run alone. */
typedef struct { int m0, m1, a, b; } overlap;

typedef struct {
    const nn_affine *first, *second;
    nn_affine *out;
    const double *tap;           /* second's weights as (kh*kw, cout, cin/groups) */
    const overlap *pair;
    int o_step, i_step, o_cuts, i_cuts;
    double *scratch;             /* o_step * i_step * first's kh*kw per worker */
    size_t scratch_each;
} compose_job;

enum { COMPOSE_OUTPUTS = 128, COMPOSE_DOUBLES = 1 << 17 };   /* one matrix product's share */

static int least(int a, int b) { return a < b ? a : b; }

/* out[o][i][s*u+x][s*v+y] += t[o][i][x][y] for one tap (u,v) of the second convolution. */
static void scatter(const compose_job *j, const double *t, int o0, int n_o, int i0, int n_i, int u, int v)
{
    const nn_affine *f = j->first, *out = j->out;
    int64_t at = (int64_t)u * f->stride[0] * out->k[1] + (int64_t)v * f->stride[1];
    for (int o = o0; o < o0 + n_o; o++)
        for (int i = i0; i < i0 + n_i; i++) {
            double *to = tap_of(out, o, i) + at;
            for (int x = 0; x < f->k[0]; x++, to += out->k[1], t += f->k[1])
                for (int y = 0; y < f->k[1]; y++)
                    to[y] += t[y];
        }
}

/* One block of outputs and inputs of one pair of groups: for every tap of the second convolution a
 * matrix product over the channels between. */
static void compose_item(void *ctx, int64_t item, int worker)
{
    const compose_job *j = ctx;
    const nn_affine *f = j->first, *s = j->second;
    int cuts = j->o_cuts * j->i_cuts, cut = (int)(item % cuts);
    const overlap *p = &j->pair[item / cuts];
    int ci1 = f->cin / f->groups, ci2 = s->cin / s->groups, co2 = s->cout / s->groups;
    int64_t k1 = (int64_t)f->k[0] * f->k[1];
    int o0 = cut / j->i_cuts * j->o_step, n_o = least(j->o_step, co2 - o0);
    int i0 = cut % j->i_cuts * j->i_step, n_i = least(j->i_step, ci1 - i0);
    double *t = j->scratch + (size_t)worker * j->scratch_each;

    int o = p->b * co2 + o0;
    int to_i = p->a * ci1 + i0 - o / (s->cout / j->out->groups) * (f->cin / j->out->groups);
    const double *b = tap_of(f, p->m0, i0);
    for (int u = 0; u < s->k[0]; u++)
        for (int v = 0; v < s->k[1]; v++) {
            const double *a = j->tap + ((int64_t)(u * s->k[1] + v) * s->cout + o) * ci2 + p->m0 - p->b * ci2;
            gemm_f64(false, false, n_o, n_i * k1, p->m1 - p->m0, a, ci2, b, ci1 * k1, 0, t, n_i * k1);
            scatter(j, t, o, n_o, to_i, n_i, u, v);
        }
}

static int find_overlaps(const nn_affine *first, const nn_affine *second, overlap *pair)
{
    int n = 0, size1 = first->cout / first->groups, size2 = second->cin / second->groups;
    for (int m = 0; m < second->cin; n++) {
        int a = m / size1, b = m / size2, end = least((a + 1) * size1, (b + 1) * size2);
        pair[n] = (overlap){ m, end, a, b };
        m = end;
    }
    return n;
}

static void split_taps(const nn_affine *a, double *tap)
{
    int64_t pairs = (int64_t)a->cout * (a->cin / a->groups), k = (int64_t)a->k[0] * a->k[1];
    for (int64_t i = 0; i < pairs; i++)
        for (int64_t t = 0; t < k; t++)
            tap[t * pairs + i] = a->w[i * k + t];
}

static void compose_bias(nn_affine *out, const nn_affine *first, const nn_affine *second)
{
    int ci = second->cin / second->groups, co = second->cout / second->groups;
    int64_t k = (int64_t)second->k[0] * second->k[1];
    for (int o = 0; o < second->cout; o++) {
        double sum = second->b[o];
        for (int i = 0; i < ci; i++) {
            const double *w = tap_of(second, o, i);
            double taps = 0;
            for (int64_t t = 0; t < k; t++)
                taps += w[t];
            sum += first->b[o / co * ci + i] * taps;
        }
        out->b[o] = sum;
    }
}

static bool compose_weights(nn_affine *out, const nn_affine *first, const nn_affine *second, err *e)
{
    int ci1 = first->cin / first->groups, co2 = second->cout / second->groups;
    int k1 = first->k[0] * first->k[1];
    int o_step = least(co2, COMPOSE_OUTPUTS), i_step = least(ci1, COMPOSE_DOUBLES / o_step / k1 + 1);
    compose_job j = { .first = first, .second = second, .out = out, .o_step = o_step, .i_step = i_step,
                      .o_cuts = (co2 + o_step - 1) / o_step, .i_cuts = (ci1 + i_step - 1) / i_step,
                      .scratch_each = (size_t)o_step * (size_t)i_step * (size_t)k1 };
    size_t taps = (size_t)second->cout * (size_t)(second->cin / second->groups) *
                  (size_t)second->k[0] * (size_t)second->k[1];      /* as affine_init allocated it */
    overlap *pair = mem_new((size_t)first->groups + (size_t)second->groups, sizeof *pair, e);
    double *tap = mem_new(taps, sizeof *tap, e);
    j.scratch = mem_new((size_t)par_threads(), j.scratch_each * sizeof(double), e);
    bool ok = pair && tap && j.scratch;
    if (ok) {
        split_taps(second, tap);
        j.tap = tap;
        j.pair = pair;
        int n = find_overlaps(first, second, pair);
        par_for((int64_t)n * j.o_cuts * j.i_cuts, compose_item, &j);
    }
    mem_free(pair);
    mem_free(tap);
    mem_free(j.scratch);
    return ok;
}

bool nn_affine_compose(nn_affine *out, const nn_affine *first, const nn_affine *second, err *e)
{
    *out = (nn_affine){ 0 };
    if (first->cout != second->cin)
        return err_set(e, ERR_INTERNAL, "composing convolutions: %d channels leave the first, %d enter the second",
                       first->cout, second->cin);
    if (first->identity && second->identity) {
        *out = *first;
        return true;
    }
    if (first->identity || second->identity) {
        const nn_affine *a = first->identity ? second : first;
        return affine_embed(out, a, a->groups, (int[4]){ 0 }, e);
    }
    const int *p = second->pad;
    if (p[0] || p[1] || p[2] || p[3])
        return err_set(e, ERR_INTERNAL, "composing convolutions: the second pads by %d,%d,%d,%d; "
                       "padding belongs in front of the first", p[0], p[1], p[2], p[3]);
    const int *s = first->stride;
    if (!affine_init(out, first->cin, second->cout, gcd(first->groups, second->groups),
                     first->k[0] + (int64_t)s[0] * (second->k[0] - 1),
                     first->k[1] + (int64_t)s[1] * (second->k[1] - 1), e))
        return false;
    for (int i = 0; i < 2; i++)
        out->stride[i] = s[i] * second->stride[i];
    memcpy(out->pad, first->pad, sizeof out->pad);
    compose_bias(out, first, second);
    if (compose_weights(out, first, second, e))
        return true;
    nn_affine_free(out);
    return false;
}

/* ---- sums: skips and projections ------------------------------------------------------------------- */

bool nn_affine_add_skip(nn_affine *a, err *e)
{
    const int *p = a->pad;
    if (a->cin != a->cout || a->stride[0] != 1 || a->stride[1] != 1 ||
        p[0] + p[1] != a->k[0] - 1 || p[2] + p[3] != a->k[1] - 1 ||
        p[0] < 0 || p[1] < 0 || p[2] < 0 || p[3] < 0)
        return err_set(e, ERR_INTERNAL, "adding a skip: the branch (%d to %d channels, kernel %d,%d, stride %d,%d, "
                       "padding %d,%d,%d,%d) changes the shape", a->cin, a->cout, a->k[0], a->k[1],
                       a->stride[0], a->stride[1], p[0], p[1], p[2], p[3]);
    if (a->identity && !affine_replace(a, a->groups, (int[4]){ 0 }, e))
        return false;
    int ci = a->cin / a->groups;
    for (int c = 0; c < a->cout; c++)
        tap_of(a, c, c % ci)[a->pad[0] * a->k[1] + a->pad[2]] += 1;
    return true;
}

/* By how much each side of a kernel and its padding must grow to hold the taps of `other` too. The
 * grown convolution reads more zeros and has the same output size. */
static void growth(const nn_affine *a, const nn_affine *other, int grow[4])
{
    for (int d = 0; d < 2; d++) {
        int before = other->pad[2 * d] - a->pad[2 * d];
        int after = (other->k[d] - other->pad[2 * d]) - (a->k[d] - a->pad[2 * d]);
        grow[2 * d] = before > 0 ? before : 0;
        grow[2 * d + 1] = after > 0 ? after : 0;
    }
}

bool nn_affine_add_projection(nn_affine *a, const nn_affine *p, err *e)
{
    if (a->cin != p->cin || a->cout != p->cout || a->stride[0] != p->stride[0] || a->stride[1] != p->stride[1])
        return err_set(e, ERR_INTERNAL, "adding a projection: the branch maps %d to %d channels with stride %d,%d, "
                       "the projection %d to %d with %d,%d", a->cin, a->cout, a->stride[0], a->stride[1],
                       p->cin, p->cout, p->stride[0], p->stride[1]);
    int groups = gcd(a->groups, p->groups), grow_a[4], grow_p[4];
    growth(a, p, grow_a);
    growth(p, a, grow_p);
    nn_affine sum, other;
    if (!affine_embed(&sum, a, groups, grow_a, e))
        return false;
    if (!affine_embed(&other, p, groups, grow_p, e)) {
        nn_affine_free(&sum);
        return false;
    }
    int64_t n = (int64_t)sum.cout * (sum.cin / groups) * sum.k[0] * sum.k[1];
    for (int64_t i = 0; i < n; i++)
        sum.w[i] += other.w[i];
    for (int o = 0; o < sum.cout; o++)
        sum.b[o] += other.b[o];
    nn_affine_free(&other);
    nn_affine_free(a);
    *a = sum;
    return true;
}
