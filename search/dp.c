/* Tables + budget → solution. The exact Pareto front of section 5.2:
 *
 *     F[0] = {(0,0)}      F[j] = nondominated( union over entries (i,j) of F[i] + (time, importance) )
 *
 * Each list is sorted by time with strictly increasing importance, so the last point within a budget
 * is the answer for that budget, and the first point is the least feasible latency. Times are integer
 * nanoseconds and importances integers of 1e-12: sums are exact, and ties mean equality. */
#include "search/search.h"

#include <math.h>
#include <string.h>

/* A list longer than this is thinned: times are rounded up inside bins, which is safe, and at most by
 * the sum of the widths of all nodes' bins. */
enum { FRONT_LIMIT = 1000000 };

typedef struct { search_point *at; int n, cap; } point_list;

struct search_front {
    int L;
    point_list *list;            /* [L+1] */
    int64_t rounding_ns;         /* that sum */
    const search_table *t;       /* borrowed while building */
};

/* ---- ties (5.1): fewer segments, then the smaller boundary list, then the smaller kernels -------- */

/* Compare two paths of equal length that end at the same node, front to back: we walk them back to
 * front and remember the difference met last. Boundaries decide before kernels. */
static int compare_paths(const search_front *f, const search_point *a, const search_point *b)
{
    int boundary = 0, kernel = 0;
    while (a->entry >= 0 && b->entry >= 0) {
        const search_entry *x = &f->t->row[a->entry], *y = &f->t->row[b->entry];
        if (x->st != y->st) boundary = x->st < y->st ? -1 : 1;
        if (x->ker != y->ker) kernel = x->ker < y->ker ? -1 : 1;
        else if (x->is_dw != y->is_dw) kernel = y->is_dw ? -1 : 1;
        a = &f->list[x->st].at[a->prev];
        b = &f->list[y->st].at[b->prev];
    }
    return boundary ? boundary : kernel;
}

/* < 0 when a comes first: by time, then larger importance, then the ties. */
static int compare_points(const search_front *f, const search_point *a, const search_point *b)
{
    if (a->time_ns != b->time_ns) return a->time_ns < b->time_ns ? -1 : 1;
    if (a->importance_fx != b->importance_fx) return a->importance_fx > b->importance_fx ? -1 : 1;
    if (a->n_segment != b->n_segment) return a->n_segment < b->n_segment ? -1 : 1;
    return compare_paths(f, a, b);
}

/* ---- one node: a k-way merge of the shifted lists of its predecessors ------------------------------ */

typedef struct { int entry, next; search_point head; } stream;   /* next: index in the source list */

static bool stream_advance(const search_front *f, stream *s)
{
    const search_entry *row = &f->t->row[s->entry];
    const point_list *from = &f->list[row->st];
    if (s->next >= from->n) return false;
    const search_point *p = &from->at[s->next];
    s->head = (search_point){ p->time_ns + row->time_ns, p->importance_fx + row->importance_fx,
                              p->n_segment + 1, s->entry, s->next };
    s->next++;
    return true;
}

static void heap_sift(const search_front *f, stream *heap, int n, int i)
{
    for (;;) {
        int least = i;
        for (int c = 2 * i + 1; c <= 2 * i + 2 && c < n; c++)
            if (compare_points(f, &heap[c].head, &heap[least].head) < 0) least = c;
        if (least == i) return;
        stream swap = heap[i];
        heap[i] = heap[least];
        heap[least] = swap;
        i = least;
    }
}

static bool list_push(point_list *l, const search_point *p, err *e)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 64;
        search_point *at = mem_new((size_t)cap, sizeof *at, e);
        if (!at) return false;
        if (l->n) memcpy(at, l->at, (size_t)l->n * sizeof *at);
        mem_free(l->at);
        l->at = at;
        l->cap = cap;
    }
    l->at[l->n++] = *p;
    return true;
}

/* Keep at most FRONT_LIMIT/2 points: round each time up to its bin's end, keep the best of a bin.
 * Returns what a time may have grown by. */
