/* The latency table: what each entry costs on this machine, by the one ruler nn_plan_time.
 *
 * An entry is timed as the little network it will become: merged conv with bias, the explicit skip that
 * ends at its last node if a boundary lies inside the block (with its projection), and the activation
 * there, on the true feature size, and for as many images at a time as the whole network takes through
 * that layer: what is read from the cache there must not come from memory here, or layers with little
 * arithmetic look dearer than they are (ResNet-20, batch 128: all entries alone add up to 1.4 times the
 * whole network, and large kernels look cheap). Equal little networks are one measurement: the key is their text.
 * They are made when their turn to be timed comes, because the kernels of all of them together fill
 * gigabytes. */
#include "search/search.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Plans are alive together so that their samples interleave; this much memory at a time. The machine is
 * warm from the candidate before: one needs no long warm-up of its own. */
enum { GROUP_PLANS = 64, WARM_MS = 10 };
static const size_t group_bytes = (size_t)2 << 30;

/* g: owned; NULL: to be made from row. images: of one forward. timing: of the whole batch. */
typedef struct { nn_graph *g; const search_entry *row; char *text; int images; nn_timing timing; } candidate;

typedef struct { const search_chain *c; candidate *cand; int n, n_part; } work;

/* Values that cost nothing to make (a merged kernel has up to 10^8 of them) and stay far from the
 * subnormal numbers, which would be slow. */
static void fill_pattern(float *x, int64_t n)
{
    for (int64_t k = 0; k < n; k++) x[k] = (float)(k % 17 - 8) / 8;
}

/* ---- the little network of an entry ------------------------------------------------------------------ */

static int add_input_like(nn_graph *g, const char *name, const nn_node *n, err *e)
{
    return nn_add_input(g, name, (int)n->dim[1], (int)n->dim[2], (int)n->dim[3], e);
}

/* Padding that gives `out` positions from `in` with kernel k and stride s, split as evenly as can be. */
static void pads(int in, int out, int k, int s, int *before, int *after)
{
    int total = (out - 1) * s + k - in;
    if (total < 0) total = 0;
    *before = total / 2;
    *after = total - total / 2;
}

/* What conv l reads: chain node l-1, or what a pool made of it. */
static int input_of(const search_chain *c, int l) { return c->g->node[c->pos[l].conv].in[0]; }

static int add_merged_conv(nn_graph *g, const search_chain *c, const search_entry *row, int x, err *e)
{
    const nn_node *from = &c->g->node[input_of(c, row->st + 1)], *to = &c->g->node[c->pos[row->end].conv];
    nn_attr a = { .k = { row->ker, row->ker }, .stride = { row->str, row->str }, .out = c->pos[row->end].cout,
                  .groups = row->is_dw ? c->pos[row->end].cout : 1, .bias = true };
    pads((int)from->dim[1], (int)to->dim[1], row->ker, row->str, &a.pad[0], &a.pad[1]);
    pads((int)from->dim[2], (int)to->dim[2], row->ker, row->str, &a.pad[2], &a.pad[3]);
    return nn_node_add(g, NN_OP_conv2d, "conv", &x, 1, &a, e);
}

static int add_explicit_skip(nn_graph *g, const search_chain *c, const search_skip *skip, int x, err *e)
{
    char name[32];
    snprintf(name, sizeof name, "skip%d", skip->s);
    int y = add_input_like(g, name, &c->g->node[c->node[skip->s]], e);
    const int side = skip->conv >= 0 ? skip->conv : skip->slice;
    if (side >= 0 && y >= 0) {
        nn_attr a = c->g->node[side].attr;
        if (skip->conv >= 0) a.bias = true;              /* its norm is folded */
        snprintf(name, sizeof name, "side%d", skip->s);
        y = nn_node_add(g, c->g->node[side].op, name, &y, 1, &a, e);
    }
    snprintf(name, sizeof name, "add%d", skip->s);
    return nn_add_add(g, name, x, y, e);
}

