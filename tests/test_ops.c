/* Every op forward against its definition, in both modes, and single facts worth a sentence. */
#include "tests/test.h"
#include "tests/naive.h"

/* A graph of one op over random inputs: op reads in0 … */
static nn_graph *one_op(nn_opcode op, rng *r, int *h, int *w, int *c, err *e)
{
    const bool row = op == NN_OP_softmax_xent || op == NN_OP_distill;
    const bool two = row || op == NN_OP_add, many = op == NN_OP_concat;
    nn_graph *g = nn_graph_new("one", e);
    int in[4], n_in = two ? 2 : many ? between(r, 1, 4) : 1;
    *h = row ? 1 : between(r, 5, 11);
    *w = row ? 1 : between(r, 5, 11);
    *c = between(r, 1, 37);
    for (int k = 0; k < n_in; k++) {
        char name[16];
        snprintf(name, sizeof name, "in%d", k);
        in[k] = nn_add_input(g, name, *h, *w, many && k ? between(r, 1, 9) : *c, e);
    }
    const nn_attr a = random_attr(op, *c, r);
    g->output = nn_node_add(g, op, "op", in, n_in, &a, e);
    return g;
}

/* Positive rows that sum to one, for targets. */
static void make_distribution(float *x, int rows, int c)
{
    for (int i = 0; i < rows; i++, x += c) {
        double sum = 0;
        for (int k = 0; k < c; k++)
            sum += fabs((double)x[k]);
        for (int k = 0; k < c; k++)
            x[k] = (float)(fabs((double)x[k]) / sum);
    }
}

/* Fill the plan's inputs and return the truth of every node. Caller frees with free_values. */
static image *truth(nn_plan *p, const nn_graph *g, int batch, bool train, rng *r)
{
    image *value = calloc((size_t)g->n_node, sizeof *value);
    for (int i = 0, which = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        if (n->n_in > 0)
            continue;
        float *x = nn_plan_input(p, which++);
        const int64_t count = batch * n->dim[1] * n->dim[2] * n->dim[3];
        random_floats(x, count, r);
        if (g->node[g->output].op == NN_OP_softmax_xent && which == 2)
            make_distribution(x, batch, (int)n->dim[3]);
        if (g->node[g->output].op == NN_OP_relu6)
            for (int64_t k = 0; k < count; k++)
                x[k] *= 5;
        value[i] = image_new(batch, (int)n->dim[1], (int)n->dim[2], (int)n->dim[3]);
        for (int64_t k = 0; k < count; k++)
            value[i].x[k] = (double)x[k];
    }
    naive_run(g, batch, train, value);
    return value;
}

static void free_values(image *value, int n)
{
    for (int i = 0; i < n; i++)
        free(value[i].x);
    free(value);
}

/* Largest difference relative to the largest truth. */
static double difference(const float *x, const image *y)
{
    double diff = 0, size = 1e-3;
    for (int i = 0; i < y->n * y->h * y->w * y->c; i++) {
        const double d = fabs((double)x[i] - y->x[i]);
        diff = d > diff || d != d ? d : diff;
        size = fmax(size, fabs(y->x[i]));
    }
    return diff / size;
}

static void check_op(nn_opcode op, nn_mode mode, uint64_t seed)
{
    err e = { 0 };
    rng r = rng_at(seed, RNG_TEST, (uint32_t)op, 0);
    int h, w, c;
    const int batch = between(&r, 1, 3);
    nn_graph *g = one_op(op, &r, &h, &w, &c, &e);
    CHECK_OK(g->output >= 0, e);
    if (g->output < 0) {
        nn_graph_free(g);
        return;
    }
    random_params(g, seed);
    nn_plan *p = nn_plan_new(g, mode, batch, &e);
    CHECK_OK(p, e);
    if (p) {
        image *value = truth(p, g, batch, mode == NN_TRAIN, &r);
        nn_plan_forward(p);
        const double d = difference(nn_plan_output(p), &value[g->output]);
        if (!(d < 1e-5)) {
            buf text = { 0 };
            nn_graph_print(g, &text);
            fprintf(stderr, "batch %d: off by %g\n%s", batch, d, text.data);
            buf_free(&text);
        }
        CHECK(d < 1e-5);
        free_values(value, g->n_node);
    }
    nn_plan_free(p);
    nn_graph_free(g);
}

