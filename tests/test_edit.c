/* The affine algebra against a naive convolution in double over full maps, borders included. */
#include "nn/nn.h"
#include "tests/test.h"

#include <stdlib.h>

typedef struct { int h, w, c; double *x; } map;          /* C,H,W */

static rng dice;

static int pick(int lo, int hi) { return lo + (int)rng_below(&dice, (uint32_t)(hi - lo + 1)); }

static map map_new(int c, int h, int w)
{
    map m = { h, w, c, mem_new((size_t)c * (size_t)h * (size_t)w, sizeof(double), NULL) };
    return m;
}

static map map_random(int c, int h, int w)
{
    map m = map_new(c, h, w);
    for (int i = 0; i < c * h * w; i++)
        m.x[i] = rng_normal(&dice);
    return m;
}

static int out_size(int n, int before, int after, int k, int stride) { return (n + before + after - k) / stride + 1; }

/* The definition, one sum per output value. */
static map naive(const nn_affine *a, const map *in)
{
    map out = map_new(a->cout, out_size(in->h, a->pad[0], a->pad[1], a->k[0], a->stride[0]),
                      out_size(in->w, a->pad[2], a->pad[3], a->k[1], a->stride[1]));
    int ci = a->cin / a->groups, co = a->cout / a->groups;
    for (int o = 0; o < a->cout; o++)
        for (int y = 0; y < out.h; y++)
            for (int x = 0; x < out.w; x++) {
                double sum = a->identity ? in->x[(o * in->h + y) * in->w + x] : a->b[o];
                for (int i = 0; i < ci && !a->identity; i++)
                    for (int u = 0; u < a->k[0]; u++)
                        for (int v = 0; v < a->k[1]; v++) {
                            int iy = y * a->stride[0] + u - a->pad[0], ix = x * a->stride[1] + v - a->pad[2];
                            if (iy >= 0 && iy < in->h && ix >= 0 && ix < in->w)
                                sum += a->w[((o * ci + i) * a->k[0] + u) * a->k[1] + v] *
                                       in->x[((o / co * ci + i) * in->h + iy) * in->w + ix];
                        }
                out.x[(o * out.h + y) * out.w + x] = sum;
            }
    return out;
}

/* Largest difference relative to the largest value; huge when the shapes differ. */
static double difference(const map *a, const map *b)
{
    if (a->h != b->h || a->w != b->w || a->c != b->c)
        return 1e9;
    double worst = 0, top = 1e-300;
    for (int i = 0; i < a->c * a->h * a->w; i++) {
        worst = fmax(worst, fabs(a->x[i] - b->x[i]));
        top = fmax(top, fabs(a->x[i]));
    }
    return worst / top;
}

static nn_affine affine(int cin, int cout, int groups, int kh, int kw)
{
    nn_affine a = { .cin = cin, .cout = cout, .groups = groups, .k = { kh, kw }, .stride = { 1, 1 } };
    int n = cout * (cin / groups) * kh * kw;
    a.w = mem_new((size_t)n, sizeof(double), NULL);
    a.b = mem_new((size_t)cout, sizeof(double), NULL);
    for (int i = 0; i < n; i++)
        a.w[i] = rng_normal(&dice);
    for (int i = 0; i < cout; i++)
        a.b[i] = rng_normal(&dice);
    return a;
}

/* Dense, grouped, depthwise, or depthwise with a multiplier. */
static int pick_groups(int cin, int cout)
{
    int g;
    do
        g = pick(1, cin);
    while (cin % g || cout % g);
    return g;
}

static nn_affine affine_random(int cin, int cout, bool padded)
{
    static const int sizes[] = { 1, 1, 2, 3, 3, 5 };
    nn_affine a = affine(cin, cout, pick_groups(cin, cout), sizes[pick(0, 5)], sizes[pick(0, 5)]);
    for (int d = 0; d < 2; d++)
        a.stride[d] = pick(1, 5) > 3 ? pick(1, 3) : 1;
    for (int s = 0; s < 4 && padded; s++)
        a.pad[s] = pick(0, 3);
    return a;
}