static bool explicit_in(const search_skip *skip, const search_entry *row) { return skip->t == row->end && skip->s < row->st; }

static bool has_act(const search_chain *c, const search_entry *row) { return c->native[row->end] || row->end - row->st >= 2; }

/* Everything entry_graph makes use of. */
static void entry_text(const search_chain *c, const search_entry *row, buf *out)
{
    const int64_t *from = c->g->node[input_of(c, row->st + 1)].dim, *to = c->g->node[c->pos[row->end].conv].dim;
    buf_printf(out, "%lldx%lldx%lld to %lldx%lldx%lld kernel %d stride %d depthwise %d act %d", (long long)from[1],
               (long long)from[2], (long long)from[3], (long long)to[1], (long long)to[2], (long long)to[3], row->ker,
               row->str, row->is_dw, has_act(c, row));
    for (int k = 0; k < c->n_skip; k++) {
        const search_skip *skip = &c->skip[k];
        if (!explicit_in(skip, row)) continue;
        const int64_t *d = c->g->node[c->node[skip->s]].dim;
        buf_printf(out, " add %lldx%lldx%lld", (long long)d[1], (long long)d[2], (long long)d[3]);
        if (skip->conv >= 0 || skip->slice >= 0) buf_printf(out, " through %d %d", skip->conv, skip->slice);
    }
}

static nn_graph *entry_graph(const search_chain *c, const search_entry *row, err *e)
{
    nn_graph *g = nn_graph_new("entry", e);
    if (!g) return NULL;
    int x = add_input_like(g, "x", &c->g->node[input_of(c, row->st + 1)], e);
    x = add_merged_conv(g, c, row, x, e);
    for (int k = 0; k < c->n_skip; k++)
        if (explicit_in(&c->skip[k], row)) x = add_explicit_skip(g, c, &c->skip[k], x, e);
    if (has_act(c, row)) x = nn_add_op(g, c->act, "act", x, e);
    g->output = x;
    if (x >= 0) {
        for (int i = 0; i < g->n_param; i++) fill_pattern(g->param[i].x, nn_param_count(&g->param[i]));
        return g;
    }
    nn_graph_free(g);
    return NULL;
}

/* ---- what lies before, in and after the chain ----------------------------------------------------------------- */

/* NULL without an error when there is nothing. */
static nn_graph *stem_graph(const search_chain *c, err *e)
{
    if (c->g->node[c->node[0]].op == NN_OP_input) return NULL;
    nn_graph *whole = nn_graph_copy(c->g, e);
    if (!whole) return NULL;
    whole->output = c->node[0];
    nn_graph *g = nn_graph_prune(whole, e);
    nn_graph_free(whole);
    return g;
}

/* What hangs on node `last` alone, up to `output`. NULL without an error when that is nothing. */
static nn_graph *part_graph(const search_chain *c, int last, int output, err *e)
{
    const nn_graph *from = c->g;
    if (last == output) return NULL;
    int *map = mem_new((size_t)from->n_node, sizeof *map, e);   /* id in g plus one; 0: does not hang on last */
    nn_graph *g = map ? nn_graph_new("part", e) : NULL, *part = NULL;
    bool ok = g && (map[last] = 1 + add_input_like(g, "x", &from->node[last], e)) > 0;
    for (int i = last + 1; ok && i <= output; i++) {
        const nn_node *n = &from->node[i];
        int in[4];
        bool ready = n->n_in > 0;
        for (int k = 0; k < n->n_in; k++) ready = ready && (in[k] = map[n->in[k]] - 1) >= 0;
        if (ready) ok = (map[i] = 1 + nn_node_add(g, n->op, n->name, in, n->n_in, &n->attr, e)) > 0;
    }
    if (ok) g->output = map[output] - 1;
    mem_free(map);
    if (ok && g->output > 0 && (part = nn_graph_prune(g, e))) nn_state_init(part, 1);
    nn_graph_free(g);
    return part;
}

