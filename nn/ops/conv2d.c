/* Convolution, and what it shares with linear (one window over the whole map).
 *
 * TRAIN packs the weights at every run, because they change at every run; INFER folds the batch
 * norm and packs once, in refresh. */
#include <math.h>
#include <string.h>

#include "nn/op.h"

enum { PACKED, PACKED_BACK, SCRATCH, SCRATCH_BACK, BIAS, FOLDED, SUMS, BACK_SUMS };

conv_shape nn_conv_window(const nn_node *n, const nn_node *in, int batch)
{
    conv_shape s = nn_window(n, in, batch);
    s.o = n->attr.out;
    s.groups = n->attr.groups;
    if (!(nn_ops[n->op]->attrs & NN_HAS(k))) {
        s.kh = s.h;
        s.kw = s.w;
    }
    return s;
}

bool nn_conv_shapes(nn_node *n, const nn_node *const *in, nn_dims *param, err *e)
{
    const conv_shape s = nn_conv_window(n, in[0], 1);
    if (!conv_shape_check(&s, e))
        return false;
    n->dim[1] = conv_out_h(&s);
    n->dim[2] = conv_out_w(&s);
    n->dim[3] = s.o;
    param[0] = (nn_dims){ 4, { s.o, s.c / s.groups, s.kh, s.kw } };
    param[1] = (nn_dims){ 1, { s.o } };
    return true;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static int band_links(const nn_step *s)
{
    int n = 0;
    for (; s; s = s->before)
        n++;
    return n;
}

int nn_band_shapes(const nn_step *s, conv_shape *shape)
{
    const int n = band_links(s);
    int at = 0;
    for (const nn_step *t = s; t && n <= CONV_BANDS_MAX; t = t->before)
        shape[n - ++at] = nn_conv_window(t->node, t->src[0], s->batch);
    return n;
}

/* The last step of a band makes it, and brings the scratch. */
static bool prepare_bands(nn_step *s, err *e)
{
    conv_shape shape[CONV_BANDS_MAX];
    s->bands = conv_bands_new(shape, nn_band_shapes(s, shape), 0, e);
    if (!s->bands)
        return err_note(e, "%s", s->node->name);
    nn_ask(s, SCRATCH, NN_AT_FORWARD, conv_bands_scratch_floats(s->bands) * sizeof(float));
    return true;
}

/* INFER has its own copy of the weights, TRAIN packs what must be packed. */
static bool keeps_packed(const nn_step *s) { return s->mode == NN_INFER || conv_packs(s->conv); }

static const float *packed(nn_step *s, conv_pass pass)
{
    float *to = s->mem[pass == CONV_FORWARD ? PACKED : PACKED_BACK].p;
    if (!keeps_packed(s))
        return s->w[0]->x;
    if (s->mode != NN_INFER)
        conv_pack(s->conv, pass, s->w[0]->x, to);
    return to;
}

bool nn_conv_prepare(nn_step *s, err *e)
{
    const conv_shape shape = nn_conv_window(s->node, s->src[0], s->batch);
    unsigned passes = CONV_FORWARD;
    if (s->norm_in)
        passes |= CONV_PROLOGUE;
    if (s->reader >= 0)
        passes |= CONV_SUMS;
    if (s->active)
        passes |= CONV_WEIGHT_GRAD | (s->want[0] ? CONV_DATA_GRAD : 0) | (s->norm_out ? CONV_NORM_GRAD : 0);
    s->conv = conv_plan_new(&shape, passes, e);
    if (!s->conv)
        return err_note(e, "%s", s->node->name);
    const size_t f = sizeof(float), scratch = conv_scratch_floats(s->conv) * f;
    const bool banded = s->before || s->absorbed;        /* then the plan only packs */
    nn_ask(s, SCRATCH, NN_AT_FORWARD, banded ? 0 : scratch);
    nn_ask(s, PACKED, s->mode == NN_INFER ? NN_ALWAYS : NN_AT_FORWARD,
           keeps_packed(s) ? conv_packed_floats(s->conv, CONV_FORWARD) * f : 0);
    if (s->mode == NN_INFER) {
        nn_ask(s, BIAS, NN_ALWAYS, (size_t)shape.o * f);
        nn_ask(s, FOLDED, NN_AT_REFRESH, s->norm >= 0 ? (size_t)nn_param_count(s->w[0]) * f : 0);
    }
    if (s->reader >= 0)
        nn_ask(s, SUMS, NN_UNTIL_READER, (size_t)(conv_parts(s->conv) * ROW_PART(shape.o)) * sizeof(double));
    if (s->active) {
        if (passes & CONV_DATA_GRAD && keeps_packed(s))
            nn_ask(s, PACKED_BACK, NN_AT_BACKWARD, conv_packed_floats(s->conv, CONV_DATA_GRAD) * f);
        if (s->norm_in && s->want[0])
            nn_ask(s, BACK_SUMS, NN_BACK_TO_NORM, (size_t)(conv_grad_parts(s->conv) * 2 * shape.c) * sizeof(double));
        size_t sum = s->node->attr.bias ? bn_scratch_bytes(nn_rows(s, s->node), shape.o) : 0;
        nn_ask(s, SCRATCH_BACK, NN_AT_BACKWARD, larger(scratch, sum));
    }
    return !s->before || s->absorbed || prepare_bands(s, e);
}

/* W'[o] = g W[o],  b'[o] = g (b[o] - mean) + beta,  g = gamma / sqrt(var + eps): in double, rounded
 * once. A NaN or an infinity in the statistics reaches the weights. */
static const float *fold(nn_step *s)
{
    float *bias = s->mem[BIAS].p, *w = s->mem[FOLDED].p;
    const int O = s->node->attr.out;
    const int64_t per = nn_param_count(s->w[0]) / O;
    for (int o = 0; o < O; o++) {
        const double b = s->w[1] ? (double)s->w[1]->x[o] : 0;
        if (s->norm < 0) {
            bias[o] = (float)b;
            continue;
        }
        const double gamma = (double)s->norm_w[0]->x[o], beta = (double)s->norm_w[1]->x[o];
        const double mean = (double)s->norm_w[2]->x[o], var = (double)s->norm_w[3]->x[o];
        const double g = gamma / sqrt(var + (double)s->norm_eps);
        bias[o] = (float)(g * (b - mean) + beta);
        for (int64_t i = o * per; i < (o + 1) * per; i++)
            w[i] = (float)(g * (double)s->w[0]->x[i]);
    }
    return s->norm < 0 ? s->w[0]->x : w;
}

void nn_conv_refresh(nn_step *s)
{
    conv_pack(s->conv, CONV_FORWARD, fold(s), s->mem[PACKED].p);
}

/* NULL: x[0] as it is. */
static const conv_prologue *prologue_of(const nn_step *s, conv_prologue *own)
{
    if (!s->norm_in)
        return NULL;
    *own = nn_norm_prologue(s->norm_in);
    return own;
}

static const float *folded_bias(const nn_step *s) { return s->w[1] || s->norm >= 0 ? s->mem[BIAS].p : NULL; }

static void run_bands(nn_step *s, bool timed)
{
    conv_link link[CONV_BANDS_MAX];
    int64_t ns[CONV_BANDS_MAX] = { 0 };
    const int n = band_links(s);
    int k = 0;
    for (const nn_step *t = s; t; t = t->before)
        link[n - ++k] = (conv_link){ t->mem[PACKED].p, { .bias = folded_bias(t), .residual = t->res, .act = t->act } };
    conv_bands_forward(s->bands, s->x[0], link, s->y, s->mem[SCRATCH].p, timed ? ns : NULL);
    k = 0;
    for (nn_step *t = s; t; t = t->before)
        t->ns = ns[n - ++k];
}

void nn_conv_forward(nn_step *s, const nn_run *r)
{
    conv_prologue pro;
    conv_epilogue ep = { .residual = s->res, .act = s->act };
    if (s->bands) {
        run_bands(s, r->timed);
        return;
    }
    if (s->mode == NN_INFER)
        ep.bias = folded_bias(s);
    else {
        ep.bias = s->w[1] ? s->w[1]->x : NULL;
        ep.part = s->mem[SUMS].p;
        s->sums = (row_sums){ ep.part, ep.part ? conv_parts(s->conv) : 0 };
    }
    conv_forward(s->conv, s->x[0], prologue_of(s, &pro), packed(s, CONV_FORWARD), &ep, s->y, s->mem[SCRATCH].p);
}

void nn_conv_backward(nn_step *s, const nn_run *r)
{
    (void)r;
    conv_prologue pro;
    bn_grad norm;
    conv_grads g = { .x = s->x[0], .dy = s->dy, .pro = prologue_of(s, &pro),
                     .dx = s->dx[0], .dw = s->dw[0] };
    if (g.dx.p)
        g.packed = packed(s, CONV_DATA_GRAD);
    if (s->norm_out) {
        norm = nn_norm_grad(s->norm_out);
        g.norm = &norm;
    }
    if (s->mem[BACK_SUMS].p)
        g.sums = (grad_sums){ nn_norm_mean(s->norm_in), s->mem[BACK_SUMS].p };
    s->back_sums = (row_sums){ g.sums.part, g.sums.part ? conv_grad_parts(s->conv) : 0 };
    conv_backward(s->conv, &g, s->mem[SCRATCH_BACK].p);
    if (s->w[1])
        channel_sum(nn_rows(s, s->node), s->node->attr.out, s->dy, s->dw[1].accumulate, s->dw[1].p,
                    s->mem[SCRATCH_BACK].p);
}

const nn_op nn_op_conv2d = {
    .name = "conv2d", .onnx = "Conv",
    .flags = NN_NEEDS_IN | NN_FUSE_INFER | NN_FOLD_NORM | NN_GIVES_SUMS | NN_APPLIES_NORM | NN_JOINS_NORM | NN_IN_BANDS,
    .attrs = NN_HAS(out) | NN_HAS(k) | NN_HAS(stride) | NN_HAS(pad) | NN_HAS(dilation)
           | NN_HAS(groups) | NN_HAS(bias) | NN_HAS(fixed),
    .in_min = 1, .in_max = 1,
    .param = { { "weight", NN_WEIGHT, 0, false }, { "bias", NN_BIAS, 0, true } },
    .shape = nn_conv_shapes, .prepare = nn_conv_prepare, .refresh = nn_conv_refresh,
    .forward = nn_conv_forward, .backward = nn_conv_backward,
};
