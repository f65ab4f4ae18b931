/* solution.json: one solved budget, written and read. Keys are those of the users' contract. */
#include "search/search.h"

#include "core/io.h"

#include <math.h>
#include <string.h>

static double ms(int64_t ns) { return (double)ns / 1e6; }

void search_solution_json(const search_solution *s, buf *out)
{
    json_writer w = json_writer_on(out, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "method", s->method);
    json_number(&w, "budget_ms", ms(s->budget_ns));
    json_bool(&w, "feasible", s->feasible);
    if (s->feasible) json_number(&w, "time_ms", ms(s->time_ns));
    if (s->least_ns >= 0) json_number(&w, "least_ms", ms(s->least_ns));
    if (s->fixed_ns) json_number(&w, "fixed_ms", ms(s->fixed_ns));
    if (s->rounding_ns) json_number(&w, "rounding_ms", ms(s->rounding_ns));
    if (s->feasible) {
        json_number(&w, "importance", s->importance);
        json_begin(&w, "act", '[');
        for (int i = 0; i < s->n_act; i++) json_int(&w, NULL, s->act[i]);
        json_end(&w, ']');
        json_begin(&w, "conv", '[');
        for (int i = 0; i < s->n_conv; i++) json_int(&w, NULL, s->conv[i]);
        json_end(&w, ']');
        json_begin(&w, "segments", '[');
        for (int m = 0; m < s->n_segment; m++) {
            const search_entry *row = &s->segment[m];
            json_begin(&w, NULL, '{');
            json_int(&w, "id", row->id);
            json_int(&w, "st", row->st);
            json_int(&w, "end", row->end);
            json_int(&w, "ker", row->ker);
            json_int(&w, "str", row->str);
            json_bool(&w, "is_dw", row->is_dw);
            json_begin(&w, "conv", '[');
            for (int k = 0; k < row->n_keep; k++) json_int(&w, NULL, row->keep[k]);
            json_end(&w, ']');
            json_number(&w, "time_ms", row->time_ms);
            json_number(&w, "importance", row->importance);
            json_end(&w, '}');
        }
        json_end(&w, ']');
    }
    json_end(&w, '}');
}

bool search_solution_write(const search_solution *s, const char *path, err *e)
{
    buf out = { 0 };
    search_solution_json(s, &out);
    buf_puts(&out, "\n");
    bool ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    buf_free(&out);
    return ok;
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static bool read_ints(const json *object, const char *key, int **out, int *n, err *e)
{
    const json *a = json_get(object, key);
    if (!a || a->type != JSON_ARRAY) return err_set(e, ERR_DATA, "\"%s\" must be a list of numbers", key);
    *out = mem_new((size_t)a->count, sizeof **out, e);
    if (!*out) return false;
    for (const json *v = a->child; v; v = v->next) {
        if (v->type != JSON_NUMBER || v->number != floor(v->number) || v->number < 0 || v->number > 1e6
            || (*n && v->number <= (*out)[*n - 1]))
            return err_set(e, ERR_DATA, "\"%s\" must hold ascending positions", key);
        (*out)[(*n)++] = (int)v->number;
    }
    return true;
}

static bool small_int(const json *object, const char *key, int *out, err *e)
{
    int64_t v;
    if (!json_get_int(object, key, &v, e)) return false;
    if (v < 0 || v > 1000000) return err_set(e, ERR_DATA, "\"%s\" is %lld", key, (long long)v);
    *out = (int)v;
    return true;
}

static bool read_segment(const json *j, search_entry *row, err *e)
{
    *row = search_entry_blank;
    if (j->type != JSON_OBJECT) return err_set(e, ERR_DATA, "a segment must be an object");
    const json *dw = json_get(j, "is_dw"), *id = json_get(j, "id");
    const json *time = json_get(j, "time_ms"), *importance = json_get(j, "importance");
    if (id && !small_int(j, "id", &row->id, e)) return false;
    if (!dw || dw->type != JSON_BOOL) return err_set(e, ERR_DATA, "\"is_dw\" must be true or false");
    row->is_dw = dw->boolean;
    if (time && time->type == JSON_NUMBER) row->time_ms = time->number;
    if (importance && importance->type == JSON_NUMBER) row->importance = importance->number;
    return small_int(j, "st", &row->st, e) && small_int(j, "end", &row->end, e) && small_int(j, "ker", &row->ker, e)
        && small_int(j, "str", &row->str, e) && read_ints(j, "conv", &row->keep, &row->n_keep, e);
}

static bool read_solution(search_solution *s, const json *j, err *e)
{
    const json *feasible = json_get(j, "feasible"), *method = json_get(j, "method"), *segments = json_get(j, "segments");
    if (method && method->type == JSON_STRING) strncpy(s->method, method->text, sizeof s->method - 1);
    if (!feasible || feasible->type != JSON_BOOL) return err_set(e, ERR_DATA, "\"feasible\" must be true or false");
    if (!feasible->boolean) return err_set(e, ERR_DATA, "the solution is infeasible: solve for a larger budget first");
    if (!segments || segments->type != JSON_ARRAY || !segments->count)
        return err_set(e, ERR_DATA, "\"segments\" must be a list with at least one segment");
    s->feasible = true;
    static const struct { const char *key; size_t at; } times[] = {
        { "budget_ms", offsetof(search_solution, budget_ns) }, { "time_ms", offsetof(search_solution, time_ns) },
        { "least_ms", offsetof(search_solution, least_ns) }, { "fixed_ms", offsetof(search_solution, fixed_ns) } };
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        double v;
        if (!json_get(j, times[i].key)) continue;
        if (!json_get_number(j, times[i].key, &v, e)) return false;
        *(int64_t *)((char *)s + times[i].at) = llround(v * 1e6);
    }
    if (json_get(j, "importance") && !json_get_number(j, "importance", &s->importance, e)) return false;
    if ((json_get(j, "act") && !read_ints(j, "act", &s->act, &s->n_act, e))
        || (json_get(j, "conv") && !read_ints(j, "conv", &s->conv, &s->n_conv, e))) return false;
    s->segment = mem_new((size_t)segments->count, sizeof *s->segment, e);
    if (!s->segment) return false;
    int at = 0;
    for (const json *row = segments->child; row; row = row->next) {
        search_entry *segment = &s->segment[s->n_segment++];
        if (!read_segment(row, segment, e)) return err_note(e, "segment %d", s->n_segment);
        if (segment->st != at || segment->end <= at)
            return err_set(e, ERR_DATA, "segment %d is (%d,%d], but the one before ends at %d", s->n_segment,
                           segment->st, segment->end, at);
        at = segment->end;
    }
    return true;
}

bool search_solution_read(search_solution *s, const char *path, err *e)
{
    *s = (search_solution){ .least_ns = -1 };
    json *j = json_read(path, e);
    if (!j) return false;
    bool ok = j->type == JSON_OBJECT ? read_solution(s, j, e) : err_set(e, ERR_DATA, "a solution must be a JSON object");
    json_free(j);
    if (ok) return true;
    search_solution_free(s);
    return err_note(e, "%s", path);
}
