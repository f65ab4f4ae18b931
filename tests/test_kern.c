/* Norms, activations, pooling, optimisers and sums against loops written only here, on every
 * instruction set, and 1 thread against 2 and 7. */
#include "core/kern.h"
#include "tests/test.h"

#include <stdlib.h>

static const char *const isas[] = { "scalar", "avx2", "avx512" };

static bool start(const char *isa, int threads)
{
    core_stop();
    err e = { 0 };
    return core_init(&(core_options){ .threads = threads, .isa = isa }, &e);
}

/* Runs a test body on every instruction set the machine has. */
static void on_every_isa(void (*body)(void))
{
    for (int i = 0; i < 3; i++) {
        int before = test_bad;
        if (!start(isas[i], 2)) continue;
        body();
        if (test_bad > before) fprintf(stderr, "  on %s\n", isas[i]);
    }
}

/* ---- numbers between fences --------------------------------------------------------------------- */

enum { FENCE = 64 };
static const float fence_mark = 12345.678f;

static float *fenced_new(int64_t n)
{
    float *p = mem_new((size_t)n + 2 * FENCE, sizeof *p, NULL);
    for (int64_t i = 0; i < FENCE; i++) p[i] = p[FENCE + n + i] = fence_mark;
    return p + FENCE;
}

static void fenced_free(float *p, int64_t n)
{
    bool whole = true;
    for (int64_t i = 0; i < FENCE; i++) whole &= p[-1 - i] == fence_mark && p[n + i] == fence_mark;
    CHECK(whole);
    mem_free(p - FENCE);
}

static float *noise(int64_t n, uint64_t id)
{
    float *p = fenced_new(n);
    rng r = rng_at(7, RNG_TEST, 0, id);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(4 * rng_uniform(&r) - 2);
    return p;
}

static float *copy_of(const float *a, int64_t n)
{
    float *p = fenced_new(n);
    for (int64_t i = 0; i < n; i++) p[i] = a[i];
    return p;
}

static bool close_to(double got, double want, double tol) { return fabs(got - want) <= tol * (1 + fabs(want)); }

static double act_of(act_kind act, double v)
{
    switch (act) {
    case ACT_RELU: return v > 0 ? v : 0;
    case ACT_RELU6: return v < 0 ? 0 : v > 6 ? 6 : v;
    case ACT_SILU: return v / (1 + exp(-v));
    default: return v;
    }
}

/* Derivative at input v. */
static double slope_of(act_kind act, double v)
{
    double s = 1 / (1 + exp(-v));
    switch (act) {
    case ACT_RELU: return v > 0;
    case ACT_RELU6: return v > 0 && v < 6;
    case ACT_SILU: return s + v * s * (1 - s);
    default: return 1;
    }
}

static const struct { int64_t rows; int c; } sizes[] = {
    { 1, 1 }, { 5, 3 }, { 37, 10 }, { 49, 16 }, { 100, 24 }, { 64, 33 }, { 7, 64 }, { 300, 65 }, { 9, 144 }, { 3, 515 }, { 3000, 16 }, { 20000, 3 },
};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* ---- batch norm ------------------------------------------------------------------------------------ */