static int64_t list_thin(point_list *l)
{
    if (l->n <= FRONT_LIMIT) return 0;
    int64_t first = l->at[0].time_ns, width = (l->at[l->n - 1].time_ns - first) / (FRONT_LIMIT / 2) + 1;
    int kept = 0;
    for (int i = 0; i < l->n; i++) {
        search_point p = l->at[i];
        p.time_ns = first + (p.time_ns - first + width - 1) / width * width;
        if (kept && l->at[kept - 1].time_ns == p.time_ns) kept--;     /* importance increases with i */
        l->at[kept++] = p;
    }
    l->n = kept;
    return width - 1;
}

static bool build_node(search_front *f, int j, stream *heap, err *e)
{
    int n = 0;
    for (int r = 0; r < f->t->n; r++) {
        if (f->t->row[r].end != j) continue;
        heap[n] = (stream){ .entry = r };
        if (stream_advance(f, &heap[n])) n++;
    }
    for (int i = n / 2 - 1; i >= 0; i--) heap_sift(f, heap, n, i);
    point_list *out = &f->list[j];
    while (n) {
        if (!out->n || heap[0].head.importance_fx > out->at[out->n - 1].importance_fx)
            if (!list_push(out, &heap[0].head, e)) return false;
        if (!stream_advance(f, &heap[0])) heap[0] = heap[--n];
        heap_sift(f, heap, n, 0);
    }
    f->rounding_ns += list_thin(out);
    return true;
}

/* ---- the front -------------------------------------------------------------------------------------- */

static bool table_usable(const search_table *t, err *e)
{
    if (t->n == 0 || t->L < 1) return err_set(e, ERR_DATA, "the tables have no rows");
    for (int r = 0; r < t->n; r++) {
        const search_entry *row = &t->row[r];
        if (row->st < 0 || row->st >= row->end || row->end > t->L)
            return err_set(e, ERR_DATA, "entry %d: segment (%d,%d] is not inside 0…%d",
                           row->id, row->st, row->end, t->L);
        if (row->time_ns < 0 || isnan(row->importance))
            return err_set(e, ERR_DATA, "entry %d, segment (%d,%d] kernel %d: %s is not known",
                           row->id, row->st, row->end, row->ker, row->time_ns < 0 ? "time" : "importance");
    }
    return true;
}

search_front *search_front_new(const search_table *t, err *e)
{
    if (!table_usable(t, e)) return NULL;
    search_front *f = mem_new(1, sizeof *f, e);
    stream *heap = mem_new((size_t)t->n, sizeof *heap, e);
    bool ok = f && heap;
    if (ok) {
        f->L = t->L;
        f->t = t;
        f->list = mem_new((size_t)t->L + 1, sizeof *f->list, e);
        ok = f->list && list_push(&f->list[0], &(search_point){ .entry = -1, .prev = -1 }, e);
    }
    for (int j = 1; ok && j <= t->L; j++) ok = build_node(f, j, heap, e);
    mem_free(heap);
    if (ok && !f->list[f->L].n) {
        int last = f->L;
        while (!f->list[last].n) last--;
        ok = err_set(e, ERR_DATA, "no path of segments reaches node %d: after node %d entries are missing",
                     f->L, last);
    }
    if (ok) return f;
    search_front_free(f);
    return NULL;
}

void search_front_free(search_front *f)
{
    if (!f) return;
    for (int j = 0; f->list && j <= f->L; j++) mem_free(f->list[j].at);
    mem_free(f->list);
    mem_free(f);
}

int search_front_count(const search_front *f) { return f->list[f->L].n; }
int64_t search_front_rounding(const search_front *f) { return f->rounding_ns; }
search_point search_front_at(const search_front *f, int i) { return f->list[f->L].at[i]; }

/* ---- a path becomes a solution ------------------------------------------------------------------------ */

