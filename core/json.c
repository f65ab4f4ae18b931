/* JSON (RFC 8259), strictly. A parsed text is one tree in one pool, so a hostile text costs a fixed
 * factor of its own length. Objects may not repeat a key: the second would silently win. */
#include "core/io.h"
#include "core/pool.h"

#include <assert.h>
#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_DEPTH = 64 };

typedef struct { json root; pool memory; } document;   /* json_free finds the pool */
typedef struct { const char *key, *at; } member;

typedef struct {
    const char *start, *at, *end;
    pool memory;
    member *member;              /* keys of the objects now open, innermost last */
    size_t n_member, cap_member;
    err *e;
} parser;

/* ---- reading ------------------------------------------------------------------------------ */

static bool fail_at(parser *p, const char *at, const char *what) {
    int64_t line = 1, column = 1;
    for (const char *c = p->start; c < at; c++) {
        column = *c == '\n' ? 1 : column + 1;
        line += *c == '\n';
    }
    return err_set(p->e, ERR_DATA, "%" PRId64 ":%" PRId64 ": %s", line, column, what);
}

static bool fail(parser *p, const char *what) { return fail_at(p, p->at, what); }

static void skip_space(parser *p) {
    while (p->at < p->end && strchr(" \t\r\n", *p->at) && *p->at)
        p->at++;
}

/* Length of the UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates), 0 if bad. */
static int utf8_length(const char *s, const char *end) {
    const unsigned char *u = (const unsigned char *)s;
    int n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3
          : u[0] < 0xf5 ? 4 : 0;
    if (n > end - s)
        return 0;
    for (int i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    if (n == 3 && ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] >= 0xa0)))
        return 0;
    if (n == 4 && ((u[0] == 0xf0 && u[1] < 0x90) || (u[0] == 0xf4 && u[1] >= 0x90)))
        return 0;
    return n;
}

static int utf8_encode(uint32_t c, char *out) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00 >> n) | c);
    return n;
}

static bool read_hex4(parser *p, uint32_t *out) {
    if (p->end - p->at < 4)
        return fail(p, "\\u wants four hexadecimal digits");
    *out = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        char c = *p->at;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return fail(p, "\\u wants four hexadecimal digits");
        *out = *out << 4 | (uint32_t)digit;
    }
    return true;
}

/* After the backslash. Pairs of surrogates make one character; half a pair is an error. */
static bool read_escape(parser *p, char **out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *at = p->at - 1;
    if (p->at == p->end)
        return fail(p, "string ends inside an escape");
    char c = *p->at++;
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple) {
        *(*out)++ = to[simple - from];
        return true;
    }
    if (c != 'u')
        return fail_at(p, at, "unknown escape");
    uint32_t code, low;
    if (!read_hex4(p, &code))
        return false;
    if (code == 0)
        return fail_at(p, at, "\\u0000 inside a string");
    if (code >= 0xdc00 && code < 0xe000)
        return fail_at(p, at, "low surrogate without its high one");
    if (code >= 0xd800 && code < 0xdc00) {
        if (p->end - p->at < 2 || p->at[0] != '\\' || p->at[1] != 'u')
            return fail_at(p, at, "high surrogate without its low one");
        p->at += 2;
        if (!read_hex4(p, &low))
            return false;
        if (low < 0xdc00 || low >= 0xe000)
            return fail_at(p, at, "high surrogate without its low one");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out += utf8_encode(code, *out);
    return true;
}

static char *read_string(parser *p) {
    const char *open = p->at++, *close = p->at;
    while (close < p->end && *close != '"')
        close += *close == '\\' ? 2 : 1;
    if (close >= p->end) {
        fail_at(p, open, "string has no closing quote");
        return NULL;
    }
    char *text = pool_take(&p->memory, (size_t)(close - p->at) + 1, p->e), *out = text;
    if (!text)
        return NULL;
    while (*p->at != '"') {
        if (*p->at == '\\') {
            p->at++;
            if (!read_escape(p, &out))
                return NULL;
            continue;
        }
        int n = utf8_length(p->at, p->end);
        if (n == 0 || (unsigned char)*p->at < 0x20) {
            fail(p, n ? "control character inside a string" : "string is not UTF-8");
            return NULL;
        }
        memcpy(out, p->at, (size_t)n);
        out += n;
        p->at += n;
    }
    p->at++;
    return text;
}

static size_t skip_digits(parser *p) {
    const char *from = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9')
        p->at++;
    return (size_t)(p->at - from);
}

