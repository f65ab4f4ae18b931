/* Parameters: initialise, copy, save and load. A model file is a safetensors file whose metadata
 * carries the graph's text, so that it can be opened by code that knows no builder. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/io.h"
#include "nn/op.h"

/* ---- initialise ------------------------------------------------------------------------------ */

static void fill(nn_param *p, float v)
{
    for (int64_t i = nn_param_count(p) - 1; i >= 0; i--)
        p->x[i] = v;
}

static void fill_uniform(nn_param *p, double bound, rng r)
{
    const int64_t n = nn_param_count(p);
    for (int64_t i = 0; i < n; i++)
        p->x[i] = (float)(bound * (2 * rng_uniform(&r) - 1));
}

static void fill_normal(nn_param *p, double deviation, rng r)
{
    const int64_t n = nn_param_count(p);
    for (int64_t i = 0; i < n; i++)
        p->x[i] = (float)(deviation * rng_normal(&r));
}

/* What the op's row says: norms 1, 0, 0, 1, everything else 0. */
static void fill_default(const nn_graph *g, nn_param *p)
{
    const char *suffix = strrchr(p->name, '.') + 1;
    const nn_param_row *row = nn_ops[g->node[p->node].op]->param;
    while (row->suffix && strcmp(row->suffix, suffix) != 0)
        row++;
    fill(p, row->value);
}

static double fan_in(const nn_param *weight)
{
    return (double)nn_param_count(weight) / (double)weight->dim[0];
}

void nn_state_init(nn_graph *g, uint64_t seed)
{
    for (int i = 0; i < g->n_param; i++) {
        nn_param *p = &g->param[i];
        const nn_node *n = &g->node[p->node];
        const nn_param *weight = &g->param[n->w[0]];
        const rng r = rng_at(seed, RNG_INIT, 0, (uint64_t)i);
        if (weight->role == NN_WEIGHT && weight->rank == 2)
            fill_uniform(p, 1 / sqrt(fan_in(weight)), r);
        else if (p->role == NN_WEIGHT)   /* He et al. 2015; fan out O*kh*kw as torchvision has it */
            fill_normal(p, sqrt(2.0 / (double)(p->dim[0] * p->dim[2] * p->dim[3])), r);
        else
            fill_default(g, p);
    }
}

void nn_state_reset(nn_graph *g, int node, uint64_t seed, uint64_t index)
{
    const nn_node *n = &g->node[node];
    for (int k = 0; k < n->n_w; k++) {
        nn_param *p = &g->param[n->w[k]];
        if (p->role == NN_WEIGHT || p->role == NN_BIAS)
            fill_uniform(p, 1 / sqrt(fan_in(&g->param[n->w[0]])),
                         rng_at(seed, RNG_INIT, 1 + (uint32_t)k, index));
        else
            fill_default(g, p);
    }
}

static bool same_shape(const nn_param *a, const nn_param *b)
{
    bool same = a->rank == b->rank;
    for (int d = 0; same && d < a->rank; d++)
        same = a->dim[d] == b->dim[d];
    return same;
}

int nn_state_copy(nn_graph *to, const nn_graph *from)
{
    int copied = 0;
    for (int i = 0; i < to->n_param; i++) {
        const int k = nn_param_find(from, to->param[i].name);
        if (k < 0 || !same_shape(&to->param[i], &from->param[k]))
            continue;
        memcpy(to->param[i].x, from->param[k].x,
               (size_t)nn_param_count(&from->param[k]) * sizeof(float));
        copied++;
    }
    return copied;
}

/* ---- files ----------------------------------------------------------------------------------- */

static const char format_name[] = "layermerge-1";

/* All parameters; borrowed from g. */
static tf_tensor *tensors_of(const nn_graph *g, err *e)
{
    tf_tensor *t = mem_new((size_t)g->n_param, sizeof *t, e);
    for (int i = 0; t && i < g->n_param; i++) {
        const nn_param *p = &g->param[i];
        t[i] = (tf_tensor){ .name = (char *)p->name, .dtype = DT_F32, .rank = p->rank,
                            .data = (const char *)p->x };
        int64_t step = 1;
        for (int d = p->rank - 1; d >= 0; d--) {
            t[i].dim[d] = p->dim[d];
            t[i].stride[d] = step;
            step *= p->dim[d];
        }
    }
    return t;
}

