/* Solutions applied: the pruned network is what the solution says, up to the border, and at the
 * border exactly where the padding was moved. */
#include "tests/chain_random.h"
#include "tests/graph_naive.h"
#include "tests/test.h"

static bool same_text(const nn_graph *a, const nn_graph *b)
{
    buf x = { 0 }, y = { 0 };
    nn_graph_print(a, &x);
    nn_graph_print(b, &y);
    bool same = x.data && y.data && !strcmp(x.data, y.data);
    buf_free(&x);
    buf_free(&y);
    return same;
}

static void keeping_everything_gives_the_original_network(void)
{
    int plain = 0;
    for (int t = 0; t < 100; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(9, 17, &e);
        CHECK_OK(g != NULL, e);
        search_chain *c = search_chain_new(g, &e);
        CHECK_OK(c != NULL, e);
        search_solution s = every_conv_alone(c);
        nn_graph *pruned = search_prune(c, &s, &e);
        CHECK_OK(pruned != NULL, e);
        bool one_each = true;                              /* several adds at one node come last, together */
        for (int k = 1; k < c->n_skip; k++)
            for (int o = 0; o < k; o++)
                one_each = one_each && c->skip[k].t != c->skip[o].t;
        CHECK(pruned->n_node == g->n_node && (!one_each || same_text(pruned, g)));
        plain += one_each;
        double *image = random_image(g);
        naive_map a = naive_eval(g, NULL, image), b = naive_eval(pruned, NULL, image);
        CHECK(naive_difference(&a, &b, false, NULL) == 0);
        naive_map_free(&a);
        naive_map_free(&b);
        mem_free(image);
        nn_graph_free(pruned);
        search_solution_free(&s);
        search_chain_free(c);
        nn_graph_free(g);
    }
    CHECK(plain > 30);
}

/* ---- what a solution means, said on the original graph ------------------------------------------------ */

typedef struct { naive_how *how; nn_opcode *then; } meaning;

/* A branch is gone if the way back from the add to the skip's source meets nothing but nodes that are
 * passed through and activations; those are then passed through too. */
static bool branch_is_gone(const nn_graph *g, const search_skip *k, naive_how *how, bool mark)
{
    int source = search_skip_source(&(search_chain){ .g = g }, k);
    for (int v = g->node[k->add].in[0]; v != source; ) {
        bool act = g->node[v].op == NN_OP_relu || g->node[v].op == NN_OP_relu6;
        if (how[v] == NAIVE_AS_IS && !act)
            return false;
        if (how[v] == NAIVE_SECOND_INPUT || g->node[v].n_in == 0)
            return false;
        if (mark)
            how[v] = NAIVE_FIRST_INPUT;
        v = g->node[v].in[0];
    }
    return true;
}

static meaning meaning_of(const search_chain *c, const search_solution *s)
{
    const nn_graph *g = c->g;
    meaning m = { mem_new((size_t)g->n_node, sizeof *m.how, NULL), mem_new((size_t)g->n_node, sizeof *m.then, NULL) };
    for (int v = 0; v < g->n_node; v++)
        m.then[v] = NN_OP_COUNT;
    for (int i = 0; i < s->n_segment; i++) {
        const search_entry *r = &s->segment[i];
        for (int l = r->st + 1, k = 0; l <= r->end; l++) {
            const search_pos *p = &c->pos[l];
            bool kept = k < r->n_keep && r->keep[k] == l;
            k += kept;
            if (!kept) {
                m.how[p->conv] = NAIVE_FIRST_INPUT;
                if (p->norm >= 0)
                    m.how[p->norm] = NAIVE_FIRST_INPUT;
            }
            if (l < r->end && p->act >= 0)
                m.how[p->act] = NAIVE_FIRST_INPUT;
            if (l == r->end && p->act < 0 && r->end - r->st > 1)
                m.then[c->node[l]] = c->act;
        }
    }
    for (int v = 0; v < g->n_node; v++)                    /* adds in order, so inner blocks first */
        for (int k = 0; k < c->n_skip; k++)
            if (c->skip[k].add == v && branch_is_gone(g, &c->skip[k], m.how, false)) {
                branch_is_gone(g, &c->skip[k], m.how, true);
                for (int l = c->skip[k].s + 1; l < c->skip[k].t; l++)
                    m.then[c->node[l]] = NN_OP_COUNT;
                m.how[v] = search_skip_is_identity(c, &c->skip[k]) ? NAIVE_FIRST_INPUT : NAIVE_SECOND_INPUT;
            }
    return m;
}

