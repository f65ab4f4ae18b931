/* Plans: a graph becomes steps, steps get lifetimes, lifetimes get offsets in one arena.
 *
 * Fusion: a step absorbs the nodes that follow it as long as nobody else reads what lies between: a
 * batch norm (INFER, into the weights), a sum whose other operand is ready (as the residual of the
 * epilogue), an activation. Whether a step can is a flag of its op.
 *
 * Memory: every value, gradient and scratch is a buffer with a first and a last time. An element-wise
 * step may reuse the buffer of an operand that dies with it. The first writer of a gradient writes,
 * the others add, so nothing is ever zeroed. */
#include "nn/op.h"

#if defined(__SANITIZE_ADDRESS__)
enum { POISON = true };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { POISON = true };
#else
enum { POISON = false };
#endif
#else
enum { POISON = false };
#endif

/* What is known about nodes before there are steps. */
typedef struct {
    int  *order, n_order;        /* needed nodes as they will be computed */
    int  *pending;               /* of the search for the order: nodes entered and not yet left */
    int  *next;                  /*   … inputs each of them has yet to visit; -1: not entered */
    bool *taken;                 /* absorbed by an earlier step */
    int  *uses, *user;           /* reads by needed nodes (the output counts as one); the last reader */
    int  *home;                  /* step that leaves this node's value, -1 */
    bool *wanted;                /* its gradient is */
} survey;

static void survey_free(survey *v)
{
    mem_free(v->order);
    mem_free(v->taken);
}

static bool survey_new(survey *v, int count, err *e)
{
    const size_t n = (size_t)count;
    int *ints = mem_new(6 * n, sizeof *ints, e);
    bool *bools = mem_new(2 * n, sizeof *bools, e);
    *v = (survey){ .order = ints, .taken = bools };
    if (!ints || !bools)
        return false;
    v->pending = ints + n;
    v->next = ints + 2 * n;
    v->uses = ints + 3 * n;
    v->user = ints + 4 * n;
    v->home = ints + 5 * n;
    v->wanted = bools + n;
    for (int i = 0; i < count; i++)
        v->next[i] = v->user[i] = v->home[i] = -1;
    return true;
}

/* ---- order and fusion -------------------------------------------------------------------------- */

/* Everything root needs, each node behind its inputs, the last input first: a shortcut is computed
 * before the main branch, so that the end of that branch can take the sum along, and so that the
 * input of the block dies early. */
static void visit(const nn_plan *p, survey *v, int root)
{
    int depth = 0;
    const nn_graph *g = p->g;
    if (v->next[root] < 0) {
        v->next[root] = g->node[root].n_in;
        v->pending[depth++] = root;
    }
    while (depth > 0) {
        const int i = v->pending[depth - 1];
        if (v->next[i] == 0) {
            v->order[v->n_order++] = i;
            depth--;
            continue;
        }
        const int in = p->alias[g->node[i].in[--v->next[i]]];
        v->uses[in]++;
        v->user[in] = i;
        if (v->next[in] < 0) {
            v->next[in] = g->node[in].n_in;
            v->pending[depth++] = in;
        }
    }
}

static void find_order(nn_plan *p, survey *v)
{
    const nn_graph *g = p->g;
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        bool through = p->mode == NN_INFER && nn_ops[n->op]->flags & NN_TRAIN_ONLY;
        p->alias[i] = through ? p->alias[n->in[0]] : i;
    }
    visit(p, v, p->alias[g->output]);
    v->uses[p->alias[g->output]]++;
    for (int i = 0; i < g->n_node; i++)
        if (nn_ops[g->node[i].op]->flags & NN_IS_LOSS)
            visit(p, v, i);
}

/* The op of the only node that reads `node`, and that node's id; NULL when there are more or none. */
static const nn_op *follower(const nn_plan *p, const survey *v, int node, int *id)
{
    if (v->uses[node] != 1 || v->user[node] < 0)
        return NULL;
    *id = v->user[node];
    return nn_ops[p->g->node[*id].op];
}

