/* The latency table: what each entry costs on this machine, by the one ruler nn_plan_time.
 *
 * An entry is timed where it will stand: in whole networks, among neighbours that leave in the caches what
 * they leave. Alone and repeated, its weights and values would never leave them (ResNet-20, batch 128: 8x8
 * maps look 15 % cheaper than they are, and the speed-up of merging 16 % larger). So a few networks are made
 * that between them hold every entry, each a path from the first conv to the last as a solution is one, and
 * their steps are timed: the merged conv with bias, the explicit skip that ends at its last node if a boundary
 * lies inside the block (with its projection), and the activation there.
 *
 * The same shape is the same entry: the key is its text, its number the mean over wherever it was met.
 *
 * The machine's pace is not the same from minute to minute, and the networks with their kernels together
 * fill gigabytes. So they are timed in groups, every group with the network as it is beside them, and all numbers are
 * first of all shares of what that took meanwhile. */
#include "search/rewrite.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Plans are alive together so that their samples interleave, while they fit into this much memory. The machine is
 * warm from the network before: one needs no long warm-up of its own. */
enum { GROUP_PLANS = 16, WARM_MS = 10 };
static const size_t group_bytes = (size_t)2 << 30;

/* In units of what the whole network took meanwhile. */
typedef struct { double sum, squares, noise; int n; } tally;

static void note(tally *t, double share, double stdev)
{
    t->sum += share;
    t->squares += share * share;
    t->noise += stdev * stdev;
    t->n++;
}

static double tally_mean(const tally *t) { return t->n ? t->sum / t->n : 0; }

/* From sample to sample and from place to place. */
static double tally_stdev(const tally *t)
{
    const double m = tally_mean(t);
    return t->n ? sqrt(fmax(0, t->squares / t->n - m * m) + t->noise / t->n) : 0;
}

typedef struct { char *text; bool covered; tally tally; } kind;

typedef struct {
    const search_chain *c;
    const search_table *t;
    const search_latency_options *o;
    kind  *kind; int n_kind;     /* entries that are the same network */
    int   *of;                   /* row → kind, -1: the identity, which costs nothing */
    int  (*path)[2];             /* scratch of find_path, per chain node: rows so far uncovered, row it came by */
    int   *row;                  /* network k has rows row[k*L + 0 … n_row[k]-1] */
    int   *n_row, n_net, cap_net;
    tally  fixed;
    nn_graph *g;                 /* the network as it is */
    nn_plan  *whole;
    double base_ms;              /* of it, summed over n_group groups */
    int    n_group, timed, timing;        /* networks that are done, those of the group */
} work;

/* ---- which entries are the same ------------------------------------------------------------------------ */

/* What conv l reads: chain node l-1, or what a pool made of it. */
static int input_of(const search_chain *c, int l) { return c->g->node[c->pos[l].conv].in[0]; }

static bool has_act(const search_chain *c, const search_entry *row) { return c->native[row->end] || row->end - row->st >= 2; }

static void entry_text(const search_chain *c, const search_entry *row, buf *out)
{
    const int64_t *from = c->g->node[input_of(c, row->st + 1)].dim, *to = c->g->node[c->pos[row->end].conv].dim;
    const search_shape s = search_shape_of(c, row);
    buf_printf(out, "%lldx%lldx%lld to %lldx%lldx%lld kernel %dx%d stride %dx%d groups %d act %d", (long long)from[1],
               (long long)from[2], (long long)from[3], (long long)to[1], (long long)to[2], (long long)to[3], s.k[0], s.k[1],
               s.stride[0], s.stride[1], s.groups, has_act(c, row));
    for (int k = 0; k < c->n_skip; k++) {
        const search_skip *skip = &c->skip[k];
        if (skip->t != row->end || (skip->fusible && skip->s >= row->st)) continue;
        const int64_t *d = c->g->node[c->node[skip->s]].dim;
        buf_printf(out, " add %lldx%lldx%lld", (long long)d[1], (long long)d[2], (long long)d[3]);
        if (skip->conv >= 0 || skip->slice >= 0) buf_printf(out, " through %d %d", skip->conv, skip->slice);
    }
}

