/* The memory of a plan: every value, gradient and scratch is a buffer with a first and a last time,
 * and gets an offset in one arena. An element-wise step may reuse the buffer of an operand that
 * dies with it. The first writer of a gradient writes, the others add, so nothing is ever zeroed. */
#include "nn/op.h"

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Twice (value and gradient) every node of the whole batch: then no sum below can overflow. */
static bool sizes_fit(const nn_plan *p, err *e)
{
    size_t all = 0;
    for (int i = 0; i < p->g->n_node; i++) {
        size_t bytes = 2 * sizeof(float) * (size_t)p->batch;
        for (int k = 1; k < 4; k++)
            if (!size_mul(bytes, (size_t)p->g->node[i].dim[k], &bytes))
                return err_set(e, ERR_NOMEM, "%s in a batch of %d is too big", p->g->node[i].name, p->batch);
        if (!size_add(all, bytes + 128, &all))
            return err_set(e, ERR_NOMEM, "a batch of %d is too big", p->batch);
    }
    return true;
}

/* ---- lifetimes ------------------------------------------------------------------------------- */

enum { REFRESH = -1 };
static int backward_time(const nn_plan *p, int step) { return 2 * p->n_step - 1 - step; }
static int end_of_time(const nn_plan *p) { return 2 * p->n_step; }

static int add_buffer(nn_plan *p, size_t bytes, int first, int last)
{
    p->buffer[p->n_buffer] =
        (nn_buffer){ .bytes = (bytes + 63) / 64 * 64, .first = first, .last = last, .same = -1 };
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
    const int images = p->whole[node] ? p->batch : p->step[p->home[node]].batch;
    return (size_t)(images * d[1] * d[2] * d[3]) * sizeof(float);
}

/* The stage of a step if it runs group after group, else NULL. */
static const nn_stage *groups_of(const nn_plan *p, int step)
{
    const nn_stage *s = &p->stage[p->step[step].stage];
    return s->group < p->batch ? s : NULL;
}

/* What leaves its stage, or enters the plan, is kept for all images. */
static void find_whole(nn_plan *p)
{
    for (int i = 0; i < p->g->n_node; i++)
        p->whole[i] = p->home[i] < 0 || !groups_of(p, p->home[i]) || i == p->alias[p->g->output];
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        for (int k = 0; k <= s->n_in && !s->absorbed; k++) {
            const int from = k < s->n_in ? s->in[k] : s->residual;
            if (from >= 0 && p->home[from] >= 0 && p->step[p->home[from]].stage != s->stage)
                p->whole[from] = true;
        }
    }
}

static void live_until(nn_plan *p, int node, int time)
{
    nn_buffer *b = &p->buffer[p->value[node]];
    b->last = b->last > time ? b->last : time;
}

/* The first group writes a whole batch's value and the last one reads it: it lives for the stage. */
static int written(const nn_plan *p, int node)
{
    const nn_stage *s = groups_of(p, p->home[node]);
    return s && p->whole[node] ? s->first : p->home[node];
}

static int last_read(const nn_plan *p, int node, int step)
{
    const nn_stage *s = groups_of(p, step);
    return s && p->whole[node] ? s->end - 1 : step;
}

static void add_values(nn_plan *p)
{
    const nn_graph *g = p->g;
    const int end = end_of_time(p);
    find_whole(p);
    for (int i = 0; i < g->n_node; i++) {
        p->value[i] = p->grad[i] = -1;
        if (nn_ops[g->node[i].op]->flags & NN_NO_STEP)   /* written at any time, once for many runs */
            p->value[i] = add_buffer(p, value_bytes(p, i), REFRESH, end);
        else if (p->home[i] >= 0 && p->step[p->home[i]].lazy)
            p->value[i] = p->value[p->step[p->home[i]].in[0]];
        else if (p->home[i] >= 0)
            p->value[i] = add_buffer(p, value_bytes(p, i), written(p, i), last_read(p, i, p->home[i]));
        if (p->value[i] >= 0)
            p->buffer[p->value[i]].whole = p->whole[i];
    }
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        const int back = backward_time(p, i);
        if (s->absorbed)
            continue;
        for (int k = 0; k < s->n_in; k++)
            live_until(p, s->in[k], s->active && s->op->flags & NN_NEEDS_IN ? back : last_read(p, s->in[k], i));
        if (s->residual >= 0)
            live_until(p, s->residual, last_read(p, s->residual, i));
        if (s->active && (s->op->flags & NN_NEEDS_OUT || s->act != ACT_NONE || s->norm_out))
            live_until(p, s->out, back);
    }
    live_until(p, p->alias[g->output], end);
}

/* Gradient of node, written by the backward of `step`: the first writer makes the buffer. An
 * input's is the caller's to keep. */
static grad_out write_grad(nn_plan *p, int node, int step)
{
    const grad_out out = { .accumulate = p->grad[node] >= 0 };
    const bool input = p->home[node] < 0;
    if (!out.accumulate)
        p->grad[node] =
            add_buffer(p, value_bytes(p, node), input ? REFRESH : backward_time(p, step),
                       input ? end_of_time(p) : backward_time(p, p->home[node]));
    return out;
}

/* A half norm hands its own gradient on. */
static void leave_grad(nn_plan *p, const nn_step *norm)
{
    const int dy = p->grad[norm->out];
    p->grad[norm->in[0]] = dy;
    p->buffer[dy].last = backward_time(p, p->home[norm->in[0]]);
}

