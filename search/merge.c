/* A pruned network merged: every segment becomes one convolution (ALGORITHM A.4), composed in double
 * and rounded once. */
#include "search/rewrite.h"

#include <string.h>

/* acc := next ∘ acc; next is used up. Both carry the padding of the original convs, and so does the
 * result: P = P1 + S1*P2. The tensors in between are large enough for next to need none (2.3). */
static bool append(nn_affine *acc, nn_affine *next, err *e)
{
    nn_affine both;
    int pad[4];
    for (int i = 0; i < 4; i++)
        pad[i] = acc->pad[i] + acc->stride[i / 2] * next->pad[i];
    if (!acc->identity)
        memset(next->pad, 0, sizeof next->pad);
    bool ok = nn_affine_compose(&both, acc, next, e);
    nn_affine_free(next);
    if (!ok)
        return false;
    memcpy(both.pad, pad, sizeof both.pad);
    nn_affine_free(acc);
    *acc = both;
    return true;
}

typedef struct { const rewrite_plan *p; const nn_graph *values; } merging;

/* A conv (and its norm) of the original by name, with the values it has now and its own padding. */
static bool fold(const merging *w, int conv, int norm, nn_affine *out, err *e)
{
    const nn_graph *g = w->p->c->g;
    *out = (nn_affine){ 0 };
    int c = nn_graph_find(w->values, g->node[conv].name);
    int n = norm < 0 ? -1 : nn_graph_find(w->values, g->node[norm].name);
    if (c < 0 || (norm >= 0 && n < 0))
        return err_set(e, ERR_DATA, "%s: the pruned network has no such node", g->node[c < 0 ? conv : norm].name);
    if (!nn_affine_conv(out, w->values, c, n, e))
        return false;
    memcpy(out->pad, g->node[conv].attr.pad, sizeof out->pad);
    return true;
}

static bool add_skip(const merging *w, int k, nn_affine *branch, err *e)
{
    const search_skip *skip = &w->p->c->skip[k];
    if (skip->conv < 0 && skip->slice < 0)
        return branch->identity || nn_affine_add_skip(branch, e);      /* an empty branch: y = x */
    nn_affine other;
    if (!(skip->conv >= 0 ? fold(w, skip->conv, skip->norm, &other, e)
                          : nn_affine_slice(&other, w->p->c->g, skip->slice, e)))
        return false;
    if (branch->identity) {                                /* empty: the projection alone */
        *branch = other;
        return true;
    }
    bool ok = nn_affine_add_projection(branch, &other, e);
    nn_affine_free(&other);
    return ok;
}

/* Convs l+1 … j; skips with an index above `outer` count (they are sorted outer before inner). */
static bool merge_range(const merging *w, int l, int j, int outer, nn_affine *acc, err *e)
{
    const search_chain *c = w->p->c;
    *acc = nn_affine_identity(c->pos[l + 1].cin);
    for (int k = outer + 1; l < j; ) {
        while (k < c->n_skip && (c->skip[k].s < l || (c->skip[k].s == l && (c->skip[k].t > j || !w->p->skip[k].fused))))
            k++;
        nn_affine next;
        bool ok;
        if (k < c->n_skip && c->skip[k].s == l) {
            ok = merge_range(w, l, c->skip[k].t, k, &next, e);
            if (ok && !add_skip(w, k, &next, e)) {
                nn_affine_free(&next);
                ok = false;
            }
            l = c->skip[k].t;
        } else {
            l++;
            if (!w->p->kept[l])
                continue;
            ok = fold(w, c->pos[l].conv, c->pos[l].norm, &next, e);
        }
        if (!ok || !append(acc, &next, e)) {
            nn_affine_free(acc);
            return false;
        }
    }
    return true;
}

bool rewrite_segment(const rewrite_plan *p, int m, const nn_graph *values, nn_affine *out, err *e)
{
    const search_entry *r = &p->s->segment[m];
    merging w = { p, values };
    if (!merge_range(&w, r->st, r->end, -1, out, e))
        return err_note(e, "merging (%d,%d]", r->st, r->end);
    return true;
}

/* ---- merged networks -------------------------------------------------------------------------------- */

/* The pruned network that was handed in must be the one this solution makes, whatever its values. */
static bool check_pruned(const nn_graph *want, const nn_graph *have, err *e)
{
    for (int i = 0; i < want->n_node; i++) {
        const nn_node *a = &want->node[i], *b = i < have->n_node ? &have->node[i] : NULL;
        bool same = b && a->op == b->op && a->n_in == b->n_in && a->n_w == b->n_w && !strcmp(a->name, b->name) &&
                    !memcmp(a->in, b->in, sizeof a->in) && !memcmp(a->dim, b->dim, sizeof a->dim) &&
                    !memcmp(a->attr.k, b->attr.k, sizeof a->attr.k) &&
                    !memcmp(a->attr.stride, b->attr.stride, sizeof a->attr.stride) &&
                    !memcmp(a->attr.dilation, b->attr.dilation, sizeof a->attr.dilation) &&
                    !memcmp(a->attr.pad, b->attr.pad, sizeof a->attr.pad) && a->attr.groups == b->attr.groups;
        if (!same)
            return err_set(e, ERR_DATA, "the pruned network is not the one this solution makes: %s differs", a->name);
    }
    return true;
}

nn_graph *search_merge(const search_chain *c, const search_solution *s, const nn_graph *pruned, err *e)
{
    rewrite_plan p;
    if (!rewrite_plan_init(&p, c, s, e))
        return NULL;
    nn_graph *want = rewrite_graph(&p, c->g, REWRITE_PRUNED, NULL, e), *out = NULL;
    if (want && check_pruned(want, pruned, e))
        out = rewrite_graph(&p, pruned, REWRITE_MERGED, NULL, e);
    nn_graph_free(want);
    rewrite_plan_free(&p);
    return out;
}
