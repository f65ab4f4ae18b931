/* The chain derived from the graph, its segments and their choices. */
#include "search/search.h"
#include "tests/test.h"

#include <stdlib.h>

static rng dice;

static int pick(int lo, int hi) { return lo + (int)rng_below(&dice, (uint32_t)(hi - lo + 1)); }

static search_chain *chain_of(const char *model, const nn_build *b, nn_graph **g)
{
    err e = { 0 };
    const nn_model *m = nn_model_find(model);
    nn_build standard = m->standard;
    *g = m->build(b ? b : &standard, &e);
    CHECK_OK(*g != NULL, e);
    search_chain *c = search_chain_new(*g, &e);
    CHECK_OK(c != NULL, e);
    return c;
}

/* ---- the counts of 1.5 ------------------------------------------------------------------------------ */

typedef struct {
    const char *model;
    nn_build build;
    int L, segments, entries, longest, largest, dw;
    const char *barriers;
    int by_kernel[24];           /* entries per kernel size */
} expectation;

static const expectation networks[] = {
    { "resnet34", { .h = 64, .w = 64, .c = 3, .classes = 10 }, 32, 62, 150, 10, 21, 0, "0, 7, 15, 27",
      { [3] = 62, [5] = 30, [7] = 17, [9] = 17, [11] = 8, [13] = 8, [15] = 3, [17] = 3, [19] = 1, [21] = 1 } },
    { "resnet50", { .h = 64, .w = 64, .c = 3, .classes = 10 }, 48, 107, 192, 15, 11, 0, "0, 11, 23, 41",
      { [1] = 88, [3] = 75, [5] = 17, [7] = 8, [9] = 3, [11] = 1 } },
    { "mobilenetv2", { .h = 224, .w = 224, .c = 3, .classes = 1000 }, 50, 171, 391, 21, 15, 17, "0, 5, 11, 20, 41",
      { [1] = 116, [3] = 137, [5] = 62, [7] = 37, [9] = 20, [11] = 11, [13] = 6, [15] = 2 } },
    { "mobilenetv2", { .h = 224, .w = 224, .c = 3, .classes = 1000, .width = 1.4 }, 50, 171, 391, 21, 15, 17,
      "0, 5, 11, 20, 41",
      { [1] = 116, [3] = 137, [5] = 62, [7] = 37, [9] = 20, [11] = 11, [13] = 6, [15] = 2 } },
    { "vgg19_bn", { .h = 32, .w = 32, .c = 3, .classes = 10 }, 16, 36, 68, 4, 9, 0, "2, 4, 8, 12, 16",
      { [3] = 36, [5] = 20, [7] = 9, [9] = 3 } },
};

static void barriers_of(const search_chain *c, char *out, size_t size)
{
    buf b = { 0 };
    search_chain_print(c, &b);
    const char *from = strstr(b.data, "barriers "), *to = from ? strchr(from, '\n') : NULL;
    snprintf(out, size, "%.*s", to ? (int)(to - from - 9) : 0, from ? from + 9 : "");
    buf_free(&b);
}

static void check_network(const expectation *x)
{
    err e = { 0 };
    nn_graph *g;
    search_chain *c = chain_of(x->model, &x->build, &g);
    search_table t;
    CHECK_OK(search_enumerate(c, false, &t, &e), e);
    int segments = 0, longest = 0, largest = 0, dw = 0, by_kernel[64] = { 0 };
    for (int r = 0; r < t.n; r++) {
        const search_entry *row = &t.row[r], *last = r ? row - 1 : NULL;
        bool fresh = !last || last->st != row->st || last->end != row->end;
        CHECK(row->id == r);
        CHECK(!last || row->st > last->st || (row->st == last->st && row->end > last->end) ||
              (!fresh && (row->ker > last->ker || (row->ker == last->ker && row->is_dw && !last->is_dw))));
        segments += fresh;
        dw += row->is_dw;
        longest = row->end - row->st > longest ? row->end - row->st : longest;
        largest = row->ker > largest ? row->ker : largest;
        by_kernel[row->ker]++;
    }
    char barriers[128];
    barriers_of(c, barriers, sizeof barriers);
    CHECK_TEXT(barriers, x->barriers);
    CHECK(c->L == x->L && t.L == x->L);
    CHECK(segments == x->segments);
    CHECK(t.n == x->entries);
    CHECK(longest == x->longest);
    CHECK(largest == x->largest);
    CHECK(dw == x->dw);
    CHECK(!memcmp(by_kernel, x->by_kernel, sizeof x->by_kernel));
    search_table_free(&t);
    search_chain_free(c);
    nn_graph_free(g);
}

