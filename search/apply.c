/* A solution applied to a chain: the pruned, un-merged network (ALGORITHM 2.3–2.7, 4.1, 6.1, A.3).
 *
 * First the plan: what is kept, where padding goes, how much larger every tensor becomes. Then one
 * walk over the original graph, node by node, in which every node is copied, changed or passed
 * through; the same walk makes the merged network (merge.c), where only the last conv of a segment
 * leaves a node behind. Names are the original's, so weights find their place. */
#include "search/rewrite.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- is it a solution of this chain? -------------------------------------------------------------- */

/* What the row says its conv will be, against what its kept convs make. */
static bool check_merged(const search_chain *c, const search_entry *r, err *e)
{
    int ker = search_kernel_of(c, r->keep, r->n_keep), str = search_stride_of(c, r->st, r->end);
    bool depthwise = r->n_keep > 0;
    for (int i = 0; i < r->n_keep; i++)
        depthwise = depthwise && c->pos[r->keep[i]].depthwise;
    if (r->ker != ker)
        return err_set(e, ERR_DATA, "segment (%d,%d]: the kept convs merge to kernel %d, not %d", r->st, r->end, ker, r->ker);
    if (r->str != str)
        return err_set(e, ERR_DATA, "segment (%d,%d]: its convs have stride %d together, not %d", r->st, r->end, str, r->str);
    if (r->is_dw != depthwise)
        return err_set(e, ERR_DATA, "segment (%d,%d]: the kept convs are %sdepthwise", r->st, r->end,
                       depthwise ? "" : "not all ");
    return true;
}

static bool check_segment(const search_chain *c, const search_entry *r, int at, err *e)
{
    if (r->st != at)
        return err_set(e, ERR_DATA, "segment (%d,%d] does not start at %d, where the one before ends", r->st, r->end, at);
    if (!search_segment_valid(c, r->st, r->end))
        return err_set(e, ERR_DATA, "segment (%d,%d] is not a segment of %s (1 to %d): it breaks a barrier or a skip",
                       r->st, r->end, c->g->arch, c->L);
    for (int i = 0; i < r->n_keep; i++)
        if (r->keep[i] <= (i ? r->keep[i - 1] : r->st) || r->keep[i] > r->end)
            return err_set(e, ERR_DATA, "segment (%d,%d] keeps conv %d: wanted ascending numbers from %d to %d",
                           r->st, r->end, r->keep[i], r->st + 1, r->end);
    for (int i = 0, l = r->st + 1; l <= r->end; l++) {
        while (i < r->n_keep && r->keep[i] < l)
            i++;
        bool kept = i < r->n_keep && r->keep[i] == l;
        if (!kept && c->pos[l].irreducible)
            return err_set(e, ERR_DATA, "segment (%d,%d] leaves out conv %d (%s), which changes the shape",
                           r->st, r->end, l, c->g->node[c->pos[l].conv].name);
    }
    return check_merged(c, r, e);
}

/* act and conv repeat what the segments say; when they are there they must say the same. */
static bool check_lists(const search_chain *c, const search_solution *s, err *e)
{
    bool same = s->n_act == 0 || (s->n_act == s->n_segment + 1 && s->act[0] == 0);
    for (int m = 0; same && s->n_act && m < s->n_segment; m++)
        same = s->act[m + 1] == s->segment[m].end;
    if (!same)
        return err_set(e, ERR_DATA, "\"act\" does not list 0 and the ends of the %d segments", s->n_segment);
    int n = 0;
    for (int m = 0; m < s->n_segment; m++)
        for (int i = 0; i < s->segment[m].n_keep; i++, n++)
            same = same && (s->n_conv == 0 || (n + 1 < s->n_conv && s->conv[n + 1] == s->segment[m].keep[i]));
    if (!same || (s->n_conv > 0 && (s->n_conv != n + 1 || s->conv[0] != 0)))
        return err_set(e, ERR_DATA, "\"conv\" does not list 0 and the %d convs that the segments of %s keep", n, c->g->arch);
    return true;
}

static bool check_solution(const search_chain *c, const search_solution *s, err *e)
{
    if (!s->feasible)
        return err_set(e, ERR_DATA, "the solution is infeasible: there is nothing to apply");
    int at = 0;
    for (int m = 0; m < s->n_segment; m++) {
        if (!check_segment(c, &s->segment[m], at, e))
            return false;
        at = s->segment[m].end;
    }
    if (at != c->L)
        return err_set(e, ERR_DATA, "the segments end at %d, but %s has %d convolutions", at, c->g->arch, c->L);
    return check_lists(c, s, e);
}

