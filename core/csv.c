/* CSV (RFC 4180). One copy of the file is cut in place: cells point into it, quotes and separators
 * are overwritten. Tables made elsewhere come with an unnamed index column, extra columns and any
 * order, so readers ask for columns by name. */
#include "core/io.h"
#include "core/pool.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct {
    csv_table *t;
    char *at, *end, *line_start;
    int64_t line;
    char **cell; size_t n, cap;
    int64_t *row_line; size_t n_line, line_cap;
    err *e;
} reader;

static bool fail(const reader *r, int64_t line, const char *what) {
    return err_set(r->e, ERR_DATA, "%s:%" PRId64 ": %s", r->t->path, line, what);
}

/* A quoted cell, doubled quotes made single; r->at ends behind the closing quote. */
static char *read_quoted(reader *r) {
    char *text = ++r->at, *out = text;
    int64_t opened = r->line;
    for (; r->at < r->end; *out++ = *r->at++) {
        if (*r->at == '"') {
            if (r->at + 1 == r->end || r->at[1] != '"') {
                r->at++;
                *out = 0;
                return text;
            }
            r->at++;
        }
        r->line += *r->at == '\n';
    }
    fail(r, opened, "a quoted cell is never closed");
    return NULL;
}

/* One cell and the separator behind it; *last is set at the end of a line. */
static bool read_cell(reader *r, bool *last) {
    bool quoted = r->at < r->end && *r->at == '"';
    char *text = quoted ? read_quoted(r) : r->at;
    if (!text)
        return false;
    while (!quoted && r->at < r->end && *r->at != ',' && *r->at != '\n' && *r->at != '\r') {
        if (*r->at == '"')
            return fail(r, r->line, "a quote inside a cell that is not quoted");
        r->at++;
    }
    char *stop = r->at;
    if (r->at < r->end && *r->at == '\r' && (r->at + 1 == r->end || r->at[1] == '\n'))
        r->at++;
    *last = r->at == r->end || *r->at == '\n';
    if (!*last && *r->at != ',')
        return fail(r, r->line, *r->at == '\r' ? "a carriage return without a newline"
                                               : "text after a closing quote");
    r->line += r->at < r->end && *r->at == '\n';
    if (r->at < r->end)
        r->at++;
    *stop = 0;                   /* the byte behind the file is ours too */
    void *grown = r->cell;
    if (!array_grow(&grown, r->n, &r->cap, sizeof *r->cell, r->e))
        return false;
    r->cell = grown;
    r->cell[r->n++] = text;
    return true;
}

