/* Graphs: append nodes, infer shapes, copy, prune, check. Nodes and parameters refer to each other
 * by index, so that a copy is a copy of two arrays. */
#include <stdio.h>
#include <string.h>

#include "nn/op.h"

static const int64_t max_values = (int64_t)1 << 31;     /* per image, and per parameter */

nn_graph *nn_graph_new(const char *arch, err *e)
{
    nn_graph *g = mem_new(1, sizeof *g, e);
    if (!g)
        return NULL;
    snprintf(g->arch, sizeof g->arch, "%s", arch);
    g->output = -1;
    return g;
}

void nn_graph_free(nn_graph *g)
{
    if (!g)
        return;
    for (int i = 0; i < g->n_param; i++)
        mem_free(g->param[i].x);
    mem_free(g->param);
    mem_free(g->node);
    mem_free(g);
}

/* Room for `more` items behind n; the array may move. */
static bool grow(void **a, int n, int more, int *cap, size_t size, err *e)
{
    if (n + more <= *cap)
        return true;
    int want = *cap ? *cap * 2 : 64;
    while (want < n + more)
        want *= 2;
    void *bigger = mem_new((size_t)want, size, e);
    if (!bigger)
        return false;
    if (n > 0)
        memcpy(bigger, *a, (size_t)n * size);
    mem_free(*a);
    *a = bigger;
    *cap = want;
    return true;
}

int nn_graph_find(const nn_graph *g, const char *name)
{
    for (int i = 0; i < g->n_node; i++)
        if (!strcmp(g->node[i].name, name))
            return i;
    return -1;
}

int nn_param_find(const nn_graph *g, const char *name)
{
    for (int i = 0; i < g->n_param; i++)
        if (!strcmp(g->param[i].name, name))
            return i;
    return -1;
}

int64_t nn_param_count(const nn_param *p)
{
    int64_t n = 1;
    for (int i = 0; i < p->rank; i++)
        n *= p->dim[i];
    return n;
}

int nn_graph_users(const nn_graph *g, int node, int *user, int max)
{
    int n = 0;
    for (int i = node + 1; i < g->n_node; i++)
        for (int k = 0; k < g->node[i].n_in; k++)
            if (g->node[i].in[k] == node) {
                if (n < max)
                    user[n] = i;
                n++;
                break;
            }
    return n;
}

/* ---- one node -------------------------------------------------------------------------------- */

static bool name_is_fine(const char *name, size_t room)
{
    size_t len = strlen(name);
    if (len == 0 || len >= room)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '.' || c == '-' || c == '/' || c == '+' || c == ':'))
            return false;
    }
    return true;
}

static bool check_attrs(const nn_node *n, err *e)
{
    const nn_op *op = nn_ops[n->op];
    for (int r = 0; r < NN_ATTR_COUNT; r++) {
        const nn_attr_row *row = &nn_attr_rows[r];
        for (int i = 0; i < row->count; i++) {
            double v = nn_attr_get(&n->attr, r, i);
            if (op->attrs & 1u << r) {
                if (!(v >= row->least && v <= row->greatest))
                    return err_set(e, ERR_CONFIG, "%s: %s is %g, wanted %g to %g", n->name,
                                   row->name, v, row->least, row->greatest);
            } else if (v != row->value &&
                       !(row->type == NN_ATTR_FLOAT && (float)v == (float)row->value)) {
                return err_set(e, ERR_CONFIG, "%s: %s has no attribute %s", n->name, op->name,
                               row->name);
            }
        }
    }
    return true;
}

/* Shapes of the node and of its parameters from its inputs. */
static bool infer(const nn_graph *g, nn_node *n, nn_dims *param, err *e)
{
    const nn_op *op = nn_ops[n->op];
    if (n->n_in < op->in_min || n->n_in > op->in_max)
        return err_set(e, ERR_CONFIG, "%s: %s takes %d to %d inputs, not %d", n->name, op->name,
                       op->in_min, op->in_max, n->n_in);
    const nn_node *in[4] = { 0 };
    for (int i = 0; i < n->n_in; i++)
        in[i] = &g->node[n->in[i]];
    if (!check_attrs(n, e))
        return false;
    if (!op->shape(n, in, param, e))
        return err_note(e, "%s", n->name);
    int64_t count = 1;
    n->dim[0] = 1;
    for (int i = 1; i < 4; i++) {
        if (n->dim[i] < 1 || n->dim[i] > max_values || (count *= n->dim[i]) > max_values)
            return err_set(e, ERR_CONFIG, "%s: output %lld x %lld x %lld is impossible", n->name,
                           (long long)n->dim[1], (long long)n->dim[2], (long long)n->dim[3]);
    }
    return true;
}

