/* train: schedules and optimisers against their formulas, the loop against itself interrupted. */
#include "train/parts.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/test.h"

/* ---- small things to train ------------------------------------------------------------------------ */

static data_set *open_shapes(const char *split) {
    err e = {0};
    data_set *s = data_open("builtin:shapes,classes=3,size=16,train=96,val=48", split, &(data_options){0}, &e);
    CHECK_OK(s, e);
    return s;
}

/* Two strided convs and a classifier; dropout and norms on request. */
static nn_graph *tiny_net(const data_set *s, bool norms, float dropout) {
    err e = {0};
    data_prep p = data_default_prep(s);
    nn_graph *g = nn_graph_new("tiny", &e);
    int x = nn_add_input(g, "input", p.h, p.w, p.c, &e);
    x = nn_add_conv(g, "conv1", x, 8, 3, 2, 1, 1, !norms, false, &e);
    if (norms) x = nn_add_norm(g, "bn1", x, &e);
    x = nn_add_op(g, NN_OP_relu, "relu1", x, &e);
    x = nn_add_conv(g, "conv2", x, 16, 3, 2, 1, 1, !norms, false, &e);
    if (norms) x = nn_add_norm(g, "bn2", x, &e);
    x = nn_add_op(g, NN_OP_relu, "relu2", x, &e);
    x = nn_add_op(g, NN_OP_globalpool, "pool", x, &e);
    nn_attr drop = { .p = dropout };
    if (dropout > 0) x = nn_node_add(g, NN_OP_dropout, "drop", &x, 1, &drop, &e);
    g->output = nn_add_linear(g, "fc", x, data_classes(s), true, &e);
    CHECK_OK(g->output >= 0, e);
    data_prep_print(&p, g->prep);
    nn_state_init(g, 1);
    return g;
}

static train_recipe tiny_recipe(void) {
    return (train_recipe){
        .name = "tiny", .source = "this test", .epochs = 2.5, .batch = 16, .opt = OPT_SGD, .lr = 0.1,
        .momentum = 0.9, .beta2 = 0.999, .opt_eps = 1e-8, .nesterov = true, .weight_decay = 1e-4,
        .sched = SCHED_COSINE, .warmup_epochs = 0.5, .temperature = 1,
    };
}

static bool same_weights(const nn_graph *a, const nn_graph *b) {
    for (int i = 0; i < a->n_param; i++)
        if (memcmp(a->param[i].x, b->param[i].x, (size_t)nn_param_count(&a->param[i]) * sizeof(float)))
            return false;
    return true;
}

/* ---- schedules --------------------------------------------------------------------------------------- */

static void cosine_starts_at_the_peak_halves_in_the_middle_and_ends_near_zero(void) {
    train_recipe r = { .lr = 0.4, .sched = SCHED_COSINE };
    CHECK_CLOSE(schedule_lr(&r, 0, 100, 10), 0.4, 1e-12);
    CHECK_CLOSE(schedule_lr(&r, 50, 100, 10), 0.2, 1e-12);
    CHECK_CLOSE(schedule_lr(&r, 25, 100, 10), 0.2 * (1 + sqrt(0.5)), 1e-12);
    CHECK_CLOSE(schedule_lr(&r, 99, 100, 10), 0.2 * (1 + cos(0.99 * acos(-1.0))), 1e-12);
}

static void warm_up_is_linear_and_the_rest_follows_from_the_peak(void) {
    train_recipe r = { .lr = 0.4, .sched = SCHED_COSINE, .warmup_epochs = 2 };
    for (int s = 0; s < 20; s++) CHECK_CLOSE(schedule_lr(&r, s, 100, 10), 0.4 * (s + 1) / 20, 1e-12);
    CHECK_CLOSE(schedule_lr(&r, 20, 100, 10), 0.4, 1e-12);
    CHECK_CLOSE(schedule_lr(&r, 60, 100, 10), 0.2, 1e-12);
    r.warmup_epochs = 1000;                   /* longer than the run */
    CHECK_CLOSE(schedule_lr(&r, 99, 100, 10), 0.4, 1e-12);
}

static void steps_divide_by_ten_at_a_half_and_at_three_quarters(void) {
    train_recipe r = { .lr = 1, .sched = SCHED_STEP };
    static const double want[] = { 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01 };
    for (int s = 0; s < 8; s++) CHECK_CLOSE(schedule_lr(&r, s, 8, 4), want[s], 1e-12);
    r.sched = SCHED_CONSTANT;
    CHECK_CLOSE(schedule_lr(&r, 7, 8, 4), 1, 0);
}

