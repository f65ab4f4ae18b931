/* The truth for tests: every op as its definition reads, in double, one output value at a time, and
 * without a line of the library's arithmetic. Images are N,H,W,C. */
#ifndef LM_NAIVE_H
#define LM_NAIVE_H

#include <math.h>
#include <stdlib.h>

#include "nn/nn.h"

typedef struct { int n, h, w, c; double *x; } image;

static inline image image_new(int n, int h, int w, int c)
{
    return (image){ n, h, w, c, calloc((size_t)(n * h * w * c), sizeof(double)) };
}

static inline double *pixel(const image *a, int n, int h, int w)
{
    return a->x + ((n * a->h + h) * a->w + w) * a->c;
}

/* Zero outside. */
static inline double at(const image *a, int n, int h, int w, int c)
{
    const bool outside = h < 0 || w < 0 || c < 0 || h >= a->h || w >= a->w || c >= a->c;
    return outside ? 0 : pixel(a, n, h, w)[c];
}

static inline bool inside(const image *a, int h, int w)
{
    return h >= 0 && w >= 0 && h < a->h && w < a->w;
}

typedef struct {
    const nn_attr *a;
    const image *in; int n_in;
    const float *w[5];           /* parameters in the op's order */
    int out;
    bool train;                  /* batch statistics */
} naive_args;

static inline double naive_conv2d(const naive_args *g, int n, int h, int w, int o)
{
    const nn_attr *a = g->a;
    const image *x = g->in;
    const int ci = x->c / a->groups, first = o / (a->out / a->groups) * ci;
    double sum = a->bias ? (double)g->w[1][o] : 0;
    for (int i = 0; i < a->k[0]; i++)
        for (int j = 0; j < a->k[1]; j++)
            for (int c = 0; c < ci; c++)
                sum += (double)g->w[0][((o * ci + c) * a->k[0] + i) * a->k[1] + j]
                     * at(x, n, h * a->stride[0] - a->pad[0] + i * a->dilation[0],
                          w * a->stride[1] - a->pad[2] + j * a->dilation[1], first + c);
    return sum;
}

static inline double naive_linear(const naive_args *g, int n, int h, int w, int o)
{
    const image *x = g->in;
    double sum = g->a->bias ? (double)g->w[1][o] : 0;
    (void)h, (void)w;
    for (int c = 0; c < x->c; c++)
        for (int i = 0; i < x->h; i++)
            for (int j = 0; j < x->w; j++)
                sum += (double)g->w[0][((o * x->c + c) * x->h + i) * x->w + j] * at(x, n, i, j, c);
    return sum;
}

static inline double naive_batchnorm(const naive_args *g, int n, int h, int w, int c)
{
    const image *x = g->in;
    double mean = (double)g->w[2][c], var = (double)g->w[3][c];
    if (g->train) {
        const int count = x->n * x->h * x->w;
        mean = var = 0;
        for (int i = 0; i < count; i++)
            mean += x->x[i * x->c + c] / count;
        for (int i = 0; i < count; i++)
            var += (x->x[i * x->c + c] - mean) * (x->x[i * x->c + c] - mean) / count;
    }
    return (at(x, n, h, w, c) - mean) / sqrt(var + (double)g->a->eps) * (double)g->w[0][c] +
           (double)g->w[1][c];
}

static inline double naive_relu(const naive_args *g, int n, int h, int w, int c)
{
    return fmax(at(g->in, n, h, w, c), 0);
}
static inline double naive_relu6(const naive_args *g, int n, int h, int w, int c)
{
    return fmin(naive_relu(g, n, h, w, c), 6);
}
static inline double naive_add(const naive_args *g, int n, int h, int w, int c)
{
    return at(&g->in[0], n, h, w, c) + at(&g->in[1], n, h, w, c);
}
static inline double naive_pad(const naive_args *g, int n, int h, int w, int c)
{
    return at(g->in, n, h - g->a->pad[0], w - g->a->pad[2], c);
}

static inline double naive_slice(const naive_args *g, int n, int h, int w, int c)
{
    return at(g->in, n, h * g->a->stride[0], w * g->a->stride[1], c - g->a->chan[0]);
}

static inline double naive_concat(const naive_args *g, int n, int h, int w, int c)
{
    int k = 0;
    for (; c >= g->in[k].c; k++)
        c -= g->in[k].c;
    return at(&g->in[k], n, h, w, c);
}

static inline double naive_maxpool(const naive_args *g, int n, int h, int w, int c)
{
    double best = -HUGE_VAL;
    for (int i = 0; i < g->a->k[0]; i++)
        for (int j = 0; j < g->a->k[1]; j++) {
            const int y = h * g->a->stride[0] - g->a->pad[0] + i;
            const int x = w * g->a->stride[1] - g->a->pad[2] + j;
            if (inside(g->in, y, x))
                best = fmax(best, at(g->in, n, y, x, c));
        }
    return best;
}