static bool is_ready(const nn_plan *p, const survey *v, int node)
{
    return v->home[node] >= 0 || nn_ops[p->g->node[node].op]->flags & NN_NO_STEP;
}

static void take(nn_step *s, survey *v, int node)
{
    v->taken[node] = true;
    s->out = node;
}

static void fuse(const nn_plan *p, survey *v, nn_step *s)
{
    int id;
    const nn_op *next;
    const unsigned can = p->mode == NN_INFER ? NN_FUSE_INFER : NN_FUSE_TRAIN;
    if (p->mode == NN_INFER && s->op->flags & NN_FOLD_NORM &&
        (next = follower(p, v, s->out, &id)) && next->flags & NN_IS_NORM) {
        s->norm = id;
        take(s, v, id);
    }
    if (s->op->flags & can && !(s->op->flags & NN_ACT_ONLY) &&
        (next = follower(p, v, s->out, &id)) && next->flags & NN_IS_SUM) {
        const int *in = p->g->node[id].in;
        const int a = p->alias[in[0]], other = a == s->out ? p->alias[in[1]] : a;
        /* in TRAIN the same buffer would get two gradients in one pass */
        if (is_ready(p, v, other) && (p->mode == NN_INFER || other != s->in[0])) {
            s->residual = other;
            take(s, v, id);
        }
    }
    if (s->op->flags & can && (next = follower(p, v, s->out, &id)) && next->act != ACT_NONE) {
        s->act = next->act;
        take(s, v, id);
    }
}

static void bind_params(const nn_plan *p, nn_step *s)
{
    for (int k = 0; k < s->node->n_w; k++)
        s->w[k] = &p->g->param[s->node->w[k]];
    if (s->norm < 0)
        return;
    const nn_node *norm = &p->g->node[s->norm];
    for (int k = 0; k < 4; k++)
        s->norm_w[k] = &p->g->param[norm->w[k]];
    s->norm_eps = norm->attr.eps;
}

static void make_steps(nn_plan *p, survey *v, unsigned options)
{
    const nn_graph *g = p->g;
    for (int o = 0; o < v->n_order; o++) {
        const int i = v->order[o];
        const nn_node *n = &g->node[i];
        const nn_op *op = nn_ops[n->op];
        if (v->taken[i] || op->flags & NN_NO_STEP)
            continue;
        nn_step *s = &p->step[p->n_step];
        *s = (nn_step){ .op = op, .node = n, .mode = p->mode, .id = i, .out = i, .n_in = n->n_in,
                        .batch = p->batch, .norm = -1, .residual = -1 };
        for (int k = 0; k < n->n_in; k++) {
            s->in[k] = p->alias[n->in[k]];
            s->src[k] = &g->node[s->in[k]];
        }
        if (!(options & NN_PLAN_NO_FUSION))
            fuse(p, v, s);
        bind_params(p, s);
        v->home[s->out] = p->n_step++;
    }
}

/* ---- which gradients -------------------------------------------------------------------------------- */

static bool has_trained_params(const nn_graph *g, const nn_node *n)
{
    for (int k = 0; k < n->n_w; k++)
        if (g->param[n->w[k]].role != NN_RUNNING)
            return true;
    return false;
}