static void every_recipe_has_its_own_name_a_source_and_sensible_numbers(void) {
    data_set *s = open_shapes("train");
    nn_graph *g = tiny_net(s, true, 0);
    for (const train_recipe *r = train_recipes; r->name; r++) {
        err e = {0};
        train_job job = { .g = g, .train = s, .recipe = *r };
        CHECK(train_recipe_find(r->name) == r);
        CHECK(r->source && r->source[0]);
        CHECK(r->epochs > 0 && r->lr > 0);
        job.recipe.batch = 8;
        CHECK_OK(job_check(&job, &e), e);
    }
    CHECK(!train_recipe_find("no such recipe"));
    nn_graph_free(g);
    data_free(s);
}

static void without_a_name_the_recipe_follows_the_input_size_and_the_start(void) {
    static const struct { int side; bool trained; const char *want; } cases[] = {
        { 32, false, "cifar-resnet" }, { 64, true, "finetune" }, { 96, false, "imagenet" }, { 224, true, "transfer" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        err e = {0};
        nn_build b = { .classes = 10, .h = cases[i].side, .w = cases[i].side };
        nn_graph *g = nn_model_open("resnet18", &b, 1, &e);
        const train_recipe *r = g ? train_recipe_for(NULL, g, cases[i].trained, &e) : NULL;
        CHECK_OK(r != NULL, e);
        if (r) CHECK(!strcmp(r->name, cases[i].want));
        if (g) CHECK(train_recipe_for("resnet34", g, cases[i].trained, &e) == train_recipe_find("resnet34"));
        nn_graph_free(g);
    }
    err e = {0};
    CHECK(!train_recipe_for("no such recipe", NULL, false, &e) && e.code == ERR_USAGE);
    CHECK(strstr(e.msg, "cifar-resnet") != NULL);
}

static void a_short_run_warms_up_for_a_quarter_of_it_at_most(void) {
    train_recipe r = { .lr = 0.4, .sched = SCHED_COSINE, .epochs = 90, .warmup_epochs = 5 };
    train_recipe_shorten(&r, 40);
    CHECK(r.epochs == 40 && r.warmup_epochs == 5);
    train_recipe_shorten(&r, 1);
    CHECK(r.epochs == 1 && r.warmup_epochs == 0.25);
    CHECK(schedule_lr(&r, 39, 40, 40) < 0.01 * r.lr);
}

/* ---- optimisers ---------------------------------------------------------------------------------------- */

/* Some steps of the optimiser on real gradients, beside the textbook in double. */
typedef struct { double *w, *m, *v; } naive;

static void naive_step(naive *n, const train_recipe *r, const nn_param *p, const float *grad, double lr,
                       double scale, int64_t step) {
    double wd = p->role == NN_WEIGHT || r->decay_all ? r->weight_decay : 0;
    for (int64_t i = 0; i < nn_param_count(p); i++) {
        double g = (double)grad[i] * scale;
        if (r->opt == OPT_SGD) {
            g += wd * n->w[i];
            n->m[i] = step ? r->momentum * n->m[i] + g : g;
            n->w[i] -= lr * (r->nesterov ? g + r->momentum * n->m[i] : n->m[i]);
            continue;
        }
        if (r->opt == OPT_ADAM) g += wd * n->w[i];
        else n->w[i] -= lr * wd * n->w[i];
        n->m[i] = r->momentum * n->m[i] + (1 - r->momentum) * g;
        n->v[i] = r->beta2 * n->v[i] + (1 - r->beta2) * g * g;
        double t = (double)step + 1;
        double mh = n->m[i] / (1 - pow(r->momentum, t)), vh = n->v[i] / (1 - pow(r->beta2, t));
        n->w[i] -= lr * mh / (sqrt(vh) + r->opt_eps);
    }
}

static naive naive_new(const nn_param *p) {
    size_t n = (size_t)nn_param_count(p);
    naive a = { mem_new(n, sizeof(double), NULL), mem_new(n, sizeof(double), NULL),
                mem_new(n, sizeof(double), NULL) };
    for (size_t i = 0; i < n; i++) a.w[i] = (double)p->x[i];
    return a;
}

static void compare_optimiser(const train_recipe *r, double tolerance) {
    err e = {0};
    data_set *s = open_shapes("train");
    nn_graph *net = tiny_net(s, true, 0), *g = nn_graph_with_loss(net, 0, 0, 0, &e);
    nn_plan *plan = nn_plan_new(g, NN_TRAIN, 4, &e);
    optimiser o;
    CHECK_OK(plan && optim_init(&o, r, g, &e), e);
    naive *n = mem_new((size_t)g->n_param, sizeof *n, &e);
    for (int i = 0; i < g->n_param; i++) n[i] = naive_new(&g->param[i]);

    rng noise = rng_at(3, RNG_TEST, 0, 0);
    for (int64_t step = 0; step < 5; step++) {
        for (int i = 0; i < 4 * 16 * 16 * 3; i++) nn_plan_input(plan, 0)[i] = (float)rng_normal(&noise);
        for (int i = 0; i < 4 * 3; i++) nn_plan_input(plan, 1)[i] = i % 3 == i / 3 % 3;
        nn_plan_forward(plan);
        nn_plan_backward(plan);
        double scale = optim_scale(optim_norm(g, plan), r->clip);
        for (int i = 0; i < g->n_param; i++)
            if (nn_plan_grad(plan, i))
                naive_step(&n[i], r, &g->param[i], nn_plan_grad(plan, i), 0.05, scale, step);
        optim_step(&o, g, plan, 0.05, scale, step);
    }
    for (int i = 0; i < g->n_param; i++) {
        for (int64_t k = 0; k < nn_param_count(&g->param[i]) && g->param[i].role != NN_RUNNING; k++)
            CHECK_CLOSE(g->param[i].x[k], n[i].w[k], tolerance);
        mem_free(n[i].w), mem_free(n[i].m), mem_free(n[i].v);
    }
    mem_free(n);
    optim_free(&o);
    nn_plan_free(plan);
    nn_graph_free(g);
    nn_graph_free(net);
    data_free(s);
}

static void sgd_is_pytorchs_with_and_without_nesterov_and_decays_weights_only(void) {
    train_recipe r = tiny_recipe();
    r.weight_decay = 0.1;
    compare_optimiser(&r, 2e-6);
    r.nesterov = false;
    r.decay_all = true;
    compare_optimiser(&r, 2e-6);
    r.clip = 0.05;
    compare_optimiser(&r, 2e-6);
}

static void adam_and_adamw_are_pytorchs(void) {
    train_recipe r = tiny_recipe();
    r.opt = OPT_ADAM;
    r.weight_decay = 0.1;
    compare_optimiser(&r, 2e-5);
    r.opt = OPT_ADAMW;
    compare_optimiser(&r, 2e-5);
}

static void clipping_limits_the_global_norm_and_never_enlarges(void) {
    CHECK_CLOSE(optim_scale(10, 2), 0.2, 1e-7);
    CHECK_CLOSE(optim_scale(1, 2), 1, 0);
    CHECK_CLOSE(optim_scale(1e9, 0), 1, 0);
}

static void the_average_of_weights_follows_its_formula_statistics_included(void) {
    err e = {0};
    data_set *s = open_shapes("train");
    nn_graph *g = tiny_net(s, true, 0), *average = nn_graph_copy(g, &e);
    for (int i = 0; i < g->n_param; i++)
        for (int64_t k = 0; k < nn_param_count(&g->param[i]); k++) {
            average->param[i].x[k] = 1;
            g->param[i].x[k] = (float)k;
        }
    optim_average(average, g, 0.75);
    optim_average(average, g, 0.75);
    for (int i = 0; i < g->n_param; i++)
        for (int64_t k = 0; k < nn_param_count(&g->param[i]); k++)
            CHECK_CLOSE(average->param[i].x[k], 0.5625 + 0.4375 * (double)k, 1e-4 * (1 + (double)k));
    nn_graph_free(average);
    nn_graph_free(g);
    data_free(s);
}

/* ---- measuring --------------------------------------------------------------------------------------- */

static void a_known_logit_row_gives_known_loss_and_ranks(void) {
    const float logit[] = { 1, 3, 2, 0, -1, 0.5f, 3 };
    eval_result r = {0};
    int32_t pred;
    CHECK(metric_add(&r, logit, 7, 2, &pred));        /* third, behind two of 3 */
    double z = 0;
    for (int i = 0; i < 7; i++) z += exp((double)logit[i]);
    CHECK_CLOSE(r.loss, log(z) - 2, 1e-9);
    CHECK(r.n == 1 && r.top1 == 0 && r.top5 == 1 && pred == 1);
    CHECK(metric_add(&r, logit, 7, 1, NULL) && r.top1 == 1);   /* ties go to the lower class */
    CHECK(metric_add(&r, logit, 7, 6, NULL) && r.top1 == 1);
    CHECK(metric_add(&r, logit, 7, 3, NULL) && r.top5 == 3);   /* sixth */
    const float broken[] = { 1, NAN, 2 };
    CHECK(!metric_add(&r, broken, 3, 0, NULL));
}

static void a_network_that_always_says_one_class_is_right_as_often_as_the_class_occurs(void) {
    err e = {0};
    data_set *s = open_shapes("val");
    nn_graph *g = tiny_net(s, true, 0);
    nn_param *w = &g->param[nn_param_find(g, "fc.weight")], *b = &g->param[nn_param_find(g, "fc.bias")];
    for (int64_t i = 0; i < nn_param_count(w); i++) w->x[i] = 0;
    b->x[0] = 0, b->x[1] = 2, b->x[2] = 0;
    int64_t ones = 0;
    for (int64_t i = 0; i < data_count(s); i++) ones += data_label(s, i) == 1;
    double part = (double)ones / (double)data_count(s), z = log(exp(2) + 2);
    int32_t pred[48];
    for (int batch = 5; batch <= 48; batch += 43) {   /* with a last batch that is not full, too */
        eval_result r;
        CHECK_OK(eval_run(g, s, NULL, 0, batch, &r, pred, &e), e);
        CHECK(r.n == 48);
        CHECK_CLOSE(r.top1, 100 * part, 1e-9);
        CHECK_CLOSE(r.top5, 100, 1e-9);
        CHECK_CLOSE(r.loss, z - 2 * part, 1e-5);
        for (int i = 0; i < 48; i++) CHECK(pred[i] == 1);
    }
    const int32_t some[] = { 7, 3 };
    eval_result r;
    CHECK_OK(eval_run(g, s, some, 2, 0, &r, pred, &e), e);
    CHECK_CLOSE(r.top1, 50 * ((data_label(s, 7) == 1) + (data_label(s, 3) == 1)), 1e-9);
    nn_graph_free(g);
    data_free(s);
}

static void a_result_does_not_depend_on_the_batch_and_no_batch_is_too_big(void) {
    err e = {0};
    data_set *s = open_shapes("val");
    nn_graph *g = tiny_net(s, true, 0);
    eval_result want;
    int32_t pred[48], guess[48];
    CHECK_OK(eval_run(g, s, NULL, 0, 0, &want, pred, &e), e);
    static const int batch[] = { 1, 5, 48, 49, INT_MAX };
    for (int i = 0; i < 5; i++) {
        eval_result r;
        CHECK_OK(eval_run(g, s, NULL, 0, batch[i], &r, guess, &e), e);
        CHECK(r.n == 48 && r.loss == want.loss && r.top1 == want.top1 && r.top5 == want.top5);
        CHECK(!memcmp(guess, pred, sizeof pred));
    }
    nn_graph_free(g);
    data_free(s);
}

static void networks_that_do_not_fit_the_data_or_are_broken_are_refused(void) {
    err e = {0};
    data_set *s = open_shapes("val");
    nn_graph *g = tiny_net(s, true, 0);
    eval_result r;
    g->param[nn_param_find(g, "fc.bias")].x[2] = NAN;
    CHECK(!eval_run(g, s, NULL, 0, 0, &r, NULL, &e) && e.code == ERR_NONFINITE);
    CHECK(strstr(e.msg, data_name(s, 0)));
    snprintf(g->prep, sizeof g->prep, "size=8,8,3 resize=0 mean=0,0,0 std=1,1,1");
    CHECK(!eval_run(g, s, NULL, 0, 0, &r, NULL, &e) && e.code == ERR_CONFIG);
    data_set *other = data_open("builtin:shapes,classes=4,size=16,train=8,val=8", "val",
                                &(data_options){0}, &e);
    CHECK(!eval_run(g, other, NULL, 0, 0, &r, NULL, &e) && e.code == ERR_CONFIG);
    CHECK(strstr(e.msg, "3 classes") && strstr(e.msg, "4"));
    data_free(other);
    nn_graph_free(g);
    data_free(s);
}

static void estimated_statistics_are_those_of_the_images(void) {
    err e = {0};
    data_set *s = open_shapes("train");
    data_prep p = data_default_prep(s);
    nn_graph *g = nn_graph_new("norm", &e);
    int x = nn_add_input(g, "input", p.h, p.w, p.c, &e);
    x = nn_add_norm(g, "bn", x, &e);
    x = nn_add_op(g, NN_OP_globalpool, "pool", x, &e);
    g->output = nn_add_linear(g, "fc", x, 3, true, &e);
    data_prep_print(&p, g->prep);
    CHECK_OK(train_bn_estimate(g, s, NULL, 0, 32, 5, &e), e);

    double sum[3] = {0};
    loader_options o = { .set = s, .n = data_count(s), .batch = 96, .prep = p };
    data_loader *l = loader_new(&o, &e);
    data_batch b = {0};
    loader_seek(l, 0, 0);
    CHECK_OK(loader_next(l, &b, &e), e);
    int64_t pixels = (int64_t)b.n * p.h * p.w;
    for (int64_t i = 0; i < pixels * 3; i++) sum[i % 3] += (double)b.x[i];
    for (int c = 0; c < 3; c++)
        CHECK_CLOSE(g->param[nn_param_find(g, "bn.running_mean")].x[c], sum[c] / (double)pixels, 1e-5);
    loader_free(l);
    nn_graph_free(g);
    data_free(s);
}

/* ---- the loop ------------------------------------------------------------------------------------------ */

/* Stops, or counts allocations, from inside the tick. */
typedef struct { int64_t stop_at, last_step, allocations, first_count; int notes; char note[2000]; } watch;

static void watch_tick(void *ctx, const train_tick *t) {
    watch *w = ctx;
    w->last_step = t->step;
    if (w->stop_at && t->step == w->stop_at) stop_request(true);
    int64_t now = mem_fail_at(0);
    if (t->step == 8) w->first_count = now;
    if (t->step == 11) w->allocations = now - w->first_count;
}

static void watch_note(void *ctx, const char *text) {
    watch *w = ctx;
    w->notes++;
    snprintf(w->note + strlen(w->note), sizeof w->note - strlen(w->note), "%s\n", text);
}

typedef struct { data_set *train, *val; nn_graph *start; } stage;

static stage stage_new(float dropout) {
    stage s = { .train = open_shapes("train"), .val = open_shapes("val") };
    s.start = tiny_net(s.train, true, dropout);
    return s;
}

static void stage_free(stage *s) {
    nn_graph_free(s->start);
    data_free(s->train);
    data_free(s->val);
}

static train_job job_on(const stage *s, nn_graph *g, const train_recipe *r, const char *dir) {
    return (train_job){ .g = g, .train = s->train, .val = s->val, .recipe = *r, .seed = 11,
                        .val_every = 1, .run_dir = dir, .checkpoint_s = 1e-9 };
}

/* Train to the end, stopping after every `stride` steps (0: in one go). */
static nn_graph *train_with_stops(const stage *s, const train_recipe *r, const char *dir, int stride,
                                  train_result *out) {
    int64_t at = 0;
    for (int runs = 0; runs < 50; runs++) {
        err e = {0};
        nn_graph *g = nn_graph_copy(s->start, &e);
        watch w = { .stop_at = stride ? at + stride : 0 };
        train_job job = job_on(s, g, r, dir);
        job.tick = watch_tick, job.ctx = &w;
        bool ok = train_run(&job, out, &e);
        stop_request(false);
        if (ok) return g;
        nn_graph_free(g);
        CHECK(e.code == ERR_STOPPED);
        if (e.code != ERR_STOPPED) { fprintf(stderr, "%s\n", e.msg); return NULL; }
        at = w.last_step;
    }
    CHECK(!"the run never ends");
    return NULL;
}

static int count_lines(const char *path, const char *with) {
    buf b = {0};
    int n = 0;
    if (!file_read(path, &b, NULL)) return -1;
    for (char *s = b.data; s && *s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL)
        n += !strncmp(s, with, strlen(with));
    buf_free(&b);
    return n;
}

static void check_resume(const train_recipe *r, float dropout, const char *a, const char *b,
                         const char *metrics) {
    stage s = stage_new(dropout);
    train_result whole, pieces;
    nn_graph *g = train_with_stops(&s, r, a, 0, &whole), *h = train_with_stops(&s, r, b, 4, &pieces);
    CHECK(g && h && same_weights(g, h) && !same_weights(g, s.start));
    CHECK(whole.val.loss == pieces.val.loss && whole.val.top1 == pieces.val.top1);
    CHECK(whole.train_loss == pieces.train_loss && pieces.resumed && !whole.resumed);
    CHECK(whole.steps == 15 && pieces.steps == 15);
    CHECK(count_lines(metrics, "") == 4 && count_lines(metrics, "step,epoch,lr,train_loss") == 1);
    CHECK(count_lines(metrics, "6,1,") == 1 && count_lines(metrics, "12,2,") == 1);
    CHECK(count_lines(metrics, "15,2.5,") == 1);
    nn_graph_free(g);
    nn_graph_free(h);
    stage_free(&s);
}

static void a_run_that_is_stopped_and_continued_has_the_bits_of_an_unbroken_one(void) {
    train_recipe r = tiny_recipe();
    r.augment = (data_augment){ .pad = 2, .hflip = 0.5, .mixup = 0.2, .erase = 0.2 };
    r.ema = 0.9;
    r.smoothing = 0.1;
    check_resume(&r, 0.2f, in_dir("sgd"), in_dir("sgd-pieces"), in_dir("sgd-pieces/metrics.csv"));
    r.opt = OPT_ADAMW;
    r.lr = 0.01;
    r.clip = 1;
    check_resume(&r, 0, in_dir("adam"), in_dir("adam-pieces"), in_dir("adam-pieces/metrics.csv"));
}

static void one_and_two_threads_train_to_the_same_bits(void) {
    err e = {0};
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    train_result out;
    nn_graph *g = train_with_stops(&s, &r, NULL, 0, &out);
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = 2, .isa = test_isa() }, &e), e);
    nn_graph *h = train_with_stops(&s, &r, NULL, 0, &out);
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = 1, .isa = test_isa() }, &e), e);
    CHECK(g && h && same_weights(g, h));
    nn_graph_free(g);
    nn_graph_free(h);
    stage_free(&s);
}

