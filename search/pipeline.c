/* compress: the whole path as stages from files to files in one run folder. A stage whose output is
 * there is not run again, every output is written whole or not at all, and the folder's config.json
 * pins all settings: so a run can be stopped at any moment and continued. */
#include "search/search.h"

#include "core/io.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TIGHTEN = 8, VERIFY_NOISE = 64, MEASUREMENTS = 3 };
static const double close_enough = 0.01;                 /* budgets, as a share */
static const double margin = 0.03;                       /* of a speed-up, so that it is still there when the machine's mood is another */

typedef struct {                 /* what the stages hand to each other */
    const search_job *job;
    nn_graph *base, *pruned, *tuned, *merged;
    search_chain *chain;
    search_table table;          /* all entries */
    search_table offered;        /* those of the method; rows borrowed from table */
    search_fixed fixed;
    search_front *front;
    search_solution solution;
    search_verdict verdict;
    nn_timing timing[3];
    eval_result accuracy[3];
    double budget_ms, least_ms;  /* of a budget that is infeasible */
    const char *stage;
} run_state;

static const char *at(const run_state *s, const char *name, char path[4096])
{
    snprintf(path, 4096, "%s/%s", s->job->run_dir, name);
    return path;
}

static void say(const run_state *s, int64_t done, int64_t total, const char *note)
{
    if (s->job->progress) s->job->progress(s->job->ctx, s->stage, done, total, note);
}

static void tick_count(void *ctx, int done, int total) { say(ctx, done, total, NULL); }
static void tick_entry(void *ctx, int done, int total, const char *note) { say(ctx, done, total, note); }

static void tick_train(void *ctx, const train_tick *t)
{
    char note[96];
    int len = snprintf(note, sizeof note, "epoch %.1f loss %.3f %.0f img/s", t->epoch, t->loss, t->images_per_s);
    if (t->val) snprintf(note + len, sizeof note - (size_t)len, " val %.2f %%", t->val->top1);
    say(ctx, t->step, t->steps, note);
}

/* ---- stages: each leaves its file and its place in the state -------------------------------------------- */

static bool train_stage(run_state *s, nn_graph *g, const train_recipe *recipe, nn_graph *teacher, const char *dir, const char *name, err *e)
{
    train_job t = { .g = g, .teacher = teacher, .train = s->job->train, .val = s->job->val, .recipe = *recipe, .seed = s->job->seed,
                    .run_dir = dir, .identity = name, .tick = tick_train, .ctx = s };
    train_result r;
    if (!teacher) t.recipe.kd = 0;
    return train_run(&t, &r, e);
}

static bool stage_base(run_state *s, err *e)
{
    char path[4096], dir[4096];
    at(s, "base.safetensors", path);
    if (!file_exists(path)) {
        nn_graph *g = nn_graph_copy(s->job->base, e);
        bool ok = g && (!s->job->train_base || train_stage(s, g, &s->job->base_recipe, NULL, at(s, "base", dir), "base", e))
               && nn_model_save(g, path, NULL, 0, e);
        nn_graph_free(g);
        if (!ok) return false;
    }
    return (s->base = nn_model_load(path, e)) != NULL;
}

static bool stage_chain(run_state *s, err *e)
{
    char path[4096];
    buf text = { 0 };
    s->chain = search_chain_new(s->base, e);
    if (!s->chain || !search_enumerate(s->chain, s->job->identity, &s->table, e)) return false;
    search_chain_print(s->chain, &text);
    bool ok = text.failed ? err_set(e, ERR_NOMEM, "no memory for chain.txt")
                          : file_write(at(s, "chain.txt", path), text.data, text.len, e);
    buf_free(&text);
    return ok;
}

/* time.csv holds the entries, time.json what no choice can change. */
static bool write_fixed(const run_state *s, const char *path, err *e)
{
    buf out = { 0 };
    json_writer w = json_writer_on(&out, false);
    json_begin(&w, NULL, '{');
    json_int(&w, "batch", s->job->latency.batch);
    json_number(&w, "base_ms", s->fixed.base_ms);
    json_number(&w, "fixed_ms", s->fixed.fixed_ms);
    json_number(&w, "scale", s->fixed.scale);
    json_end(&w, '}');
    buf_puts(&out, "\n");
    bool ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    buf_free(&out);
    return ok;
}