static void add_gradients(nn_plan *p)
{
    for (int i = p->n_step - 1; i >= 0; i--) {
        nn_step *s = &p->step[i];
        for (int k = 0; k < s->n_in; k++)
            if (s->want[k] && s->half)
                leave_grad(p, s);
            else if (s->want[k])
                s->dx[k] = write_grad(p, s->in[k], i);
        if (s->active && s->residual >= 0 && p->wanted[s->residual])
            s->dres = write_grad(p, s->residual, i);
    }
    for (int i = 0; i < p->g->n_param; i++) {
        const nn_param *w = &p->g->param[i];
        p->param_grad[i] =
            p->mode == NN_TRAIN && w->role != NN_RUNNING
                ? add_buffer(p, (size_t)nn_param_count(w) * sizeof(float), REFRESH, end_of_time(p))
                : -1;
    }
}

static int backward_of(const nn_plan *p, const nn_step *s) { return s ? backward_time(p, (int)(s - p->step)) : 0; }

/* Steps run one after another: scratch of all of them is one buffer, as large as the greediest wants it. */
static int shared_buffer(nn_plan *p, int shared, size_t bytes, int first, int last)
{
    if (shared < 0)
        return add_buffer(p, bytes, first, last);
    nn_buffer *b = &p->buffer[shared];
    const size_t whole_lines = (bytes + 63) / 64 * 64;
    b->bytes = whole_lines > b->bytes ? whole_lines : b->bytes;
    return shared;
}

/* Forward scratch of INFER always lies in the same place: a core that writes to what another core wrote last waits for
 * it, longer than a small layer takes. In TRAIN it may be large, and shares its memory with values. */
static bool prepare_steps(nn_plan *p, err *e)
{
    int refresh = -1, forward[NN_MEMORIES];
    for (int k = 0; k < NN_MEMORIES; k++)
        forward[k] = -1;
    for (int i = 0; i < p->n_step; i++) {
        nn_step *s = &p->step[i];
        if (s->op->prepare && !s->op->prepare(s, e))
            return false;
        const int back = backward_time(p, i);
        for (int k = 0; k < NN_MEMORIES; k++) {
            const nn_memory *m = &s->mem[k];
            const int first[] = { i, back, REFRESH, i, REFRESH, i, back, back };
            const int last[] = { i, back, REFRESH, back, end_of_time(p), s->reader, backward_of(p, s->giver), backward_of(p, s->norm_in) };
            if (!m->bytes)
                p->memory[i][k] = -1;
            else if (m->when == NN_AT_REFRESH)
                p->memory[i][k] = refresh = shared_buffer(p, refresh, m->bytes, REFRESH, REFRESH);
            else if (m->when == NN_AT_FORWARD && p->mode == NN_INFER)
                p->memory[i][k] = forward[k] = shared_buffer(p, forward[k], m->bytes, 0, p->n_step - 1);
            else
                p->memory[i][k] = add_buffer(p, m->bytes, first[m->when], last[m->when]);
            if (p->memory[i][k] >= 0)
                p->buffer[p->memory[i][k]].scratch = m->when <= NN_AT_REFRESH;
            p->weight_bytes += m->when == NN_ALWAYS ? m->bytes : 0;
        }
    }
    return true;
}

/* ---- reuse in place -------------------------------------------------------------------------- */

/* Let buffer b live in a's memory if a's last reader is the writer of b. In a stage of groups a whole
 * batch is still read, for images to come, and read again where groups overlap. */
static bool join(nn_plan *p, int a, int b, int time)
{
    nn_buffer *from = root(p, a), *to = &p->buffer[b];
    if (time < p->n_step && groups_of(p, time) && (from->whole || to->whole))
        return false;
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
        if (s->absorbed)
            continue;
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
        for (int k = s->n_in - 1; k >= 0; k--) /* written in order: only the last may destroy dy */
            if (s->want[k]) {
                if (!s->dx[k].accumulate)
                    join(p, dy, p->grad[s->in[k]], time);
                break;
            }
    }
}

/* ---- offsets --------------------------------------------------------------------------------- */

static bool meet(const nn_buffer *a, const nn_buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

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
            if (b->same >= 0 || b->first > t || b->last < t)
                continue;
            live += b->bytes;
            scratch += b->scratch ? b->bytes : 0;
        }
        p->live_bytes = live > p->live_bytes ? live : p->live_bytes;
        p->scratch_bytes = scratch > p->scratch_bytes ? scratch : p->scratch_bytes;
    }
}

static bool take_memory(nn_plan *p, err *e)
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

/* ---- pointers -------------------------------------------------------------------------------- */

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

/* Values and gradients alone, before any step is prepared: planning the steps of a batch that no
 * memory could hold would take long. */
static bool may_fit(nn_plan *p, err *e)
{
    arena probe;
    measure_life(p);
    if (!arena_init(&probe, p->live_bytes, e))
        return err_note(e, "memory of a plan for batches of %d", p->batch);
    arena_free(&probe);
    return true;
}

bool nn_plan_lay_out(nn_plan *p, err *e)
{
    if (!sizes_fit(p, e))
        return false;
    add_values(p);
    add_gradients(p);
    reuse_in_place(p);
    if (!may_fit(p, e) || !prepare_steps(p, e) || !take_memory(p, e))
        return false;
    bind_memory(p);
    return true;
}
