/* layermerge compress: the whole path, from a network and images to a network that is measurably faster. */
#include "core/cli.h"
#include "search/search.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *data, *run, *budget, *method, *score, *input, *bad, *recipe, *size;
    double speedup, width, train_epochs, train_lr, epochs, lr, imp_epochs, imp_lr, kd, temperature, smoothing;
    int64_t classes, limit, val_limit, batch, train_batch, rounds, imp_train, imp_score, scores;
    bool identity, distill, keep_single;
} compress_options;

#define AT(member) offsetof(compress_options, member)
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), "!", NULL, "model file, or a builder that is trained first" },
    { "data", CLI_TEXT, AT(data), "!", NULL, "images" },
    { "run", CLI_TEXT, AT(run), "runs/compress", NULL, "run folder; the same command continues it" },
    { "speedup", CLI_NUMBER, AT(speedup), NULL, "0:1000", "measured base latency / measured merged latency wanted" },
    { "budget", CLI_TEXT, AT(budget), NULL, NULL, "or the latency wanted, in ms" },
    { "method", CLI_CHOICE, AT(method), "layermerge", "layermerge|depth|layeronly", "what may be removed" },
    { "batch", CLI_INT, AT(batch), "128", "1:65536", "images per forward when latency is measured" },
    { "rounds", CLI_INT, AT(rounds), "15", "3:100000", "latency samples per network that is timed" },
    { "importance", CLI_CHOICE, AT(score), "finetune", "finetune|bn|reconstruct", "how an entry is scored" },
    { "importance-epochs", CLI_NUMBER, AT(imp_epochs), "1", "0:1000", "of each short fine-tuning" },
    { "importance-lr", CLI_NUMBER, AT(imp_lr), "0.02", "0:100", "its peak learning rate" },
    { "train-images", CLI_INT, AT(imp_train), "0", "0:", "for each short fine-tuning; 0: a tenth, at most 50000" },
    { "score-images", CLI_INT, AT(imp_score), "0", "0:", "for scoring, disjoint; 0: a tenth, at most 50000" },
    { "scores", CLI_INT, AT(scores), "1", "1:1000", "repeats of each score with other seeds" },
    { "keep-single", CLI_FLAG, AT(keep_single), NULL, NULL, "do not reset single-layer entries" },
    { "identity", CLI_FLAG, AT(identity), NULL, NULL, "offer kernel 0 where everything may go" },
    { "epochs", CLI_NUMBER, AT(epochs), "25", "0:10000", "of fine-tuning the pruned network" },
    { "lr", CLI_NUMBER, AT(lr), "0.05", "0:100", "peak learning rate of fine-tuning" },
    { "smoothing", CLI_NUMBER, AT(smoothing), "0", "0:0.999", "label smoothing of fine-tuning" },
    { "distill", CLI_FLAG, AT(distill), "true", NULL, "fine-tune with the base network as the teacher" },
    { "kd-weight", CLI_NUMBER, AT(kd), "0.9", "0:1", "share of the distillation loss" },
    { "kd-temperature", CLI_NUMBER, AT(temperature), "4", "0.000001:1000000", "of the distillation loss" },
    { "recipe", CLI_TEXT, AT(recipe), NULL, NULL, "recipe that trains a builder, its augmentation is used throughout (by the input's size)" },
    { "train-epochs", CLI_NUMBER, AT(train_epochs), "20", "0:10000", "of training a builder" },
    { "train-lr", CLI_NUMBER, AT(train_lr), "0.1", "0:100", "its peak learning rate" },
    { "train-batch", CLI_INT, AT(train_batch), "128", "2:65536", "images per training step, everywhere" },
    CLI_BUILDER(compress_options),
    { "limit", CLI_INT, AT(limit), "0", "0:", "use this many training images; 0: all" },
    { "val-limit", CLI_INT, AT(val_limit), "0", "0:", "and this many of the validation split" },
    { "size", CLI_TEXT, AT(size), NULL, NULL, "side of the images the network gets: N or H,W" },
    CLI_BAD_IMAGES(compress_options),
};

extern const cli_verb cmd_compress;
static const char *const scores[] = { "finetune", "bn", "reconstruct" };       /* order of search_score */

