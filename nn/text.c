/* The text form of a graph: a header line, then one node per line.
 *   graph arch="resnet20" barrier=stride output=fc prep="..."
 *   conv1 = conv2d(x) out=16 k=3,3 pad=1,1,1,1
 * Attributes at their default are not printed; values are the shortest decimals that read back as
 * the same bits. Empty lines and lines that start with # are skipped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nn/op.h"

const char *const nn_barrier_names[3] = { "none", "stride", "stride_1x1" };

/* ---- print ----------------------------------------------------------------------------------- */

static void print_quoted(buf *out, const char *s)
{
    buf_puts(out, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_printf(out, "\\%c", *s);
        else if (*s == '\n')
            buf_puts(out, "\\n");
        else
            buf_put(out, s, 1);
    }
    buf_puts(out, "\"");
}

static void print_value(buf *out, nn_attr_type type, double v)
{
    if (type != NN_ATTR_FLOAT) {
        buf_printf(out, "%d", (int)v);
        return;
    }
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)strtod(text, NULL) == (float)v)
            break;
    }
    buf_puts(out, text);
}

static void print_node(const nn_graph *g, const nn_node *n, buf *out)
{
    const nn_op *op = nn_ops[n->op];
    buf_printf(out, "%s = %s(", n->name, op->name);
    for (int k = 0; k < n->n_in; k++)
        buf_printf(out, "%s%s", k ? ", " : "", g->node[n->in[k]].name);
    buf_puts(out, ")");
    const nn_attr normal = nn_attr_default();
    for (int r = 0; r < NN_ATTR_COUNT; r++) {
        const nn_attr_row *row = &nn_attr_rows[r];
        bool differs = false;
        for (int i = 0; i < row->count; i++)
            differs = differs || nn_attr_get(&n->attr, r, i) != nn_attr_get(&normal, r, i);
        if (!(op->attrs & 1u << r) || !differs)
            continue;
        buf_printf(out, " %s=", row->name);
        for (int i = 0; i < row->count; i++) {
            buf_puts(out, i ? "," : "");
            print_value(out, row->type, nn_attr_get(&n->attr, r, i));
        }
    }
    buf_puts(out, "\n");
}

void nn_graph_print(const nn_graph *g, buf *out)
{
    buf_puts(out, "graph arch=");
    print_quoted(out, g->arch);
    buf_printf(out, " barrier=%s", nn_barrier_names[g->barrier]);
    if (g->output >= 0)
        buf_printf(out, " output=%s", g->node[g->output].name);
    if (g->prep[0]) {
        buf_puts(out, " prep=");
        print_quoted(out, g->prep);
    }
    buf_puts(out, "\n");
    for (int i = 0; i < g->n_node; i++)
        print_node(g, &g->node[i], out);
}

/* ---- parse ----------------------------------------------------------------------------------- */

typedef struct { const char *at, *end; int line; err *e; } reader;   /* at … end: one line */

static bool fail(const reader *r, const char *wanted)
{
    int left = (int)(r->end - r->at);
    return err_set(r->e, ERR_DATA, "graph text line %d: %s wanted at \"%.*s\"", r->line, wanted,
                   left > 40 ? 40 : left, r->at);
}

static void skip_spaces(reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\r'))
        r->at++;
}

