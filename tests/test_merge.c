/* Merged networks equal pruned ones: to 1e-12 in double over full maps, to float's rounding through
 * real plans. */
#include "tests/chain_random.h"
#include "tests/graph_naive.h"
#include "tests/test.h"

/* ---- in double --------------------------------------------------------------------------------------- */

/* The merged network evaluated with the merged weights before they were rounded to float. */
static naive_map eval_unrounded(const search_chain *c, const search_solution *s, const nn_graph *pruned,
                                const nn_graph *merged, const double *image)
{
    err e = { 0 };
    rewrite_plan p;
    CHECK_OK(rewrite_plan_init(&p, c, s, &e), e);
    nn_affine *a = mem_new((size_t)s->n_segment, sizeof *a, NULL);
    const nn_affine **at = mem_new((size_t)merged->n_node, sizeof *at, NULL);
    for (int m = 0; m < s->n_segment; m++) {
        CHECK_OK(rewrite_segment(&p, m, pruned, &a[m], &e), e);
        int v = nn_graph_find(merged, c->g->node[c->pos[s->segment[m].end].conv].name);
        if (v >= 0)
            at[v] = &a[m];
    }
    naive_map out = naive_eval(merged, &(naive_options){ .conv = at }, image);
    for (int m = 0; m < s->n_segment; m++)
        nn_affine_free(&a[m]);
    mem_free(a);
    mem_free(at);
    rewrite_plan_free(&p);
    return out;
}

static double double_difference(const search_chain *c, const search_solution *s, const nn_graph *pruned,
                                const nn_graph *merged)
{
    double *image = random_image(pruned);
    naive_map want = naive_eval(pruned, NULL, image), have = eval_unrounded(c, s, pruned, merged, image);
    double d = naive_difference(&want, &have, false, NULL);
    naive_map_free(&want);
    naive_map_free(&have);
    mem_free(image);
    return d;
}

static int convs_of(const nn_graph *g)
{
    int n = 0;
    for (int v = 0; v < g->n_node; v++)
        n += g->node[v].op == NN_OP_conv2d && !g->node[v].attr.fixed;
    return n;
}

static int segments_left(const search_solution *s)
{
    int n = 0;
    for (int m = 0; m < s->n_segment; m++)
        n += s->segment[m].n_keep > 0;
    return n;
}

static void merged_equals_pruned_in_double_up_to_the_border(void)
{
    double worst = 0;
    int fused = 0, padded = 0, cropped = 0, slices = 0, projections = 0, nested = 0;
    for (int t = 0; t < 300; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(9, 19, &e);
        CHECK_OK(g != NULL, e);
        search_chain *c = search_chain_new(g, &e);
        CHECK_OK(c != NULL, e);
        const bool identity = chance(30);
        search_solution s = random_solution(c, pick(10, 100), identity);
        nn_graph *pruned = search_prune(c, &s, &e);
        CHECK_OK(pruned != NULL, e);
        nn_graph *merged = pruned ? search_merge(c, &s, pruned, &e) : NULL;
        CHECK_OK(merged != NULL, e);
        if (merged) {
            double d = double_difference(c, &s, pruned, merged);
            CHECK(d <= 1e-12);
            worst = fmax(worst, d);
            CHECK(convs_of(merged) >= segments_left(&s));
            for (int v = 0; v < merged->n_node; v++)
                CHECK(merged->node[v].op != NN_OP_pad);
        }
        rewrite_plan p;
        CHECK_OK(rewrite_plan_init(&p, c, &s, &e), e);
        for (int k = 0; k < c->n_skip; k++) {
            bool inside = p.skip[k].fused && !p.skip[k].empty;
            fused += inside;
            padded += inside && p.skip[k].pad[0] > 0;   /* not the projections, which pad themselves */
            cropped += inside && p.skip[k].pad[0] < 0;
            slices += inside && c->skip[k].slice >= 0;
            projections += inside && c->skip[k].conv >= 0;
            for (int o = 0; o < k; o++)
                nested += inside && p.skip[o].fused && c->skip[o].t >= c->skip[k].t;
        }
        rewrite_plan_free(&p);
        nn_graph_free(pruned);
        nn_graph_free(merged);
        search_solution_free(&s);
        search_chain_free(c);
        nn_graph_free(g);
    }
    printf("merged against pruned in double: %.1e\n", worst);
    /* The dice must have shown every case. */
    CHECK(fused > 100 && padded > 20 && cropped > 20 && slices > 20 && projections > 20 && nested > 20);
}

