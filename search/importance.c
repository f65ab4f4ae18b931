/* The importance table (ALGORITHM 4): for each entry, the network in which only that entry replaced its
 * segment is briefly fine-tuned and scored on other training images. One row = one part file, written
 * atomically and skipped when valid, so a run can be stopped, continued, or shared by processes.
 *
 * Every entry sees the same images in the same order with the same augmentation (common random
 * numbers), so differences between entries are differences of the networks. */
#include "search/search.h"

#include "core/io.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const char part_header[] = "id,st,end,ker,str,is_dw,conv_comb,train_loss,train_acc,val_loss,val_acc,val_acc_se,"
                                  "steps,seed,hash\n";

typedef struct { double loss, acc; } score;
typedef struct {                 /* what all entries of one run share */
    const search_chain *c;
    const search_table *t;
    const data_set *set;
    const search_importance_options *o;
    const char *dir;
    int32_t *tune, *held;        /* image numbers: fine-tuning, scoring; disjoint */
    int64_t n_tune, n_held;
    nn_graph *base;              /* the pretrained network */
    score base_tune, base_held;
    char hash[65];               /* of weights, images and settings */
} job;

/* Running statistics forget a tenth per step. After fewer steps than these more than 0.5 % of them still
 * belongs to the network before its segment was replaced, and a score would tell of that instead of what
 * was lost: they are estimated anew (2.3). */
enum { SETTLED_STEPS = 50 };

/* ---- what must be equal for two parts to belong together ------------------------------------------------ */

static void hash_images(sha256 *s, const data_set *set, const int32_t *index, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int label = data_label(set, index[i]);
        sha256_add(s, data_name(set, index[i]), strlen(data_name(set, index[i])) + 1);
        sha256_add(s, &label, sizeof label);
    }
}

static bool hash_job(job *j, err *e)
{
    sha256 s;
    buf text = { 0 };
    const search_importance_options *o = j->o;
    sha256_init(&s);
    nn_graph_print(j->c->g, &text);
    buf_printf(&text, "method %d epochs %.17g lr %.17g batch %d scores %d keep_single %d settled %d seed %llu augment %d %.17g %.17g"
               " %.17g %.17g\n", (int)o->method, o->epochs, o->lr, o->batch, o->scores, o->keep_single, SETTLED_STEPS,
               (unsigned long long)o->seed, o->augment.pad, o->augment.rrc_min, o->augment.hflip, o->augment.mixup, o->augment.erase);
    if (o->augment.aa.n > 0 || o->augment.jitter > 0 || o->augment.cutmix > 0) {
        char aa[128];
        data_randaug_print(&o->augment.aa, aa);
        buf_printf(&text, "aa %s jitter %.17g cutmix %.17g\n", aa, o->augment.jitter, o->augment.cutmix);
    }
    bool ok = !text.failed || err_set(e, ERR_NOMEM, "no memory to describe the importance run");
    if (ok) sha256_add(&s, text.data, text.len);
    for (int p = 0; ok && p < j->c->g->n_param; p++)
        sha256_add(&s, j->c->g->param[p].x, (size_t)nn_param_count(&j->c->g->param[p]) * sizeof(float));
    if (ok) {
        hash_images(&s, j->set, j->tune, j->n_tune);
        hash_images(&s, j->set, j->held, j->n_held);
        sha256_hex(&s, j->hash);
        j->hash[16] = 0;                                 /* 64 bits are enough to tell runs apart */
    }
    buf_free(&text);
    return ok;
}

/* ---- scoring one network ------------------------------------------------------------------------------------ */

static bool evaluate(nn_graph *g, const job *j, const int32_t *index, int64_t n, score *out, err *e)
{
    eval_result r;
    if (!eval_run(g, j->set, index, n, 0, &r, NULL, e)) return false;
    *out = (score){ r.loss, r.top1 };
    return true;
}

/* Training images are scored too, on as many as are held out: the table's train_loss and train_acc. */
static int64_t n_train_score(const job *j) { return j->n_tune < j->n_held ? j->n_tune : j->n_held; }