/* ---- measuring in groups -------------------------------------------------------------------------------- */

typedef struct { const search_latency_options *o; int done, total; } progress;

static void tick(void *ctx, int done, int total)
{
    progress *p = ctx;
    (void)total;
    if (p->o->tick) p->o->tick(p->o->ctx, p->done + done, p->total);
}

static void fill_inputs(nn_plan *plan, const nn_graph *g, int batch)
{
    int which = 0;
    for (int i = 0; i < g->n_node; i++) {
        if (g->node[i].op != NN_OP_input) continue;
        const int64_t *d = g->node[i].dim;
        fill_pattern(nn_plan_input(plan, which++), batch * d[1] * d[2] * d[3]);
    }
}

/* Of all groups of the batch together. */
static nn_timing of_batch(nn_timing t, double groups)
{
    t.median_ms *= groups;
    t.stdev_ms *= groups;
    return t;
}

/* Time candidates [from, …) while their plans fit; returns the end of the group, -1 on error. */
static int time_group(work *w, int from, const search_latency_options *o, progress *p, err *e)
{
    nn_graph *made[GROUP_PLANS] = { 0 };
    nn_plan *plan[GROUP_PLANS] = { 0 };
    nn_timing timing[GROUP_PLANS];
    int count = 0;
    size_t bytes = 0;
    bool ok = true;
    while (ok && from + count < w->n && count < GROUP_PLANS && (count == 0 || bytes < group_bytes)) {
        const candidate *k = &w->cand[from + count];
        nn_graph *g = k->g ? k->g : (made[count] = entry_graph(w->c, k->row, e));
        plan[count] = g ? nn_plan_new(g, NN_INFER, k->images, e) : NULL;
        ok = plan[count] != NULL;
        if (ok) {
            fill_inputs(plan[count], g, k->images);
            bytes += nn_plan_describe(plan[count]).arena_bytes;
            for (int i = 0; i < g->n_param; i++) bytes += (size_t)nn_param_count(&g->param[i]) * sizeof(float);
        }
        count++;
    }
    nn_time_options time = o->time;
    if (time.warm_ms <= 0) time.warm_ms = WARM_MS;
    time.tick = tick;
    time.ctx = p;
    ok = ok && nn_plan_time(plan, count, &time, timing, e);
    for (int k = 0; k < count; k++) {
        candidate *it = &w->cand[from + k];
        if (ok) it->timing = of_batch(timing[k], (double)o->batch / it->images);
        nn_plan_free(plan[k]);
        nn_graph_free(made[k]);
    }
    p->done += count;
    return ok ? from + count : -1;
}

/* The candidate that is the same little network, or a new one, which takes g. */
static int intern(work *w, nn_graph *g, const search_entry *row, int images, const char *text, err *e)
{
    for (int at = 0; at < w->n; at++)
        if (!strcmp(w->cand[at].text, text)) {
            nn_graph_free(g);
            return at;
        }
    char *own = mem_text(text, e);
    if (!own) {
        nn_graph_free(g);
        return -1;
    }
    w->cand[w->n] = (candidate){ .g = g, .row = row, .images = images, .text = own };
    return w->n++;
}

/* Images that the whole network takes through chain conv l at a time. */
static int images_at(const work *w, const nn_plan *whole, int l)
{
    return nn_plan_group(whole, w->c->pos[l < 1 ? 1 : l > w->c->L ? w->c->L : l].conv);
}

static int intern_entry(work *w, const nn_plan *whole, const search_entry *row, err *e)
{
    buf text = { 0 };
    const int images = images_at(w, whole, row->end);
    entry_text(w->c, row, &text);
    buf_printf(&text, " images %d", images);
    int at = -1;
    if (text.failed) err_set(e, ERR_NOMEM, "no memory for the latency table");
    else at = intern(w, NULL, row, images, text.data, e);
    buf_free(&text);
    return at;
}