static void composition_equals_one_convolution_after_the_other(void)
{
    static const int widths[] = { 1, 2, 3, 4, 6, 8, 12 };
    err e = { 0 };
    double worst = 0;
    for (int t = 0; t < 400; t++) {
        int c0 = widths[pick(0, 6)], c1 = widths[pick(0, 6)], c2 = widths[pick(0, 6)];
        nn_affine first = affine_random(c0, c1, true), second = affine_random(c1, c2, false), both;
        map x = map_random(c0, pick(14, 19), pick(14, 19)), y = naive(&first, &x);
        if (y.h >= second.k[0] && y.w >= second.k[1]) {
            CHECK_OK(nn_affine_compose(&both, &first, &second, &e), e);
            map z = naive(&second, &y), direct = naive(&both, &x);
            worst = fmax(worst, difference(&z, &direct));
            CHECK(both.stride[0] == first.stride[0] * second.stride[0]);
            CHECK(both.k[1] == first.k[1] + first.stride[1] * (second.k[1] - 1));
            mem_free(z.x);
            mem_free(direct.x);
            nn_affine_free(&both);
        }
        mem_free(x.x);
        mem_free(y.x);
        nn_affine_free(&first);
        nn_affine_free(&second);
    }
    CHECK_CLOSE(worst, 0, 1e-12);
}

/* Larger than one block of the matrix product in both directions. */
static void wide_convolutions_compose_across_the_blocks(void)
{
    err e = { 0 };
    nn_affine first = affine(150, 40, 1, 3, 5), second = affine(40, 300, 1, 3, 3), both;
    for (int s = 0; s < 4; s++)
        first.pad[s] = 2;
    CHECK_OK(nn_affine_compose(&both, &first, &second, &e), e);
    map x = map_random(150, 6, 7), y = naive(&first, &x), z = naive(&second, &y), direct = naive(&both, &x);
    CHECK_CLOSE(difference(&z, &direct), 0, 1e-12);
    map *all[] = { &x, &y, &z, &direct };
    for (int i = 0; i < 4; i++)
        mem_free(all[i]->x);
    nn_affine_free(&both);
    nn_affine_free(&first);
    nn_affine_free(&second);
}

static int composed_groups(int c0, int g1, int c1, int g2, int c2)
{
    err e = { 0 };
    nn_affine first = affine(c0, c1, g1, 3, 3), second = affine(c1, c2, g2, 1, 1), both;
    CHECK_OK(nn_affine_compose(&both, &first, &second, &e), e);
    int groups = both.groups;
    nn_affine_free(&both);
    nn_affine_free(&first);
    nn_affine_free(&second);
    return groups;
}

static void groups_compose_to_the_greatest_common_divisor(void)
{
    CHECK(composed_groups(12, 12, 12, 12, 12) == 12);    /* depthwise stays compact */
    CHECK(composed_groups(12, 12, 12, 1, 8) == 1);
    CHECK(composed_groups(8, 1, 12, 12, 12) == 1);
    CHECK(composed_groups(12, 4, 12, 6, 12) == 2);
    CHECK(composed_groups(6, 6, 12, 4, 8) == 2);         /* depthwise with a multiplier */
}

static void a_second_padding_and_unequal_channels_are_refused(void)
{
    err e = { 0 };
    nn_affine first = affine(2, 3, 1, 3, 3), second = affine(3, 2, 1, 3, 3), other = affine(4, 4, 1, 1, 1), out;
    second.pad[1] = 1;
    CHECK(!nn_affine_compose(&out, &first, &second, &e) && e.code == ERR_INTERNAL);
    CHECK(strstr(e.msg, "0,1,0,0"));
    CHECK(!nn_affine_compose(&out, &first, &other, &e) && strstr(e.msg, "3 channels leave the first, 4 enter"));
    CHECK(!out.w && !out.b);
    nn_affine id = nn_affine_identity(3);
    CHECK_OK(nn_affine_compose(&out, &id, &second, &e), e);
    CHECK(out.pad[1] == 1 && out.w != second.w && !memcmp(out.w, second.w, 3 * 2 * 9 * sizeof(double)));
    nn_affine_free(&out);
    CHECK_OK(nn_affine_compose(&out, &id, &id, &e), e);
    CHECK(out.identity && out.cin == 3);
    nn_affine_free(&first);
    nn_affine_free(&second);
    nn_affine_free(&other);
}