/* What the latency table times: the merged network's shapes without its weights. */
static void shapes_are_those_of_the_merged_network(void)
{
    int same_kernel = 0, convs = 0, fixed = 0, skips = 0;
    for (int t = 0; t < 100; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(9, 19, &e);
        search_chain *c = search_chain_new(g, &e);
        const bool identity = chance(30);
        search_solution s = random_solution(c, pick(10, 100), identity);
        nn_graph *pruned = search_prune(c, &s, &e), *merged = search_merge(c, &s, pruned, &e);
        rewrite_plan p;
        int *owner = NULL;
        CHECK_OK(rewrite_plan_init(&p, c, &s, &e), e);
        nn_graph *shapes = rewrite_graph(&p, c->g, REWRITE_SHAPES, &owner, &e);
        CHECK_OK(merged && shapes && owner, e);
        CHECK(shapes->n_node == merged->n_node);
        for (int m = 0; m < s.n_segment; m++) {
            const int v = nn_graph_find(shapes, g->node[c->pos[s.segment[m].end].conv].name);
            CHECK(v < 0 ? s.segment[m].n_keep == 0 : owner[v] == m);
        }
        for (int k = 0; k < c->n_skip; k++) {
            const int add = nn_graph_find(shapes, g->node[c->skip[k].add].name);
            const int side = c->skip[k].conv < 0 ? -1 : nn_graph_find(shapes, g->node[c->skip[k].conv].name);
            CHECK(add < 0 || owner[add] == p.segment[c->skip[k].t]);
            CHECK(side < 0 || owner[side] == p.segment[c->skip[k].t]);
            skips += (add >= 0) + (side >= 0);
        }
        for (int v = 0; v < shapes->n_node && v < merged->n_node; v++) {
            const nn_node *a = &shapes->node[v], *b = &merged->node[v];
            CHECK(a->op == b->op && !strcmp(a->name, b->name) && !memcmp(a->dim, b->dim, sizeof a->dim));
            CHECK(owner[v] >= -1 && owner[v] < s.n_segment);
            CHECK(a->op != NN_OP_input || owner[v] < 0);
            fixed += owner[v] < 0;
            if (a->op != NN_OP_conv2d || owner[v] < 0) continue;
            CHECK(a->attr.groups == b->attr.groups);
            convs++;
            same_kernel += !memcmp(a->attr.k, b->attr.k, sizeof a->attr.k);
        }
        mem_free(owner);
        rewrite_plan_free(&p);
        nn_graph_free(shapes);
        nn_graph_free(pruned);
        nn_graph_free(merged);
        search_solution_free(&s);
        search_chain_free(c);
        nn_graph_free(g);
    }
    printf("%d of %d kernels the same\n", same_kernel, convs);
    CHECK(convs > 300 && same_kernel == convs && fixed > 100 && skips > 50);
}

/* ---- through plans -------------------------------------------------------------------------------------- */

static void merged_equals_pruned_through_plans(void)
{
    double worst = 0;
    for (int t = 0; t < 100; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(9, 19, &e);
        search_chain *c = search_chain_new(g, &e);
        const bool identity = chance(30);
        search_solution s = random_solution(c, pick(10, 100), identity);
        nn_graph *pruned = search_prune(c, &s, &e), *merged = search_merge(c, &s, pruned, &e);
        CHECK_OK(pruned && merged, e);
        search_verdict v;
        CHECK_OK(search_verify(pruned, merged, NULL, 3, 7, 1e-5, &v, &e), e);
        CHECK(v.verified && v.max_rel <= 1e-5 && v.agreement == 1 && v.n == 3);
        worst = fmax(worst, v.max_rel);
        nn_graph_free(pruned);
        nn_graph_free(merged);
        search_solution_free(&s);
        search_chain_free(c);
        nn_graph_free(g);
    }
    printf("merged against pruned through plans: %.1e\n", worst);
}

typedef struct { const char *model; nn_build build; nn_barrier barrier; } network;

