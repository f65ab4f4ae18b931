/* Plans: nodes become steps in an order, and it is decided which gradients they need; layout.c
 * gives them memory.
 *
 * Fusion: a step absorbs the nodes that follow it as long as nobody else reads what lies between: a
 * batch norm (INFER, into the weights), a sum whose other operand is ready (as the residual of the
 * epilogue), an activation. Whether a step can is a flag of its op. Convolutions with large maps between
 * them stay steps of their own, but the last one runs them all (INFER, conv_bands). */
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
    int *uses, *user; /* reads by needed nodes (the output counts as one); the last reader */
} survey;

static void survey_free(survey *v)
{
    mem_free(v->order);
    mem_free(v->taken);
}

static bool survey_new(survey *v, int count, err *e)
{
    const size_t n = (size_t)count;
    int *ints = mem_new(5 * n, sizeof *ints, e);
    bool *taken = mem_new(n, sizeof *taken, e);
    *v = (survey){ .order = ints, .taken = taken };
    if (!ints || !taken)
        return false;
    v->pending = ints + n;
    v->next = ints + 2 * n;
    v->uses = ints + 3 * n;
    v->user = ints + 4 * n;
    for (int i = 0; i < count; i++)
        v->next[i] = v->user[i] = -1;
    return true;
}

/* ---- order and fusion ------------------------------------------------------------------------ */

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
        p->home[i] = -1;
    }
    visit(p, v, p->alias[g->output]);
    v->uses[p->alias[g->output]]++;
    for (int i = 0; i < g->n_node; i++)
        if (nn_ops[g->node[i].op]->flags & NN_IS_LOSS)
            visit(p, v, i);
}

/* The op and the id of the only node that reads `node`; NULL when there are more or none. */
static const nn_op *follower(const nn_plan *p, const survey *v, int node, int *id)
{
    if (v->uses[node] != 1 || v->user[node] < 0)
        return NULL;
    *id = v->user[node];
    return nn_ops[p->g->node[*id].op];
}

static bool is_ready(const nn_plan *p, int node)
{
    return p->home[node] >= 0 || nn_ops[p->g->node[node].op]->flags & NN_NO_STEP;
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
        if (is_ready(p, other) && (p->mode == NN_INFER || other != s->in[0])) {
            s->residual = other;
            take(s, v, id);
        }
    }
    if (s->op->flags & can && (next = follower(p, v, s->out, &id)) && next->act != ACT_NONE) {
        s->act = next->act;
        take(s, v, id);
    }
}

/* A norm of TRAIN need not read its input for the sums if who makes the input can tell them. */
static void find_giver(const nn_plan *p, nn_step *s)
{
    if (p->mode != NN_TRAIN || !(s->op->flags & NN_IS_NORM) || p->home[s->in[0]] < 0)
        return;
    nn_step *giver = &p->step[p->home[s->in[0]]];
    if (giver->op->flags & NN_GIVES_SUMS && giver->reader < 0) {
        giver->reader = p->n_step;
        s->giver = giver;
    }
}

/* A norm of TRAIN need not write its input's gradient down if the step that made the input, for nobody else,
 * makes that gradient itself when it wants it. */
static void find_half_norm(const nn_plan *p, const survey *v, nn_step *s)
{
    if (!s->giver || v->uses[s->in[0]] != 1 || s->residual >= 0 || s->act == ACT_SILU)
        return;
    nn_step *giver = &p->step[p->home[s->in[0]]];
    const conv_shape shape = nn_conv_window(giver->node, giver->src[0], giver->batch);
    s->half = giver->op->flags & NN_JOINS_NORM && !giver->w[1] && conv_joins_norm(&shape);
    giver->norm_out = s->half ? s : NULL;
}

/* A norm of TRAIN need not write its output down if the only step that reads it applies it. */
static void find_lazy_norm(const nn_plan *p, const survey *v, nn_step *s)
{
    const int home = s->n_in ? p->home[s->in[0]] : -1;
    if (p->mode != NN_TRAIN || !(s->op->flags & NN_APPLIES_NORM) || home < 0 || v->uses[s->in[0]] != 1)
        return;
    nn_step *norm = &p->step[home];
    const conv_shape shape = nn_conv_window(s->node, s->src[0], s->batch);
    norm->lazy = norm->op->flags & NN_IS_NORM && norm->residual < 0 && norm->act != ACT_SILU && conv_has_prologue(&shape);
    s->norm_in = norm->lazy ? norm : NULL;
    norm->applier = norm->lazy ? s : NULL;
}

