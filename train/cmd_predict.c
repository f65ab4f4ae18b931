/* layermerge predict: the likeliest classes of single images. */
#include "core/cli.h"
#include "train/parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct { const char *model, *input; int64_t top, classes; double width; } predict_options;

#define AT(member) offsetof(predict_options, member)
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), "!", NULL, "builder or model file" },
    CLI_BUILDER(predict_options),
    { "top", CLI_INT, AT(top), "5", "1:1000000", "classes to list per image" },
};

typedef struct { char *text; char **name; int n; } label_list;

/* The names that train left in the model file, one per line; none for other models. */
static bool read_labels(const char *model, int classes, label_list *l, err *e) {
    *l = (label_list){0};
    tensor_file f;
    if (nn_model_find(model)) return true;
    if (!tensor_file_open(&f, model, e)) return false;
    const char *text = tensor_file_meta(&f, "labels");
    bool ok = !text || ((l->text = mem_text(text, e))
                        && (l->name = mem_new((size_t)classes, sizeof *l->name, e)));
    tensor_file_close(&f);
    if (!ok || !text) return ok;
    for (char *s = l->text; s && l->n < classes; l->n++) {
        l->name[l->n] = s;
        s = strchr(s, '\n');
        if (s) *s++ = 0;
    }
    return true;
}

static void free_labels(label_list *l) {
    mem_free(l->text);
    mem_free(l->name);
}

typedef struct {
    const cli_common *c;
    nn_graph *g; nn_plan *plan;
    data_prep prep;
    label_list labels;
    int classes, top;
    int *rank;                   /* classes, likeliest first as far as top */
    json_writer json;
} work;

/* The `top` largest logits, ties to the lower class, to the front. */
static void sort_top(work *w, const float *logit) {
    for (int i = 0; i < w->classes; i++) w->rank[i] = i;
    for (int i = 0; i < w->top; i++) {
        int best = i;
        for (int k = i + 1; k < w->classes; k++) {
            float a = logit[w->rank[k]], b = logit[w->rank[best]];
            if (a > b || (a == b && w->rank[k] < w->rank[best])) best = k;
        }
        int swap = w->rank[i];
        w->rank[i] = w->rank[best];
        w->rank[best] = swap;
    }
}

static void show(work *w, const char *file, const float *logit) {
    double sum = 0, highest = (double)logit[w->rank[0]];
    for (int i = 0; i < w->classes; i++) sum += exp((double)logit[i] - highest);
    if (!w->c->json) printf("%s\n", file);
    json_begin(&w->json, NULL, '{');
    json_text(&w->json, "file", file);
    json_begin(&w->json, "top", '[');
    for (int i = 0; i < w->top; i++) {
        int k = w->rank[i];
        const char *name = k < w->labels.n ? w->labels.name[k] : NULL;
        double p = exp((double)logit[k] - highest) / sum;
        if (!w->c->json) printf("  %6.2f %%  %4d  %s\n", 100 * p, k, name ? name : "");
        json_begin(&w->json, NULL, '{');
        json_int(&w->json, "class", k);
        json_text(&w->json, "name", name);
        json_number(&w->json, "p", p);
        json_end(&w->json, '}');
    }
    json_end(&w->json, ']');
    json_end(&w->json, '}');
}

static bool predict(work *w, const char *file, err *e) {
    if (!data_load_file(file, &w->prep, nn_plan_input(w->plan, 0), e)) return false;
    nn_plan_forward(w->plan);
    const float *logit = nn_plan_output(w->plan);
    if (!vec_is_finite(w->classes, logit))
        return err_set(e, ERR_NONFINITE, "%s: the output of the network is not finite", file);
    sort_top(w, logit);
    show(w, file, logit);
    return true;
}

static bool set_up(work *w, const predict_options *o, err *e) {
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    if (!nn_build_input(&b, o->input, e)) return false;
    w->g = nn_model_open(o->model, &b, (uint64_t)w->c->seed, e);
    if (!w->g) return false;
    if (!w->g->prep[0]) return err_set(e, ERR_CONFIG, "%s does not say how images are prepared", o->model);
    const int64_t *d = w->g->node[w->g->output].dim;
    w->classes = (int)(d[1] * d[2] * d[3]);
    w->top = o->top < w->classes ? (int)o->top : w->classes;
    w->plan = nn_plan_new(w->g, NN_INFER, 1, e);
    return w->plan && (train_prep(w->g, NULL, &w->prep, e) || err_note(e, "%s", o->model))
        && read_labels(o->model, w->classes, &w->labels, e)
        && (w->rank = mem_new((size_t)w->classes, sizeof *w->rank, e));
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e) {
    if (!n_word) return err_set(e, ERR_USAGE, "predict needs image files");
    buf out = {0};
    work w = { .c = c, .json = json_writer_on(&out, false) };
    bool ok = set_up(&w, opt, e);
    json_begin(&w.json, NULL, '{');
    json_begin(&w.json, "predictions", '[');
    for (int i = 0; ok && i < n_word; i++)
        ok = stop_requested() ? err_set(e, ERR_STOPPED, "stopped before %s", word[i])
                              : predict(&w, word[i], e);
    json_end(&w.json, ']');
    json_end(&w.json, '}');
    ok = ok && (!out.failed || err_set(e, ERR_NOMEM, "out of memory"));
    if (ok && c->json) puts(out.data);
    buf_free(&out);
    free_labels(&w.labels);
    mem_free(w.rank);
    nn_plan_free(w.plan);
    nn_graph_free(w.g);
    return ok;
}

const cli_verb cmd_predict = {
    "predict", "the likeliest classes of images",
    options, CLI_COUNT(options), sizeof(predict_options), "IMAGE...", run,
};