/* Whole networks; without stride barriers segments run over projections and option-A slices. */
static void whole_networks_merge_exactly(void)
{
    static const network all[] = {
        { "resnet20", { .h = 21, .w = 18, .c = 3, .classes = 10 }, NN_BARRIER_STRIDE },
        { "resnet20", { .h = 21, .w = 18, .c = 3, .classes = 10 }, NN_BARRIER_NONE },
        { "mobilenetv2", { .h = 33, .w = 32, .c = 3, .classes = 10, .width = 0.25 }, NN_BARRIER_STRIDE_1X1 },
        { "mobilenetv2", { .h = 32, .w = 33, .c = 3, .classes = 10, .width = 0.25 }, NN_BARRIER_NONE },
        { "vgg8_bn", { .h = 16, .w = 16, .c = 3, .classes = 10 }, NN_BARRIER_NONE },
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        err e = { 0 };
        nn_graph *g = nn_model_find(all[i].model)->build(&all[i].build, &e);
        CHECK_OK(g != NULL, e);
        g->barrier = all[i].barrier;
        random_values(g);
        search_chain *c = search_chain_new(g, &e);
        CHECK_OK(c != NULL, e);
        search_solution s = random_solution(c, 35, false);
        nn_graph *pruned = search_prune(c, &s, &e), *merged = pruned ? search_merge(c, &s, pruned, &e) : NULL;
        CHECK_OK(merged != NULL, e);
        CHECK(double_difference(c, &s, pruned, merged) <= 1e-10);
        search_verdict v;
        CHECK_OK(search_verify(pruned, merged, NULL, 8, 3, 1e-4, &v, &e), e);
        CHECK(v.verified && v.agreement == 1);
        CHECK(convs_of(merged) == s.n_segment);
        nn_graph_free(pruned);
        nn_graph_free(merged);
        search_solution_free(&s);
        search_chain_free(c);
        nn_graph_free(g);
    }
}

/* ---- what a merged network looks like ---------------------------------------------------------------------- */