static bool add_kind(work *w, int r, err *e)
{
    buf text = { 0 };
    entry_text(w->c, &w->t->row[r], &text);
    int at = 0;
    while (!text.failed && at < w->n_kind && strcmp(w->kind[at].text, text.data)) at++;
    bool ok = !text.failed || err_set(e, ERR_NOMEM, "no memory for the latency table");
    if (ok && at == w->n_kind && (ok = (w->kind[at].text = mem_text(text.data, e)) != NULL)) w->n_kind++;
    buf_free(&text);
    w->of[r] = at;
    return ok;
}

/* ---- networks that hold every entry ---------------------------------------------------------------------- */

static bool add_network(work *w, err *e)
{
    const int L = w->c->L;
    if (w->n_net == w->cap_net) {
        const int cap = 2 * w->cap_net + 8;
        int *row = mem_new((size_t)(cap * (L + 1)), sizeof *row, e);
        if (!row) return false;
        if (w->n_net) {
            memcpy(row, w->row, (size_t)(w->cap_net * L) * sizeof *row);
            memcpy(row + cap * L, w->n_row, (size_t)w->cap_net * sizeof *row);
        }
        mem_free(w->row);
        w->row = row;
        w->n_row = row + cap * L;
        w->cap_net = cap;
    }
    w->n_row[w->n_net++] = 0;
    return true;
}

static void put_row(work *w, int r)
{
    const int k = w->n_net - 1;
    w->row[k * w->c->L + w->n_row[k]++] = r;
    if (w->of[r] >= 0) w->kind[w->of[r]].covered = true;
}

/* The layers of the network as it is. */
static bool base_network(work *w, err *e)
{
    if (!add_network(w, e)) return false;
    for (int l = 1; l <= w->c->L; l++) {
        const search_entry *row = search_single_layer(w->t, l, e);
        if (!row) return false;
        put_row(w, (int)(row - w->t->row));
    }
    return true;
}

/* The path with the most entries that no network holds yet, of those one with many convs, which is close to the
 * network as it is. Into w->path; how many such entries. */
static int find_path(work *w)
{
    const search_table *t = w->t;
    for (int l = 0; l <= t->L; l++) w->path[l][0] = l ? -1 : 0;
    for (int l = 1; l <= t->L; l++)
        for (int r = 0; r < t->n; r++) {
            const search_entry *row = &t->row[r];
            if (row->end != l || w->path[row->st][0] < 0) continue;
            const bool fresh = w->of[r] >= 0 && !w->kind[w->of[r]].covered;
            const int worth = w->path[row->st][0] + (fresh ? t->L + 1 : 0) + (w->of[r] >= 0);
            if (worth > w->path[l][0]) { w->path[l][0] = worth; w->path[l][1] = r; }
        }
    return w->path[t->L][0] / (t->L + 1);
}

static void put_path(work *w)
{
    const int k = w->n_net - 1, L = w->c->L;
    int n = 0;
    for (int l = L; l > 0; l = w->t->row[w->path[l][1]].st) n++;
    for (int l = L, at = n; l > 0; l = w->t->row[w->path[l][1]].st) w->row[k * L + --at] = w->path[l][1];
    for (int i = 0; i < n; i++) put_row(w, w->row[k * L + i]);
}

static bool cover(work *w, err *e)
{
    if (!base_network(w, e)) return false;
    while (find_path(w) > 0) {
        if (!add_network(w, e)) return false;
        put_path(w);
    }
    for (int r = 0; r < w->t->n; r++)
        if (w->of[r] >= 0 && !w->kind[w->of[r]].covered)
            return err_set(e, ERR_INTERNAL, "no network holds segment (%d,%d]", w->t->row[r].st, w->t->row[r].end);
    return true;
}

/* ---- measuring in groups ---------------------------------------------------------------------------------- */

