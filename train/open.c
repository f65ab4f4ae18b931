/* A network for a data set: a builder's, a file's, or one with the weights of another. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "train/parts.h"

/* The data's own preprocessing for images of another size or other channels. */
static data_prep prep_for(const data_set *s, int h, int w, int c) {
    data_prep p = data_prep_at(data_default_prep(s), h, w);
    if (p.c == 1 && c == 3)
        for (int i = 1; i < 3; i++) p.mean[i] = p.mean[0], p.std[i] = p.std[0];
    if (p.c == 3 && c == 1) {
        p.mean[0] = (p.mean[0] + p.mean[1] + p.mean[2]) / 3;
        p.std[0] = (p.std[0] + p.std[1] + p.std[2]) / 3;
    }
    p.c = c;
    return p;
}

/* The same network and weights for images of h×w: its text with another input, read again. A network
 * whose weights depend on the size cannot follow. */
static nn_graph *graph_at(nn_graph *g, int h, int w, err *e) {
    data_prep p;
    buf text = {0};
    nn_node *in = (nn_node *)(uintptr_t)nn_input(g, 0);
    if (g->prep[0]) {
        if (!data_prep_parse(&p, g->prep, e)) return NULL;
        p = data_prep_at(p, h, w);
        data_prep_print(&p, g->prep);
    }
    in->attr.size[0] = h, in->attr.size[1] = w;
    nn_graph_print(g, &text);
    nn_graph *to = text.failed ? (err_set(e, ERR_NOMEM, "out of memory"), NULL)
                               : nn_graph_parse(text.data, e);
    buf_free(&text);
    if (!to) return NULL;
    if (nn_state_copy(to, g) == g->n_param) return to;
    err_set(e, ERR_CONFIG, "%s: its weights are for images of one size", g->arch);
    nn_graph_free(to);
    return NULL;
}

/* The size asked for with the data, when the network has another. */
static nn_graph *follow_size(nn_graph *g, const data_set *s, err *e) {
    const nn_node *in = g ? nn_input(g, 0) : NULL;
    data_prep p = data_default_prep(s);
    if (!in || !data_sized(s) || (in->dim[1] == p.h && in->dim[2] == p.w)) return g;
    nn_graph *to = graph_at(g, p.h, p.w, e);
    if (!to) err_note(e, "%s at %d,%d", g->arch, p.h, p.w);
    nn_graph_free(g);
    return to;
}

nn_graph *train_open_model(const char *name_or_file, const nn_build *b, const data_set *s,
                           uint64_t seed, err *e) {
    nn_build build = *b;
    bool fresh = nn_model_find(name_or_file) != NULL;
    if (fresh) {
        data_prep p = data_default_prep(s);
        if (!build.classes) build.classes = data_classes(s);
        if (!build.h) build.h = p.h, build.w = p.w, build.c = p.c;
    }
    nn_graph *g = nn_model_open(name_or_file, &build, seed, e);
    if (!g) return NULL;
    if (!fresh && !(g = follow_size(g, s, e))) {
        err_note(e, "%s", name_or_file);
        return NULL;
    }
    const nn_node *in = nn_input(g, 0);
    if ((fresh || !g->prep[0]) && in) {
        data_prep p = prep_for(s, (int)in->dim[1], (int)in->dim[2], (int)in->dim[3]);
        data_prep_print(&p, g->prep);
    }
    data_prep p;
    if (train_classes_match(g, s, e) && train_prep(g, s, &p, e)) return g;
    if (!fresh) err_note(e, "%s", name_or_file);
    nn_graph_free(g);
    return NULL;
}

/* ---- transfer -------------------------------------------------------------------------------- */

/* The network in a model file, for so many classes: its text with another head, read again. Weights
 * are drawn with seed, the file's come later. */
static nn_graph *graph_for(const char *path, int classes, const data_set *s, uint64_t seed, err *e) {
    buf text = {0};
    nn_graph *g = follow_size(nn_model_load(path, e), s, e), *to = NULL;
    if (!g) return NULL;
    g->node[g->output].attr.out = classes;
    nn_graph_print(g, &text);
    if (text.failed) err_set(e, ERR_NOMEM, "out of memory");
    else if ((to = nn_graph_parse(text.data, e))) nn_state_init(to, seed);
    buf_free(&text);
    nn_graph_free(g);
    return to;
}

