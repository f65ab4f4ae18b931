/* Zeros around the image, per side; a negative side cuts away. */
#include <string.h>

#include "nn/op.h"

static bool pad_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    const int *p = n->attr.pad;
    n->dim[1] = in[0]->dim[1] + p[0] + p[1];
    n->dim[2] = in[0]->dim[2] + p[2] + p[3];
    n->dim[3] = in[0]->dim[3];
    /* What two cuts leave must be inside the image: no side may take more than there is. */
    for (int i = 0; i < 4; i++)
        if (-p[i] >= in[0]->dim[1 + i / 2])
            return err_set(e, ERR_CONFIG, "cutting %d off an image of %lldx%lld", -p[i],
                           (long long)in[0]->dim[1], (long long)in[0]->dim[2]);
    if (n->dim[1] < 1 || n->dim[2] < 1)
        return err_set(e, ERR_CONFIG, "padding %d,%d,%d,%d leaves nothing of %lldx%lld", p[0], p[1],
                       p[2], p[3], (long long)in[0]->dim[1], (long long)in[0]->dim[2]);
    return true;
}

typedef struct {
    int64_t h, w, c, oh, ow;
    int top, left;
    const float *from;
    float *to;
    bool accumulate;
} job;

/* The overlap of one output row with its input row: columns and where they start in both. */
static int64_t overlap(const job *j, int64_t *x_at, int64_t *y_at)
{
    *y_at = j->left > 0 ? j->left : 0;
    *x_at = *y_at - j->left;
    const int64_t left = j->w - *x_at, room = j->ow - *y_at;
    const int64_t n = left < room ? left : room;
    return n < 0 ? 0 : n;
}

static void pad_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const job *j = ctx;
    const int64_t h = i % j->oh - j->top;
    float *to = j->to + i * j->ow * j->c;
    int64_t x_at, y_at, n = overlap(j, &x_at, &y_at);
    if (h < 0 || h >= j->h)
        n = 0;
    if (n > 0) {
        memset(to, 0, (size_t)(y_at * j->c) * sizeof *to);
        memcpy(to + y_at * j->c, j->from + ((i / j->oh * j->h + h) * j->w + x_at) * j->c,
               (size_t)(n * j->c) * sizeof *to);
        y_at += n;
    } else
        y_at = 0;
    memset(to + y_at * j->c, 0, (size_t)((j->ow - y_at) * j->c) * sizeof *to);
}

static void pad_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    const int64_t *x = s->src[0]->dim, *y = s->node->dim;
    job j = { x[1], x[2], x[3], y[1], y[2], s->node->attr.pad[0], s->node->attr.pad[2],
              s->x[0], s->y, false };
    par_for(s->batch * y[1], pad_row, &j);
}

/* Row i of dx: what lay inside comes back, what was cut away gets nothing. */
static void pad_back_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const job *j = ctx;
    const int64_t oh = i % j->h + j->top, n_row = j->w * j->c;
    float *dx = j->to + i * n_row;
    int64_t x_at, y_at, n = overlap(j, &x_at, &y_at);
    if (oh < 0 || oh >= j->oh)
        n = 0;
    const float *dy = j->from + ((i / j->h * j->oh + oh) * j->ow + y_at) * j->c;
    if (!j->accumulate)
        memset(dx, 0, (size_t)n_row * sizeof *dx);
    for (int64_t k = 0; k < n * j->c; k++)
        dx[x_at * j->c + k] += dy[k];
}

static void pad_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    const int64_t *x = s->src[0]->dim, *y = s->node->dim;
    job j = { x[1], x[2], x[3], y[1], y[2], s->node->attr.pad[0], s->node->attr.pad[2],
              s->dy, s->dx[0].p, s->dx[0].accumulate };
    par_for(s->batch * x[1], pad_back_row, &j);
}

const nn_op nn_op_pad = {
    .name = "pad", .onnx = "Pad",
    .attrs = NN_HAS(pad),
    .in_min = 1, .in_max = 1,
    .shape = pad_shape, .forward = pad_forward, .backward = pad_backward,
};