/* Gradients are wanted between the losses and the first trained parameters. Marks steps active. */
static bool find_gradients(nn_plan *p, survey *v, err *e)
{
    const nn_graph *g = p->g;
    if (p->mode != NN_TRAIN)
        return true;
    bool *carries = mem_new((size_t)g->n_node, sizeof *carries, e);
    if (!carries)
        return false;
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *n = &g->node[i];
        carries[i] = has_trained_params(g, n) ||
                     (p->want_input_grad && nn_ops[n->op]->flags & NN_NO_STEP);
        for (int k = 0; k < n->n_in; k++)
            carries[i] = carries[i] || carries[n->in[k]];
    }
    for (int i = g->n_node - 1; i >= 0; i--) {
        const nn_node *n = &g->node[i];
        const bool loss = nn_ops[n->op]->flags & NN_IS_LOSS;
        v->wanted[i] = carries[i] && (loss || v->wanted[i]);
        for (int k = 0; v->wanted[i] && k < (loss ? 1 : n->n_in); k++)
            v->wanted[n->in[k]] = true;
    }
    for (int i = 0; i < p->n_step; i++) {
        nn_step *s = &p->step[i];
        s->active = v->wanted[s->out];
        const int n_in = s->op->flags & NN_IS_LOSS ? 1 : s->n_in;
        for (int k = 0; s->active && k < n_in; k++)
            s->want[k] = v->wanted[s->in[k]];
    }
    mem_free(carries);
    return true;
}

/* ---- lifetimes ----------------------------------------------------------------------------------------- */

enum { REFRESH = -1 };
static int backward_time(const nn_plan *p, int step) { return 2 * p->n_step - 1 - step; }
static int end_of_time(const nn_plan *p) { return 2 * p->n_step; }

static int add_buffer(nn_plan *p, size_t bytes, int first, int last)
{
    p->buffer[p->n_buffer] = (nn_buffer){ .bytes = (bytes + 63) / 64 * 64, .first = first, .last = last, .same = -1 };
    return p->n_buffer++;
}

static nn_buffer *root(const nn_plan *p, int b)
{
    while (p->buffer[b].same >= 0)
        b = p->buffer[b].same;
    return &p->buffer[b];
}

static size_t value_bytes(const nn_plan *p, int node)
{
    const int64_t *d = p->g->node[node].dim;
    return (size_t)(p->batch * d[1] * d[2] * d[3]) * sizeof(float);
}

static void live_until(nn_plan *p, int node, int time)
{
    nn_buffer *b = &p->buffer[p->value[node]];
    b->last = b->last > time ? b->last : time;
}

static void add_values(nn_plan *p, const survey *v)
{
    const nn_graph *g = p->g;
    const int end = end_of_time(p);
    for (int i = 0; i < g->n_node; i++) {
        p->value[i] = p->grad[i] = -1;
        if (nn_ops[g->node[i].op]->flags & NN_NO_STEP)   /* the caller writes at any time, once for many runs */
            p->value[i] = add_buffer(p, value_bytes(p, i), REFRESH, end);
        else if (v->home[i] >= 0)
            p->value[i] = add_buffer(p, value_bytes(p, i), v->home[i], v->home[i]);
    }
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        const int back = backward_time(p, i);
        for (int k = 0; k < s->n_in; k++)
            live_until(p, s->in[k], s->active && s->op->flags & NN_NEEDS_IN ? back : i);
        if (s->residual >= 0)
            live_until(p, s->residual, i);
        if (s->active && (s->op->flags & NN_NEEDS_OUT || s->act != ACT_NONE))
            live_until(p, s->out, back);
    }
    live_until(p, p->alias[g->output], end);
}

/* Gradient of node, written by the backward of `step`: the first writer makes the buffer. An input's
 * is the caller's to keep. */
static grad_out write_grad(nn_plan *p, const survey *v, int node, int step)
{
    const grad_out out = { .accumulate = p->grad[node] >= 0 };
    const bool input = v->home[node] < 0;
    if (!out.accumulate)
        p->grad[node] = add_buffer(p, value_bytes(p, node), input ? REFRESH : backward_time(p, step),
                                   input ? end_of_time(p) : backward_time(p, v->home[node]));
    return out;
}