/* y = F(x) + x for every group structure, even kernels and one-sided padding. */
static void a_skip_becomes_a_tap(void)
{
    err e = { 0 };
    static const int groups[] = { 1, 2, 3, 6 };
    for (int t = 0; t < 40; t++) {
        nn_affine a = affine(6, 6, groups[t % 4], pick(1, 5), pick(1, 5));
        a.pad[0] = pick(0, a.k[0] - 1);
        a.pad[1] = a.k[0] - 1 - a.pad[0];
        a.pad[2] = pick(0, a.k[1] - 1);
        a.pad[3] = a.k[1] - 1 - a.pad[2];
        map x = map_random(6, 7, 8), y = naive(&a, &x);
        for (int i = 0; i < 6 * 7 * 8; i++)
            y.x[i] += x.x[i];
        CHECK_OK(nn_affine_add_skip(&a, &e), e);
        CHECK(a.groups == groups[t % 4]);
        map z = naive(&a, &x);
        CHECK_CLOSE(difference(&y, &z), 0, 1e-12);
        mem_free(x.x);
        mem_free(y.x);
        mem_free(z.x);
        nn_affine_free(&a);
    }
}

static void a_skip_over_a_branch_that_changes_the_shape_is_refused(void)
{
    err e = { 0 };
    nn_affine a = affine(4, 4, 1, 3, 3);
    CHECK(!nn_affine_add_skip(&a, &e) && strstr(e.msg, "changes the shape"));
    for (int s = 0; s < 4; s++)
        a.pad[s] = 1;
    a.stride[1] = 2;
    CHECK(!nn_affine_add_skip(&a, &e));
    a.stride[1] = 1;
    CHECK_OK(nn_affine_add_skip(&a, &e), e);
    nn_affine_free(&a);
}

static void a_skip_around_nothing_doubles(void)
{
    err e = { 0 };
    nn_affine a = nn_affine_identity(3);
    CHECK_OK(nn_affine_add_skip(&a, &e), e);
    map x = map_random(3, 4, 5), y = naive(&a, &x);
    for (int i = 0; i < 3 * 4 * 5; i++)
        CHECK_CLOSE(y.x[i], 2 * x.x[i], 0);
    mem_free(x.x);
    mem_free(y.x);
    nn_affine_free(&a);
}

/* Any kernels whose output sizes agree: the smaller is embedded at the difference of the padding. */
static void a_projection_is_embedded_in_the_branch(void)
{
    err e = { 0 };
    int tried = 0;
    for (int t = 0; t < 20000 && tried < 100; t++) {
        int cin = 6, cout = pick(0, 1) ? 6 : 12;
        nn_affine a = affine_random(cin, cout, true), p = affine_random(cin, cout, true);
        memcpy(p.stride, a.stride, sizeof p.stride);
        map x = map_random(cin, pick(9, 12), pick(9, 12)), y = naive(&a, &x), q = naive(&p, &x);
        if (y.h == q.h && y.w == q.w) {
            tried++;
            for (int i = 0; i < y.c * y.h * y.w; i++)
                y.x[i] += q.x[i];
            CHECK_OK(nn_affine_add_projection(&a, &p, &e), e);
            map z = naive(&a, &x);
            CHECK_CLOSE(difference(&y, &z), 0, 1e-12);
            mem_free(z.x);
        }
        mem_free(x.x);
        mem_free(y.x);
        mem_free(q.x);
        nn_affine_free(&a);
        nn_affine_free(&p);
    }
    CHECK(tried == 100);
}

static void a_projection_beside_a_vanished_branch_adds_the_identity(void)
{
    err e = { 0 };
    nn_affine a = nn_affine_identity(4), p = affine(4, 4, 1, 1, 1);
    map x = map_random(4, 3, 5), y = naive(&p, &x);
    for (int i = 0; i < 4 * 3 * 5; i++)
        y.x[i] += x.x[i];
    CHECK_OK(nn_affine_add_projection(&a, &p, &e), e);
    map z = naive(&a, &x);
    CHECK_CLOSE(difference(&y, &z), 0, 1e-14);
    nn_affine wrong = affine(4, 5, 1, 1, 1);
    CHECK(!nn_affine_add_projection(&a, &wrong, &e) && strstr(e.msg, "4 to 5"));
    mem_free(x.x);
    mem_free(y.x);
    mem_free(z.x);
    nn_affine_free(&a);
    nn_affine_free(&p);
    nn_affine_free(&wrong);
}

/* A residual network in small: block with projection and stride 2, block with identity skip whose
 * padding moved in front of everything, depthwise tail. */