static void inside_the_border_a_pruned_network_is_the_original_without_what_was_removed(void)
{
    int64_t compared = 0, networks = 0;
    for (int t = 0; t < 150; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(24, 40, &e);
        search_chain *c = search_chain_new(g, &e);
        CHECK_OK(c != NULL, e);
        for (int again = 0; c && again < 2; again++) {
            const bool identity = chance(40);
            search_solution s = random_solution(c, pick(0, 90), identity);
            nn_graph *pruned = search_prune(c, &s, &e);
            CHECK_OK(pruned != NULL, e);
            meaning m = meaning_of(c, &s);
            double *image = random_image(g);
            naive_map want = naive_eval(g, &(naive_options){ .how = m.how, .then = m.then }, image);
            naive_map have = naive_eval(pruned, NULL, image);
            int64_t n = 0;
            CHECK(naive_difference(&want, &have, true, &n) <= 1e-12);
            compared += n;
            networks += n > 0;
            naive_map_free(&want);
            naive_map_free(&have);
            mem_free(image);
            mem_free(m.how);
            mem_free(m.then);
            nn_graph_free(pruned);
            search_solution_free(&s);
        }
        search_chain_free(c);
        nn_graph_free(g);
    }
    CHECK(networks > 200 && compared > 20000);
}

/* ---- by hand ---------------------------------------------------------------------------------------------- */

static nn_graph *two_blocks(bool relu, err *e)
{
    nn_graph *g = nn_graph_new("two blocks", e);
    int x = nn_add_input(g, "input", 7, 9, 4, e);
    for (int b = 1; b <= 2; b++) {
        char name[32];
        int from = x;
        for (int i = 1; i <= 2; i++) {
            snprintf(name, sizeof name, "conv%d.%d", b, i);
            x = nn_add_conv(g, name, x, 4, 3, 1, 1, 1, true, false, e);
        }
        snprintf(name, sizeof name, "add%d", b);
        x = nn_add_add(g, name, x, from, e);
        snprintf(name, sizeof name, "relu%d", b);
        x = relu ? nn_add_op(g, NN_OP_relu, name, x, e) : x;
    }
    g->output = x;
    return g;
}

static const int *pad_of(const nn_graph *g, const char *name)
{
    static const int none[4] = { -99, -99, -99, -99 };
    int v = nn_graph_find(g, name);
    return v < 0 ? none : g->node[v].attr.pad;
}

static bool is_padded(const nn_graph *g, const char *name, int by)
{
    const int *p = pad_of(g, name);
    return p[0] == by && p[1] == by && p[2] == by && p[3] == by;
}