/* Network k with the shapes of its entries, owner: which of its rows a node belongs to. */
static nn_graph *network(const work *w, int k, int **owner, err *e)
{
    const int L = w->c->L, n = w->n_row[k];
    search_solution s = { .feasible = true, .least_ns = -1, .n_segment = n };
    s.segment = mem_new((size_t)n, sizeof *s.segment, e);
    if (!s.segment) return NULL;
    for (int i = 0; i < n; i++) s.segment[i] = w->t->row[w->row[k * L + i]];
    rewrite_plan p;
    nn_graph *g = NULL;
    if (rewrite_plan_init(&p, w->c, &s, e)) {
        g = rewrite_graph(&p, w->c->g, REWRITE_SHAPES, owner, e);
        rewrite_plan_free(&p);
    }
    mem_free(s.segment);
    return g;
}

typedef struct { nn_graph *g; nn_plan *plan; int *owner; nn_share *share; } network_plan;

static void network_plan_free(network_plan *n)
{
    nn_plan_free(n->plan);
    nn_graph_free(n->g);
    mem_free(n->owner);
    mem_free(n->share);
}

static void fill_input(nn_plan *plan, const nn_graph *g, int batch)
{
    const int64_t *d = nn_input(g, 0)->dim, count = batch * d[1] * d[2] * d[3];
    float *x = nn_plan_input(plan, 0);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(i % 17 - 8) / 8;
}

static bool network_plan_new(network_plan *n, const work *w, int k, err *e)
{
    *n = (network_plan){ 0 };
    n->g = network(w, k, &n->owner, e);
    n->share = n->g ? mem_new((size_t)n->g->n_node, sizeof *n->share, e) : NULL;
    n->plan = n->share ? nn_plan_new(n->g, NN_INFER, w->o->batch, e) : NULL;
    if (n->plan) fill_input(n->plan, n->g, w->o->batch);
    return n->plan != NULL;
}

static bool whole_plan_new(work *w, err *e)
{
    w->g = nn_graph_copy(w->c->g, e);
    w->whole = w->g ? nn_plan_new(w->g, NN_INFER, w->o->batch, e) : NULL;
    if (w->whole) fill_input(w->whole, w->g, w->o->batch);
    return w->whole != NULL;
}

static size_t network_bytes(const nn_graph *g, const nn_plan *plan)
{
    size_t bytes = nn_plan_describe(plan).arena_bytes;
    for (int i = 0; i < g->n_param; i++) bytes += (size_t)nn_param_count(&g->param[i]) * sizeof(float);
    return bytes;
}

/* What network k took, in units of what the whole network took, to its rows' kinds. */
static bool note_network(work *w, int k, const network_plan *n, double ratio, err *e)
{
    const int rows = w->n_row[k];
    double *sum = mem_new(2 * (size_t)(rows + 1), sizeof *sum, e), *noise = sum + rows + 1;
    if (!sum) return false;
    for (int i = 0; i < n->g->n_node; i++) {
        const int at = n->owner[i] < 0 ? rows : n->owner[i];
        sum[at] += n->share[i].median * ratio;
        noise[at] += n->share[i].stdev * n->share[i].stdev * ratio * ratio;
    }
    for (int i = 0; i < rows; i++) {
        const int of = w->of[w->row[k * w->c->L + i]];
        if (of >= 0) note(&w->kind[of].tally, sum[i], sqrt(noise[i]));
    }
    note(&w->fixed, sum[rows], sqrt(noise[rows]));
    mem_free(sum);
    return true;
}

static void tick(void *ctx, int done, int total)
{
    const work *w = ctx;
    if (w->o->tick) w->o->tick(w->o->ctx, w->timed + w->timing * done / total, w->n_net);
}

