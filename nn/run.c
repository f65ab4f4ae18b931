/* Running a plan: loops over its steps, and what callers may ask of it. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nn/op.h"

/* ---- poison ---------------------------------------------------------------------------------- */

void nn_plan_poison(nn_plan *p, bool on) { p->poison = on; }

static void spoil(const nn_plan *p, const nn_buffer *b)
{
    float *x = (float *)(void *)(p->mem.base + b->offset);
    for (size_t i = 0; i < b->bytes / sizeof *x; i++)
        x[i] = (float)NAN;
}

/* Before and after time t: what begins holds nothing yet, what ended holds nothing any more. Whole
 * batches begin with a stage's first group and end with its last: edge. */
static void poison(const nn_plan *p, int t, bool after, bool edge)
{
    for (int i = 0; p->poison && i < p->n_buffer; i++) {
        const nn_buffer *b = &p->buffer[i];
        if (b->same < 0 && (after ? b->last : b->first) == t && (edge || !b->whole))
            spoil(p, b);
    }
}

/* ---- run ------------------------------------------------------------------------------------- */

void nn_plan_watch(nn_plan *p, int64_t *ns)
{
    p->spent = ns;
    p->run.timed = ns != NULL;
}

/* The nanoseconds of steps that ran in bands, by what each of them took. */
static void share_out(const nn_plan *p, const nn_step *s, int64_t ns)
{
    int64_t all = 0, given = 0;
    for (const nn_step *t = s; t; t = t->before)
        all += t->ns;
    for (const nn_step *t = s->before; t && all; t = t->before) {
        const int64_t share = (int64_t)((double)ns * (double)t->ns / (double)all);
        p->spent[t - p->step] += share;
        given += share;
    }
    p->spent[s - p->step] += ns - given;
}

static void run_step(nn_plan *p, nn_step *s, int time, void (*way)(nn_step *, const nn_run *))
{
    const int64_t start = p->spent ? clock_ns() : 0;
    way(s, &p->run);
    if (!p->spent)
        return;
    const int64_t ns = clock_ns() - start;
    if (s->bands)
        share_out(p, s, ns);
    else
        p->spent[time] += ns;
}

/* Where the images from `image` on stand in a node's value. */
static float *value_at(const nn_plan *p, int node, int64_t image)
{
    const int64_t *d = p->g->node[node].dim;
    float *x = nn_plan_at(p, p->value[node]);
    return p->whole[node] ? x + image * d[1] * d[2] * d[3] : x;
}

static void aim(const nn_plan *p, nn_step *s, int64_t image)
{
    for (int k = 0; k < s->n_in; k++)
        s->x[k] = value_at(p, s->in[k], image);
    s->res = s->residual >= 0 ? value_at(p, s->residual, image) : NULL;
    s->y = value_at(p, s->out, image);
}

/* All steps of a stage for the images from `image` on. */
static void forward_group(nn_plan *p, const nn_stage *g, int64_t image)
{
    const bool first = image == 0, last = image + g->group == p->batch;
    for (int i = g->first; i < g->end; i++) {
        nn_step *s = &p->step[i];
        if (g->group < p->batch && !s->absorbed)
            aim(p, s, image);
        poison(p, i, false, first);
        if (!s->absorbed)
            run_step(p, s, i, s->op->forward);
        poison(p, i, true, last);
    }
}

void nn_plan_forward(nn_plan *p)
{
    for (int k = 0; k < p->n_stage; k++) {
        const nn_stage *g = &p->stage[k];
        const int64_t last = p->batch - g->group;
        for (int64_t image = 0; image < last; image += g->group)
            forward_group(p, g, image);
        forward_group(p, g, last);
    }
}

void nn_plan_backward(nn_plan *p)
{
    for (int i = p->n_step - 1; i >= 0; i--) {
        nn_step *s = &p->step[i];
        const int t = 2 * p->n_step - 1 - i;
        poison(p, t, false, true);
        if (s->active)
            run_step(p, s, t, s->op->backward);
        poison(p, t, true, true);
    }
}

