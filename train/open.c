/* A network for a data set. */
#include <math.h>
#include <string.h>

#include "train/parts.h"

/* The data's own preprocessing for images of another size or other channels. */
static data_prep prep_for(const data_set *s, int h, int w, int c) {
    data_prep p = data_default_prep(s);
    if (p.resize) p.resize = (int)lround((double)p.resize * (h < w ? h : w) / (p.h < p.w ? p.h : p.w));
    if (p.c == 1 && c == 3)
        for (int i = 1; i < 3; i++) p.mean[i] = p.mean[0], p.std[i] = p.std[0];
    if (p.c == 3 && c == 1) {
        p.mean[0] = (p.mean[0] + p.mean[1] + p.mean[2]) / 3;
        p.std[0] = (p.std[0] + p.std[1] + p.std[2]) / 3;
    }
    p.h = h;
    p.w = w;
    p.c = c;
    return p;
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
