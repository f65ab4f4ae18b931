/* Whole networks: latency of inference on the one ruler, and images per second of training (forward,
 * backward and an SGD step on noise). One line of key=value words per network, mode, batch and number
 * of threads; an output or gradient that is not finite is an error. The networks, their batches and
 * their names are those of bench/peers/models.py.
 *   bench_net [--models A,B] [--mode infer,train] [--batch N,M] [--threads N,M] [--seconds S]
 *             [--isa NAME] [--conv ROAD] [--exact yes] [--steps yes]
 * --steps says where the time goes: a line per step of the plan, mean over as many runs as fit the seconds. */
#include "nn/op.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct network {
    const char *name, *builder;
    double width;
    int side, classes;
    int many, train;             /* images: the large batch of inference, and of training */
} networks[] = {
    { "resnet20", "resnet20", 1, 32, 10, 128, 128 },
    { "resnet56", "resnet56", 1, 32, 10, 128, 128 },
    { "mobilenetv2_32", "mobilenetv2", 1, 32, 10, 128, 128 },
    { "mobilenetv2", "mobilenetv2", 1, 224, 1000, 32, 32 },
    { "mobilenetv2_1.4", "mobilenetv2", 1.4, 224, 1000, 32, 32 },
    { "resnet34", "resnet34", 1, 224, 1000, 32, 32 },
    { "vgg19_bn", "vgg19_bn", 1, 224, 1000, 32, 8 },
};
enum { NETWORKS = sizeof networks / sizeof *networks, MOST = 16, SAMPLES = 300 };

typedef struct { int value[MOST], n; } list;
typedef struct {
    const char *models, *mode, *isa, *conv;
    list batch, threads;         /* batch.n = 0: the network's own */
    double seconds;
    bool exact, steps;
} settings;

/* ---- the command line ---------------------------------------------------------------------------- */

/* Is word one of the comma-separated words of text? NULL: all words are. */
static bool has_word(const char *text, const char *word)
{
    size_t len = strlen(word);
    for (const char *p = text; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == len && !strncmp(p, word, len)) return true;
    return !text;
}

/* Every word of text is one of the n known ones. */
static bool are_known(const char *text, const char *const *known, int n)
{
    int words = 0, found = 0;
    for (const char *p = text; *p; p++) words += *p == ',';
    for (int i = 0; i < n; i++) found += has_word(text, known[i]);
    return found == words + 1;
}

static bool parse_list(const char *text, list *l)
{
    for (l->n = 0; l->n < MOST; text++) {
        char *end;
        long v = strtol(text, &end, 10);
        if (end == text || v < 0 || v > 65536) return false;
        l->value[l->n++] = (int)v;
        text = end;
        if (*text != ',') return !*text;
    }
    return false;
}

static bool read_settings(int argc, char **argv, settings *o)
{
    const char *name[NETWORKS], *const mode[] = { "infer", "train" };
    for (int i = 0; i < NETWORKS; i++) name[i] = networks[i].name;
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) return false;
        if (!strcmp(argv[i], "--models")) o->models = value;
        else if (!strcmp(argv[i], "--mode")) o->mode = value;
        else if (!strcmp(argv[i], "--isa")) o->isa = value;
        else if (!strcmp(argv[i], "--conv")) o->conv = value;
        else if (!strcmp(argv[i], "--exact")) o->exact = !strcmp(value, "yes");
        else if (!strcmp(argv[i], "--steps")) o->steps = !strcmp(value, "yes");
        else if (!strcmp(argv[i], "--seconds")) o->seconds = strtod(value, NULL);
        else if (!strcmp(argv[i], "--batch") && !parse_list(value, &o->batch)) return false;
        else if (!strcmp(argv[i], "--threads") && !parse_list(value, &o->threads)) return false;
        else if (strcmp(argv[i], "--batch") && strcmp(argv[i], "--threads")) return false;
    }
    for (int i = 0; i < o->batch.n; i++)
        if (!o->batch.value[i]) return false;
    return o->seconds > 0 && (!o->models || are_known(o->models, name, NETWORKS))
        && (!o->mode || are_known(o->mode, mode, 2));
}

/* ---- one line ------------------------------------------------------------------------------------ */

static void show(const struct network *net, const char *mode, const nn_plan *plan, const nn_graph *g,
                 const nn_timing *t)
{
    nn_plan_info m = nn_plan_describe(plan);
    int batch = nn_plan_batch(plan);
    double passes = strcmp(mode, "train") ? 1 : 3, macs = (double)nn_graph_macs(g);
    printf("ours model=%s mode=%s batch=%d threads=%d median_ms=%.4f p10_ms=%.4f p90_ms=%.4f images_per_s=%.2f"
           " gflops=%.1f samples=%d repeated=%d steps=%d arena_mb=%.1f live_mb=%.1f weight_mb=%.1f scratch_mb=%.1f"
           " macs=%.0f params=%lld isa=%s conv=%s finite=yes\n",
           net->name, mode, batch, par_threads(), t->median_ms, t->p10_ms, t->p90_ms, 1e3 * batch / t->median_ms,
           2e-6 * passes * macs * batch / t->median_ms, t->samples, t->repeated, m.steps,
           (double)m.arena_bytes * 1e-6, (double)m.live_bytes * 1e-6, (double)m.weight_bytes * 1e-6,
           (double)m.scratch_bytes * 1e-6, macs, (long long)nn_graph_weights(g), isa_names[core_isa()],
           core_conv_road());
    fflush(stdout);
}