static void every_op_computes_its_definition(void)
{
    for (int op = 0; op < NN_OP_COUNT; op++)
        for (uint64_t seed = 0; op != NN_OP_input && seed < 40; seed++) {
            check_op((nn_opcode)op, NN_INFER, seed);
            if (op != NN_OP_dropout)
                check_op((nn_opcode)op, NN_TRAIN, seed);
        }
}

/* conv → norm → (+ skip) → activation, folded and fused, against four separate truths. */
static void a_fused_chain_computes_its_definition(void)
{
    err e = { 0 };
    for (uint64_t seed = 0; seed < 24; seed++) {
        rng r = rng_at(seed, RNG_TEST, 100, 0);
        nn_graph *g = nn_graph_new("chain", &e);
        const int c = between(&r, 1, 33),
                  x = nn_add_input(g, "x", between(&r, 3, 9), between(&r, 3, 9), c, &e);
        const int skip = nn_add_op(g, NN_OP_relu6, "skip", x, &e); /* dies where it is added */
        int y = nn_add_conv(g, "conv", skip, c, 3, 1, 1, seed % 3 ? 1 : c, seed % 2, false, &e);
        if (seed & 4)
            y = nn_add_norm(g, "norm", y, &e);
        if (seed & 8)
            y = nn_add_add(g, "sum", y, skip, &e);
        y = nn_add_op(g, seed & 16 ? NN_OP_relu : NN_OP_relu6, "act", y, &e);
        g->output = y;
        CHECK_OK(y >= 0, e);
        random_params(g, seed);
        for (int mode = NN_INFER; mode <= NN_TRAIN; mode++) {
            nn_plan *p = nn_plan_new(g, (nn_mode)mode, 2, &e);
            image *value = truth(p, g, 2, mode == NN_TRAIN, &r);
            nn_plan_forward(p);
            CHECK(difference(nn_plan_output(p), &value[y]) < 1e-5);
            free_values(value, g->n_node);
            nn_plan_free(p);
        }
        nn_graph_free(g);
    }
}

static void batchnorm_follows_the_batches_as_pytorch_does(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("bn", &e);
    g->output = nn_add_norm(g, "bn", nn_add_input(g, "x", 1, 2, 1, &e), &e);
    nn_plan *p = nn_plan_new(g, NN_TRAIN, 2, &e);
    const float batch[4] = { 1, 2, 3, 6 };       /* mean 3, unbiased variance 14/3 */
    memcpy(nn_plan_input(p, 0), batch, sizeof batch);
    nn_plan_forward(p);
    CHECK_CLOSE(g->param[2].x[0], 0.3, 1e-6);
    CHECK_CLOSE(g->param[3].x[0], 0.9 + 0.1 * 14 / 3, 1e-6);
    nn_plan_momentum(p, 1);
    nn_plan_forward(p);
    CHECK_CLOSE(g->param[2].x[0], 3, 1e-6);
    CHECK_CLOSE(g->param[3].x[0], 14.0 / 3, 1e-6);
    nn_plan_momentum(p, 0);
    nn_plan_input(p, 0)[0] = 100;
    nn_plan_forward(p);
    CHECK_CLOSE(g->param[2].x[0], 3, 1e-6);
    nn_plan_free(p);
    nn_graph_free(g);
}

