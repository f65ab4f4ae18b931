/* Convolutions in bands give the bits of one after the other. */
#include <string.h>

#include "core/core.h"
#include "core/kern.h"
#include "tests/test.h"

enum { LINKS = 5 };

typedef struct {
    int n;
    conv_shape s[LINKS];
    float *w[LINKS], *packed[LINKS], *bias[LINKS], *value[LINKS + 1], *residual, *scratch;
    act_kind act[LINKS];
} chain;

static float *noise(rng *r, size_t n)
{
    float *x = mem_new(n + 1, sizeof *x, NULL);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(r);
    return x;
}

static size_t out_floats(const conv_shape *s) { return (size_t)s->n * (size_t)conv_out_h(s) * (size_t)conv_out_w(s) * (size_t)s->o; }

/* Dense 1×1 and strided kernels and depthwise ones, of random size, stride, padding and dilation. */
static void chain_new(chain *k, rng *r)
{
    *k = (chain){ .n = 2 + (int)rng_below(r, LINKS - 1) };
    int n = 1 + (int)rng_below(r, 3), h = 7 + (int)rng_below(r, 20), w = 5 + (int)rng_below(r, 20), c = 1 + (int)rng_below(r, 40);
    for (int i = 0; i < k->n; i++) {
        conv_shape *s = &k->s[i];
        const bool depthwise = rng_below(r, 2) && c > 1, strided = !depthwise && rng_below(r, 2);
        *s = (conv_shape){ .n = n, .h = h, .w = w, .c = c, .o = depthwise ? c : 2 + (int)rng_below(r, 40), .kh = 1, .kw = 1,
                           .sh = 1, .sw = 1, .dh = 1, .dw = 1, .groups = depthwise ? c : 1 };
        if (depthwise || strided) {
            s->kh = 1 + (int)rng_below(r, 7), s->kw = 1 + (int)rng_below(r, 5);
            s->sh = strided + 1 + (int)rng_below(r, 3 - strided), s->sw = 1 + (int)rng_below(r, 2);
            s->dw = 1 + (int)rng_below(r, 2);
            s->pt = (int)rng_below(r, (uint32_t)s->kh), s->pb = (int)rng_below(r, (uint32_t)s->kh), s->pl = s->pr = s->kw / 2;
            if (!conv_shape_check(s, NULL)) s->kh = s->kw = s->sh = s->sw = 1, s->pt = s->pb = s->pl = s->pr = 0;
        }
        h = conv_out_h(s), w = conv_out_w(s), c = s->o;
        k->act[i] = (act_kind)rng_below(r, ACT_COUNT);
    }
    size_t scratch = 0;
    k->value[0] = noise(r, (size_t)n * (size_t)k->s[0].h * (size_t)k->s[0].w * (size_t)k->s[0].c);
    for (int i = 0; i < k->n; i++) {
        const conv_shape *s = &k->s[i];
        conv_plan *p = conv_plan_new(s, CONV_FORWARD, NULL);
        k->w[i] = noise(r, (size_t)(s->o * (s->c / s->groups) * s->kh * s->kw));
        k->bias[i] = noise(r, (size_t)s->o);
        k->packed[i] = noise(r, conv_packed_floats(p, CONV_FORWARD));
        k->value[i + 1] = noise(r, out_floats(s));
        conv_pack(p, CONV_FORWARD, k->w[i], k->packed[i]);
        if (conv_scratch_floats(p) > scratch) scratch = conv_scratch_floats(p);
        conv_plan_free(p);
    }
    k->residual = noise(r, out_floats(&k->s[k->n - 1]));
    k->scratch = noise(r, scratch);
}

static void chain_free(chain *k)
{
    for (int i = 0; i <= LINKS; i++) {
        mem_free(k->value[i]);
        if (i == LINKS) break;
        mem_free(k->w[i]);
        mem_free(k->packed[i]);
        mem_free(k->bias[i]);
    }
    mem_free(k->residual);
    mem_free(k->scratch);
}

static conv_link link_at(const chain *k, int i, bool residual)
{
    return (conv_link){ k->packed[i], { .bias = k->bias[i], .residual = residual && i == k->n - 1 ? k->residual : NULL, .act = k->act[i] } };
}

static void one_after_the_other(chain *k, bool residual)
{
    for (int i = 0; i < k->n; i++) {
        conv_plan *p = conv_plan_new(&k->s[i], CONV_FORWARD, NULL);
        const conv_link l = link_at(k, i, residual);
        conv_forward(p, k->value[i], NULL, l.packed, &l.ep, k->value[i + 1], k->scratch);
        conv_plan_free(p);
    }
}

static void bits_are_the_same(int threads)
{
    err e = { 0 };
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = threads, .isa = test_isa() }, &e), e);
    rng r = rng_at(7, RNG_TEST, 0, 0);
    for (int trial = 0; trial < 60; trial++) {
        chain k;
        conv_link link[LINKS];
        const bool residual = trial % 2;
        chain_new(&k, &r);
        one_after_the_other(&k, residual);
        for (int i = 0; i < k.n; i++) link[i] = link_at(&k, i, residual);
        const size_t bytes = out_floats(&k.s[k.n - 1]) * sizeof(float);
        for (int rows = 1; rows <= 9; rows += 1 + rows / 3) {
            conv_bands *b = conv_bands_new(k.s, k.n, rows, &e);
            CHECK_OK(b, e);
            if (!b) continue;
            float *scratch = mem_new(conv_bands_scratch_floats(b) + 1, sizeof *scratch, NULL), *y = mem_new(bytes, 1, NULL);
            int64_t ns[LINKS] = { 0 }, sum = 0;
            memset(scratch, 0xff, conv_bands_scratch_floats(b) * sizeof *scratch);      /* NaN */
            memset(y, 0xff, bytes);
            if (residual && rows % 2) {                  /* in y's own memory */
                memcpy(y, k.residual, bytes);
                link[k.n - 1].ep.residual = y;
            } else if (residual) link[k.n - 1].ep.residual = k.residual;
            conv_bands_forward(b, k.value[0], link, y, scratch, trial % 3 ? NULL : ns);
            CHECK(!memcmp(y, k.value[k.n], bytes));
            for (int i = 0; i < k.n; i++) sum += ns[i];
            CHECK((sum > 0) == (trial % 3 == 0));
            conv_bands_free(b);
            mem_free(scratch);
            mem_free(y);
        }
        chain_free(&k);
    }
}