typedef struct { cli_progress p; char stage[32]; bool quiet; } screen;

static void progress(void *ctx, const char *stage, int64_t done, int64_t total, const char *note)
{
    screen *s = ctx;
    if (strcmp(s->stage, stage)) {
        if (s->stage[0]) cli_progress_end(&s->p);
        snprintf(s->stage, sizeof s->stage, "%s", stage);
        s->p = cli_progress_start(s->stage, total, s->quiet);
    }
    cli_progress_at(&s->p, done, note);
}

static void warn(void *ctx, const char *sentence)
{
    screen *s = ctx;
    if (s->quiet) return;
    if (s->stage[0]) cli_progress_end(&s->p);
    s->stage[0] = 0;
    fprintf(stderr, "%s\n", sentence);
}

/* What is worked on: all is opened before the run folder is claimed, so that a mistyped name does not pin
 * the folder to a command that cannot run. */
typedef struct { data_set *train, *val; nn_graph *base; buf config; } work;

static bool check_numbers(const compress_options *o, search_job *j, err *e)
{
    if (!o->budget == !(o->speedup > 0)) return err_set(e, ERR_USAGE, "give either --speedup X or --budget MS");
    if (o->budget && !search_parse_ms(o->budget, false, &j->budget_ns))
        return err_set(e, ERR_USAGE, "--budget %s is not a number of milliseconds", o->budget);
    return true;
}

static bool open_inputs(const cli_common *c, const compress_options *o, search_importance_options *importance, work *w, err *e)
{
    data_options d = { .limit = o->limit, .fail_on_bad = !strcmp(o->bad, "fail"), .seed = (uint64_t)c->seed };
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    if (!data_size_parse(&d, o->size, e) || !nn_build_input(&b, o->input, e)
        || !(w->train = data_open(o->data, "train", &d, e)))
        return false;
    search_importance_defaults(importance, data_count(w->train));
    d.limit = o->val_limit;
    return search_importance_fits(importance, data_count(w->train), e) && (w->val = data_open(o->data, "val", &d, e))
        && (w->base = train_open_model(o->model, &b, w->train, (uint64_t)c->seed, e));
}

static void fill_job(const cli_common *c, const compress_options *o, const train_recipe *recipe, const work *w, search_job *j)
{
    j->base = w->base;
    j->train = w->train;
    j->val = w->val;
    j->run_dir = o->run;
    j->speedup = o->speedup;
    j->method = search_method_find(o->method);
    j->identity = o->identity || !strcmp(o->method, "layeronly");     /* it removes nothing else */
    j->train_base = nn_model_find(o->model) != NULL;
    j->base_recipe = *recipe;
    train_recipe_shorten(&j->base_recipe, o->train_epochs);
    j->base_recipe.lr = o->train_lr;
    j->base_recipe.batch = (int)o->train_batch;
    j->tune_recipe = *train_recipe_find("finetune");
    j->tune_recipe.augment = recipe->augment;
    train_recipe_shorten(&j->tune_recipe, o->epochs);
    j->tune_recipe.lr = o->lr;
    j->tune_recipe.batch = (int)o->train_batch;
    j->tune_recipe.smoothing = o->smoothing;
    j->tune_recipe.kd = o->distill ? o->kd : 0;
    j->tune_recipe.temperature = o->temperature;
    j->distill = o->distill;
    j->latency = (search_latency_options){ .batch = (int)o->batch, .time = { .rounds = (int)o->rounds } };
    j->importance.augment = recipe->augment;
    j->seed = (uint64_t)c->seed;
}

/* config.json: every value, those left to the network and the data as they turned out, and the hash of the
 * model file, so that another network is noticed. A file has no width: null. */