static bool add_params(nn_graph *g, nn_node *n, const nn_dims *dims, err *e)
{
    const nn_op *op = nn_ops[n->op];
    if (!grow((void **)&g->param, g->n_param, 5, &g->cap_param, sizeof *g->param, e))
        return false;
    for (int i = 0; i < 5 && op->param[i].suffix; i++) {
        if (op->param[i].if_bias && !n->attr.bias)
            continue;
        nn_param *p = &g->param[g->n_param];
        *p = (nn_param){ .role = op->param[i].role, .rank = dims[i].rank, .node = g->n_node };
        snprintf(p->name, sizeof p->name, "%s.%s", n->name, op->param[i].suffix);
        int64_t count = 1;
        for (int d = 0; d < p->rank; d++) {
            p->dim[d] = dims[i].dim[d];
            if (p->dim[d] < 1 || p->dim[d] > max_values || (count *= p->dim[d]) > max_values)
                return err_set(e, ERR_CONFIG, "%s: has impossibly many values", p->name);
        }
        p->x = mem_new((size_t)count, sizeof *p->x, e);
        if (!p->x)
            return err_note(e, "%s", p->name);
        for (int64_t k = 0; op->param[i].value != 0 && k < count; k++)
            p->x[k] = op->param[i].value;
        n->w[n->n_w++] = g->n_param++;
    }
    return true;
}

int nn_node_append(nn_graph *g, nn_opcode op, const char *name, const int *in, int n_in,
                   const nn_attr *attr, err *e)
{
    nn_node n = { .op = op, .n_in = n_in, .attr = *attr };
    nn_dims dims[5] = { 0 };
    if (n_in > 4)
        return err_set(e, ERR_CONFIG, "%s: %d inputs, at most 4 are possible", name, n_in), -1;
    for (int i = 0; i < n_in; i++) {
        if (in[i] < 0)           /* an earlier call failed and has set e */
            return -1;
        if (in[i] >= g->n_node)
            return err_set(e, ERR_INTERNAL, "%s: input %d is not a node of the graph", name, in[i]),
                   -1;
        n.in[i] = in[i];
    }
    if (!name_is_fine(name, sizeof n.name))
        return err_set(e, ERR_CONFIG, "\"%.100s\" is not a name of a node", name), -1;
    if (nn_graph_find(g, name) >= 0)
        return err_set(e, ERR_CONFIG, "two nodes are called %s", name), -1;
    snprintf(n.name, sizeof n.name, "%s", name);
    if (!infer(g, &n, dims, e) ||
        !grow((void **)&g->node, g->n_node, 1, &g->cap_node, sizeof *g->node, e))
        return -1;
    int had = g->n_param;
    if (!add_params(g, &n, dims, e)) {
        while (g->n_param > had)
            mem_free(g->param[--g->n_param].x);
        return -1;
    }
    g->node[g->n_node] = n;
    return g->n_node++;
}

int nn_node_add(nn_graph *g, nn_opcode op, const char *name, const int *in, int n_in,
                const nn_attr *attr, err *e)
{
    nn_attr a = attr ? *attr : (nn_attr){ 0 };
    for (int r = 0; r < NN_ATTR_COUNT; r++)
        for (int i = 0; i < nn_attr_rows[r].count; i++)
            if (nn_attr_get(&a, r, i) == 0)
                nn_attr_set(&a, r, i, nn_attr_rows[r].value);
    return nn_node_append(g, op, name, in, n_in, &a, e);
}

/* ---- shorthands ------------------------------------------------------------------------------ */

int nn_add_input(nn_graph *g, const char *name, int h, int w, int c, err *e)
{
    return nn_node_add(g, NN_OP_input, name, NULL, 0, &(nn_attr){ .size = { h, w, c } }, e);
}

