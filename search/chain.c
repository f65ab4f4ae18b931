/* The graph as a chain (ALGORITHM 1.1–1.3): convolutions with their norm, skip and activation on the
 * path from the input, everything else a barrier. Derived from the graph alone.
 *
 * The path follows the first input of every node, from the output backwards. On it, a group
 * "conv [batchnorm] [add …] [activation]" becomes one position; whatever stands between two groups
 * makes the node between them a barrier. */
#include "search/rewrite.h"

#include <math.h>
#include <stdio.h>

/* What is known about every graph node while the chain is built. */
typedef struct {
    const nn_graph *g;
    search_chain *c;
    int  *path, n_path;          /* ids from the input to the output */
    int  *level;                 /* chain node of a node on the path (0 … L); -1 off it */
    bool *whole;                 /* the tensor of that chain node, not something inside a group */
    bool *known;                 /* an add, projection or slice that belongs to a skip */
} scan;

static const nn_node *node_of(const scan *s, int id) { return &s->g->node[id]; }

static bool is_chain_conv(const nn_node *n) { return n->op == NN_OP_conv2d && !n->attr.fixed; }

static bool is_act(nn_opcode op) { return op == NN_OP_relu || op == NN_OP_relu6; }

static bool find_path(scan *s, err *e)
{
    const nn_graph *g = s->g;
    if (g->output < 0 || g->output >= g->n_node)
        return err_set(e, ERR_CONFIG, "%s: the graph has no output", g->arch);
    int n = 1;
    for (int v = g->output; g->node[v].n_in > 0; v = g->node[v].in[0])
        n++;
    s->n_path = n;
    for (int v = g->output; ; v = g->node[v].in[0]) {
        s->path[--n] = v;
        if (g->node[v].n_in == 0)
            return true;
    }
}

static search_chain *chain_alloc(const nn_graph *g, int L, int n_add, err *e)
{
    search_chain *c = mem_new(1, sizeof *c, e);
    if (!c)
        return NULL;
    size_t n = (size_t)L + 1;
    c->g = g;
    c->L = L;
    c->pos = mem_new(n, sizeof *c->pos, e);
    c->node = c->pos ? mem_new(n, sizeof *c->node, e) : NULL;
    c->barrier = c->node ? mem_new(n, sizeof *c->barrier, e) : NULL;
    c->native = c->barrier ? mem_new(n, sizeof *c->native, e) : NULL;
    c->skip = c->native ? mem_new((size_t)n_add, sizeof *c->skip, e) : NULL;
    if (c->skip)
        return c;
    search_chain_free(c);
    return NULL;
}

void search_chain_free(search_chain *c)
{
    if (!c)
        return;
    mem_free(c->pos);
    mem_free(c->node);
    mem_free(c->barrier);
    mem_free(c->native);
    mem_free(c->skip);
    mem_free(c);
}

/* ---- groups ------------------------------------------------------------------------------------- */

static double l1_norm(const nn_param *w)
{
    double sum = 0;
    for (int64_t i = 0, n = nn_param_count(w); i < n; i++)
        sum += fabs((double)w->x[i]);
    return sum;
}

static search_pos describe_conv(const nn_graph *g, int conv)
{
    const nn_node *n = &g->node[conv], *in = &g->node[n->in[0]];
    const nn_attr *a = &n->attr;
    search_pos p = { .conv = conv, .norm = -1, .add = -1, .act = -1,
                     .cin = (int)in->dim[3], .cout = (int)n->dim[3] };
    bool same = p.cin == p.cout;
    for (int d = 0; d < 2; d++) {
        p.k[d] = a->dilation[d] * (a->k[d] - 1) + 1;
        p.stride[d] = a->stride[d];
        same = same && a->stride[d] == 1 && n->dim[1 + d] == in->dim[1 + d] &&
               a->pad[2 * d] >= 0 && a->pad[2 * d + 1] >= 0;
    }
    p.irreducible = !same;
    p.depthwise = a->groups > 1 && a->groups == p.cin && a->groups == p.cout;
    p.l1 = l1_norm(&g->param[n->w[0]]);
    return p;
}

