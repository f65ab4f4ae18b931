/* The training loop. A run is a state machine over `train_state`: everything that decides what comes
 * next is in it, in the parameters or in the optimiser, all of which a checkpoint holds. Random draws
 * are functions of (seed, epoch, step), so a run that was killed goes on as if nothing had happened. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/parts.h"

typedef struct {
    const train_job *job;
    const train_recipe *r;
    train_state at;
    nn_graph *net;               /* job->g with losses */
    nn_graph *average;           /* moving average of its weights, or NULL */
    nn_plan *plan, *teacher;
    data_loader *loader;
    optimiser opt;
    state_slot *slot; int n_slot;
    int64_t batches, steps;      /* per epoch; in all */
    int64_t floats; int classes; /* of one image */
    int64_t start_ns, saved_ns;  /* start: as if the run had never been interrupted */
    char checkpoints[4096], metrics[4096], log[4096];
} trainer;

/* ---- setting up ---------------------------------------------------------------------------------- */

static bool make_loader(trainer *t, err *e) {
    const train_job *job = t->job;
    loader_options o = {
        .set = job->train, .index = job->index, .n = job->index ? job->n : data_count(job->train),
        .batch = t->r->batch, .shuffle = true, .drop_last = true, .augment = t->r->augment,
        .seed = job->seed, .workers = job->loader_workers,
    };
    if (!train_prep(job->g, job->train, &o.prep, e)) return false;
    t->floats = (int64_t)o.prep.h * o.prep.w * o.prep.c;
    t->classes = data_classes(job->train);
    t->loader = loader_new(&o, e);
    if (!t->loader) return false;
    t->batches = loader_batches(t->loader);
    t->steps = llround(t->r->epochs * (double)t->batches);
    return true;
}

static bool make_networks(trainer *t, err *e) {
    const train_job *job = t->job;
    bool kd = t->r->kd > 0;
    t->net = nn_graph_with_loss(job->g, t->r->smoothing, t->r->kd, kd ? t->r->temperature : 0, e);
    if (!t->net) return false;
    assert(t->net->n_param == job->g->n_param);
    if (t->r->ema > 0 && !(t->average = nn_graph_copy(job->g, e))) return false;
    if (kd && !(t->teacher = nn_plan_new(job->teacher, NN_INFER, t->r->batch, e))) return false;
    t->plan = nn_plan_new(t->net, NN_TRAIN, t->r->batch, e);
    return t->plan && optim_init(&t->opt, t->r, t->net, e);
}

static void add_slot(trainer *t, const char *prefix, const nn_param *p, float *x) {
    if (!x) return;
    state_slot *s = &t->slot[t->n_slot++];
    *s = (state_slot){ .rank = p->rank, .x = x };
    memcpy(s->dim, p->dim, sizeof s->dim);
    snprintf(s->name, sizeof s->name, "%s%s", prefix, p->name);
}

static bool make_slots(trainer *t, err *e) {
    t->slot = mem_new((size_t)t->net->n_param * 4, sizeof *t->slot, e);
    if (!t->slot) return false;
    for (int i = 0; i < t->net->n_param; i++) {
        const nn_param *p = &t->net->param[i];
        add_slot(t, "", p, p->x);
        add_slot(t, "opt.m.", p, t->opt.m[i]);
        add_slot(t, "opt.v.", p, t->opt.v[i]);
        if (t->average) add_slot(t, "ema.", p, t->average->param[i].x);
    }
    return true;
}

static void trainer_free(trainer *t) {
    loader_free(t->loader);
    nn_plan_free(t->plan);
    nn_plan_free(t->teacher);
    nn_graph_free(t->net);
    nn_graph_free(t->average);
    optim_free(&t->opt);
    mem_free(t->slot);
    buf_free(&t->at.metrics);
}

/* ---- what is kept and told --------------------------------------------------------------------------- */