/* ---- the plan ---------------------------------------------------------------------------------------- */

/* A branch is empty when no conv of it is kept, nothing else ever stood in it, no projection is
 * inside and no skip from before ends inside. Skips are sorted outer before inner. */
static bool branch_is_empty(const rewrite_plan *p, int k)
{
    const search_chain *c = p->c;
    int s = c->skip[k].s, t = c->skip[k].t, at = search_skip_source(c, &c->skip[k]);
    for (int l = s + 1; l <= t; at = c->node[l++])
        if (p->kept[l] || c->g->node[c->pos[l].conv].in[0] != at)
            return false;
    for (int n = 0; n < c->n_skip; n++) {
        const search_skip *o = &c->skip[n];
        if ((n > k && o->s >= s && o->t <= t && !p->skip[n].identity) || (o->s < s && o->t > s && o->t < t))
            return false;
    }
    return true;
}

static void plan_skips(rewrite_plan *p)
{
    const search_chain *c = p->c;
    for (int k = 0; k < c->n_skip; k++)
        p->skip[k].identity = search_skip_is_identity(c, &c->skip[k]);
    for (int k = 0; k < c->n_skip; k++) {
        const search_skip *skip = &c->skip[k];
        p->skip[k].fused = skip->fusible && p->segment[skip->s + 1] == p->segment[skip->t];
        p->skip[k].empty = branch_is_empty(p, k);
    }
}

/* Boundaries are active if the original is or if their segment is longer than one conv (6.1); not
 * inside a branch that contributes nothing. */
static void plan_acts(rewrite_plan *p)
{
    const search_chain *c = p->c;
    for (int m = 0; m < p->s->n_segment; m++) {
        const search_entry *r = &p->s->segment[m];
        p->active[r->end] = c->native[r->end] || r->end - r->st > 1;
    }
    for (int k = 0; k < c->n_skip; k++)
        for (int l = c->skip[k].s + 1; p->skip[k].empty && l < c->skip[k].t; l++)
            p->active[l] = false;
}

/* The first conv of a segment that still computes: a kept one, or the projection of a skip around an
 * empty branch. Before it no tensor can be larger than the original. */
static int first_conv(const rewrite_plan *p, const search_entry *r)
{
    int first = r->n_keep ? r->keep[0] : r->end + 1;
    for (int k = 0; k < p->c->n_skip; k++) {
        int at = p->c->skip[k].s + 1;
        if (p->skip[k].fused && p->skip[k].empty && !p->skip[k].identity && at > r->st && at < first)
            first = at;
    }
    return first;
}

static void plan_padding(rewrite_plan *p, const search_entry *r)
{
    const search_chain *c = p->c;
    int first = first_conv(p, r), need[4] = { 0 };
    for (int l = r->end; l >= first; l--) {
        memcpy(p->excess[l], need, sizeof need);
        if (!p->kept[l])
            continue;
        const search_pos *pos = &c->pos[l];
        for (int i = 0; i < 4; i++)
            need[i] = c->g->node[pos->conv].attr.pad[i] + pos->stride[i / 2] * need[i];
        if (l == first)
            memcpy(p->pad[l], need, sizeof need);
    }
}

/* A projection with stride S reads S rows for each row that the branch is larger. What it needs
 * beyond its input is its own padding, which the input's surplus replaces first. */
static void plan_operands(rewrite_plan *p)
{
    const search_chain *c = p->c;
    for (int k = 0; k < c->n_skip; k++) {
        const search_skip *skip = &c->skip[k];
        skip_plan *to = &p->skip[k];
        int first = skip->conv >= 0 ? skip->conv : skip->slice;
        const nn_attr *a = first >= 0 ? &c->g->node[first].attr : NULL;
        for (int i = 0; i < 4; i++) {
            int more = p->excess[skip->t][i] * (a ? a->stride[i / 2] : 1) - p->excess[skip->s][i];
            to->pad[i] = to->fused ? more : 0;
            if (skip->conv < 0)
                continue;
            int need = a->pad[i] + to->pad[i];
            to->own[i] = need > 0 ? need : 0;
            to->pad[i] = need < 0 ? need : 0;
        }
    }
}

