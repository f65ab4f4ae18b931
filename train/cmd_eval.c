/* layermerge eval: accuracy and loss of a model on data. */
#include "core/cli.h"
#include "train/train.h"

#include <math.h>
#include <stdio.h>

typedef struct {
    const char *model, *data, *split, *predictions, *bad, *size, *map, *input;
    int64_t limit, batch, classes;
    double crop_pct, width;
} eval_options;

#define AT(member) offsetof(eval_options, member)
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), "!", NULL, "builder or model file" },
    CLI_BUILDER(eval_options),
    { "data", CLI_TEXT, AT(data), "!", NULL, "data set: a folder, or builtin:shapes[,...]" },
    { "split", CLI_CHOICE, AT(split), "val", "train|val", "which images" },
    { "limit", CLI_INT, AT(limit), "0", "0:", "class-balanced part of them; 0: all" },
    { "batch", CLI_INT, AT(batch), "0", "0:1048576", "images at a time; 0: by their size" },
    { "predictions", CLI_TEXT, AT(predictions), NULL, NULL, "write index,label,pred (CSV)" },
    { "map", CLI_TEXT, AT(map), NULL, NULL, "1000to:FILE: the network's class of each of the data's, one number per line" },
    { "size", CLI_TEXT, AT(size), NULL, NULL, "side of the images the network gets: N or H,W" },
    { "crop-pct", CLI_NUMBER, AT(crop_pct), NULL, "0.05:1", "share of the resized side that the crop keeps (the model's own, unless given)" },
    CLI_BAD_IMAGES(eval_options),
};

/* Images are resized so that the crop keeps this share of their shorter side. */
static bool set_crop(nn_graph *g, double share, err *e) {
    data_prep p;
    if (share == 0) return true;
    if (!data_prep_parse(&p, g->prep, e)) return false;
    p.resize = (int)lround((p.h > p.w ? p.h : p.w) / share);
    data_prep_print(&p, g->prep);
    return true;
}

static bool write_predictions(const char *path, const data_set *s, const int32_t *pred, err *e) {
    buf b = {0};
    buf_puts(&b, "index,label,pred\n");
    for (int64_t i = 0; i < data_count(s); i++)
        if (pred[i] >= 0)
            buf_printf(&b, "%lld,%d,%d\n", (long long)data_number(s, i), data_label(s, i), (int)pred[i]);
    bool ok = (!b.failed || err_set(e, ERR_NOMEM, "out of memory")) && file_write(path, b.data, b.len, e);
    buf_free(&b);
    return ok;
}

static bool print_result(const cli_common *c, const eval_result *r, err *e) {
    double speed = (double)r->n / r->seconds;
    if (!c->json) {
        printf("top-1 %.2f %%, top-5 %.2f %%, loss %.4f on %lld images, %.0f images/s\n", r->top1, r->top5,
               r->loss, (long long)r->n, speed);
        return true;
    }
    buf b = {0};
    json_writer j = json_writer_on(&b, false);
    json_begin(&j, NULL, '{');
    json_int(&j, "n", r->n);
    json_number(&j, "top1", r->top1);
    json_number(&j, "top5", r->top5);
    json_number(&j, "loss", r->loss);
    json_number(&j, "images_per_s", speed);
    json_end(&j, '}');
    if (!b.failed) puts(b.data);
    bool ok = !b.failed || err_set(e, ERR_NOMEM, "out of memory");
    buf_free(&b);
    return ok;
}

static void tell_bad(const cli_common *c, const data_set *s) {
    buf b = {0};
    if (!c->quiet && data_bad_text(s, &b) && !b.failed) fprintf(stderr, "%s\n", b.data);
    buf_free(&b);
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e) {
    (void)n_word, (void)word;
    const eval_options *o = opt;
    data_options d = { .limit = o->limit, .fail_on_bad = o->bad[0] == 'f', .seed = (uint64_t)c->seed };
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    const char *file = nn_model_find(o->model) ? NULL : o->model;
    bool may = nn_build_input(&b, o->input, e) && data_size_parse(&d, o->size, e)
            && file_differ("--predictions", o->predictions, "--model", file, e)
            && (!o->predictions || file_may_write(o->predictions, e));
    data_set *s = may ? data_open(o->data, o->split, &d, e) : NULL;
    bool named = s && (!o->map || train_relabel(s, o->map, e));
    nn_graph *g = named ? train_open_model(o->model, &b, s, (uint64_t)c->seed, e) : NULL;
    int32_t *pred = g ? mem_new((size_t)data_count(s), sizeof *pred, e) : NULL;
    eval_result r;
    bool ok = pred && set_crop(g, o->crop_pct, e) && eval_run(g, s, NULL, 0, (int)o->batch, &r, pred, e);
    if (!ok && e->code == ERR_NONFINITE) err_note(e, "%s", o->model);
    if (ok) tell_bad(c, s);
    ok = ok && (!o->predictions || write_predictions(o->predictions, s, pred, e)) && print_result(c, &r, e);
    mem_free(pred);
    nn_graph_free(g);
    data_free(s);
    return ok;
}

const cli_verb cmd_eval = {
    "eval", "accuracy and loss of a model on data",
    options, CLI_COUNT(options), sizeof(eval_options), NULL, run,
};
