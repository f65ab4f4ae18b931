/* layermerge inspect: what is in a file or a builder: layers, shapes, multiply-adds, parameters;
 * with --segments the search space. A file without a graph is listed tensor by tensor. */
#include "core/cli.h"
#include "search/search.h"

#include <stdio.h>
#include <string.h>

typedef struct { const char *model, *input, *segments; int64_t classes; double width; bool identity; } inspect_options;

static const cli_option options[] = {
    { "model", CLI_TEXT, offsetof(inspect_options, model), NULL, NULL, "builder or file (or the word without dashes)" },
    CLI_BUILDER(inspect_options),
    { "segments", CLI_TEXT, offsetof(inspect_options, segments), NULL, NULL, "write the search space (CSV)" },
    { "identity", CLI_FLAG, offsetof(inspect_options, identity), NULL, NULL, "offer kernel 0 where everything may go" },
};

static int64_t node_params(const nn_graph *g, const nn_node *n)
{
    int64_t sum = 0;
    for (int i = 0; i < n->n_w; i++)
        if (g->param[n->w[i]].role != NN_RUNNING)
            sum += nn_param_count(&g->param[n->w[i]]);
    return sum;
}

/* Convolutions of the network, those of them that the search may touch, and those on skips, which the papers do not count. */
typedef struct { int convs, searched, projections; int64_t conv_macs, searched_macs, projection_macs; } totals;

static totals add_up(const nn_graph *g)
{
    totals t = { 0 };
    for (int i = 0; i < g->n_node; i++)
        if (g->node[i].op == NN_OP_conv2d) {
            int64_t macs = nn_node_macs(g, i);
            bool searched = !g->node[i].attr.fixed;
            t.convs++;
            t.searched += searched;
            t.conv_macs += macs;
            t.searched_macs += searched ? macs : 0;
        }
    err none = { 0 };
    search_chain *c = search_chain_new(g, &none);           /* NULL: nothing to search, no skips */
    for (int k = 0; c && k < c->n_skip; k++)
        if (c->skip[k].conv >= 0) {
            t.projections++;
            t.projection_macs += nn_node_macs(g, c->skip[k].conv);
        }
    search_chain_free(c);
    return t;
}

/* ---- a network ---------------------------------------------------------------------------------------- */

static void shape_json(json_writer *w, const char *key, const int64_t *d)
{
    json_begin(w, key, '[');
    json_int(w, NULL, d[3]);
    json_int(w, NULL, d[1]);
    json_int(w, NULL, d[2]);
    json_end(w, ']');
}

static void layers_json(json_writer *w, const nn_graph *g, const char *const *op)
{
    json_begin(w, "layers", '[');
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        json_begin(w, NULL, '{');
        json_text(w, "name", n->name);
        json_text(w, "op", op[n->op]);
        json_begin(w, "in", '[');
        for (int k = 0; k < n->n_in; k++)
            json_text(w, NULL, g->node[n->in[k]].name);
        json_end(w, ']');
        shape_json(w, "out", n->dim);
        json_int(w, "macs", nn_node_macs(g, i));
        json_int(w, "params", node_params(g, n));
        json_end(w, '}');
    }
    json_end(w, ']');
}

#define X(name) #name,
static const char *const op_names[] = { NN_OPS(X) };
#undef X

static void graph_json(const nn_graph *g, int entries, buf *out)
{
    totals t = add_up(g);
    json_writer w = json_writer_on(out, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "arch", g->arch);
    json_text(&w, "prep", g->prep);
    shape_json(&w, "input", g->node[0].dim);
    json_int(&w, "classes", g->node[g->output].dim[3]);
    json_int(&w, "macs", nn_graph_macs(g));
    json_int(&w, "params", nn_graph_weights(g));
    json_int(&w, "convs", t.convs);
    json_int(&w, "conv_macs", t.conv_macs);
    json_int(&w, "searched_convs", t.searched);
    json_int(&w, "searched_conv_macs", t.searched_macs);
    json_int(&w, "projections", t.projections);
    json_int(&w, "projection_macs", t.projection_macs);
    if (entries >= 0)
        json_int(&w, "entries", entries);
    layers_json(&w, g, op_names);
    json_end(&w, '}');
    buf_puts(out, "\n");
}