static bool take(reader *r, char c)
{
    skip_spaces(r);
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

/* Everything up to a space or one of = ( ) , " */
static bool read_word(reader *r, char *out, size_t room, const char *what)
{
    skip_spaces(r);
    const char *s = r->at;
    while (s < r->end && !strchr(" \t\r=(),\"", *s))
        s++;
    size_t len = (size_t)(s - r->at);
    if (len == 0 || len >= room)
        return fail(r, what);
    memcpy(out, r->at, len);
    out[len] = 0;
    r->at = s;
    return true;
}

static bool read_quoted(reader *r, char *out, size_t room, const char *what)
{
    size_t len = 0;
    if (!take(r, '"'))
        return fail(r, what);
    while (r->at < r->end && *r->at != '"') {
        char c = *r->at++;
        if (c == '\\') {
            if (r->at == r->end)
                return fail(r, what);
            c = *r->at++;
            c = c == 'n' ? '\n' : c;
        }
        if (len + 1 >= room)
            return fail(r, what);
        out[len++] = c;
    }
    out[len] = 0;
    return take(r, '"') || fail(r, "closing quote");
}

static bool read_number(reader *r, nn_attr_type type, double *out)
{
    char word[48], *stop;
    const reader before = *r;
    static const char *const wanted[] = { "a whole number", "0 or 1", "a number" };
    if (!read_word(r, word, sizeof word, "a number"))
        return false;
    *out = strtod(word, &stop);
    bool whole = type == NN_ATTR_FLOAT || (fabs(*out) < 1e9 && *out == floor(*out));
    if (*stop || !isfinite(*out) || !whole || (type == NN_ATTR_BOOL && *out != 0 && *out != 1))
        return fail(&before, wanted[type]);
    return true;
}

static bool read_attr(reader *r, nn_attr *a, unsigned *seen)
{
    char name[24];
    const reader before = *r;
    if (!read_word(r, name, sizeof name, "an attribute"))
        return false;
    int row = 0;
    while (row < NN_ATTR_COUNT && strcmp(nn_attr_rows[row].name, name) != 0)
        row++;
    if (row == NN_ATTR_COUNT || *seen & 1u << row)
        return fail(&before, "an attribute");
    *seen |= 1u << row;
    if (!take(r, '='))
        return fail(r, "=");
    for (int i = 0; i < nn_attr_rows[row].count; i++) {
        double v;
        if (i && !take(r, ','))
            return fail(r, "another value");
        if (!read_number(r, nn_attr_rows[row].type, &v))
            return false;
        nn_attr_set(a, row, i, v);
    }
    return true;
}

static bool read_op(reader *r, nn_opcode *op)
{
    char name[24];
    const reader before = *r;
    if (!read_word(r, name, sizeof name, "an operation"))
        return false;
    for (int k = 0; k < NN_OP_COUNT; k++)
        if (!strcmp(nn_ops[k]->name, name)) {
            *op = (nn_opcode)k;
            return true;
        }
    return fail(&before, "an operation");
}

static bool read_node(reader *r, nn_graph *g)
{
    char name[96], input[96];
    nn_opcode op = NN_OP_input;
    int in[4], n_in = 0;
    if (!read_word(r, name, sizeof name, "a name"))
        return false;
    if (!take(r, '='))
        return fail(r, "=");
    if (!read_op(r, &op))
        return false;
    if (!take(r, '('))
        return fail(r, "(");
    while (!take(r, ')')) {
        if (n_in && !take(r, ','))
            return fail(r, ", or )");
        const reader before = *r;
        if (n_in == 4 || !read_word(r, input, sizeof input, "at most four inputs"))
            return fail(&before, "at most four inputs");
        in[n_in] = nn_graph_find(g, input);
        if (in[n_in++] < 0)
            return fail(&before, "an earlier node");
    }
    nn_attr a = nn_attr_default();
    unsigned seen = 0;
    for (skip_spaces(r); r->at < r->end; skip_spaces(r))
        if (!read_attr(r, &a, &seen))
            return false;
    if (nn_node_append(g, op, name, in, n_in, &a, r->e) < 0)
        return err_note(r->e, "graph text line %d", r->line);
    return true;
}

static bool read_header(reader *r, nn_graph *g, char output[96])
{
    char word[96];
    if (!read_word(r, word, sizeof word, "\"graph\""))
        return false;
    if (strcmp(word, "graph") != 0)
        return err_set(r->e, ERR_DATA, "graph text line %d: does not start with \"graph\"",
                       r->line);
    for (skip_spaces(r); r->at < r->end; skip_spaces(r)) {
        const reader before = *r;
        if (!read_word(r, word, sizeof word, "a key"))
            return false;
        if (!take(r, '='))
            return fail(r, "=");
        bool ok = true;
        if (!strcmp(word, "arch"))
            ok = read_quoted(r, g->arch, sizeof g->arch, "a quoted text");
        else if (!strcmp(word, "prep"))
            ok = read_quoted(r, g->prep, sizeof g->prep, "a quoted text");
        else if (!strcmp(word, "output"))
            ok = read_word(r, output, 96, "a node");
        else if (!strcmp(word, "barrier")) {
            int k = 0;
            if (!read_word(r, word, sizeof word, "a barrier rule"))
                return false;
            while (k < 3 && strcmp(word, nn_barrier_names[k]) != 0)
                k++;
            if (k == 3)
                return fail(&before, "barrier none, stride or stride_1x1");
            g->barrier = (nn_barrier)k;
        } else
            return fail(&before, "arch, barrier, output or prep");
        if (!ok)
            return false;
    }
    return true;
}

nn_graph *nn_graph_parse(const char *text, err *e)
{
    nn_graph *g = nn_graph_new("", e);
    if (!g)
        return NULL;
    char output[96] = "";
    bool header = false, ok = true;
    reader r = { .e = e };
    for (const char *s = text; ok && *s; s = *r.end ? r.end + 1 : r.end) {
        r.at = s;
        r.end = s + strcspn(s, "\n");
        r.line++;
        skip_spaces(&r);
        if (r.at == r.end || *r.at == '#')
            continue;
        ok = header ? read_node(&r, g) : read_header(&r, g, output);
        header = true;
    }
    if (ok && !header)
        ok = err_set(e, ERR_DATA, "graph text line 1: does not start with \"graph\"");
    if (ok && output[0] && (g->output = nn_graph_find(g, output)) < 0)
        ok = err_set(e, ERR_DATA, "graph text line 1: output %s is not a node", output);
    if (!ok) {
        nn_graph_free(g);
        return NULL;
    }
    return g;
}