static void segments_and_entries_of_the_networks_are_as_counted(void)
{
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        check_network(&networks[i]);
}

static void skips_projections_and_native_activations_are_found(void)
{
    nn_graph *g;
    search_chain *c = chain_of("resnet34", &(nn_build){ .h = 64, .w = 64, .c = 3, .classes = 10 }, &g);
    CHECK(c->n_skip == 16);
    for (int m = 0; m < c->n_skip; m++) {
        const search_skip *k = &c->skip[m];
        bool projected = k->s == 6 || k->s == 14 || k->s == 26;
        CHECK(k->s == 2 * m && k->t == 2 * m + 2 && k->fusible);
        CHECK((k->conv >= 0) == projected && (k->norm >= 0) == projected && k->slice < 0);
    }
    for (int l = 1; l <= c->L; l++) {
        CHECK(c->native[l] && c->pos[l].norm >= 0);
        CHECK(c->pos[l].irreducible == (l == 7 || l == 15 || l == 27));
        CHECK((c->pos[l].add >= 0) == (l % 2 == 0));
    }
    CHECK_TEXT(g->node[c->pos[7].conv].name, "layer2.0.conv1");
    CHECK(c->act == NN_OP_relu);
    search_chain_free(c);
    nn_graph_free(g);

    c = chain_of("mobilenetv2", NULL, &g);
    static const int from[] = { 5, 11, 14, 20, 23, 26, 32, 35, 41, 44 };
    CHECK(c->n_skip == 10);
    for (int m = 0; m < c->n_skip; m++)
        CHECK(c->skip[m].s == from[m] && c->skip[m].t == from[m] + 3 && c->skip[m].conv < 0);
    int reducible = 0;
    for (int l = 1; l <= c->L; l++) {
        reducible += !c->pos[l].irreducible;
        CHECK(c->pos[l].depthwise == (l % 3 == 1));
        CHECK(c->native[l] == (l % 3 != 2));
    }
    CHECK(reducible == 13);
    CHECK(c->act == NN_OP_relu6);
    search_chain_free(c);
    nn_graph_free(g);

    c = chain_of("resnet20", NULL, &g);                    /* option A */
    int slices = 0;
    for (int m = 0; m < c->n_skip; m++)
        slices += c->skip[m].slice >= 0 && c->skip[m].fusible;
    CHECK(c->L == 18 && c->n_skip == 9 && slices == 2);
    search_chain_free(c);
    nn_graph_free(g);
}

/* ---- the reference's sequential scan ------------------------------------------------------------------ */

/* From i the ends i+1, i+2, …; an end that is a skip's source jumps to its target; nothing leaves the
 * next barrier or the block that i is inside of. */
static int scan_from(const search_chain *c, int i, int *ends)
{
    int limit = c->L, n = 0;
    for (int b = c->L; b > i; b--)
        if (c->barrier[b])
            limit = b;
    for (int k = 0; k < c->n_skip; k++)
        if (c->skip[k].s < i && i < c->skip[k].t && c->skip[k].t < limit)
            limit = c->skip[k].t;
    for (int end = i + 1; end <= limit; ) {
        ends[n++] = end;
        int next = end + 1;
        for (int k = 0; k < c->n_skip; k++)
            if (c->skip[k].s == end)
                next = c->skip[k].t;
        end = next;
    }
    return n;
}

static void valid_segments_equal_a_sequential_scan(void)
{
    for (size_t x = 0; x < sizeof networks / sizeof *networks; x++) {
        nn_graph *g;
        search_chain *c = chain_of(networks[x].model, &networks[x].build, &g);
        int ends[64];
        for (int i = 0; i < c->L; i++) {
            int n = scan_from(c, i, ends), at = 0;
            for (int j = i + 1; j <= c->L; j++) {
                bool scanned = at < n && ends[at] == j;
                at += scanned;
                CHECK(search_segment_valid(c, i, j) == scanned);
            }
        }
        CHECK(!search_segment_valid(c, 0, 0) && !search_segment_valid(c, -1, 1));
        CHECK(!search_segment_valid(c, c->L - 1, c->L + 1));
        search_chain_free(c);
        nn_graph_free(g);
    }
}