static inline double naive_avgpool(const naive_args *g, int n, int h, int w, int c)
{
    double sum = 0;
    int taps = 0;
    for (int i = 0; i < g->a->k[0]; i++)
        for (int j = 0; j < g->a->k[1]; j++) {
            const int y = h * g->a->stride[0] - g->a->pad[0] + i;
            const int x = w * g->a->stride[1] - g->a->pad[2] + j;
            sum += at(g->in, n, y, x, c);
            taps += g->a->count_pad || inside(g->in, y, x);
        }
    return sum / taps;
}

static inline double naive_globalpool(const naive_args *g, int n, int h, int w, int c)
{
    double sum = 0;
    (void)h, (void)w;
    for (int i = 0; i < g->in->h; i++)
        for (int j = 0; j < g->in->w; j++)
            sum += at(g->in, n, i, j, c);
    return sum / (g->in->h * g->in->w);
}

static inline double naive_input(const naive_args *g, int n, int h, int w, int c)
{
    return at(g->in, n, h, w, c);
}
static inline double naive_dropout(const naive_args *g, int n, int h, int w, int c)
{
    return at(g->in, n, h, w, c);
}

static inline double naive_log_softmax(const image *z, int n, int c, double T)
{
    double sum = 0;
    for (int k = 0; k < z->c; k++)
        sum += exp(pixel(z, n, 0, 0)[k] / T);
    return pixel(z, n, 0, 0)[c] / T - log(sum);
}

static inline double naive_softmax_xent(const naive_args *g, int n, int h, int w, int c)
{
    const double e = (double)g->a->smoothing;
    double sum = 0;
    (void)h, (void)w, (void)c;
    for (int k = 0; k < g->in->c; k++)
        sum -= ((1 - e) * at(&g->in[1], n, 0, 0, k) + e / g->in->c) *
               naive_log_softmax(g->in, n, k, 1);
    return sum;
}

static inline double naive_distill(const naive_args *g, int n, int h, int w, int c)
{
    const double T = (double)g->a->temperature;
    double sum = 0;
    (void)h, (void)w, (void)c;
    for (int k = 0; k < g->in->c; k++)
        sum -= exp(naive_log_softmax(&g->in[1], n, k, T)) * naive_log_softmax(&g->in[0], n, k, T);
    return T * T * sum;
}

#define X(name) [NN_OP_##name] = naive_##name,
typedef double naive_op(const naive_args *g, int n, int h, int w, int c);
static naive_op *const naive_ops[NN_OP_COUNT] = { NN_OPS(X) };
#undef X

/* The value of every node (inputs: as given), so that a whole graph has a truth. */
static inline void naive_run(const nn_graph *g, int batch, bool train, image *value)
{
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        if (n->n_in == 0)
            continue;
        image in[4] = { { 0 } };
        naive_args args = { .a = &n->attr, .in = in, .n_in = n->n_in, .train = train };
        for (int k = 0; k < n->n_in; k++)
            in[k] = value[n->in[k]];
        for (int k = 0; k < n->n_w; k++)
            args.w[k] = g->param[n->w[k]].x;
        image *y = &value[i];
        *y = image_new(batch, (int)n->dim[1], (int)n->dim[2], (int)n->dim[3]);
        for (int b = 0; b < batch; b++)
            for (int h = 0; h < y->h; h++)
                for (int w = 0; w < y->w; w++)
                    for (int c = 0; c < y->c; c++)
                        pixel(y, b, h, w)[c] = naive_ops[n->op](&args, b, h, w, c);
    }
}

/* ---- random graphs --------------------------------------------------------------------------- */

static inline void random_floats(float *x, int64_t n, rng *r)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(r);
}

/* Every parameter away from its default; variances positive. */
static inline void random_params(nn_graph *g, uint64_t seed)
{
    rng r = rng_at(seed, RNG_TEST, 1, 0);
    for (int i = 0; i < g->n_param; i++) {
        nn_param *p = &g->param[i];
        const double scale =
            p->role == NN_WEIGHT ? 1 / sqrt((double)nn_param_count(p) / (double)p->dim[0]) : 0.5;
        const bool positive = p->role == NN_NORM_WEIGHT || strstr(p->name, "running_var");
        for (int64_t k = 0; k < nn_param_count(p); k++)
            p->x[k] = (float)(positive ? 0.5 + rng_uniform(&r) : scale * rng_normal(&r));
    }
}

static inline int between(rng *r, int least, int most)
{
    return least + (int)rng_below(r, (uint32_t)(most - least + 1));
}

