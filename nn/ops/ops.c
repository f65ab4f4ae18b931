/* The table of ops, the table of their attributes, and what several ops share. */
#include <math.h>

#include "nn/op.h"

#define X(name) [NN_OP_##name] = &nn_op_##name,
const nn_op *const nn_ops[NN_OP_COUNT] = { NN_OPS(X) };
#undef X

#define X(name, count, type, ...) \
    [NN_AT_##name] = { #name, offsetof(nn_attr, name), count, NN_ATTR_##type, __VA_ARGS__ },
const nn_attr_row nn_attr_rows[NN_ATTR_COUNT] = { NN_ATTRS(X) };
#undef X

double nn_attr_get(const nn_attr *a, int row, int i)
{
    const nn_attr_row *r = &nn_attr_rows[row];
    const char *p = (const char *)a + r->offset;
    if (r->type == NN_ATTR_INT)
        return ((const int *)(const void *)p)[i];
    if (r->type == NN_ATTR_BOOL)
        return ((const bool *)(const void *)p)[i];
    return (double)((const float *)(const void *)p)[i];
}

void nn_attr_set(nn_attr *a, int row, int i, double v)
{
    const nn_attr_row *r = &nn_attr_rows[row];
    char *p = (char *)a + r->offset;
    if (r->type == NN_ATTR_INT)
        ((int *)(void *)p)[i] = (int)v;
    else if (r->type == NN_ATTR_BOOL)
        ((bool *)(void *)p)[i] = v != 0;
    else
        ((float *)(void *)p)[i] = (float)v;
}

nn_attr nn_attr_default(void)
{
    nn_attr a = { 0 };
    for (int r = 0; r < NN_ATTR_COUNT; r++)
        for (int i = 0; i < nn_attr_rows[r].count; i++)
            nn_attr_set(&a, r, i, nn_attr_rows[r].value);
    return a;
}

bool nn_same_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param, (void)e;
    for (int i = 0; i < 4; i++)
        n->dim[i] = in[0]->dim[i];
    return true;
}

conv_shape nn_window(const nn_node *n, const nn_node *in, int batch)
{
    const nn_attr *a = &n->attr;
    return (conv_shape){
        .n = batch, .h = (int)in->dim[1], .w = (int)in->dim[2], .c = (int)in->dim[3],
        .o = (int)in->dim[3], .kh = a->k[0], .kw = a->k[1], .sh = a->stride[0], .sw = a->stride[1],
        .pt = a->pad[0], .pb = a->pad[1], .pl = a->pad[2], .pr = a->pad[3],
        .dh = a->dilation[0], .dw = a->dilation[1], .groups = 1,
    };
}

bool nn_pool_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    const conv_shape s = nn_window(n, in[0], 1);
    if (!conv_shape_check(&s, e))
        return false;
    if (s.pt >= s.kh || s.pb >= s.kh || s.pl >= s.kw || s.pr >= s.kw)
        return err_set(e, ERR_CONFIG, "padding %d,%d,%d,%d fills whole windows of %dx%d", s.pt,
                       s.pb, s.pl, s.pr, s.kh, s.kw);
    n->dim[1] = conv_out_h(&s);
    n->dim[2] = conv_out_w(&s);
    n->dim[3] = s.c;
    return true;
}

void nn_act_forward(nn_step *s, const nn_run *r)
{
    (void)r;
    affine_forward(nn_rows(s, s->node), (int)s->node->dim[3], s->x[0], NULL, NULL, NULL, s->op->act,
                   s->y);
}

void nn_act_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    act_backward(nn_count(s, s->node), s->op->act, s->x[0], s->y, s->dy, s->dx[0].accumulate,
                 s->dx[0].p);
}

void nn_ask(nn_step *s, int slot, nn_when when, size_t bytes)
{
    s->mem[slot] = (nn_memory){ .when = when, .bytes = bytes };
}

/* ---- losses ---------------------------------------------------------------------------------- */

enum { ROW_LOSS };

bool nn_loss_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    (void)param;
    for (int k = 0; k < 2; k++)
        if (in[k]->dim[1] != 1 || in[k]->dim[2] != 1)
            return err_set(e, ERR_CONFIG, "%s is an image of %lldx%lld, not a row of classes",
                           in[k]->name, (long long)in[k]->dim[1], (long long)in[k]->dim[2]);
    if (in[0]->dim[3] != in[1]->dim[3])
        return err_set(e, ERR_CONFIG, "%s has %lld classes, %s %lld", in[0]->name,
                       (long long)in[0]->dim[3], in[1]->name, (long long)in[1]->dim[3]);
    n->dim[1] = n->dim[2] = n->dim[3] = 1;
    return true;
}

bool nn_loss_prepare(nn_step *s, err *e)
{
    (void)e;
    nn_ask(s, ROW_LOSS, NN_AT_FORWARD, (size_t)s->batch * sizeof(double));
    return true;
}

typedef struct { nn_step *s; nn_row_loss *loss; } loss_job;

static void loss_row(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const loss_job *j = ctx;
    double *row = j->s->mem[ROW_LOSS].p;
    row[i] = j->loss(j->s, i);
    j->s->y[i] = (float)row[i];
}

void nn_loss_forward(nn_step *s, nn_row_loss *loss)
{
    par_for(s->batch, loss_row, &(loss_job){ s, loss });
    const double *row = s->mem[ROW_LOSS].p;
    s->loss = 0;
    for (int i = 0; i < s->batch; i++)
        s->loss += row[i];
    s->loss /= s->batch;
}

nn_loss_row nn_loss_row_at(const nn_step *s, int64_t i)
{
    const int64_t n = s->src[0]->dim[3];
    return (nn_loss_row){ s->x[0] + i * n, s->x[1] + i * n, s->dx[0].p ? s->dx[0].p + i * n : NULL, n,
                          s->dx[0].accumulate };
}

void nn_loss_row_put(const nn_loss_row *r, int64_t c, double g)
{
    r->dz[c] = r->accumulate ? r->dz[c] + (float)g : (float)g;
}

double nn_log_sum_exp(const float *z, int64_t n, double T)
{
    double top = (double)z[0], sum = 0;
    for (int64_t c = 1; c < n; c++)
        top = (double)z[c] > top ? (double)z[c] : top;
    for (int64_t c = 0; c < n; c++)
        sum += exp(((double)z[c] - top) / T);
    return top / T + log(sum);
}
