/* Plans: fusion, memory, modes, threads, and the ruler. */
#include <stdlib.h>

#include "tests/test.h"
#include "tests/naive.h"
#include "nn/op.h"

static int threads;              /* of the pool; 0: all */

static void start(int n)
{
    err e = { 0 };
    if (n != threads)
        core_stop();
    if (n != threads)
        CHECK_OK(core_init(&(core_options){ .threads = n, .isa = test_isa() }, &e), e);
    threads = n;
}

static void fill_inputs(nn_plan *p, uint64_t seed)
{
    for (int i = 0, which = 0; i < p->g->n_node; i++) {
        const int64_t *d = p->g->node[i].dim, n = p->batch * d[1] * d[2] * d[3];
        rng r = rng_at(seed, RNG_TEST, (uint32_t)i, 4);
        if (p->g->node[i].n_in > 0)
            continue;
        float *x = nn_plan_input(p, which);
        for (int64_t k = 0; k < n; k++)
            x[k] = which == 1 ? k % d[3] == 1 : (float)rng_normal(&r);
        which++;
    }
}

static double apart(const float *a, const float *b, int64_t n)
{
    double size = 1e-3, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - (double)b[i]);
        size = fmax(size, fabs((double)b[i]));
        worst = off > worst || off != off ? off : worst;
    }
    return worst / size;
}

static int64_t output_count(const nn_plan *p)
{
    const int64_t *d = p->g->node[p->g->output].dim;
    return p->batch * d[1] * d[2] * d[3];
}

/* Forward and backward of a fresh plan over a copy of g; all gradients in one array. */
static float *gradients(const nn_graph *g, int batch, unsigned options, bool poison, double *loss,
                        int64_t *n)
{
    err e = { 0 };
    nn_graph *copy = nn_graph_copy(g, &e);
    nn_plan *p = nn_plan_build(copy, NN_TRAIN, batch, options, &e);
    CHECK_OK(p, e);
    nn_plan_poison(p, poison);
    fill_inputs(p, 1);
    nn_plan_random(p, 3, 1, 4);
    nn_plan_forward(p);
    nn_plan_backward(p);
    *loss = nn_plan_loss(p);
    *n = 0;
    for (int i = 0; i < g->n_param; i++)
        *n += nn_param_count(&g->param[i]);
    float *all = calloc((size_t)*n, sizeof *all), *to = all;
    for (int i = 0; i < g->n_param; i++) {
        const int64_t count = nn_param_count(&g->param[i]);
        const float *from = nn_plan_grad(p, i);
        CHECK((from != NULL) == (g->param[i].role != NN_RUNNING));
        memcpy(to, from ? from : copy->param[i].x,
               (size_t)count * sizeof *to); /* running: as updated */
        to += count;
    }
    nn_plan_free(p);
    nn_graph_free(copy);
    return all;
}

/* ---- meaning --------------------------------------------------------------------------------- */

static void fused_plans_compute_what_unfused_ones_do(void)
{
    err e = { 0 };
    for (uint64_t seed = 0; seed < 12; seed++) {
        nn_graph *g = random_net(seed, &e);
        nn_plan *a = nn_plan_build(g, NN_INFER, 3, 0, &e),
                *b = nn_plan_build(g, NN_INFER, 3, NN_PLAN_NO_FUSION, &e);
        CHECK(a->n_step < b->n_step);
        fill_inputs(a, seed);
        fill_inputs(b, seed);
        nn_plan_forward(a);
        nn_plan_forward(b);
        CHECK(apart(nn_plan_output(a), nn_plan_output(b), output_count(a)) < 1e-5);
        nn_plan_free(a);
        nn_plan_free(b);
        nn_graph *l = nn_graph_with_loss(g, 0.1, 0.5, 2, &e);
        double loss_a, loss_b;
        int64_t n;
        float *x = gradients(l, 3, 0, false, &loss_a, &n),
              *y = gradients(l, 3, NN_PLAN_NO_FUSION, false, &loss_b, &n);
        CHECK_CLOSE(loss_a, loss_b, 1e-5 * loss_b);
        CHECK(apart(x, y, n) < 1e-5);
        free(x);
        free(y);
        nn_graph_free(l);
        nn_graph_free(g);
    }
}