static bool plan_alloc(rewrite_plan *p, err *e)
{
    size_t n = (size_t)p->c->L + 1;
    p->segment = mem_new(n, sizeof *p->segment, e);
    p->kept = p->segment ? mem_new(n, sizeof *p->kept, e) : NULL;
    p->boundary = p->kept ? mem_new(n, sizeof *p->boundary, e) : NULL;
    p->active = p->boundary ? mem_new(n, sizeof *p->active, e) : NULL;
    p->excess = p->active ? mem_new(n, sizeof *p->excess, e) : NULL;
    p->pad = p->excess ? mem_new(n, sizeof *p->pad, e) : NULL;
    p->skip = p->pad ? mem_new((size_t)p->c->n_skip, sizeof *p->skip, e) : NULL;
    return p->skip != NULL;
}

void rewrite_plan_free(rewrite_plan *p)
{
    mem_free(p->segment);
    mem_free(p->kept);
    mem_free(p->boundary);
    mem_free(p->active);
    mem_free(p->excess);
    mem_free(p->pad);
    mem_free(p->skip);
    *p = (rewrite_plan){ 0 };
}

bool rewrite_plan_init(rewrite_plan *p, const search_chain *c, const search_solution *s, err *e)
{
    *p = (rewrite_plan){ .c = c, .s = s };
    if (!check_solution(c, s, e))
        return false;
    if (!plan_alloc(p, e)) {
        rewrite_plan_free(p);
        return false;
    }
    p->boundary[0] = true;
    p->active[0] = c->native[0];
    for (int m = 0; m < s->n_segment; m++) {
        const search_entry *r = &s->segment[m];
        for (int l = r->st + 1; l <= r->end; l++)
            p->segment[l] = m;
        for (int i = 0; i < r->n_keep; i++)
            p->kept[r->keep[i]] = true;
        p->boundary[r->end] = true;
    }
    plan_skips(p);
    plan_acts(p);
    for (int m = 0; m < s->n_segment; m++)
        plan_padding(p, &s->segment[m]);
    plan_operands(p);
    return true;
}

/* ---- the walk ------------------------------------------------------------------------------------------ */

/* What a graph node is to the chain. */
typedef enum { PART_OTHER, PART_CONV, PART_NORM, PART_ADD, PART_ACT, PART_SKIP_FIRST, PART_SKIP_NORM } part;

typedef struct {
    const rewrite_plan *p;
    const nn_graph *values;
    rewrite_mode mode;
    bool merge;                  /* not pruned */
    nn_graph *out;
    part *role;
    int  *which;                 /* position, or skip */
    int  *map;                   /* original node → node of out; -1: inside something merged */
    int  *owner;                 /* node of out → its segment or -1 */
} walk;

static const nn_node *original(const walk *w, int v) { return &w->p->c->g->node[v]; }

static void copy_values(walk *w, const nn_node *to, const nn_node *from)
{
    for (int i = 0; i < to->n_w; i++) {
        nn_param *a = &w->out->param[to->w[i]];
        memcpy(a->x, w->values->param[from->w[i]].x, (size_t)nn_param_count(a) * sizeof *a->x);
    }
}

static bool same_params(const nn_graph *a, const nn_node *x, const nn_graph *b, const nn_node *y)
{
    bool same = x->op == y->op && x->n_w == y->n_w;
    for (int i = 0; same && i < x->n_w; i++)
        same = !memcmp(a->param[x->w[i]].dim, b->param[y->w[i]].dim, sizeof a->param[0].dim);
    return same;
}

/* The node of out that holds original node v. */
static int mapped(const walk *w, int v, err *e)
{
    if (w->map[v] < 0)
        err_set(e, ERR_INTERNAL, "%s is needed, but it lies inside a merged convolution", original(w, v)->name);
    return w->map[v];
}

/* Original node v with in[0] and attributes replaced, values by name. */
static int copy_node(walk *w, int v, int in0, const nn_attr *attr, err *e)
{
    const nn_node *n = original(w, v);
    int in[4] = { in0 };
    for (int k = 1; k < n->n_in; k++)
        if ((in[k] = mapped(w, n->in[k], e)) < 0)
            return -1;
    int id = nn_node_add(w->out, n->op, n->name, in, n->n_in, attr, e);
    if (id < 0)
        return -1;
    w->out->node[id].attr = *attr;       /* a zero that is meant stays a zero */
    if (n->n_w == 0)
        return id;
    int from = w->values == w->p->c->g ? v : nn_graph_find(w->values, n->name);
    if (from < 0 || !same_params(w->out, &w->out->node[id], w->values, &w->values->node[from])) {
        err_set(e, ERR_DATA, "%s: the pruned network has no node like it", n->name);
        return -1;
    }
    copy_values(w, &w->out->node[id], &w->values->node[from]);
    return id;
}

