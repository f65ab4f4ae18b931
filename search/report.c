/* Results for people: the aligned table, the front as a file, figures, one HTML page of a run folder. */
#include "search/search.h"

#include "core/io.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void put_number(buf *out, int width, const char *format, double v)
{
    char text[48] = "-";
    if (!isnan(v)) snprintf(text, sizeof text, format, v);
    buf_printf(out, "  %*s", width, text);
}

void search_report_table(const search_row *row, int n, buf *out)
{
    buf_printf(out, "%-8s  %7s  %10s  %17s  %12s  %8s  %9s  %8s\n", "network", "top1 %", "latency ms", "p10 .. p90",
               "predicted ms", "speed-up", "MACs M", "params k");
    for (int i = 0; i < n; i++) {
        char spread[48];
        snprintf(spread, sizeof spread, "%.3f .. %.3f", row[i].p10_ms, row[i].p90_ms);
        buf_printf(out, "%-8s", row[i].name);
        put_number(out, 7, "%.2f", row[i].top1);
        put_number(out, 10, "%.3f", row[i].median_ms);
        buf_printf(out, "  %17s", spread);
        put_number(out, 12, "%.3f", row[i].predicted_ms);
        put_number(out, 8, "%.2f", row[0].median_ms / row[i].median_ms);
        put_number(out, 9, "%.2f", (double)row[i].macs / 1e6);
        put_number(out, 8, "%.1f", (double)row[i].params / 1e3);
        buf_puts(out, "\n");
    }
}

/* ---- the front ---------------------------------------------------------------------------------------- */

bool search_front_write(const search_front *f, int64_t fixed_ns, const char *path, err *e)
{
    buf out = { 0 };
    char time[32], importance[32];
    buf_puts(&out, "time_ms,importance,segments\n");
    for (int i = 0; i < search_front_count(f); i++) {
        search_point p = search_front_at(f, i);
        number_print(time, (double)(p.time_ns + fixed_ns) / 1e6);
        number_print(importance, (double)p.importance_fx * 1e-12);
        buf_printf(&out, "%s,%s,%d\n", time, importance, p.n_segment);
    }
    bool ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    buf_free(&out);
    return ok;
}

/* ---- figures ------------------------------------------------------------------------------------------- */

typedef struct { double *x, *y; int n; } points;

/* Two columns of a CSV; rows that have no y are left out. */
static bool read_points(points *p, const char *path, const char *x, const char *y, err *e)
{
    csv_table t;
    int cx, cy;
    *p = (points){ 0 };
    if (!csv_read(&t, path, e)) return false;
    bool ok = csv_need(&t, x, &cx, e) && csv_need(&t, y, &cy, e) && (p->x = mem_new((size_t)t.n_row, sizeof *p->x, e))
           && (p->y = mem_new((size_t)t.n_row, sizeof *p->y, e));
    for (int64_t r = 0; ok && r < t.n_row; r++) {
        if (!*csv_cell(&t, r, cy)) continue;
        ok = csv_number(&t, r, cx, &p->x[p->n], e) && csv_number(&t, r, cy, &p->y[p->n], e);
        p->n++;
    }
    csv_free(&t);
    return ok;
}

static void points_free(points *p)
{
    mem_free(p->x);
    mem_free(p->y);
}

static const char *at(const char *dir, const char *name, char path[4096])
{
    snprintf(path, 4096, "%s/%s", dir, name);
    return path;
}

static bool write_text(const char *dir, const char *name, const buf *text, err *e)
{
    char path[4096];
    at(dir, name, path);
    return text->failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, text->data, text->len, e);
}

static bool draw_front(const char *dir, err *e)
{
    char path[4096];
    points front;
    search_solution chosen = { 0 };
    buf out = { 0 };
    bool ok = read_points(&front, at(dir, "front.csv", path), "time_ms", "importance", e)
           && search_solution_read(&chosen, at(dir, "solution.json", path), e);
    if (ok) {
        double x = (double)chosen.time_ns / 1e6, y = chosen.importance;
        svg_series series[] = {
            { .name = "every optimal network", .x = front.x, .y = front.y, .n = front.n, .line = true, .points = front.n <= 200 },
            { .name = "chosen", .x = &x, .y = &y, .n = 1, .points = true },
        };
        svg_plot plot = { "Latency against importance", "latency by the table (ms)", "sum of importances", series, 2 };
        svg_draw(&plot, &out);
        ok = write_text(dir, "report.svg", &out, e);
    }
    buf_free(&out);
    search_solution_free(&chosen);
    points_free(&front);
    return ok;
}