/* A step of INFER that can run with the one before it, where nobody else reads what lies between. */
static void find_band(const nn_plan *p, const survey *v, nn_step *s)
{
    const int home = s->n_in ? p->home[s->in[0]] : -1;
    if (p->mode != NN_INFER || !(s->op->flags & NN_IN_BANDS) || home < 0 || v->uses[s->in[0]] != 1)
        return;
    conv_shape shape[CONV_BANDS_MAX];
    nn_step *before = &p->step[home];
    if (!(before->op->flags & NN_IN_BANDS) || before->residual >= 0)
        return;
    s->before = before;
    if (!conv_bands_win(shape, nn_band_shapes(s, shape))) {
        s->before = NULL;
        return;
    }
    before->absorbed = true;
    p->home[s->in[0]] = -1;
    s->in[0] = before->in[0];
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
                        .batch = p->batch, .norm = -1, .residual = -1, .reader = -1 };
        for (int k = 0; k < n->n_in; k++) {
            s->in[k] = p->alias[n->in[k]];
            s->src[k] = &g->node[s->in[k]];
        }
        if (!(options & NN_PLAN_NO_FUSION)) {
            fuse(p, v, s);
            find_giver(p, s);
            if (!(options & NN_PLAN_WHOLE_NORMS))
                find_half_norm(p, v, s);
            find_lazy_norm(p, v, s);
            if (!(options & NN_PLAN_NO_BANDS))
                find_band(p, v, s);
        }
        bind_params(p, s);
        p->home[s->out] = p->n_step++;
    }
}

/* ---- which gradients ------------------------------------------------------------------------- */

static bool has_trained_params(const nn_graph *g, const nn_node *n)
{
    for (int k = 0; k < n->n_w; k++)
        if (g->param[n->w[k]].role != NN_RUNNING)
            return true;
    return false;
}

/* Gradients are wanted between the losses and the first trained parameters. Marks steps active. */
static bool find_gradients(nn_plan *p, err *e)
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
        p->wanted[i] = carries[i] && (loss || p->wanted[i]);
        for (int k = 0; p->wanted[i] && k < (loss ? 1 : n->n_in); k++)
            p->wanted[n->in[k]] = true;
    }
    for (int i = 0; i < p->n_step; i++) {
        nn_step *s = &p->step[i];
        s->active = p->wanted[s->out];
        const int n_in = s->op->flags & NN_IS_LOSS ? 1 : s->n_in;
        for (int k = 0; s->active && k < n_in; k++)
            s->want[k] = p->wanted[s->in[k]];
    }
    mem_free(carries);
    return true;
}

/* ---- the plan -------------------------------------------------------------------------------- */

static bool allocate(nn_plan *p, err *e)
{
    const size_t n = (size_t)p->g->n_node, w = (size_t)p->g->n_param;
    /* buffers: at most a value and a gradient per node, a gradient per parameter, and memories */
    p->step = mem_new(n, sizeof *p->step, e);
    p->stage = mem_new(n + 1, sizeof *p->stage, e);
    p->whole = mem_new(n, sizeof *p->whole, e);
    p->alias = mem_new(n, sizeof *p->alias, e);
    p->home = mem_new(n, sizeof *p->home, e);
    p->wanted = mem_new(n, sizeof *p->wanted, e);
    p->value = mem_new(n, sizeof *p->value, e);
    p->grad = mem_new(n, sizeof *p->grad, e);
    p->param_grad = mem_new(w, sizeof *p->param_grad, e);
    p->memory = mem_new(n, sizeof *p->memory, e);
    p->buffer = mem_new(n * (2 + NN_MEMORIES) + w, sizeof *p->buffer, e);
    return p->step && p->stage && p->whole && p->alias && p->home && p->wanted && p->value && p->grad && p->param_grad &&
           p->memory && p->buffer;
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
    }
    survey_free(&v);
    if (!ok || !find_gradients(p, e) || !nn_plan_cut(p, options, e) || !nn_plan_lay_out(p, e)) {
        nn_plan_free(p);
        return NULL;
    }
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
        conv_plan_free(p->step[i].conv), conv_bands_free(p->step[i].bands);
    arena_free(&p->mem);
    mem_free(p->step);
    mem_free(p->stage);
    mem_free(p->whole);
    mem_free(p->alias);
    mem_free(p->home);
    mem_free(p->wanted);
    mem_free(p->value);
    mem_free(p->grad);
    mem_free(p->param_grad);
    mem_free(p->memory);
    mem_free(p->buffer);
    mem_free(p);
}