static void blocks_with_skips_compose_into_one(void)
{
    err e = { 0 };
    nn_affine c1 = affine(4, 6, 1, 3, 3), c2 = affine(6, 8, 1, 3, 3), pr = affine(4, 8, 1, 1, 1);
    nn_affine c3 = affine(8, 8, 8, 3, 3), b1, all;
    c1.stride[0] = c1.stride[1] = pr.stride[0] = pr.stride[1] = 2;
    for (int s = 0; s < 4; s++)
        c1.pad[s] = 1 + 2 * 1 + 2 * 1;           /* its own, c2's and c3's, the later ones times stride */
    map x = map_random(4, 16, 18), wide = map_new(4, 20, 22);
    for (int c = 0; c < 4; c++)                  /* the projection's input is padded, then projected */
        for (int h = 0; h < 16; h++)
            memcpy(wide.x + (c * 20 + h + 2) * 22 + 2, x.x + (c * 16 + h) * 18, 18 * sizeof(double));
    map m1 = naive(&c1, &x), m2 = naive(&c2, &m1), m3 = naive(&pr, &wide);
    CHECK(m2.h == m3.h && m2.w == m3.w);
    for (int i = 0; i < m2.c * m2.h * m2.w; i++)
        m2.x[i] += m3.x[i];
    map m4 = naive(&c3, &m2);
    for (int c = 0; c < 8; c++)                  /* the skip is cropped where the padding moved away */
        for (int h = 0; h < m4.h; h++)
            for (int w = 0; w < m4.w; w++)
                m4.x[(c * m4.h + h) * m4.w + w] += m2.x[(c * m2.h + h + 1) * m2.w + w + 1];

    CHECK_OK(nn_affine_compose(&b1, &c1, &c2, &e), e);
    for (int s = 0; s < 4; s++)
        pr.pad[s] = 2;
    CHECK_OK(nn_affine_add_projection(&b1, &pr, &e), e);
    for (int s = 0; s < 4; s++)
        c3.pad[s] = 1;
    CHECK_OK(nn_affine_add_skip(&c3, &e), e);
    memset(c3.pad, 0, sizeof c3.pad);
    CHECK_OK(nn_affine_compose(&all, &b1, &c3, &e), e);
    CHECK(all.k[0] == 3 + 2 * 2 + 2 * 2 && all.pad[0] == 5 && all.stride[0] == 2);
    map z = naive(&all, &x);
    CHECK(z.h == 8 && z.w == 9);
    CHECK_CLOSE(difference(&m4, &z), 0, 1e-12);
    map *maps[] = { &x, &wide, &m1, &m2, &m3, &m4, &z };
    nn_affine *affines[] = { &c1, &c2, &pr, &c3, &b1, &all };
    for (int i = 0; i < 7; i++)
        mem_free(maps[i]->x);
    for (int i = 0; i < 6; i++)
        nn_affine_free(affines[i]);
}

static void dense_expansion_is_the_same_map(void)
{
    err e = { 0 };
    nn_affine a = affine(6, 12, 3, 3, 2);
    map x = map_random(6, 5, 5), y = naive(&a, &x);
    CHECK_OK(nn_affine_dense(&a, &e), e);
    CHECK(a.groups == 1);
    map z = naive(&a, &x);
    CHECK_CLOSE(difference(&y, &z), 0, 0);
    mem_free(x.x);
    mem_free(y.x);
    mem_free(z.x);
    nn_affine_free(&a);
}

/* ---- from and to graphs --------------------------------------------------------------------------- */

static void fill(nn_graph *g)
{
    for (int p = 0; p < g->n_param; p++)
        for (int64_t i = 0; i < nn_param_count(&g->param[p]); i++)
            g->param[p].x[i] = (float)rng_normal(&dice) * (g->param[p].role == NN_RUNNING ? 0.1f : 1.0f) +
                               (strstr(g->param[p].name, "running_var") ? 2.0f : 0.0f);
}