static void add_gradients(nn_plan *p, const survey *v)
{
    for (int i = p->n_step - 1; i >= 0; i--) {
        nn_step *s = &p->step[i];
        for (int k = 0; k < s->n_in; k++)
            if (s->want[k])
                s->dx[k] = write_grad(p, v, s->in[k], i);
        if (s->active && s->residual >= 0 && v->wanted[s->residual])
            s->dres = write_grad(p, v, s->residual, i);
    }
    for (int i = 0; i < p->g->n_param; i++) {
        const nn_param *w = &p->g->param[i];
        p->param_grad[i] = p->mode == NN_TRAIN && w->role != NN_RUNNING
            ? add_buffer(p, (size_t)nn_param_count(w) * sizeof(float), REFRESH, end_of_time(p)) : -1;
    }
}

static bool prepare_steps(nn_plan *p, err *e)
{
    for (int i = 0; i < p->n_step; i++) {
        nn_step *s = &p->step[i];
        if (s->op->prepare && !s->op->prepare(s, e))
            return false;
        const int back = backward_time(p, i);
        for (int k = 0; k < NN_MEMORIES; k++) {
            const nn_memory *m = &s->mem[k];
            const int first[] = { i, back, REFRESH, i, REFRESH };
            const int last[] = { i, back, REFRESH, back, end_of_time(p) };
            p->memory[i][k] = m->bytes ? add_buffer(p, m->bytes, first[m->when], last[m->when]) : -1;
            p->weight_bytes += m->when == NN_ALWAYS ? m->bytes : 0;
        }
    }
    return true;
}

/* ---- reuse in place --------------------------------------------------------------------------------------- */

/* Let buffer b live in a's memory if a's last reader is the writer of b. */
static bool join(nn_plan *p, int a, int b, int time)
{
    nn_buffer *from = root(p, a), *to = &p->buffer[b];
    if (to->same >= 0 || from == to || from->last != time || from->first == REFRESH ||
        to->first != time || to->bytes != from->bytes)
        return false;
    to->same = (int)(from - p->buffer);
    from->last = to->last;
    return true;
}

static bool reads(const nn_step *s, int node)
{
    for (int k = 0; k < s->n_in; k++)
        if (s->in[k] == node)
            return true;
    return false;
}

static void reuse_in_place(nn_plan *p)
{
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        const int y = p->value[s->out];
        bool done = false;
        for (int k = 0; s->op->flags & NN_INPLACE && k < s->n_in && !done; k++)
            done = join(p, p->value[s->in[k]], y, i);
        if (!done && s->residual >= 0 && !reads(s, s->residual))
            join(p, p->value[s->residual], y, i);
    }
    for (int i = p->n_step - 1; i >= 0; i--) {
        const nn_step *s = &p->step[i];
        const int dy = p->grad[s->out], time = backward_time(p, i);
        if (!(s->op->flags & NN_GRAD_INPLACE) || !s->active)
            continue;
        if (s->residual >= 0 && p->grad[s->residual] >= 0 && !s->dres.accumulate &&
            join(p, dy, p->grad[s->residual], time))
            continue;
        for (int k = s->n_in - 1; k >= 0; k--)   /* written in order: only the last may destroy dy */
            if (s->want[k]) {
                if (!s->dx[k].accumulate)
                    join(p, dy, p->grad[s->in[k]], time);
                break;
            }
    }
}

/* ---- offsets ------------------------------------------------------------------------------------------------- */

static bool meet(const nn_buffer *a, const nn_buffer *b) { return a->first <= b->last && b->first <= a->last; }

/* Start of the smallest gap that holds b among the placed buffers (sorted by offset) it meets. */
static size_t best_gap(const nn_plan *p, const int *placed, int n, const nn_buffer *b)
{
    size_t end = 0, best = 0, best_size = SIZE_MAX;
    for (int i = 0; i < n; i++) {
        const nn_buffer *o = &p->buffer[placed[i]];
        if (!meet(o, b))
            continue;
        if (o->offset > end && o->offset - end >= b->bytes && o->offset - end < best_size) {
            best = end;
            best_size = o->offset - end;
        }
        if (o->offset + o->bytes > end)
            end = o->offset + o->bytes;
    }
    return best_size < SIZE_MAX ? best : end;
}