static void a_net_computes_its_definition(void)
{
    err e = { 0 };
    for (uint64_t seed = 0; seed < 12; seed++) {
        nn_graph *g = random_net(seed, &e);
        nn_plan *p = nn_plan_new(g, NN_INFER, 2, &e);
        image *value = calloc((size_t)g->n_node, sizeof *value);
        const int64_t *d = g->node[0].dim;
        fill_inputs(p, seed);
        value[0] = image_new(2, (int)d[1], (int)d[2], (int)d[3]);
        for (int64_t i = 0; i < 2 * d[1] * d[2] * d[3]; i++)
            value[0].x[i] = (double)nn_plan_input(p, 0)[i];
        naive_run(g, 2, false, value);
        nn_plan_forward(p);
        double worst = 0, size = 0;
        for (int i = 0; i < 10; i++) {
            worst = fmax(worst, fabs((double)nn_plan_output(p)[i] - value[g->output].x[i]));
            size = fmax(size, fabs(value[g->output].x[i]));
        }
        CHECK(worst < 1e-5 * size);
        for (int i = 0; i < g->n_node; i++)
            free(value[i].x);
        free(value);
        nn_plan_free(p);
        nn_graph_free(g);
    }
}

static void infer_with_the_batches_statistics_equals_train(void)
{
    err e = { 0 };
    nn_graph *g = random_net(3, &e);
    g->node[nn_graph_find(g, "drop")].attr.p = 0;
    nn_plan *train = nn_plan_new(g, NN_TRAIN, 4, &e);
    fill_inputs(train, 1);
    nn_plan_momentum(train, 1);
    nn_plan_forward(train);
    for (int i = 0; i < g->n_param; i++) { /* running variances are unbiased, batch ones are not */
        const nn_param *w = &g->param[i];
        const int64_t *d = g->node[w->node].dim, rows = 4 * d[1] * d[2];
        for (int64_t k = 0; strstr(w->name, "running_var") && k < w->dim[0]; k++)
            w->x[k] *= (float)(rows - 1) / (float)rows;
    }
    nn_plan *infer = nn_plan_new(g, NN_INFER, 4, &e);
    fill_inputs(infer, 1);
    nn_plan_forward(infer);
    CHECK(apart(nn_plan_output(infer), nn_plan_output(train), output_count(train)) < 1e-5);
    nn_plan_free(train);
    nn_plan_free(infer);
    nn_graph_free(g);
}

static void an_images_result_does_not_depend_on_its_batch(void)
{
    err e = { 0 };
    nn_graph *g = random_net(4, &e);
    const int64_t *d = g->node[0].dim, size = d[1] * d[2] * d[3];
    nn_plan *five = nn_plan_new(g, NN_INFER, 5, &e), *one = nn_plan_new(g, NN_INFER, 1, &e);
    fill_inputs(five, 1);
    nn_plan_forward(five);
    for (int i = 0; i < 5; i++) {
        memcpy(nn_plan_input(one, 0), nn_plan_input(five, 0) + i * size,
               (size_t)size * sizeof(float));
        nn_plan_forward(one);
        CHECK(apart(nn_plan_output(one), nn_plan_output(five) + i * 5, 5) < 1e-5);
    }
    nn_plan_free(five);
    nn_plan_free(one);
    nn_graph_free(g);
}

static void refresh_follows_changed_weights(void)
{
    err e = { 0 };
    nn_graph *g = random_net(5, &e);
    nn_plan *p = nn_plan_new(g, NN_INFER, 1, &e);
    fill_inputs(p, 1);
    nn_plan_forward(p);
    float old[5];
    memcpy(old, nn_plan_output(p), sizeof old);
    random_params(g, 99);
    nn_plan_forward(p);
    CHECK(apart(nn_plan_output(p), old, 5) == 0);
    nn_plan_refresh(p);
    nn_plan_forward(p);
    nn_plan *q = nn_plan_new(g, NN_INFER, 1, &e);
    fill_inputs(q, 1);
    nn_plan_forward(q);
    CHECK(apart(nn_plan_output(p), old, 5) > 0.01);
    CHECK(apart(nn_plan_output(p), nn_plan_output(q), 5) == 0);
    nn_plan_free(p);
    nn_plan_free(q);
    nn_graph_free(g);
}