/* conv, then norm, straight from the graph's floats. */
static map naive_conv_norm(const nn_graph *g, int conv, int norm, const map *in)
{
    const nn_node *c = &g->node[conv], *b = &g->node[norm];
    const nn_attr *t = &c->attr;
    int ci = in->c / t->groups, co = t->out / t->groups;
    map out = map_new(t->out, (int)c->dim[1], (int)c->dim[2]);
    const float *w = g->param[c->w[0]].x;
    const float *p[4];
    for (int i = 0; i < 4; i++)
        p[i] = g->param[b->w[i]].x;
    for (int o = 0; o < t->out; o++)
        for (int y = 0; y < out.h; y++)
            for (int x = 0; x < out.w; x++) {
                double sum = t->bias ? (double)g->param[c->w[1]].x[o] : 0;
                for (int i = 0; i < ci; i++)
                    for (int u = 0; u < t->k[0]; u++)
                        for (int v = 0; v < t->k[1]; v++) {
                            int iy = y * t->stride[0] + u * t->dilation[0] - t->pad[0];
                            int ix = x * t->stride[1] + v * t->dilation[1] - t->pad[2];
                            if (iy >= 0 && iy < in->h && ix >= 0 && ix < in->w)
                                sum += (double)w[((o * ci + i) * t->k[0] + u) * t->k[1] + v] *
                                       in->x[((o / co * ci + i) * in->h + iy) * in->w + ix];
                        }
                out.x[(o * out.h + y) * out.w + x] =
                    (sum - (double)p[2][o]) / sqrt((double)p[3][o] + (double)b->attr.eps) * (double)p[0][o] +
                    (double)p[1][o];
            }
    return out;
}

static void a_dilated_convolution_and_its_norm_fold_into_one(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("test", &e);
    int in = nn_add_input(g, "input", 11, 13, 6, &e);
    nn_attr attr = { .k = { 3, 2 }, .stride = { 1, 2 }, .dilation = { 2, 3 }, .pad = { 2, 0, 1, 3 },
                     .out = 4, .groups = 2, .bias = true };
    int conv = nn_node_add(g, NN_OP_conv2d, "conv", &in, 1, &attr, &e);
    int norm = nn_add_norm(g, "bn", conv, &e);
    CHECK_OK(norm >= 0, e);
    g->node[norm].attr.eps = 1e-3f;
    fill(g);
    nn_affine a;
    CHECK_OK(nn_affine_conv(&a, g, conv, norm, &e), e);
    CHECK(a.k[0] == 5 && a.k[1] == 4 && a.groups == 2);
    map x = map_random(6, 11, 13), y = naive_conv_norm(g, conv, norm, &x), z = naive(&a, &x);
    CHECK_CLOSE(difference(&y, &z), 0, 1e-13);
    nn_affine none;
    CHECK(!nn_affine_conv(&none, g, norm, -1, &e) && strstr(e.msg, "bn"));
    CHECK(!nn_affine_slice(&none, g, conv, &e) && !none.w);
    mem_free(x.x);
    mem_free(y.x);
    mem_free(z.x);
    nn_affine_free(&a);
    nn_graph_free(g);
}

static void an_option_a_shortcut_is_a_convolution(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("test", &e);
    int in = nn_add_input(g, "input", 7, 8, 4, &e);
    nn_attr attr = { .stride = { 2, 2 }, .chan = { 2, 1 } };
    int slice = nn_node_add(g, NN_OP_slice, "slice", &in, 1, &attr, &e);
    nn_affine a;
    CHECK_OK(nn_affine_slice(&a, g, slice, &e), e);
    map x = map_random(4, 7, 8), y = naive(&a, &x);
    CHECK(y.c == g->node[slice].dim[3] && y.h == g->node[slice].dim[1] && y.w == g->node[slice].dim[2]);
    for (int c = 0; c < y.c; c++)
        for (int h = 0; h < y.h; h++)
            for (int w = 0; w < y.w; w++)
                CHECK_CLOSE(y.x[(c * y.h + h) * y.w + w],
                            c < 2 || c > 5 ? 0 : x.x[((c - 2) * 7 + 2 * h) * 8 + 2 * w], 0);
    mem_free(x.x);
    mem_free(y.x);
    nn_affine_free(&a);
    nn_graph_free(g);
}

static void a_value_becomes_a_node_and_back(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("test", &e);
    int in = nn_add_input(g, "input", 9, 9, 4, &e);
    nn_affine a = affine(4, 6, 2, 3, 2), back, id = nn_affine_identity(4), wrong = affine(5, 6, 1, 1, 1);
    a.pad[0] = 1;
    a.pad[3] = 2;
    a.stride[1] = 2;
    int n = nn_affine_node(g, "merged", in, &a, &e);
    CHECK_OK(n >= 0, e);
    CHECK_TEXT(g->param[g->node[n].w[0]].name, "merged.weight");
    CHECK_OK(nn_affine_conv(&back, g, n, -1, &e), e);
    CHECK(!memcmp(back.k, a.k, sizeof a.k) && !memcmp(back.pad, a.pad, sizeof a.pad) && back.groups == 2);
    for (int i = 0; i < 6 * 2 * 6; i++)
        CHECK((float)a.w[i] == (float)back.w[i]);
    for (int i = 0; i < 6; i++)
        CHECK((float)a.b[i] == (float)back.b[i]);
    CHECK(nn_affine_node(g, "nothing", in, &id, &e) == in);
    CHECK(nn_affine_node(g, "wrong", in, &wrong, &e) == -1 && strstr(e.msg, "4 channels"));
    nn_affine_free(&a);
    nn_affine_free(&back);
    nn_affine_free(&wrong);
    nn_graph_free(g);
}

