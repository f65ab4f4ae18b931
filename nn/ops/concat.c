/* Channels of all inputs side by side. */
#include <string.h>

#include "nn/op.h"

static bool concat_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    nn_same_shape(n, in, param, e);
    for (int k = 1; k < n->n_in; k++) {
        if (in[k]->dim[1] != n->dim[1] || in[k]->dim[2] != n->dim[2])
            return err_set(e, ERR_CONFIG, "%s is %lldx%lld, %s is %lldx%lld", in[0]->name,
                           (long long)n->dim[1], (long long)n->dim[2], in[k]->name,
                           (long long)in[k]->dim[1], (long long)in[k]->dim[2]);
        n->dim[3] += in[k]->dim[3];
    }
    return true;
}

enum { ROWS = 256 };             /* rows of one piece of work */

static void concat_rows(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const nn_step *s = ctx;
    const int64_t rows = nn_rows(s, s->node), end = (i + 1) * ROWS < rows ? (i + 1) * ROWS : rows;
    for (int64_t r = i * ROWS; r < end; r++) {
        float *y = s->y + r * s->node->dim[3];
        for (int k = 0; k < s->n_in; k++) {
            const int64_t c = s->src[k]->dim[3];
            memcpy(y, s->x[k] + r * c, (size_t)c * sizeof *y);
            y += c;
        }
    }
}

static void concat_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for((nn_rows(s, s->node) + ROWS - 1) / ROWS, concat_rows, s);
}

static void concat_back_rows(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const nn_step *s = ctx;
    const int64_t rows = nn_rows(s, s->node), end = (i + 1) * ROWS < rows ? (i + 1) * ROWS : rows;
    for (int64_t r = i * ROWS; r < end; r++) {
        const float *dy = s->dy + r * s->node->dim[3];
        for (int k = 0; k < s->n_in; k++) {
            const int64_t n = s->src[k]->dim[3];
            float *dx = s->dx[k].p ? s->dx[k].p + r * n : NULL;
            for (int64_t c = 0; dx && c < n; c++)
                dx[c] = s->dx[k].accumulate ? dx[c] + dy[c] : dy[c];
            dy += n;
        }
    }
}

static void concat_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    par_for((nn_rows(s, s->node) + ROWS - 1) / ROWS, concat_back_rows, s);
}

const nn_op nn_op_concat = {
    .name = "concat", .onnx = "Concat",
    .in_min = 1, .in_max = 4,
    .shape = concat_shape, .forward = concat_forward, .backward = concat_backward,
};