static bool note(trainer *t, err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static bool note(trainer *t, err *e, const char *fmt, ...) {
    char text[1600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (t->job->note) t->job->note(t->job->ctx, text);
    return !t->job->run_dir || log_line(t->log, text, e);
}

static bool save(trainer *t, err *e) {
    t->saved_ns = clock_ns();
    if (!t->job->run_dir) return true;
    t->at.total_s = (double)(t->saved_ns - t->start_ns) * 1e-9;
    return checkpoint_save(t->checkpoints, t->slot, t->n_slot, &t->at, e)
        || err_note(e, "checkpoint at step %lld", (long long)t->at.step);
}

static bool write_metrics(trainer *t, err *e) {
    return !t->job->run_dir || !t->at.metrics.len
        || file_write(t->metrics, t->at.metrics.data, t->at.metrics.len, e);
}

static bool resume(trainer *t, bool *resumed, err *e) {
    const char *dir = t->job->run_dir;
    char told[1200];
    if (!path_join(t->checkpoints, dir, "checkpoints", e) || !path_join(t->log, dir, "log.txt", e)
        || !path_join(t->metrics, dir, "metrics.csv", e) || !file_make_dirs(t->checkpoints, e)
        || !job_hash(t->job, t->at.job, e)) return false;
    checkpoint_sweep(t->checkpoints);
    if (!checkpoint_load(t->checkpoints, t->slot, t->n_slot, &t->at, resumed, told, e)) return false;
    if (told[0] && !note(t, e, "%s", told)) return false;
    if (!*resumed)
        return note(t, e, "training %s: %lld steps of %d images, seed %llu", t->job->g->arch,
                    (long long)t->steps, t->r->batch, (unsigned long long)t->job->seed);
    return note(t, e, "continuing at step %lld of %lld", (long long)t->at.step, (long long)t->steps)
        && write_metrics(t, e);               /* lines of epochs that will be repeated go */
}

static void tell(const trainer *t, double lr, const eval_result *val) {
    if (!t->job->tick) return;
    const train_state *s = &t->at;
    double images = (double)s->loss_n * t->r->batch;
    train_tick tick = {
        .step = s->step, .steps = t->steps, .epoch = (double)s->step / (double)t->batches, .lr = lr,
        .loss = s->loss_n ? s->loss_sum / (double)s->loss_n : s->last_loss,
        .images_per_s = s->epoch_s > 0 ? images / s->epoch_s : 0, .val = val,
    };
    t->job->tick(t->job->ctx, &tick);
}

/* ---- one step ------------------------------------------------------------------------------------------ */

static void fill_targets(const data_batch *b, int classes, float *target) {
    memset(target, 0, (size_t)b->n * (size_t)classes * sizeof *target);
    for (int i = 0; i < b->n; i++, target += classes) {
        target[b->label[i]] += b->lam;
        if (b->lam < 1) target[b->label2[i]] += 1 - b->lam;
    }
}

static void fill_inputs(trainer *t, const data_batch *b) {
    size_t image_bytes = (size_t)b->n * (size_t)t->floats * sizeof(float);
    memcpy(nn_plan_input(t->plan, 0), b->x, image_bytes);
    fill_targets(b, t->classes, nn_plan_input(t->plan, 1));
    if (!t->teacher) return;
    memcpy(nn_plan_input(t->teacher, 0), b->x, image_bytes);
    nn_plan_forward(t->teacher);
    memcpy(nn_plan_input(t->plan, 2), nn_plan_output(t->teacher),
           (size_t)b->n * (size_t)t->classes * sizeof(float));
}

static bool next_batch(trainer *t, data_batch *b, err *e) {
    if (!loader_next(t->loader, b, e)) return false;
    if (!b->n && !loader_next(t->loader, b, e)) return false;   /* n = 0: an epoch ended */
    assert(b->n == t->r->batch);
    return true;
}

static bool not_finite(const trainer *t, const char *what, double value, err *e) {
    return err_set(e, ERR_NONFINITE, "step %lld of %lld (epoch %.2f): the %s is %s; a lower learning "
                   "rate, warm-up or clipping may help", (long long)t->at.step + 1, (long long)t->steps,
                   (double)t->at.step / (double)t->batches, what, isnan(value) ? "nan" : "infinite");
}

static bool one_step(trainer *t, err *e) {
    train_state *s = &t->at;
    int64_t begin = clock_ns();
    data_batch b;
    if (!next_batch(t, &b, e)) return false;
    fill_inputs(t, &b);
    nn_plan_random(t->plan, t->job->seed, s->step / t->batches, s->step % t->batches);
    nn_plan_forward(t->plan);
    double loss = nn_plan_loss(t->plan);
    if (!isfinite(loss)) return not_finite(t, "loss", loss, e);
    nn_plan_backward(t->plan);
    double norm = optim_norm(t->net, t->plan);
    if (!isfinite(norm)) return not_finite(t, "gradient", norm, e);

    double lr = schedule_lr(t->r, s->step, t->steps, t->batches);
    optim_step(&t->opt, t->net, t->plan, lr, optim_scale(norm, t->r->clip), s->step);
    if (t->average) optim_average(t->average, t->net, t->r->ema);
    s->step++;
    s->loss_sum += loss;
    s->loss_n++;
    s->epoch_s += (double)(clock_ns() - begin) * 1e-9;
    tell(t, lr, NULL);
    return true;
}

/* ---- epochs ---------------------------------------------------------------------------------------------- */

/* job->g gets the weights that count: the average, if one is kept. */
static void hand_over(trainer *t) {
    nn_state_copy(t->job->g, t->average ? t->average : t->net);
}

static bool validate(trainer *t, err *e) {
    const train_job *job = t->job;
    hand_over(t);
    if (!eval_run(job->g, job->val, job->val_index, job->n_val, 0, &t->at.val, NULL, e))
        return err_note(e, "validation after step %lld", (long long)t->at.step);
    t->at.val_step = t->at.step;
    return true;
}

static bool validation_is_due(const trainer *t) {
    double every = t->job->val_every, epochs = (double)t->at.step / (double)t->batches;
    if (!t->job->val) return false;
    if (t->at.step == t->steps) return true;
    return every > 0 && floor(epochs / every + 1e-9) > floor((epochs - 1) / every + 1e-9);
}

static bool end_epoch(trainer *t, err *e) {
    train_state *s = &t->at;
    if (validation_is_due(t) && !validate(t, e)) return false;
    const eval_result *val = s->val_step == s->step ? &s->val : NULL;
    metrics_row row = {
        .step = s->step, .epoch = (double)s->step / (double)t->batches,
        .lr = schedule_lr(t->r, s->step - 1, t->steps, t->batches),
        .train_loss = s->loss_sum / (double)s->loss_n,
        .images_per_s = (double)s->loss_n * t->r->batch / s->epoch_s,
        .seconds = (double)(clock_ns() - t->start_ns) * 1e-9,
    };
    tell(t, row.lr, val);
    metrics_add(&s->metrics, &row, val);
    s->last_loss = row.train_loss;
    s->train_s += s->epoch_s;
    s->epoch_s = s->loss_sum = 0;
    s->loss_n = 0;

    char measured[64] = "";
    if (val) snprintf(measured, sizeof measured, ", top-1 %.2f %%, loss %.4f", val->top1, val->loss);
    return save(t, e) && write_metrics(t, e)
        && note(t, e, "epoch %g: training loss %.4f%s, %.0f images/s", row.epoch, row.train_loss,
                measured, row.images_per_s);
}

static bool epoch_has_ended(const trainer *t) {
    return t->at.loss_n > 0 && (t->at.step % t->batches == 0 || t->at.step == t->steps);
}

static bool save_if_due(trainer *t, err *e) {
    double every = t->job->checkpoint_s > 0 ? t->job->checkpoint_s : 30;
    return (double)(clock_ns() - t->saved_ns) < every * 1e9 || save(t, e);
}

static bool stopped(trainer *t, err *e) {
    if (!save(t, e)) return false;
    err_set(e, ERR_STOPPED, "stopped at step %lld of %lld; %s", (long long)t->at.step,
            (long long)t->steps, t->job->run_dir ? "the same command continues"
                                                 : "without a run folder the same command starts again");
    return false;
}

static bool note_bad(trainer *t, const data_set *s, const char *split, err *e) {
    buf b = {0};
    bool ok = !s || !data_bad_text(s, &b) || b.failed || note(t, e, "%s: %s", split, b.data);
    buf_free(&b);
    return ok;
}

static bool go(trainer *t, err *e) {
    for (;;) {
        if (epoch_has_ended(t)) {
            if (!end_epoch(t, e)) return false;
        } else if (!save_if_due(t, e)) return false;
        if (t->at.step == t->steps) break;
        if (stop_requested()) return err_set(e, ERR_STOPPED, "stopped");
        if (!one_step(t, e)) return false;
    }
    if (t->job->val && t->at.val_step != t->at.step && !validate(t, e)) return false;
    hand_over(t);
    return note_bad(t, t->job->train, "train", e) && note_bad(t, t->job->val, "val", e);
}

static bool start(trainer *t, bool *resumed, err *e) {
    if (!job_check(t->job, e) || !make_loader(t, e) || !make_networks(t, e) || !make_slots(t, e)
        || (t->job->run_dir && !resume(t, resumed, e))) return false;
    t->saved_ns = clock_ns();
    t->start_ns = t->saved_ns - (int64_t)(t->at.total_s * 1e9);
    if (t->at.step < t->steps)
        loader_seek(t->loader, t->at.step / t->batches, t->at.step % t->batches);
    return true;
}

bool train_run(const train_job *job, train_result *out, err *e) {
    trainer t = { .job = job, .r = &job->recipe, .at.val_step = -1 };
    err why = {0};
    *out = (train_result){0};
    bool ok = start(&t, &out->resumed, &why);
    if (ok && !(ok = go(&t, &why))) {
        if (why.code == ERR_STOPPED) stopped(&t, &why);
        if (job->run_dir) log_line(t.log, why.msg, NULL);
    }
    if (ok) {
        out->val = t.at.val;
        out->train_loss = t.at.last_loss;
        out->steps = t.at.step;
        out->images_per_s = t.at.train_s > 0 ? (double)(t.steps * t.r->batch) / t.at.train_s : 0;
    } else if (e) *e = why;
    trainer_free(&t);
    return ok;
}