/* Zeros around node `in` (or cut from it), named after the node that wants them. */
static int add_pad(walk *w, const char *name, int in, const int pad[4], err *e)
{
    if (in < 0 || (!pad[0] && !pad[1] && !pad[2] && !pad[3]))
        return in;
    char text[sizeof ((nn_node *)0)->name + 8];
    nn_attr attr = { 0 };
    memcpy(attr.pad, pad, sizeof attr.pad);
    snprintf(text, sizeof text, "%s.pad", name);
    return nn_node_add(w->out, NN_OP_pad, text, &in, 1, &attr, e);
}

/* Padding that gives `out` positions from `in` with kernel k and stride s, split as evenly as can be. */
static void split_pad(int64_t in, int64_t out, int k, int s, int *before, int *after)
{
    int total = (int)((out - 1) * s + k - in);
    if (total < 0)
        total = 0;
    *before = total / 2;
    *after = total - total / 2;
}

/* The shape of segment r's conv, which reads node in. Its values stay moderate and far from the subnormal
 * numbers, which would be slow. */
static int add_shape(walk *w, const search_entry *r, const char *name, int in, err *e)
{
    const search_chain *c = w->p->c;
    const search_shape shape = search_shape_of(c, r);
    const int64_t *from = w->out->node[in].dim, *to = original(w, c->pos[r->end].conv)->dim;
    nn_attr a = { .out = (int)to[3], .groups = shape.groups, .bias = true };
    for (int d = 0; d < 2; d++) {
        a.k[d] = shape.k[d];
        a.stride[d] = shape.stride[d];
        split_pad(from[1 + d], to[1 + d], a.k[d], a.stride[d], &a.pad[2 * d], &a.pad[2 * d + 1]);
    }
    const int id = nn_node_add(w->out, NN_OP_conv2d, name, &in, 1, &a, e);
    for (int k = 0; id >= 0 && k < w->out->node[id].n_w; k++) {
        nn_param *p = &w->out->param[w->out->node[id].w[k]];
        const int64_t n = nn_param_count(p);
        const float size = 1 / sqrtf((float)(n / to[3]));
        for (int64_t i = 0; i < n; i++)
            p->x[i] = size * (float)(i % 17 - 8) / 8;
    }
    return id;
}

static int walk_conv(walk *w, int l, err *e)
{
    const rewrite_plan *p = w->p;
    const nn_node *n = original(w, p->c->pos[l].conv);
    if (!w->merge) {
        int in = mapped(w, n->in[0], e);
        if (in < 0 || !p->kept[l])
            return in;
        nn_attr attr = n->attr;
        memcpy(attr.pad, p->pad[l], sizeof attr.pad);
        return copy_node(w, p->c->pos[l].conv, in, &attr, e);
    }
    int m = p->segment[l];
    nn_affine a;
    int in = mapped(w, original(w, p->c->pos[p->s->segment[m].st + 1].conv)->in[0], e);
    if (in >= 0 && w->mode == REWRITE_SHAPES && p->s->segment[m].n_keep)
        return add_shape(w, &p->s->segment[m], n->name, in, e);
    if (in < 0 || !rewrite_segment(p, m, w->values, &a, e))
        return -1;
    int id = nn_affine_node(w->out, n->name, in, &a, e);
    nn_affine_free(&a);
    return id;
}

/* The projection or slice v of skip k. */
static int walk_skip(walk *w, int k, int v, int in, err *e)
{
    const skip_plan *skip = &w->p->skip[k];
    nn_attr attr = original(w, v)->attr;
    memcpy(attr.pad, skip->own, sizeof attr.pad);
    in = add_pad(w, original(w, v)->name, in, skip->pad, e);
    return in < 0 ? -1 : copy_node(w, v, in, &attr, e);
}

/* All skips that end at l, inner ones first, after the last conv or norm of the group. */
static int walk_adds(walk *w, int l, err *e)
{
    const search_chain *c = w->p->c;
    int x = mapped(w, c->pos[l].norm >= 0 ? c->pos[l].norm : c->pos[l].conv, e);
    for (int k = c->n_skip - 1; k >= 0 && x >= 0; k--) {
        const skip_plan *skip = &w->p->skip[k];
        const nn_node *add = original(w, c->skip[k].add);
        if (c->skip[k].t != l || (w->merge && skip->fused) || (skip->empty && skip->identity))
            continue;
        int operand = mapped(w, add->in[1], e);
        if (skip->empty) {
            x = operand;
            continue;
        }
        if (skip->identity)
            operand = add_pad(w, add->name, operand, skip->pad, e);
        if (operand < 0)
            return -1;
        x = nn_add_add(w->out, add->name, x, operand, e);
    }
    return x;
}