static bool read_fixed(run_state *s, const char *path, err *e)
{
    json *j = json_read(path, e);
    bool ok = j && json_get_number(j, "base_ms", &s->fixed.base_ms, e) && json_get_number(j, "fixed_ms", &s->fixed.fixed_ms, e);
    json_free(j);
    return ok || !j ? ok : err_note(e, "%s", path);      /* json_read names it itself */
}

static bool adopt_times(search_table *t, const char *path, err *e)
{
    search_table read;
    if (!search_read_times(&read, path, e)) return false;
    bool ok = true;
    for (int r = 0; ok && r < t->n; r++) {
        search_entry *row = &t->row[r];
        const search_entry *from = search_table_find(&read, row->st, row->end, row->ker, row->is_dw);
        if (!from) { ok = err_set(e, ERR_DATA, "%s has no entry for segment (%d,%d] kernel %d", path, row->st, row->end, row->ker); break; }
        row->time_ms = from->time_ms;
        row->stdev_ms = from->stdev_ms;
        row->time_ns = from->time_ns;
    }
    search_table_free(&read);
    return ok;
}

static bool stage_latency(run_state *s, err *e)
{
    char csv[4096], fixed[4096];
    at(s, "time.csv", csv);
    at(s, "time.json", fixed);
    if (file_exists(csv) && file_exists(fixed)) return adopt_times(&s->table, csv, e) && read_fixed(s, fixed, e);
    search_latency_options o = s->job->latency;
    o.tick = tick_count;
    o.ctx = s;
    return search_measure(s->chain, &s->table, &o, &s->fixed, e) && write_fixed(s, fixed, e)
        && search_write_times(&s->table, csv, e);
}

static bool stage_importance(run_state *s, err *e)
{
    char dir[4096], path[4096];
    search_importance_options o = s->job->importance;
    o.tick = tick_entry;
    o.ctx = s;
    at(s, "importance", dir);
    return search_importance_run(s->chain, &s->table, s->job->train, &o, dir, e)
        && search_importance_collect(s->chain, &s->table, dir, e)
        && search_write_importance(&s->table, at(s, "normalized_importance.csv", path), e);
}

/* ---- solve, measure, tighten -------------------------------------------------------------------------------- */

/* By the ruler's own number of rounds, whatever the table was given: a few networks cost little to time, and
 * what they measure decides. Of several measurements the one counts in which the first network, the base, was
 * fastest: what others take from a machine, memory above all, slows deep networks more than shallow ones. */
static bool time_plans(run_state *s, nn_graph *const *g, int n, nn_timing *timing, err *e)
{
    nn_plan *plan[3] = { NULL };
    bool ok = true;
    for (int k = 0; ok && k < n; k++) ok = (plan[k] = nn_plan_new(g[k], NN_INFER, s->job->latency.batch, e)) != NULL;
    for (int m = 0; ok && m < MEASUREMENTS; m++) {
        nn_timing now[3];
        ok = nn_plan_time(plan, n, NULL, now, e);
        if (ok && (m == 0 || now[0].median_ms < timing[0].median_ms)) memcpy(timing, now, (size_t)n * sizeof *now);
    }
    for (int k = 0; k < n; k++) nn_plan_free(plan[k]);
    return ok;
}

static double wanted_ms(const run_state *s, double base_ms)
{
    return s->job->speedup > 0 ? base_ms / s->job->speedup : (double)s->job->budget_ns / 1e6;
}

/* Merge the solution as it is and measure it beside the base network: both in ms. */
static bool try_solution(run_state *s, const search_solution *solution, double *base_ms, double *merged_ms, err *e)
{
    nn_timing timing[2];
    nn_graph *pruned = search_prune(s->chain, solution, e);
    nn_graph *merged = pruned ? search_merge(s->chain, solution, pruned, e) : NULL;
    nn_graph *pair[2] = { s->base, merged };
    bool ok = merged && time_plans(s, pair, 2, timing, e);
    if (ok) { *base_ms = timing[0].median_ms; *merged_ms = timing[1].median_ms; }
    nn_graph_free(pruned);
    nn_graph_free(merged);
    return ok;
}

static int64_t fixed_ns(const run_state *s) { return (int64_t)ceil(s->fixed.fixed_ms * 1e6); }