static void depthwise_stays_compact_and_groups_become_their_common_divisor(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("groups", &e);
    int x = nn_add_input(g, "input", 9, 9, 12, &e);
    x = nn_add_conv(g, "dw1", x, 12, 3, 1, 1, 12, false, false, &e);
    x = nn_add_conv(g, "dw2", x, 12, 3, 1, 1, 12, true, false, &e);
    x = nn_add_conv(g, "g4", x, 12, 3, 1, 1, 4, true, false, &e);
    g->output = nn_add_conv(g, "g6", x, 12, 1, 1, 0, 6, true, false, &e);
    random_values(g);
    search_chain *c = search_chain_new(g, &e);
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 2, (int[]){ 1, 2 }, 2);
    solution_add(&s, c, 2, 4, (int[]){ 3, 4 }, 2);
    nn_graph *pruned = search_prune(c, &s, &e), *merged = search_merge(c, &s, pruned, &e);
    CHECK_OK(merged != NULL, e);
    const nn_node *dw = &merged->node[nn_graph_find(merged, "dw2")], *g6 = &merged->node[nn_graph_find(merged, "g6")];
    CHECK(nn_graph_find(merged, "dw1") < 0 && nn_graph_find(merged, "g4") < 0);
    CHECK(dw->attr.groups == 12 && dw->attr.k[0] == 5 && dw->attr.pad[0] == 2 && dw->attr.bias);
    CHECK(g6->attr.groups == 2 && g6->attr.k[0] == 3 && g6->attr.pad[3] == 1);
    nn_graph_free(pruned);
    nn_graph_free(merged);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void merging_takes_the_values_of_the_trained_network(void)
{
    err e = { 0 };
    nn_graph *g = random_graph(12, 13, &e);
    search_chain *c = search_chain_new(g, &e);
    search_solution s = random_solution(c, 50, false);
    nn_graph *pruned = search_prune(c, &s, &e);
    CHECK_OK(pruned != NULL, e);
    random_values(pruned);
    nn_graph *merged = search_merge(c, &s, pruned, &e);
    CHECK_OK(merged != NULL, e);
    CHECK(double_difference(c, &s, pruned, merged) <= 1e-12);
    nn_graph_free(merged);

    nn_graph *other = nn_graph_copy(pruned, &e);           /* not this solution's network */
    for (int v = 0; v < other->n_node; v++)
        if (other->node[v].op == NN_OP_conv2d)
            other->node[v].attr.pad[0]++;
    CHECK(!search_merge(c, &s, other, &e) && e.code == ERR_DATA);
    CHECK(strstr(e.msg, "differs") != NULL);
    nn_graph_free(other);
    nn_graph_free(pruned);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

/* ---- verification ---------------------------------------------------------------------------------------------- */

static void a_network_that_differs_is_not_verified(void)
{
    err e = { 0 };
    nn_graph *g = nn_model_find("resnet20")->build(&(nn_build){ .h = 12, .w = 12, .c = 3, .classes = 5 }, &e);
    random_values(g);
    nn_graph *h = nn_graph_copy(g, &e);
    search_verdict v;
    CHECK_OK(search_verify(g, h, NULL, 20, 1, 1e-4, &v, &e), e);
    CHECK(v.verified && v.max_abs == 0 && v.agreement == 1 && v.n == 20);
    CHECK(v.variation > 1e-3 && v.variation <= 2);
    float *w = h->param[nn_param_find(h, "linear.bias")].x;
    w[0] += 1e-3f;
    CHECK_OK(search_verify(g, h, NULL, 20, 1, 1e-7, &v, &e), e);
    CHECK(!v.verified && v.max_abs > 5e-4 && v.max_abs < 2e-3);
    w[0] = NAN;
    CHECK_OK(search_verify(g, h, NULL, 20, 1, 1e-4, &v, &e), e);
    CHECK(!v.verified);
    CHECK(!search_verify(h, h, NULL, 20, 1, 1e-4, &v, &e) && e.code == ERR_NONFINITE);
    e = (err){ 0 };
    w[0] = 1e6f;
    CHECK_OK(search_verify(g, h, NULL, 20, 1, 1e9, &v, &e), e);
    CHECK(!v.verified && v.agreement < 1);
    nn_param *last = &h->param[nn_param_find(h, "linear.weight")];
    for (int64_t i = nn_param_count(last) - 1; i >= 0; i--) last->x[i] = 0;
    CHECK_OK(search_verify(h, h, NULL, 20, 1, 1e-4, &v, &e), e);
    CHECK(v.max_abs == 0 && v.variation == 0);           /* agrees, and proves nothing */
    nn_graph_free(h);
    h = nn_model_find("resnet20")->build(&(nn_build){ .h = 12, .w = 12, .c = 3, .classes = 6 }, &e);
    CHECK(!search_verify(g, h, NULL, 4, 1, 1e-4, &v, &e) && e.code == ERR_CONFIG);
    nn_graph_free(h);
    nn_graph_free(g);
}

static void images_verify_too(void)
{
    err e = { 0 };
    data_set *set = data_open("builtin:shapes,classes=10,size=20,train=20,val=20,seed=1", "val", NULL, &e);
    CHECK_OK(set != NULL, e);
    nn_graph *g = nn_model_find("resnet20")->build(&(nn_build){ .h = 20, .w = 20, .c = 3, .classes = 10 }, &e);
    random_values(g);
    search_chain *c = search_chain_new(g, &e);
    search_solution s = random_solution(c, 30, false);
    nn_graph *pruned = search_prune(c, &s, &e), *merged = search_merge(c, &s, pruned, &e);
    CHECK_OK(merged != NULL, e);
    search_verdict v;
    CHECK_OK(search_verify(pruned, merged, set, 0, 1, 1e-4, &v, &e), e);
    CHECK(v.verified && v.n == 20 && v.agreement == 1 && v.max_rel > 0);
    CHECK_OK(search_verify(pruned, merged, set, 7, 1, 1e-4, &v, &e), e);
    CHECK(v.verified && v.n == 7);
    nn_graph_free(pruned);
    nn_graph_free(merged);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
    data_free(set);
}

int main(void)
{
    START(2);
    dice = rng_at(3, RNG_TEST, 0, 0);
    RUN(merged_equals_pruned_in_double_up_to_the_border);
    RUN(shapes_are_those_of_the_merged_network);
    RUN(merged_equals_pruned_through_plans);
    RUN(whole_networks_merge_exactly);
    RUN(depthwise_stays_compact_and_groups_become_their_common_divisor);
    RUN(merging_takes_the_values_of_the_trained_network);
    RUN(a_network_that_differs_is_not_verified);
    RUN(images_verify_too);
    core_stop();
    END();
}