static void bn_case(int64_t rows, int c, act_kind act, bool with_residual, bool accumulate, uint64_t id)
{
    int64_t n = rows * c;
    float *x = noise(n, id), *gamma = noise(c, id + 1), *beta = noise(c, id + 2), *res = noise(n, id + 3), *dy = noise(n, id + 4);
    float *stats = fenced_new(5 * c), *y = fenced_new(n);
    float *dx0 = noise(n, id + 5), *dr0 = noise(n, id + 6), *dg0 = noise(c, id + 7), *db0 = noise(c, id + 8);
    float *dx = copy_of(dx0, n), *dr = copy_of(dr0, n), *dg = copy_of(dg0, c), *db = copy_of(db0, c);
    int64_t ns = (int64_t)((bn_scratch_bytes(rows, c) + 3) / 4);
    float *scratch = fenced_new(ns);
    for (int64_t i = 0; i < n; i++) x[i] += 3;
    const bn_stats st = { stats, stats + c, stats + 2 * c, stats + 3 * c, stats + 4 * c };
    bn_forward(rows, c, x, NULL, gamma, beta, 1e-5f, with_residual ? res : NULL, act, &st, y, scratch);
    bool back = act != ACT_SILU;                                     /* its slope cannot be told from its output */
    if (back)
        bn_backward(rows, c, x, with_residual ? y : NULL, dy, NULL, gamma, &st, act, (grad_out){ dx, accumulate },
                    (grad_out){ with_residual ? dr : NULL, accumulate }, (grad_out){ dg, accumulate }, (grad_out){ db, accumulate }, scratch);
    for (int ch = 0; ch < c; ch++) {
        double m = 0, v = 0, sum = 0, sum_x = 0, keep = accumulate ? 1 : 0;
        for (int64_t r = 0; r < rows; r++) m += (double)x[r * c + ch] / (double)rows;
        for (int64_t r = 0; r < rows; r++) v += ((double)x[r * c + ch] - m) * ((double)x[r * c + ch] - m) / (double)rows;
        double s = 1 / sqrt(v + 1e-5);
        CHECK(close_to((double)st.mean[ch], m, 1e-6));
        CHECK(close_to((double)st.var[ch], v, 1e-6));
        CHECK(close_to((double)st.invstd[ch], s, 1e-5));
        for (int64_t r = 0; r < rows; r++) {
            int64_t i = r * c + ch;
            double z = ((double)x[i] - m) * s * (double)gamma[ch] + (double)beta[ch] + (with_residual ? (double)res[i] : 0);
            CHECK(close_to((double)y[i], act_of(act, z), 2e-5 + (rows == 1 ? 1e-3 : 0)));
            double dz = (double)dy[i] * (act == ACT_NONE ? 1 : slope_of(act, (double)y[i]));
            sum += dz;
            sum_x += dz * ((double)x[i] - m) * s;
            if (back && with_residual) CHECK(close_to((double)dr[i], keep * (double)dr0[i] + dz, 1e-6));
        }
        for (int64_t r = 0; back && r < rows; r++) {
            int64_t i = r * c + ch;
            double dz = (double)dy[i] * (act == ACT_NONE ? 1 : slope_of(act, (double)y[i]));
            double want = (double)gamma[ch] * s * (dz - sum / (double)rows - ((double)x[i] - m) * s * sum_x / (double)rows);
            CHECK(close_to((double)dx[i], keep * (double)dx0[i] + want, rows == 1 ? 1e-2 : 3e-5));
        }
        if (back) CHECK(close_to((double)dg[ch], keep * (double)dg0[ch] + sum_x, rows == 1 ? 1e-3 : 2e-5));
        if (back) CHECK(close_to((double)db[ch], keep * (double)db0[ch] + sum, 2e-5));
    }
    float *big[] = { x, res, dy, y, dx0, dr0, dx, dr }, *small[] = { gamma, beta, dg0, db0, dg, db };
    for (int i = 0; i < 8; i++) fenced_free(big[i], n);
    for (int i = 0; i < 6; i++) fenced_free(small[i], c);
    fenced_free(stats, 5 * c);
    fenced_free(scratch, ns);
}

static void bn_body(void)
{
    for (int i = 0; i < SIZES; i++)
        for (int act = 0; act < ACT_COUNT; act++)
            bn_case(sizes[i].rows, sizes[i].c, (act_kind)act, (i + act) % 2, (i + act / 2) % 2, (uint64_t)(100 * i + 10 * act));
}

static void batch_norm_equals_loops_forward_and_backward(void) { on_every_isa(bn_body); }

/* ---- activations, scale and shift, sums ------------------------------------------------------------- */