/* The nodes of a skip from the add's second input back to the path; false if it never gets there. */
static bool trace_skip(const scan *s, int add, search_skip *out)
{
    int v = node_of(s, add)->in[1];
    *out = (search_skip){ .s = -1, .add = add, .conv = -1, .norm = -1, .slice = -1, .fusible = true };
    if (s->level[v] < 0 && node_of(s, v)->op == NN_OP_batchnorm) {
        out->norm = v;
        v = node_of(s, v)->in[0];
    }
    if (s->level[v] < 0 && node_of(s, v)->op == NN_OP_conv2d) {
        out->conv = v;
        v = node_of(s, v)->in[0];
    } else if (s->level[v] < 0 && node_of(s, v)->op == NN_OP_slice && out->norm < 0) {
        out->slice = v;
        v = node_of(s, v)->in[0];
    }
    if (s->level[v] < 0 || (out->norm >= 0 && out->conv < 0)) {   /* another operation: stays as it is */
        out->conv = out->norm = out->slice = -1;
        out->fusible = false;
        while (s->level[v] < 0 && node_of(s, v)->n_in > 0)
            v = node_of(s, v)->in[0];
    }
    out->s = s->level[v];
    return out->s >= 0;
}

/* One position from path[p] on; returns the index behind it. */
static int read_group(scan *s, int p, int l)
{
    search_chain *c = s->c;
    search_pos *at = &c->pos[l];
    *at = describe_conv(s->g, s->path[p]);
    int v = s->path[p++];
    s->level[v] = l;
    if (p < s->n_path && node_of(s, s->path[p])->op == NN_OP_batchnorm)
        s->level[v = at->norm = s->path[p++]] = l;
    for (; p < s->n_path && node_of(s, s->path[p])->op == NN_OP_add; p++) {
        search_skip skip;
        int add = s->path[p];
        if (!trace_skip(s, add, &skip) || skip.s >= l)
            break;
        skip.t = l;
        c->skip[c->n_skip++] = skip;
        s->level[v = at->add = add] = l;
    }
    if (p < s->n_path && is_act(node_of(s, s->path[p])->op)) {
        s->level[v = at->act = s->path[p++]] = l;
        c->native[l] = true;
    }
    s->whole[v] = true;
    c->node[l] = v;
    return p;
}

static void read_groups(scan *s)
{
    search_chain *c = s->c;
    int l = 0;
    for (int p = 0; p < s->n_path; ) {
        int v = s->path[p];
        if (is_chain_conv(node_of(s, v))) {
            p = read_group(s, p, ++l);
            continue;
        }
        nn_opcode op = node_of(s, v)->op;
        s->level[v] = l;
        s->whole[v] = true;
        if (l == 0)
            c->node[0] = v;
        else if (l < c->L || (c->node[l] == node_of(s, v)->in[0] &&
                              (op == NN_OP_maxpool || op == NN_OP_avgpool)))
            c->barrier[l] = true;
        p++;
    }
    c->barrier[0] = node_of(s, c->node[0])->op != NN_OP_input;
    c->native[0] = is_act(node_of(s, c->node[0])->op);
    c->act = NN_OP_COUNT;
    for (int i = 1; i <= c->L && c->act == NN_OP_COUNT; i++)
        if (c->pos[i].act >= 0)
            c->act = node_of(s, c->pos[i].act)->op;
    for (int i = 0; i < s->n_path && c->act == NN_OP_COUNT; i++)
        if (is_act(node_of(s, s->path[i])->op))
            c->act = node_of(s, s->path[i])->op;
    if (c->act == NN_OP_COUNT)
        c->act = NN_OP_relu;
}

/* ---- skips ---------------------------------------------------------------------------------------- */

int search_skip_source(const search_chain *c, const search_skip *k)
{
    int first = k->conv >= 0 ? k->conv : k->slice;
    return first >= 0 ? c->g->node[first].in[0] : c->g->node[k->add].in[1];
}

static int users(const nn_graph *g, int node) { return nn_graph_users(g, node, NULL, 0); }

/* First row and column of the branch's kernel at the smallest it can become (irreducible convs only):
 * size k, padding before. Every other conv of the branch adds on both sides. */
static void least_branch(const search_chain *c, const search_skip *k, int size[2], int before[2], int stride[2])
{
    for (int d = 0; d < 2; d++) {
        size[d] = stride[d] = 1;
        before[d] = 0;
        for (int l = k->s + 1; l <= k->t; l++) {
            const search_pos *p = &c->pos[l];
            if (!p->irreducible)
                continue;
            size[d] += stride[d] * (p->k[d] - 1);
            before[d] += stride[d] * c->g->node[p->conv].attr.pad[2 * d];
            stride[d] *= p->stride[d];
        }
    }
}