static void graph_text(const nn_graph *g, int entries, buf *out)
{
    buf_printf(out, "%s  %s\n\n%-28s %-11s %14s %14s %12s\n", g->arch, g->prep, "layer", "op", "output C,H,W",
               "multiply-adds", "parameters");
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        char shape[64];
        snprintf(shape, sizeof shape, "%lld,%lld,%lld", (long long)n->dim[3], (long long)n->dim[1], (long long)n->dim[2]);
        buf_printf(out, "%-28s %-11s %14s %14lld %12lld\n", n->name, op_names[n->op], shape,
                   (long long)nn_node_macs(g, i), (long long)node_params(g, n));
    }
    totals t = add_up(g);
    buf_printf(out, "\n%.2f M multiply-adds, %.3f M parameters; %d convs with %.2f M, of which %d with %.2f M are searched\n",
               (double)nn_graph_macs(g) / 1e6, (double)nn_graph_weights(g) / 1e6, t.convs, (double)t.conv_macs / 1e6,
               t.searched, (double)t.searched_macs / 1e6);
    if (t.projections)
        buf_printf(out, "without the %d projections of skips the convs have %.2f M\n", t.projections,
                   (double)(t.conv_macs - t.projection_macs) / 1e6);
    if (entries >= 0)
        buf_printf(out, "%d entries in the search space\n", entries);
}

static bool write_segments(const nn_graph *g, const inspect_options *o, int *entries, err *e)
{
    search_table t = { 0 };
    search_chain *c = search_chain_new(g, e);
    bool ok = c && search_enumerate(c, o->identity, &t, e) && search_write_entries(&t, o->segments, e);
    *entries = t.n;
    search_table_free(&t);
    search_chain_free(c);
    return ok;
}

/* ---- a file of tensors ---------------------------------------------------------------------------------- */

static void tensors_json(const tensor_file *f, buf *out)
{
    json_writer w = json_writer_on(out, false);
    json_begin(&w, NULL, '{');
    json_begin(&w, "tensors", '[');
    for (int i = 0; i < f->n; i++) {
        const tf_tensor *t = &f->tensor[i];
        json_begin(&w, NULL, '{');
        json_text(&w, "name", t->name);
        json_text(&w, "dtype", tf_dtype_names[t->dtype]);
        json_begin(&w, "shape", '[');
        for (int k = 0; k < t->rank; k++)
            json_int(&w, NULL, t->dim[k]);
        json_end(&w, ']');
        json_end(&w, '}');
    }
    json_end(&w, ']');
    json_end(&w, '}');
    buf_puts(out, "\n");
}

static void tensors_text(const tensor_file *f, buf *out)
{
    int64_t values = 0;
    for (int i = 0; i < f->n; i++) {
        const tf_tensor *t = &f->tensor[i];
        buf_printf(out, "%-48s %-5s ", t->name, tf_dtype_names[t->dtype]);
        for (int k = 0; k < t->rank; k++)
            buf_printf(out, "%s%lld", k ? "," : "", (long long)t->dim[k]);
        buf_puts(out, "\n");
        values += tf_count(t);
    }
    buf_printf(out, "\n%d tensors, %lld values; no graph: import makes a model of it\n", f->n, (long long)values);
}

/* 1: listed; 0: the file has a graph; -1: error. */
static int list_tensors(const char *path, bool as_json, buf *out, err *e)
{
    tensor_file f;
    if (!tensor_file_open(&f, path, e))
        return -1;
    bool bare = !tensor_file_meta(&f, "graph");
    if (bare && as_json)
        tensors_json(&f, out);
    else if (bare)
        tensors_text(&f, out);
    tensor_file_close(&f);
    return bare;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static bool inspect(const cli_common *c, const inspect_options *o, const char *model, buf *out, err *e)
{
    if (!nn_model_find(model) && file_exists(model)) {
        int listed = list_tensors(model, c->json, out, e);
        if (listed && o->segments && listed > 0)
            return err_set(e, ERR_DATA, "%s has no graph, so no search space", model);
        if (listed)
            return listed > 0;
    }
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    nn_graph *g = nn_build_input(&b, o->input, e) ? nn_model_open(model, &b, (uint64_t)c->seed, e) : NULL;
    int entries = -1;
    bool ok = g && (!o->segments || write_segments(g, o, &entries, e));
    if (ok)
        (c->json ? graph_json : graph_text)(g, entries, out);
    nn_graph_free(g);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    const inspect_options *o = opt;
    if (n_word + !!o->model != 1)
        return err_set(e, ERR_USAGE, "inspect wants one model: a builder or a file");
    const char *model = o->model ? o->model : word[0];
    if (!file_differ("--segments", o->segments, "the model", nn_model_find(model) ? NULL : model, e))
        return false;
    buf out = { 0 };
    bool ok = inspect(c, o, model, &out, e);
    if (ok && out.failed)
        ok = err_set(e, ERR_NOMEM, "no memory for the listing");
    if (ok && fwrite(out.data, 1, out.len, stdout) != out.len)
        ok = err_set(e, ERR_IO, "cannot write to standard output");
    buf_free(&out);
    return ok;
}

const cli_verb cmd_inspect = {
    "inspect", "list layers, shapes, multiply-adds and parameters; write the search space",
    options, CLI_COUNT(options), sizeof(inspect_options), "MODEL: builder or file", run,
};