static void affine_body(void)
{
    for (int i = 0; i < SIZES; i++)
        for (int flags = 0; flags < 8; flags++)
            for (int act = 0; act < ACT_COUNT; act++) {
                int64_t rows = sizes[i].rows, n = rows * sizes[i].c;
                int c = sizes[i].c;
                float *x = noise(n, 1), *scale = noise(c, 2), *shift = noise(c, 3), *res = noise(n, 4), *y = fenced_new(n);
                for (int64_t k = 0; k < n; k++) x[k] *= 5;
                affine_forward(rows, c, x, flags & 1 ? scale : NULL, flags & 2 ? shift : NULL, flags & 4 ? res : NULL, (act_kind)act, y);
                double worst = 0;
                for (int64_t k = 0; k < n; k++) {
                    double v = (double)x[k] * (flags & 1 ? (double)scale[k % c] : 1) + (flags & 2 ? (double)shift[k % c] : 0)
                             + (flags & 4 ? (double)res[k] : 0);
                    worst = fmax(worst, fabs((double)y[k] - act_of((act_kind)act, v)) / (1 + fabs(v)));
                }
                CHECK(worst < 1e-6);
                fenced_free(x, n);
                fenced_free(res, n);
                fenced_free(y, n);
                fenced_free(scale, c);
                fenced_free(shift, c);
            }
}

static void scale_shift_and_activation_equal_loops(void) { on_every_isa(affine_body); }

static void act_back_body(void)
{
    for (int64_t n = 1; n < 40000; n = n * 3 + 1)
        for (int act = 0; act < ACT_COUNT; act++)
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                float *x = noise(n, 1), *y = fenced_new(n), *dy = noise(n, 2), *dx0 = noise(n, 3), *dx = copy_of(dx0, n);
                for (int64_t k = 0; k < n; k++) x[k] *= 5;
                affine_forward(n, 1, x, NULL, NULL, NULL, (act_kind)act, y);
                act_backward(n, (act_kind)act, act == ACT_SILU ? x : NULL, act == ACT_SILU ? NULL : y, dy, accumulate, dx);
                double worst = 0;
                for (int64_t k = 0; k < n; k++)
                    worst = fmax(worst, fabs((double)dx[k] - (accumulate ? (double)dx0[k] : 0)
                                             - (double)dy[k] * slope_of((act_kind)act, (double)x[k])));
                CHECK(worst < 3e-6);
                float *all[] = { x, y, dy, dx0, dx };
                for (int i = 0; i < 5; i++) fenced_free(all[i], n);
            }
}

static void activation_backward_equals_loops(void) { on_every_isa(act_back_body); }

static void silu_body(void)
{
    float x[64], y[64];
    for (int i = 0; i < 64; i++) x[i] = (float)(i - 32) * 4.03f;
    affine_forward(64, 1, x, NULL, NULL, NULL, ACT_SILU, y);
    for (int i = 0; i < 64; i++) CHECK(fabs((double)y[i] - act_of(ACT_SILU, (double)x[i])) <= 4e-7 * fabs((double)x[i]));
    x[0] = INFINITY;
    x[1] = NAN;
    affine_forward(2, 1, x, NULL, NULL, NULL, ACT_SILU, y);
    CHECK(isinf(y[0]) && y[0] > 0);
    CHECK(isnan(y[1]));
}

static void silu_is_right_far_from_zero(void) { on_every_isa(silu_body); }

static void nan_body(void)
{
    for (int act = 0; act < ACT_COUNT; act++) {
        float x[40], y[40], dy[40], dx[40];
        for (int i = 0; i < 40; i++) { x[i] = i % 3 ? 1.0f : -1.0f; dy[i] = 1; }
        x[5] = x[39] = NAN;
        affine_forward(40, 1, x, NULL, NULL, NULL, (act_kind)act, y);
        for (int i = 0; i < 40; i++) CHECK(isnan(y[i]) == (i == 5 || i == 39));
        dy[6] = NAN;
        x[6] = y[6] = 1;
        act_backward(40, (act_kind)act, x, y, dy, false, dx);
        CHECK(isnan(dx[6]));
    }
    float a[3] = { 1, NAN, 2 };
    CHECK(!vec_is_finite(3, a));
    a[1] = -INFINITY;
    CHECK(!vec_is_finite(3, a));
    a[1] = 3e38f;
    CHECK(vec_is_finite(3, a));
}

static void a_nan_survives_every_activation(void) { on_every_isa(nan_body); }

