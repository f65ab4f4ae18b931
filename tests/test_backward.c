/* The gradients of a convolution between two norms, made at once, are those made one after the other. */
#include <math.h>
#include <string.h>

#include "core/core.h"
#include "core/kern.h"
#include "tests/test.h"

/* A row of the table: a convolution, the norm in front of it (or none), the norm behind it (or none). */
typedef struct { conv_shape s; bool before, behind, accumulate; act_kind act; bool only_weights; } row;

static const row rows[] = {
    { { 2, 16, 32, 16, 96, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, true, true, false, ACT_RELU6, false },
    { { 2, 16, 32, 16, 96, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, false, true, true, ACT_RELU6, false },
    { { 4, 32, 16, 33, 20, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, true, true, false, ACT_NONE, false },
    { { 1, 64, 40, 5, 47, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, false, true, false, ACT_RELU, false },
    { { 3, 11, 13, 40, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, true, false, false, ACT_RELU6, false },     /* pixels of no whole unit */
    { { 2, 64, 64, 144, 144, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 144 }, true, true, false, ACT_RELU6, false },
    { { 7, 61, 59, 50, 50, 3, 3, 1, 1, 0, 2, 1, 1, 1, 1, 50 }, true, true, false, ACT_RELU, false },
    { { 9, 63, 65, 120, 120, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 120 }, true, true, false, ACT_RELU6, false },
    { { 9, 64, 64, 120, 120, 3, 3, 2, 2, 0, 1, 0, 1, 1, 1, 120 }, false, true, true, ACT_NONE, false },
    { { 5, 65, 64, 60, 60, 3, 2, 1, 1, 2, 2, 1, 0, 2, 1, 60 }, true, true, false, ACT_RELU6, false },
    { { 5, 70, 64, 60, 60, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 60 }, true, true, false, ACT_RELU6, false },
    { { 2, 16, 32, 16, 96, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, false, true, false, ACT_RELU6, true },
    { { 9, 63, 65, 120, 120, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 120 }, false, true, false, ACT_RELU6, true },
    { { 5, 60, 60, 240, 240, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 240 }, true, true, false, ACT_RELU, false },   /* pixels that no tap reads */
    { { 3, 96, 64, 120, 120, 3, 3, 1, 1, 0, 0, 8, 8, 8, 8, 120 }, true, true, false, ACT_RELU6, false },  /* rows beside a band that are more than its own */
    { { 1, 16, 16, 1, 13000, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, true, false, false, ACT_RELU6, false },    /* sums so long that they want scratch */
    { { 2, 9, 9, 24, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 24 }, true, false, false, ACT_RELU6, false },      /* small */
};
enum { ROWS = sizeof rows / sizeof *rows };

typedef struct {
    float *x, *y, *w, *dy, *gamma, *stats[2], *dx, *dw, *dgamma, *dbeta;
    double *part;
    int64_t parts;
    size_t nx, ny, nw;
} net;

static float *noise(rng *r, size_t n)
{
    float *x = mem_new(n, sizeof *x, NULL);
    for (size_t i = 0; i < n; i++) x[i] = 4 * (float)rng_uniform(r) - 2;
    return x;
}

static bn_stats stats_at(float *p, int c) { return (bn_stats){ p, p + c, p + 2 * c, p + 3 * c, p + 4 * c }; }

static net net_new(const row *t)
{
    const conv_shape *s = &t->s;
    rng r = rng_at(11, RNG_TEST, 0, 0);
    net n = { .nx = (size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)s->c,
              .ny = (size_t)s->n * (size_t)conv_out_h(s) * (size_t)conv_out_w(s) * (size_t)s->o,
              .nw = (size_t)s->o * (size_t)(s->c / s->groups) * (size_t)s->kh * (size_t)s->kw };
    n.x = noise(&r, n.nx), n.y = noise(&r, n.ny), n.dy = noise(&r, n.ny), n.w = noise(&r, n.nw);
    n.gamma = noise(&r, (size_t)(s->c + s->o));
    n.dx = noise(&r, n.nx), n.dw = noise(&r, n.nw);
    n.dgamma = noise(&r, (size_t)s->o), n.dbeta = noise(&r, (size_t)s->o);
    const int channels[2] = { s->c, s->o };
    for (int i = 0; i < 2; i++) {
        const float *x = i ? n.y : n.x;
        const int64_t count = (int64_t)(i ? n.ny : n.nx) / channels[i];
        void *scratch = mem_new(bn_scratch_bytes(count, channels[i]), 1, NULL);
        n.stats[i] = noise(&r, 5 * (size_t)channels[i]);
        const bn_stats st = stats_at(n.stats[i], channels[i]);
        bn_forward(count, channels[i], x, NULL, n.gamma + i * s->c, n.gamma, 1e-5f, NULL, t->act, &st, NULL, scratch);
        mem_free(scratch);
    }
    return n;
}

static void net_free(net *n)
{
    float *all[] = { n->x, n->y, n->w, n->dy, n->gamma, n->stats[0], n->stats[1], n->dx, n->dw, n->dgamma, n->dbeta };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    mem_free(n->part);
}

static conv_prologue before(const row *t, const net *n)
{
    const bn_stats st = stats_at(n->stats[0], t->s.c);
    return (conv_prologue){ st.scale, st.shift, t->act };
}

static unsigned passes_of(const row *t)
{
    return CONV_WEIGHT_GRAD | (t->only_weights ? 0 : CONV_DATA_GRAD) | (t->before ? CONV_PROLOGUE : 0);
}

static void *dirty(size_t bytes)
{
    void *p = mem_new(bytes + 1, 1, NULL);
    memset(p, 0xff, bytes);      /* NaN */
    return p;
}

static void at_once(const row *t, net *n)
{
    const conv_shape *s = &t->s;
    err e = { 0 };
    conv_plan *p = conv_plan_new(s, passes_of(t) | (t->behind ? CONV_NORM_GRAD : 0), &e);
    CHECK_OK(p, e);
    if (!p) return;
    float *packed = dirty(conv_packed_floats(p, CONV_DATA_GRAD) * sizeof *packed), *scratch = dirty(conv_scratch_floats(p) * sizeof *scratch);
    float *coef = dirty(bn_grad_floats(s->o) * sizeof *coef);
    void *sums = dirty(bn_scratch_bytes((int64_t)n->ny / s->o, s->o));
    const conv_prologue pro = before(t, n);
    const bn_stats st = stats_at(n->stats[1], s->o);
    const bn_grad norm = { s->o, t->act, n->y, coef };
    conv_grads g = { .x = n->x, .dy = n->dy, .pro = t->before ? &pro : NULL, .norm = t->behind ? &norm : NULL, .packed = packed,
                     .dx = { t->only_weights ? NULL : n->dx, t->accumulate }, .dw = { n->dw, t->accumulate } };
    if (!t->only_weights) conv_pack(p, CONV_DATA_GRAD, n->w, packed);
    n->parts = t->before && !t->accumulate ? conv_grad_parts(p) : 0;
    if (n->parts) g.sums = (grad_sums){ n->stats[0], n->part = dirty((size_t)(n->parts * 2 * s->c) * sizeof *n->part) };
    if (t->behind)
        bn_backward_sums((int64_t)n->ny / s->o, s->o, n->y, n->dy, NULL, n->gamma + s->c, &st, t->act, (grad_out){ n->dgamma, t->accumulate },
                         (grad_out){ n->dbeta, t->accumulate }, coef, sums);
    conv_backward(p, &g, scratch);
    mem_free(packed);
    mem_free(scratch);
    mem_free(coef);
    mem_free(sums);
    conv_plan_free(p);
}

static void one_after_the_other(const row *t, net *n)
{
    const conv_shape *s = &t->s;
    err e = { 0 };
    conv_plan *p = conv_plan_new(s, passes_of(t), &e);
    CHECK_OK(p, e);
    if (!p) return;
    float *packed = dirty(conv_packed_floats(p, CONV_DATA_GRAD) * sizeof *packed), *scratch = dirty(conv_scratch_floats(p) * sizeof *scratch);
    void *sums = dirty(bn_scratch_bytes((int64_t)n->ny / s->o, s->o));
    const conv_prologue pro = before(t, n);
    const bn_stats st = stats_at(n->stats[1], s->o);
    if (!t->only_weights) conv_pack(p, CONV_DATA_GRAD, n->w, packed);
    if (t->behind)
        bn_backward((int64_t)n->ny / s->o, s->o, n->y, NULL, n->dy, NULL, n->gamma + s->c, &st, t->act, (grad_out){ n->dy, false },
                    (grad_out){ NULL, false }, (grad_out){ n->dgamma, t->accumulate }, (grad_out){ n->dbeta, t->accumulate }, sums);
    conv_weight_grad(p, n->x, t->before ? &pro : NULL, n->dy, t->accumulate, n->dw, scratch);
    if (!t->only_weights) conv_data_grad(p, n->dy, packed, t->accumulate, n->dx, scratch);
    mem_free(packed);
    mem_free(scratch);
    mem_free(sums);
    conv_plan_free(p);
}

/* The sums' parts lead the norm in front to what it finds itself. */
static void check_sums(const row *t, const net *n)
{
    const int c = t->s.c;
    const int64_t count = (int64_t)n->nx / c;
    const bn_stats st = stats_at(n->stats[0], c);
    void *scratch = dirty(bn_scratch_bytes(count, c));
    float *coef = dirty(bn_grad_floats(c) * sizeof *coef), *found = dirty(4 * (size_t)c * sizeof *found);
    const row_sums known = { n->part, n->parts };
    for (int i = 0; i < 2; i++)
        bn_backward_sums(count, c, n->x, n->dx, i ? &known : NULL, n->gamma, &st, t->act, (grad_out){ found + 2 * i * c, false },
                         (grad_out){ found + (2 * i + 1) * c, false }, coef, scratch);
    double scale = 0;
    for (int i = 0; i < 2 * c; i++) scale = fmax(scale, fabs((double)found[i]));
    for (int i = 0; i < 2 * c; i++) CHECK(fabs((double)found[i] - (double)found[2 * c + i]) <= 1e-6 * scale);
    mem_free(scratch);
    mem_free(coef);
    mem_free(found);
}

static bool start(const char *isa, int threads)
{
    err e = { 0 };
    core_stop();
    return core_init(&(core_options){ .threads = threads, .isa = isa, .exact = true }, &e);
}

/* Where little is to be tested every instruction set gets a third of the rows, each another. */
static void hold(const char *isa, int third)
{
    if (!start(isa, 2)) SKIP("not here");
    const int step = test_few() ? 3 : 1;
    int summed = 0;
    for (const row *t = rows + third % step; t < rows + ROWS; t += step) {
        net a = net_new(t), b = net_new(t);
        const int bad = test_bad;
        CHECK(conv_joins_norm(&t->s) == t->behind);
        at_once(t, &a);
        one_after_the_other(t, &b);
        CHECK(!memcmp(a.dx, b.dx, a.nx * sizeof *a.dx));
        CHECK(!memcmp(a.dw, b.dw, a.nw * sizeof *a.dw));
        CHECK(!memcmp(a.dgamma, b.dgamma, (size_t)t->s.o * sizeof *a.dgamma));
        CHECK(!memcmp(a.dbeta, b.dbeta, (size_t)t->s.o * sizeof *a.dbeta));
        if (a.parts) check_sums(t, &a);
        summed += a.parts > 0;
        if (test_bad > bad) printf("  row %d\n", (int)(t - rows));
        net_free(&a);
        net_free(&b);
    }
    CHECK(summed >= 6 / step);
}

static void at_once_is_one_after_the_other_on_scalar(void) { hold("scalar", 0); }
static void at_once_is_one_after_the_other_on_avx2(void) { hold("avx2", 1); }
static void at_once_is_one_after_the_other_on_avx512(void) { hold("avx512", 2); }

static void threads_do_not_change_a_bit(void)
{
    for (const row *t = rows; t < rows + ROWS; t++) {
        net n[2];
        for (int i = 0; i < 2; i++) {
            if (!start(NULL, i ? 3 : 1)) { CHECK(false); return; }
            n[i] = net_new(t);
            at_once(t, &n[i]);
        }
        CHECK(!memcmp(n[0].dx, n[1].dx, n[0].nx * sizeof *n[0].dx));
        CHECK(!memcmp(n[0].dw, n[1].dw, n[0].nw * sizeof *n[0].dw));
        CHECK(n[0].parts == n[1].parts);
        CHECK(!n[0].parts || !memcmp(n[0].part, n[1].part, (size_t)(n[0].parts * 2 * t->s.c) * sizeof *n[0].part));
        net_free(&n[0]);
        net_free(&n[1]);
    }
}

int main(void)
{
    RUN(at_once_is_one_after_the_other_on_scalar);
    RUN(at_once_is_one_after_the_other_on_avx2);
    RUN(at_once_is_one_after_the_other_on_avx512);
    RUN(threads_do_not_change_a_bit);
    core_stop();
    END();
}