static bool draw_training(const char *dir, err *e)
{
    char path[4096];
    points top1;
    buf out = { 0 };
    bool ok = read_points(&top1, at(dir, "metrics.csv", path), "epoch", "val_top1", e);
    if (ok) {
        svg_series series = { .name = "validation", .x = top1.x, .y = top1.y, .n = top1.n, .line = true, .points = top1.n <= 200 };
        svg_plot plot = { "Top-1 while training", "epoch", "top-1 (%)", &series, 1 };
        svg_draw(&plot, &out);
        ok = write_text(dir, "report.svg", &out, e);
    }
    buf_free(&out);
    points_free(&top1);
    return ok;
}

/* ---- a training: its last row, and the one with the best top-1, as report.json ----------------------------- */

static bool row_json(json_writer *w, const char *key, const csv_table *t, int64_t row, err *e)
{
    json_begin(w, key, '{');
    for (int c = 0; c < t->n_col; c++) {
        double v = (double)NAN;                          /* an empty cell: null */
        if (*csv_cell(t, row, c) && !csv_number(t, row, c, &v, e)) return false;
        json_number(w, t->name[c], v);
    }
    json_end(w, '}');
    return true;
}

static bool best_row(const csv_table *t, int64_t *best, err *e)
{
    int col;
    double top = -1, v;
    if (!csv_need(t, "val_top1", &col, e)) return false;
    *best = t->n_row - 1;
    for (int64_t r = 0; r < t->n_row; r++) {
        if (!*csv_cell(t, r, col)) continue;
        if (!csv_number(t, r, col, &v, e)) return false;
        if (v > top) { top = v; *best = r; }
    }
    return true;
}

static bool write_training(const char *dir, const csv_table *t, err *e)
{
    int64_t best;
    buf text = { 0 };
    if (!t->n_row) return err_set(e, ERR_DATA, "%s has no rows", t->path);
    if (!best_row(t, &best, e)) return false;
    json_writer w = json_writer_on(&text, true);
    json_begin(&w, NULL, '{');
    json_text(&w, "verb", "train");
    bool ok = row_json(&w, "last", t, t->n_row - 1, e) && row_json(&w, "best", t, best, e);
    json_end(&w, '}');
    buf_puts(&text, "\n");
    ok = ok && write_text(dir, "report.json", &text, e);
    buf_free(&text);
    return ok;
}

/* ---- pages --------------------------------------------------------------------------------------------- */

static bool append_file(buf *out, const char *dir, const char *name, err *e)
{
    char path[4096];
    buf text = { 0 };
    bool ok = file_read(at(dir, name, path), &text, e);
    if (ok) buf_put(out, text.data, text.len);
    buf_free(&text);
    return ok;
}

static void put_html(buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '<') buf_puts(out, "&lt;");
        else if (*text == '&') buf_puts(out, "&amp;");
        else buf_put(out, text, 1);
    }
}

static bool put_rows(buf *out, const json *report, err *e)
{
    static const struct { const char *key, *head, *format; double scale; } column[] = {
        { "top1", "top-1 %", "%.2f", 1 }, { "latency_ms", "latency ms", "%.3f", 1 }, { "predicted_ms", "predicted ms at this pace", "%.3f", 1 },
        { "speedup", "speed-up", "%.2f", 1 }, { "macs", "MACs M", "%.2f", 1e-6 }, { "params", "parameters k", "%.1f", 1e-3 },
    };
    const json *rows = json_get(report, "networks");
    if (!rows || rows->type != JSON_ARRAY) return err_set(e, ERR_DATA, "there is no list \"networks\"");
    buf_puts(out, "<table><tr><th>network</th>");
    for (size_t k = 0; k < sizeof column / sizeof *column; k++) buf_printf(out, "<th>%s</th>", column[k].head);
    buf_puts(out, "</tr>\n");
    for (const json *r = rows->child; r; r = r->next) {
        const char *name;
        if (!json_get_text(r, "name", &name, e)) return false;
        buf_puts(out, "<tr><td>");
        put_html(out, name);
        buf_puts(out, "</td>");
        for (size_t k = 0; k < sizeof column / sizeof *column; k++) {
            const json *v = json_get(r, column[k].key);
            buf_puts(out, "<td>");
            if (v && v->type == JSON_NUMBER) buf_printf(out, column[k].format, v->number * column[k].scale);
            buf_puts(out, "</td>");
        }
        buf_puts(out, "</tr>\n");
    }
    buf_puts(out, "</table>\n");
    return true;
}