static void dropout_is_a_function_of_seed_and_step(void)
{
    err e = { 0 };
    enum { N = 10000 };
    static float first[N];
    nn_graph *g = nn_graph_new("drop", &e);
    const int x = nn_add_input(g, "x", 10, 10, N / 100, &e);
    g->output = nn_node_add(g, NN_OP_dropout, "drop", &x, 1, &(nn_attr){ .p = 0.25f }, &e);
    nn_plan *p = nn_plan_new(g, NN_TRAIN, 1, &e), *q = nn_plan_new(g, NN_INFER, 1, &e);
    for (int i = 0; i < N; i++)
        nn_plan_input(p, 0)[i] = nn_plan_input(q, 0)[i] = 3;
    nn_plan_random(p, 7, 1, 2);
    nn_plan_forward(p);
    memcpy(first, nn_plan_output(p), sizeof first);
    int kept = 0;
    for (int i = 0; i < N; i++) {
        CHECK(first[i] == 0 || fabsf(first[i] - 4) < 1e-6f);
        kept += first[i] != 0;
    }
    CHECK_CLOSE(kept, 0.75 * N, 200);
    nn_plan_random(p, 7, 1, 3);
    nn_plan_forward(p);
    CHECK(memcmp(first, nn_plan_output(p), sizeof first) != 0);
    nn_plan_random(p, 7, 1, 2);
    nn_plan_forward(p);
    CHECK(memcmp(first, nn_plan_output(p), sizeof first) == 0);
    nn_plan_forward(q);
    CHECK(nn_plan_output(q)[N / 2] == 3);        /* INFER: the identity */
    CHECK(nn_plan_describe(q).steps == 0);
    nn_plan_free(p);
    nn_plan_free(q);
    nn_graph_free(g);
}

static void losses_survive_huge_logits(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("loss", &e);
    g->output = nn_add_input(g, "z", 1, 1, 3, &e);
    nn_graph *l = nn_graph_with_loss(g, 0, 0.5, 2, &e);
    nn_plan *p = nn_plan_new(l, NN_TRAIN, 1, &e);
    CHECK_OK(p, e);
    const float z[3] = { 3e4f, -3e4f, 0 }, t[3] = { 0, 1, 0 };
    memcpy(nn_plan_input(p, 0), z, sizeof z);
    memcpy(nn_plan_input(p, 1), t, sizeof t);
    memcpy(nn_plan_input(p, 2), z, sizeof z);
    nn_plan_forward(p);
    CHECK_CLOSE(nn_plan_loss(p), 0.5 * 6e4, 1e-6);
    nn_plan_input(p, 0)[2] = NAN;
    nn_plan_forward(p);
    CHECK(isnan(nn_plan_loss(p)));
    nn_plan_free(p);
    nn_graph_free(l);
    nn_graph_free(g);
}

/* A NaN in one value of the input must be visible in the output of every op that looks at it. */
static void a_nan_goes_in_and_comes_out(void)
{
    for (int op = 0; op < NN_OP_COUNT; op++) {
        if (op == NN_OP_input)
            continue;
        for (int mode = NN_INFER; mode <= NN_TRAIN; mode++) {
            err e = { 0 };
            rng r = rng_at(5, RNG_TEST, (uint32_t)op, 1);
            int h, w, c;
            nn_graph *g = one_op((nn_opcode)op, &r, &h, &w, &c, &e);
            for (int i = 0; i < 4; i++)              /* so that every value is looked at */
                g->node[g->output].attr.pad[i] = 0;
            for (int i = 0; i < 2; i++) {
                g->node[g->output].attr.stride[i] = g->node[g->output].attr.dilation[i] = 1;
            }
            buf text = { 0 };
            nn_graph_print(g, &text);
            nn_graph_free(g);
            g = nn_graph_parse(text.data, &e);
            CHECK_OK(g, e);
            random_params(g, 1);
            nn_plan *p = nn_plan_new(g, (nn_mode)mode, 1, &e);
            random_floats(nn_plan_input(p, 0), (int64_t)h * w * c, &r);
            nn_plan_input(p, 0)[h * w * c / 2] = NAN;
            nn_plan_forward(p);
            bool seen = false;
            const int64_t *d = g->node[g->output].dim;
            for (int64_t i = 0; i < d[1] * d[2] * d[3]; i++)
                seen = seen || isnan(nn_plan_output(p)[i]);
            if (!seen)
                fprintf(stderr, "mode %d:\n%s", mode, text.data);
            CHECK(seen);
            buf_free(&text);
            nn_plan_free(p);
            nn_graph_free(g);
        }
    }
}

int main(void)
{
    START(0);
    RUN(every_op_computes_its_definition);
    RUN(a_fused_chain_computes_its_definition);
    RUN(batchnorm_follows_the_batches_as_pytorch_does);
    RUN(dropout_is_a_function_of_seed_and_step);
    RUN(losses_survive_huge_logits);
    RUN(a_nan_goes_in_and_comes_out);
    core_stop();
    END();
}
