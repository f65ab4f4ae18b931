/* The list of builders, and what they share. */
#include "nn/models/models.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const nn_model *const nn_models[] = {
    &nn_model_resnet20, &nn_model_resnet56, &nn_model_resnet18, &nn_model_resnet34, &nn_model_resnet50,
    &nn_model_mobilenetv2, &nn_model_vgg8_bn, &nn_model_vgg19_bn, NULL,
};

const nn_model *nn_model_find(const char *name)
{
    for (const nn_model *const *m = nn_models; *m; m++)
        if (!strcmp((*m)->name, name))
            return *m;
    return NULL;
}

bool nn_build_input(nn_build *b, const char *chw, err *e)
{
    int end = 0;
    if (!chw || (sscanf(chw, "%9d,%9d,%9d%n", &b->c, &b->h, &b->w, &end) == 3 && !chw[end] &&
                 b->c > 0 && b->h > 0 && b->w > 0))
        return true;
    return err_set(e, ERR_USAGE, "--input %s: wanted C,H,W, for example 3,32,32", chw);
}

model_name model_name_of(const char *fmt, ...)
{
    model_name n;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(n.s, sizeof n.s, fmt, ap);
    va_end(ap);
    return n;
}

bool model_is_small(const nn_build *b) { return b->h <= 64 && b->w <= 64; }

/* ImageNet's statistics for colour, Fashion-MNIST's for grey. Large images are resized so that the
 * centre crop keeps 7/8 of the shorter side (256 for 224). */
static void print_prep(const nn_build *b, char out[256])
{
    const char *stats = b->c == 1 ? "mean=0.286 std=0.353" : "mean=0.485,0.456,0.406 std=0.229,0.224,0.225";
    int side = b->h > b->w ? b->h : b->w;
    int resize = model_is_small(b) ? 0 : (int)lround(side / 0.875);
    snprintf(out, 256, "size=%d,%d,%d resize=%d %s", b->h, b->w, b->c, resize, stats);
}

static bool check_build(const nn_model *m, const nn_build *b, err *e)
{
    if (b->classes < 1)
        return err_set(e, ERR_CONFIG, "%s: %d classes", m->name, b->classes);
    if (b->h < 1 || b->w < 1 || (b->c != 1 && b->c != 3))
        return err_set(e, ERR_CONFIG, "%s: input %d,%d,%d; wanted C,H,W with 1 or 3 channels", m->name,
                       b->c, b->h, b->w);
    if (!(b->width >= 0.05 && b->width <= 20))
        return err_set(e, ERR_CONFIG, "%s: width %g is not between 0.05 and 20", m->name, b->width);
    if (b->width != 1 && m != &nn_model_mobilenetv2)
        return err_set(e, ERR_CONFIG, "%s has one width only, not %g", m->name, b->width);
    return true;
}

nn_graph *model_start(const nn_model *m, nn_build *b, nn_barrier barrier, err *e)
{
    const nn_build *s = &m->standard;
    if (!b->classes) b->classes = s->classes;
    if (!b->h) b->h = s->h;
    if (!b->w) b->w = s->w;
    if (!b->c) b->c = s->c;
    if (b->width == 0) b->width = s->width;
    if (!check_build(m, b, e))
        return NULL;
    nn_graph *g = nn_graph_new(m->name, e);
    if (!g)
        return NULL;
    g->barrier = barrier;
    print_prep(b, g->prep);
    if (nn_add_input(g, "input", b->h, b->w, b->c, e) >= 0)
        return g;
    nn_graph_free(g);
    return NULL;
}

nn_graph *model_finish(nn_graph *g, int last)
{
    if (last < 0) {
        nn_graph_free(g);
        return NULL;
    }
    g->output = last;
    return g;
}

/* ---- by name or from a file ------------------------------------------------------------------------ */

/* What was asked for must be what the file holds; 0 asks for nothing. */
static bool check_file(const nn_graph *g, const nn_build *b, const char *path, err *e)
{
    const nn_node *in = nn_input(g, 0);
    const int *size = in ? in->attr.size : NULL;
    int64_t classes = g->node[g->output].dim[3];
    if (b->classes && b->classes != classes)
        return err_set(e, ERR_CONFIG, "%s has %lld classes, not %d", path, (long long)classes, b->classes);
    if (size && ((b->h && b->h != size[0]) || (b->w && b->w != size[1]) || (b->c && b->c != size[2])))
        return err_set(e, ERR_CONFIG, "%s takes input %d,%d,%d, not %d,%d,%d", path, size[2], size[0], size[1],
                       b->c, b->h, b->w);
    if (b->width != 0)
        return err_set(e, ERR_CONFIG, "%s is a file, its width cannot be chosen", path);
    return true;
}

static nn_graph *open_file(const char *path, const nn_build *b, err *e)
{
    nn_graph *g = nn_model_load(path, e);
    if (g && b && !check_file(g, b, path, e)) {
        nn_graph_free(g);
        return NULL;
    }
    return g;
}

nn_graph *nn_model_open(const char *name_or_file, const nn_build *b, uint64_t seed, err *e)
{
    const nn_model *m = nn_model_find(name_or_file);
    if (m) {
        nn_graph *g = m->build(b ? b : &m->standard, e);
        if (g)
            nn_state_init(g, seed);
        return g;
    }
    if (file_exists(name_or_file))
        return open_file(name_or_file, b, e);
    buf names = { 0 };
    for (const nn_model *const *p = nn_models; *p; p++)
        buf_printf(&names, " %s", (*p)->name);
    err_set(e, ERR_NOINPUT, "%s: no such model file; built in are%s", name_or_file, names.data ? names.data : "");
    buf_free(&names);
    return NULL;
}
