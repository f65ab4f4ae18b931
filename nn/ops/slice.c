/* The shortcut without weights of He et al. 2016 (option A): every stride-th row and column, then
 * chan[0] zero channels before and chan[1] behind. */
#include <string.h>

#include "nn/op.h"

static bool slice_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param, (void)e;
    const nn_attr *a = &n->attr;
    n->dim[1] = (in[0]->dim[1] - 1) / a->stride[0] + 1;
    n->dim[2] = (in[0]->dim[2] - 1) / a->stride[1] + 1;
    n->dim[3] = in[0]->dim[3] + a->chan[0] + a->chan[1];
    return true;
}

typedef struct {
    const nn_attr *a;
    const int64_t *x, *y;
    const float *from;
    float *to;
    bool accumulate;
} job;

static void slice_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const job *j = ctx;
    const int64_t C = j->x[3], OC = j->y[3];
    const float *x =
        j->from + (i / j->y[1] * j->x[1] + i % j->y[1] * j->a->stride[0]) * j->x[2] * C;
    float *y = j->to + i * j->y[2] * OC;
    for (int64_t w = 0; w < j->y[2]; w++, y += OC, x += j->a->stride[1] * C) {
        memset(y, 0, (size_t)j->a->chan[0] * sizeof *y);
        memcpy(y + j->a->chan[0], x, (size_t)C * sizeof *y);
        memset(y + j->a->chan[0] + C, 0, (size_t)j->a->chan[1] * sizeof *y);
    }
}

static void slice_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    job j = { &s->node->attr, s->src[0]->dim, s->node->dim, s->x[0], s->y, false };
    par_for(s->batch * j.y[1], slice_row, &j);
}

/* Row i of dx. */
static void slice_back_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const job *j = ctx;
    const int64_t C = j->x[3], OC = j->y[3], h = i % j->x[1];
    float *dx = j->to + i * j->x[2] * C;
    if (!j->accumulate)
        memset(dx, 0, (size_t)(j->x[2] * C) * sizeof *dx);
    if (h % j->a->stride[0])
        return;
    const float *dy =
        j->from + (i / j->x[1] * j->y[1] + h / j->a->stride[0]) * j->y[2] * OC + j->a->chan[0];
    for (int64_t w = 0; w < j->y[2]; w++, dy += OC, dx += j->a->stride[1] * C)
        for (int64_t c = 0; c < C; c++)
            dx[c] += dy[c];
}

static void slice_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    job j = {
        &s->node->attr, s->src[0]->dim, s->node->dim, s->dy, s->dx[0].p, s->dx[0].accumulate
    };
    par_for(s->batch * j.x[1], slice_back_row, &j);
}

const nn_op nn_op_slice = {
    .name = "slice", .onnx = "Slice",
    .attrs = NN_HAS(stride) | NN_HAS(chan),
    .in_min = 1, .in_max = 1,
    .shape = slice_shape, .forward = slice_forward, .backward = slice_backward,
};