/* Largest first; equal ones in the order they were made. */
static bool goes_before(const nn_plan *p, int a, int b)
{
    const size_t x = p->buffer[a].bytes, y = p->buffer[b].bytes;
    return x != y ? x > y : a < b;
}

static void sort_by_size(const nn_plan *p, int *a, int n)
{
    for (int i = 1; i < n; i++) {
        const int v = a[i];
        int k = i;
        for (; k > 0 && goes_before(p, v, a[k - 1]); k--)
            a[k] = a[k - 1];
        a[k] = v;
    }
}

/* Returns the bytes of the arena. placed, order: room for n_buffer each. */
static size_t place(nn_plan *p, int *order, int *placed)
{
    int n = 0;
    size_t total = 0;
    for (int i = 0; i < p->n_buffer; i++)
        if (p->buffer[i].same < 0)
            order[n++] = i;
    sort_by_size(p, order, n);
    for (int i = 0; i < n; i++) {
        nn_buffer *b = &p->buffer[order[i]];
        b->offset = best_gap(p, placed, i, b);
        int k = i;
        for (; k > 0 && p->buffer[placed[k - 1]].offset > b->offset; k--)
            placed[k] = placed[k - 1];
        placed[k] = order[i];
        if (b->offset + b->bytes > total)
            total = b->offset + b->bytes;
    }
    return total;
}

static void measure_life(nn_plan *p)
{
    for (int t = REFRESH; t <= end_of_time(p); t++) {
        size_t live = 0, scratch = 0;
        for (int i = 0; i < p->n_buffer; i++) {
            const nn_buffer *b = &p->buffer[i];
            if (b->same < 0 && b->first <= t && t <= b->last)
                live += b->bytes;
        }
        for (int i = 0; i < p->n_step; i++)
            for (int k = 0; k < NN_MEMORIES; k++) {
                const int b = p->memory[i][k];
                if (b >= 0 && p->buffer[b].first == t && p->buffer[b].last == t)
                    scratch += p->buffer[b].bytes;
            }
        p->live_bytes = live > p->live_bytes ? live : p->live_bytes;
        p->scratch_bytes = scratch > p->scratch_bytes ? scratch : p->scratch_bytes;
    }
}

static bool lay_out(nn_plan *p, err *e)
{
    int *order = mem_new((size_t)p->n_buffer * 2, sizeof *order, e);
    if (!order)
        return false;
    const size_t bytes = place(p, order, order + p->n_buffer);
    mem_free(order);
    measure_life(p);
    if (!arena_init(&p->mem, bytes, e))
        return err_note(e, "memory of a plan for batches of %d", p->batch);
    arena_take(&p->mem, bytes);
    return true;
}

/* ---- pointers -------------------------------------------------------------------------------------------------- */

void *nn_plan_at(const nn_plan *p, int buffer)
{
    return buffer < 0 ? NULL : p->mem.base + root(p, buffer)->offset;
}

/* A gradient that is dy itself, unmasked and already in place, needs no writing. */
static float *unless_there(const nn_step *s, float *to)
{
    const unsigned passes = NN_IS_SUM | NN_FUSE_TRAIN;
    return to == s->dy && s->act == ACT_NONE && s->op->flags & passes ? NULL : to;
}

