/* layermerge importance: score every entry by a short fine-tuning; parts, then the two tables. */
#include "core/cli.h"
#include "search/search.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *data, *out, *method, *shard, *bad, *recipe, *input, *size;
    int64_t from, to, train_images, score_images, scores, batch, classes, limit;
    double epochs, lr, width;
    bool keep_single, identity;
} importance_options;

static const cli_option options[] = {
    { "model", CLI_TEXT, offsetof(importance_options, model), "!", NULL, "trained model file, or a builder" },
    { "data", CLI_TEXT, offsetof(importance_options, data), "!", NULL, "images; only the training split is used" },
    { "out", CLI_TEXT, offsetof(importance_options, out), "!", NULL, "folder of the parts and of the tables" },
    { "method", CLI_CHOICE, offsetof(importance_options, method), "finetune", "finetune|bn|reconstruct", "how an entry is scored" },
    { "epochs", CLI_NUMBER, offsetof(importance_options, epochs), "1", "0:1000", "of the short fine-tuning" },
    { "lr", CLI_NUMBER, offsetof(importance_options, lr), "0.05", "0:100", "peak learning rate, cosine to 0" },
    { "batch", CLI_INT, offsetof(importance_options, batch), "128", "2:65536", "images per step" },
    { "recipe", CLI_TEXT, offsetof(importance_options, recipe), NULL, NULL, "recipe whose augmentation is used (by the input's size)" },
    { "train-images", CLI_INT, offsetof(importance_options, train_images), "0", "0:", "for fine-tuning; 0: a tenth, at most 50000" },
    { "score-images", CLI_INT, offsetof(importance_options, score_images), "0", "0:", "for scoring, disjoint; 0: a tenth" },
    { "scores", CLI_INT, offsetof(importance_options, scores), "1", "1:1000", "repeats with other seeds, averaged" },
    { "keep-single", CLI_FLAG, offsetof(importance_options, keep_single), NULL, NULL, "do not reset single-layer entries" },
    { "identity", CLI_FLAG, offsetof(importance_options, identity), NULL, NULL, "offer kernel 0 where everything may go" },
    { "from", CLI_INT, offsetof(importance_options, from), "0", "0:1000000", "first entry id" },
    { "to", CLI_INT, offsetof(importance_options, to), "0", "0:1000000", "one past the last entry id; 0: all" },
    { "shard", CLI_TEXT, offsetof(importance_options, shard), NULL, NULL, "i/n: every n-th entry, starting with i (from 0)" },
    { "limit", CLI_INT, offsetof(importance_options, limit), "0", "0:", "class-balanced part of the images; 0: all" },
    { "size", CLI_TEXT, offsetof(importance_options, size), NULL, NULL, "side of the images the network gets: N or H,W" },
    CLI_BUILDER(importance_options),
    CLI_BAD_IMAGES(importance_options),
};

static const char *const methods[] = { "finetune", "bn", "reconstruct" };     /* order of search_score */

static void tick(void *ctx, int done, int total, const char *note)
{
    cli_progress *p = ctx;
    p->total = total;
    cli_progress_at(p, done, note);
}

static bool parse_shard(const char *text, search_importance_options *s, err *e)
{
    char end;
    if (!text) return true;
    if (sscanf(text, "%d/%d%c", &s->shard, &s->shards, &end) != 2 || s->shards < 1 || s->shard < 0 || s->shard >= s->shards)
        return err_set(e, ERR_USAGE, "--shard %s: write i/n with 0 <= i < n", text);
    return true;
}

static void print_json(const char *dir, int entries, bool complete)
{
    buf out = { 0 };
    json_writer w = json_writer_on(&out, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "out", dir);
    json_int(&w, "entries", entries);
    json_bool(&w, "complete", complete);
    json_end(&w, '}');
    if (!out.failed) puts(out.data);
    buf_free(&out);
}

static bool check_range(const importance_options *o, int entries, err *e)
{
    if (o->from >= entries)
        return err_set(e, ERR_USAGE, "--from %lld: the search space has %d entries", (long long)o->from, entries);
    if (o->to && o->to <= o->from)
        return err_set(e, ERR_USAGE, "--from %lld --to %lld: no entry lies between", (long long)o->from, (long long)o->to);
    return true;
}

static bool score(const cli_common *c, const importance_options *o, const nn_graph *g, const data_set *set, err *e)
{
    search_table t = { 0 };
    const train_recipe *recipe = train_recipe_for(o->recipe, g, false, e);
    if (!recipe) return false;
    cli_progress p = cli_progress_start("importance", 1, c->quiet);
    search_importance_options s = {
        .epochs = o->epochs, .lr = o->lr, .batch = (int)o->batch, .scores = (int)o->scores, .keep_single = o->keep_single,
        .augment = recipe->augment, .seed = (uint64_t)c->seed, .from = (int)o->from, .to = (int)o->to, .tick = tick, .ctx = &p,
        .train_images = o->train_images, .score_images = o->score_images };
    while (strcmp(methods[s.method], o->method)) s.method++;
    search_importance_defaults(&s, data_count(set));
    search_chain *chain = NULL;
    bool ok = parse_shard(o->shard, &s, e) && (chain = search_chain_new(g, e)) && search_enumerate(chain, o->identity, &t, e)
           && check_range(o, t.n, e) && search_importance_run(chain, &t, set, &s, o->out, e);
    cli_progress_end(&p);
    bool whole = !o->from && !o->to && !o->shard;
    err missing = { 0 };
    bool collected = ok && search_importance_collect(chain, &t, o->out, &missing);
    if (ok && whole && !collected) { *e = missing; ok = false; }
    if (ok && c->json) print_json(o->out, t.n, collected);
    else if (ok && collected) printf("%s/normalized_importance.csv: %d entries\n", o->out, t.n);
    else if (ok) printf("%s\n", missing.msg);
    search_table_free(&t);
    search_chain_free(chain);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const importance_options *o = opt;
    data_options d = { .limit = o->limit, .fail_on_bad = !strcmp(o->bad, "fail"), .seed = (uint64_t)c->seed };
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    if (!data_size_parse(&d, o->size, e) || !nn_build_input(&b, o->input, e)) return false;
    data_set *set = data_open(o->data, "train", &d, e);
    nn_graph *g = set ? train_open_model(o->model, &b, set, (uint64_t)c->seed, e) : NULL;
    bool ok = g && score(c, o, g, set, e);
    buf bad = { 0 };
    if (ok && !c->quiet && data_bad_text(set, &bad) && !bad.failed) fprintf(stderr, "%s\n", bad.data);
    buf_free(&bad);
    nn_graph_free(g);
    data_free(set);
    return ok;
}

const cli_verb cmd_importance = {
    "importance", "score every entry of the search space by a short fine-tuning",
    options, CLI_COUNT(options), sizeof(importance_options), NULL, run,
};
