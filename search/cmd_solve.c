/* layermerge solve: two tables and a budget → which activations and convs to remove. */
#include "core/cli.h"
#include "search/search.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_BUDGETS = 256 };

typedef struct {
    const char *time, *importance, *budget, *speedup, *method, *out, *front, *compat, *fixed;
    double prec;
} solve_options;

static const cli_option options[] = {
    { "time", CLI_TEXT, offsetof(solve_options, time), "!", NULL, "latency table (CSV)" },
    { "importance", CLI_TEXT, offsetof(solve_options, importance), "!", NULL, "normalised importance table (CSV)" },
    { "budget", CLI_TEXT, offsetof(solve_options, budget), NULL, NULL, "latency budgets in ms, separated by commas" },
    { "speedup", CLI_TEXT, offsetof(solve_options, speedup), NULL, NULL, "budgets as base latency / X" },
    { "method", CLI_CHOICE, offsetof(solve_options, method), "layermerge", "layermerge|depth|layeronly", "what may be removed" },
    { "fixed", CLI_TEXT, offsetof(solve_options, fixed), "0", NULL, "ms that no choice can change, part of the budget" },
    { "out", CLI_TEXT, offsetof(solve_options, out), NULL, NULL, "solution.json, or a folder for several budgets" },
    { "front", CLI_TEXT, offsetof(solve_options, front), NULL, NULL, "write every optimal point (CSV)" },
    { "compat", CLI_CHOICE, offsetof(solve_options, compat), "none", "none|reference", "reference: its ticks and tie rule" },
    { "prec", CLI_NUMBER, offsetof(solve_options, prec), "10", "0.001:1e6", "ticks per ms with --compat reference" },
};

typedef struct { int64_t ns[MAX_BUDGETS]; char label[MAX_BUDGETS][32]; int n; } budget_list;

static bool parse_fixed(const solve_options *o, int64_t *ns, err *e)
{
    return search_parse_ms(o->fixed, true, ns)
        || err_set(e, ERR_USAGE, "--fixed %s is not a number of milliseconds", o->fixed);
}

static bool parse_budget_list(const char *text, budget_list *b, err *e)
{
    char word[32];
    for (const char *s = text; ; s++) {
        size_t len = strcspn(s, ",");
        if (b->n == MAX_BUDGETS) return err_set(e, ERR_USAGE, "--budget has more than %d values", MAX_BUDGETS);
        snprintf(word, sizeof word, "%.*s", (int)len, s);
        if (len >= sizeof word || !search_parse_ms(word, false, &b->ns[b->n]))
            return err_set(e, ERR_USAGE, "--budget %.80s: \"%s\" is not a number of milliseconds", text, word);
        memcpy(b->label[b->n++], word, sizeof word);
        s += len;
        if (!*s) return true;
    }
}

static bool find_budgets(const solve_options *o, const search_table *t, int64_t fixed, budget_list *b, err *e)
{
    if (!o->budget == !o->speedup)
        return err_set(e, ERR_USAGE, "give either --budget MS[,MS…] or --speedup X[,X…]");
    if (o->budget) return parse_budget_list(o->budget, b, e);
    double x[MAX_BUDGETS];
    const char *word = o->speedup;
    int64_t base;
    if (!cli_numbers("speedup", o->speedup, x, MAX_BUDGETS, &b->n, e) || !search_base_time(t, &base, e)) return false;
    for (int i = 0; i < b->n; i++) {
        double budget = floor((double)(base + fixed) / x[i]);
        if (!(x[i] > 0) || !(budget < 9e18))
            return err_set(e, ERR_USAGE, "--speedup %g: a factor above 0 is wanted, for example 1.5", x[i]);
        b->ns[i] = (int64_t)budget;
        int len = (int)strcspn(word, ",");               /* as it was written: no two factors share a folder */
        snprintf(b->label[i], sizeof b->label[i], "%.*sx", len < 30 ? len : 30, word);
        word += len + (word[len] == ',');
    }
    return true;
}

static bool wants_folder(const solve_options *o, const budget_list *b) { return b->n > 1 || o->out[strlen(o->out) - 1] == '/'; }

static bool write_solution(const solve_options *o, const search_solution *s, const char *label, bool folder, err *e)
{
    char path[4096];
    if (!folder) return search_solution_write(s, o->out, e);
    snprintf(path, sizeof path, "%s/tl%s", o->out, label);
    if (!file_make_dirs(path, e)) return false;
    size_t len = strlen(path);
    snprintf(path + len, sizeof path - len, "/solution.json");
    return search_solution_write(s, path, e);
}

