/* Graphs evaluated in double by the definition of every op, one loop nest each: the truth for tests
 * of graph rewriting. Knows no plans and no kernels. Maps are H,W,C. */
#ifndef LM_GRAPH_NAIVE_H
#define LM_GRAPH_NAIVE_H

#include <math.h>
#include <string.h>

#include "nn/nn.h"

/* How to read a node: as it is, or replaced (what a pruned network means, on the original graph). */
typedef enum { NAIVE_AS_IS, NAIVE_FIRST_INPUT, NAIVE_SECOND_INPUT } naive_how;
typedef struct {
    const naive_how *how;        /* per node, or NULL */
    const nn_opcode *then;       /* per node: an activation after it, or NN_OP_COUNT; may be NULL */
    const nn_affine *const *conv;   /* per node: use these weights and bias instead, or NULL */
} naive_options;

typedef struct { int64_t h, w, c; double *x; bool *border; } naive_map;   /* border: zero padding was seen */

static naive_map naive_map_new(const nn_node *n)
{
    naive_map m = { n->dim[1], n->dim[2], n->dim[3], NULL, NULL };
    m.x = mem_new((size_t)(m.h * m.w * m.c), sizeof *m.x, NULL);
    m.border = mem_new((size_t)(m.h * m.w), sizeof *m.border, NULL);
    return m;
}

static void naive_map_free(naive_map *m)
{
    mem_free(m->x);
    mem_free(m->border);
}

static double *naive_at(const naive_map *m, int64_t y, int64_t x) { return m->x + (y * m->w + x) * m->c; }

static bool naive_inside(const naive_map *m, int64_t y, int64_t x) { return y >= 0 && y < m->h && x >= 0 && x < m->w; }

static double naive_weight(const nn_graph *g, const nn_node *n, const nn_affine *a, int64_t i)
{
    return a ? a->w[i] : (double)g->param[n->w[0]].x[i];
}

static void naive_conv(const nn_graph *g, const nn_node *n, const nn_affine *a, const naive_map *in, naive_map *out)
{
    const nn_attr *t = &n->attr;
    int64_t ci = in->c / t->groups, co = out->c / t->groups;
    for (int64_t y = 0; y < out->h; y++)
        for (int64_t x = 0; x < out->w; x++)
            for (int64_t o = 0; o < out->c; o++) {
                double sum = a ? a->b[o] : t->bias ? (double)g->param[n->w[1]].x[o] : 0;
                for (int64_t u = 0; u < t->k[0]; u++)
                    for (int64_t v = 0; v < t->k[1]; v++) {
                        int64_t iy = y * t->stride[0] + u * t->dilation[0] - t->pad[0];
                        int64_t ix = x * t->stride[1] + v * t->dilation[1] - t->pad[2];
                        bool inside = naive_inside(in, iy, ix);
                        if (!inside || in->border[iy * in->w + ix])
                            out->border[y * out->w + x] = true;
                        for (int64_t i = 0; inside && i < ci; i++)
                            sum += naive_weight(g, n, a, ((o * ci + i) * t->k[0] + u) * t->k[1] + v) *
                                   naive_at(in, iy, ix)[o / co * ci + i];
                    }
                naive_at(out, y, x)[o] = sum;
            }
}

static void naive_pool(const nn_node *n, const naive_map *in, naive_map *out)
{
    const nn_attr *t = &n->attr;
    bool max = n->op == NN_OP_maxpool;
    for (int64_t y = 0; y < out->h; y++)
        for (int64_t x = 0; x < out->w; x++)
            for (int64_t c = 0; c < out->c; c++) {
                double best = max ? -(double)INFINITY : 0;
                int count = 0;
                for (int64_t u = 0; u < t->k[0]; u++)
                    for (int64_t v = 0; v < t->k[1]; v++) {
                        int64_t iy = y * t->stride[0] + u - t->pad[0], ix = x * t->stride[1] + v - t->pad[2];
                        bool inside = naive_inside(in, iy, ix);
                        if (!inside || in->border[iy * in->w + ix])
                            out->border[y * out->w + x] = true;
                        count += inside || t->count_pad;
                        if (inside)
                            best = max ? fmax(best, naive_at(in, iy, ix)[c]) : best + naive_at(in, iy, ix)[c];
                    }
                naive_at(out, y, x)[c] = max ? best : best / count;
            }
}

static void naive_global(const naive_map *in, naive_map *out)
{
    for (int64_t c = 0; c < in->c; c++) {
        for (int64_t i = 0; i < in->h * in->w; i++)
            out->x[c] += in->x[i * in->c + c];
        out->x[c] /= (double)(in->h * in->w);
    }
    out->border[0] = true;
}

/* The weight's columns are C,H,W as in PyTorch. */
static void naive_linear(const nn_graph *g, const nn_node *n, const naive_map *in, naive_map *out)
{
    int64_t hw = in->h * in->w, k = hw * in->c;
    for (int64_t o = 0; o < out->c; o++) {
        double sum = n->attr.bias ? (double)g->param[n->w[1]].x[o] : 0;
        for (int64_t i = 0; i < k; i++)
            sum += (double)g->param[n->w[0]].x[o * k + i] * in->x[i % hw * in->c + i / hw];
        out->x[o] = sum;
    }
    out->border[0] = true;
}