static bool tune_network(nn_graph *g, const job *j, uint64_t seed, int64_t *steps, err *e)
{
    if (j->o->method != IMP_FINETUNE)
        return train_bn_estimate(g, j->set, j->tune, j->n_tune, j->o->batch, seed, e);
    train_job t = { .g = g, .train = j->set, .index = j->tune, .n = j->n_tune, .seed = seed,
                    .recipe = *train_recipe_find("importance") };
    train_recipe_shorten(&t.recipe, j->o->epochs);
    t.recipe.lr = j->o->lr;
    t.recipe.batch = j->o->batch;
    t.recipe.augment = j->o->augment;
    train_result r;
    if (!train_run(&t, &r, e))
        return e->code == ERR_STOPPED ? err_set(e, ERR_STOPPED, "stopped; finished parts are kept: run the same command again") : false;
    *steps = r.steps;
    return r.steps >= SETTLED_STEPS || train_bn_estimate(g, j->set, j->tune, j->n_tune, j->o->batch, seed, e);
}

/* 100 * |a - b|² / |b|² of node `name` over the held-out images: reconstruction error in percent. */
static bool reconstruction(const job *j, const nn_graph *pruned, int end, double *out, err *e)
{
    nn_graph *g[2] = { nn_graph_copy(pruned, e), nn_graph_copy(j->base, e) };
    nn_plan *plan[2] = { NULL, NULL };
    data_loader *loader = NULL;
    loader_options lo = { .set = j->set, .index = j->held, .n = j->n_held, .batch = j->o->batch, .seed = j->o->seed };
    const char *name = j->c->g->node[j->c->node[end]].name;
    bool ok = g[0] && g[1] && data_prep_parse(&lo.prep, j->base->prep, e);
    for (int k = 0; ok && k < 2; k++) {
        int node = nn_graph_find(g[k], name);
        if (node >= 0) g[k]->output = node;              /* a vanished activation: compare the logits */
        nn_graph *part = nn_graph_prune(g[k], e);
        nn_graph_free(g[k]);
        g[k] = part;
        ok = part && (plan[k] = nn_plan_new(part, NN_INFER, j->o->batch, e));
    }
    double difference = 0, total = 0;
    data_batch b = { 0 };
    ok = ok && (loader = loader_new(&lo, e));
    if (ok) loader_seek(loader, 0, 0);
    while (ok && (ok = loader_next(loader, &b, e)) && b.n) {
        const nn_node *in = &g[0]->node[0], *out_node = &g[0]->node[g[0]->output];
        for (int k = 0; k < 2; k++) {
            memcpy(nn_plan_input(plan[k], 0), b.x, (size_t)(b.n * in->dim[1] * in->dim[2] * in->dim[3]) * sizeof(float));
            nn_plan_forward(plan[k]);
        }
        const float *y = nn_plan_output(plan[0]), *y0 = nn_plan_output(plan[1]);
        int64_t count = b.n * out_node->dim[1] * out_node->dim[2] * out_node->dim[3];
        for (int64_t i = 0; i < count; i++) {
            double d = (double)y[i] - (double)y0[i];
            difference += d * d;
            total += (double)y0[i] * (double)y0[i];
        }
    }
    loader_free(loader);
    for (int k = 0; k < 2; k++) { nn_plan_free(plan[k]); nn_graph_free(g[k]); }
    *out = total > 0 ? 100 * difference / total : 0;
    return ok;
}

typedef struct { score tune, held; double held_se; int64_t steps; } entry_score;   /* differences to the baseline */

static bool score_once(const job *j, const search_entry *row, uint64_t seed, entry_score *out, err *e)
{
    search_solution s = { 0 };
    if (!search_single_entry(j->c, row, &s, e)) return false;
    nn_graph *g = search_prune(j->c, &s, e);
    search_solution_free(&s);
    if (!g) return false;
    bool single = row->end == row->st + 1 && j->o->method == IMP_FINETUNE && !j->o->keep_single;
    if (single && row->n_keep) {
        const search_pos *pos = &j->c->pos[row->end];
        nn_state_reset(g, nn_graph_find(g, j->c->g->node[pos->conv].name), seed, (uint64_t)pos->conv);
        if (pos->norm >= 0)
            nn_state_reset(g, nn_graph_find(g, j->c->g->node[pos->norm].name), seed, (uint64_t)pos->norm);
    }
    bool untouched = row->end == row->st + 1 && row->n_keep && !single && j->o->method != IMP_FINETUNE;
    bool ok = untouched || tune_network(g, j, seed, &out->steps, e);
    ok = ok && evaluate(g, j, j->tune, n_train_score(j), &out->tune, e)
            && evaluate(g, j, j->held, j->n_held, &out->held, e);
    if (ok && j->o->method == IMP_RECONSTRUCT) {
        double percent;
        ok = reconstruction(j, g, row->end, &percent, e);
        out->held.acc = j->base_held.acc - percent;
    }
    nn_graph_free(g);
    out->tune.loss -= j->base_tune.loss;
    out->tune.acc -= j->base_tune.acc;
    out->held.loss -= j->base_held.loss;
    out->held.acc -= j->base_held.acc;
    return ok;
}