static void fill_noise(float *x, int64_t n)
{
    rng r = rng_at(1, RNG_NOISE, 0, 0);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(2 * rng_uniform(&r) - 1);
}

static int64_t image_floats(const nn_graph *g, int batch)
{
    const int64_t *d = g->node[nn_graph_find(g, "input")].dim;
    return batch * d[1] * d[2] * d[3];
}

/* Samples of ms each that fill the time: at least three. */
static int samples_for(double seconds, double ms)
{
    double n = seconds * 1e3 / ms;
    return n < 3 ? 3 : n > SAMPLES ? SAMPLES : (int)n;
}

/* ---- where the time goes --------------------------------------------------------------------------- */

static void show_step(const char *mode, const nn_plan *p, int time, double ms)
{
    const nn_step *s = &p->step[time < p->n_step ? time : 2 * p->n_step - 1 - time];
    const int64_t *d = s->node->dim;
    double macs = (double)nn_node_macs(p->g, s->id) * p->batch * (time < p->n_step ? 1 : 2);
    printf("step mode=%s batch=%d threads=%d time=%d name=%s op=%s way=%s out=%lldx%lldx%lld group=%d ms=%.4f gflops=%.1f\n",
           mode, p->batch, par_threads(), time, s->node->name, s->op->name, time < p->n_step ? "forward" : "backward",
           (long long)d[1], (long long)d[2], (long long)d[3], s->batch, ms, 2e-6 * macs / ms);
}

typedef void pass_fn(void *ctx);

/* Runs pass for so many seconds, twice at least, and tells every step's mean. */
static bool show_steps(const char *mode, nn_plan *p, double seconds, pass_fn *pass, void *ctx, err *e)
{
    int64_t *ns = mem_new(2 * (size_t)p->n_step, sizeof *ns, e);
    if (!ns) return false;
    nn_plan_watch(p, ns);
    int runs = 0;
    for (int64_t start = clock_ns(); runs < 2 || (double)(clock_ns() - start) < seconds * 1e9; runs++) pass(ctx);
    nn_plan_watch(p, NULL);
    for (int t = 0; t < 2 * p->n_step; t++)
        if (ns[t]) show_step(mode, p, t, (double)ns[t] * 1e-6 / runs);
    mem_free(ns);
    return true;
}

/* ---- inference ----------------------------------------------------------------------------------- */

static void forward_pass(void *plan) { nn_plan_forward(plan); }

static bool infer(const struct network *net, nn_graph *g, int batch, const settings *o, err *e)
{
    nn_plan *plan = nn_plan_new(g, NN_INFER, batch, e);
    if (!plan) return false;
    fill_noise(nn_plan_input(plan, 0), image_floats(g, batch));
    nn_plan_forward(plan);
    bool ok = vec_is_finite((int64_t)batch * net->classes, nn_plan_output(plan))
           || err_set(e, ERR_NONFINITE, "the output is not finite");

    int64_t start = clock_ns();
    nn_plan_forward(plan);
    double ms = (double)(clock_ns() - start) * 1e-6;
    /* Steadiness is the caller's business: bench/peers runs this several times. */
    nn_time_options how = { .rounds = samples_for(o->seconds, fmax(ms, 2)), .spread = 1e9 };
    nn_timing t;
    ok = ok && nn_plan_time(&plan, 1, &how, &t, e);
    if (ok) show(net, "infer", plan, g, &t);
    if (o->steps) ok = ok && show_steps("infer", plan, o->seconds, forward_pass, plan, e);
    nn_plan_free(plan);
    return ok;
}

/* ---- training ------------------------------------------------------------------------------------ */

typedef struct { nn_graph *g; nn_plan *plan; float **momentum, *memory; int64_t step; } trainer;

static void trainer_free(trainer *t)
{
    nn_plan_free(t->plan);
    nn_graph_free(t->g);
    mem_free(t->momentum);
    mem_free(t->memory);
}

static bool trainer_new(trainer *t, const nn_graph *g, const struct network *net, int batch, err *e)
{
    t->g = nn_graph_with_loss(g, 0, 0, 0, e);
    t->plan = t->g ? nn_plan_new(t->g, NN_TRAIN, batch, e) : NULL;
    t->momentum = mem_new((size_t)g->n_param, sizeof *t->momentum, e);
    t->memory = mem_new((size_t)nn_graph_weights(g), sizeof *t->memory, e);
    if (!t->plan || !t->momentum || !t->memory) return false;
    float *m = t->memory;
    for (int i = 0; i < t->g->n_param; i++)
        if (t->g->param[i].role != NN_RUNNING) t->momentum[i] = m, m += nn_param_count(&t->g->param[i]);

    fill_noise(nn_plan_input(t->plan, 0), image_floats(g, batch));
    rng r = rng_at(2, RNG_NOISE, 0, 0);
    for (int i = 0; i < batch; i++)
        nn_plan_input(t->plan, 1)[i * net->classes + (int)rng_below(&r, (uint32_t)net->classes)] = 1;
    return true;
}