/* ---- random small chains against subset enumeration ------------------------------------------------------ */

static nn_graph *random_chain(err *e)
{
    nn_graph *g = nn_graph_new("random", e);
    int c = 4, x = nn_add_input(g, "input", 40, 40, c, e), source = -1, n = pick(2, 7);
    g->barrier = (nn_barrier)pick(0, 2);
    for (int l = 0; l < n; l++) {
        char name[32];
        static const int sizes[] = { 1, 3, 3, 5 };
        int k = sizes[pick(0, 3)], out = pick(0, 4) ? c : 8, groups = pick(0, 1) && out == c ? c : 1;
        int stride = pick(0, 5) ? 1 : 2;
        if (source < 0 && pick(0, 2) == 0)
            source = x;
        snprintf(name, sizeof name, "conv%d", l);
        x = nn_add_conv(g, name, x, out, k, stride, k / 2, groups, true, false, e);
        c = out;
        if (source >= 0 && g->node[source].dim[1] == g->node[x].dim[1] && g->node[source].dim[3] == c && pick(0, 1)) {
            snprintf(name, sizeof name, "add%d", l);
            x = nn_add_add(g, name, x, source, e);
            source = -1;
        }
        snprintf(name, sizeof name, "relu%d", l);
        x = pick(0, 3) ? nn_add_op(g, NN_OP_relu, name, x, e) : x;
    }
    g->output = x;
    for (int p = 0; p < g->n_param; p++)                   /* few different values: ties happen */
        for (int64_t i = 0; i < nn_param_count(&g->param[p]); i++)
            g->param[p].x[i] = i ? 0 : (float)pick(0, 3);
    return g;
}

typedef struct { bool there; double value; int set[8], n; } best;

static bool is_smaller(const int *a, int na, const int *b, int nb)
{
    for (int i = 0; i < na && i < nb; i++)
        if (a[i] != b[i])
            return a[i] < b[i];
    return na < nb;
}

static void try_subset(const search_chain *c, int i, int j, unsigned bits, best out[64][2])
{
    best x = { .there = true };
    int k = 1, stride = 1;
    bool dw = true;
    for (int l = i + 1; l <= j; l++) {
        const search_pos *p = &c->pos[l];
        if (!(bits >> (l - i - 1) & 1)) {
            if (p->cin != p->cout || p->stride[0] > 1)
                return;
            continue;
        }
        k += stride * (p->k[0] - 1);
        stride *= p->stride[0];
        dw = dw && p->depthwise;
        x.value += p->l1;
        x.set[x.n++] = l;
    }
    best *b = &out[x.n ? k : 0][x.n && dw];
    if (!b->there || x.value > b->value || (x.value == b->value && is_smaller(x.set, x.n, b->set, b->n)))
        *b = x;
}

static void choices_equal_the_best_of_all_subsets(void)
{
    err e = { 0 };
    for (int t = 0; t < 400; t++) {
        nn_graph *g = random_chain(&e);
        search_chain *c = search_chain_new(g, &e);
        CHECK_OK(c != NULL, e);
        search_table all;
        bool identity = pick(0, 1);
        CHECK_OK(search_enumerate(c, identity, &all, &e), e);
        int r = 0;
        for (int i = 0; i < c->L; i++)
            for (int j = i + 1; j <= c->L; j++) {
                if (!search_segment_valid(c, i, j))
                    continue;
                static best found[64][2];
                memset(found, 0, sizeof found);
                for (unsigned bits = identity ? 0 : 1; bits < 1u << (j - i); bits++)
                    try_subset(c, i, j, bits, found);
                for (int k = 0; k < 64; k++)
                    for (int dw = 0; dw < 2; dw++) {
                        if (!found[k][dw].there)
                            continue;
                        const search_entry *row = r < all.n ? &all.row[r++] : NULL;
                        CHECK(row && row->st == i && row->end == j && row->ker == k && row->is_dw == dw);
                        CHECK(row && row->n_keep == found[k][dw].n &&
                              !memcmp(row->keep, found[k][dw].set, (size_t)row->n_keep * sizeof(int)));
                    }
            }
        CHECK(r == all.n);
        search_table_free(&all);
        search_chain_free(c);
        nn_graph_free(g);
    }
}

/* ---- what cannot be expressed ------------------------------------------------------------------------------ */