static void print_solution(const search_solution *s)
{
    if (!s->feasible) {
        printf("budget %.6g ms: infeasible, the least feasible latency is %.6g ms\n", (double)s->budget_ns / 1e6,
               (double)s->least_ns / 1e6);
        return;
    }
    printf("budget %.6g ms: %.6g ms, slack %.3g ms, importance %.9g, %d segments, %d convs kept (least feasible %.6g ms)\n",
           (double)s->budget_ns / 1e6, (double)s->time_ns / 1e6, (double)(s->budget_ns - s->time_ns) / 1e6, s->importance,
           s->n_segment, s->n_conv - 1, (double)s->least_ns / 1e6);
    printf("  %4s %4s %4s %4s %6s  %10s  %12s  convs\n", "st", "end", "ker", "str", "is_dw", "time_ms", "importance");
    for (int m = 0; m < s->n_segment; m++) {
        const search_entry *row = &s->segment[m];
        buf keep = { 0 };
        search_keep_print(row->keep, row->n_keep, &keep);
        printf("  %4d %4d %4d %4d %6s  %10.6g  %12.9g  %s\n", row->st, row->end, row->ker, row->str,
               row->is_dw ? "True" : "False", row->time_ms, row->importance, keep.data ? keep.data : "");
        buf_free(&keep);
    }
}

/* One budget: solve, remember the least feasible latency, hand out. */
static bool solve_one(const solve_options *o, const search_front *f, const search_table *t, const budget_list *b,
                      int i, int64_t fixed, search_solution *s, err *e)
{
    if (!search_front_solve(f, t, b->ns[i], fixed, s, e)) return false;
    if (!strcmp(o->compat, "reference")) {
        int64_t least = s->least_ns;
        search_solution_free(s);
        if (!search_solve_reference(t, (double)(b->ns[i] - fixed) / 1e6, o->prec, s, e)) return false;
        s->budget_ns = b->ns[i];
        s->fixed_ns = fixed;
        s->time_ns += fixed;
        s->least_ns = least;
    }
    snprintf(s->method, sizeof s->method, "%s", o->method);
    return !o->out || write_solution(o, s, b->label[i], wants_folder(o, b), e);
}

static bool solve_all(const cli_common *c, const solve_options *o, const search_table *t, err *e)
{
    budget_list *b = mem_new(1, sizeof *b, e);
    int64_t fixed = 0;
    search_front *f = NULL;
    buf json_out = { 0 };
    bool ok = b && parse_fixed(o, &fixed, e) && find_budgets(o, t, fixed, b, e)
           && (!o->out || wants_folder(o, b) || file_may_write(o->out, e))
           && ((f = search_front_new(t, e)) || err_note(e, "%s", o->time))
           && (!o->front || search_front_write(f, fixed, o->front, e));
    if (ok && search_front_rounding(f) && !c->quiet)
        fprintf(stderr, "the front has more than a million points: times are rounded up by at most %.3g ms, so a solution "
                "that leaves less than that of its budget may be missed\n", (double)search_front_rounding(f) / 1e6);
    int infeasible = -1;
    int64_t least = 0;
    for (int i = 0; ok && i < b->n; i++) {
        search_solution s = { 0 };
        ok = solve_one(o, f, t, b, i, fixed, &s, e);
        if (ok && !s.feasible && infeasible < 0) { infeasible = i; least = s.least_ns; }
        if (ok && c->json) { buf_puts(&json_out, i ? "," : ""); search_solution_json(&s, &json_out); }
        else if (ok) print_solution(&s);
        search_solution_free(&s);
    }
    if (ok && c->json) printf(b->n > 1 ? "{\"solutions\":[%s]}\n" : "%s\n", json_out.data);
    if (ok && infeasible >= 0)
        ok = err_set(e, ERR_NEGATIVE, "budget %.6g ms is infeasible, the least feasible latency is %.6g ms",
                     (double)b->ns[infeasible] / 1e6, (double)least / 1e6);
    buf_free(&json_out);
    search_front_free(f);
    mem_free(b);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const solve_options *o = opt;
    const char *flag[] = { "--out", "--front" }, *path[] = { o->out, o->front };
    for (int i = 0; i < 2; i++)
        if (!file_differ(flag[i], path[i], "--time", o->time, e) || !file_differ(flag[i], path[i], "--importance", o->importance, e)) return false;
    if (!file_differ("--out", o->out, "--front", o->front, e)) return false;
    search_table times, importance = { 0 }, all = { 0 }, offered = { 0 };
    if (!search_read_times(&times, o->time, e)) return false;
    bool ok = search_read_importance(&importance, o->importance, e)
           && (search_join(&all, &times, &importance, e) || err_note(e, "%s and %s", o->time, o->importance))
           && search_filter(&all, search_method_find(o->method), &offered, e) && solve_all(c, o, &offered, e);
    mem_free(offered.row);
    search_table_free(&all);
    search_table_free(&importance);
    search_table_free(&times);
    return ok;
}

const cli_verb cmd_solve = {
    "solve", "choose what to remove under a latency budget, from the two tables",
    options, CLI_COUNT(options), sizeof(solve_options), NULL, run,
};
