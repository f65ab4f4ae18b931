/* Random small networks and random solutions of them, for the tests of pruning and merging: strides,
 * groups, depthwise, dilation, lopsided padding, non-square kernels, odd sizes, projections,
 * option-A slices, nested skips, norms with random statistics, biases. */
#ifndef LM_CHAIN_RANDOM_H
#define LM_CHAIN_RANDOM_H

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "search/rewrite.h"

static rng dice;

static int pick(int lo, int hi) { return lo + (int)rng_below(&dice, (uint32_t)(hi - lo + 1)); }
static bool chance(int percent) { return pick(0, 99) < percent; }

typedef struct {
    nn_graph *g;
    err *e;
    int number;                  /* for names */
    int stride[2];               /* of the branch being made */
    nn_opcode act;
} maker;

static const char *fresh(maker *r, const char *what)
{
    static char name[8][48];
    char *to = name[++r->number % 8];
    snprintf(to, sizeof name[0], "%s%d", what, r->number);
    return to;
}

static int add_act(maker *r, int x) { return nn_add_op(r->g, r->act, fresh(r, "act"), x, r->e); }

/* Groups for c inputs and *out outputs. */
static int pick_groups(int c, int *out)
{
    switch (pick(0, 5)) {
    case 0: case 1:
        *out = c;
        return c;                                          /* depthwise */
    case 2:
        return c % 2 == 0 && *out % 2 == 0 ? 2 : 1;
    case 3:
        *out = 2 * c;
        return c;                                          /* depthwise with multiplier 2 */
    default:
        return 1;
    }
}

/* conv [norm] [activation]; same: output size ceil(input / stride). */
static int make_unit(maker *r, int x, bool same, bool act)
{
    if (x < 0)
        return -1;
    static const int sizes[] = { 1, 1, 2, 3, 3, 3, 5 };
    const int64_t *d = r->g->node[x].dim;
    int c = (int)d[3], out = chance(60) ? c : 2 * pick(1, 4);
    nn_attr a = { .k = { sizes[pick(0, 6)], 0 }, .bias = chance(60) };
    a.k[1] = chance(75) ? a.k[0] : sizes[pick(0, 6)];
    a.groups = pick_groups(c, &out);
    a.out = out > 12 ? (a.groups = 1, 8) : out;
    bool strided = chance(20);
    for (int i = 0; i < 2; i++) {
        a.dilation[i] = chance(10) && d[1 + i] > 12 ? 2 : 1;
        a.stride[i] = strided && d[1 + i] > 8 && chance(85) ? pick(2, 2 + chance(15)) : 1;
        int need = a.dilation[i] * (a.k[i] - 1);
        a.pad[2 * i] = chance(70) ? need / 2 : pick(0, need);
        a.pad[2 * i + 1] = need - a.pad[2 * i];
        if (!same && chance(20) && d[1 + i] > 8)
            a.pad[2 * i + 1] = pick(0, need);
        r->stride[i] *= a.stride[i];
    }
    x = nn_node_add(r->g, NN_OP_conv2d, fresh(r, "conv"), &x, 1, &a, r->e);
    if (chance(60))
        x = nn_add_norm(r->g, fresh(r, "bn"), x, r->e);
    return act && chance(80) ? add_act(r, x) : x;
}

static int make_skip(maker *r, int from, int to)
{
    if (from < 0 || to < 0)
        return -1;
    const int64_t *a = r->g->node[from].dim, *b = r->g->node[to].dim;
    bool identity = !memcmp(a, b, 4 * sizeof *a) && r->stride[0] == 1 && r->stride[1] == 1;
    if (identity && chance(75))
        return from;
    nn_attr t = { .stride = { r->stride[0], r->stride[1] } };
    int more = (int)(b[3] - a[3]);
    if (more >= 0 && chance(40)) {
        t.chan[0] = pick(0, more);
        t.chan[1] = more - t.chan[0];
        return nn_node_add(r->g, NN_OP_slice, fresh(r, "slice"), &from, 1, &t, r->e);
    }
    t.out = (int)b[3];
    t.fixed = true;
    t.groups = a[3] == b[3] && chance(30) ? (int)a[3] : 1;
    t.bias = chance(50);
    if (chance(15))
        for (int i = 0; i < 2; i++) {
            t.k[i] = 3;
            t.pad[2 * i] = t.pad[2 * i + 1] = 1;
        }
    int x = nn_node_add(r->g, NN_OP_conv2d, fresh(r, "proj"), &from, 1, &t, r->e);
    return chance(60) ? nn_add_norm(r->g, fresh(r, "projbn"), x, r->e) : x;
}

static int make_block(maker *r, int x, int depth, bool act)
{
    int from = x, parts = pick(1, 3), outer[2] = { r->stride[0], r->stride[1] };
    r->stride[0] = r->stride[1] = 1;
    for (int i = 1; i <= parts; i++)
        x = depth > 0 && chance(35) ? make_block(r, x, depth - 1, i < parts) : make_unit(r, x, true, i < parts);
    x = nn_add_add(r->g, fresh(r, "add"), x, make_skip(r, from, x), r->e);
    for (int i = 0; i < 2; i++)
        r->stride[i] *= outer[i];
    return act && chance(75) ? add_act(r, x) : x;
}