static void a_finished_run_returns_at_once_with_the_same_result(void) {
    err e = {0};
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    train_result first, again;
    const char *dir = in_dir("finished");
    nn_graph *g = train_with_stops(&s, &r, dir, 0, &first), *h = nn_graph_copy(s.start, &e);
    watch w = {0};
    train_job job = job_on(&s, h, &r, dir);
    job.tick = watch_tick, job.note = watch_note, job.ctx = &w;
    CHECK_OK(train_run(&job, &again, &e), e);
    CHECK(w.last_step == 0 && same_weights(g, h));
    CHECK(first.val.top1 == again.val.top1 && first.val.loss == again.val.loss && first.val.n == again.val.n);
    CHECK(first.train_loss == again.train_loss && first.images_per_s == again.images_per_s);
    nn_graph_free(g);
    nn_graph_free(h);
    stage_free(&s);
}

/* One byte of a file turned over, or the file cut there. */
static void damage(const char *path, double where, bool cut) {
    err e = {0};
    buf b = {0};
    CHECK_OK(file_read(path, &b, &e), e);
    size_t at = (size_t)((double)b.len * where);
    if (!cut) b.data[at] ^= 4;
    CHECK_OK(file_write(path, b.data, cut ? at : b.len, &e), e);
    buf_free(&b);
}