static bool entry_copy(search_entry *to, const search_entry *from, err *e)
{
    *to = *from;
    to->keep = mem_new((size_t)from->n_keep, sizeof *to->keep, e);
    if (!to->keep) return false;
    if (from->n_keep) memcpy(to->keep, from->keep, (size_t)from->n_keep * sizeof *to->keep);
    return true;
}

/* rows[0..n): entries in path order. */
static bool solution_from_rows(search_solution *s, const search_table *t, const int *rows, int n, err *e)
{
    int kept = 1;
    for (int m = 0; m < n; m++) kept += t->row[rows[m]].n_keep;
    s->act = mem_new((size_t)n + 1, sizeof *s->act, e);
    s->conv = mem_new((size_t)kept, sizeof *s->conv, e);
    s->segment = mem_new((size_t)n, sizeof *s->segment, e);
    if (!s->act || !s->conv || !s->segment) return false;
    s->act[s->n_act++] = 0;                              /* node 0 and the stem are always there */
    s->conv[s->n_conv++] = 0;
    int64_t importance = 0;
    for (int m = 0; m < n; m++) {
        const search_entry *row = &t->row[rows[m]];
        if (!entry_copy(&s->segment[m], row, e)) return false;
        s->n_segment++;
        s->act[s->n_act++] = row->end;
        for (int k = 0; k < row->n_keep; k++) s->conv[s->n_conv++] = row->keep[k];
        s->time_ns += row->time_ns;
        importance += row->importance_fx;
    }
    s->importance = (double)importance * 1e-12;
    s->feasible = true;
    return true;
}

bool search_front_solve(const search_front *f, const search_table *t, int64_t budget_ns,
                        int64_t fixed_ns, search_solution *out, err *e)
{
    const point_list *l = &f->list[f->L];
    *out = (search_solution){ .method = "layermerge", .budget_ns = budget_ns, .fixed_ns = fixed_ns,
                              .time_ns = fixed_ns, .least_ns = fixed_ns + l->at[0].time_ns, .rounding_ns = f->rounding_ns };
    int lo = 0, hi = l->n;                               /* first point beyond the budget */
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (l->at[mid].time_ns <= budget_ns - fixed_ns) lo = mid + 1; else hi = mid;
    }
    if (lo == 0) return true;
    const search_point *p = &l->at[lo - 1];
    int n = p->n_segment;
    int *rows = mem_new((size_t)n, sizeof *rows, e);
    if (!rows) return false;
    for (int m = n - 1; m >= 0; m--) {
        rows[m] = p->entry;
        p = &f->list[t->row[p->entry].st].at[p->prev];
    }
    bool ok = solution_from_rows(out, t, rows, n, e);
    mem_free(rows);
    if (!ok) search_solution_free(out);
    return ok;
}

/* ---- base time and methods ------------------------------------------------------------------------------ */

const search_entry *search_single_layer(const search_table *t, int l, err *e)
{
    const search_entry *best = NULL;
    for (int r = 0; r < t->n; r++) {
        const search_entry *row = &t->row[r];
        if (row->st == l - 1 && row->end == l && (!best || row->ker > best->ker)) best = row;
    }
    if (!best) err_set(e, ERR_DATA, "the table has no entry for the single layer (%d,%d]", l - 1, l);
    return best;
}

bool search_base_time(const search_table *t, int64_t *ns, err *e)
{
    *ns = 0;
    for (int l = 1; l <= t->L; l++) {
        const search_entry *row = search_single_layer(t, l, e);
        if (!row) return false;
        *ns += row->time_ns;
    }
    return true;
}

static bool offers_all(const search_entry *row) { (void)row; return true; }
static bool offers_whole(const search_entry *row) { return row->n_keep == row->end - row->st; }
static bool offers_single(const search_entry *row) { return row->end == row->st + 1; }

const search_method search_methods[] = {
    { "layermerge", "remove activations and convs (Kim et al., ICML 2024)", offers_all },
    { "depth", "remove activations only, keep every conv (Kim et al., ICML 2023)", offers_whole },
    { "layeronly", "remove convs only, merge none (a knapsack)", offers_single },
    { NULL, NULL, NULL },
};