static bool describe(const cli_common *c, compress_options o, const train_recipe *recipe, const search_importance_options *importance, work *w, err *e)
{
    const nn_model *builder = nn_model_find(o.model);
    const nn_node *in = nn_input(w->base, 0);
    char hash[65] = "", input[64], size[48];
    snprintf(input, sizeof input, "%lld,%lld,%lld", (long long)in->dim[3], (long long)in->dim[1], (long long)in->dim[2]);
    snprintf(size, sizeof size, "%lld,%lld", (long long)in->dim[1], (long long)in->dim[2]);
    o.input = input;
    o.size = size;
    o.recipe = recipe->name;
    o.classes = data_classes(w->train);
    o.imp_train = importance->train_images;
    o.imp_score = importance->score_images;
    if (!o.width) o.width = builder ? builder->standard.width : (double)NAN;
    if (!builder && !file_sha256(o.model, hash, e)) return false;
    json_writer j = json_writer_on(&w->config, true);
    json_begin(&j, NULL, '{');
    cli_config(&j, &cmd_compress, c, &o);
    if (!builder) json_text(&j, "model_sha256", hash);
    json_end(&j, '}');
    return !w->config.failed || err_set(e, ERR_NOMEM, "no memory for config.json");
}

static bool print_outcome(const cli_common *c, const compress_options *o, const search_outcome *out, err *e)
{
    buf text = { 0 };
    char path[4096];
    bool ok = true;
    if (c->json) {
        snprintf(path, sizeof path, "%s/report.json", o->run);
        ok = file_read(path, &text, e);
    } else {
        search_report_table(out->row, 3, &text);
        buf_printf(&text, "measured speed-up %.2f (predicted %.2f) at batch %d on %d threads; %d entries searched\n",
                   out->speedup, out->predicted_speedup, out->batch, par_threads(), out->entries);
        buf_printf(&text, "latency table: base %.3f ms, budget %.3f ms; predicted ms is the table's at the pace of this measurement\n",
                   out->table_base_ms, out->budget_ms);
        buf_printf(&text, "merged = pruned: largest difference %.1e of the largest output, top-1 agreement %.2f %% on %lld images\n",
                   out->verdict.max_rel, 100 * out->verdict.agreement, (long long)out->verdict.n);
        buf_printf(&text, "%s/merged.safetensors  %s/report.html\n", o->run, o->run);
    }
    if (ok && text.failed) ok = err_set(e, ERR_NOMEM, "no memory for the report");
    if (ok) fputs(text.data, stdout);
    buf_free(&text);
    return ok;
}

static bool prepare(const cli_common *c, const compress_options *o, work *w, search_job *j, err *e)
{
    const train_recipe *recipe = train_recipe_for(o->recipe, NULL, false, e);      /* a mistyped one costs no time */
    j->importance = (search_importance_options){
        .epochs = o->imp_epochs, .lr = o->imp_lr, .batch = (int)o->train_batch, .train_images = o->imp_train,
        .score_images = o->imp_score, .scores = (int)o->scores, .keep_single = o->keep_single, .seed = (uint64_t)c->seed };
    while (strcmp(scores[j->importance.method], o->score)) j->importance.method++;
    if (!recipe || !check_numbers(o, j, e) || !open_inputs(c, o, &j->importance, w, e)) return false;
    recipe = train_recipe_for(o->recipe, w->base, false, e);
    fill_job(c, o, recipe, w, j);
    if (!describe(c, *o, recipe, &j->importance, w, e)) return false;
    j->config = w->config.data;
    return true;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const compress_options *o = opt;
    screen s = { .quiet = c->quiet };
    work w = { 0 };
    search_job j = { .progress = progress, .warn = warn, .ctx = &s };
    search_outcome out = { 0 };
    bool ok = prepare(c, o, &w, &j, e) && search_compress(&j, &out, e);
    if (s.stage[0]) cli_progress_end(&s.p);
    if (!ok && c->json && out.least_ms > 0)
        printf("{\"feasible\":false,\"budget_ms\":%.9g,\"least_ms\":%.9g}\n", out.budget_ms, out.least_ms);
    ok = ok && print_outcome(c, o, &out, e);
    nn_graph_free(w.base);
    data_free(w.val);
    data_free(w.train);
    buf_free(&w.config);
    return ok;
}

const cli_verb cmd_compress = {
    "compress", "the whole path: tables, search, pruning, fine-tuning, exact merge, measured result",
    options, CLI_COUNT(options), sizeof(compress_options), NULL, run,
};