bool nn_model_save(const nn_graph *g, const char *path, const nn_meta *extra, int n, err *e)
{
    buf text = { 0 };
    tf_tensor *t = tensors_of(g, e);
    text_pair *meta = mem_new((size_t)n + 5, sizeof *meta, e);
    bool ok = t && meta;
    nn_graph_print(g, &text);
    if (text.failed)
        ok = err_set(e, ERR_NOMEM, "%s: no memory for the graph's text", path);
    if (ok) {
        const text_pair own[5] = { { "format", format_name },
                                   { "graph", text.data },
                                   { "arch", g->arch },
                                   { "barrier", nn_barrier_names[g->barrier] },
                                   { "prep", g->prep } };
        memcpy(meta, own, sizeof own);
        for (int i = 0; i < n; i++)
            meta[5 + i] = (text_pair){ extra[i].key, extra[i].value };
        ok = safetensors_write(path, t, g->n_param, meta, n + 5, e);
    }
    buf_free(&text);
    mem_free(t);
    mem_free(meta);
    return ok;
}

bool nn_weights_save(const nn_graph *g, const char *path, err *e)
{
    tf_tensor *t = tensors_of(g, e);
    bool ok = t && safetensors_write(path, t, g->n_param, &(text_pair){ "format", "pt" }, 1, e);
    mem_free(t);
    return ok;
}

void nn_dims_print(buf *out, int rank, const int64_t *dim)
{
    for (int i = 0; i < rank; i++)
        buf_printf(out, "%s%lld", i ? "x" : "", (long long)dim[i]);
    if (!rank)
        buf_puts(out, "a scalar");
}

static bool misshapen(const nn_param *p, const tf_tensor *t, err *e)
{
    buf b = { 0 };
    buf_puts(&b, "is ");
    nn_dims_print(&b, t->rank, t->dim);
    buf_puts(&b, ", wants ");
    nn_dims_print(&b, p->rank, p->dim);
    err_set(e, ERR_DATA, "tensor %s %s", p->name, b.failed ? "is of another shape" : b.data);
    buf_free(&b);
    return false;
}

static bool load_param(nn_param *p, const tensor_file *f, err *e)
{
    const tf_tensor *t = tensor_file_find(f, p->name);
    if (!t)
        return err_set(e, ERR_DATA, "tensor %s is missing", p->name);
    bool same = t->rank == p->rank;
    for (int d = 0; same && d < p->rank; d++)
        same = t->dim[d] == p->dim[d];
    return same ? tf_read_f32(t, p->x, e) : misshapen(p, t, e);
}

static nn_graph *read_model(const tensor_file *f, err *e)
{
    const char *text = tensor_file_meta(f, "graph");
    if (!text)
        return err_set(e, ERR_DATA, "the file carries no graph; import it with a builder's name"),
               NULL;
    nn_graph *g = nn_graph_parse(text, e);
    bool ok = g && nn_graph_check(g, e);
    for (int i = 0; ok && i < g->n_param; i++)
        ok = load_param(&g->param[i], f, e);
    for (int i = 0; ok && i < f->n; i++)
        if (nn_param_find(g, f->tensor[i].name) < 0)
            ok = err_set(e, ERR_DATA, "tensor %s belongs to no node of the graph",
                         f->tensor[i].name);
    if (ok)
        return g;
    nn_graph_free(g);
    return NULL;
}

nn_graph *nn_model_load(const char *path, err *e)
{
    tensor_file f;
    if (!tensor_file_open(&f, path, e))
        return NULL;
    nn_graph *g = read_model(&f, e);
    if (!g) {
        if (e && e->code == ERR_CONFIG)          /* shapes that do not fit, but in a file */
            e->code = ERR_DATA;
        err_note(e, "%s", path);
    }
    tensor_file_close(&f);
    return g;
}
