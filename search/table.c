/* The two tables as the reference's CSV, both ways, and their join by key (st,end,ker,is_dw). Row
 * order and ids carry no meaning on the way in. */
#include "search/search.h"

#include "core/io.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- decimal text → integer nanoseconds -------------------------------------------------------------- */

/* text = digits × 10^-scale, so ms → ns moves the point by six places: no binary fraction on the way. */
bool search_parse_ms(const char *text, bool up, int64_t *ns)
{
    char digits[64];
    int n = 0, scale = 0, seen = 0;
    bool point = false, rest = false;
    const char *s = text;
    if (*s == '+') s++;
    for (; isdigit((unsigned char)*s) || (*s == '.' && !point); s++) {
        if (*s == '.') { point = true; continue; }
        seen++;
        scale += point;
        if (n == 0 && *s == '0') continue;               /* leading zeros */
        if (n < 60) digits[n++] = *s;
        else { rest |= *s != '0'; scale--; }             /* beyond any double's precision */
    }
    long exponent = 0;
    if (seen && (*s == 'e' || *s == 'E')) {
        char *end;
        exponent = strtol(s + 1, &end, 10);
        if (end == s + 1) return false;
        s = end;
    }
    if (!seen || *s || exponent < -400 || exponent > 400) return false;
    long shift = exponent + 6 - scale;                   /* value in ns = digits × 10^shift */
    int64_t v = 0;
    for (int i = 0; i < n; i++) {
        if (i - n >= shift) { rest |= digits[i] != '0'; continue; }      /* behind the point */
        if (v > (INT64_MAX - 9) / 10) return false;
        v = 10 * v + (digits[i] - '0');
    }
    for (long i = 0; n && i < shift; i++) {
        if (v > INT64_MAX / 10) return false;
        v *= 10;
    }
    *ns = v + (up && rest);
    return true;
}

/* ---- keep sets: "(3, 4)" "(3,)" "()" -------------------------------------------------------------------- */

void search_keep_print(const int *keep, int n, buf *out)
{
    buf_puts(out, "(");
    for (int i = 0; i < n; i++) buf_printf(out, i ? ", %d" : "%d", keep[i]);
    buf_puts(out, n == 1 ? ",)" : ")");
}

bool search_keep_parse(const char *text, int **keep, int *n, err *e)
{
    int cap = 1;
    for (const char *s = text; *s; s++) cap += *s == ',';
    *n = 0;
    *keep = mem_new((size_t)cap, sizeof **keep, e);
    if (!*keep) return false;
    const char *s = text;
    while (isspace((unsigned char)*s)) s++;
    bool ok = *s++ == '(';
    while (ok) {
        while (isspace((unsigned char)*s)) s++;
        if (*s == ')') break;
        char *end;
        long v = strtol(s, &end, 10);
        ok = end != s && v >= 0 && v < INT_MAX && *n < cap && (*n == 0 || v > (*keep)[*n - 1]);
        if (!ok) break;
        (*keep)[(*n)++] = (int)v;
        for (s = end; isspace((unsigned char)*s); s++) {}
        if (*s == ',') s++;
        else ok = *s == ')';
    }
    if (ok && !s[1 + strspn(s + 1, " \t")]) return true;
    mem_free(*keep);
    *keep = NULL;
    *n = 0;
    return err_set(e, ERR_DATA, "\"%.60s\" is not a set of ascending conv numbers like (3, 4)", text);
}

/* ---- the table itself --------------------------------------------------------------------------------------- */

const search_entry search_entry_blank = {
    .str = 1, .time_ms = (double)NAN, .stdev_ms = (double)NAN, .time_ns = -1, .importance = (double)NAN,
};

void search_table_free(search_table *t)
{
    if (!t) return;
    for (int r = 0; r < t->n; r++) mem_free(t->row[r].keep);
    mem_free(t->row);
    *t = (search_table){ 0 };
}

search_entry *search_table_find(const search_table *t, int st, int end, int ker, bool is_dw)
{
    for (int r = 0; r < t->n; r++) {
        search_entry *row = &t->row[r];
        if (row->st == st && row->end == end && row->ker == ker && row->is_dw == is_dw) return row;
    }
    return NULL;
}

static int compare_keys(const search_entry *a, const search_entry *b)
{
    if (a->st != b->st) return a->st < b->st ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    if (a->ker != b->ker) return a->ker < b->ker ? -1 : 1;
    return (int)a->is_dw - (int)b->is_dw;
}

static int by_key(const void *a, const void *b) { return compare_keys(a, b); }

/* ---- reading -------------------------------------------------------------------------------------------------- */

/* What each file has beyond the key. */
typedef enum { READ_TIMES, READ_IMPORTANCE } table_kind;
typedef struct { int id, st, end, ker, str, dw, time, stdev, comb, importance; } columns;