/* Does the skip start right in front of a conv, and does its kernel lie inside the branch's? */
static bool can_fuse(const search_chain *c, const search_skip *k)
{
    const nn_graph *g = c->g;
    const int mid[3] = { k->conv, k->norm, k->slice };
    for (int i = 0; i < 3; i++)
        if (mid[i] >= 0 && users(g, mid[i]) != 1)
            return false;
    int first = k->conv >= 0 ? k->conv : k->slice;
    if (search_skip_source(c, k) != g->node[c->pos[k->s + 1].conv].in[0])
        return false;
    int size[2], before[2], stride[2];
    least_branch(c, k, size, before, stride);
    for (int d = 0; d < 2; d++) {
        int kp = 1, sp = 1, pp = 0;
        if (first >= 0) {
            const nn_attr *a = &g->node[first].attr;
            sp = a->stride[d];
            if (k->conv >= 0) {
                kp = a->dilation[d] * (a->k[d] - 1) + 1;
                pp = a->pad[2 * d];
            }
        }
        if (sp != stride[d] || before[d] < pp || before[d] - pp + kp > size[d])
            return false;
    }
    return true;
}

bool search_skip_is_identity(const search_chain *c, const search_skip *k)
{
    const nn_graph *g = c->g;
    int operand = g->node[k->add].in[1];
    for (int v = g->node[c->pos[k->s + 1].conv].in[0]; ; v = g->node[v].in[0]) {
        if (v == operand)
            return true;
        if ((k->s > 0 && v == c->node[k->s]) || g->node[v].n_in == 0)
            return false;
    }
}

/* Outer before inner: by start, longest first; of two with both ends equal the later add is outer. */
static bool goes_before(const search_skip *a, const search_skip *b)
{
    if (a->s != b->s)
        return a->s < b->s;
    return a->t != b->t ? a->t > b->t : a->add > b->add;
}

static void sort_skips(search_chain *c)
{
    for (int i = 1; i < c->n_skip; i++) {
        search_skip k = c->skip[i];
        int j = i;
        for (; j > 0 && goes_before(&k, &c->skip[j - 1]); j--)
            c->skip[j] = c->skip[j - 1];
        c->skip[j] = k;
    }
}

static void settle_skips(scan *s)
{
    search_chain *c = s->c;
    sort_skips(c);
    for (int i = 0; i < c->n_skip; i++) {
        search_skip *k = &c->skip[i];
        bool plain = k->fusible;         /* conv, slice or nothing: its source is not read otherwise */
        k->fusible = plain && can_fuse(c, k);
        s->known[k->add] = plain;
        if (plain && k->conv >= 0)
            s->known[k->conv] = true;
        if (plain && k->slice >= 0)
            s->known[k->slice] = true;
        for (int j = 0; j < i; j++)      /* overlapping without nesting */
            if (c->skip[j].s < k->s && k->s < c->skip[j].t && c->skip[j].t < k->t)
                c->skip[j].fusible = k->fusible = false;
    }
    for (int i = 0; i < c->n_skip; i++)
        if (!c->skip[i].fusible) {
            c->barrier[c->skip[i].s] = true;
            c->barrier[c->skip[i].t] = true;
        }
}

/* A tensor of the chain that anything else reads must exist: its node is a barrier. */
static bool settle_readers(scan *s, err *e)
{
    search_chain *c = s->c;
    for (int u = 0; u < s->g->n_node; u++) {
        const nn_node *n = node_of(s, u);
        for (int k = 0; k < n->n_in; k++) {
            int v = n->in[k], l = s->level[v];
            bool along = s->level[u] >= 0 && k == 0;
            if (l < 0 || along || s->known[u])
                continue;
            if (!s->whole[v])
                return err_set(e, ERR_CONFIG, "%s reads %s, which lies between a convolution and its "
                               "activation: such a network cannot be searched", n->name, node_of(s, v)->name);
            if (l > 0 && l < c->L)
                c->barrier[l] = true;
        }
    }
    for (int i = 0; i < c->n_skip; i++) {
        const search_skip *k = &c->skip[i];
        int v = search_skip_source(c, k);
        if (s->level[v] >= 0 && !s->whole[v])
            return err_set(e, ERR_CONFIG, "%s: its skip starts at %s, between a convolution and its "
                           "activation: such a network cannot be searched", node_of(s, k->add)->name,
                           node_of(s, v)->name);
    }
    return true;
}