/* Time the next networks beside the whole one, as many as will fit if they are no larger than those before them. */
static bool time_group(work *w, err *e)
{
    network_plan net[GROUP_PLANS];
    nn_plan *plan[1 + GROUP_PLANS] = { w->whole };
    nn_share *share[1 + GROUP_PLANS] = { NULL };
    nn_timing timing[1 + GROUP_PLANS];
    size_t bytes = network_bytes(w->g, w->whole), most = 0;
    int n = 0;
    bool ok = true;
    while (ok && n < GROUP_PLANS && w->timed + n < w->n_net && (n == 0 || bytes + most <= group_bytes)) {
        ok = network_plan_new(&net[n], w, w->timed + n, e);
        const size_t more = ok ? network_bytes(net[n].g, net[n].plan) : 0;
        bytes += more;
        most = more > most ? more : most;
        plan[1 + n] = net[n].plan;
        share[1 + n] = net[n].share;
        n++;
    }
    nn_time_options time = w->o->time;
    if (time.warm_ms <= 0) time.warm_ms = WARM_MS;
    time.share = share;
    time.tick = tick;
    time.ctx = w;
    w->timing = n;
    ok = ok && nn_plan_time(plan, 1 + n, &time, timing, e);
    for (int k = 0; k < n; k++) {
        ok = ok && note_network(w, w->timed + k, &net[k], timing[1 + k].median_ms / timing[0].median_ms, e);
        network_plan_free(&net[k]);
    }
    if (!ok) return false;
    w->base_ms += timing[0].median_ms;
    w->n_group++;
    w->timed += n;
    return true;
}

static bool time_all(work *w, err *e)
{
    bool ok = whole_plan_new(w, e);
    while (ok && w->timed < w->n_net) ok = time_group(w, e);
    nn_plan_free(w->whole);
    nn_graph_free(w->g);
    return ok;
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

/* In whole nanoseconds: what the solver counts, what the table says. ms: what the whole network is worth. */
static void set_time(search_entry *row, const tally *t, double ms)
{
    row->time_ns = t ? (int64_t)ceil(tally_mean(t) * ms * 1e6) : 0;
    row->time_ms = (double)row->time_ns / 1e6;
    row->stdev_ms = t ? nearbyint(tally_stdev(t) * ms * 1e6) / 1e6 : 0;
}

/* Entries as they were met, then the factor that makes the single layers add up to the whole network. */
static bool set_times(const work *w, search_table *t, search_fixed *fixed, err *e)
{
    int64_t layers;
    fixed->base_ms = w->base_ms / w->n_group;
    const double rest = tally_mean(&w->fixed) * fixed->base_ms;
    for (int r = 0; r < t->n; r++) set_time(&t->row[r], w->of[r] >= 0 ? &w->kind[w->of[r]].tally : NULL, fixed->base_ms);
    if (!search_base_time(t, &layers, e)) return false;
    fixed->scale = fixed->base_ms / (rest + (double)layers / 1e6);
    fixed->fixed_ms = rest * fixed->scale;
    for (int r = 0; r < t->n; r++)
        set_time(&t->row[r], w->of[r] >= 0 ? &w->kind[w->of[r]].tally : NULL, fixed->base_ms * fixed->scale);
    return true;
}

bool search_measure(const search_chain *c, search_table *t, const search_latency_options *o,
                    search_fixed *fixed, err *e)
{
    work w = { .c = c, .t = t, .o = o };
    w.of = mem_new((size_t)t->n, sizeof *w.of, e);
    w.kind = w.of ? mem_new((size_t)t->n, sizeof *w.kind, e) : NULL;
    w.path = w.kind ? mem_new((size_t)t->L + 1, sizeof *w.path, e) : NULL;
    bool ok = w.path != NULL;
    for (int r = 0; ok && r < t->n; r++) {
        w.of[r] = -1;
        if (t->row[r].ker > 0) ok = add_kind(&w, r, e);
    }
    ok = ok && cover(&w, e) && time_all(&w, e) && set_times(&w, t, fixed, e);
    for (int k = 0; k < w.n_kind; k++) mem_free(w.kind[k].text);
    mem_free(w.kind);
    mem_free(w.of);
    mem_free(w.path);
    mem_free(w.row);
    return ok;
}