static void a_damaged_checkpoint_is_never_continued_from(void) {
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    train_result whole, out;
    nn_graph *g = train_with_stops(&s, &r, NULL, 0, &whole);
    const char *dir = in_dir("damaged"), *last = in_dir("damaged/checkpoints/last.safetensors");
    const char *previous = in_dir("damaged/checkpoints/previous.safetensors");
    static const double where[] = { 0.001, 0.02, 0.5, 0.999, 0.3 };
    for (int i = 0; i < 5; i++) {
        err e = {0};
        nn_graph *h = nn_graph_copy(s.start, &e);
        watch w = { .stop_at = 9 };
        train_job job = job_on(&s, h, &r, dir);
        job.tick = watch_tick, job.note = watch_note, job.ctx = &w;
        CHECK(!train_run(&job, &out, &e) && e.code == ERR_STOPPED);
        stop_request(false);
        nn_graph_free(h);

        damage(last, where[i], i == 4);
        h = nn_graph_copy(s.start, &e);
        job.g = h, job.tick = NULL;
        CHECK_OK(train_run(&job, &out, &e), e);
        CHECK(strstr(w.note, "the checkpoint before the last one") && strstr(w.note, "last.safetensors"));
        CHECK(same_weights(g, h));
        nn_graph_free(h);

        damage(last, 0.5, false);
        damage(previous, 0.5, false);
        h = nn_graph_copy(s.start, &e);
        job.g = h;
        CHECK(!train_run(&job, &out, &e) && e.code == ERR_DATA);
        CHECK(same_weights(h, s.start));
        nn_graph_free(h);
        unlink(last);
        unlink(previous);
    }
    nn_graph_free(g);
    stage_free(&s);
}