static bool solve_at(run_state *s, int64_t budget, search_solution *out, err *e)
{
    search_solution_free(out);
    if (!search_front_solve(s->front, &s->offered, budget, fixed_ns(s), out, e)) return false;
    if (!out->feasible) {
        s->least_ms = (double)out->least_ns / 1e6;
        s->budget_ms = (double)budget / 1e6;
    }
    return out->feasible || err_set(e, ERR_NEGATIVE, "a budget of %.4g ms is infeasible, the least feasible latency is %.4g ms",
                                    (double)budget / 1e6, (double)out->least_ns / 1e6);
}

static void take(run_state *s, search_solution *found)
{
    search_solution_free(&s->solution);
    s->solution = *found;
    *found = (search_solution){ 0 };
}

/* The table predicts, the machine decides. A budget whose network measures too slow is lowered by what the
 * prediction missed until one is fast enough; then what lies between the two is halved down to close_enough, so
 * that nothing is removed without need. calibration.csv tells the story. */
static bool solve_measured(run_state *s, err *e)
{
    char path[4096];
    buf story = { 0 };
    search_solution now = { 0 };
    int64_t budget = (int64_t)floor(wanted_ms(s, s->fixed.base_ms) * 1e6), fast = 0, slow = 0;    /* 0: not found yet */
    bool ok = true;
    buf_puts(&story, "budget_ms,predicted_ms,base_ms,measured_ms\n");
    for (int round = 0; ok && round < MAX_TIGHTEN; ) {
        double base, merged, asked, wanted;
        if (!(ok = solve_at(s, budget, &now, e))) break;
        if (fast && now.time_ns == s->solution.time_ns) fast = budget;
        else {
            if (!(ok = try_solution(s, &now, &base, &merged, e))) break;
            buf_printf(&story, "%.6f,%.6f,%.6f,%.6f\n", (double)budget / 1e6, (double)now.time_ns / 1e6, base, merged);
            say(s, ++round, MAX_TIGHTEN, NULL);
            asked = wanted_ms(s, base);
            wanted = s->job->speedup > 0 ? asked / (1 + margin) : asked;
            if (merged <= wanted) fast = budget;
            else slow = now.time_ns;
            if (!fast) budget = (int64_t)((double)now.time_ns * wanted / merged);
            const bool enough = !fast && merged <= asked && budget < now.least_ns;     /* there is no margin to be had */
            if (!fast || merged <= wanted) take(s, &now);
            if (enough) break;
        }
        if (!slow || (fast && slow - fast < (int64_t)(close_enough * (double)slow))) break;
        if (fast) budget = fast + (slow - fast) / 2;
        if (budget < s->solution.least_ns) break;        /* the best that this network can do */
    }
    search_solution_free(&now);
    if (ok) {
        snprintf(s->solution.method, sizeof s->solution.method, "%s", s->job->method->name);
        ok = file_write(at(s, "calibration.csv", path), story.data, story.len, e);
    }
    buf_free(&story);
    return ok;
}

static bool stage_solve(run_state *s, err *e)
{
    char path[4096];
    if (!search_filter(&s->table, s->job->method, &s->offered, e)) return false;
    if (!(s->front = search_front_new(&s->offered, e)) || !search_front_write(s->front, fixed_ns(s), at(s, "front.csv", path), e))
        return false;
    at(s, "solution.json", path);
    if (file_exists(path)) return search_solution_read(&s->solution, path, e);
    return solve_measured(s, e) && search_solution_write(&s->solution, path, e);
}

/* ---- prune, fine-tune, merge ---------------------------------------------------------------------------------- */

static bool stage_prune(run_state *s, err *e)
{
    char path[4096];
    if (!(s->pruned = search_prune(s->chain, &s->solution, e))) return err_note(e, "%s", at(s, "solution.json", path));
    at(s, "pruned.safetensors", path);
    return nn_model_save(s->pruned, path, NULL, 0, e);
}

/* A file of another run has weights that the solution says nothing about. */
static bool same_network(const nn_graph *pruned, const nn_graph *g, const char *path, err *e)
{
    buf want = { 0 }, have = { 0 };
    nn_graph_print(pruned, &want);
    nn_graph_print(g, &have);
    bool ok = want.failed || have.failed ? err_set(e, ERR_NOMEM, "no memory to compare %s", path)
            : !strcmp(want.data, have.data)
           || err_set(e, ERR_DATA, "%s is not the pruned network of this run: remove it and it is fine-tuned again", path);
    buf_free(&want);
    buf_free(&have);
    return ok;
}

