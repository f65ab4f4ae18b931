/* layermerge latency: what every entry of a network's search space costs on this machine. */
#include "core/cli.h"
#include "search/search.h"

#include <stdio.h>

typedef struct {
    const char *model, *input, *out;
    int64_t classes, batch, rounds;
    double width;
    bool identity;
} latency_options;

static const cli_option options[] = {
    { "model", CLI_TEXT, offsetof(latency_options, model), "!", NULL, "builder or model file" },
    CLI_BUILDER(latency_options),
    { "batch", CLI_INT, offsetof(latency_options, batch), "128", "1:65536", "images per forward" },
    { "rounds", CLI_INT, offsetof(latency_options, rounds), "31", "3:100000", "samples per network that is timed, interleaved" },
    { "identity", CLI_FLAG, offsetof(latency_options, identity), NULL, NULL, "offer kernel 0 where everything may go" },
    { "out", CLI_TEXT, offsetof(latency_options, out), "time.csv", NULL, "the table" },
};

static void tick(void *ctx, int done, int total)
{
    cli_progress *p = ctx;
    p->total = total;
    cli_progress_at(p, done, NULL);
}

static void print_json(const char *path, int entries, int batch, const search_fixed *fixed)
{
    buf out = { 0 };
    json_writer w = json_writer_on(&out, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "out", path);
    json_int(&w, "entries", entries);
    json_int(&w, "batch", batch);
    json_int(&w, "threads", par_threads());
    json_number(&w, "base_ms", fixed->base_ms);
    json_number(&w, "fixed_ms", fixed->fixed_ms);
    json_number(&w, "scale", fixed->scale);
    json_end(&w, '}');
    if (!out.failed) puts(out.data);
    buf_free(&out);
}

static bool measure(const cli_common *c, const latency_options *o, const nn_graph *g, err *e)
{
    search_table t = { 0 };
    search_fixed fixed;
    cli_progress p = cli_progress_start("latency", 1, c->quiet);
    search_latency_options m = { .batch = (int)o->batch, .time = { .rounds = (int)o->rounds }, .tick = tick, .ctx = &p };
    search_chain *chain = search_chain_new(g, e);
    bool ok = chain && search_enumerate(chain, o->identity, &t, e) && search_measure(chain, &t, &m, &fixed, e);
    cli_progress_end(&p);
    ok = ok && search_write_times(&t, o->out, e);
    if (ok && c->json) print_json(o->out, t.n, m.batch, &fixed);
    else if (ok)
        printf("%s: %d entries, batch %d, %d threads; the whole network %.4f ms, of which no choice can change %.4f ms\n", o->out,
               t.n, m.batch, par_threads(), fixed.base_ms, fixed.fixed_ms);
    search_table_free(&t);
    search_chain_free(chain);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const latency_options *o = opt;
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    bool fits = file_differ("--out", o->out, "--model", o->model, e) && file_may_write(o->out, e) && nn_build_input(&b, o->input, e);
    nn_graph *g = fits ? nn_model_open(o->model, &b, (uint64_t)c->seed, e) : NULL;
    bool ok = g && measure(c, o, g, e);
    nn_graph_free(g);
    return ok;
}

const cli_verb cmd_latency = {
    "latency", "measure the latency table of a network's search space",
    options, CLI_COUNT(options), sizeof(latency_options), NULL, run,
};