/* Forward, backward, SGD with momentum and weight decay; milliseconds. */
static double train_step(trainer *t)
{
    int64_t start = clock_ns();
    nn_plan_random(t->plan, 3, 0, t->step);
    nn_plan_forward(t->plan);
    nn_plan_backward(t->plan);
    for (int i = 0; i < t->g->n_param; i++) {
        nn_param *p = &t->g->param[i];
        if (p->role != NN_RUNNING)
            sgd_step(nn_param_count(p), p->x, nn_plan_grad(t->plan, i), t->momentum[i], 1, 0.001f, 0.9f, 1e-4f,
                     false, t->step == 0);
    }
    t->step++;
    return (double)(clock_ns() - start) * 1e-6;
}

static void step_pass(void *t) { train_step(t); }

static bool is_finite(const trainer *t, err *e)
{
    if (!isfinite(nn_plan_loss(t->plan))) return err_set(e, ERR_NONFINITE, "the loss is not finite");
    for (int i = 0; i < t->g->n_param; i++) {
        const nn_param *p = &t->g->param[i];
        if (p->role != NN_RUNNING && !vec_is_finite(nn_param_count(p), nn_plan_grad(t->plan, i)))
            return err_set(e, ERR_NONFINITE, "the gradient of %s is not finite", p->name);
    }
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool train(const struct network *net, const nn_graph *g, int batch, const settings *o, err *e)
{
    double ms[SAMPLES];
    trainer t = { 0 };
    bool ok = trainer_new(&t, g, net, batch, e);
    if (ok) {
        train_step(&t);
        int n = samples_for(o->seconds, train_step(&t));
        for (int i = 0; i < n; i++) ms[i] = train_step(&t);
        qsort(ms, (size_t)n, sizeof *ms, by_value);
        nn_timing time = { .median_ms = (ms[n / 2] + ms[(n - 1) / 2]) / 2, .p10_ms = ms[n / 10],
                           .p90_ms = ms[(n - 1) * 9 / 10], .samples = n };
        ok = is_finite(&t, e);
        if (ok) show(net, "train", t.plan, g, &time);
        if (o->steps) ok = ok && show_steps("train", t.plan, o->seconds, step_pass, &t, e);
    }
    trainer_free(&t);
    return ok;
}

/* ---- all of them --------------------------------------------------------------------------------- */

static bool bench(const struct network *net, const settings *o, err *e)
{
    nn_build b = { .classes = net->classes, .h = net->side, .w = net->side, .c = 3, .width = net->width };
    nn_graph *g = nn_model_open(net->builder, &b, 1, e);
    list infers = o->batch.n ? o->batch : (list){ { 1, net->many }, 2 };
    list trains = o->batch.n ? o->batch : (list){ { net->train }, 1 };
    bool ok = g;
    for (int i = 0; ok && has_word(o->mode, "infer") && i < infers.n; i++)
        ok = infer(net, g, infers.value[i], o, e) || err_note(e, "%s, inference", net->name);
    for (int i = 0; ok && has_word(o->mode, "train") && i < trains.n; i++)
        ok = train(net, g, trains.value[i], o, e) || err_note(e, "%s, training", net->name);
    nn_graph_free(g);
    return ok;
}

static bool bench_all(const settings *o, err *e)
{
    for (int k = 0; k < o->threads.n; k++) {
        if (!core_init(&(core_options){ .threads = o->threads.value[k], .isa = o->isa, .conv = o->conv, .exact = o->exact }, e))
            return false;
        bool ok = true;
        for (int i = 0; ok && i < NETWORKS; i++)
            if (has_word(o->models, networks[i].name)) ok = bench(&networks[i], o, e);
        core_stop();
        if (!ok) return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    settings o = { .threads = { { 0 }, 1 }, .seconds = 1 };
    err e = { 0 };
    if (!read_settings(argc, argv, &o)) {
        fprintf(stderr, "usage: bench_net [--models A,B] [--mode infer,train] [--batch N,M] [--threads N,M] [--seconds S]"
                        " [--isa NAME] [--conv ROAD] [--exact yes] [--steps yes]\nmodels:");
        for (int i = 0; i < NETWORKS; i++) fprintf(stderr, " %s", networks[i].name);
        fprintf(stderr, "\n");
        return ERR_USAGE;
    }
    if (bench_all(&o, &e)) return 0;
    fprintf(stderr, "bench_net: %s\n", e.msg);
    return e.code ? (int)e.code : ERR_INTERNAL;
}