static void random_values(nn_graph *g)
{
    for (int p = 0; p < g->n_param; p++) {
        nn_param *a = &g->param[p];
        int64_t n = nn_param_count(a), fan = a->rank == 4 ? a->dim[1] * a->dim[2] * a->dim[3] : 1;
        bool variance = strstr(a->name, "running_var") != NULL;
        for (int64_t i = 0; i < n; i++)
            a->x[i] = variance ? (float)(0.5 + rng_uniform(&dice))
                    : a->role == NN_WEIGHT ? (float)(rng_normal(&dice) / sqrt((double)fan))
                    : a->role == NN_NORM_WEIGHT ? (float)(1 + 0.3 * rng_normal(&dice))
                                                : (float)(0.5 * rng_normal(&dice));
    }
}

/* A network of a few units and blocks on h×w images; the output is a full map. */
static nn_graph *random_graph(int h, int w, err *e)
{
    maker r = { .g = nn_graph_new("random", e), .e = e, .stride = { 1, 1 } };
    r.act = chance(50) ? NN_OP_relu : NN_OP_relu6;
    r.g->barrier = chance(60) ? NN_BARRIER_NONE : (nn_barrier)pick(1, 2);
    int x = nn_add_input(r.g, "input", h, w, pick(1, 4), e), items = pick(1, 4);
    if (chance(40)) {
        x = nn_add_conv(r.g, "stem", x, 2 * pick(1, 3), 3, 1, 1, 1, true, true, e);
        x = add_act(&r, x);
    }
    for (int i = 0; i < items && x >= 0; i++) {
        if (i && chance(10) && r.g->node[x].dim[1] > 4 && r.g->node[x].dim[2] > 4) {
            nn_attr pool = { .k = { 2, 2 }, .stride = { 2, 2 } };
            x = nn_node_add(r.g, chance(50) ? NN_OP_maxpool : NN_OP_avgpool, fresh(&r, "pool"), &x, 1, &pool, e);
        }
        x = chance(65) ? make_block(&r, x, 2, true) : make_unit(&r, x, false, true);
    }
    if (x >= 0 && chance(30))
        x = nn_add_conv(r.g, "head", x, 3, 1, 1, 0, 1, true, true, e);
    if (x < 0) {
        nn_graph_free(r.g);
        return NULL;
    }
    r.g->output = x;
    random_values(r.g);
    return r.g;
}

/* Both sides drawn here, one after the other: compilers differ in which argument of a call they evaluate first. */
static inline nn_graph *graph_of_random_size(int least, int most, err *e)
{
    const int w = pick(least, most), h = pick(least, most);
    return random_graph(h, w, e);
}

/* ---- solutions -------------------------------------------------------------------------------------- */

static search_solution solution_start(const search_chain *c)
{
    search_solution s = { .method = "test", .feasible = true, .least_ns = -1 };
    s.act = mem_new((size_t)c->L + 1, sizeof *s.act, NULL);
    s.conv = mem_new((size_t)c->L + 1, sizeof *s.conv, NULL);
    s.segment = mem_new((size_t)c->L, sizeof *s.segment, NULL);
    s.n_act = s.n_conv = 1;
    return s;
}

/* Add the segment (st,end] that keeps n convs. */
static void solution_add(search_solution *s, const search_chain *c, int st, int end, const int *keep, int n)
{
    search_entry row = search_entry_blank;
    row.st = st;
    row.end = end;
    row.ker = search_kernel_of(c, keep, n);
    row.str = search_stride_of(c, st, end);
    row.keep = mem_new((size_t)n, sizeof *row.keep, NULL);
    row.n_keep = n;
    row.is_dw = n > 0;
    for (int i = 0; i < n; i++) {
        row.keep[i] = s->conv[s->n_conv++] = keep[i];
        row.is_dw = row.is_dw && c->pos[keep[i]].depthwise;
    }
    s->segment[s->n_segment++] = row;
    s->act[s->n_act++] = end;
}

static inline search_solution every_conv_alone(const search_chain *c)
{
    search_solution s = solution_start(c);
    for (int l = 1; l <= c->L; l++)
        solution_add(&s, c, l - 1, l, &l, 1);
    return s;
}

/* keep_percent of the convs that may go stay; identity: a segment may lose all of them. */
static search_solution random_solution(const search_chain *c, int keep_percent, bool identity)
{
    search_solution s = solution_start(c);
    for (int i = 0; i < c->L; ) {
        int end[256], n = 0, keep[256], kept = 0;
        for (int j = i + 1; j <= c->L && n < 256; j++)
            if (search_segment_valid(c, i, j))
                end[n++] = j;
        int j = end[chance(50) ? n - 1 : pick(0, n - 1)];
        for (int l = i + 1; l <= j; l++)
            if (c->pos[l].irreducible || chance(keep_percent))
                keep[kept++] = l;
        if (!kept && !(identity && chance(50)))
            keep[kept++] = pick(i + 1, j);
        solution_add(&s, c, i, j, keep, kept);
        i = j;
    }
    return s;
}

static inline double *random_image(const nn_graph *g)
{
    const int64_t *d = g->node[0].dim;
    double *x = mem_new((size_t)(d[1] * d[2] * d[3]), sizeof *x, NULL);
    for (int64_t i = 0; i < d[1] * d[2] * d[3]; i++)
        x[i] = (double)(float)rng_normal(&dice);
    return x;
}

#endif