void nn_plan_refresh(nn_plan *p)
{
    if (p->mode != NN_INFER)
        return;
    for (int i = 0; i < p->n_step; i++)
        if (p->step[i].op->refresh)
            p->step[i].op->refresh(&p->step[i]);
}

/* ---- ask ------------------------------------------------------------------------------------- */

int nn_plan_batch(const nn_plan *p) { return p->batch; }

static int input_node(const nn_plan *p, int which)
{
    for (int i = 0; i < p->g->n_node; i++)
        if (nn_ops[p->g->node[i].op]->flags & NN_NO_STEP && which-- == 0)
            return i;
    return -1;
}

float *nn_plan_input(nn_plan *p, int which)
{
    const int i = input_node(p, which);
    return i < 0 ? NULL : nn_plan_at(p, p->value[i]);
}

float *nn_plan_input_grad(nn_plan *p, int which)
{
    const int i = input_node(p, which);
    return i < 0 ? NULL : nn_plan_at(p, p->grad[i]);
}

const float *nn_plan_output(const nn_plan *p)
{
    return nn_plan_at(p, p->value[p->alias[p->g->output]]);
}

/* A value is kept if it was written down at all and outlives the last forward step: then nobody has written over it. */
const float *nn_plan_value(const nn_plan *p, int node)
{
    if (node < 0 || node >= p->g->n_node)
        return NULL;
    const int i = p->alias[node], b = p->home[i] >= 0 && p->step[p->home[i]].lazy ? -1 : p->value[i];
    return b >= 0 && p->buffer[b].last >= p->n_step ? nn_plan_at(p, b) : NULL;
}

double nn_plan_loss(const nn_plan *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_step; i++)
        if (p->step[i].op->flags & NN_IS_LOSS)
            sum += (double)p->step[i].node->attr.weight * p->step[i].loss;
    return sum;
}

float *nn_plan_grad(nn_plan *p, int param)
{
    return param < 0 || param >= p->g->n_param ? NULL : nn_plan_at(p, p->param_grad[param]);
}

void nn_plan_random(nn_plan *p, uint64_t seed, int64_t epoch, int64_t step)
{
    p->run.seed = seed;
    p->run.epoch = epoch;
    p->run.step = step;
}

void nn_plan_momentum(nn_plan *p, double momentum) { p->run.momentum = momentum; }

nn_plan_info nn_plan_describe(const nn_plan *p)
{
    return (nn_plan_info){ .arena_bytes = p->mem.cap, .live_bytes = p->live_bytes,
                           .weight_bytes = p->weight_bytes, .scratch_bytes = p->scratch_bytes,
                           .steps = p->n_step };
}

static void print_place(const nn_plan *p, buf *out, const char *what, int buffer)
{
    if (buffer >= 0)
        buf_printf(out, "  %s@%zu", what, (size_t)((char *)nn_plan_at(p, buffer) - p->mem.base));
}

void nn_plan_print(const nn_plan *p, buf *out)
{
    static const char *const acts[ACT_COUNT] = { "", "+relu", "+relu6", "+silu" };
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        const int64_t *d = s->node->dim;
        buf_printf(out, "%3d %-24s %s%s%s%s  %dx%lldx%lldx%lld", i, s->node->name, s->op->name,
                   s->norm >= 0 ? "+batchnorm" : "", s->residual >= 0 ? "+add" : "", acts[s->act],
                   s->batch, (long long)d[1], (long long)d[2], (long long)d[3]);
        if (s->conv)
            buf_printf(out, "  %s%s", conv_plan_road(s->conv), s->absorbed || s->before ? " in bands" : "");
        for (int k = 0; k < s->n_in; k++)
            print_place(p, out, "x", p->value[s->in[k]]);
        print_place(p, out, "res", s->residual >= 0 ? p->value[s->residual] : -1);
        print_place(p, out, "y", p->value[s->out]);
        print_place(p, out, "dy", s->active ? p->grad[s->out] : -1);
        buf_puts(out, "\n");
    }
}
