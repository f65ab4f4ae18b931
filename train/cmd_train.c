/* layermerge train: a model and data → a better model. A recipe gives the numbers, flags override. */
#include "core/cli.h"
#include "train/train.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Numbers of the recipe: name here, flag, member of train_recipe and its type, range, help. They are
 * read as text, so that a flag which is not given leaves the recipe's value. */
#define NUMBERS(X) \
    X(epochs, "epochs", epochs, double, 0, 1e6, "passes over the training images; may be fractional") \
    X(batch, "batch", batch, int, 1, 1 << 20, "images per step") \
    X(batch_size, "batch-size", batch, int, 1, 1 << 20, "the same as --batch") \
    X(lr, "lr", lr, double, 0, 1e38, "peak learning rate") \
    X(warmup, "warmup-epochs", warmup_epochs, double, 0, 1e6, "epochs of linear rise to it") \
    X(momentum, "momentum", momentum, double, 0, 0.999999, "of SGD; Adam's first beta") \
    X(decay, "weight-decay", weight_decay, double, 0, 1e6, "pull of the weights towards 0") \
    X(smoothing, "smoothing", smoothing, double, 0, 0.999, "label smoothing") \
    X(mixup, "mixup", augment.mixup, double, 0, 1e3, "mix images in pairs, Beta(a,a); 0: off") \
    X(cutmix, "cutmix", augment.cutmix, double, 0, 1e3, "exchange boxes in pairs, Beta(a,a); 0: off") \
    X(jitter, "color-jitter", augment.jitter, double, 0, 100, "brightness, contrast, saturation by 1 -+ this") \
    X(erase, "reprob", augment.erase, double, 0, 1, "probability of random erasing") \
    X(hflip, "hflip", augment.hflip, double, 0, 1, "probability of mirroring") \
    X(pad, "crop-pad", augment.pad, int, 0, 1024, "pad by so many pixels, crop back at random") \
    X(rrc, "rrc-min", augment.rrc_min, double, 0, 1, "random resized crop, least area; 0: off") \
    X(ema, "model-ema-decay", ema, double, 0, 0.99999999, "decay of that average (0.9998 with --model-ema)") \
    X(clip, "clip-grad", clip, double, 0, 1e9, "largest global gradient norm; 0: no limit") \
    X(kd, "kd-weight", kd, double, 0, 1, "share of distillation in the loss (0.3 with --distill)") \
    X(temperature, "kd-temperature", temperature, double, 1e-6, 1e6, "of the distillation loss")

typedef struct {
    const char *model, *data, *out, *run, *recipe, *opt, *sched, *aa, *distill, *input, *bad, *size,
        *pretrained, *map;
    int64_t limit, val_limit, classes, workers;
    double checkpoint_every, val_every, width;
    bool model_ema;
#define MEMBER(id, ...) const char *id;
    struct { NUMBERS(MEMBER) } number;
} train_options;

#define AT(member) offsetof(train_options, member)
#define OPTION(id, flag, member, type, lo, hi, help) { flag, CLI_TEXT, AT(number.id), NULL, NULL, help },
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), NULL, NULL, "model file, or builder such as resnet20" },
    { "data", CLI_TEXT, AT(data), "!", NULL, "data set: a folder, or builtin:shapes[,...]" },
    { "out", CLI_TEXT, AT(out), NULL, NULL, "trained model (RUN/model.safetensors with --run)" },
    { "run", CLI_TEXT, AT(run), NULL, NULL, "run folder: metrics, log, checkpoints; continues from them" },
    { "recipe", CLI_TEXT, AT(recipe), NULL, NULL, "row of numbers to start from (by input size and start)" },
    { "model-ema", CLI_FLAG, AT(model_ema), NULL, NULL, "keep a moving average of the weights as the model" },
    NUMBERS(OPTION)
    { "opt", CLI_CHOICE, AT(opt), NULL, "sgd|adam|adamw", "optimiser" },
    { "sched", CLI_CHOICE, AT(sched), NULL, "cosine|step|constant", "learning rate schedule" },
    { "pretrained", CLI_TEXT, AT(pretrained), NULL, NULL,
      "weights to start from, for any classes; a model file needs no --model" },
    { "map", CLI_TEXT, AT(map), NULL, NULL,
      "1000to:FILE: of 1000 pretrained classes keep those that FILE lists, one number per line" },
    { "aa", CLI_TEXT, AT(aa), NULL, NULL, "RandAugment, as rand-m9-n2-mstd0.5; none: off" },
    { "distill", CLI_TEXT, AT(distill), NULL, NULL, "teacher: a model file" },
    CLI_BUILDER(train_options),
    { "limit", CLI_INT, AT(limit), "0", "0:", "class-balanced part of the training images; 0: all" },
    { "val-limit", CLI_INT, AT(val_limit), "0", "0:", "the same for validation" },
    { "val-every", CLI_NUMBER, AT(val_every), "1", "0:", "epochs between validations; 0: only at the end" },
    { "size", CLI_TEXT, AT(size), NULL, NULL, "side of the images the network gets: N or H,W" },
    CLI_BAD_IMAGES(train_options),
    { "checkpoint-every", CLI_NUMBER, AT(checkpoint_every), "30", "0.001:", "seconds between checkpoints" },
    { "workers", CLI_INT, AT(workers), "1", "1:256", "threads that prepare images" },
};

