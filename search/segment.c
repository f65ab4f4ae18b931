/* Which segments there are (ALGORITHM 1.4) and what each may become (1.5, A.2). */
#include "search/rewrite.h"

#include <string.h>

bool search_segment_valid(const search_chain *c, int i, int j)
{
    if (i < 0 || i >= j || j > c->L)
        return false;
    for (int b = i + 1; b < j; b++)
        if (c->barrier[b])
            return false;
    for (int n = 0; n < c->n_skip; n++) {
        int s = c->skip[n].s, t = c->skip[n].t;
        if ((i < s && s < j && j < t) || (s < i && i < t && t < j))
            return false;
    }
    return true;
}

static int kernel_along(const search_chain *c, const int *keep, int n_keep, int d)
{
    int k = n_keep > 0;
    for (int i = n_keep - 1; i >= 0; i--)
        k = c->pos[keep[i]].k[d] + c->pos[keep[i]].stride[d] * (k - 1);
    return k;
}

static int stride_along(const search_chain *c, int i, int j, int d)
{
    int stride = 1;
    for (int l = i + 1; l <= j; l++)
        stride *= c->pos[l].stride[d];
    return stride;
}

static int larger(int a, int b) { return a > b ? a : b; }

int search_kernel_of(const search_chain *c, const int *keep, int n_keep)
{
    return larger(kernel_along(c, keep, n_keep, 0), kernel_along(c, keep, n_keep, 1));
}

int search_stride_of(const search_chain *c, int i, int j) { return larger(stride_along(c, i, j, 0), stride_along(c, i, j, 1)); }

/* Groups of what a skip goes through, 0: nothing. A slice that only subsamples is depthwise. */
static int groups_of_side(const search_chain *c, const search_skip *skip)
{
    if (skip->conv >= 0)
        return c->g->node[skip->conv].attr.groups;
    if (skip->slice < 0)
        return 0;
    const nn_node *n = &c->g->node[skip->slice];
    return n->attr.chan[0] || n->attr.chan[1] ? 1 : (int)n->dim[3];
}

static int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }

search_shape search_shape_of(const search_chain *c, const search_entry *row)
{
    search_shape s = { .groups = 0 };
    for (int d = 0; d < 2; d++) {
        s.k[d] = kernel_along(c, row->keep, row->n_keep, d);
        s.stride[d] = stride_along(c, row->st, row->end, d);
    }
    for (int i = 0; i < row->n_keep; i++)
        s.groups = common_divisor(s.groups, c->g->node[c->pos[row->keep[i]].conv].attr.groups);
    for (int k = 0; k < c->n_skip; k++)
        if (c->skip[k].fusible && c->skip[k].s >= row->st && c->skip[k].t <= row->end)
            s.groups = common_divisor(s.groups, groups_of_side(c, &c->skip[k]));
    return s;
}

/* ---- choices ------------------------------------------------------------------------------------- */

/* What the convs l … j of a segment can amount to: kernel size minus one, all depthwise so far, any
 * kept; and the best set that gives it. Built from the last conv to the first, so that a new conv
 * goes in front: then of two sets the lexicographically smaller one stays smaller. */
typedef struct {
    int m[2];
    bool dw, any;
    double value;                /* sum of L1 norms */
    int *set, n_set;             /* ascending */
} choice;
typedef struct { choice *a; int n, cap; int *sets; } choice_list;

static int compare_sets(const choice *a, const choice *b)
{
    for (int i = 0; i < a->n_set && i < b->n_set; i++)
        if (a->set[i] != b->set[i])
            return a->set[i] < b->set[i] ? -1 : 1;
    return a->n_set - b->n_set;
}

static bool is_better(const choice *a, const choice *b)
{
    return a->value != b->value ? a->value > b->value : compare_sets(a, b) < 0;
}

static bool list_new(choice_list *l, int cap, int longest, err *e)
{
    *l = (choice_list){ .cap = cap };
    l->a = mem_new((size_t)cap, sizeof *l->a, e);
    l->sets = l->a ? mem_new((size_t)cap, (size_t)longest * sizeof *l->sets, e) : NULL;
    for (int i = 0; l->sets && i < cap; i++)
        l->a[i].set = l->sets + (ptrdiff_t)i * longest;
    return l->sets != NULL;
}

static void list_free(choice_list *l)
{
    mem_free(l->a);
    mem_free(l->sets);
    *l = (choice_list){ 0 };
}

static void copy_choice(choice *to, const choice *from)
{
    int *set = to->set;
    *to = *from;
    to->set = set;
    memcpy(set, from->set, (size_t)from->n_set * sizeof *set);
}

/* Keep x when its key is new or its set better. A list has room for every key that can come. */
static void list_offer(choice_list *l, const choice *x)
{
    for (int i = 0; i < l->n; i++) {
        choice *y = &l->a[i];
        if (y->m[0] == x->m[0] && y->m[1] == x->m[1] && y->dw == x->dw && y->any == x->any) {
            if (is_better(x, y))
                copy_choice(y, x);
            return;
        }
    }
    copy_choice(&l->a[l->n++], x);
}