static void a_network_without_convolutions_to_search_is_refused(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("stem only", &e);
    g->output = nn_add_conv(g, "stem", nn_add_input(g, "input", 8, 8, 3, &e), 4, 3, 1, 1, 1, false, true, &e);
    CHECK(!search_chain_new(g, &e) && e.code == ERR_CONFIG);
    CHECK(strstr(e.msg, "no convolution") != NULL);
    nn_graph_free(g);
}

static void a_tensor_read_elsewhere_becomes_a_barrier(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("u", &e);
    int x = nn_add_input(g, "input", 8, 8, 4, &e), a[4];
    for (int l = 0; l < 4; l++) {
        char name[16];
        snprintf(name, sizeof name, "conv%d", l + 1);
        a[l] = x = nn_add_conv(g, name, x, 4, 3, 1, 1, 1, true, false, &e);
    }
    int both = nn_node_add(g, NN_OP_concat, "concat", (int[]){ x, a[1] }, 2, NULL, &e);
    g->output = nn_add_conv(g, "last", both, 4, 1, 1, 0, 1, true, false, &e);
    search_chain *c = search_chain_new(g, &e);
    CHECK_OK(c != NULL, e);
    CHECK(c->L == 5 && c->barrier[2] && c->barrier[4]);
    CHECK(!c->barrier[1] && !c->barrier[3] && !c->barrier[0]);
    CHECK(search_segment_valid(c, 0, 2) && !search_segment_valid(c, 1, 3));
    search_chain_free(c);
    nn_graph_free(g);

    g = nn_graph_new("inside", &e);                        /* read between the conv and its norm */
    int conv = nn_add_conv(g, "conv", nn_add_input(g, "input", 8, 8, 4, &e), 4, 3, 1, 1, 1, false, false, &e);
    x = nn_add_norm(g, "bn", conv, &e);
    g->output = nn_node_add(g, NN_OP_concat, "concat", (int[]){ x, conv }, 2, NULL, &e);
    CHECK(!search_chain_new(g, &e) && e.code == ERR_CONFIG);
    nn_graph_free(g);
}

static void pre_activation_and_overlapping_skips_are_not_fusible(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("pre", &e);
    int in = nn_add_conv(g, "conv1", nn_add_input(g, "input", 8, 8, 4, &e), 4, 3, 1, 1, 1, true, false, &e);
    int x = nn_add_op(g, NN_OP_relu, "relu", nn_add_norm(g, "bn", nn_add_norm(g, "bn0", in, &e), &e), &e);
    x = nn_add_conv(g, "conv2", x, 4, 3, 1, 1, 1, true, false, &e);
    g->output = nn_add_add(g, "add", nn_add_conv(g, "conv3", x, 4, 3, 1, 1, 1, true, false, &e), in, &e);
    search_chain *c = search_chain_new(g, &e);
    CHECK(!c && e.code == ERR_CONFIG);                     /* the skip reads in front of conv1's norm */
    nn_graph_free(g);

    g = nn_graph_new("overlap", &e);
    x = nn_add_input(g, "input", 8, 8, 4, &e);
    int node[7] = { x };
    for (int l = 1; l <= 6; l++) {
        char name[16];
        snprintf(name, sizeof name, "conv%d", l);
        x = nn_add_conv(g, name, x, 4, 3, 1, 1, 1, true, false, &e);
        snprintf(name, sizeof name, "add%d", l);
        x = l == 3 ? nn_add_add(g, name, x, node[0], &e) : l == 5 ? nn_add_add(g, name, x, node[2], &e) : x;
        node[l] = x;
    }
    g->output = x;
    c = search_chain_new(g, &e);
    CHECK_OK(c != NULL, e);
    CHECK(c->n_skip == 2 && !c->skip[0].fusible && !c->skip[1].fusible);
    CHECK(c->barrier[2] && c->barrier[3] && c->barrier[5]);
    search_chain_free(c);
    nn_graph_free(g);
}

int main(void)
{
    dice = rng_at(1, RNG_TEST, 0, 0);
    RUN(segments_and_entries_of_the_networks_are_as_counted);
    RUN(skips_projections_and_native_activations_are_found);
    RUN(valid_segments_equal_a_sequential_scan);
    RUN(choices_equal_the_best_of_all_subsets);
    RUN(a_network_without_convolutions_to_search_is_refused);
    RUN(a_tensor_read_elsewhere_becomes_a_barrier);
    RUN(pre_activation_and_overlapping_skips_are_not_fusible);
    END();
}