static bool read_line(reader *r) {
    int64_t line = r->line;
    size_t first = r->n;
    bool last = false;
    void *grown = r->row_line;
    if (!array_grow(&grown, r->n_line, &r->line_cap, sizeof *r->row_line, r->e))
        return false;
    r->row_line = grown;
    r->row_line[r->n_line++] = line;
    while (!last)
        if (!read_cell(r, &last))
            return false;
    size_t got = r->n - first;
    if (got > INT_MAX)
        return fail(r, line, "too many columns");
    if (first == 0)
        r->t->n_col = (int)got;
    if (got != (size_t)r->t->n_col)
        return err_set(r->e, ERR_DATA, "%s:%" PRId64 ": %zu cells where the header has %d",
                       r->t->path, line, got, r->t->n_col);
    return true;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool check_names(const csv_table *t, err *e) {
    size_t n = (size_t)t->n_col;
    char **sorted = mem_new(n, sizeof *sorted, e);
    bool ok = sorted != NULL;
    if (ok) {
        memcpy(sorted, t->name, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, by_text);
    }
    for (size_t i = 1; ok && i < n; i++)
        if (*sorted[i] && !strcmp(sorted[i - 1], sorted[i]))
            ok = err_set(e, ERR_DATA, "%s: column \"%s\" appears twice", t->path, sorted[i]);
    mem_free(sorted);
    return ok;
}

/* Lines with nothing on them are no rows, as for pandas. False at the end of the file. */
static bool skip_blank_lines(reader *r) {
    for (; r->at < r->end && (*r->at == '\n' || (*r->at == '\r' && (r->at + 1 == r->end || r->at[1] == '\n'))); r->at++)
        r->line += *r->at == '\n';
    return r->at < r->end;
}

static bool read_table(reader *r, size_t size) {
    csv_table *t = r->t;
    if (memchr(t->memory, 0, size))
        return err_set(r->e, ERR_DATA, "%s: holds a NUL byte, so it is not a text", t->path);
    if (size >= 3 && !memcmp(r->at, "\xef\xbb\xbf", 3))   /* byte order mark, as Excel writes it */
        r->at += 3;
    while (skip_blank_lines(r))
        if (!read_line(r))
            return false;
    if (!r->n)
        return err_set(r->e, ERR_DATA, "%s: is empty, wanted a header line", t->path);
    t->n_row = (int64_t)(r->n / (size_t)t->n_col) - 1;
    t->name = r->cell;
    t->cell = r->cell + t->n_col;
    return check_names(t, r->e);
}

bool csv_read(csv_table *t, const char *path, err *e) {
    buf file = {0};
    reader r = { .t = t, .line = 1, .e = e };
    *t = (csv_table){0};
    bool ok = (t->path = mem_text(path, e)) && file_read(path, &file, e)
              && (t->memory = mem_new(file.len + 1, 1, e));
    if (ok) {
        if (file.len)
            memcpy(t->memory, file.data, file.len);
        r.at = t->memory;
        r.end = t->memory + file.len;
        ok = read_table(&r, file.len);
    }
    buf_free(&file);
    t->name = r.cell;            /* one block: names, then cells */
    t->line = r.row_line;
    if (!ok)
        csv_free(t);
    return ok;
}

void csv_free(csv_table *t) {
    mem_free(t->name);
    mem_free(t->line);
    mem_free(t->memory);
    mem_free(t->path);
    *t = (csv_table){0};
}

int csv_column(const csv_table *t, const char *name) {
    for (int i = 0; i < t->n_col; i++)
        if (!strcmp(t->name[i], name))
            return i;
    return -1;
}

bool csv_need(const csv_table *t, const char *name, int *col, err *e) {
    *col = csv_column(t, name);
    return *col >= 0 || err_set(e, ERR_DATA, "%s: column \"%s\" is missing", t->path, name);
}

const char *csv_cell(const csv_table *t, int64_t row, int col) {
    return t->cell[row * t->n_col + col];
}

int64_t csv_line(const csv_table *t, int64_t row) { return t->line[1 + row]; }

static bool bad_cell(const csv_table *t, int64_t row, int col, const char *wanted, err *e) {
    const int64_t line = csv_line(t, row);
    const char *cell = csv_cell(t, row, col);
    if (!*cell)
        return err_set(e, ERR_DATA, "%s:%" PRId64 ": column \"%s\" is empty, wanted %s", t->path,
                       line, t->name[col], wanted);
    return err_set(e, ERR_DATA, "%s:%" PRId64 ": column \"%s\" is \"%.60s\", wanted %s", t->path,
                   line, t->name[col], cell, wanted);
}

bool csv_number(const csv_table *t, int64_t row, int col, double *out, err *e) {
    const char *cell = csv_cell(t, row, col), *bare = cell + (*cell == '-' || *cell == '+');
    bool word = !strcasecmp(bare, "nan") || !strcasecmp(bare, "inf")
             || !strcasecmp(bare, "infinity");
    char *end;
    if (!word && cell[strspn(cell, "+-.0123456789eE")])   /* strtod would take hex and spaces */
        return bad_cell(t, row, col, "a number", e);
    errno = 0;
    *out = strtod(cell, &end);
    if (*end || end == cell)
        return bad_cell(t, row, col, "a number", e);
    if (errno == ERANGE && (*out > 1 || *out < -1))       /* tiny ones may round to zero */
        return bad_cell(t, row, col, "a number in the range of a double", e);
    return true;
}

bool csv_int(const csv_table *t, int64_t row, int col, int64_t *out, err *e) {
    const char *cell = csv_cell(t, row, col);
    char *end;
    if (cell[strspn(cell, "+-0123456789")])
        return bad_cell(t, row, col, "an integer", e);
    errno = 0;
    *out = strtoll(cell, &end, 10);
    if (*end || end == cell || errno)
        return bad_cell(t, row, col, errno ? "an integer of 64 bits" : "an integer", e);
    return true;
}

bool csv_bool(const csv_table *t, int64_t row, int col, bool *out, err *e) {
    const char *cell = csv_cell(t, row, col);
    *out = !strcmp(cell, "True") || !strcmp(cell, "1");
    return *out || !strcmp(cell, "False") || !strcmp(cell, "0")
        || bad_cell(t, row, col, "True or False", e);
}

void csv_quote(buf *out, const char *cell) {
    if (!cell[strcspn(cell, ",\"\r\n")]) {
        buf_puts(out, cell);
        return;
    }
    buf_puts(out, "\"");
    for (const char *c = cell; *c; c++)
        buf_put(out, *c == '"' ? "\"\"" : c, *c == '"' ? 2 : 1);
    buf_puts(out, "\"");
}
