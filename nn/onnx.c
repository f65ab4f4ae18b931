/* Graph → ONNX, the network in evaluation mode. What an op is called there is in its own row, what
 * its attributes are called in a table here; a node becomes one ONNX node of the same name, which is
 * also the name of its value, and parameters keep theirs. An op that ONNX builds differently has a
 * row of its own below. Helpers that only ONNX needs are called NODE#what, which no node can be.
 *
 * Images are N,C,H,W there and rows of features N,C; here a row is an image of 1×1. A row stays a
 * row through the ops that do not care, and becomes an image again where one is wanted.
 *
 * Field numbers: onnx.proto of ONNX 1.8, IR version 7. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/io.h"
#include "nn/op.h"

enum { IR_VERSION = 7 };
enum { MODEL_IR = 1, MODEL_PRODUCER = 2, MODEL_GRAPH = 7, MODEL_OPSET = 8, MODEL_META = 14 };
enum { OPSET_VERSION = 2, META_KEY = 1, META_VALUE = 2 };
enum { GRAPH_NODE = 1, GRAPH_NAME = 2, GRAPH_TENSOR = 5, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12 };
enum { NODE_INPUT = 1, NODE_OUTPUT = 2, NODE_NAME = 3, NODE_OP = 4, NODE_ATTR = 5 };
enum { ATTR_NAME = 1, ATTR_FLOAT = 2, ATTR_INT = 3, ATTR_INTS = 8, ATTR_TYPE = 20 };
enum { TYPE_FLOAT = 1, TYPE_INT = 2, TYPE_INTS = 7 };
enum { TENSOR_DIM = 1, TENSOR_TYPE = 2, TENSOR_NAME = 8, TENSOR_RAW = 9, F32 = 1, I64 = 7 };
enum { VALUE_NAME = 1, VALUE_TYPE = 2, VALUE_TENSOR = 1, VALUE_ELEMENT = 1, VALUE_SHAPE = 2 };
enum { SHAPE_DIM = 1, DIM_VALUE = 1, DIM_NAME = 2 };

typedef struct {
    buf *out;
    const nn_graph *g;
    bool *row, *mapped;          /* per node: its value is N,C; NODE#map, N,C,1,1, is there too */
} writer;

typedef struct { char s[112]; } name;