const search_method *search_method_find(const char *name)
{
    for (const search_method *m = search_methods; m->name; m++)
        if (!strcmp(m->name, name)) return m;
    return NULL;
}

bool search_filter(const search_table *t, const search_method *m, search_table *out, err *e)
{
    *out = (search_table){ .L = t->L };
    out->row = mem_new((size_t)t->n, sizeof *out->row, e);
    if (!out->row) return false;
    for (int r = 0; r < t->n; r++)
        if (m->offers(&t->row[r])) out->row[out->n++] = t->row[r];
    return true;
}

/* ---- the reference's recurrence ------------------------------------------------------------------------ */

/* D[j][t] over ticks t < Q0, where Q0 = int(budget*prec); a segment of q = int(ms*prec) ticks. What the
 * reference does differently from 5.2 is kept: D[0] covers 0 <= t < Q0 only, so D[L] is read at
 * t = Q0 through segments with q >= 1; values are rounded to 7 decimals before they are compared; the
 * first maximum in row order stays. */
typedef struct { double value; int entry; } cell;        /* entry -1: not reachable */

static double round7(double v) { return nearbyint(v * 1e7) / 1e7; }

bool search_solve_reference(const search_table *t, double budget_ms, double prec,
                            search_solution *out, err *e)
{
    if (!table_usable(t, e)) return false;
    *out = (search_solution){ .method = "layermerge", .budget_ns = (int64_t)(budget_ms * 1e6), .least_ns = -1 };
    if (budget_ms < 0) return true;                      /* what is fixed costs more already */
    double all_ms = 1 / prec;                            /* every path fits into this: more ticks change nothing */
    for (int r = 0; r < t->n; r++) all_ms += t->row[r].time_ms;
    if (budget_ms > all_ms) budget_ms = all_ms;
    if (!(prec > 0 && budget_ms * prec < 1e8))
        return err_set(e, ERR_USAGE, "budget %g ms at %g ticks per ms is out of range", budget_ms, prec);
    int64_t Q = (int64_t)(budget_ms * prec), width = Q + 1;
    cell *d = mem_new((size_t)(t->L + 1) * (size_t)width, sizeof *d, e);
    int *rows = mem_new((size_t)t->L, sizeof *rows, e);
    bool ok = d && rows;
    for (int64_t i = 0; ok && i < (t->L + 1) * width; i++) d[i] = (cell){ -1e300, -1 };
    for (int64_t q = 0; ok && q < Q; q++) d[q] = (cell){ 0, t->n };
    for (int j = 1; ok && j <= t->L; j++)
        for (int r = 0; r < t->n; r++) {
            const search_entry *row = &t->row[r];
            int64_t cost = (int64_t)(row->time_ms * prec);
            if (row->end != j) continue;
            for (int64_t q = cost; q <= Q; q++) {
                const cell *from = &d[row->st * width + q - cost];
                if (from->entry < 0) continue;
                double value = round7(from->value + row->importance);
                if (value > d[j * width + q].value) d[j * width + q] = (cell){ value, r };
            }
        }
    if (ok && d[t->L * width + Q].entry >= 0) {
        int n = 0;
        int64_t q = Q;
        for (int j = t->L; j > 0; j = t->row[rows[n++]].st) {
            rows[n] = d[j * width + q].entry;
            q -= (int64_t)(t->row[rows[n]].time_ms * prec);
        }
        for (int a = 0, b = n - 1; a < b; a++, b--) { int x = rows[a]; rows[a] = rows[b]; rows[b] = x; }
        ok = solution_from_rows(out, t, rows, n, e);
    }
    mem_free(rows);
    mem_free(d);
    if (!ok) search_solution_free(out);
    return ok;
}

void search_solution_free(search_solution *s)
{
    if (!s) return;
    for (int m = 0; m < s->n_segment; m++) mem_free(s->segment[m].keep);
    mem_free(s->segment);
    mem_free(s->act);
    mem_free(s->conv);
    *s = (search_solution){ 0 };
}