/* A network that diverges in the short run has lost everything: that is a score, not an error. */
static bool score_entry(const job *j, const search_entry *row, entry_score *out, err *e)
{
    double sum = 0, squares = 0;
    int n = j->o->scores > 0 ? j->o->scores : 1;
    *out = (entry_score){ 0 };
    for (int k = 0; k < n; k++) {
        entry_score one = { 0 };
        err local = { 0 };
        if (!score_once(j, row, j->o->seed + (uint64_t)k, &one, &local)) {
            if (local.code != ERR_NONFINITE) { *e = local; return false; }
            one = (entry_score){ { 0, -j->base_tune.acc }, { 0, -j->base_held.acc }, 0, 0 };
        }
        out->tune.loss += one.tune.loss / n;
        out->tune.acc += one.tune.acc / n;
        out->held.loss += one.held.loss / n;
        sum += one.held.acc;
        squares += one.held.acc * one.held.acc;
        out->steps = one.steps;
    }
    out->held.acc = sum / n;
    out->held_se = n > 1 ? sqrt(fmax(0, squares - sum * sum / n) / (n - 1) / n) : 0;
    return true;
}

/* ---- part files ----------------------------------------------------------------------------------------------- */

static void part_path(const job *j, int id, const char *suffix, char path[4096])
{
    snprintf(path, 4096, "%s/importance%d.%s", j->dir, id, suffix);
}

static bool write_part(const job *j, const search_entry *row, const entry_score *s, err *e)
{
    char path[4096];
    double number[] = { s->tune.loss, s->tune.acc, s->held.loss, s->held.acc, s->held_se };
    buf out = { 0 }, keep = { 0 };
    search_keep_print(row->keep, row->n_keep, &keep);
    buf_printf(&out, "%s%d,%d,%d,%d,%d,%s,", part_header, row->id, row->st, row->end, row->ker, row->str,
               row->is_dw ? "True" : "False");
    if (!keep.failed) csv_quote(&out, keep.data);
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        char text[32];
        number_print(text, number[i]);
        buf_printf(&out, ",%s", text);
    }
    buf_printf(&out, ",%lld,%llu,%s\n", (long long)s->steps, (unsigned long long)j->o->seed, j->hash);
    part_path(j, row->id, "csv", path);
    bool ok = out.failed || keep.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path)
                                        : file_write(path, out.data, out.len, e);
    buf_free(&out);
    buf_free(&keep);
    return ok;
}

typedef struct { search_entry key; double number[5]; char hash[65]; } part;

static bool read_part(const char *path, part *out, err *e)
{
    static const char *const ints[] = { "id", "st", "end", "ker", "str" };
    static const char *const numbers[] = { "train_loss", "train_acc", "val_loss", "val_acc", "val_acc_se" };
    csv_table c;
    int col;
    int64_t v[5];
    *out = (part){ .key = search_entry_blank };
    if (!csv_read(&c, path, e)) return false;
    bool ok = c.n_row == 1 || err_set(e, ERR_DATA, "%s: a part has one row", path);
    for (int i = 0; ok && i < 5; i++) ok = csv_need(&c, ints[i], &col, e) && csv_int(&c, 0, col, &v[i], e);
    for (int i = 0; ok && i < 5; i++)
        ok = csv_need(&c, numbers[i], &col, e) && csv_number(&c, 0, col, &out->number[i], e)
          && (isfinite(out->number[i]) || err_set(e, ERR_DATA, "%s: %s is not finite", path, numbers[i]));
    ok = ok && csv_need(&c, "is_dw", &col, e) && csv_bool(&c, 0, col, &out->key.is_dw, e) && csv_need(&c, "hash", &col, e);
    if (ok) {
        snprintf(out->hash, sizeof out->hash, "%s", csv_cell(&c, 0, col));
        out->key.id = (int)v[0]; out->key.st = (int)v[1]; out->key.end = (int)v[2]; out->key.ker = (int)v[3]; out->key.str = (int)v[4];
    }
    csv_free(&c);
    return ok;
}