static void a_damaged_last_checkpoint_never_replaces_the_good_one_before(void) {
    err e = {0};
    float x[64] = { 1, 2, 3 };
    state_slot slot = { .name = "x", .rank = 1, .dim = { 64 }, .x = x };
    train_state s = { .job = "j", .val_step = -1 };
    const char *dir = in_dir("spare"), *last = in_dir("spare/last.safetensors");
    CHECK_OK(file_make_dirs(dir, &e), e);
    for (s.step = 1; s.step <= 2; s.step++) CHECK_OK(checkpoint_save(dir, &slot, 1, &s, &e), e);
    damage(last, 0.999, false);

    bool found;
    char note[1200];
    train_state back = { .job = "j" };
    CHECK_OK(checkpoint_load(dir, &slot, 1, &back, &found, note, &e), e);
    CHECK(found && back.step == 1 && note[0]);
    CHECK_OK(checkpoint_save(dir, &slot, 1, &s, &e), e);
    unlink(last);                             /* as a crash amid that save leaves it */
    CHECK_OK(checkpoint_load(dir, &slot, 1, &back, &found, note, &e), e);
    CHECK(found && back.step == 1);
    buf_free(&back.metrics);
}

static void the_checkpoint_of_another_job_is_refused(void) {
    err e = {0};
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    train_result out;
    const char *dir = in_dir("other");
    nn_graph *g = train_with_stops(&s, &r, dir, 0, &out);
    for (int i = 0; i < 3; i++) {
        nn_graph *h = nn_graph_copy(s.start, &e);
        train_job job = job_on(&s, h, &r, dir);
        if (i == 0) job.recipe.lr *= 2;
        if (i == 1) job.seed++;
        if (i == 2) h->param[0].x[0] += 1;
        e.code = ERR_NONE;
        CHECK(!train_run(&job, &out, &e) && e.code == ERR_CONFIG && strstr(e.msg, "another job"));
        nn_graph_free(h);
    }
    nn_graph_free(g);
    stage_free(&s);
}

