/* A network for a data set. */
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
    nn_node *in = (nn_node *)(uintptr_t)train_input(g);
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
    const nn_node *in = g ? train_input(g) : NULL;
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
    if (!fresh) g = follow_size(g, s, e);
    if (!g) return NULL;
    const nn_node *in = train_input(g);
    if ((fresh || !g->prep[0]) && in) {
        data_prep p = prep_for(s, (int)in->dim[1], (int)in->dim[2], (int)in->dim[3]);
        data_prep_print(&p, g->prep);
    }
    data_prep p;
    if (train_classes_match(g, s, e) && train_prep(g, s, &p, e)) return g;
    nn_graph_free(g);
    return NULL;
}