/* The whole network is candidate 0; after it come the n_part pieces that no choice can change: before the
 * chain, the pools between its convs, behind it. */
static bool add_parts(work *w, const nn_plan *whole, err *e)
{
    const search_chain *c = w->c;
    char name[32];
    err none = { 0 };
    nn_graph *g = nn_graph_copy(c->g, e);
    if (!g || intern(w, g, NULL, nn_plan_batch(whole), "whole", e) < 0) return false;
    for (int l = -1; l <= c->L; l++) {
        g = l < 0 ? stem_graph(c, &none) : part_graph(c, c->node[l], l < c->L ? input_of(c, l + 1) : c->g->output, &none);
        if (none.code) { *e = none; return false; }
        snprintf(name, sizeof name, "part %d", l);
        if (g && intern(w, g, NULL, images_at(w, whole, l + 1), name, e) < 0) return false;
    }
    w->n_part = w->n - 1;
    return true;
}

/* of[r]: row r's candidate, -1: the identity, which costs nothing. */
static bool add_all(work *w, const search_table *t, int batch, int *of, err *e)
{
    nn_graph *g = nn_graph_copy(w->c->g, e);
    nn_plan *whole = g ? nn_plan_new(g, NN_INFER, batch, e) : NULL;
    bool ok = whole && add_parts(w, whole, e);
    for (int r = 0; ok && r < t->n; r++) {
        of[r] = -1;
        if (t->row[r].ker > 0) ok = (of[r] = intern_entry(w, whole, &t->row[r], e)) >= 0;
    }
    nn_plan_free(whole);
    nn_graph_free(g);
    return ok;
}

/* In whole nanoseconds: what the solver counts, what the table says. */
static void set_time(search_entry *row, const nn_timing *t, double scale)
{
    row->time_ns = t ? (int64_t)ceil(t->median_ms * scale * 1e6) : 0;
    row->time_ms = (double)row->time_ns / 1e6;
    row->stdev_ms = t ? nearbyint(t->stdev_ms * scale * 1e6) / 1e6 : 0;
}

/* Entries alone, then the factor that makes the layers add up to the whole. */
static bool set_times(const work *w, search_table *t, const int *of, search_fixed *fixed, err *e)
{
    int64_t layers;
    for (int r = 0; r < t->n; r++) set_time(&t->row[r], of[r] >= 0 ? &w->cand[of[r]].timing : NULL, 1);
    if (!search_base_time(t, &layers, e)) return false;
    double rest = 0;
    for (int k = 1; k <= w->n_part; k++) rest += w->cand[k].timing.median_ms;
    fixed->base_ms = w->cand[0].timing.median_ms;
    fixed->scale = fixed->base_ms / (rest + (double)layers / 1e6);
    fixed->fixed_ms = rest * fixed->scale;
    for (int r = 0; r < t->n; r++) set_time(&t->row[r], of[r] >= 0 ? &w->cand[of[r]].timing : NULL, fixed->scale);
    return true;
}

bool search_measure(const search_chain *c, search_table *t, const search_latency_options *o,
                    search_fixed *fixed, err *e)
{
    int *of = mem_new((size_t)t->n, sizeof *of, e);
    work w = { .c = c, .cand = mem_new((size_t)(t->n + c->L) + 3, sizeof *w.cand, e) };
    bool ok = of && w.cand && add_all(&w, t, o->batch, of, e);
    progress p = { o, 0, w.n };
    for (int at = 0; ok && at < w.n; ) ok = (at = time_group(&w, at, o, &p, e)) > 0;
    ok = ok && set_times(&w, t, of, fixed, e);
    for (int k = 0; w.cand && k < w.n; k++) {
        nn_graph_free(w.cand[k].g);
        mem_free(w.cand[k].text);
    }
    mem_free(w.cand);
    mem_free(of);
    return ok;
}