static void a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(void) {
    err e = {0};
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    train_result out;
    const char *dir = in_dir("nonfinite");
    nn_graph *g = nn_graph_copy(s.start, &e);
    for (int i = 0; i < g->n_param; i++)      /* a classifier that explodes at the first large step */
        if (g->param[i].role == NN_WEIGHT) g->param[i].x[0] = 1e5f;
    train_job job = job_on(&s, g, &r, dir);
    job.recipe.lr = 1e12;
    job.recipe.warmup_epochs = 0;
    CHECK(!train_run(&job, &out, &e) && e.code == ERR_NONFINITE);
    CHECK(strstr(e.msg, "step ") && strstr(e.msg, "of 15"));
    tensor_file f;
    CHECK_OK(tensor_file_open(&f, in_dir("nonfinite/checkpoints/last.safetensors"), &e), e);
    tensor_file_close(&f);
    CHECK(count_lines(in_dir("nonfinite/log.txt"), "") >= 2);
    nn_graph_free(g);
    stage_free(&s);
}

static void a_full_disk_leaves_the_old_checkpoints_alone(void) {
    err e = {0};
    float x[4096] = { 1, 2, 3 };
    state_slot slot = { .name = "x", .rank = 1, .dim = { 4096 }, .x = x };
    train_state s = { .job = "j", .step = 7, .val_step = -1 };
    const char *dir = in_dir("full");
    CHECK_OK(file_make_dirs(dir, &e) && checkpoint_save(dir, &slot, 1, &s, &e), e);

    struct rlimit old, tight = { .rlim_cur = 1000 };
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    tight.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &tight);
    s.step = 8;
    bool saved = checkpoint_save(dir, &slot, 1, &s, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK(!saved && e.code == ERR_IO);

    bool found;
    char note[1200];
    train_state back = { .job = "j" };
    x[1] = 0;
    CHECK_OK(checkpoint_load(dir, &slot, 1, &back, &found, note, &e), e);
    CHECK(found && back.step == 7 && x[1] == 2 && !note[0]);
    buf_free(&back.metrics);
}