/* Every allocation of a composition and of a projection fails once; nothing leaks or is half done. */
static void running_out_of_memory_is_an_error(void)
{
    nn_affine first = affine(4, 6, 2, 3, 3), second = affine(6, 4, 1, 3, 3);
    int failed = 0;
    for (int k = 1; k < 12; k++) {
        err e = { 0 };
        nn_affine both;
        mem_fail_at(k);
        bool ok = nn_affine_compose(&both, &first, &second, &e);
        mem_fail_at(0);
        CHECK(ok || (e.code == ERR_NOMEM && !both.w && !both.b));
        failed += !ok;
        if (ok)
            nn_affine_free(&both);
        nn_affine sum = affine(6, 4, 2, 1, 1);
        mem_fail_at(k);
        ok = nn_affine_add_projection(&sum, &second, &e);
        mem_fail_at(0);
        CHECK(ok || (e.code == ERR_NOMEM && sum.w && sum.k[0] == 1));
        nn_affine_free(&sum);
    }
    CHECK(failed == 5);
    nn_affine_free(&first);
    nn_affine_free(&second);
}

static void a_gigantic_merge_is_refused(void)
{
    err e = { 0 };
    nn_affine first = { .cin = 1, .cout = 1, .groups = 1, .k = { 3000, 1 }, .stride = { 2, 1 } }, second = first, out;
    CHECK(!nn_affine_compose(&out, &first, &second, &e) && strstr(e.msg, "too large"));
    nn_affine a = { .cin = 1 << 30, .cout = 1, .groups = 1, .k = { 4096, 4096 }, .stride = { 1, 1 } };
    nn_affine b = { .cin = 1, .cout = 1 << 30, .groups = 1, .k = { 1, 1 }, .stride = { 1, 1 } };
    e = (err){ 0 };
    CHECK(!nn_affine_compose(&out, &a, &b, &e) && e.code == ERR_NOMEM);
}

static void threads_do_not_change_a_bit(void)
{
    err e = { 0 };
    nn_affine first = affine(70, 64, 1, 3, 3), second = affine(64, 260, 1, 3, 3), one, many;
    CHECK_OK(nn_affine_compose(&many, &first, &second, &e), e);
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = 1, .isa = test_isa() }, &e), e);
    CHECK_OK(nn_affine_compose(&one, &first, &second, &e), e);
    CHECK(!memcmp(one.w, many.w, (size_t)(260 * 70 * 25) * sizeof(double)));
    nn_affine_free(&one);
    nn_affine_free(&many);
    nn_affine_free(&first);
    nn_affine_free(&second);
}

int main(void)
{
    START(3);
    dice = rng_at(1, RNG_TEST, 0, 0);
    RUN(composition_equals_one_convolution_after_the_other);
    RUN(wide_convolutions_compose_across_the_blocks);
    RUN(groups_compose_to_the_greatest_common_divisor);
    RUN(a_second_padding_and_unequal_channels_are_refused);
    RUN(a_skip_becomes_a_tap);
    RUN(a_skip_over_a_branch_that_changes_the_shape_is_refused);
    RUN(a_skip_around_nothing_doubles);
    RUN(a_projection_is_embedded_in_the_branch);
    RUN(a_projection_beside_a_vanished_branch_adds_the_identity);
    RUN(blocks_with_skips_compose_into_one);
    RUN(dense_expansion_is_the_same_map);
    RUN(a_dilated_convolution_and_its_norm_fold_into_one);
    RUN(an_option_a_shortcut_is_a_convolution);
    RUN(a_value_becomes_a_node_and_back);
    RUN(running_out_of_memory_is_an_error);
    RUN(a_gigantic_merge_is_refused);
    RUN(threads_do_not_change_a_bit);
    core_stop();
    END();
}