static bool stage_tune(run_state *s, err *e)
{
    char path[4096];
    at(s, "tuned.safetensors", path);
    if (!file_exists(path)) {
        nn_graph *g = nn_graph_copy(s->pruned, e);
        bool ok = g && train_stage(s, g, &s->job->tune_recipe, s->job->distill ? s->base : NULL, s->job->run_dir, "tune", e)
               && nn_model_save(g, path, NULL, 0, e);
        nn_graph_free(g);
        if (!ok) return false;
    }
    return (s->tuned = nn_model_load(path, e)) && same_network(s->pruned, s->tuned, path, e);
}

static bool write_verdict(const run_state *s, err *e)
{
    char path[4096];
    buf out = { 0 };
    json_writer w = json_writer_on(&out, false);
    json_begin(&w, NULL, '{');
    json_bool(&w, "verified", s->verdict.verified);
    json_number(&w, "max_abs", s->verdict.max_abs);
    json_number(&w, "max_rel", s->verdict.max_rel);
    json_number(&w, "variation", s->verdict.variation);
    json_number(&w, "top1_agreement", s->verdict.agreement);
    json_int(&w, "n", s->verdict.n);
    json_end(&w, '}');
    buf_puts(&out, "\n");
    bool ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for verify.json")
                         : file_write(at(s, "verify.json", path), out.data, out.len, e);
    buf_free(&out);
    return ok;
}

/* Merged must equal un-merged on noise and on every validation image, or nothing is written. */
static bool stage_merge(run_state *s, err *e)
{
    char path[4096];
    search_verdict noise;
    if (!(s->merged = search_merge(s->chain, &s->solution, s->tuned, e))) return false;
    if (!search_verify(s->tuned, s->merged, NULL, VERIFY_NOISE, s->job->seed, 1e-4, &noise, e)
        || !search_verify(s->tuned, s->merged, s->job->val, data_count(s->job->val), s->job->seed, 1e-4, &s->verdict, e))
        return e->code != ERR_NONFINITE ? false : err_note(e, "%s", at(s, "tuned.safetensors", path));
    s->verdict.verified &= noise.verified;
    s->verdict.max_abs = fmax(s->verdict.max_abs, noise.max_abs);
    s->verdict.max_rel = fmax(s->verdict.max_rel, noise.max_rel);
    if (!write_verdict(s, e)) return false;
    if (!s->verdict.verified)
        return err_set(e, ERR_NEGATIVE, "the merged network differs from the pruned one: relative difference %.2g, agreement %.4f",
                       s->verdict.max_rel, s->verdict.agreement);
    at(s, "merged.safetensors", path);
    return nn_model_save(s->merged, path, NULL, 0, e);
}

static bool stage_measure(run_state *s, err *e)
{
    nn_graph *g[3] = { s->base, s->tuned, s->merged };
    for (int k = 0; k < 3; k++) {
        say(s, k, 4, NULL);
        if (!eval_run(g[k], s->job->val, NULL, 0, 0, &s->accuracy[k], NULL, e)) return false;
    }
    say(s, 3, 4, NULL);
    return time_plans(s, g, 3, s->timing, e);
}

/* ---- report --------------------------------------------------------------------------------------------------- */

static void fill_outcome(const run_state *s, search_outcome *out)
{
    static const char *const names[] = { "base", "pruned", "merged" };
    nn_graph *g[3] = { s->base, s->tuned, s->merged };
    /* The table was made at another pace of the machine: the base network says which. */
    const double pace = s->timing[0].median_ms / s->fixed.base_ms;
    double predicted[3] = { pace * s->fixed.base_ms, (double)NAN, pace * (double)s->solution.time_ns / 1e6 };
    for (int k = 0; k < 3; k++)
        out->row[k] = (search_row){ names[k], s->accuracy[k].top1, s->accuracy[k].loss, s->timing[k].median_ms, s->timing[k].p10_ms,
                                    s->timing[k].p90_ms, predicted[k], nn_graph_macs(g[k]), nn_graph_weights(g[k]) };
    out->verdict = s->verdict;
    out->speedup = s->timing[0].median_ms / s->timing[2].median_ms;
    out->predicted_speedup = predicted[0] / predicted[2];
    out->table_base_ms = s->fixed.base_ms;
    out->budget_ms = (double)s->solution.budget_ns / 1e6;
    out->entries = s->table.n;
    out->batch = s->job->latency.batch;
}

