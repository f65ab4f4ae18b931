/* A job: is it possible, and which one is it? */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "train/parts.h"

/* The numbers of a recipe with their ranges; `open` means that hi itself is out. */
typedef struct { const char *name; size_t offset; double lo, hi; bool open; } number_row;
#define ROW(name, lo, hi, open) { #name, offsetof(train_recipe, name), lo, hi, open }
static const number_row numbers[] = {
    ROW(epochs, 0, 1e6, false),         ROW(lr, 0, HUGE_VAL, true),
    ROW(momentum, 0, 1, true),          ROW(beta2, 0, 1, true),
    ROW(opt_eps, 0, 1, false),          ROW(weight_decay, 0, HUGE_VAL, true),
    ROW(warmup_epochs, 0, 1e6, false),  ROW(smoothing, 0, 1, true),
    ROW(ema, 0, 1, true),               ROW(clip, 0, HUGE_VAL, true),
    ROW(kd, 0, 1, false),               ROW(temperature, 0, HUGE_VAL, true),
    ROW(augment.rrc_min, 0, 1, false),  ROW(augment.hflip, 0, 1, false),
    ROW(augment.mixup, 0, HUGE_VAL, true), ROW(augment.erase, 0, 1, false),
    ROW(augment.cutmix, 0, HUGE_VAL, true), ROW(augment.jitter, 0, 100, false),
    ROW(augment.aa.n, 0, 100, false),   ROW(augment.aa.m, 0, 1e3, false),
    ROW(augment.aa.mstd, 0, 1e6, false), ROW(augment.aa.mmax, 0, 10, false),
    ROW(augment.aa.inc, 0, 1, false),   ROW(augment.aa.p, 0, 1, false),
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static double number_of(const train_recipe *r, const number_row *row) {
    return *(const double *)(const void *)((const char *)r + row->offset);
}

static bool check_recipe(const train_recipe *r, err *e) {
    for (int i = 0; i < NUMBERS; i++) {
        const number_row *row = &numbers[i];
        double v = number_of(r, row);
        if (!(v >= row->lo) || v > row->hi || (row->open && v == row->hi))
            return err_set(e, ERR_CONFIG, "%s is %g, which is outside %g ... %g", row->name, v, row->lo,
                           row->hi);
    }
    if (r->batch < 1 || r->batch > 1 << 20)
        return err_set(e, ERR_CONFIG, "a batch of %d images is impossible", r->batch);
    if (r->augment.pad < 0 || r->augment.pad > 1024)
        return err_set(e, ERR_CONFIG, "cannot pad images by %d", r->augment.pad);
    return true;
}

static bool check_teacher(const train_job *job, err *e) {
    data_prep student, teacher;
    char a[256], b[256];
    if (!job->teacher)
        return err_set(e, ERR_CONFIG, "distillation with weight %g needs a teacher", job->recipe.kd);
    if (job->recipe.temperature <= 0)
        return err_set(e, ERR_CONFIG, "distillation needs a temperature above 0");
    if (!train_classes_match(job->teacher, job->train, e)
        || !train_prep(job->teacher, job->train, &teacher, e)) return err_note(e, "teacher");
    if (!train_prep(job->g, job->train, &student, e)) return false;
    data_prep_print(&student, a);
    data_prep_print(&teacher, b);
    return !strcmp(a, b)
        || err_set(e, ERR_CONFIG, "the teacher wants images as \"%s\", the network as \"%s\"", b, a);
}

bool job_check(const train_job *job, err *e) {
    data_prep prep;
    int64_t n = job->index ? job->n : data_count(job->train);
    if (!check_recipe(&job->recipe, e) || !train_classes_match(job->g, job->train, e)
        || !train_prep(job->g, job->train, &prep, e)) return false;
    if (n < job->recipe.batch)
        return err_set(e, ERR_CONFIG, "there are %lld training images, less than one batch of %d",
                       (long long)n, job->recipe.batch);
    if (job->val && data_classes(job->val) != data_classes(job->train))
        return err_set(e, ERR_CONFIG, "the training data has %d classes, the validation data %d",
                       data_classes(job->train), data_classes(job->val));
    return job->recipe.kd <= 0 || check_teacher(job, e);
}

/* ---- identity ------------------------------------------------------------------------------------ */

static void add_graph(sha256 *h, const nn_graph *g, const buf *text) {
    sha256_add(h, text->data, text->len);
    sha256_add(h, g->prep, strlen(g->prep));
    for (int i = 0; i < g->n_param; i++)
        sha256_add(h, g->param[i].x, (size_t)nn_param_count(&g->param[i]) * sizeof(float));
}

static bool hash_graph(sha256 *h, const nn_graph *g, err *e) {
    buf text = {0};
    nn_graph_print(g, &text);
    bool ok = !text.failed || err_set(e, ERR_NOMEM, "out of memory");
    if (ok) add_graph(h, g, &text);
    buf_free(&text);
    return ok;
}

static void hash_images(sha256 *h, const data_set *s, const int32_t *index, int64_t n) {
    int64_t head[3] = { data_count(s), data_classes(s), index ? n : -1 };
    sha256_add(h, head, sizeof head);
    if (index) sha256_add(h, index, (size_t)n * sizeof *index);
}

bool job_hash(const train_job *job, char out[65], err *e) {
    const train_recipe *r = &job->recipe;
    sha256 h;
    sha256_init(&h);
    if (job->identity) sha256_add(&h, job->identity, strlen(job->identity));
    for (int i = 0; i < NUMBERS; i++) {
        double v = number_of(r, &numbers[i]);
        sha256_add(&h, &v, sizeof v);
    }
    int64_t rest[] = { r->batch, r->opt, r->nesterov, r->decay_all, r->sched, r->augment.pad,
                       (int64_t)job->seed };
    sha256_add(&h, rest, sizeof rest);
    hash_images(&h, job->train, job->index, job->n);
    if (job->val) hash_images(&h, job->val, job->val_index, job->n_val);
    if (!hash_graph(&h, job->g, e)) return false;
    if (r->kd > 0 && !hash_graph(&h, job->teacher, e)) return false;
    sha256_hex(&h, out);
    return true;
}