static void a_step_allocates_nothing(void) {
    err e = {0};
    stage s = stage_new(0.1f);
    train_recipe r = tiny_recipe();
    train_result out;
    nn_graph *g = nn_graph_copy(s.start, &e);
    watch w = {0};
    r.ema = 0.99;
    train_job job = job_on(&s, g, &r, NULL);
    job.tick = watch_tick, job.ctx = &w;
    CHECK_OK(train_run(&job, &out, &e), e);
    CHECK(w.last_step == 15 && w.allocations == 0);
    nn_graph_free(g);
    stage_free(&s);
}

static void a_failed_allocation_anywhere_is_an_error_and_nothing_else(void) {
    stage s = stage_new(0);
    train_recipe r = tiny_recipe();
    r.epochs = 0.2;
    r.ema = 0.9;
    bool done = false;
    for (int k = 1; k < 2000 && !done; k += 1 + k / 8) {
        err e = {0};
        train_result out;
        nn_graph *g = nn_graph_copy(s.start, &e);
        train_job job = job_on(&s, g, &r, NULL);
        mem_fail_at(k);
        done = train_run(&job, &out, &e);
        mem_fail_at(0);
        CHECK(done || e.code == ERR_NOMEM);
        nn_graph_free(g);
    }
    CHECK(done);
    stage_free(&s);
}

static void a_teacher_that_is_the_student_teaches_nothing_new(void) {
    err e = {0};
    stage s = stage_new(0);
    nn_graph *g = tiny_net(s.train, false, 0), *teacher = nn_graph_copy(g, &e), *start = nn_graph_copy(g, &e);
    train_recipe r = tiny_recipe();
    r.kd = 1;
    r.weight_decay = 0;
    r.temperature = 2;
    train_result out;
    train_job job = job_on(&s, g, &r, NULL);
    CHECK(!train_run(&job, &out, &e) && e.code == ERR_CONFIG && strstr(e.msg, "teacher"));
    job.teacher = teacher;
    CHECK_OK(train_run(&job, &out, &e), e);
    for (int i = 0; i < g->n_param; i++)
        for (int64_t k = 0; k < nn_param_count(&g->param[i]); k++)
            CHECK_CLOSE(g->param[i].x[k], start->param[i].x[k], 1e-4);
    for (int64_t k = 0; k < 3; k++) teacher->param[nn_param_find(teacher, "fc.bias")].x[k] = (float)(3 * k);
    CHECK_OK(train_run(&job, &out, &e), e);
    int b = nn_param_find(g, "fc.bias");
    CHECK(g->param[b].x[2] - g->param[b].x[0] > 0.5f);   /* it learned what the teacher prefers */
    nn_graph_free(g);
    nn_graph_free(teacher);
    nn_graph_free(start);
    stage_free(&s);
}

static double learn(nn_graph *g, const data_set *train, const data_set *val, double epochs, double lr) {
    err e = {0};
    train_recipe r = tiny_recipe();
    train_result out = {0};
    r.epochs = epochs;
    r.lr = lr;
    train_job job = { .g = g, .train = train, .val = val, .recipe = r, .seed = 1 };
    CHECK_OK(train_run(&job, &out, &e), e);
    nn_graph_free(g);
    return out.val.top1;
}