static void padding_moves_to_the_front_and_skips_are_padded_or_cropped(void)
{
    err e = { 0 };
    nn_graph *g = two_blocks(true, &e);
    search_chain *c = search_chain_new(g, &e);
    CHECK_OK(c != NULL, e);
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 4, (int[]){ 1, 2, 3, 4 }, 4);
    nn_graph *p = search_prune(c, &s, &e);
    CHECK_OK(p != NULL, e);
    CHECK(is_padded(p, "conv1.1", 4) && is_padded(p, "conv1.2", 0));
    CHECK(is_padded(p, "conv2.1", 0) && is_padded(p, "conv2.2", 0));
    CHECK(is_padded(p, "add1.pad", 2) && is_padded(p, "add2.pad", -2));
    CHECK(nn_graph_find(p, "relu1") < 0 && nn_graph_find(p, "relu2") >= 0);
    CHECK(p->node[nn_graph_find(p, "add1")].dim[1] == 7 + 4);
    nn_graph_free(p);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void a_block_without_convs_is_the_identity(void)
{
    err e = { 0 };
    nn_graph *g = two_blocks(true, &e);
    search_chain *c = search_chain_new(g, &e);
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 4, (int[]){ 3 }, 1);            /* the first block loses both convs */
    nn_graph *p = search_prune(c, &s, &e);
    CHECK_OK(p != NULL, e);
    CHECK(p->n_node == 4);                                 /* input, conv2.1, add2, relu2: sizes fit */
    CHECK(nn_graph_find(p, "add1") < 0 && nn_graph_find(p, "add2") >= 0);
    CHECK(p->node[nn_graph_find(p, "conv2.1")].in[0] == 0);
    nn_graph_free(p);
    search_solution_free(&s);

    s = solution_start(c);                                 /* by two identities with an activation between */
    solution_add(&s, c, 0, 1, NULL, 0);
    solution_add(&s, c, 1, 2, NULL, 0);
    solution_add(&s, c, 2, 4, (int[]){ 3, 4 }, 2);
    p = search_prune(c, &s, &e);
    CHECK_OK(p != NULL, e);
    CHECK(nn_graph_find(p, "add1") < 0 && nn_graph_find(p, "relu1") >= 0);
    nn_graph_free(p);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void a_vanished_branch_leaves_its_projection_alone(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("projection", &e);
    int in = nn_add_input(g, "input", 7, 8, 4, &e);
    int x = nn_add_conv(g, "conv1", in, 4, 3, 1, 1, 1, true, false, &e);
    x = nn_add_add(g, "add", x, nn_add_conv(g, "proj", in, 4, 1, 1, 0, 1, true, true, &e), &e);
    g->output = nn_add_conv(g, "conv2", nn_add_op(g, NN_OP_relu, "relu", x, &e), 4, 3, 1, 1, 1, true, false, &e);
    search_chain *c = search_chain_new(g, &e);
    CHECK_OK(c != NULL, e);
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 2, (int[]){ 2 }, 1);
    nn_graph *p = search_prune(c, &s, &e);
    CHECK_OK(p != NULL, e);
    /* The projection computes first now, so the padding of conv2 is in front of it. */
    CHECK(is_padded(p, "proj", 1) && is_padded(p, "conv2", 0));
    CHECK(nn_graph_find(p, "add") < 0 && p->node[nn_graph_find(p, "conv2")].in[0] == nn_graph_find(p, "proj"));
    nn_graph_free(p);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void a_linear_node_gains_an_activation_only_behind_a_longer_segment(void)
{
    err e = { 0 };
    nn_graph *g = two_blocks(false, &e);
    search_chain *c = search_chain_new(g, &e);
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 2, (int[]){ 1, 2 }, 2);
    solution_add(&s, c, 2, 3, (int[]){ 3 }, 1);
    solution_add(&s, c, 3, 4, (int[]){ 4 }, 1);
    nn_graph *p = search_prune(c, &s, &e);
    CHECK_OK(p != NULL, e);
    int act = nn_graph_find(p, "add1.act");
    CHECK(act >= 0 && p->node[act].op == NN_OP_relu && p->node[act].in[0] == nn_graph_find(p, "add1"));
    CHECK(p->node[nn_graph_find(p, "add2")].in[1] == act);
    CHECK(p->output == nn_graph_find(p, "add2"));
    nn_graph_free(p);
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void a_single_entry_changes_its_own_segment_only(void)
{
    err e = { 0 };
    const nn_model *m = nn_model_find("mobilenetv2");
    nn_graph *g = m->build(&(nn_build){ .h = 32, .w = 32, .c = 3, .classes = 10, .width = 0.25 }, &e);
    CHECK_OK(g != NULL, e);
    search_chain *c = search_chain_new(g, &e);
    search_table t;
    CHECK_OK(search_enumerate(c, false, &t, &e), e);
    for (int r = 0; r < t.n; r++) {
        search_solution s;
        CHECK_OK(search_single_entry(c, &t.row[r], &s, &e), e);
        nn_graph *p = search_prune(c, &s, &e);
        CHECK_OK(p != NULL, e);
        int missing = 0;
        for (int l = 1; p && l <= c->L; l++) {
            bool there = nn_graph_find(p, g->node[c->pos[l].conv].name) >= 0;
            missing += !there;
            CHECK(there || (l > t.row[r].st && l <= t.row[r].end));
        }
        CHECK(missing == t.row[r].end - t.row[r].st - t.row[r].n_keep);
        CHECK(s.n_segment == c->L - (t.row[r].end - t.row[r].st) + 1 && s.n_conv == c->L + 1 - missing);
        if (t.row[r].end - t.row[r].st == 1)
            CHECK(same_text(p, g));
        nn_graph_free(p);
        search_solution_free(&s);
    }
    search_table_free(&t);
    search_chain_free(c);
    nn_graph_free(g);
}

/* ---- wrong solutions ------------------------------------------------------------------------------------------ */

