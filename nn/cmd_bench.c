/* layermerge bench: latency of whole networks, all of them interleaved on the one ruler. */
#include "core/cli.h"
#include "nn/nn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MOST = 16 };              /* batch sizes, thread counts */

typedef struct {
    const char *model, *batch, *threads, *input;
    int64_t classes, rounds;
    double width;
} bench_options;

#define AT(member) offsetof(bench_options, member)
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), NULL, NULL, "model file or builder, beside those without a flag" },
    { "batch", CLI_TEXT, AT(batch), "1", NULL, "batch sizes, separated by commas" },
    { "threads", CLI_TEXT, AT(threads), "0", NULL, "thread counts, separated by commas; 0: all cores" },
    { "rounds", CLI_INT, AT(rounds), NULL, "3:100000", "samples per network (default: the ruler's)" },
    CLI_BUILDER(bench_options),
};

typedef struct { int value[MOST], n; } count_list;

static bool parse_counts(const char *flag, const char *text, double lo, double hi, count_list *l, err *e) {
    double v[MOST];
    if (!cli_numbers(flag, text, v, MOST, &l->n, e)) return false;
    for (int i = 0; i < l->n; i++) {
        if (v[i] < lo || v[i] > hi || v[i] != floor(v[i]))
            return err_set(e, ERR_USAGE, "--%s %s: whole numbers from %g to %g are wanted", flag, text, lo, hi);
        l->value[i] = (int)v[i];
    }
    return true;
}

static bool parse_build(const bench_options *o, nn_build *b, err *e) {
    *b = (nn_build){ .classes = (int)o->classes, .width = o->width };
    return nn_build_input(b, o->input, e);
}

/* ---- what is measured ---------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    nn_graph *g;
    nn_plan *plan;               /* of the batch and thread count at hand */
    char seen[MOST][65];         /* per batch size: hash of the first output */
} candidate;

typedef struct {
    const cli_common *c;
    const bench_options *o;
    candidate *net; int n;
    count_list batch, threads;
    int done;                    /* groups measured, for progress */
    err invalid;                 /* the first output that is */
    cli_progress progress;
    json_writer json;
} work;

static bool open_nets(work *w, int n_word, char **word, err *e) {
    nn_build b;
    w->n = n_word + (w->o->model != NULL);
    if (!w->n) return err_set(e, ERR_USAGE, "bench needs model files or builders");
    w->net = mem_new((size_t)w->n, sizeof *w->net, e);
    if (!w->net || !parse_build(w->o, &b, e)) return false;
    for (int i = 0; i < w->n; i++) {
        const char *name = w->net[i].name = i < n_word ? word[i] : w->o->model;
        bool file = !nn_model_find(name);
        w->net[i].g = nn_model_open(name, file ? NULL : &b, (uint64_t)w->c->seed, e);
        if (!w->net[i].g) return false;
    }
    return true;
}

static void fill_noise(nn_plan *plan, const nn_graph *g, int batch, uint64_t seed) {
    for (int i = 0, which = 0; i < g->n_node; i++) {
        if (g->node[i].op != NN_OP_input) continue;
        const int64_t *d = g->node[i].dim;
        float *x = nn_plan_input(plan, which);
        rng r = rng_at(seed, RNG_NOISE, 0, (uint64_t)which++);
        for (int64_t k = 0; k < batch * d[1] * d[2] * d[3]; k++) x[k] = (float)(2 * rng_uniform(&r) - 1);
    }
}

/* Finite, and the same bits for every number of threads. What is not is said after the table. */
static bool output_is_valid(candidate *net, int batch_at, err *e) {
    const int64_t *d = net->g->node[net->g->output].dim;
    int64_t count = nn_plan_batch(net->plan) * d[1] * d[2] * d[3];
    const float *y = nn_plan_output(net->plan);
    char hash[65];
    sha256 s;
    sha256_init(&s);
    sha256_add(&s, y, (size_t)count * sizeof *y);
    sha256_hex(&s, hash);
    if (!net->seen[batch_at][0]) memcpy(net->seen[batch_at], hash, sizeof hash);
    if (!vec_is_finite(count, y)) return err_set(e, ERR_NONFINITE, "%s: the output is not finite", net->name);
    return !strcmp(hash, net->seen[batch_at])
        || err_set(e, ERR_NEGATIVE, "%s: the output depends on the number of threads", net->name);
}