/* Attributes that suit op on an h×w×c image. */
static inline nn_attr random_attr(nn_opcode op, int c, rng *r)
{
    nn_attr a = { 0 };
    const bool window = op == NN_OP_conv2d || op == NN_OP_maxpool || op == NN_OP_avgpool;
    for (int i = 0; i < 2 && window; i++) {
        a.k[i] = between(r, 1, 4);
        a.stride[i] = between(r, 1, 3);
    }
    for (int i = 0; i < 4 && window; i++)
        a.pad[i] = between(r, 0, op == NN_OP_conv2d ? 3 : a.k[i / 2] - 1);
    if (op == NN_OP_conv2d) {
        a.dilation[0] = between(r, 1, 2);
        a.dilation[1] = between(r, 1, 2);
        a.groups = between(r, 0, 2) ? 1 : c % 2 ? c : between(r, 0, 1) ? c : 2;
        a.out = a.groups * between(r, 1, a.groups > 2 ? 2 : 9);
    }
    if (op == NN_OP_linear)
        a.out = between(r, 1, 17);
    a.bias = (op == NN_OP_conv2d || op == NN_OP_linear) && between(r, 0, 1);
    a.count_pad = op == NN_OP_avgpool && between(r, 0, 1);
    for (int i = 0; i < 4 && op == NN_OP_pad; i++)
        a.pad[i] = between(r, -2, 3);
    for (int i = 0; i < 2 && op == NN_OP_slice; i++) {
        a.stride[i] = between(r, 1, 3);
        a.chan[i] = between(r, 0, 3);
    }
    if (op == NN_OP_dropout)
        a.p = 0.3f;
    if (op == NN_OP_softmax_xent)
        a.smoothing = between(r, 0, 1) ? 0.1f : 0;
    if (op == NN_OP_distill)
        a.temperature = between(r, 1, 4);
    return a;
}

/* Everything at once: shortcuts with and without weights, fused sums and activations, a value read
 * three times, a sum of a value with itself, norms that cannot be folded. */
static inline nn_graph *random_net(uint64_t seed, err *e)
{
    rng r = rng_at(seed, RNG_TEST, 50, 9);
    nn_graph *g = nn_graph_new("net", e);
    const nn_opcode act = seed % 2 ? NN_OP_relu6 : NN_OP_relu;
    const nn_attr slicing = { .stride = { 2, 2 }, .chan = { 1, 3 } }, dropping = { .p = 0.2f };
    int x = nn_add_input(g, "x", between(&r, 6, 8), between(&r, 6, 8), 3, e);
    x = nn_add_conv(g, "stem", x, 4, 3, 1, 1, 1, false, true, e);
    x = nn_add_op(g, act, "act0", nn_add_norm(g, "bn0", x, e), e);
    int y = nn_add_norm(g, "bn1", nn_add_conv(g, "conv1", x, 8, 3, 2, 1, 1, false, false, e), e);
    y = nn_add_op(g, act, "act1", y, e);
    y = nn_add_norm(g, "bn2", nn_add_conv(g, "conv2", y, 8, 3, 1, 1, 8, false, false, e), e);
    const int slice = nn_node_add(g, NN_OP_slice, "slice", &x, 1, &slicing, e);
    const int proj =
        nn_add_norm(g, "bnp", nn_add_conv(g, "proj", x, 8, 1, 2, 0, 1, false, true, e), e);
    y = nn_add_add(g, "sum1", y, seed % 3 ? proj : slice, e);
    if (seed % 3 == 1)
        y = nn_add_add(g, "sum2", slice, y, e);
    const int block = y = nn_add_op(g, act, "act2", y, e);
    y = nn_add_norm(g, "bn3", nn_add_conv(g, "conv3", y, 8, 3, 1, 1, 1, false, false, e), e);
    y = nn_add_add(g, "sum3", y, block, e);                       /* no activation behind */
    y = nn_add_add(g, "sum4", y, nn_add_norm(g, "bn4", block, e), e);
    y = nn_add_add(g, "sum5", y, y, e);
    y = nn_add_op(g, NN_OP_relu, "act5", y, e);
    y = nn_add_add(g, "sum6", nn_add_norm(g, "bn6", y, e), y, e); /* norm and skip share a value */
    /* two readers: nothing to absorb */
    y = nn_add_conv(g, "conv7", y, 8, 1, 1, 0, 1, true, false, e);
    y = nn_add_add(g, "sum7", nn_add_norm(g, "bn7", y, e), nn_add_op(g, act, "act7", y, e), e);
    y = nn_add_norm(g, "bn8", y, e);
    y = nn_add_add(g, "sum8", nn_add_op(g, act, "act8", y, e), y, e);
    y = nn_node_add(g, NN_OP_dropout, "drop", &y, 1, &dropping, e);
    g->output = nn_add_linear(g, "fc", y, 5, true, e);
    random_params(g, seed);
    return g;
}

#endif