static void a_nan_reaches_the_loss_and_the_gradients(void)
{
    err e = { 0 };
    nn_graph *g = random_net(6, &e), *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_plan *p = nn_plan_new(l, NN_TRAIN, 2, &e);
    fill_inputs(p, 1);
    nn_plan_input(p, 0)[7] = NAN;
    nn_plan_forward(p);
    nn_plan_backward(p);
    CHECK(isnan(nn_plan_loss(p)));
    CHECK(isnan(nn_plan_output(p)[0]));
    CHECK(isnan(nn_plan_grad(p, 0)[0]));
    nn_plan_free(p);
    nn_graph_free(l);
    nn_graph_free(g);
}

static void a_loss_in_infer_is_the_validation_loss(void)
{
    err e = { 0 };
    nn_graph *g = random_net(7, &e), *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_plan *p = nn_plan_new(l, NN_INFER, 2, &e);
    fill_inputs(p, 1);
    nn_plan_forward(p);
    double want = 0;
    for (int i = 0; i < 2; i++) {
        const float *z = nn_plan_output(p) + 5 * i;
        double sum = 0;
        for (int c = 0; c < 5; c++)
            sum += exp((double)z[c]);
        want += (log(sum) - (double)z[1]) / 2;
    }
    CHECK_CLOSE(nn_plan_loss(p), want, 1e-9);
    nn_plan_free(p);
    nn_graph_free(l);
    nn_graph_free(g);
}

/* ---- groups ---------------------------------------------------------------------------------- */

/* Forward of a poisoned plan; the output, and what kinds of stages there were. */
typedef struct { int stages, grouped, overlapping; double loss; } group_facts;

static float *outputs(nn_graph *g, int batch, unsigned options, group_facts *facts)
{
    err e = { 0 };
    nn_plan *p = nn_plan_build(g, NN_INFER, batch, options, &e);
    CHECK_OK(p, e);
    nn_plan_poison(p, true);
    fill_inputs(p, 1);
    nn_plan_forward(p);
    nn_plan_forward(p);                          /* inputs survive a run */
    const size_t n = (size_t)output_count(p) * sizeof(float);
    float *y = memcpy(malloc(n), nn_plan_output(p), n);
    facts->loss = nn_plan_loss(p);
    facts->stages = p->n_stage;
    for (int i = 0; i < p->n_stage; i++) {
        facts->grouped += p->stage[i].group < batch;
        facts->overlapping += batch % p->stage[i].group > 0;
    }
    nn_plan_free(p);
    return y;
}

static void groups_of_images_change_no_bit(void)
{
    err e = { 0 };
    static const int batches[] = { 2, 5, 9, 33 }, counts[] = { 1, 2, 7 };
    int grouped = 0, overlapping = 0, several = 0;
    for (uint64_t seed = 0; seed < 8; seed++)
        for (int i = 0; i < 4; i++) {
            nn_graph *g = random_net(seed, &e), *l = nn_graph_with_loss(g, 0.1, 0.5, 2, &e);
            const size_t bytes = (size_t)batches[i] * 5 * sizeof(float);
            group_facts whole = { 0 }, parts = { 0 };
            float *want = outputs(l, batches[i], NN_PLAN_WHOLE_BATCH, &whole);
            CHECK(whole.stages == 1 && whole.grouped == 0);
            start(counts[seed % 3]);
            float *got = outputs(l, batches[i], NN_PLAN_SMALL_GROUPS, &parts);
            CHECK(memcmp(got, want, bytes) == 0);
            CHECK(parts.loss == whole.loss);                 /* a mean over the whole batch */
            grouped += parts.grouped;
            overlapping += parts.overlapping;
            several += parts.grouped > 1;
            free(want);
            free(got);
            nn_graph_free(l);
            nn_graph_free(g);
        }
    CHECK(grouped > 20 && overlapping > 5 && several > 2);
    start(0);
}

