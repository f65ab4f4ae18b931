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
    { "recipe", CLI_TEXT, AT(recipe), "cifar-resnet", NULL, "recipe that trains a builder; its augmentation is used throughout" },
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

typedef struct { cli_progress p; char stage[32]; bool quiet; const cli_common *c; const compress_options *o; } screen;

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

static bool fill_job(const cli_common *c, const compress_options *o, search_job *j, err *e)
{
    const train_recipe *recipe = train_recipe_find(o->recipe);
    if (!recipe) return err_set(e, ERR_USAGE, "--recipe %s is not known", o->recipe);
    if (!o->budget == !(o->speedup > 0)) return err_set(e, ERR_USAGE, "give either --speedup X or --budget MS");
    if (o->budget && !search_parse_ms(o->budget, false, &j->budget_ns))
        return err_set(e, ERR_USAGE, "--budget %s is not a number of milliseconds", o->budget);
    j->model = o->model;
    j->data = o->data;
    j->run_dir = o->run;
    j->speedup = o->speedup;
    j->method = search_method_find(o->method);
    j->identity = o->identity || !strcmp(o->method, "layeronly");     /* it removes nothing else */
    j->build = (nn_build){ .classes = (int)o->classes, .width = o->width };
    j->base = *recipe;
    j->base.epochs = o->train_epochs;
    j->base.lr = o->train_lr;
    j->base.batch = (int)o->train_batch;
    j->tune = *train_recipe_find("finetune");
    j->tune.augment = recipe->augment;
    j->tune.epochs = o->epochs;
    j->tune.lr = o->lr;
    j->tune.batch = (int)o->train_batch;
    j->tune.smoothing = o->smoothing;
    j->tune.kd = o->distill ? o->kd : 0;
    j->tune.temperature = o->temperature;
    j->distill = o->distill;
    j->latency = (search_latency_options){ .batch = (int)o->batch, .time = { .rounds = (int)o->rounds } };
    j->importance = (search_importance_options){
        .augment = recipe->augment, .epochs = o->imp_epochs, .lr = o->imp_lr, .batch = (int)o->train_batch, .train_images = o->imp_train,
        .score_images = o->imp_score, .scores = (int)o->scores, .keep_single = o->keep_single, .seed = (uint64_t)c->seed };
    while (strcmp(scores[j->importance.method], o->score)) j->importance.method++;
    j->train_data = (data_options){ .limit = o->limit, .fail_on_bad = !strcmp(o->bad, "fail"), .seed = (uint64_t)c->seed };
    if (!data_size_parse(&j->train_data, o->size, e)) return false;
    j->val_data = j->train_data;
    j->val_data.limit = o->val_limit;
    j->seed = (uint64_t)c->seed;
    return nn_build_input(&j->build, o->input, e);
}

/* config.json: every value, those left to the network and the data as they turned out, and the hash of the
 * model file, so that another network is noticed. A file has no width: null. */
static bool describe(void *ctx, const nn_graph *base, const data_set *train, const search_importance_options *importance, buf *config, err *e)
{
    const screen *s = ctx;
    compress_options o = *s->o;
    const nn_model *builder = nn_model_find(o.model);
    const nn_node *in = nn_input(base, 0);
    char hash[65] = "", input[64], size[48];
    snprintf(input, sizeof input, "%lld,%lld,%lld", (long long)in->dim[3], (long long)in->dim[1], (long long)in->dim[2]);
    snprintf(size, sizeof size, "%lld,%lld", (long long)in->dim[1], (long long)in->dim[2]);
    o.input = input;
    o.size = size;
    o.classes = data_classes(train);
    o.imp_train = importance->train_images;
    o.imp_score = importance->score_images;
    if (!o.width) o.width = builder ? builder->standard.width : (double)NAN;
    if (!builder && !file_sha256(o.model, hash, e)) return false;
    json_writer w = json_writer_on(config, true);
    json_begin(&w, NULL, '{');
    cli_config(&w, &cmd_compress, s->c, &o);
    if (!builder) json_text(&w, "model_sha256", hash);
    json_end(&w, '}');
    return true;
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

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const compress_options *o = opt;
    screen s = { .quiet = c->quiet, .c = c, .o = o };
    search_job j = { .describe = describe, .progress = progress, .warn = warn, .ctx = &s };
    search_outcome out = { 0 };
    bool ok = fill_job(c, o, &j, e) && search_compress(&j, &out, e);
    if (s.stage[0]) cli_progress_end(&s.p);
    if (!ok && c->json && out.least_ms > 0)
        printf("{\"feasible\":false,\"budget_ms\":%.9g,\"least_ms\":%.9g}\n", out.budget_ms, out.least_ms);
    return ok && print_outcome(c, o, &out, e);
}

const cli_verb cmd_compress = {
    "compress", "the whole path: tables, search, pruning, fine-tuning, exact merge, measured result",
    options, CLI_COUNT(options), sizeof(compress_options), NULL, run,
};