static void show(work *w, const candidate *net, int batch, const nn_timing *t, bool valid) {
    double gmacs = (double)nn_graph_macs(net->g) * 1e-9, speed = 1e3 * batch / t->median_ms;
    nn_plan_info m = nn_plan_describe(net->plan);
    if (!w->c->json) {
        printf("%-32s %6d %8d %12.4f %12.4f %12.4f %12.1f %9.4f %9.1f %9.1f %9.1f  %s\n", net->name, batch, par_threads(),
               t->median_ms, t->p10_ms, t->p90_ms, speed, gmacs, (double)m.arena_bytes * 1e-6,
               (double)m.live_bytes * 1e-6, (double)m.weight_bytes * 1e-6, valid ? "yes" : "NO");
        fflush(stdout);
    }
    json_begin(&w->json, NULL, '{');
    json_text(&w->json, "model", net->name);
    json_int(&w->json, "batch", batch);
    json_int(&w->json, "threads", par_threads());
    json_number(&w->json, "median_ms", t->median_ms);
    json_number(&w->json, "p10_ms", t->p10_ms);
    json_number(&w->json, "p90_ms", t->p90_ms);
    json_number(&w->json, "images_per_s", speed);
    json_number(&w->json, "gmacs", gmacs);
    json_int(&w->json, "arena_bytes", (int64_t)m.arena_bytes);
    json_int(&w->json, "live_bytes", (int64_t)m.live_bytes);
    json_int(&w->json, "weight_bytes", (int64_t)m.weight_bytes);
    json_bool(&w->json, "valid", valid);
    json_end(&w->json, '}');
}

static void tick(void *ctx, int done, int total) {
    work *w = ctx;
    cli_progress_at(&w->progress, (int64_t)w->done * 1000 + (int64_t)1000 * done / (total ? total : 1), NULL);
}

/* All networks at one batch size and thread count. */
static bool measure_group(work *w, int batch_at, nn_plan **plan, nn_timing *t, err *e) {
    int batch = w->batch.value[batch_at];
    bool ok = true;
    for (int i = 0; ok && i < w->n; i++) {
        if (stop_requested()) ok = err_set(e, ERR_STOPPED, "stopped while planning");
        else if (!(plan[i] = w->net[i].plan = nn_plan_new(w->net[i].g, NN_INFER, batch, e)))
            ok = err_note(e, "%s, batch %d", w->net[i].name, batch);
        else fill_noise(plan[i], w->net[i].g, batch, (uint64_t)w->c->seed);
    }
    nn_time_options time = { .rounds = (int)w->o->rounds, .tick = tick, .ctx = w };
    ok = ok && nn_plan_time(plan, w->n, &time, t, e);
    for (int i = 0; ok && i < w->n; i++)
        show(w, &w->net[i], batch, &t[i], output_is_valid(&w->net[i], batch_at, w->invalid.code ? NULL : &w->invalid));
    for (int i = 0; i < w->n; i++) {
        nn_plan_free(w->net[i].plan);
        w->net[i].plan = NULL;
    }
    w->done++;
    return ok;
}

static bool measure(work *w, err *e) {
    nn_plan **plan = mem_new((size_t)w->n, sizeof *plan, e);
    nn_timing *t = mem_new((size_t)w->n, sizeof *t, e);
    bool ok = plan && t;
    for (int i = 0; ok && i < w->threads.n; i++) {
        core_options core = { .threads = w->threads.value[i], .isa = w->c->isa, .conv = w->c->conv,
                              .exact = w->c->exact };
        core_stop();
        ok = core_init(&core, e);
        for (int k = 0; ok && k < w->batch.n; k++) ok = measure_group(w, k, plan, t, e);
    }
    mem_free(plan);
    mem_free(t);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e) {
    buf out = {0};
    work w = { .c = c, .o = opt, .json = json_writer_on(&out, false) };
    bool ok = parse_counts("batch", w.o->batch, 1, 65536, &w.batch, e)
           && parse_counts("threads", w.o->threads, 0, 1024, &w.threads, e) && open_nets(&w, n_word, word, e);
    json_begin(&w.json, NULL, '[');
    if (ok) {
        w.progress = cli_progress_start("bench", (int64_t)w.threads.n * w.batch.n * 1000, c->quiet);
        if (!c->json)
            printf("%-32s %6s %8s %12s %12s %12s %12s %9s %9s %9s %9s  valid\n", "model", "batch", "threads", "median_ms",
                   "p10_ms", "p90_ms", "images_per_s", "gmacs", "arena_mb", "live_mb", "weight_mb");
        ok = measure(&w, e);
        cli_progress_end(&w.progress);
    }
    json_end(&w.json, ']');
    ok = ok && (!out.failed || err_set(e, ERR_NOMEM, "out of memory"));
    if (ok && c->json) puts(out.data);
    if (ok && w.invalid.code) {
        *e = w.invalid;
        ok = false;
    }
    for (int i = 0; w.net && i < w.n; i++) nn_graph_free(w.net[i].g);
    mem_free(w.net);
    buf_free(&out);
    return ok;
}

const cli_verb cmd_bench = {
    "bench", "latency of models and builders, interleaved",
    options, CLI_COUNT(options), sizeof(bench_options), "MODEL...", run,
};