static void groups_of_unfused_steps_change_no_bit(void)
{
    err e = { 0 };
    int grouped = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        nn_graph *g = random_net(seed, &e);
        group_facts whole = { 0 }, parts = { 0 };
        float *want = outputs(g, 7, NN_PLAN_NO_FUSION | NN_PLAN_WHOLE_BATCH, &whole);
        float *got = outputs(g, 7, NN_PLAN_NO_FUSION | NN_PLAN_SMALL_GROUPS, &parts);
        CHECK(memcmp(got, want, 7 * 5 * sizeof *got) == 0);
        grouped += parts.grouped > 0;
        free(want);
        free(got);
        nn_graph_free(g);
    }
    CHECK(grouped > 4);
}

/* Early steps have large maps, late ones heavy weights. */
static void a_big_batch_is_cut_where_maps_are_small(void)
{
    err e = { 0 };
    nn_graph *g = nn_model_find("mobilenetv2")->build(&(nn_build){ .h = 96, .w = 96 }, &e);
    CHECK_OK(g, e);
    nn_plan *p = nn_plan_build(g, NN_INFER, 64, NN_PLAN_NO_BANDS, &e),
            *q = nn_plan_build(g, NN_INFER, 64, NN_PLAN_NO_BANDS | NN_PLAN_WHOLE_BATCH, &e);
    CHECK(p->n_stage > 1 && p->stage[0].group < p->stage[p->n_stage - 1].group);
    CHECK(nn_plan_describe(p).live_bytes < nn_plan_describe(q).live_bytes / 2);
    for (int i = 0; i < p->n_stage; i++)
        CHECK(p->stage[i].end == (i + 1 < p->n_stage ? p->stage[i + 1].first : p->n_step));
    nn_plan_free(p);
    nn_plan_free(q);
    nn_graph_free(g);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void check_layout(const nn_plan *p)
{
    for (int i = 0; i < p->n_buffer; i++) {
        const nn_buffer *a = &p->buffer[i];
        CHECK(a->same >= 0 || a->offset + a->bytes <= p->mem.cap);
        CHECK(a->first <= a->last);
        for (int k = 0; k < i && a->same < 0; k++) {
            const nn_buffer *b = &p->buffer[k];
            const bool together = b->same < 0 && a->first <= b->last && b->first <= a->last;
            CHECK(!together || a->offset + a->bytes <= b->offset ||
                  b->offset + b->bytes <= a->offset);
        }
    }
    const nn_plan_info info = nn_plan_describe(p);
    CHECK(info.live_bytes <= info.arena_bytes &&
          info.arena_bytes <= info.live_bytes + info.live_bytes / 5);
}

static void buffers_that_live_together_do_not_overlap(void)
{
    err e = { 0 };
    for (uint64_t seed = 0; seed < 6; seed++)
        for (int mode = NN_INFER; mode <= NN_TRAIN; mode++) {
            nn_graph *g = random_net(seed, &e), *l = nn_graph_with_loss(g, 0, 0, 0, &e);
            for (unsigned groups = 0; groups < 2; groups++) {
                nn_plan *p = nn_plan_build(mode == NN_INFER ? g : l, (nn_mode)mode, 3,
                                           groups ? NN_PLAN_SMALL_GROUPS : 0, &e);
                check_layout(p);
                nn_plan_free(p);
            }
            nn_graph_free(l);
            nn_graph_free(g);
        }
}

static void nothing_is_read_before_it_is_written_or_after_it_died(void)
{
    err e = { 0 };
    for (uint64_t seed = 0; seed < 12; seed++) {
        nn_graph *g = random_net(seed, &e), *l = nn_graph_with_loss(g, 0.1, 0, 0, &e);
        double clean, poisoned;
        int64_t n;
        float *x = gradients(l, 2, 0, false, &clean, &n),
              *y = gradients(l, 2, 0, true, &poisoned, &n);
        CHECK(clean == poisoned && memcmp(x, y, (size_t)n * sizeof *x) == 0);
        free(x);
        free(y);
        nn_plan *p = nn_plan_new(g, NN_INFER, 2, &e), *q = nn_plan_new(g, NN_INFER, 2, &e);
        fill_inputs(p, 1);
        fill_inputs(q, 1);
        nn_plan_poison(p, true);
        nn_plan_poison(q, false);
        for (int again = 0; again < 2; again++) {          /* inputs and weights survive a run */
            nn_plan_forward(p);
            nn_plan_forward(q);
            CHECK(memcmp(nn_plan_output(p), nn_plan_output(q),
                         (size_t)output_count(p) * sizeof(float)) == 0);
            CHECK(!isnan(nn_plan_output(p)[0]));
        }
        nn_plan_free(p);
        nn_plan_free(q);
        nn_graph_free(l);
        nn_graph_free(g);
    }
}

static void running_never_allocates(void)
{
    err e = { 0 };
    nn_graph *g = random_net(1, &e), *l = nn_graph_with_loss(g, 0.1, 0.5, 2, &e);
    nn_plan *p = nn_plan_new(l, NN_TRAIN, 3, &e), *q = nn_plan_new(g, NN_INFER, 3, &e);
    fill_inputs(p, 1);
    fill_inputs(q, 1);
    const int64_t before = mem_fail_at(0);
    for (int i = 0; i < 3; i++) {
        nn_plan_forward(p);
        nn_plan_backward(p);
        CHECK(nn_plan_loss(p) > 0);
        nn_plan_refresh(q);
        nn_plan_forward(q);
    }
    CHECK(mem_fail_at(0) == before);
    nn_plan_free(p);
    nn_plan_free(q);
    nn_graph_free(l);
    nn_graph_free(g);
}

static void the_output_is_never_fused_away(void)
{
    err e = { 0 };
    for (int seed = 0; seed < 2; seed++) {
        nn_graph *g = random_net(0, &e);
        nn_graph *l = nn_graph_with_loss(g, 0, 0, 0, &e);
        l->output = nn_graph_find(l, seed ? "conv1" : "bn1");
        nn_plan *p = nn_plan_build(l, NN_INFER, 2, 0, &e),
                *q = nn_plan_build(l, NN_INFER, 2, NN_PLAN_NO_FUSION, &e);
        fill_inputs(p, 1);
        fill_inputs(q, 1);
        nn_plan_forward(p);
        nn_plan_forward(q);
        CHECK(nn_plan_output(p) &&
              apart(nn_plan_output(p), nn_plan_output(q), output_count(p)) < 1e-5);
        nn_plan_free(p);
        nn_plan_free(q);
        nn_graph_free(l);
        nn_graph_free(g);
    }
}

static void values_that_outlive_the_forward_can_be_read(void)
{
    err e = { 0 };
    nn_graph *g = random_net(2, &e), *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_plan *infer = nn_plan_new(g, NN_INFER, 2, &e), *train = nn_plan_new(l, NN_TRAIN, 2, &e);
    CHECK(nn_plan_value(infer, g->output) == nn_plan_output(infer));
    CHECK(nn_plan_value(infer, 0) == nn_plan_input(infer, 0));
    CHECK(!nn_plan_value(infer, nn_graph_find(g, "conv1")));             /* fused away */
    CHECK(!nn_plan_value(infer, nn_graph_find(g, "act1")));              /* written over */
    CHECK(nn_plan_value(train, nn_graph_find(g, "conv1")));              /* backward reads it */
    CHECK(!nn_plan_value(train, nn_graph_find(g, "act1")));              /* its reader applies norm and activation */
    CHECK(!nn_plan_value(infer, -1) && !nn_plan_value(infer, g->n_node));
    CHECK(!nn_plan_input(infer, 1) && nn_plan_input(train, 1));
    nn_plan_free(infer);
    nn_plan_free(train);
    nn_graph_free(l);
    nn_graph_free(g);
}

static void folding_needs_no_memory_of_its_own(void)
{
    err e = { 0 };
    nn_graph *g = nn_model_find("resnet34")->build(&(nn_build){ 0 }, &e);
    CHECK_OK(g, e);
    nn_plan *p = nn_plan_new(g, NN_INFER, 1, &e);
    CHECK_OK(p, e);
    const nn_plan_info m = nn_plan_describe(p);
    const size_t largest = 512 * 512 * 9 * sizeof(float);
    CHECK(m.scratch_bytes <= largest);
    CHECK(m.arena_bytes < m.weight_bytes + largest + 4 * 1000 * 1000);
    nn_plan_free(p);
    nn_graph_free(g);
}

static void gradients_nobody_needs_are_not_computed(void)
{
    err e = { 0 };
    nn_graph *g = random_net(0, &e), *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_plan *p = nn_plan_new(l, NN_TRAIN, 2, &e), *q = nn_plan_new_with_input_grad(l, 2, &e);
    CHECK(!p->step[0].dx[0].p && q->step[0].dx[0].p);                    /* the stem */
    CHECK(!nn_plan_input_grad(p, 0) && nn_plan_input_grad(q, 0));
    nn_plan_free(p);
    nn_plan_free(q);
    p = nn_plan_new(g, NN_TRAIN, 2, &e); /* no loss: statistics only */
    for (int i = 0; i < p->n_step; i++)
        CHECK(!p->step[i].active);
    nn_plan_forward(p);
    nn_plan_backward(p);
    CHECK(nn_plan_loss(p) == 0 && nn_plan_grad(p, 0)[0] == 0);
    nn_plan_free(p);
    nn_graph_free(l);
    nn_graph_free(g);
}

static int count_op(const nn_plan *p, nn_opcode op)
{
    int n = 0;
    for (int i = 0; i < p->n_step; i++)
        n += p->step[i].op == nn_ops[op];
    return n;
}

static void resnet20_becomes_convolutions_and_little_else(void)
{
    err e = { 0 };
    nn_graph *g = nn_model_find("resnet20")->build(&(nn_build){ 0 }, &e);
    CHECK_OK(g, e);
    nn_state_init(g, 1);
    nn_graph *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_plan *p = nn_plan_new(g, NN_INFER, 2, &e), *q = nn_plan_new(l, NN_TRAIN, 2, &e);
    CHECK(p->n_step == 19 + 2 + 2);              /* convolutions, slices, pool and linear */
    CHECK(count_op(q, NN_OP_add) == 0 && count_op(q, NN_OP_relu) == 0 &&
          count_op(q, NN_OP_batchnorm) == 19);
    /* two maps of the first stage, input, packed weights, and the scratch of one convolution */
    size_t scratch = 0;
    for (int i = 0; i < p->n_step; i++) {
        const size_t of = p->step[i].conv ? conv_scratch_floats(p->step[i].conv) * sizeof(float) : 0;
        scratch = of > scratch ? of : scratch;
    }
    CHECK(p->live_bytes - p->weight_bytes <
          2 * (3 * 32 * 32 * 16 + 3 * 32 * 32) * sizeof(float) + scratch);
    check_layout(p);
    check_layout(q);
    buf text = { 0 };
    nn_plan_print(p, &text);
    CHECK(strstr(text.data, "conv2d+batchnorm+add+relu"));
    buf_free(&text);
    nn_plan_free(p);
    nn_plan_free(q);
    nn_graph_free(l);
    nn_graph_free(g);
}

/* Whose maps are too large for any second-level cache, for one image and for groups of a batch. */
static void bands_are_the_bits_of_steps_one_after_the_other(void)
{
    err e = { 0 };
    const nn_build b = { .classes = 10, .h = 416, .w = 416, .c = 3, .width = 0.5 };
    nn_graph *g = nn_model_open("mobilenetv2", &b, 1, &e);
    CHECK_OK(g, e);
    for (int batch = 1; g && batch <= 3; batch += 2) {
        nn_plan *p = nn_plan_build(g, NN_INFER, batch, NN_PLAN_NO_BANDS, &e),
                *q = nn_plan_build(g, NN_INFER, batch, batch > 1 ? NN_PLAN_SMALL_GROUPS : 0, &e);
        CHECK_OK(p && q, e);
        int absorbed = 0;
        for (int i = 0; i < q->n_step; i++) {
            absorbed += q->step[i].absorbed;
            CHECK(!q->step[i].absorbed || !nn_plan_value(q, q->step[i].out));
        }
        CHECK(absorbed >= 3);
        check_layout(q);
        fill_inputs(p, 1);
        fill_inputs(q, 1);
        nn_plan_poison(q, true);
        int64_t *ns = mem_new((size_t)(2 * q->n_step), sizeof *ns, NULL);
        nn_plan_watch(q, ns);
        nn_plan_forward(p);
        nn_plan_forward(q);
        CHECK(!memcmp(nn_plan_output(p), nn_plan_output(q), (size_t)output_count(p) * sizeof(float)));
        for (int i = 0; i < q->n_step; i++) CHECK(ns[i] > 0);
        nn_plan_free(p);
        nn_plan_free(q);
        mem_free(ns);
    }
    nn_graph_free(g);
}

/* Large enough for the norms of both kinds of convolution. */
static void half_norms_have_the_gradients_of_whole_ones(void)
{
    err e = { 0 };
    const nn_build b = { .classes = 10, .h = 112, .w = 112, .c = 3 };
    nn_graph *g = nn_model_open("mobilenetv2", &b, 1, &e), *l = g ? nn_graph_with_loss(g, 0, 0, 0, &e) : NULL;
    CHECK_OK(l, e);
    if (!l)
        return;
    nn_plan *p = nn_plan_new(l, NN_TRAIN, 16, &e);
    CHECK_OK(p, e);
    int half[2] = { 0, 0 }; /* behind dense and depthwise convolutions */
    for (int i = 0; p && i < p->n_step; i++)
        half[p->step[i].half && p->step[i].giver->node->attr.groups > 1] += p->step[i].half;
    CHECK(half[0] >= 3 && half[1] >= 1);
    check_layout(p);
    nn_plan_free(p);
    double loss[2];
    int64_t n;
    float *whole = gradients(l, 16, NN_PLAN_WHOLE_NORMS, false, &loss[0], &n), *halves = gradients(l, 16, 0, true, &loss[1], &n);
    CHECK(loss[0] == loss[1]);
    CHECK(apart(whole, halves, n) < 1e-6);
    free(whole);
    free(halves);
    nn_graph_free(l);
    nn_graph_free(g);
}

static void impossible_plans_are_refused(void)
{
    err e = { 0 };
    nn_graph *g = random_net(0, &e);
    CHECK(!nn_plan_new(g, NN_INFER, 0, &e) && e.code == ERR_CONFIG);
    for (int mode = NN_INFER; mode <= NN_TRAIN; mode++) {
        CHECK(!nn_plan_new(g, (nn_mode)mode, INT32_MAX, &e) && e.code == ERR_NOMEM);
        CHECK(strstr(e.msg, "2147483647"));
    }
    g->output = -1;
    CHECK(!nn_plan_new(g, NN_INFER, 1, &e) && e.code == ERR_CONFIG);
    nn_graph_free(g);
}

/* ---- threads and time ------------------------------------------------------------------------ */

static void the_number_of_threads_does_not_change_a_bit(void)
{
    err e = { 0 };
    static const int counts[] = { 1, 2, 7 };
    nn_graph *g = random_net(3, &e), *l = nn_graph_with_loss(g, 0.1, 0, 0, &e);
    float *first = NULL;
    double first_loss = 0;
    for (int i = 0; i < 3; i++) {
        start(counts[i]);
        double loss;
        int64_t n;
        float *x = gradients(l, 9, 0, false, &loss, &n);
        if (first) {
            CHECK(loss == first_loss && memcmp(first, x, (size_t)n * sizeof *x) == 0);
            free(x);
        } else {
            first = x;
            first_loss = loss;
        }
    }
    free(first);
    start(0);
    nn_graph_free(l);
    nn_graph_free(g);
}

static int ticks;
static void tick(void *ctx, int done, int total)
{
    (void)ctx;
    CHECK(done == ++ticks && total == 5);
}

static void the_ruler_orders_plans_by_their_work(void)
{
    err e = { 0 };
    nn_graph *g = random_net(3, &e);
    nn_plan *plan[2] = { nn_plan_new(g, NN_INFER, 1, &e), nn_plan_new(g, NN_INFER, 40, &e) };
    nn_timing t[2];
    const nn_time_options o = {
        .rounds = 5, .min_sample_ms = 1, .warm_ms = 5, .spread = 0.5, .tick = tick
    };
    for (int i = 0; i < 2; i++) {
        fill_inputs(plan[i], 1);
        nn_plan_poison(plan[i], false);  /* filling megabytes of scratch is not work */
    }
    CHECK_OK(nn_plan_time(plan, 2, &o, t, &e), e);
    CHECK(ticks == 5);
    for (int i = 0; i < 2; i++) {
        CHECK(t[i].samples >= 5 && t[i].samples <= 10);
        CHECK(t[i].p10_ms > 0 && t[i].p10_ms <= t[i].median_ms && t[i].median_ms <= t[i].p90_ms);
    }
    CHECK(t[1].median_ms > 4 * t[0].median_ms);
    stop_request(true);
    CHECK(!nn_plan_time(plan, 2, &o, t, &e) && e.code == ERR_STOPPED);
    stop_request(false);
    nn_plan_free(plan[0]);
    nn_plan_free(plan[1]);
    nn_graph_free(g);
}

/* Two convs, one with ten thousand times the work of the other. */
static void shares_say_where_the_time_goes(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("two", &e);
    int x = nn_add_input(g, "x", 40, 40, 32, &e);
    const int big = x = nn_add_conv(g, "big", x, 32, 5, 1, 2, 1, true, false, &e);
    const int relu = x = nn_add_op(g, NN_OP_relu, "relu", x, &e);
    const int pool = x = nn_add_op(g, NN_OP_globalpool, "pool", x, &e);
    const int tiny = x = nn_add_conv(g, "tiny", x, 4, 1, 1, 0, 1, true, false, &e);
    g->output = x;
    nn_state_init(g, 1);
    nn_plan *plan = nn_plan_new(g, NN_INFER, 2, &e);
    CHECK_OK(plan != NULL, e);
    fill_inputs(plan, 1);
    nn_plan_poison(plan, false);
    nn_timing t;
    nn_share share[8], *room = share;
    CHECK(g->n_node <= 8);
    const nn_time_options o = { .rounds = 5, .min_sample_ms = 1, .warm_ms = 5, .spread = 0.5, .share = &room };
    CHECK_OK(nn_plan_time(&plan, 1, &o, &t, &e), e);
    double sum = 0;
    for (int i = 0; i < g->n_node; i++) {
        CHECK(share[i].median >= 0 && share[i].stdev >= 0 && share[i].stdev < 1);
        sum += share[i].median;
    }
    CHECK(fabs(sum - 1) < 1e-12);
    CHECK(share[big].median > 0.5 && share[big].median > 4 * (share[tiny].median + share[pool].median));
    CHECK(share[tiny].median > 0 && share[pool].median > 0);
    CHECK(share[relu].median == 0);      /* part of the conv's step */
    nn_plan_free(plan);
    nn_graph_free(g);
}

int main(void)
{
    START(0);
    RUN(fused_plans_compute_what_unfused_ones_do);
    RUN(a_net_computes_its_definition);
    RUN(infer_with_the_batches_statistics_equals_train);
    RUN(an_images_result_does_not_depend_on_its_batch);
    RUN(refresh_follows_changed_weights);
    RUN(a_nan_reaches_the_loss_and_the_gradients);
    RUN(a_loss_in_infer_is_the_validation_loss);
    RUN(groups_of_images_change_no_bit);
    RUN(groups_of_unfused_steps_change_no_bit);
    RUN(a_big_batch_is_cut_where_maps_are_small);
    RUN(buffers_that_live_together_do_not_overlap);
    RUN(nothing_is_read_before_it_is_written_or_after_it_died);
    RUN(running_never_allocates);
    RUN(the_output_is_never_fused_away);
    RUN(values_that_outlive_the_forward_can_be_read);
    RUN(folding_needs_no_memory_of_its_own);
    RUN(gradients_nobody_needs_are_not_computed);
    RUN(resnet20_becomes_convolutions_and_little_else);
    RUN(bands_are_the_bits_of_steps_one_after_the_other);
    RUN(half_norms_have_the_gradients_of_whole_ones);
    RUN(impossible_plans_are_refused);
    RUN(the_number_of_threads_does_not_change_a_bit);
    RUN(the_ruler_orders_plans_by_their_work);
    RUN(shares_say_where_the_time_goes);
    core_stop();
    END();
}