static void bind_memory(nn_plan *p)
{
    for (int i = 0; i < p->n_step; i++) {
        nn_step *s = &p->step[i];
        for (int k = 0; k < s->n_in; k++)
            s->x[k] = nn_plan_at(p, p->value[s->in[k]]);
        s->res = s->residual >= 0 ? nn_plan_at(p, p->value[s->residual]) : NULL;
        s->y = nn_plan_at(p, p->value[s->out]);
        for (int k = 0; k < NN_MEMORIES; k++)
            s->mem[k].p = nn_plan_at(p, p->memory[i][k]);
        if (!s->active)
            continue;
        s->dy = nn_plan_at(p, p->grad[s->out]);
        for (int k = 0; k < s->n_in; k++)
            if (s->want[k])
                s->dx[k].p = nn_plan_at(p, p->grad[s->in[k]]);
        if (s->op->flags & NN_IS_SUM)
            for (int k = 0; k < s->n_in; k++)
                s->dx[k].p = unless_there(s, s->dx[k].p);
        else if (s->residual >= 0)
            s->dres.p = unless_there(s, nn_plan_at(p, p->grad[s->residual]));
        for (int k = 0; k < s->node->n_w; k++)
            s->dw[k].p = nn_plan_at(p, p->param_grad[s->node->w[k]]);
    }
}

/* ---- the plan ----------------------------------------------------------------------------------------------------- */

static bool allocate(nn_plan *p, err *e)
{
    const size_t n = (size_t)p->g->n_node, w = (size_t)p->g->n_param;
    /* at most a value and a gradient per node, a gradient per parameter, and every step's memories */
    p->step = mem_new(n, sizeof *p->step, e);
    p->alias = mem_new(n, sizeof *p->alias, e);
    p->value = mem_new(n, sizeof *p->value, e);
    p->grad = mem_new(n, sizeof *p->grad, e);
    p->param_grad = mem_new(w, sizeof *p->param_grad, e);
    p->memory = mem_new(n, sizeof *p->memory, e);
    p->buffer = mem_new(n * (2 + NN_MEMORIES) + w, sizeof *p->buffer, e);
    return p->step && p->alias && p->value && p->grad && p->param_grad && p->memory && p->buffer;
}

nn_plan *nn_plan_build(nn_graph *g, nn_mode mode, int batch, unsigned options, err *e)
{
    if (batch < 1)
        return err_set(e, ERR_CONFIG, "a plan for a batch of %d images", batch), NULL;
    if (!nn_graph_check(g, e))
        return NULL;
    nn_plan *p = mem_new(1, sizeof *p, e);
    if (!p)
        return NULL;
    *p = (nn_plan){ .g = g, .mode = mode, .batch = batch, .run = { .momentum = -1 },
                    .poison = POISON,
                    .want_input_grad = options & NN_PLAN_INPUT_GRAD };
    survey v = { 0 };
    bool ok = allocate(p, e) && survey_new(&v, g->n_node, e);
    if (ok) {
        find_order(p, &v);
        make_steps(p, &v, options);
        ok = find_gradients(p, &v, e);
    }
    if (ok) {
        add_values(p, &v);
        add_gradients(p, &v);
        ok = prepare_steps(p, e);
    }
    if (ok) {
        reuse_in_place(p);
        ok = lay_out(p, e);
    }
    survey_free(&v);
    if (!ok) {
        nn_plan_free(p);
        return NULL;
    }
    bind_memory(p);
    nn_plan_refresh(p);
    return p;
}

nn_plan *nn_plan_new(nn_graph *g, nn_mode mode, int batch, err *e)
{
    return nn_plan_build(g, mode, batch, 0, e);
}

nn_plan *nn_plan_new_with_input_grad(nn_graph *g, int batch, err *e)
{
    return nn_plan_build(g, NN_TRAIN, batch, NN_PLAN_INPUT_GRAD, e);
}

void nn_plan_free(nn_plan *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_step; i++)
        conv_plan_free(p->step[i].conv);
    arena_free(&p->mem);
    mem_free(p->step);
    mem_free(p->alias);
    mem_free(p->value);
    mem_free(p->grad);
    mem_free(p->param_grad);
    mem_free(p->memory);
    mem_free(p->buffer);
    mem_free(p);
}