static void refused(const search_chain *c, const search_solution *s, const char *why)
{
    err e = { 0 };
    nn_graph *p = search_prune(c, s, &e);
    CHECK(!p && e.code == ERR_DATA);
    CHECK(strstr(e.msg, why) != NULL);
    nn_graph_free(p);
}

static void solutions_that_do_not_fit_are_refused_in_one_sentence(void)
{
    err e = { 0 };
    nn_graph *g = two_blocks(true, &e);
    search_chain *c = search_chain_new(g, &e);
    int *keep;
    search_solution s = solution_start(c);
    solution_add(&s, c, 0, 2, (int[]){ 1, 2 }, 2);
    refused(c, &s, "end at 2");
    solution_add(&s, c, 3, 4, (int[]){ 4 }, 1);
    refused(c, &s, "does not start at 2");
    search_solution_free(&s);

    s = solution_start(c);
    solution_add(&s, c, 0, 3, (int[]){ 1, 2, 3 }, 3);      /* ends inside the second block */
    solution_add(&s, c, 3, 4, (int[]){ 4 }, 1);
    refused(c, &s, "(0,3] is not a segment");
    search_solution_free(&s);

    s = solution_start(c);
    solution_add(&s, c, 0, 4, (int[]){ 1, 2 }, 2);
    s.segment[0].ker = 3;
    refused(c, &s, "kernel 5, not 3");
    s.segment[0].ker = 5;
    keep = s.segment[0].keep;
    keep[1] = 1;
    refused(c, &s, "keeps conv 1");
    keep[1] = 5;
    refused(c, &s, "keeps conv 5");
    keep[1] = 3;
    refused(c, &s, "\"conv\"");
    keep[1] = 2;
    s.act[1] = 3;
    refused(c, &s, "\"act\"");
    s.act[1] = 4;
    s.feasible = false;
    refused(c, &s, "infeasible");
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);

    g = nn_graph_new("stride", &e);
    int x = nn_add_conv(g, "conv1", nn_add_input(g, "input", 8, 8, 4, &e), 4, 3, 2, 1, 1, true, false, &e);
    g->output = nn_add_conv(g, "conv2", x, 4, 3, 1, 1, 1, true, false, &e);
    c = search_chain_new(g, &e);
    s = solution_start(c);
    solution_add(&s, c, 0, 2, (int[]){ 2 }, 1);
    refused(c, &s, "leaves out conv 1 (conv1)");
    search_solution_free(&s);
    search_chain_free(c);
    nn_graph_free(g);
}

static void running_out_of_memory_leaves_nothing_behind(void)
{
    err e = { 0 };
    nn_graph *g = two_blocks(true, &e);
    bool done = false;
    for (int k = 1; !done && k < 1000; k++) {
        search_chain *c = search_chain_new(g, &e);
        search_solution s = solution_start(c);
        solution_add(&s, c, 0, 4, (int[]){ 1, 3 }, 2);
        err why = { 0 };
        mem_fail_at(k);
        nn_graph *p = search_prune(c, &s, &why), *merged = p ? search_merge(c, &s, p, &why) : NULL;
        search_chain *again = merged ? search_chain_new(g, &why) : NULL;
        search_table t = { 0 };
        done = again && search_enumerate(again, true, &t, &why);
        mem_fail_at(0);
        CHECK(done || why.code == ERR_NOMEM);
        search_table_free(&t);
        search_chain_free(again);
        nn_graph_free(p);
        nn_graph_free(merged);
        search_solution_free(&s);
        search_chain_free(c);
    }
    CHECK(done);
    nn_graph_free(g);
}

int main(void)
{
    START(1);
    dice = rng_at(2, RNG_TEST, 0, 0);
    RUN(keeping_everything_gives_the_original_network);
    RUN(inside_the_border_a_pruned_network_is_the_original_without_what_was_removed);
    RUN(padding_moves_to_the_front_and_skips_are_padded_or_cropped);
    RUN(a_block_without_convs_is_the_identity);
    RUN(a_vanished_branch_leaves_its_projection_alone);
    RUN(a_linear_node_gains_an_activation_only_behind_a_longer_segment);
    RUN(a_single_entry_changes_its_own_segment_only);
    RUN(solutions_that_do_not_fit_are_refused_in_one_sentence);
    RUN(running_out_of_memory_leaves_nothing_behind);
    core_stop();
    END();
}