static bool find_columns(const csv_table *c, table_kind kind, columns *k, err *e)
{
    k->id = csv_column(c, "id");
    k->stdev = csv_column(c, "stdev");
    k->comb = csv_column(c, "conv_comb");
    return csv_need(c, "st", &k->st, e) && csv_need(c, "end", &k->end, e) && csv_need(c, "ker", &k->ker, e)
        && csv_need(c, "str", &k->str, e) && csv_need(c, "is_dw", &k->dw, e)
        && (kind == READ_TIMES ? csv_need(c, "time", &k->time, e)
                               : csv_need(c, "conv_comb", &k->comb, e) && csv_need(c, "importance", &k->importance, e));
}

static bool read_small_int(const csv_table *c, int64_t r, int col, int lo, int *out, err *e)
{
    int64_t v;
    if (!csv_int(c, r, col, &v, e)) return false;
    if (v < lo || v > 1000000)
        return err_set(e, ERR_DATA, "%s:%lld: %s is %lld", c->path, (long long)csv_line(c, r), c->name[col], (long long)v);
    *out = (int)v;
    return true;
}

static bool read_time(const csv_table *c, int64_t r, const columns *k, search_entry *row, err *e)
{
    if (!csv_number(c, r, k->time, &row->time_ms, e)) return false;
    if (k->stdev >= 0 && !csv_number(c, r, k->stdev, &row->stdev_ms, e)) return false;
    if (!(row->time_ms >= 0) || !search_parse_ms(csv_cell(c, r, k->time), true, &row->time_ns)
        || row->time_ns > INT64_MAX / 1000000)
        return err_set(e, ERR_DATA, "%s:%lld: time is \"%.40s\", it must be milliseconds >= 0",
                       c->path, (long long)csv_line(c, r), csv_cell(c, r, k->time));
    return true;
}

static bool read_importance(const csv_table *c, int64_t r, const columns *k, search_entry *row, err *e)
{
    if (!csv_number(c, r, k->importance, &row->importance, e)) return false;
    if (!(fabs(row->importance) < 1e5))
        return err_set(e, ERR_DATA, "%s:%lld: importance is \"%.40s\", it must be finite and below 1e5",
                       c->path, (long long)csv_line(c, r), csv_cell(c, r, k->importance));
    row->importance_fx = llround(row->importance * 1e12);
    return true;
}

static bool read_row(const csv_table *c, int64_t r, table_kind kind, const columns *k, search_entry *row, err *e)
{
    *row = search_entry_blank;
    row->id = (int)r;
    if ((k->id >= 0 && !read_small_int(c, r, k->id, 0, &row->id, e)) || !read_small_int(c, r, k->st, 0, &row->st, e)
        || !read_small_int(c, r, k->end, 1, &row->end, e) || !read_small_int(c, r, k->ker, 0, &row->ker, e)
        || !read_small_int(c, r, k->str, 1, &row->str, e) || !csv_bool(c, r, k->dw, &row->is_dw, e)) return false;
    if (row->st >= row->end)
        return err_set(e, ERR_DATA, "%s:%lld: st %d is not below end %d", c->path, (long long)csv_line(c, r), row->st, row->end);
    if (!(kind == READ_TIMES ? read_time(c, r, k, row, e) : read_importance(c, r, k, row, e))) return false;
    if (k->comb >= 0 && !search_keep_parse(csv_cell(c, r, k->comb), &row->keep, &row->n_keep, e))
        return err_note(e, "%s:%lld", c->path, (long long)csv_line(c, r));
    for (int i = 0; i < row->n_keep; i++)
        if (row->keep[i] <= row->st || row->keep[i] > row->end)
            return err_set(e, ERR_DATA, "%s:%lld: conv %d is not in segment (%d,%d]", c->path,
                           (long long)csv_line(c, r), row->keep[i], row->st, row->end);
    return true;
}

static bool read_table(search_table *out, const char *path, table_kind kind, err *e)
{
    csv_table c;
    columns k;
    *out = (search_table){ 0 };
    if (!csv_read(&c, path, e)) return false;
    bool ok = find_columns(&c, kind, &k, e);
    if (ok && c.n_row == 0) ok = err_set(e, ERR_DATA, "%s: the table has no rows", path);
    if (ok && c.n_row > 1000000) ok = err_set(e, ERR_DATA, "%s: %lld rows are too many", path, (long long)c.n_row);
    if (ok) ok = (out->row = mem_new((size_t)c.n_row, sizeof *out->row, e)) != NULL;
    for (int64_t r = 0; ok && r < c.n_row; r++) {
        out->n++;
        ok = read_row(&c, r, kind, &k, &out->row[r], e);
        if (ok && out->row[r].end > out->L) out->L = out->row[r].end;
    }
    csv_free(&c);
    if (ok) qsort(out->row, (size_t)out->n, sizeof *out->row, by_key);
    for (int r = 1; ok && r < out->n; r++)
        if (!compare_keys(&out->row[r - 1], &out->row[r]))
            ok = err_set(e, ERR_DATA, "%s: segment (%d,%d] kernel %d is_dw %s is there twice", path, out->row[r].st,
                         out->row[r].end, out->row[r].ker, out->row[r].is_dw ? "True" : "False");
    if (!ok) search_table_free(out);
    return ok;
}