static bool read_number(parser *p, double *out) {
    const char *from = p->at;
    if (*p->at == '-')
        p->at++;
    if (p->at < p->end && *p->at == '0')
        p->at++;
    else if (skip_digits(p) == 0)
        return fail_at(p, from, "unexpected character");
    if (p->at < p->end && *p->at == '.') {
        p->at++;
        if (skip_digits(p) == 0)
            return fail_at(p, from, "number has no digits after its point");
    }
    if (p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
        p->at++;
        if (p->at < p->end && (*p->at == '+' || *p->at == '-'))
            p->at++;
        if (skip_digits(p) == 0)
            return fail_at(p, from, "number has no digits in its exponent");
    }
    if (p->at < p->end && *p->at >= '0' && *p->at <= '9')
        return fail_at(p, from, "number begins with a needless zero");
    size_t len = (size_t)(p->at - from);
    char small[64], *text = len < sizeof small ? small : pool_take(&p->memory, len + 1, p->e);
    if (!text)
        return false;
    memcpy(text, from, len);
    text[len] = 0;
    *out = strtod(text, NULL);
    return isfinite(*out) || fail_at(p, from, "number is too large");
}

static bool read_word(parser *p, const char *word) {
    size_t len = strlen(word);
    if ((size_t)(p->end - p->at) < len || memcmp(p->at, word, len))
        return fail(p, "unexpected character");
    p->at += len;
    return true;
}