static void bands_are_one_after_the_other_on_one_thread(void) { bits_are_the_same(1); }
static void bands_are_one_after_the_other_on_three_threads(void) { bits_are_the_same(3); }

static void only_large_maps_between_kernels_that_fit_win(void)
{
    conv_shape s[2] = { { 1, 512, 512, 4, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, { 1, 512, 512, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16 } };
    CHECK(conv_bands_win(s, 2));
    CHECK(!conv_bands_win(s, 1));
    s[0].h = s[0].w = s[1].h = s[1].w = 4;               /* small maps stay in the cache anyway */
    CHECK(!conv_bands_win(s, 2));
    s[0].h = s[0].w = s[1].h = s[1].w = 512;
    s[1].groups = 1;                                     /* a dense 3×3 kernel is Winograd's, unless it has a stride */
    CHECK(!conv_bands_win(s, 2));
    s[1].sh = 2;
    CHECK(conv_bands_win(s, 2));
}

static void bands_end_at_a_waist(void)
{
    conv_shape s[3] = { { 1, 512, 512, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16 }, { 1, 512, 512, 16, 8, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },
                        { 1, 512, 512, 8, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 } };
    CHECK(conv_bands_win(s, 2));
    CHECK(!conv_bands_win(s, 3));
    s[2].o = 8;
    CHECK(conv_bands_win(s, 3));
}

static void bands_do_not_win_where_threads_or_weights_lose(void)
{
    const int64_t floats = (int64_t)core_l2_bytes() / 4;
    err e = { 0 };
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = 2, .isa = test_isa() }, &e), e);
    conv_shape s[CONV_BANDS_MAX + 1];
    for (int i = 0; i <= CONV_BANDS_MAX; i++)
        s[i] = (conv_shape){ 1, 64, (int)(floats / 64 / 16), 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16 };
    CHECK(conv_bands_win(s, 2));
    CHECK(!conv_bands_win(s, CONV_BANDS_MAX + 1));
    s[0].h = s[1].h = 3, s[0].w = s[1].w = (int)(floats / 3 / 16 / 2);
    CHECK(!conv_bands_win(s, 2));                        /* three rows are one piece: the second thread would wait */
    for (int i = 0; i < 2; i++)
        s[i] = (conv_shape){ 15, 8, (int)(floats / 8 / 16 / 16), 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16 };
    CHECK(!conv_bands_win(s, 2));                        /* a sixteenth of the cache, */
    s[0].n = s[1].n = 16;
    CHECK(conv_bands_win(s, 2));                         /* and many images for each thread */
    for (int i = 0; i < 2; i++)
        s[i] = (conv_shape){ 4, 20, 20, 16, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 };
    s[0].o = s[1].c = (int)(floats / 20 / 20 / 3);
    CHECK(conv_bands_win(s, 2));
    s[0].c = s[1].o = (int)(floats / 2 / s[1].c + 1);    /* weights that leave no room */
    CHECK(!conv_bands_win(s, 2));
}

static void pieces_do_not_make_many_rows_twice(void)
{
    const int64_t floats = (int64_t)core_l2_bytes() / 4;
    const conv_shape s[2] = { { 1, 14, (int)(floats / 14 / 16 / 2), 16, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },
                              { 1, 14, (int)(floats / 14 / 16 / 2), 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16 } };
    for (int threads = 1; threads <= 8; threads += 7) {
        err e = { 0 };
        core_stop();
        CHECK_OK(core_init(&(core_options){ .threads = threads, .isa = test_isa() }, &e), e);
        CHECK(conv_bands_win(s, 2) == (threads == 1));
    }
}

static void running_out_of_memory_is_said_and_leaks_nothing(void)
{
    const conv_shape s[2] = { { 1, 12, 12, 4, 8, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, { 1, 12, 12, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 8 } };
    bool ok = false;
    for (int k = 1; !ok && k < 500; k++) {
        err e = { 0 };
        mem_fail_at(k);
        conv_bands *b = conv_bands_new(s, 2, 3, &e);
        mem_fail_at(0);
        ok = b != NULL;
        CHECK(ok || e.code == ERR_NOMEM);
        conv_bands_free(b);
    }
    CHECK(ok);
}

int main(void)
{
    START(1);
    RUN(bands_are_one_after_the_other_on_one_thread);
    RUN(bands_are_one_after_the_other_on_three_threads);
    RUN(only_large_maps_between_kernels_that_fit_win);
    RUN(bands_end_at_a_waist);
    RUN(bands_do_not_win_where_threads_or_weights_lose);
    RUN(pieces_do_not_make_many_rows_twice);
    RUN(running_out_of_memory_is_said_and_leaks_nothing);
    core_stop();
    END();
}