static void put_csv(buf *out, const csv_table *t)
{
    buf_puts(out, "<table><tr>");
    for (int c = 0; c < t->n_col; c++) {
        buf_puts(out, "<th>");
        put_html(out, t->name[c]);
        buf_puts(out, "</th>");
    }
    for (int64_t r = 0; r < t->n_row; r++) {
        buf_puts(out, "</tr>\n<tr>");
        for (int c = 0; c < t->n_col; c++) {
            buf_puts(out, "<td>");
            put_html(out, csv_cell(t, r, c));
            buf_puts(out, "</td>");
        }
    }
    buf_puts(out, "</tr></table>\n");
}

static void put_head(buf *out, const char *title)
{
    buf_printf(out, "<!doctype html>\n<meta charset=\"utf-8\">\n<title>layermerge report</title>\n<style>body{font:15px sans-serif;"
                    "max-width:60em;margin:2em auto}table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:right;"
                    "border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}pre{background:#f4f4f4;"
                    "padding:1em;overflow:auto}</style>\n<h1>%s</h1>\n", title);
}

/* The figure and the settings, after the table. */
static bool finish_page(buf *out, const char *dir, const char *figure, err *e)
{
    buf config = { 0 };
    buf_printf(out, "<h2>%s</h2>\n", figure);
    bool ok = append_file(out, dir, "report.svg", e) && append_file(&config, dir, "config.json", e);
    if (ok) {
        buf_puts(out, "\n<h2>Settings</h2>\n<pre>");
        put_html(out, config.data);
        buf_puts(out, "</pre>\n");
        ok = write_text(dir, "report.html", out, e);
    }
    buf_free(&config);
    return ok;
}

static bool need(const char *dir, const char *name, const char *verb, err *e)
{
    char path[4096];
    return file_exists(at(dir, name, path))
        || err_set(e, ERR_NOINPUT, "%s is not there: run the same %s command again, it makes what is missing", path, verb);
}

static bool report_compress(const char *dir, err *e)
{
    static const char *const parts[] = { "report.json", "front.csv", "solution.json", "config.json" };
    char path[4096];
    buf out = { 0 };
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++)
        if (!need(dir, parts[k], "compress", e)) return false;
    json *report = json_read(at(dir, "report.json", path), e);
    put_head(&out, "Depth compression");
    bool ok = report && (put_rows(&out, report, e) || err_note(e, "%s", path)) && draw_front(dir, e) && finish_page(&out, dir, "Front", e);
    buf_free(&out);
    json_free(report);
    return ok;
}

static bool report_train(const char *dir, err *e)
{
    char path[4096];
    csv_table metrics;
    buf out = { 0 };
    if (!need(dir, "metrics.csv", "train", e) || !csv_read(&metrics, at(dir, "metrics.csv", path), e)) return false;
    put_head(&out, "Training");
    put_csv(&out, &metrics);
    bool ok = write_training(dir, &metrics, e) && draw_training(dir, e) && finish_page(&out, dir, "Top-1", e);
    buf_free(&out);
    csv_free(&metrics);
    return ok;
}

/* config.json of a train run says so. */
static bool is_train(const char *dir, bool *train, err *e)
{
    char path[4096];
    *train = false;
    if (!file_exists(at(dir, "config.json", path))) return true;
    json *config = json_read(path, e);
    const json *verb = config ? json_get(config, "verb") : NULL;
    *train = verb && verb->type == JSON_STRING && !strcmp(verb->text, "train");
    bool ok = config != NULL;
    json_free(config);
    return ok;
}

bool search_report(const char *run_dir, err *e)
{
    bool train;
    return is_train(run_dir, &train, e) && (train ? report_train(run_dir, e) : report_compress(run_dir, e));
}