static void a_tiny_network_learns_shapes_by_heart(void) {
    stage s = stage_new(0);
    double top1 = learn(nn_graph_copy(s.start, NULL), s.train, s.train, 60, 0.2);
    CHECK(top1 > 75);                         /* chance is 33 */
    stage_free(&s);
}

static void a_tiny_network_tells_clothes_apart_that_it_has_not_seen(void) {
    const char *where = "../shared/data/fashion-mnist";
    if (!file_is_dir(where)) SKIP("no Fashion-MNIST");
    err e = {0};
    data_set *train = data_open(where, "train", &(data_options){ .limit = 2000 }, &e);
    data_set *val = data_open(where, "val", &(data_options){ .limit = 500 }, &e);
    CHECK_OK(train && val, e);
    double top1 = learn(tiny_net(train, true, 0), train, val, 3, 0.1);
    CHECK(top1 > 50);                         /* chance is 10 */
    data_free(train);
    data_free(val);
}

/* ---- run folders ------------------------------------------------------------------------------------------ */

static void a_run_folder_accepts_only_its_own_configuration(void) {
    err e = {0};
    const char *dir = in_dir("folder/deep");
    const char *config = "{\"verb\":\"train\",\"threads\":1,\"recipe\":{\"lr\":0.1,\"list\":[1,2]}}";
    CHECK_OK(run_dir_open(dir, config, &e), e);
    CHECK(file_exists(in_dir("folder/deep/config.json")) && file_exists(in_dir("folder/deep/env.json")));
    json *env = json_read(in_dir("folder/deep/env.json"), &e);
    CHECK(env && json_get(env, "compiler"));
    json_free(env);
    CHECK_OK(run_dir_open(dir, config, &e), e);
    CHECK_OK(run_dir_open(dir, "{\"threads\":2,\"recipe\":{\"list\":[1,2],\"lr\":0.1},\"verb\":\"train\"}", &e), e);
    CHECK(!run_dir_open(dir, "{\"verb\":\"train\",\"recipe\":{\"lr\":0.2,\"list\":[1,2]}}", &e));
    CHECK(e.code == ERR_CONFIG && strstr(e.msg, "\"lr\" was 0.1 and is now 0.2"));
    CHECK(!run_dir_open(dir, "{\"verb\":\"train\",\"recipe\":{\"lr\":0.1,\"list\":[1,3]}}", &e));
    CHECK(strstr(e.msg, "\"list\" was 2 and is now 3"));
    CHECK(!run_dir_open(dir, "{\"verb\":\"train\",\"recipe\":{\"lr\":0.1,\"list\":[1,2]},\"more\":null}", &e));
    CHECK(strstr(e.msg, "\"more\" was nothing"));
}

int main(void) {
    START(1);
    make_dir();
    RUN(cosine_starts_at_the_peak_halves_in_the_middle_and_ends_near_zero);
    RUN(warm_up_is_linear_and_the_rest_follows_from_the_peak);
    RUN(steps_divide_by_ten_at_a_half_and_at_three_quarters);
    RUN(every_recipe_has_its_own_name_a_source_and_sensible_numbers);
    RUN(without_a_name_the_recipe_follows_the_input_size_and_the_start);
    RUN(a_short_run_warms_up_for_a_quarter_of_it_at_most);
    RUN(sgd_is_pytorchs_with_and_without_nesterov_and_decays_weights_only);
    RUN(adam_and_adamw_are_pytorchs);
    RUN(clipping_limits_the_global_norm_and_never_enlarges);
    RUN(the_average_of_weights_follows_its_formula_statistics_included);
    RUN(a_known_logit_row_gives_known_loss_and_ranks);
    RUN(a_network_that_always_says_one_class_is_right_as_often_as_the_class_occurs);
    RUN(a_result_does_not_depend_on_the_batch_and_no_batch_is_too_big);
    RUN(networks_that_do_not_fit_the_data_or_are_broken_are_refused);
    RUN(estimated_statistics_are_those_of_the_images);
    RUN(a_run_that_is_stopped_and_continued_has_the_bits_of_an_unbroken_one);
    RUN(one_and_two_threads_train_to_the_same_bits);
    RUN(a_finished_run_returns_at_once_with_the_same_result);
    RUN(a_damaged_checkpoint_is_never_continued_from);
    RUN(a_damaged_last_checkpoint_never_replaces_the_good_one_before);
    RUN(the_checkpoint_of_another_job_is_refused);
    RUN(a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint);
    RUN(a_full_disk_leaves_the_old_checkpoints_alone);
    RUN(a_step_allocates_nothing);
    RUN(a_failed_allocation_anywhere_is_an_error_and_nothing_else);
    RUN(a_teacher_that_is_the_student_teaches_nothing_new);
    RUN(a_tiny_network_learns_shapes_by_heart);
    RUN(a_tiny_network_tells_clothes_apart_that_it_has_not_seen);
    RUN(a_run_folder_accepts_only_its_own_configuration);
    core_stop();
    remove_dir();
    END();
}