static double naive_act(nn_opcode op, double v)
{
    v = v < 0 ? 0 : v;
    return op == NN_OP_relu6 && v > 6 ? 6 : v;
}

/* Ops that compute every pixel from pixels of their inputs at one place. */
static void naive_pixels(const nn_graph *g, const nn_node *n, const naive_map *a, const naive_map *b, naive_map *out)
{
    const nn_attr *t = &n->attr;
    for (int64_t y = 0; y < out->h; y++)
        for (int64_t x = 0; x < out->w; x++) {
            double *to = naive_at(out, y, x);
            int64_t iy = y, ix = x;
            if (n->op == NN_OP_pad)
                iy -= t->pad[0], ix -= t->pad[2];
            if (n->op == NN_OP_slice)
                iy *= t->stride[0], ix *= t->stride[1];
            bool *border = &out->border[y * out->w + x];
            *border = !naive_inside(a, iy, ix) || a->border[iy * a->w + ix] || (b && b->border[y * out->w + x]);
            if (!naive_inside(a, iy, ix))
                continue;
            const double *from = naive_at(a, iy, ix);
            for (int64_t c = 0; c < out->c; c++) {
                int64_t k = n->op == NN_OP_slice ? c - t->chan[0] : c;
                double v = k >= 0 && k < a->c ? from[k] : 0;
                if (n->op == NN_OP_add)
                    v += naive_at(b, y, x)[c];
                if (n->op == NN_OP_relu || n->op == NN_OP_relu6)
                    v = naive_act(n->op, v);
                if (n->op == NN_OP_batchnorm) {
                    const float *p[4];
                    for (int i = 0; i < 4; i++)
                        p[i] = g->param[n->w[i]].x;
                    v = (double)p[0][c] * (v - (double)p[2][c]) / sqrt((double)p[3][c] + (double)t->eps) +
                        (double)p[1][c];
                }
                to[c] = v;
            }
        }
}

static void naive_copy(const naive_map *in, naive_map *out)
{
    memcpy(out->x, in->x, (size_t)(out->h * out->w * out->c) * sizeof *out->x);
    memcpy(out->border, in->border, (size_t)(out->h * out->w) * sizeof *out->border);
}

static void naive_node(const nn_graph *g, int v, const naive_options *o, const double *image, naive_map *all)
{
    const nn_node *n = &g->node[v];
    naive_map *out = &all[v], *a = n->n_in > 0 ? &all[n->in[0]] : NULL, *b = n->n_in > 1 ? &all[n->in[1]] : NULL;
    naive_how how = o && o->how ? o->how[v] : NAIVE_AS_IS;
    if (how != NAIVE_AS_IS)
        naive_copy(how == NAIVE_FIRST_INPUT ? a : b, out);
    else if (n->op == NN_OP_input)
        memcpy(out->x, image, (size_t)(out->h * out->w * out->c) * sizeof *out->x);
    else if (n->op == NN_OP_conv2d)
        naive_conv(g, n, o && o->conv ? o->conv[v] : NULL, a, out);
    else if (n->op == NN_OP_maxpool || n->op == NN_OP_avgpool)
        naive_pool(n, a, out);
    else if (n->op == NN_OP_globalpool)
        naive_global(a, out);
    else if (n->op == NN_OP_linear)
        naive_linear(g, n, a, out);
    else
        naive_pixels(g, n, a, b, out);
    nn_opcode then = o && o->then ? o->then[v] : NN_OP_COUNT;
    for (int64_t i = 0; then != NN_OP_COUNT && i < out->h * out->w * out->c; i++)
        out->x[i] = naive_act(then, out->x[i]);
}

/* The output map for one image; freed with naive_map_free. One input node; concat is not known. */
static naive_map naive_eval(const nn_graph *g, const naive_options *o, const double *image)
{
    naive_map *all = mem_new((size_t)g->n_node, sizeof *all, NULL);
    for (int v = 0; v < g->n_node; v++) {
        all[v] = naive_map_new(&g->node[v]);
        naive_node(g, v, o, image, all);
    }
    naive_map out = all[g->output];
    for (int v = 0; v < g->n_node; v++)
        if (v != g->output)
            naive_map_free(&all[v]);
    mem_free(all);
    return out;
}

/* Largest difference relative to the largest value of a; huge when shapes differ. inner: only where
 * neither has seen padding; *n counts the pixels compared. */
static double naive_difference(const naive_map *a, const naive_map *b, bool inner, int64_t *n)
{
    if (a->h != b->h || a->w != b->w || a->c != b->c)
        return 1e9;
    double worst = 0, top = 1e-300;
    for (int64_t i = 0; i < a->h * a->w; i++) {
        if (inner && (a->border[i] || b->border[i]))
            continue;
        if (n)
            ++*n;
        for (int64_t c = 0; c < a->c; c++) {
            double d = fabs(a->x[i * a->c + c] - b->x[i * a->c + c]);
            worst = d > worst || d != d ? d : worst;
            top = fmax(top, fabs(a->x[i * a->c + c]));
        }
    }
    return worst / top;
}

#endif