/* The end of node l: an activation that the original does not have, and the size must be right. */
static int finish_node(walk *w, int l, int x, err *e)
{
    const search_chain *c = w->p->c;
    const nn_node *n = original(w, c->node[l]);
    if (x < 0 || !w->p->boundary[l])
        return x;
    if (w->p->active[l] && c->pos[l].act < 0) {
        char text[sizeof n->name + 8];
        snprintf(text, sizeof text, "%s.act", n->name);
        x = nn_add_op(w->out, c->act, text, x, e);
    }
    if (x >= 0 && memcmp(w->out->node[x].dim, n->dim, sizeof n->dim)) {
        const int64_t *d = w->out->node[x].dim;
        err_set(e, ERR_INTERNAL, "%s: %lldx%lldx%lld after rewriting, %lldx%lldx%lld before", n->name,
                (long long)d[1], (long long)d[2], (long long)d[3],
                (long long)n->dim[1], (long long)n->dim[2], (long long)n->dim[3]);
        return -1;
    }
    return x;
}

/* Does node v vanish into a merged convolution? */
static bool is_inside(const walk *w, int v)
{
    const rewrite_plan *p = w->p;
    int i = w->which[v];
    switch (w->role[v]) {
    case PART_OTHER:
        return false;
    case PART_SKIP_FIRST: case PART_SKIP_NORM:
        return w->merge && p->skip[i].fused;
    default:
        return w->merge && !p->boundary[i];
    }
}

static int walk_part(walk *w, int v, err *e)
{
    const search_chain *c = w->p->c;
    const nn_node *n = original(w, v);
    int i = w->which[v], in = n->n_in > 0 && w->role[v] != PART_CONV ? mapped(w, n->in[0], e) : 0;
    if (in < 0)
        return -1;
    switch (w->role[v]) {
    case PART_CONV:
        return walk_conv(w, i, e);
    case PART_NORM:
        return w->p->kept[i] && !w->merge ? copy_node(w, v, in, &n->attr, e) : in;
    case PART_ADD:
        return v == c->pos[i].add ? walk_adds(w, i, e) : in;
    case PART_ACT:
        return w->p->active[i] ? copy_node(w, v, in, &n->attr, e) : in;
    case PART_SKIP_FIRST:
        return walk_skip(w, i, v, in, e);
    default:
        return copy_node(w, v, in, &n->attr, e);
    }
}

static int owner_of(const walk *w, int v)
{
    const rewrite_plan *p = w->p;
    switch (w->role[v]) {
    case PART_OTHER:
        return -1;
    case PART_SKIP_FIRST: case PART_SKIP_NORM:
        return p->segment[p->c->skip[w->which[v]].t];
    default:
        return p->segment[w->which[v]];
    }
}

static bool walk_nodes(walk *w, err *e)
{
    const search_chain *c = w->p->c;
    int owned = 0;
    for (int v = 0; v < c->g->n_node; v++) {
        w->map[v] = -1;
        if (is_inside(w, v))
            continue;
        w->map[v] = walk_part(w, v, e);
        part role = w->role[v];
        if (w->map[v] >= 0 && role >= PART_CONV && role <= PART_ACT && c->node[w->which[v]] == v)
            w->map[v] = finish_node(w, w->which[v], w->map[v], e);
        if (w->map[v] < 0)
            return false;
        while (owned < w->out->n_node)
            w->owner[owned++] = owner_of(w, v);
    }
    w->out->output = w->map[c->g->output];
    w->out->barrier = c->g->barrier;
    memcpy(w->out->prep, c->g->prep, sizeof w->out->prep);
    return true;
}

static void assign(walk *w, int node, part role, int which)
{
    if (node < 0)
        return;
    w->role[node] = role;
    w->which[node] = which;
}

static void assign_roles(walk *w)
{
    const search_chain *c = w->p->c;
    for (int l = 1; l <= c->L; l++) {
        assign(w, c->pos[l].conv, PART_CONV, l);
        assign(w, c->pos[l].norm, PART_NORM, l);
        assign(w, c->pos[l].act, PART_ACT, l);
    }
    for (int k = 0; k < c->n_skip; k++) {
        assign(w, c->skip[k].add, PART_ADD, c->skip[k].t);
        assign(w, c->skip[k].conv, PART_SKIP_FIRST, k);
        assign(w, c->skip[k].slice, PART_SKIP_FIRST, k);
        assign(w, c->skip[k].norm, PART_SKIP_NORM, k);
    }
}

