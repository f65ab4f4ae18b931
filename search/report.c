/* Results for people: the aligned table, the figure of the front, one HTML page of a run folder. */
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

/* ---- the figure ---------------------------------------------------------------------------------------- */

bool search_report_svg(const search_front *f, const search_solution *chosen, const char *path, err *e)
{
    int n = search_front_count(f);
    double *x = mem_new((size_t)n, sizeof *x, e), *y = mem_new((size_t)n, sizeof *y, e);
    buf out = { 0 };
    bool ok = x && y;
    for (int i = 0; ok && i < n; i++) {
        search_point p = search_front_at(f, i);
        x[i] = (double)(p.time_ns + chosen->fixed_ns) / 1e6;
        y[i] = (double)p.importance_fx * 1e-12;
    }
    if (ok) {
        double cx = (double)chosen->time_ns / 1e6, cy = chosen->importance;
        svg_series series[] = {
            { .name = "every optimal network", .x = x, .y = y, .n = n, .line = true, .points = n <= 200 },
            { .name = "chosen", .x = &cx, .y = &cy, .n = 1, .points = true },
        };
        svg_plot plot = { "Latency against importance", "predicted latency (ms)", "sum of importances", series, 2 };
        svg_draw(&plot, &out);
        ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    }
    buf_free(&out);
    mem_free(x);
    mem_free(y);
    return ok;
}

/* ---- the page -------------------------------------------------------------------------------------------- */

static bool append_file(buf *out, const char *dir, const char *name, err *e)
{
    char path[4096];
    buf text = { 0 };
    snprintf(path, sizeof path, "%s/%s", dir, name);
    bool ok = file_read(path, &text, e);
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
        { "top1", "top-1 %", "%.2f", 1 }, { "latency_ms", "latency ms", "%.3f", 1 }, { "predicted_ms", "predicted ms", "%.3f", 1 },
        { "speedup", "speed-up", "%.2f", 1 }, { "macs", "MACs M", "%.2f", 1e-6 }, { "params", "parameters k", "%.1f", 1e-3 },
    };
    const json *rows = json_get(report, "networks");
    if (!rows || rows->type != JSON_ARRAY) return err_set(e, ERR_DATA, "report.json has no list \"networks\"");
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

bool search_report_html(const char *run_dir, err *e)
{
    char path[4096];
    buf out = { 0 }, config = { 0 };
    snprintf(path, sizeof path, "%s/report.json", run_dir);
    json *report = json_read(path, e);
    if (!report) return false;
    buf_puts(&out, "<!doctype html>\n<meta charset=\"utf-8\">\n<title>layermerge report</title>\n<style>body{font:15px sans-serif;"
                   "max-width:60em;margin:2em auto}table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:right;"
                   "border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}pre{background:#f4f4f4;"
                   "padding:1em;overflow:auto}</style>\n<h1>Depth compression</h1>\n");
    bool ok = put_rows(&out, report, e);
    if (ok) buf_puts(&out, "<h2>Front</h2>\n");
    ok = ok && append_file(&out, run_dir, "report.svg", e) && append_file(&config, run_dir, "config.json", e);
    if (ok) {
        buf_puts(&out, "\n<h2>Settings</h2>\n<pre>");
        put_html(&out, config.data);
        buf_puts(&out, "</pre>\n");
        snprintf(path, sizeof path, "%s/report.html", run_dir);
        ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    }
    buf_free(&config);
    buf_free(&out);
    json_free(report);
    return ok;
}