/* Put conv l in front of x; *out has room for the longer set. */
static void prepend(const search_chain *c, int l, const choice *x, choice *out)
{
    const search_pos *p = &c->pos[l];
    int *set = out->set;
    *out = *x;
    for (int d = 0; d < 2; d++)
        out->m[d] = p->k[d] - 1 + p->stride[d] * x->m[d];
    out->dw = x->dw && p->depthwise;
    out->any = true;
    out->value = x->value + p->l1;
    out->set = set;
    set[0] = l;
    memcpy(set + 1, x->set, (size_t)x->n_set * sizeof *set);
    out->n_set = x->n_set + 1;
}

static bool find_choices(const search_chain *c, int i, int j, choice_list *out, err *e)
{
    choice_list now, next = { 0 };
    choice longer = { 0 };
    *out = (choice_list){ 0 };
    if (!list_new(&now, 1, j - i, e)) {
        list_free(&now);
        return false;
    }
    now.a[0].dw = true;
    now.n = 1;
    bool ok = (longer.set = mem_new((size_t)(j - i), sizeof *longer.set, e)) != NULL;
    for (int l = j; ok && l > i; l--) {
        ok = list_new(&next, 2 * now.n, j - i, e);
        for (int n = 0; ok && n < now.n; n++) {
            if (!c->pos[l].irreducible)
                list_offer(&next, &now.a[n]);
            prepend(c, l, &now.a[n], &longer);
            list_offer(&next, &longer);
        }
        list_free(&now);
        now = next;
    }
    mem_free(longer.set);
    *out = now;
    return ok;
}

/* ---- entries ---------------------------------------------------------------------------------------- */

static int kernel_size(const choice *x)
{
    int m = x->m[0] > x->m[1] ? x->m[0] : x->m[1];
    return x->any ? m + 1 : 0;
}

static bool same_key(const choice *a, const choice *b)
{
    return kernel_size(a) == kernel_size(b) && (a->dw && a->any) == (b->dw && b->any);
}

/* Dense before depthwise, small before large: the order of entries in a segment. */
static bool comes_before(const choice *a, const choice *b)
{
    int ka = kernel_size(a), kb = kernel_size(b);
    return ka != kb ? ka < kb : !a->dw && b->dw;
}

/* One choice per (ker, is_dw), sorted; kernels that differ only in their shorter side are one key. */
static void reduce_choices(choice_list *l, bool identity)
{
    int n = 0;
    for (int i = 0; i < l->n; i++) {
        choice x = l->a[i];
        if (!x.any && !identity)
            continue;
        int k = 0;
        while (k < n && !same_key(&l->a[k], &x))
            k++;
        if (k < n && !is_better(&x, &l->a[k]))
            continue;
        if (k == n)
            l->a[n++] = x;
        else
            l->a[k] = x;
    }
    l->n = n;
    for (int i = 1; i < n; i++) {
        choice x = l->a[i];
        int k = i;
        for (; k > 0 && comes_before(&x, &l->a[k - 1]); k--)
            l->a[k] = l->a[k - 1];
        l->a[k] = x;
    }
}

static bool table_add(search_table *t, int *cap, const search_entry *row, err *e)
{
    if (t->n == *cap) {
        int more = *cap ? 2 * *cap : 64;
        search_entry *a = mem_new((size_t)more, sizeof *a, e);
        if (!a)
            return false;
        if (t->n > 0)
            memcpy(a, t->row, (size_t)t->n * sizeof *a);
        mem_free(t->row);
        t->row = a;
        *cap = more;
    }
    t->row[t->n++] = *row;
    return true;
}

static bool add_segment(const search_chain *c, int i, int j, bool identity, search_table *t, int *cap, err *e)
{
    choice_list l;
    bool ok = find_choices(c, i, j, &l, e);
    if (ok)
        reduce_choices(&l, identity);
    for (int n = 0; ok && n < l.n; n++) {
        const choice *x = &l.a[n];
        search_entry row = search_entry_blank;
        row.id = t->n;
        row.st = i;
        row.end = j;
        row.ker = kernel_size(x);
        row.str = search_stride_of(c, i, j);
        row.is_dw = x->any && x->dw;
        row.n_keep = x->n_set;
        row.keep = mem_new((size_t)x->n_set, sizeof *row.keep, e);
        ok = row.keep != NULL;
        if (ok)
            memcpy(row.keep, x->set, (size_t)x->n_set * sizeof *row.keep);
        if (ok && !table_add(t, cap, &row, e)) {
            mem_free(row.keep);
            ok = false;
        }
    }
    list_free(&l);
    return ok;
}

bool search_enumerate(const search_chain *c, bool identity, search_table *out, err *e)
{
    int cap = 0;
    *out = (search_table){ .L = c->L };
    for (int i = 0; i < c->L; i++)
        for (int j = i + 1; j <= c->L; j++)
            if (search_segment_valid(c, i, j) && !add_segment(c, i, j, identity, out, &cap, e)) {
                search_table_free(out);
                return false;
            }
    return true;
}