/* The owners of the nodes that are left. */
static bool find_owners(const walk *w, const nn_graph *left, int **owner, err *e)
{
    *owner = mem_new((size_t)left->n_node, sizeof **owner, e);
    for (int i = 0; *owner && i < left->n_node; i++)
        (*owner)[i] = w->owner[nn_graph_find(w->out, left->node[i].name)];
    return *owner != NULL;
}

nn_graph *rewrite_graph(const rewrite_plan *p, const nn_graph *values, rewrite_mode mode, int **owner, err *e)
{
    size_t n = (size_t)p->c->g->n_node;
    walk w = { .p = p, .values = values, .mode = mode, .merge = mode != REWRITE_PRUNED };
    w.out = nn_graph_new(p->c->g->arch, e);
    w.role = w.out ? mem_new(n, sizeof *w.role, e) : NULL;
    w.which = w.role ? mem_new(n, sizeof *w.which, e) : NULL;
    w.map = w.which ? mem_new(n, sizeof *w.map, e) : NULL;
    w.owner = w.map ? mem_new(3 * n, sizeof *w.owner, e) : NULL;        /* a node leaves at most pad, itself, activation */
    nn_graph *result = NULL;
    if (w.owner) {
        assign_roles(&w);
        if (walk_nodes(&w, e))
            result = nn_graph_prune(w.out, e);
    }
    if (result && owner && !find_owners(&w, result, owner, e)) {
        nn_graph_free(result);
        result = NULL;
    }
    nn_graph_free(w.out);
    mem_free(w.role);
    mem_free(w.which);
    mem_free(w.map);
    mem_free(w.owner);
    return result;
}

/* ---- pruned networks ------------------------------------------------------------------------------------ */

nn_graph *search_prune(const search_chain *c, const search_solution *s, err *e)
{
    rewrite_plan p;
    if (!rewrite_plan_init(&p, c, s, e))
        return NULL;
    nn_graph *g = rewrite_graph(&p, c->g, REWRITE_PRUNED, NULL, e);
    rewrite_plan_free(&p);
    return g;
}

static bool copy_keep(search_entry *to, const int *keep, int n, err *e)
{
    to->keep = mem_new((size_t)n, sizeof *to->keep, e);
    if (!to->keep)
        return false;
    if (n > 0)
        memcpy(to->keep, keep, (size_t)n * sizeof *keep);
    to->n_keep = n;
    return true;
}

/* Conv l alone, as it is. */
static search_entry single_layer(const search_chain *c, int l)
{
    search_entry r = search_entry_blank;
    r.id = -1;
    r.st = l - 1;
    r.end = l;
    r.ker = search_kernel_of(c, &l, 1);
    r.str = search_stride_of(c, l - 1, l);
    r.is_dw = c->pos[l].depthwise;
    return r;
}

bool search_single_entry(const search_chain *c, const search_entry *entry, search_solution *out, err *e)
{
    *out = (search_solution){ .method = "single", .feasible = true, .least_ns = -1 };
    if (!search_segment_valid(c, entry->st, entry->end))
        return err_set(e, ERR_DATA, "(%d,%d] is not a segment of %s", entry->st, entry->end, c->g->arch);
    size_t n = (size_t)c->L + 1;
    out->act = mem_new(n, sizeof *out->act, e);
    out->conv = out->act ? mem_new(n, sizeof *out->conv, e) : NULL;
    out->segment = out->conv ? mem_new(n, sizeof *out->segment, e) : NULL;
    bool ok = out->segment != NULL;
    if (ok)
        out->n_act = out->n_conv = 1;                    /* both begin with 0 */
    for (int l = 1; ok && l <= c->L; ) {
        bool here = l == entry->st + 1;
        search_entry *r = &out->segment[out->n_segment++];
        *r = here ? *entry : single_layer(c, l);
        ok = copy_keep(r, here ? entry->keep : &l, here ? entry->n_keep : 1, e);
        for (int i = 0; ok && i < r->n_keep && out->n_conv <= c->L; i++)
            out->conv[out->n_conv++] = r->keep[i];
        out->act[out->n_act++] = r->end;
        l = r->end + 1;
    }
    if (!ok)
        search_solution_free(out);
    return ok;
}