/* ---- the recipe ---------------------------------------------------------------------------------- */

typedef struct {
    const char *flag;
    size_t text, value;          /* offsets in train_options and train_recipe */
    bool whole;
    double lo, hi;
} number_row;
#define IS_int true
#define IS_double false
#define NUMBER_ROW(id, flag, member, type, lo, hi, help) \
    { flag, AT(number.id), offsetof(train_recipe, member), IS_##type, lo, hi },
static const number_row numbers[] = { NUMBERS(NUMBER_ROW) };

static bool override(const number_row *row, const char *text, train_recipe *r, err *e) {
    double v;
    int n;
    if (!cli_numbers(row->flag, text, &v, 1, &n, e)) return false;
    if (v < row->lo || v > row->hi)
        return err_set(e, ERR_USAGE, "--%s %s: a value from %g to %g is wanted", row->flag, text, row->lo,
                       row->hi);
    if (row->whole && v != floor(v))
        return err_set(e, ERR_USAGE, "--%s %s: a whole number is wanted", row->flag, text);
    char *at = (char *)r + row->value;
    if (row->whole) *(int *)(void *)at = (int)v;
    else *(double *)(void *)at = v;
    return true;
}

static const char *const opt_names[] = { "sgd", "adam", "adamw" };
static const char *const sched_names[] = { "cosine", "step", "constant" };

static int index_of(const char *word, const char *const *list) {
    int i = 0;
    while (strcmp(word, list[i])) i++;        /* a CLI_CHOICE is one of them */
    return i;
}

/* Flags are refused before the data is opened, with g NULL; what is left to the network is known after. */
static bool resolve(const train_options *o, const nn_graph *g, train_recipe *r, err *e) {
    bool trained = o->pretrained || !o->model || !nn_model_find(o->model);
    const train_recipe *row = train_recipe_for(o->recipe, g, trained, e);
    if (!row) return false;
    *r = *row;
    if (o->distill && r->kd <= 0) r->kd = 0.3;   /* Kim et al. 2023 */
    if (o->model_ema && r->ema <= 0) r->ema = 0.9998;   /* timm's */
    for (int i = 0; i < CLI_COUNT(numbers); i++) {
        const char *text = *(const char *const *)(const void *)((const char *)o + numbers[i].text);
        if (text && !override(&numbers[i], text, r, e)) return false;
    }
    if (o->number.epochs && !o->number.warmup) train_recipe_shorten(r, r->epochs);
    if (o->aa && !data_randaug_parse(&r->augment.aa, o->aa, e)) return false;
    if (o->opt) r->opt = (train_opt)index_of(o->opt, opt_names);
    if (o->sched) r->sched = (train_sched)index_of(o->sched, sched_names);
    if (r->kd > 0 && !o->distill)
        return err_set(e, ERR_USAGE, "--kd-weight %g needs --distill TEACHER", r->kd);
    if (r->ema > 0 && !o->model_ema)
        return err_set(e, ERR_USAGE, "--model-ema-decay %g needs --model-ema", r->ema);
    return true;
}

static void recipe_json(json_writer *w, const train_recipe *r) {
    json_begin(w, "recipe", '{');
    json_text(w, "name", r->name);
    for (int i = 0; i < CLI_COUNT(numbers); i++) {
        const char *at = (const char *)r + numbers[i].value;
        if (!strcmp(numbers[i].flag, "batch-size")) continue;
        if (numbers[i].whole) json_int(w, numbers[i].flag, *(const int *)(const void *)at);
        else json_number(w, numbers[i].flag, *(const double *)(const void *)at);
    }
    char aa[128];
    data_randaug_print(&r->augment.aa, aa);
    json_bool(w, "model-ema", r->ema > 0);
    json_text(w, "aa", aa);
    json_text(w, "opt", opt_names[r->opt]);
    json_text(w, "sched", sched_names[r->sched]);
    json_number(w, "beta2", r->beta2);
    json_number(w, "opt-eps", r->opt_eps);
    json_bool(w, "nesterov", r->nesterov);
    json_bool(w, "decay-all", r->decay_all);
    json_end(w, '}');
}

/* ---- what a run works on --------------------------------------------------------------------------- */

typedef struct {
    const cli_common *c;
    const train_options *o;
    train_recipe recipe;
    data_set *train, *val;
    nn_graph *g, *teacher;
    char parent[65], out[4096];  /* hash of the file the weights are from, "" for a builder */
    buf config, transferred;     /* transferred: what --pretrained gave */
    size_t outcome;              /* where in config that which decides the outcome begins */
    cli_progress progress;
    int room;                    /* held on the disk for the model, or -1 */
} work;

static bool open_data(work *w, err *e) {
    data_options d = { .limit = w->o->limit, .fail_on_bad = !strcmp(w->o->bad, "fail"),
                       .seed = (uint64_t)w->c->seed };
    if (!data_size_parse(&d, w->o->size, e) || !(w->train = data_open(w->o->data, "train", &d, e)))
        return false;
    d.limit = w->o->val_limit;
    return (w->val = data_open(w->o->data, "val", &d, e)) != NULL;
}

static bool open_student(work *w, err *e) {
    const train_options *o = w->o;
    uint64_t seed = (uint64_t)w->c->seed;
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    if (!nn_build_input(&b, o->input, e)) return false;
    if (o->pretrained)
        w->g = train_open_pretrained(o->model, o->pretrained, o->map, &b, w->train, seed, &w->transferred, e);
    else w->g = train_open_model(o->model, &b, w->train, seed, e);
    if (!w->g) return false;
    const char *from = o->pretrained ? o->pretrained : nn_model_find(o->model) ? NULL : o->model;
    return !from || file_sha256(from, w->parent, e);
}

static bool open_models(work *w, err *e) {
    if (!open_student(w, e)) return false;
    if (!w->o->distill) return true;
    w->teacher = train_open_model(w->o->distill, &(nn_build){0}, w->train, (uint64_t)w->c->seed, e);
    return w->teacher || err_note(e, "--distill");
}

/* Where the model goes; its folder is made now rather than missed after hours. */
static bool settle_out(work *w, err *e) {
    const train_options *o = w->o;
    if (!o->model && !o->pretrained)
        return err_set(e, ERR_USAGE, "train needs --model: a model file or a builder such as resnet20 "
                       "(or --pretrained FILE)");
    if (o->map && !o->pretrained) return err_set(e, ERR_USAGE, "--map %s needs --pretrained FILE", o->map);
    if (!o->out && !o->run) return err_set(e, ERR_USAGE, "train needs --out FILE or --run DIR");
    int n = o->out ? snprintf(w->out, sizeof w->out, "%s", o->out)
                   : snprintf(w->out, sizeof w->out, "%s/model.safetensors", o->run);
    if (n >= (int)sizeof w->out) return err_set(e, ERR_USAGE, "the path of --out is too long");
    if (file_is_dir(w->out)) return err_set(e, ERR_USAGE, "--out %s is a folder", w->out);
    char *slash = strrchr(w->out, '/');
    if (!slash || slash == w->out) return true;
    *slash = 0;
    bool ok = file_make_dirs(w->out, e);
    *slash = '/';
    return ok;
}

/* The builder's own width where none is asked for; a file's network has no width. */
static double width_of(const train_options *o) {
    const nn_model *m = o->model ? nn_model_find(o->model) : NULL;
    return m && o->width == 0 ? m->standard.width : o->width;
}

/* What decides the outcome. */
static void outcome_json(json_writer *j, const work *w) {
    const train_options *o = w->o;
    const int *in = nn_input(w->g, 0)->attr.size;
    char size[32], input[48];
    snprintf(size, sizeof size, "%d,%d", in[0], in[1]);
    snprintf(input, sizeof input, "%d,%s", in[2], size);
    json_text(j, "model", o->model);
    json_text(j, "model-sha256", w->parent[0] && !o->pretrained ? w->parent : NULL);
    json_text(j, "pretrained", o->pretrained);
    json_text(j, "pretrained-sha256", o->pretrained ? w->parent : NULL);
    json_text(j, "map", o->map);
    json_text(j, "data", o->data);
    json_int(j, "train-images", data_count(w->train));
    json_int(j, "val-images", data_count(w->val));
    json_int(j, "limit", data_count(w->train));
    json_int(j, "val-limit", data_count(w->val));
    json_int(j, "classes", data_classes(w->train));
    json_text(j, "input", input);
    json_text(j, "size", size);
    json_text(j, "prep", w->g->prep);
    json_number(j, "width", width_of(o));
    json_text(j, "distill", o->distill);
    json_text(j, "on-bad-image", o->bad);
    json_number(j, "val-every", o->val_every);
    json_int(j, "seed", w->c->seed);
    json_text(j, "isa", isa_names[core_isa()]);
    json_text(j, "conv", core_conv_road());
    json_bool(j, "exact", core_exact());
    recipe_json(j, &w->recipe);
}

/* Every value, resolved. From w->outcome on the text is the job's identity: what comes before it may
 * differ when a run is continued (run.c). */
static bool describe(work *w, err *e) {
    json_writer j = json_writer_on(&w->config, true);
    json_begin(&j, NULL, '{');
    json_text(&j, "verb", "train");
    json_text(&j, "run", w->o->run);
    json_text(&j, "out", w->out);
    json_number(&j, "checkpoint-every", w->o->checkpoint_every);
    json_int(&j, "workers", w->o->workers);
    json_int(&j, "threads", par_threads());
    json_bool(&j, "json", w->c->json);
    json_bool(&j, "quiet", w->c->quiet);
    w->outcome = w->config.len;
    outcome_json(&j, w);
    json_end(&j, '}');
    return !w->config.failed || err_set(e, ERR_NOMEM, "out of memory");
}

/* ---- progress ---------------------------------------------------------------------------------------- */

static void tick(void *ctx, const train_tick *t) {
    work *w = ctx;
    char note[160];
    if (!w->progress.what) {                  /* as if the steps of earlier runs had just been made */
        w->progress = cli_progress_start("step", t->steps, w->c->quiet);
        double each_s = t->images_per_s > 0 ? w->recipe.batch / t->images_per_s : 0;
        w->progress.start_ns -= (int64_t)((double)t->step * each_s * 1e9);
    }
    snprintf(note, sizeof note, "epoch %.2f  lr %.4g  loss %.4f  %.0f images/s", t->epoch, t->lr, t->loss,
             t->images_per_s);
    cli_progress_at(&w->progress, t->step, note);
}

static void say(void *ctx, const char *text) {
    work *w = ctx;
    if (w->c->quiet) return;
    cli_progress_end(&w->progress);
    fprintf(stderr, "%s\n", text);
}

/* ---- the end ------------------------------------------------------------------------------------------- */

/* A disk that fills up while we train must not cost the model. */
static bool hold_room(work *w, err *e) {
    int64_t bytes = 1 << 16;     /* for the text of the graph and the names */
    for (int i = 0; i < w->g->n_param; i++) bytes += 4 * nn_param_count(&w->g->param[i]) + 256;
    return file_hold_room(w->out, bytes, &w->room, e);
}

static void release_room(work *w) {
    if (w->room >= 0) close(w->room);
    w->room = -1;
}

/* No times and no paths: the same job makes the same file. */
static bool write_model(work *w, const train_result *r, err *e) {
    char seed[32], steps[32];
    snprintf(seed, sizeof seed, "%lld", (long long)w->c->seed);
    snprintf(steps, sizeof steps, "%lld", (long long)r->steps);
    buf labels = {0};
    for (int i = 0; i < data_classes(w->train); i++)
        buf_printf(&labels, "%s%s", i ? "\n" : "", data_class_name(w->train, i));
    nn_meta meta[] = {
        { "recipe", w->recipe.name }, { "seed", seed }, { "steps", steps },
        { "labels", labels.data }, { "parent", w->parent },
    };
    release_room(w);
    bool ok = (!labels.failed || err_set(e, ERR_NOMEM, "out of memory"))
           && nn_model_save(w->g, w->out, meta, CLI_COUNT(meta), e);
    buf_free(&labels);
    if (ok || e->code != ERR_IO || !w->o->run) return ok;
    const err why = *e;
    return err_set(e, ERR_IO, "%s; nothing is lost: make room and run the same command again, %s has the weights",
                   why.msg, w->o->run);
}

static bool print_result(const work *w, const train_result *r, err *e) {
    const eval_result *v = &r->val;
    if (!w->c->json) {
        printf("%s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f on %lld images\n", w->out, v->top1, v->top5,
               v->loss, (long long)v->n);
        return true;
    }
    buf b = {0};
    json_writer j = json_writer_on(&b, false);
    json_begin(&j, NULL, '{');
    json_int(&j, "n", v->n);
    json_number(&j, "top1", v->top1);
    json_number(&j, "top5", v->top5);
    json_number(&j, "loss", v->loss);
    json_number(&j, "train_loss", r->train_loss);
    json_number(&j, "epochs", w->recipe.epochs);
    json_int(&j, "steps", r->steps);
    json_number(&j, "images_per_s", r->images_per_s);
    json_text(&j, "out", w->out);
    if (w->o->pretrained) json_text(&j, "pretrained", w->transferred.data);
    json_end(&j, '}');
    if (!b.failed) puts(b.data);
    bool ok = !b.failed || err_set(e, ERR_NOMEM, "out of memory");
    buf_free(&b);
    return ok;
}

static bool train_and_write(work *w, err *e) {
    train_result r;
    train_job job = {
        .g = w->g, .teacher = w->teacher, .train = w->train, .val = w->val, .recipe = w->recipe,
        .seed = (uint64_t)w->c->seed, .loader_workers = (int)w->o->workers, .val_every = w->o->val_every,
        .run_dir = w->o->run, .checkpoint_s = w->o->checkpoint_every, .identity = w->config.data + w->outcome,
        .tick = tick, .note = say, .ctx = w,
    };
    if (w->o->pretrained) say(w, w->transferred.data);
    bool ok = train_run(&job, &r, e);
    if (w->progress.what) cli_progress_end(&w->progress);
    return ok && write_model(w, &r, e) && print_result(w, &r, e);
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e) {
    (void)n_word, (void)word;
    work w = { .c = c, .o = opt, .room = -1 };
    bool ok = resolve(w.o, NULL, &w.recipe, e) && settle_out(&w, e) && open_data(&w, e) && open_models(&w, e)
           && resolve(w.o, w.g, &w.recipe, e) && describe(&w, e) && (!w.o->run || run_dir_open(w.o->run, w.config.data, e))
           && hold_room(&w, e) && train_and_write(&w, e);
    release_room(&w);
    nn_graph_free(w.g);
    nn_graph_free(w.teacher);
    data_free(w.train);
    data_free(w.val);
    buf_free(&w.config);
    buf_free(&w.transferred);
    return ok;
}

const cli_verb cmd_train = {
    "train", "train or fine-tune a model; the same command continues an unfinished run",
    options, CLI_COUNT(options), sizeof(train_options), NULL, run,
};