static int by_key(const void *a, const void *b) {
    const member *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

/* The keys of one object are p->member[first …]: sorted, equal ones are neighbours. */
static bool check_keys(parser *p, size_t first) {
    qsort(p->member + first, p->n_member - first, sizeof *p->member, by_key);
    for (size_t i = first + 1; i < p->n_member; i++)
        if (!strcmp(p->member[i - 1].key, p->member[i].key)) {
            char what[128];
            snprintf(what, sizeof what, "key \"%.80s\" appears twice", p->member[i].key);
            return fail_at(p, p->member[i].at, what);
        }
    p->n_member = first;
    return true;
}

static bool read_key(parser *p, json *into) {
    skip_space(p);
    if (p->at == p->end || *p->at != '"')
        return fail(p, "expected a key in quotes");
    void *grown = p->member;
    if (!array_grow(&grown, p->n_member, &p->cap_member, sizeof *p->member, p->e))
        return false;
    p->member = grown;
    const char *at = p->at;
    if (!(into->key = read_string(p)))
        return false;
    p->member[p->n_member++] = (member){ into->key, at };
    skip_space(p);
    if (p->at == p->end || *p->at != ':')
        return fail(p, "expected ':' after the key");
    p->at++;
    return true;
}

static bool read_value(parser *p, json *j, int depth);

static bool read_members(parser *p, json *j, char close, int depth) {
    size_t first = p->n_member;
    json **tail = &j->child;
    if (depth > JSON_DEPTH)
        return fail(p, "nested deeper than 64");
    p->at++;
    skip_space(p);
    if (p->at < p->end && *p->at == close) {
        p->at++;
        return true;
    }
    for (;;) {
        json *m = pool_take(&p->memory, sizeof *m, p->e);
        if (!m)
            return false;
        if (close == '}' && !read_key(p, m))
            return false;
        if (!read_value(p, m, depth))
            return false;
        if (j->count == INT_MAX)
            return fail(p, "too many members");
        j->count++;
        *tail = m;
        tail = &m->next;
        skip_space(p);
        if (p->at == p->end || (*p->at != ',' && *p->at != close))
            return fail(p, close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        if (*p->at++ == close)
            return close == ']' || check_keys(p, first);
    }
}

static bool read_value(parser *p, json *j, int depth) {
    skip_space(p);
    if (p->at == p->end)
        return fail(p, "text ends where a value should be");
    switch (*p->at) {
    case '{': j->type = JSON_OBJECT; return read_members(p, j, '}', depth + 1);
    case '[': j->type = JSON_ARRAY;  return read_members(p, j, ']', depth + 1);
    case '"': j->type = JSON_STRING; return (j->text = read_string(p)) != NULL;
    case 't': j->type = JSON_BOOL;   j->boolean = true; return read_word(p, "true");
    case 'f': j->type = JSON_BOOL;   return read_word(p, "false");
    case 'n': j->type = JSON_NULL;   return read_word(p, "null");
    default:  j->type = JSON_NUMBER; return read_number(p, &j->number);
    }
}

json *json_parse(const char *text, size_t len, err *e) {
    parser p = { .start = text, .at = text, .end = text + len, .e = e };
    document *d = pool_take(&p.memory, sizeof *d, e);
    bool ok = d && read_value(&p, &d->root, 0);
    if (ok) {
        skip_space(&p);
        ok = p.at == p.end || fail(&p, "more text after the value");
    }
    mem_free(p.member);
    if (!ok) {
        pool_free(&p.memory);
        return NULL;
    }
    d->memory = p.memory;
    return &d->root;
}

json *json_read(const char *path, err *e) {
    buf text = {0};
    json *j = NULL;
    if (file_read(path, &text, e) && !(j = json_parse(text.data ? text.data : "", text.len, e)))
        err_note(e, "%s", path);
    buf_free(&text);
    return j;
}

void json_free(json *j) {
    if (!j)
        return;
    pool memory = ((document *)(void *)j)->memory;   /* the document itself lies in its pool */
    pool_free(&memory);
}

const json *json_get(const json *object, const char *key) {
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    for (const json *m = object->child; m; m = m->next)
        if (!strcmp(m->key, key))
            return m;
    return NULL;
}

static const json *get_typed(const json *object, const char *key, json_type type, const char *what,
                             err *e) {
    const json *m = json_get(object, key);
    if (!m)
        err_set(e, ERR_DATA, "key \"%s\" is missing", key);
    else if (m->type != type)
        err_set(e, ERR_DATA, "key \"%s\" is not a %s", key, what);
    return m && m->type == type ? m : NULL;
}

bool json_get_number(const json *object, const char *key, double *out, err *e) {
    const json *m = get_typed(object, key, JSON_NUMBER, "number", e);
    if (m)
        *out = m->number;
    return m != NULL;
}

bool json_get_int(const json *object, const char *key, int64_t *out, err *e) {
    double v;
    if (!json_get_number(object, key, &v, e))
        return false;
    if (v != floor(v) || fabs(v) > 9007199254740992.0)   /* 2^53: beyond, a double has gaps */
        return err_set(e, ERR_DATA, "key \"%s\" is %.17g, not an integer", key, v);
    *out = (int64_t)v;
    return true;
}

bool json_get_text(const json *object, const char *key, const char **out, err *e) {
    const json *m = get_typed(object, key, JSON_STRING, "text", e);
    if (m)
        *out = m->text;
    return m != NULL;
}

/* ---- writing ------------------------------------------------------------------------------ */

json_writer json_writer_on(buf *out, bool pretty) {
    return (json_writer){ .out = out, .pretty = pretty };
}

/* A string in quotes; bytes that are not UTF-8 (a file name, say) become U+FFFD. */
static void put_string(buf *out, const char *s) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *end = s + strlen(s);
    buf_puts(out, "\"");
    while (s < end) {
        const char *simple = strchr(from, *s);
        int n = utf8_length(s, end);
        if (simple)
            buf_printf(out, "\\%c", to[simple - from]);
        else if ((unsigned char)*s < 0x20)
            buf_printf(out, "\\u%04x", (unsigned)*s);
        else if (n)
            buf_put(out, s, (size_t)n);
        else
            buf_puts(out, "\xef\xbf\xbd");
        s += n ? n : 1;
    }
    buf_puts(out, "\"");
}

static void new_line(json_writer *w) {
    buf_puts(w->out, "\n");
    for (int i = 0; i < w->depth; i++)
        buf_puts(w->out, "  ");
}

/* Comma, line and key before a value. Pretty: plain array elements stay on one line. */
static void put_lead(json_writer *w, const char *key, bool container) {
    if (w->has_member[w->depth])
        buf_puts(w->out, w->pretty && !key && !container ? ", " : ",");
    if (w->pretty && w->depth > 0 && (key || container))
        new_line(w);
    w->has_member[w->depth] = true;
    if (key) {
        put_string(w->out, key);
        buf_puts(w->out, w->pretty ? ": " : ":");
    }
}

void json_begin(json_writer *w, const char *key, char bracket) {
    assert(w->depth + 1 < 64);
    put_lead(w, key, true);
    buf_put(w->out, &bracket, 1);
    w->has_member[++w->depth] = false;
}

void json_end(json_writer *w, char bracket) {
    assert(w->depth > 0);
    bool any = w->has_member[w->depth--];
    char last = w->out->len ? w->out->data[w->out->len - 1] : 0;
    if (w->pretty && any && (bracket == '}' || last == '}' || last == ']'))
        new_line(w);
    buf_put(w->out, &bracket, 1);
    if (w->pretty && w->depth == 0)
        buf_puts(w->out, "\n");
}

void json_text(json_writer *w, const char *key, const char *value) {
    put_lead(w, key, false);
    if (value)
        put_string(w->out, value);
    else
        buf_puts(w->out, "null");
}

void number_print(char out[32], double v) {
    if (!isfinite(v)) {
        snprintf(out, 32, "%s", isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
        return;
    }
    if (v == floor(v) && fabs(v) < 9007199254740992.0) {      /* at most 16 digits: no exponent */
        snprintf(out, 32, "%.16g", v);
        return;
    }
    /* %g drops trailing zeros, so 15 digits are shortest where 15 suffice; below the normal range
     * a double has fewer digits. */
    for (int digits = fabs(v) < DBL_MIN ? 1 : 15; digits <= 17; digits++) {
        if (snprintf(out, 32, "%.*g", digits, v) < 32 && strtod(out, NULL) == v)
            return;
    }
}

void json_number(json_writer *w, const char *key, double value) {
    char text[32];
    number_print(text, value);
    json_raw(w, key, isfinite(value) ? text : "null");
}

void json_int(json_writer *w, const char *key, int64_t value) {
    put_lead(w, key, false);
    buf_printf(w->out, "%" PRId64, value);
}

void json_bool(json_writer *w, const char *key, bool value) {
    json_raw(w, key, value ? "true" : "false");
}

void json_raw(json_writer *w, const char *key, const char *text) {
    put_lead(w, key, *text == '{' || *text == '[');
    buf_puts(w->out, text);
}