static bool write_report(const run_state *s, const search_outcome *out, err *e)
{
    char path[4096];
    buf text = { 0 };
    json_writer w = json_writer_on(&text, true);
    json_begin(&w, NULL, '{');
    json_text(&w, "method", s->solution.method);
    json_int(&w, "entries", out->entries);
    json_int(&w, "batch", out->batch);
    json_int(&w, "threads", par_threads());
    json_number(&w, "budget_ms", out->budget_ms);
    json_number(&w, "speedup", out->speedup);
    json_number(&w, "predicted_speedup", out->predicted_speedup);
    json_number(&w, "table_base_ms", out->table_base_ms);
    json_begin(&w, "networks", '[');
    for (int k = 0; k < 3; k++) {
        const search_row *r = &out->row[k];
        json_begin(&w, NULL, '{');
        json_text(&w, "name", r->name);
        json_number(&w, "top1", r->top1);
        json_number(&w, "loss", r->loss);
        json_number(&w, "latency_ms", r->median_ms);
        json_number(&w, "p10_ms", r->p10_ms);
        json_number(&w, "p90_ms", r->p90_ms);
        json_number(&w, "predicted_ms", r->predicted_ms);
        json_number(&w, "speedup", out->row[0].median_ms / r->median_ms);
        json_int(&w, "macs", r->macs);
        json_int(&w, "params", r->params);
        json_end(&w, '}');
    }
    json_end(&w, ']');
    json_begin(&w, "verification", '{');
    json_bool(&w, "verified", out->verdict.verified);
    json_number(&w, "max_abs", out->verdict.max_abs);
    json_number(&w, "max_rel", out->verdict.max_rel);
    json_number(&w, "variation", out->verdict.variation);
    json_number(&w, "top1_agreement", out->verdict.agreement);
    json_int(&w, "n", out->verdict.n);
    json_end(&w, '}');
    json_end(&w, '}');
    buf_puts(&text, "\n");
    bool ok = text.failed ? err_set(e, ERR_NOMEM, "no memory for report.json")
                          : file_write(at(s, "report.json", path), text.data, text.len, e);
    buf_free(&text);
    return ok && search_report(s->job->run_dir, e);
}

/* ---- the path --------------------------------------------------------------------------------------------------- */

static const struct { const char *name; bool (*run)(run_state *s, err *e); } stages[] = {
    { "train base", stage_base }, { "chain", stage_chain }, { "latency table", stage_latency },
    { "importance table", stage_importance }, { "solve", stage_solve }, { "prune", stage_prune },
    { "fine-tune", stage_tune }, { "merge and verify", stage_merge }, { "measure", stage_measure },
};

static void warn_bad(const search_job *job, const data_set *s)
{
    buf text = { 0 };
    if (s && job->warn && data_bad_text(s, &text) && !text.failed) job->warn(job->ctx, text.data);
    buf_free(&text);
}

static void state_free(run_state *s)
{
    search_solution_free(&s->solution);
    search_front_free(s->front);
    mem_free(s->offered.row);
    search_table_free(&s->table);
    search_chain_free(s->chain);
    nn_graph_free(s->merged);
    nn_graph_free(s->tuned);
    nn_graph_free(s->pruned);
    nn_graph_free(s->base);
}

static bool log_outcome(const search_job *job, const search_outcome *o, err *e)
{
    char text[160];
    snprintf(text, sizeof text, "finished: measured speed-up %.2f, predicted %.2f, budget %.6g ms", o->speedup,
             o->predicted_speedup, o->budget_ms);
    return run_dir_log(job->run_dir, text, e);
}

bool search_compress(const search_job *job, search_outcome *out, err *e)
{
    run_state s = { .job = job };
    *out = (search_outcome){ 0 };
    bool ok = run_dir_open(job->run_dir, job->config, e);
    for (size_t k = 0; ok && k < sizeof stages / sizeof *stages; k++) {
        s.stage = stages[k].name;
        ok = run_dir_log(job->run_dir, s.stage, e) && stages[k].run(&s, e);
        if (ok && stop_requested()) ok = err_set(e, ERR_STOPPED, "stopped after \"%s\": run the same command again", s.stage);
    }
    if (ok) {
        fill_outcome(&s, out);
        ok = write_report(&s, out, e) && log_outcome(job, out, e);
        warn_bad(job, job->train);
        warn_bad(job, job->val);
    }
    if (!ok) {
        run_dir_log(job->run_dir, e->msg, NULL);
        out->budget_ms = s.budget_ms;
        out->least_ms = s.least_ms;
    }
    state_free(&s);
    return ok;
}