/* ---- strides ---------------------------------------------------------------------------------------- */

static void settle_strides(search_chain *c)
{
    if (c->g->barrier == NN_BARRIER_NONE)
        return;
    for (int l = 1; l <= c->L; l++) {
        if (c->pos[l].stride[0] == 1 && c->pos[l].stride[1] == 1)
            continue;
        bool free_next = c->g->barrier == NN_BARRIER_STRIDE_1X1 && !c->barrier[l] && l < c->L &&
                         c->pos[l + 1].k[0] == 1 && c->pos[l + 1].k[1] == 1;
        c->barrier[l + free_next] = true;
    }
}

/* ---- the chain --------------------------------------------------------------------------------------- */

static bool build_chain(scan *s, err *e)
{
    if (!find_path(s, e))
        return false;
    int L = 0, adds = 0;
    for (int p = 0; p < s->n_path; p++) {
        L += is_chain_conv(node_of(s, s->path[p]));
        adds += node_of(s, s->path[p])->op == NN_OP_add;
    }
    if (L == 0)
        return err_set(e, ERR_CONFIG, "%s: no convolution to search", s->g->arch);
    s->c = chain_alloc(s->g, L, adds, e);
    if (!s->c)
        return false;
    read_groups(s);
    settle_skips(s);
    if (!settle_readers(s, e))
        return false;
    settle_strides(s->c);
    return true;
}

search_chain *search_chain_new(const nn_graph *g, err *e)
{
    size_t n = (size_t)g->n_node;
    scan s = { .g = g };
    s.path = mem_new(n, sizeof *s.path, e);
    s.level = s.path ? mem_new(n, sizeof *s.level, e) : NULL;
    s.whole = s.level ? mem_new(n, sizeof *s.whole, e) : NULL;
    s.known = s.whole ? mem_new(n, sizeof *s.known, e) : NULL;
    bool ok = s.known != NULL;
    for (size_t i = 0; ok && i < n; i++)
        s.level[i] = -1;
    ok = ok && build_chain(&s, e);
    mem_free(s.path);
    mem_free(s.level);
    mem_free(s.whole);
    mem_free(s.known);
    if (ok)
        return s.c;
    search_chain_free(s.c);
    return NULL;
}

/* ---- chain.txt ---------------------------------------------------------------------------------------- */

static void print_skips(const search_chain *c, buf *out)
{
    for (int i = 0; i < c->n_skip; i++) {
        const search_skip *k = &c->skip[i];
        const char *what = k->conv >= 0 ? "projection" : k->slice >= 0 ? "slice" :
                           search_skip_is_identity(c, k) ? "identity" : "other";
        int first = k->conv >= 0 ? k->conv : k->slice;
        buf_printf(out, "skip (%d,%d) %s%s%s%s\n", k->s, k->t, what, first >= 0 ? " " : "",
                   first >= 0 ? c->g->node[first].name : "", k->fusible ? "" : ", not fusible");
    }
}

void search_chain_print(const search_chain *c, buf *out)
{
    buf_printf(out, "%s: %d convolutions\nbarriers", c->g->arch, c->L);
    const char *comma = " ";
    for (int l = 0; l <= c->L; l++)
        if (c->barrier[l]) {
            buf_printf(out, "%s%d", comma, l);
            comma = ", ";
        }
    buf_puts(out, "\n pos  conv                                in   out  kernel  stride     size   kind   act   (! cannot be removed)\n");
    for (int l = 1; l <= c->L; l++) {
        const search_pos *p = &c->pos[l];
        const nn_node *n = &c->g->node[p->conv];
        char kernel[32], stride[32], size[48];
        snprintf(kernel, sizeof kernel, "%dx%d", p->k[0], p->k[1]);
        snprintf(stride, sizeof stride, "%dx%d", p->stride[0], p->stride[1]);
        snprintf(size, sizeof size, "%lldx%lld", (long long)n->dim[1], (long long)n->dim[2]);
        buf_printf(out, "%4d  %-32s %5d %5d %7s %7s %8s  %5s%s %4s\n", l, n->name, p->cin, p->cout, kernel,
                   stride, size, p->depthwise ? "dw" : n->attr.groups > 1 ? "group" : "dense",
                   p->irreducible ? "!" : " ", c->native[l] ? "yes" : "no");
    }
    print_skips(c, out);
}