static bool same_key(const search_entry *a, const search_entry *b)
{
    return a->st == b->st && a->end == b->end && a->ker == b->ker && a->is_dw == b->is_dw;
}

/* A valid part of this run is there already. A damaged one is made again; one of another run is refused. */
static bool part_done(const job *j, const search_entry *row, bool *done, err *e)
{
    char path[4096];
    part p;
    part_path(j, row->id, "csv", path);
    *done = false;
    if (!file_exists(path)) return true;
    if (!read_part(path, &p, NULL) || !same_key(&p.key, row)) return true;
    if (strcmp(p.hash, j->hash))
        return err_set(e, ERR_CONFIG, "%s was made with other weights, images or settings: use another folder or remove it", path);
    *done = true;
    return true;
}

/* A claim is a locked file: it ends with the process that holds it, however that ends. -1: taken. */
static int claim(const job *j, int id, bool wait)
{
    char path[4096];
    part_path(j, id, "claim", path);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (fd < 0 || flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB) == 0) return fd;
    close(fd);
    return -1;
}

static void release(const job *j, int id, int fd)
{
    char path[4096];
    part_path(j, id, "claim", path);
    unlink(path);
    close(fd);
}

static bool make_part(const job *j, const search_entry *row, bool wait, bool *done, err *e)
{
    int fd = claim(j, row->id, wait);
    if (fd < 0) return true;                             /* another process is at it */
    entry_score s;
    bool ok = part_done(j, row, done, e);                /* it may have been finished just before the claim */
    if (ok && !*done) *done = ok = score_entry(j, row, &s, e) && write_part(j, row, &s, e);
    release(j, row->id, fd);
    return ok || err_note(e, "entry %d, segment (%d,%d] kernel %d", row->id, row->st, row->end, row->ker);
}

void search_importance_defaults(search_importance_options *o, int64_t images)
{
    const int64_t tenth = images / 10 < 50000 ? images / 10 : 50000;
    if (!o->train_images) o->train_images = tenth;
    if (!o->score_images) o->score_images = tenth;
}

bool search_importance_fits(const search_importance_options *o, int64_t images, err *e)
{
    if (o->train_images >= 1 && o->score_images >= 1 && o->train_images <= images && o->score_images <= images - o->train_images)
        return true;
    return err_set(e, ERR_CONFIG, "%lld images for fine-tuning and %lld for scoring are wanted, the training set has %lld",
                   (long long)o->train_images, (long long)o->score_images, (long long)images);
}

/* ---- a run --------------------------------------------------------------------------------------------------- */

static void job_free(job *j)
{
    nn_graph_free(j->base);
    mem_free(j->tune);
    mem_free(j->held);
}

static bool job_init(job *j, const search_chain *c, const search_table *t, const data_set *train,
                     const search_importance_options *o, const char *dir, err *e)
{
    *j = (job){ .c = c, .t = t, .set = train, .o = o, .dir = dir, .n_tune = o->train_images, .n_held = o->score_images };
    if (!search_importance_fits(o, data_count(train), e)) return false;
    j->tune = mem_new((size_t)j->n_tune, sizeof *j->tune, e);
    j->held = mem_new((size_t)j->n_held, sizeof *j->held, e);
    return j->tune && j->held && data_pick(train, o->seed, 0, j->n_tune, j->tune, e)
        && data_pick(train, o->seed, j->n_tune, j->n_held, j->held, e) && (j->base = nn_graph_copy(c->g, e))
        && hash_job(j, e) && file_make_dirs(dir, e);
}

static bool in_range(const search_importance_options *o, int index, int n)
{
    int to = o->to > 0 && o->to < n ? o->to : n;
    return index >= o->from && index < to && (o->shards < 2 || index % o->shards == o->shard);
}