static void sums_body(void)
{
    for (int i = 0; i < SIZES; i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            int64_t rows = sizes[i].rows, n = rows * sizes[i].c, ns = (int64_t)((bn_scratch_bytes(rows, sizes[i].c) + 3) / 4);
            int c = sizes[i].c;
            float *x = noise(n, 1), *out0 = noise(c, 2), *out = copy_of(out0, c), *scratch = fenced_new(ns);
            channel_sum(rows, c, x, accumulate, out, scratch);
            double squares = 0;
            for (int ch = 0; ch < c; ch++) {
                double sum = accumulate ? (double)out0[ch] : 0;
                for (int64_t r = 0; r < rows; r++) sum += (double)x[r * c + ch];
                CHECK(close_to((double)out[ch], sum, 1e-6));
            }
            for (int64_t k = 0; k < n; k++) squares += (double)x[k] * (double)x[k];
            CHECK(close_to(vec_sum_squares(n, x), squares, 1e-12));
            CHECK(vec_is_finite(n, x));
            x[n - 1] = NAN;
            CHECK(!vec_is_finite(n, x));
            fenced_free(x, n);
            fenced_free(out0, c);
            fenced_free(out, c);
            fenced_free(scratch, ns);
        }
}

static void sums_equal_loops(void) { on_every_isa(sums_body); }

/* ---- pooling ------------------------------------------------------------------------------------------ */

static const conv_shape pools[] = {
    { .n = 2, .h = 11, .w = 9, .c = 5, .kh = 3, .kw = 3, .sh = 2, .sw = 2, .pt = 1, .pb = 1, .pl = 1, .pr = 1 },
    { .n = 1, .h = 8, .w = 8, .c = 70, .kh = 2, .kw = 2, .sh = 2, .sw = 2 },
    { .n = 3, .h = 7, .w = 7, .c = 16, .kh = 7, .kw = 7, .sh = 1, .sw = 1 },
    { .n = 2, .h = 6, .w = 10, .c = 3, .kh = 3, .kw = 2, .sh = 1, .sw = 3, .pt = 1, .pb = 0, .pl = 0, .pr = 1 },
};
enum { POOLS = sizeof pools / sizeof *pools };

static void pool_case(const conv_shape *s, bool average, bool count_pad, bool accumulate)
{
    int OH = (s->h + s->pt + s->pb - s->kh) / s->sh + 1, OW = (s->w + s->pl + s->pr - s->kw) / s->sw + 1;
    int64_t nx = (int64_t)s->n * s->h * s->w * s->c, ny = (int64_t)s->n * OH * OW * s->c;
    float *x = noise(nx, 1), *y = fenced_new(ny), *dy = noise(ny, 2), *dx0 = noise(nx, 3), *dx = copy_of(dx0, nx);
    double *want = mem_new((size_t)nx, sizeof *want, NULL);
    for (int64_t i = 0; i < nx; i++) x[i] = roundf(x[i] * 2);          /* many equal values: the first counts */
    for (int64_t i = 0; accumulate && i < nx; i++) want[i] = (double)dx0[i];
    if (average) avgpool_forward(s, count_pad, x, y);
    else maxpool_forward(s, x, y);
    if (average) avgpool_backward(s, count_pad, dy, accumulate, dx);
    else maxpool_backward(s, x, dy, accumulate, dx);
    for (int64_t i = 0; i < ny; i++) {
        int c = (int)(i % s->c), ow = (int)(i / s->c % OW), oh = (int)(i / s->c / OW % OH), n = (int)(i / s->c / OW / OH), taps = 0;
        double sum = 0, best = -1e30;
        int64_t best_at = -1;
        for (int pass = 0; pass < 2; pass++)
            for (int a = 0; a < s->kh; a++)
                for (int b = 0; b < s->kw; b++) {
                    int h = oh * s->sh - s->pt + a, w = ow * s->sw - s->pl + b;
                    if (h < 0 || w < 0 || h >= s->h || w >= s->w) continue;
                    int64_t at = (((int64_t)n * s->h + h) * s->w + w) * s->c + c;
                    if (pass) want[at] += average ? (double)dy[i] / (count_pad ? s->kh * s->kw : taps) : at == best_at ? (double)dy[i] : 0;
                    else {
                        taps++;
                        sum += (double)x[at];
                        if ((double)x[at] > best) { best = (double)x[at]; best_at = at; }
                    }
                }
        CHECK(close_to((double)y[i], average ? sum / (count_pad ? s->kh * s->kw : taps) : best, 1e-6));
    }
    for (int64_t i = 0; i < nx; i++) CHECK(close_to((double)dx[i], want[i], 1e-5));
    fenced_free(x, nx);
    fenced_free(dx0, nx);
    fenced_free(dx, nx);
    fenced_free(y, ny);
    fenced_free(dy, ny);
    mem_free(want);
}