bool search_read_times(search_table *out, const char *path, err *e)
{
    return read_table(out, path, READ_TIMES, e);
}

bool search_read_importance(search_table *out, const char *path, err *e)
{
    return read_table(out, path, READ_IMPORTANCE, e);
}

/* ---- join ----------------------------------------------------------------------------------------------------- */

/* Name the first few keys of a that b lacks; both sorted by key. Returns how many. */
static int missing_keys(const search_table *a, const search_table *b, buf *out)
{
    int missing = 0;
    for (int r = 0, s = 0; r < a->n; r++) {
        while (s < b->n && compare_keys(&b->row[s], &a->row[r]) < 0) s++;
        if (s < b->n && !compare_keys(&b->row[s], &a->row[r])) continue;
        if (missing++ < 3)
            buf_printf(out, "%s(%d,%d] ker %d is_dw %s", missing > 1 ? ", " : "", a->row[r].st, a->row[r].end,
                       a->row[r].ker, a->row[r].is_dw ? "True" : "False");
    }
    return missing;
}

bool search_join(search_table *out, const search_table *times, const search_table *importance, err *e)
{
    const struct { const search_table *a, *b; const char *has, *lacks; } side[2] = {
        { times, importance, "time", "importance" }, { importance, times, "importance", "time" } };
    *out = (search_table){ 0 };
    for (int i = 0; i < 2; i++) {
        buf names = { 0 };
        int missing = missing_keys(side[i].a, side[i].b, &names);
        if (missing)
            err_set(e, ERR_DATA, "%d entries of the %s table are missing in the %s table: %s%s", missing,
                    side[i].has, side[i].lacks, names.data, missing > 3 ? ", …" : "");
        buf_free(&names);
        if (missing) return false;
    }
    out->row = mem_new((size_t)times->n, sizeof *out->row, e);
    if (!out->row) return false;
    out->L = times->L;
    for (int r = 0; r < times->n; r++) {
        const search_entry *t = &times->row[r], *i = &importance->row[r];   /* same keys, same order */
        if (t->str != i->str) {
            search_table_free(out);
            return err_set(e, ERR_DATA, "segment (%d,%d] kernel %d has stride %d in the time table and %d in the"
                           " importance table", t->st, t->end, t->ker, t->str, i->str);
        }
        search_entry *row = &out->row[out->n++];
        *row = *i;
        row->keep = mem_new((size_t)i->n_keep, sizeof *row->keep, e);
        if (!row->keep) { row->n_keep = 0; search_table_free(out); return false; }
        if (i->n_keep) memcpy(row->keep, i->keep, (size_t)i->n_keep * sizeof *row->keep);
        row->time_ms = t->time_ms;
        row->stdev_ms = t->stdev_ms;
        row->time_ns = t->time_ns;
    }
    return true;
}

/* ---- writing -------------------------------------------------------------------------------------------------- */

typedef enum { WRITE_ENTRIES, WRITE_TIMES, WRITE_IMPORTANCE } write_kind;

static bool write_table(const search_table *t, const char *path, write_kind kind, err *e)
{
    static const char *const tail[] = { "conv_comb", "time,stdev", "conv_comb,importance" };
    buf out = { 0 }, comb = { 0 };
    char number[32];
    buf_printf(&out, "id,st,end,ker,str,is_dw,%s\n", tail[kind]);
    for (int r = 0; r < t->n; r++) {
        const search_entry *row = &t->row[r];
        buf_printf(&out, "%d,%d,%d,%d,%d,%s", row->id, row->st, row->end, row->ker, row->str, row->is_dw ? "True" : "False");
        if (kind == WRITE_TIMES) {
            number_print(number, row->time_ms);
            buf_printf(&out, ",%s", number);
            number_print(number, row->stdev_ms);
            buf_printf(&out, ",%s", number);
        } else {
            comb.len = 0;
            search_keep_print(row->keep, row->n_keep, &comb);
            buf_puts(&out, ",");
            if (comb.failed) out.failed = true;
            else csv_quote(&out, comb.data);
        }
        if (kind == WRITE_IMPORTANCE) {
            number_print(number, row->importance);
            buf_printf(&out, ",%s", number);
        }
        buf_puts(&out, "\n");
    }
    bool ok = out.failed ? err_set(e, ERR_NOMEM, "no memory for %s", path) : file_write(path, out.data, out.len, e);
    buf_free(&out);
    buf_free(&comb);
    return ok;
}

bool search_write_entries(const search_table *t, const char *path, err *e) { return write_table(t, path, WRITE_ENTRIES, e); }
bool search_write_times(const search_table *t, const char *path, err *e) { return write_table(t, path, WRITE_TIMES, e); }
bool search_write_importance(const search_table *t, const char *path, err *e) { return write_table(t, path, WRITE_IMPORTANCE, e); }