bool search_importance_run(const search_chain *c, const search_table *t, const data_set *train,
                           const search_importance_options *o, const char *dir, err *e)
{
    job j;
    int total = 0, made = 0;
    bool ok = job_init(&j, c, t, train, o, dir, e), based = false;
    for (int r = 0; r < t->n; r++) total += in_range(o, r, t->n);
    for (int visit = 0; ok && made < total; visit++) {   /* from the second on, wait for parts others claimed */
        made = 0;
        for (int r = 0; ok && r < t->n; r++) {
            bool done = false;
            if (!in_range(o, r, t->n)) continue;
            ok = part_done(&j, &t->row[r], &done, e);
            if (ok && !done && !based) {                 /* the baseline, once, only when something is missing */
                ok = evaluate(j.base, &j, j.tune, n_train_score(&j), &j.base_tune, e)
                  && evaluate(j.base, &j, j.held, j.n_held, &j.base_held, e);
                based = true;
            }
            if (ok && !done) ok = make_part(&j, &t->row[r], visit > 0, &done, e);
            made += done;
            if (ok && o->tick) o->tick(o->ctx, made, total, NULL);
            if (ok && stop_requested())
                ok = err_set(e, ERR_STOPPED, "stopped with %d of %d parts there: run the same command again", made, total);
        }
    }
    job_free(&j);
    return ok;
}

/* ---- collecting ------------------------------------------------------------------------------------------------ */

static void print_row(buf *out, int index, const search_entry *row, const double *number, int n)
{
    buf keep = { 0 };
    search_keep_print(row->keep, row->n_keep, &keep);
    buf_printf(out, "%d,%d,%d,%d,%d,%d,%s,", index, row->id, row->st, row->end, row->ker, row->str, row->is_dw ? "True" : "False");
    if (keep.failed) out->failed = true;
    else csv_quote(out, keep.data);
    for (int i = 0; i < n; i++) {
        char text[32];
        number_print(text, number[i]);
        buf_printf(out, ",%s", text);
    }
    buf_puts(out, "\n");
    buf_free(&keep);
}

static bool write_in(const char *dir, const char *name, const buf *text, err *e)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return text->failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, text->data, text->len, e);
}

bool search_importance_collect(const search_chain *c, search_table *t, const char *dir, err *e)
{
    (void)c;
    buf all = { 0 }, normal = { 0 }, missing = { 0 };
    char hash[65] = "", path[4096];
    int n_missing = 0;
    bool ok = true;
    buf_puts(&all, ",id,st,end,ker,str,is_dw,conv_comb,train_loss,train_acc,val_loss,val_acc\n");
    buf_puts(&normal, ",id,st,end,ker,str,is_dw,conv_comb,importance\n");
    for (int r = 0; ok && r < t->n; r++) {
        search_entry *row = &t->row[r];
        part p;
        snprintf(path, sizeof path, "%s/importance%d.csv", dir, row->id);
        if (!file_exists(path)) {
            if (n_missing++ < 5) buf_printf(&missing, "%s%d", n_missing > 1 ? ", " : "", row->id);
            continue;
        }
        ok = read_part(path, &p, e);
        if (ok && !same_key(&p.key, row)) ok = err_set(e, ERR_DATA, "%s: the part belongs to another segment", path);
        if (ok && hash[0] && strcmp(hash, p.hash))
            ok = err_set(e, ERR_DATA, "%s was made with other weights, images or settings than the parts before it", path);
        if (!ok) break;
        memcpy(hash, p.hash, sizeof hash);
        row->importance = exp(p.number[3] / 100);        /* ALGORITHM 4.2: exp(d/100), d in points */
        row->importance_fx = llround(row->importance * 1e12);
        print_row(&all, r, row, p.number, 4);
        print_row(&normal, r, row, &row->importance, 1);
    }
    if (ok && n_missing)
        ok = err_set(e, ERR_NOINPUT, "%s: %d of %d parts are missing: %s%s", dir, n_missing, t->n,
                     missing.data ? missing.data : "", n_missing > 5 ? ", …" : "");
    ok = ok && write_in(dir, "importance.csv", &all, e) && write_in(dir, "normalized_importance.csv", &normal, e);
    buf_free(&all);
    buf_free(&normal);
    buf_free(&missing);
    return ok;
}