static name helper(const char *node, const char *what)
{
    name n;
    snprintf(n.s, sizeof n.s, "%s#%s", node, what);
    return n;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

static void tensor_of(writer *w, const char *called, int type, int rank, const int64_t *dim,
                      const void *data, size_t bytes)
{
    const size_t at = pb_begin(w->out, GRAPH_TENSOR);
    for (int d = 0; d < rank; d++)
        pb_int(w->out, TENSOR_DIM, dim[d]);
    pb_int(w->out, TENSOR_TYPE, type);
    pb_text(w->out, TENSOR_NAME, called);
    pb_bytes(w->out, TENSOR_RAW, data, bytes);
    pb_end(w->out, at);
}

/* Inputs that are constants: written beside the node, then named as its next input. */
static name ints_of(writer *w, const char *node, const char *what, const int64_t *v, int64_t n)
{
    const name called = helper(node, what);
    tensor_of(w, called.s, I64, 1, &n, v, (size_t)n * sizeof *v);
    return called;
}

static name scalar_of(writer *w, const char *node, const char *what, float v)
{
    const name called = helper(node, what);
    tensor_of(w, called.s, F32, 0, NULL, &v, sizeof v);
    return called;
}

static size_t node_begin(writer *w, const char *op, const char *called)
{
    const size_t at = pb_begin(w->out, GRAPH_NODE);
    pb_text(w->out, NODE_NAME, called);
    pb_text(w->out, NODE_OP, op);
    pb_text(w->out, NODE_OUTPUT, called);
    return at;
}

static void input(writer *w, const char *value) { pb_text(w->out, NODE_INPUT, value); }

static void attr_int(writer *w, const char *called, int64_t v)
{
    const size_t at = pb_begin(w->out, NODE_ATTR);
    pb_text(w->out, ATTR_NAME, called);
    pb_int(w->out, ATTR_TYPE, TYPE_INT);
    pb_int(w->out, ATTR_INT, v);
    pb_end(w->out, at);
}

static void attr_ints(writer *w, const char *called, const int64_t *v, int n)
{
    const size_t at = pb_begin(w->out, NODE_ATTR);
    pb_text(w->out, ATTR_NAME, called);
    pb_int(w->out, ATTR_TYPE, TYPE_INTS);
    for (int i = 0; i < n; i++)
        pb_int(w->out, ATTR_INTS, v[i]);
    pb_end(w->out, at);
}

static void attr_float(writer *w, const char *called, float v)
{
    const size_t at = pb_begin(w->out, NODE_ATTR);
    pb_text(w->out, ATTR_NAME, called);
    pb_int(w->out, ATTR_TYPE, TYPE_FLOAT);
    pb_float(w->out, ATTR_FLOAT, v);
    pb_end(w->out, at);
}

/* ---- attributes ------------------------------------------------------------------------------ */

/* Those that ONNX has too; ints of one value are single unless they are lists there. */
static const struct { const char *called; bool list; } attr_rows[NN_ATTR_COUNT] = {
    [NN_AT_k] = { "kernel_shape", true },       [NN_AT_stride] = { "strides", true },
    [NN_AT_pad] = { "pads", true },             [NN_AT_dilation] = { "dilations", true },
    [NN_AT_groups] = { "group", false },        [NN_AT_eps] = { "epsilon", false },
    [NN_AT_count_pad] = { "count_include_pad", false },
};

/* Ours are top, bottom, left, right; theirs all beginnings before all ends. */
static const int pad_order[4] = { 0, 2, 1, 3 };

static void attribute(writer *w, const nn_attr *a, int row)
{
    int64_t v[4];
    const int n = nn_attr_rows[row].count;
    for (int i = 0; i < n; i++)
        v[i] = (int64_t)nn_attr_get(a, row, row == NN_AT_pad ? pad_order[i] : i);
    if (nn_attr_rows[row].type == NN_ATTR_FLOAT)
        attr_float(w, attr_rows[row].called, (float)nn_attr_get(a, row, 0));
    else if (attr_rows[row].list)
        attr_ints(w, attr_rows[row].called, v, n);
    else
        attr_int(w, attr_rows[row].called, v[0]);
}

/* ---- ops ------------------------------------------------------------------------------------- */

/* The name of a node's k-th input: an image, unless the node's value is a row. */
static name source(const writer *w, const nn_node *n, int k)
{
    const int from = n->in[k], self = (int)(n - w->g->node);
    name s;
    if (w->row[from] && !w->row[self])
        return helper(w->g->node[from].name, "map");
    snprintf(s.s, sizeof s.s, "%s", w->g->node[from].name);
    return s;
}

/* Inputs and parameters in our order, which is theirs, and attributes by name. */
static void plain(writer *w, const nn_node *n)
{
    const size_t at = node_begin(w, nn_ops[n->op]->onnx, n->name);
    for (int k = 0; k < n->n_in; k++)
        input(w, source(w, n, k).s);
    for (int k = 0; k < n->n_w; k++)
        input(w, w->g->param[n->w[k]].name);
    for (int r = 0; r < NN_ATTR_COUNT; r++)
        if (nn_ops[n->op]->attrs & 1u << r && attr_rows[r].called)
            attribute(w, &n->attr, r);
    pb_end(w->out, at);
}

static void clip(writer *w, const nn_node *n)
{
    const name low = scalar_of(w, n->name, "min", 0), high = scalar_of(w, n->name, "max", 6);
    const size_t at = node_begin(w, nn_ops[n->op]->onnx, n->name);
    input(w, source(w, n, 0).s);
    input(w, low.s);
    input(w, high.s);
    pb_end(w->out, at);
}

static void concat(writer *w, const nn_node *n)
{
    const size_t at = node_begin(w, nn_ops[n->op]->onnx, n->name);
    for (int k = 0; k < n->n_in; k++)
        input(w, source(w, n, k).s);
    attr_int(w, "axis", 1);
    pb_end(w->out, at);
}

/* pads: of channels, height, width at the beginning, then at the end. Negative ones cut. */
static void pad_by(writer *w, const nn_node *n, const char *value, const int64_t before[3],
                   const int64_t after[3])
{
    const int64_t v[8] = { 0, before[0], before[1], before[2], 0, after[0], after[1], after[2] };
    const name pads = ints_of(w, n->name, "pads", v, 8);
    const size_t at = node_begin(w, nn_ops[NN_OP_pad]->onnx, n->name);
    input(w, value);
    input(w, pads.s);
    pb_end(w->out, at);
}

static void pad(writer *w, const nn_node *n)
{
    const int *p = n->attr.pad;
    pad_by(w, n, source(w, n, 0).s, (int64_t[]){ 0, p[0], p[2] }, (int64_t[]){ 0, p[1], p[3] });
}

static void slice(writer *w, const nn_node *n)
{
    const nn_attr *a = &n->attr;
    const bool wider = a->chan[0] || a->chan[1];
    const name starts = ints_of(w, n->name, "starts", (int64_t[]){ 0, 0 }, 2);
    const name ends = ints_of(w, n->name, "ends", (int64_t[]){ INT64_MAX, INT64_MAX }, 2);
    const name axes = ints_of(w, n->name, "axes", (int64_t[]){ 2, 3 }, 2);
    const name steps = ints_of(w, n->name, "steps", (int64_t[]){ a->stride[0], a->stride[1] }, 2);
    const name narrow = helper(n->name, "slice");
    const size_t at = node_begin(w, nn_ops[n->op]->onnx, wider ? narrow.s : n->name);
    input(w, source(w, n, 0).s);
    input(w, starts.s);
    input(w, ends.s);
    input(w, axes.s);
    input(w, steps.s);
    pb_end(w->out, at);
    if (wider)
        pad_by(w, n, narrow.s, (int64_t[]){ a->chan[0], 0, 0 }, (int64_t[]){ a->chan[1], 0, 0 });
}

/* Weights are over the flattened C,H,W image, as PyTorch has them. */
static void linear(writer *w, const nn_node *n)
{
    name from = source(w, n, 0);
    if (!w->row[n->in[0]]) {
        const name flat = helper(n->name, "flat");
        const size_t at = node_begin(w, "Flatten", flat.s);
        input(w, from.s);
        attr_int(w, "axis", 1);
        pb_end(w->out, at);
        from = flat;
    }
    const size_t at = node_begin(w, nn_ops[n->op]->onnx, n->name);
    input(w, from.s);
    for (int k = 0; k < n->n_w; k++)
        input(w, w->g->param[n->w[k]].name);
    attr_int(w, "transB", 1);
    pb_end(w->out, at);
}

/* How a node is written (default: plain), and what it makes of rows. */
typedef enum { IMAGE, AS_INPUTS, ROW } shape_rule;
static const struct {
    void (*write)(writer *, const nn_node *);
    shape_rule shape;
} op_rows[NN_OP_COUNT] = {
    [NN_OP_relu] = { plain, AS_INPUTS },    [NN_OP_relu6] = { clip, AS_INPUTS },
    [NN_OP_add] = { plain, AS_INPUTS },     [NN_OP_batchnorm] = { plain, AS_INPUTS },
    [NN_OP_dropout] = { plain, AS_INPUTS }, [NN_OP_concat] = { concat, AS_INPUTS },
    [NN_OP_pad] = { pad, IMAGE },           [NN_OP_slice] = { slice, IMAGE },
    [NN_OP_linear] = { linear, ROW },
};

/* NODE#map: a row as an image of 1×1. */
static void map_row(writer *w, int id)
{
    const char *row = w->g->node[id].name;
    const name axes = ints_of(w, row, "axes", (int64_t[]){ 2, 3 }, 2);
    const size_t at = node_begin(w, "Unsqueeze", helper(row, "map").s);
    input(w, row);
    input(w, axes.s);
    pb_end(w->out, at);
    w->mapped[id] = true;
}

static void node_of(writer *w, int id)
{
    const nn_node *n = &w->g->node[id];
    const shape_rule rule = op_rows[n->op].shape;
    bool rows = true;
    for (int k = 0; k < n->n_in; k++)
        rows = rows && w->row[n->in[k]];
    w->row[id] = rule == ROW || (rule == AS_INPUTS && rows);
    for (int k = 0; k < n->n_in; k++)
        if (w->row[n->in[k]] && !w->row[id] && !w->mapped[n->in[k]])
            map_row(w, n->in[k]);
    (op_rows[n->op].write ? op_rows[n->op].write : plain)(w, n);
    for (int k = 0; k < n->n_w; k++) {
        const nn_param *p = &w->g->param[n->w[k]];
        tensor_of(w, p->name, F32, p->rank, p->dim, p->x, (size_t)nn_param_count(p) * sizeof *p->x);
    }
}

/* ---- the model ------------------------------------------------------------------------------- */

/* Any number of images N. */
static void value_of(writer *w, int field, int id)
{
    const nn_node *n = &w->g->node[id];
    const int64_t dim[3] = { n->dim[3], n->dim[1], n->dim[2] };
    buf *b = w->out;
    const size_t value = pb_begin(b, field);
    pb_text(b, VALUE_NAME, n->name);
    const size_t type = pb_begin(b, VALUE_TYPE), tensor_type = pb_begin(b, VALUE_TENSOR);
    pb_int(b, VALUE_ELEMENT, F32);
    const size_t shape = pb_begin(b, VALUE_SHAPE);
    size_t at = pb_begin(b, SHAPE_DIM);
    pb_text(b, DIM_NAME, "N");
    pb_end(b, at);
    for (int d = 0; d < (w->row[id] ? 1 : 3); d++) {
        at = pb_begin(b, SHAPE_DIM);
        pb_int(b, DIM_VALUE, dim[d]);
        pb_end(b, at);
    }
    pb_end(b, shape);
    pb_end(b, tensor_type);
    pb_end(b, type);
    pb_end(b, value);
}

static void graph_of(writer *w)
{
    const size_t at = pb_begin(w->out, MODEL_GRAPH);
    pb_text(w->out, GRAPH_NAME, w->g->arch);
    for (int i = 0; i < w->g->n_node; i++)
        if (w->g->node[i].op == NN_OP_input)
            value_of(w, GRAPH_INPUT, i);
        else
            node_of(w, i);
    value_of(w, GRAPH_OUTPUT, w->g->output);
    pb_end(w->out, at);
}

static void meta_of(buf *out, const char *key, const char *value, size_t len)
{
    const size_t at = pb_begin(out, MODEL_META);
    pb_text(out, META_KEY, key);
    pb_bytes(out, META_VALUE, value, len);
    pb_end(out, at);
}

/* "size=224,224,3 resize=256 mean=…": preprocessing is not part of the graph, every word of it is a
 * property of the model. */
static void prep_of(buf *out, const char *prep)
{
    for (const char *word = prep; *word; ) {
        const size_t len = strcspn(word, " ");
        const char *equals = memchr(word, '=', len);
        char key[64];
        if (equals && equals - word < (int)sizeof key) {
            snprintf(key, sizeof key, "%.*s", (int)(equals - word), word);
            meta_of(out, key, equals + 1, len - (size_t)(equals + 1 - word));
        }
        word += len + strspn(word + len, " ");
    }
}

/* Names must differ across nodes and parameters; those of one kind do. Losses have no ONNX. */
static bool can_write(const nn_graph *g, err *e)
{
    for (int i = 0; i < g->n_node; i++)
        if (!nn_ops[g->node[i].op]->onnx[0] && g->node[i].op != NN_OP_input)
            return err_set(e, ERR_CONFIG, "%s: ONNX has no %s", g->node[i].name,
                           nn_ops[g->node[i].op]->name);
    for (int i = 0; i < g->n_param; i++)
        if (nn_graph_find(g, g->param[i].name) >= 0)
            return err_set(e, ERR_CONFIG, "a node and a parameter are both called %s", g->param[i].name);
    return true;
}

static bool write_model(writer *w, const nn_meta *extra, int n, err *e)
{
    buf *out = w->out;
    pb_int(out, MODEL_IR, IR_VERSION);
    pb_text(out, MODEL_PRODUCER, "layermerge");
    const size_t at = pb_begin(out, MODEL_OPSET);
    pb_int(out, OPSET_VERSION, NN_ONNX_OPSET);
    pb_end(out, at);
    meta_of(out, "arch", w->g->arch, strlen(w->g->arch));
    prep_of(out, w->g->prep);
    for (int i = 0; i < n; i++)
        meta_of(out, extra[i].key, extra[i].value, strlen(extra[i].value));
    graph_of(w);
    if (out->failed)
        return err_set(e, ERR_NOMEM, "out of memory");
    return out->len <= INT32_MAX ||
           err_set(e, ERR_CONFIG, "%s takes %zu bytes, an ONNX file holds less than 2 GiB",
                   w->g->arch, out->len);
}

bool nn_onnx_print(const nn_graph *g, const nn_meta *extra, int n, buf *out, err *e)
{
    nn_graph *needed = nn_graph_prune(g, e);
    writer w = { .out = out, .g = needed };
    bool ok = needed && can_write(needed, e);
    w.row = ok ? mem_new((size_t)needed->n_node, sizeof *w.row, e) : NULL;
    w.mapped = w.row ? mem_new((size_t)needed->n_node, sizeof *w.mapped, e) : NULL;
    ok = w.mapped && write_model(&w, extra, n, e);
    mem_free(w.row);
    mem_free(w.mapped);
    nn_graph_free(needed);
    return ok;
}