int nn_add_conv(nn_graph *g, const char *name, int in, int out, int k, int stride, int pad,
                int groups, bool bias, bool fixed, err *e)
{
    nn_attr a = { .out = out, .k = { k, k }, .stride = { stride, stride },
                  .pad = { pad, pad, pad, pad }, .groups = groups, .bias = bias, .fixed = fixed };
    return nn_node_add(g, NN_OP_conv2d, name, &in, 1, &a, e);
}

int nn_add_op(nn_graph *g, nn_opcode op, const char *name, int in, err *e)
{
    return nn_node_add(g, op, name, &in, 1, NULL, e);
}

int nn_add_norm(nn_graph *g, const char *name, int in, err *e)
{
    return nn_add_op(g, NN_OP_batchnorm, name, in, e);
}

int nn_add_add(nn_graph *g, const char *name, int main_branch, int skip, err *e)
{
    return nn_node_add(g, NN_OP_add, name, (int[]){ main_branch, skip }, 2, NULL, e);
}

int nn_add_linear(nn_graph *g, const char *name, int in, int out, bool bias, err *e)
{
    return nn_node_add(g, NN_OP_linear, name, &in, 1, &(nn_attr){ .out = out, .bias = bias }, e);
}

/* A loss node; weight 0 is meant, not "fill in the default". */
static int add_loss(nn_graph *g, nn_opcode op, const char *name, int target, double weight,
                    double smoothing, double temperature, err *e)
{
    nn_attr a = nn_attr_default();
    a.weight = (float)weight;
    a.smoothing = (float)smoothing;
    a.temperature = (float)temperature;
    return nn_node_append(g, op, name, (int[]){ g->output, target }, 2, &a, e);
}

nn_graph *nn_graph_with_loss(const nn_graph *g, double smoothing, double kd, double temperature,
                             err *e)
{
    if (g->output < 0 || g->output >= g->n_node)
        return err_set(e, ERR_CONFIG, "%s: the graph has no output", g->arch), NULL;
    nn_graph *to = nn_graph_copy(g, e);
    if (!to)
        return NULL;
    const bool teach = temperature > 0;
    const int64_t *d = g->node[g->output].dim;
    int target = nn_add_input(to, "target", (int)d[1], (int)d[2], (int)d[3], e);
    int last =
        add_loss(to, NN_OP_softmax_xent, "loss", target, teach ? 1 - kd : 1, smoothing, 1, e);
    if (teach && last >= 0) {
        int teacher = nn_add_input(to, "teacher", (int)d[1], (int)d[2], (int)d[3], e);
        last = add_loss(to, NN_OP_distill, "distill", teacher, kd, 0, temperature, e);
    }
    if (last < 0) {
        nn_graph_free(to);
        return NULL;
    }
    return to;
}

/* ---- whole graphs ---------------------------------------------------------------------------- */

/* Copy the nodes that are wanted (NULL: all), parameters with their values. */
static nn_graph *copy_nodes(const nn_graph *g, const bool *wanted, err *e)
{
    nn_graph *to = nn_graph_new(g->arch, e);
    int *where = to ? mem_new((size_t)g->n_node, sizeof *where, e) : NULL;
    bool ok = where != NULL;
    for (int i = 0; ok && i < g->n_node; i++) {
        if (wanted && !wanted[i])
            continue;
        const nn_node *n = &g->node[i];
        int in[4] = { 0 };
        for (int k = 0; k < n->n_in; k++)
            in[k] = where[n->in[k]];
        where[i] = nn_node_append(to, n->op, n->name, in, n->n_in, &n->attr, e);
        ok = where[i] >= 0;
        for (int k = 0; ok && k < n->n_w; k++) {
            const nn_param *from = &g->param[n->w[k]];
            memcpy(to->param[to->node[where[i]].w[k]].x, from->x,
                   (size_t)nn_param_count(from) * sizeof *from->x);
        }
    }
    if (ok) {
        to->output = g->output >= 0 ? where[g->output] : -1;
        to->barrier = g->barrier;
        memcpy(to->prep, g->prep, sizeof to->prep);
    } else {
        nn_graph_free(to);
        to = NULL;
    }
    mem_free(where);
    return to;
}

nn_graph *nn_graph_copy(const nn_graph *g, err *e) { return copy_nodes(g, NULL, e); }