static void pool_body(void)
{
    for (int i = 0; i < POOLS; i++)
        for (int flags = 0; flags < 8; flags++) pool_case(&pools[i], flags & 1, flags & 2, flags & 4);
}

static void pooling_equals_loops(void) { on_every_isa(pool_body); }

/* Channel c has one at tap c % 5, every fifth none. */
static void nan_pool_body(void)
{
    enum { TAPS = 4, C = 70 };
    const conv_shape s = { .n = 1, .h = 2, .w = 2, .c = C, .kh = 2, .kw = 2, .sh = 2, .sw = 2 };
    float *x = fenced_new(TAPS * C), *y = fenced_new(C), *dy = noise(C, 1), *dx = fenced_new(TAPS * C);
    for (int tap = 0; tap < TAPS; tap++)
        for (int c = 0; c < C; c++) x[tap * C + c] = c % 5 == tap ? NAN : (float)tap;
    maxpool_forward(&s, x, y);
    maxpool_backward(&s, x, dy, false, dx);
    for (int c = 0; c < C; c++) {
        const int first = c % 5 < TAPS ? c % 5 : TAPS - 1;
        CHECK(first == c % 5 ? isnan(y[c]) : y[c] == (float)first);
        for (int tap = 0; tap < TAPS; tap++) CHECK(dx[tap * C + c] == (tap == first ? dy[c] : 0));
    }
    fenced_free(x, TAPS * C);
    fenced_free(y, C);
    fenced_free(dy, C);
    fenced_free(dx, TAPS * C);
}

static void a_nan_wins_the_maximum(void) { on_every_isa(nan_pool_body); }

/* ---- optimisers ----------------------------------------------------------------------------------------- */

static void optimiser_body(void)
{
    enum { N = 20011 };
    float *g = noise(N, 1), *w0 = noise(N, 2), *m0 = noise(N, 3), *v0 = noise(N, 4);
    for (int i = 0; i < N; i++) v0[i] = fabsf(v0[i]);
    for (int flags = 0; flags < 4; flags++) {
        float *w = copy_of(w0, N), *m = copy_of(m0, N);
        sgd_step(N, w, g, m, 0.5f, 0.1f, 0.9f, 0.01f, flags & 1, flags & 2);
        double worst = 0;
        for (int i = 0; i < N; i++) {
            double d = 0.5 * (double)g[i] + (double)0.01f * (double)w0[i], mu = (double)0.9f;
            double mom = flags & 2 ? d : mu * (double)m0[i] + d;
            worst = fmax(worst, fabs((double)m[i] - mom));
            worst = fmax(worst, fabs((double)w[i] - ((double)w0[i] - (double)0.1f * (flags & 1 ? d + mu * mom : mom))));
        }
        CHECK(worst < 1e-6);
        fenced_free(w, N);
        fenced_free(m, N);
    }
    for (int decoupled = 0; decoupled < 2; decoupled++)
        for (int t = 1; t < 1000; t *= 30) {
            float *w = copy_of(w0, N), *m = copy_of(m0, N), *v = copy_of(v0, N);
            adam_step(N, w, g, m, v, 0.5f, 0.01f, 0.9f, 0.999f, 1e-8f, 0.1f, decoupled, t);
            double worst = 0, b1 = (double)0.9f, b2 = (double)0.999f, lr = (double)0.01f, wd = (double)0.1f;
            for (int i = 0; i < N; i++) {
                double x = (double)w0[i] * (decoupled ? 1 - lr * wd : 1), d = 0.5 * (double)g[i] + (decoupled ? 0 : wd * x);
                double mom = b1 * (double)m0[i] + (1 - b1) * d, sq = b2 * (double)v0[i] + (1 - b2) * d * d;
                x -= lr * (mom / (1 - pow(b1, t))) / (sqrt(sq / (1 - pow(b2, t))) + 1e-8);
                worst = fmax(worst, fabs((double)w[i] - x) / (1 + fabs(x)));
            }
            CHECK(worst < 3e-6);
            fenced_free(w, N);
            fenced_free(m, N);
            fenced_free(v, N);
        }
    float *avg = copy_of(m0, N), *sum = copy_of(m0, N), *plain = copy_of(m0, N);
    ema_step(N, avg, w0, 0.75f);
    vec_add(N, w0, true, sum);
    vec_add(N, w0, false, plain);
    for (int i = 0; i < N; i++) {
        CHECK(fabsf(avg[i] - (0.75f * m0[i] + 0.25f * w0[i])) < 1e-6f);
        CHECK(sum[i] == m0[i] + w0[i]);
        CHECK(plain[i] == w0[i]);
    }
    float *all[] = { g, w0, m0, v0, avg, sum, plain };
    for (int i = 0; i < 7; i++) fenced_free(all[i], N);
}

