/* The table of ops, and the table of their attributes. */
#include "nn/op.h"

#define X(name) [NN_OP_##name] = &nn_op_##name,
const nn_op *const nn_ops[NN_OP_COUNT] = { NN_OPS(X) };
#undef X

#define X(name, count, type, value, least, greatest) \
    [NN_AT_##name] = { #name, offsetof(nn_attr, name), count, NN_ATTR_##type, value, least, greatest },
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

void nn_same_shape(nn_node *n, const nn_node *in)
{
    for (int i = 0; i < 4; i++)
        n->dim[i] = in->dim[i];
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

void nn_ask(nn_step *s, int slot, nn_when when, size_t bytes)
{
    s->mem[slot] = (nn_memory){ .when = when, .bytes = bytes };
}