/* "1000to:FILE" → 1000, and FILE's place in the text. */
static bool map_parse(const char *map, int *of, const char **path, err *e) {
    char *end;
    errno = 0;
    long n = strtol(map, &end, 10);
    if (errno || n < 1 || n > 1 << 20 || strncmp(end, "to:", 3) || !end[3])
        return err_set(e, ERR_USAGE, "--map %s: CLASSESto:FILE is wanted, for example 1000to:classes.txt", map);
    *of = (int)n;
    *path = end + 3;
    return true;
}

/* One class per line; exactly n of them. */
static bool map_read(const char *path, int of, int n, int32_t *row, err *e) {
    buf b = {0};
    int lines = 0;
    bool ok = file_read(path, &b, e);
    for (char *s = ok ? b.data : NULL; ok && s && *s; lines++) {
        char *end, *newline = strchr(s, '\n');
        if (newline) *newline = 0;
        long v = strtol(s, &end, 10);
        if (end == s || end[strspn(end, " \t\r")] || v < 0 || v >= of)
            ok = err_set(e, ERR_DATA, "%s: line %d: a class from 0 to %d is wanted, not \"%.40s\"", path,
                         lines + 1, of - 1, s);
        else if (lines < n) row[lines] = (int32_t)v;
        s = newline ? newline + 1 : NULL;
    }
    if (ok && lines != n)
        ok = err_set(e, ERR_CONFIG, "%s: %d classes are listed, the data has %d", path, lines, n);
    buf_free(&b);
    return ok;
}

/* How the images of `from` were prepared is how they shall be prepared now, if it says so. */
static bool take_prep(nn_graph *g, const char *from, err *e) {
    tensor_file f;
    data_prep p;
    const nn_node *in = nn_input(g, 0);
    if (!tensor_file_open(&f, from, e)) return false;
    const char *text = tensor_file_meta(&f, "prep");
    bool ok = !text || !*text || data_prep_parse(&p, text, e) || err_note(e, "%s", from);
    if (ok && text && *text && in && p.h == in->dim[1] && p.w == in->dim[2] && p.c == in->dim[3])
        data_prep_print(&p, g->prep);
    tensor_file_close(&f);
    return ok;
}

static void describe(const nn_transferred *t, const nn_graph *g, const char *from, int of, buf *note) {
    int classes = (int)g->node[g->output].dim[3];
    buf_printf(note, "%s: %d of %d tensors from %s, ", g->arch, t->tensors, g->n_param, from);
    if (t->fate == NN_HEAD_LOADED) buf_printf(note, "%s with its %d classes", t->head, classes);
    if (t->fate == NN_HEAD_KEPT) buf_printf(note, "%s new for %d classes", t->head, classes);
    if (t->fate == NN_HEAD_PICKED) buf_printf(note, "%s with %d of its %d classes", t->head, classes, of);
}

/* "1000to:FILE" → row[0..n), m->row and m->of. Free row with mem_free. */
static bool map_open(const char *map, nn_head_map *m, int32_t **row, err *e) {
    const char *list = NULL;
    bool ok = map_parse(map, &m->of, &list, e) && (*row = mem_new((size_t)m->n, sizeof **row, e))
           && map_read(list, m->of, m->n, *row, e);
    m->row = *row;
    return ok;
}

bool train_relabel(data_set *s, const char *map, err *e) {
    nn_head_map m = { .n = data_classes(s) };
    int32_t *row = NULL;
    bool ok = map_open(map, &m, &row, e) && data_relabel(s, row, m.of, e);
    mem_free(row);
    return ok;
}

static bool transfer(nn_graph *g, const char *from, const char *map, const data_set *s, buf *note, err *e) {
    nn_head_map m = { .n = data_classes(s) };
    nn_transferred t;
    int32_t *row = NULL;
    bool ok = !map || map_open(map, &m, &row, e);
    ok = ok && nn_transfer(g, from, map ? &m : NULL, &t, e);
    if (ok) describe(&t, g, from, m.of, note);
    ok = ok && (!note->failed || err_set(e, ERR_NOMEM, "out of memory"));
    mem_free(row);
    return ok;
}

nn_graph *train_open_pretrained(const char *model, const char *from, const char *map, const nn_build *b,
                                const data_set *s, uint64_t seed, buf *note, err *e) {
    data_prep p;
    int classes = b->classes ? b->classes : data_classes(s);
    nn_graph *g = model ? train_open_model(model, b, s, seed, e) : graph_for(from, classes, s, seed, e);
    if (g && train_classes_match(g, s, e) && transfer(g, from, map, s, note, e)
        && (!model || !nn_model_find(model) || take_prep(g, from, e)) && train_prep(g, s, &p, e)) return g;
    nn_graph_free(g);
    return NULL;
}