static void optimisers_equal_the_formulas(void) { on_every_isa(optimiser_body); }

/* ---- threads ---------------------------------------------------------------------------------------------- */

enum { ROWS = 5000, CH = 24, COUNT = ROWS * CH };

/* Everything that adds up over rows or runs in blocks; the outputs one after another. */
static void fill_all(float *out)
{
    float *x = noise(COUNT, 1), *dy = noise(COUNT, 2), *g = noise(CH, 3), *b = noise(CH, 4), *scratch = noise(200000, 5);
    float *y = out, *dx = y + COUNT, *dr = dx + COUNT, *w = dr + COUNT, *small = w + COUNT;
    const bn_stats st = { small, small + CH, small + 2 * CH, small + 3 * CH, small + 4 * CH };
    bn_forward(ROWS, CH, x, NULL, g, b, 1e-5f, dy, ACT_RELU, &st, y, scratch);
    bn_backward(ROWS, CH, x, y, dy, NULL, g, &st, ACT_RELU, (grad_out){ dx, false }, (grad_out){ dr, false },
                (grad_out){ small + 5 * CH, false }, (grad_out){ small + 6 * CH, false }, scratch);
    channel_sum(ROWS, CH, x, false, small + 7 * CH, scratch);
    memcpy(w, x, COUNT * sizeof *w);
    sgd_step(COUNT, w, dy, x, 1, 0.1f, 0.9f, 1e-4f, true, false);
    small[8 * CH] = (float)vec_sum_squares(COUNT, dy);
    fenced_free(x, COUNT);
    fenced_free(dy, COUNT);
    fenced_free(g, CH);
    fenced_free(b, CH);
    fenced_free(scratch, 200000);
}

static void threads_do_not_change_a_bit(void)
{
    enum { ALL = 4 * COUNT + 8 * CH + 1 };
    float *one = fenced_new(ALL), *more = fenced_new(ALL);
    CHECK(start(NULL, 1));
    fill_all(one);
    for (int threads = 2; threads <= 7; threads += 5) {
        CHECK(start(NULL, threads));
        fill_all(more);
        CHECK(!memcmp(one, more, ALL * sizeof *one));
    }
    fenced_free(one, ALL);
    fenced_free(more, ALL);
}

int main(void)
{
    RUN(batch_norm_equals_loops_forward_and_backward);
    RUN(scale_shift_and_activation_equal_loops);
    RUN(activation_backward_equals_loops);
    RUN(silu_is_right_far_from_zero);
    RUN(a_nan_survives_every_activation);
    RUN(sums_equal_loops);
    RUN(pooling_equals_loops);
    RUN(a_nan_wins_the_maximum);
    RUN(optimisers_equal_the_formulas);
    RUN(threads_do_not_change_a_bit);
    core_stop();
    END();
}