nn_graph *nn_graph_prune(const nn_graph *g, err *e)
{
    if (g->output < 0 || g->output >= g->n_node)
        return err_set(e, ERR_CONFIG, "%s: the graph has no output", g->arch), NULL;
    bool *wanted = mem_new((size_t)g->n_node, sizeof *wanted, e);
    if (!wanted)
        return NULL;
    for (int i = g->n_node - 1; i >= 0; i--) {
        wanted[i] = wanted[i] || i == g->output || nn_ops[g->node[i].op]->flags & NN_IS_LOSS;
        for (int k = 0; wanted[i] && k < g->node[i].n_in; k++)
            wanted[g->node[i].in[k]] = true;
    }
    nn_graph *to = copy_nodes(g, wanted, e);
    mem_free(wanted);
    return to;
}

static bool check_params(const nn_graph *g, const nn_node *n, int id, const nn_dims *dims, err *e)
{
    const nn_op *op = nn_ops[n->op];
    int k = 0;
    for (int i = 0; i < 5 && op->param[i].suffix; i++) {
        if (op->param[i].if_bias && !n->attr.bias)
            continue;
        if (k >= n->n_w || n->w[k] < 0 || n->w[k] >= g->n_param)
            return err_set(e, ERR_CONFIG, "%s: has no %s", n->name, op->param[i].suffix);
        const nn_param *p = &g->param[n->w[k++]];
        bool same =
            p->rank == dims[i].rank && p->role == op->param[i].role && p->node == id && p->x;
        for (int d = 0; same && d < p->rank; d++)
            same = p->dim[d] == dims[i].dim[d];
        if (!same)
            return err_set(e, ERR_CONFIG, "%s: has not the shape %s wants", p->name, n->name);
    }
    if (k != n->n_w)
        return err_set(e, ERR_CONFIG, "%s: has %d parameters, wants %d", n->name, n->n_w, k);
    return true;
}

bool nn_graph_check(const nn_graph *g, err *e)
{
    for (int i = 0; i < g->n_node; i++) {
        nn_node n = g->node[i];
        nn_dims dims[5] = { 0 };
        for (int k = 0; k < n.n_in; k++)
            if (n.in[k] < 0 || n.in[k] >= i)
                return err_set(e, ERR_CONFIG, "%s: input %d is not an earlier node", n.name,
                               n.in[k]);
        if (!name_is_fine(n.name, sizeof n.name) || nn_graph_find(g, n.name) != i)
            return err_set(e, ERR_CONFIG, "node %d: name \"%.95s\" is taken or impossible", i,
                           n.name);
        if (!infer(g, &n, dims, e) || !check_params(g, &n, i, dims, e))
            return false;
        if (memcmp(n.dim, g->node[i].dim, sizeof n.dim) != 0)
            return err_set(e, ERR_CONFIG, "%s: stored shape is not what its inputs give", n.name);
    }
    if (g->output < 0 || g->output >= g->n_node)
        return err_set(e, ERR_CONFIG, "%s: the graph has no output", g->arch);
    return true;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

const nn_node *nn_input(const nn_graph *g, int which)
{
    for (int i = 0; i < g->n_node; i++)
        if (g->node[i].op == NN_OP_input && which-- == 0)
            return &g->node[i];
    return NULL;
}

const nn_node *nn_only_input(const nn_graph *g)
{
    return nn_input(g, 1) ? NULL : nn_input(g, 0);
}

conv_shape nn_conv_shape(const nn_graph *g, int node, int batch)
{
    const nn_node *n = &g->node[node], *in = &g->node[n->in[0]];
    return nn_conv_window(n, in, batch);
}

int64_t nn_node_macs(const nn_graph *g, int node)
{
    if (!(nn_ops[g->node[node].op]->flags & NN_FOLD_NORM))
        return 0;
    conv_shape s = nn_conv_shape(g, node, 1);
    return conv_macs(&s);
}

int64_t nn_graph_macs(const nn_graph *g)
{
    int64_t sum = 0;
    for (int i = 0; i < g->n_node; i++)
        sum += nn_node_macs(g, i);
    return sum;
}

int64_t nn_graph_weights(const nn_graph *g)
{
    int64_t sum = 0;
    for (int i = 0; i < g->n_param; i++)
        if (g->param[i].role != NN_RUNNING)
            sum += nn_param_count(&g->param[i]);
    return sum;
}
