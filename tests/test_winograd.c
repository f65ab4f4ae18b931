/* Winograd's convolutions: their error against the definition in double, what they do with odd sizes,
 * NaN and threads, and that --exact leaves none. */
#include "core/kern.h"
#include "tests/test.h"

#include <stdlib.h>

static float *noise(size_t n, uint64_t id)
{
    float *p = mem_new(n, sizeof *p, NULL);
    rng r = rng_at(1, RNG_TEST, 0, id);
    for (size_t i = 0; i < n; i++) p[i] = (float)(2 * rng_uniform(&r) - 1);
    return p;
}

static size_t count_x(const conv_shape *s) { return (size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)s->c; }
static size_t count_w(const conv_shape *s) { return (size_t)s->o * (size_t)(s->c / s->groups) * 9; }
static size_t count_y(const conv_shape *s) { return (size_t)s->n * (size_t)conv_out_h(s) * (size_t)conv_out_w(s) * (size_t)s->o; }

static bool start(const char *isa, const char *road, int threads, bool exact)
{
    core_stop();
    err e = { 0 };
    return core_init(&(core_options){ .threads = threads, .isa = isa, .conv = road, .exact = exact }, &e);
}

/* ---- shapes --------------------------------------------------------------------------------------- */

typedef struct { conv_shape s; bool bias, residual; act_kind act; } sample;

/* n h w c  o 3×3  stride 1  padding  dilation 1  groups */
#define SHAPE(N, H, W, C, O, T, B, L, R, G) { N, H, W, C, O, 3, 3, 1, 1, T, B, L, R, 1, 1, G }
static const sample samples[] = {
    { SHAPE(1, 4, 4, 1, 1, 1, 1, 1, 1, 1), false, false, ACT_NONE },
    { SHAPE(1, 1, 1, 5, 3, 1, 1, 1, 1, 1), true, false, ACT_NONE },          /* one pixel */
    { SHAPE(3, 32, 32, 3, 16, 1, 1, 1, 1, 1), true, false, ACT_RELU },       /* CIFAR */
    { SHAPE(2, 32, 32, 16, 16, 1, 1, 1, 1, 1), true, true, ACT_RELU },
    { SHAPE(3, 16, 16, 32, 32, 1, 1, 1, 1, 1), true, true, ACT_RELU },
    { SHAPE(5, 8, 8, 64, 64, 1, 1, 1, 1, 1), true, true, ACT_RELU6 },
    { SHAPE(1, 28, 28, 64, 128, 1, 1, 1, 1, 1), true, true, ACT_RELU },      /* ImageNet, thinner */
    { SHAPE(2, 14, 14, 160, 96, 1, 1, 1, 1, 1), true, false, ACT_SILU },
    { SHAPE(1, 7, 7, 512, 64, 1, 1, 1, 1, 1), true, false, ACT_NONE },
    { SHAPE(2, 9, 13, 17, 33, 0, 0, 0, 0, 1), true, true, ACT_SILU },        /* odd everything */
    { SHAPE(1, 3, 4, 20, 40, 0, 0, 0, 0, 1), false, true, ACT_NONE },        /* two outputs */
    { SHAPE(2, 5, 6, 24, 31, 2, 0, 1, 3, 1), true, false, ACT_RELU },        /* uneven padding */
    { SHAPE(1, 2, 3, 16, 48, 9, 8, 7, 9, 1), true, true, ACT_NONE },         /* wider than the image */
    { SHAPE(2, 11, 10, 48, 72, 1, 1, 1, 1, 3), true, true, ACT_RELU },       /* groups */
    { SHAPE(1, 6, 7, 6, 10, 1, 1, 1, 1, 2), false, false, ACT_NONE },
    { SHAPE(7, 12, 5, 40, 70, 1, 0, 0, 1, 1), true, true, ACT_RELU },
    { SHAPE(1, 58, 60, 17, 70, 1, 1, 1, 1, 1), false, false, ACT_NONE },     /* units of the weight gradient, two of them uneven */
};
enum { SAMPLES = sizeof samples / sizeof *samples };

/* scale: the largest value before the activation. */
static double *defined(const sample *t, const float *x, const float *w, const float *bias, const float *residual,
                       double *scale)
{
    const conv_shape *s = &t->s;
    int OH = conv_out_h(s), OW = conv_out_w(s), cg = s->c / s->groups, og = s->o / s->groups;
    double *y = mem_new(count_y(s), sizeof *y, NULL);
    *scale = 1;
    for (size_t i = 0; i < count_y(s); i++) {
        int o = (int)(i % (size_t)s->o), q = (int)(i / (size_t)s->o), ow = q % OW, oh = q / OW % OH, n = q / OW / OH;
        double sum = (t->bias ? (double)bias[o] : 0) + (t->residual ? (double)residual[i] : 0);
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++) {
                int h = oh - s->pt + a, v = ow - s->pl + b;
                if (h < 0 || v < 0 || h >= s->h || v >= s->w) continue;
                for (int c = 0; c < cg; c++)
                    sum += (double)x[((n * s->h + h) * s->w + v) * s->c + o / og * cg + c] * (double)w[((o * cg + c) * 3 + a) * 3 + b];
            }
        *scale = fmax(*scale, fabs(sum));
        y[i] = t->act == ACT_SILU ? sum / (1 + exp(-sum)) : t->act == ACT_RELU6 && sum > 6 ? 6
             : t->act != ACT_NONE && sum < 0 ? 0 : sum;
    }
    return y;
}

/* The output of a plan; scratch and output start as NaN, or as the residual. */
static float *computed(const sample *t, const float *x, const float *w, const float *bias, const float *residual,
                       const char **road)
{
    err e = { 0 };
    conv_plan *p = conv_plan_new(&t->s, CONV_FORWARD, &e);
    CHECK_OK(p, e);
    if (!p) return NULL;
    size_t ns = conv_scratch_floats(p), ny = count_y(&t->s);
    float *packed = mem_new(conv_packed_floats(p, CONV_FORWARD), sizeof *packed, NULL), *scratch = mem_new(ns, sizeof *scratch, NULL);
    float *y = mem_new(ny, sizeof *y, NULL);
    for (size_t i = 0; i < ns; i++) scratch[i] = NAN;
    for (size_t i = 0; i < ny; i++) y[i] = t->residual ? residual[i] : NAN;
    conv_pack(p, CONV_FORWARD, w, packed);
    conv_epilogue ep = { .bias = t->bias ? bias : NULL, .residual = t->residual ? y : NULL, .act = t->act };
    conv_forward(p, x, NULL, packed, &ep, y, scratch);
    *road = conv_plan_road(p);
    mem_free(packed);
    mem_free(scratch);
    conv_plan_free(p);
    return y;
}

typedef struct { float *x, *w, *bias, *residual; } arrays;

static arrays arrays_new(const conv_shape *s, uint64_t id)
{
    return (arrays){ noise(count_x(s), 4 * id), noise(count_w(s), 4 * id + 1), noise((size_t)s->o, 4 * id + 2), noise(count_y(s), 4 * id + 3) };
}

static void arrays_free(arrays *a)
{
    mem_free(a->x);
    mem_free(a->w);
    mem_free(a->bias);
    mem_free(a->residual);
}

/* ---- error ---------------------------------------------------------------------------------------- */

/* The data gradient's error over its largest value: of noise, then added to what is there. */
static double back_error(const conv_shape *s, const float *w, const char *road)
{
    err e = { 0 };
    int OH = conv_out_h(s), OW = conv_out_w(s), cg = s->c / s->groups, og = s->o / s->groups;
    size_t nx = count_x(s), ny = count_y(s);
    float *dy = noise(ny, 98), *dx = noise(nx, 99), *old = noise(nx, 99);
    double *want = mem_new(nx, sizeof *want, NULL), error = 0, scale = 1;
    for (size_t i = 0; i < ny; i++) {
        int o = (int)(i % (size_t)s->o), q = (int)(i / (size_t)s->o), ow = q % OW, oh = q / OW % OH, n = q / OW / OH;
        for (int t = 0; t < 9; t++) {
            int h = oh - s->pt + t / 3, v = ow - s->pl + t % 3;
            if (h < 0 || v < 0 || h >= s->h || v >= s->w) continue;
            for (int c = 0; c < cg; c++)
                want[((n * s->h + h) * s->w + v) * s->c + o / og * cg + c] += (double)dy[i] * (double)w[(o * cg + c) * 9 + t];
        }
    }
    conv_plan *p = conv_plan_new(s, CONV_DATA_GRAD, &e);
    CHECK_OK(p, e);
    CHECK_TEXT(conv_plan_road(p), road);
    float *packed = mem_new(conv_packed_floats(p, CONV_DATA_GRAD), sizeof *packed, NULL);
    float *scratch = mem_new(conv_scratch_floats(p), sizeof *scratch, NULL);
    conv_pack(p, CONV_DATA_GRAD, w, packed);
    for (int accumulate = 1; accumulate >= 0; accumulate--) {
        conv_data_grad(p, dy, packed, accumulate, dx, scratch);
        for (size_t i = 0; i < nx; i++) {
            double right = want[i] + (accumulate ? (double)old[i] : 0);
            scale = fmax(scale, fabs(right));
            error = fmax(error, isnan(dx[i]) ? (double)INFINITY : fabs((double)dx[i] - right));
        }
    }
    void *all[] = { dy, dx, old, want, packed, scratch };
    for (int i = 0; i < 6; i++) mem_free(all[i]);
    conv_plan_free(p);
    return error / scale;
}

/* Added to what is there, or not. */
static float *weight_gradient(const conv_shape *s, const float *x, const float *dy, bool accumulate, const char **road)
{
    err e = { 0 };
    conv_plan *p = conv_plan_new(s, CONV_WEIGHT_GRAD, &e);
    CHECK_OK(p, e);
    if (!p) return NULL;
    size_t ns = conv_scratch_floats(p);
    float *scratch = mem_new(ns, sizeof *scratch, NULL), *dw = noise(count_w(s), 99);
    for (size_t i = 0; i < ns; i++) scratch[i] = NAN;
    for (size_t i = 0; !accumulate && i < count_w(s); i++) dw[i] = NAN;
    conv_weight_grad(p, x, NULL, dy, accumulate, dw, scratch);
    *road = conv_plan_road(p);
    mem_free(scratch);
    conv_plan_free(p);
    return dw;
}

/* The same of the weight gradient; the largest value is of sums over all pixels. */
static double weight_error(const conv_shape *s, const float *x, const char *road)
{
    int OH = conv_out_h(s), OW = conv_out_w(s);
    size_t nw = count_w(s), ny = count_y(s);
    float *dy = noise(ny, 98), *old = noise(nw, 99);
    double *want = mem_new(nw, sizeof *want, NULL), error = 0, scale = 1;
    for (size_t i = 0; i < ny; i++) {
        int o = (int)(i % (size_t)s->o), q = (int)(i / (size_t)s->o), ow = q % OW, oh = q / OW % OH, n = q / OW / OH;
        for (int t = 0; t < 9; t++) {
            int h = oh - s->pt + t / 3, v = ow - s->pl + t % 3;
            if (h < 0 || v < 0 || h >= s->h || v >= s->w) continue;
            for (int c = 0; c < s->c; c++)
                want[(o * s->c + c) * 9 + t] += (double)dy[i] * (double)x[((n * s->h + h) * s->w + v) * s->c + c];
        }
    }
    for (int accumulate = 1; accumulate >= 0; accumulate--) {
        const char *taken;
        float *dw = weight_gradient(s, x, dy, accumulate, &taken);
        CHECK_TEXT(taken, road);
        for (size_t i = 0; i < nw; i++) {
            double right = want[i] + (accumulate ? (double)old[i] : 0);
            scale = fmax(scale, fabs(right));
            error = fmax(error, isnan(dw[i]) ? (double)INFINITY : fabs((double)dw[i] - right));
        }
        mem_free(dw);
    }
    void *all[] = { dy, old, want };
    for (int i = 0; i < 3; i++) mem_free(all[i]);
    return error / scale;
}

static bool has_back(const conv_shape *s) { return s->pt <= 2 && s->pb <= 2 && s->pl <= 2 && s->pr <= 2; }

/* Largest error over the largest output, of noise in [-1,1). The worst measured of these samples and
 * instruction sets: 1.0e-6 for F(2×2), 3.2e-6 for F(4×4). */
static void errors_stay_below(const char *isa, const char *road, double bound)
{
    if (!start(isa, road, 2, false)) SKIP("this machine lacks it");
    for (int i = 0; i < SAMPLES; i++) {
        const sample *t = &samples[i];
        const char *taken;
        arrays a = arrays_new(&t->s, (uint64_t)i);
        double error = 0, scale, *want = defined(t, a.x, a.w, a.bias, a.residual, &scale);
        float *got = computed(t, a.x, a.w, a.bias, a.residual, &taken);
        CHECK_TEXT(taken, road);
        for (size_t k = 0; k < count_y(&t->s); k++) {
            double d = fabs((double)got[k] - want[k]);
            if (!(d <= error)) error = d;
        }
        double back = has_back(&t->s) ? back_error(&t->s, a.w, road) : 0;
        double weights = t->s.groups == 1 ? weight_error(&t->s, a.x, road) : 0;
        CHECK(error / scale <= bound);
        CHECK(back <= bound);
        CHECK(weights <= bound);
        if (!(error / scale <= bound && back <= bound && weights <= bound))
            fprintf(stderr, "  sample %d: errors %g, %g, %g\n", i, error / scale, back, weights);
        mem_free(want);
        mem_free(got);
        arrays_free(&a);
    }
}

/* Sums over 32,768 pixels: 8,192 and 2,048 tiles in many units. */
static void long_sums_of_the_weight_gradient_stay_near_the_definition(void)
{
    const conv_shape s = SHAPE(32, 32, 32, 16, 16, 1, 1, 1, 1, 1);
    static const char *const road[] = { "winograd2", "winograd4" };
    float *x = noise(count_x(&s), 5);
    for (int i = 0; i < 2; i++) {
        CHECK(start(NULL, road[i], 2, false));
        CHECK(weight_error(&s, x, road[i]) <= 1e-5);
    }
    mem_free(x);
}

/* More sums than stay near, and then more than a block may have for itself; more tiles than a unit. */
static const conv_shape many_sums[] = { SHAPE(5, 32, 32, 96, 96, 1, 1, 1, 1, 1), SHAPE(3, 28, 28, 176, 176, 1, 1, 1, 1, 1) };

static void many_sums_of_the_weight_gradient_stay_near_the_definition(void)
{
    for (int i = 0; i < 2; i++) {
        float *x = noise(count_x(&many_sums[i]), 6);
        CHECK(start(NULL, "winograd4", 2, false));
        CHECK(weight_error(&many_sums[i], x, "winograd4") <= 1e-5);
        mem_free(x);
    }
}

static void blocks_of_the_weight_gradient_are_the_same_for_any_number_of_threads(void)
{
    const conv_shape shapes[] = { SHAPE(9, 32, 32, 16, 24, 1, 1, 1, 1, 1), many_sums[0], many_sums[1] };
    for (int i = 0; i < 3; i++) {
        const conv_shape *s = &shapes[i];
        float *x = noise(count_x(s), 5), *dy = noise(count_y(s), 7), *dw[3];
        const char *road;
        for (int n = 0; n < 3; n++) {
            CHECK(start(NULL, "winograd4", n + 1, false));
            dw[n] = weight_gradient(s, x, dy, false, &road);
        }
        for (int n = 1; n < 3; n++) CHECK(!memcmp(dw[0], dw[n], count_w(s) * sizeof **dw));
        for (int n = 0; n < 3; n++) mem_free(dw[n]);
        mem_free(x);
        mem_free(dy);
    }
}

static const double bound_2 = 2e-6, bound_4 = 6e-6;
static void f2_equals_the_definition_on_scalar(void) { errors_stay_below("scalar", "winograd2", bound_2); }
static void f4_equals_the_definition_on_scalar(void) { errors_stay_below("scalar", "winograd4", bound_4); }
static void f2_equals_the_definition_on_avx2(void) { errors_stay_below("avx2", "winograd2", bound_2); }
static void f4_equals_the_definition_on_avx2(void) { errors_stay_below("avx2", "winograd4", bound_4); }
static void f2_equals_the_definition_on_avx512(void) { errors_stay_below("avx512", "winograd2", bound_2); }
static void f4_equals_the_definition_on_avx512(void) { errors_stay_below("avx512", "winograd4", bound_4); }

/* ---- bits ----------------------------------------------------------------------------------------- */

static bool same_on(const char *road, bool exact, int threads, const char *other_road, bool other_exact, int other_threads, bool *roads_differ)
{
    bool same = true;
    for (int i = 0; i < SAMPLES; i++) {
        const sample *t = &samples[i];
        const char *first = "", *second = "";
        arrays a = arrays_new(&t->s, (uint64_t)i);
        CHECK(start(NULL, road, threads, exact));
        float *y = computed(t, a.x, a.w, a.bias, a.residual, &first);
        CHECK(start(NULL, other_road, other_threads, other_exact));
        float *z = computed(t, a.x, a.w, a.bias, a.residual, &second);
        same &= !memcmp(y, z, count_y(&t->s) * sizeof *y);
        *roads_differ |= strcmp(first, second) != 0;
        float *dy = noise(count_y(&t->s), 98), *w2 = t->s.groups == 1 ? weight_gradient(&t->s, a.x, dy, false, &second) : NULL;
        CHECK(start(NULL, road, threads, exact));
        float *w1 = w2 ? weight_gradient(&t->s, a.x, dy, false, &first) : NULL;
        same &= !w1 || !memcmp(w1, w2, count_w(&t->s) * sizeof *w1);
        *roads_differ |= strcmp(first, second) != 0;
        void *all[] = { y, z, dy, w1, w2 };
        for (int k = 0; k < 5; k++) mem_free(all[k]);
        arrays_free(&a);
    }
    return same;
}

static void threads_do_not_change_a_bit(void)
{
    static const char *const road[] = { "winograd2", "winograd4", "direct" };
    bool differ = false;
    for (int i = 0; i < 3; i++) {
        CHECK(same_on(road[i], false, 1, road[i], false, 2, &differ));
        CHECK(same_on(road[i], false, 1, road[i], false, 7, &differ));
    }
    CHECK(!differ);
}

static void exact_leaves_no_winograd(void)
{
    bool differ = false;
    CHECK(same_on("winograd4", true, 2, NULL, true, 2, &differ) && !differ);
    CHECK(!same_on(NULL, false, 2, NULL, true, 2, &differ) && differ);
    for (int i = 0; i < SAMPLES; i++) {
        const char *road;
        arrays a = arrays_new(&samples[i].s, (uint64_t)i);
        CHECK(start(NULL, NULL, 2, true));
        float *y = computed(&samples[i], a.x, a.w, a.bias, a.residual, &road);
        CHECK_TEXT(road, "direct");
        float *dy = noise(count_y(&samples[i].s), 98), *dw = weight_gradient(&samples[i].s, a.x, dy, false, &road);
        CHECK_TEXT(road, "direct");
        mem_free(dy);
        mem_free(dw);
        mem_free(y);
        arrays_free(&a);
    }
}

/* ---- what is not a number -------------------------------------------------------------------------- */

/* Every output whose window holds the pixel is NaN or infinite; no output of another image or of a
 * tile whose patch lacks it is. */
static void what_is_not_finite_stays_visible(void)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    const sample t = { SHAPE(2, 13, 13, 20, 20, 1, 1, 1, 1, 1), true, false, ACT_NONE };
    for (int m = 2; m <= 4; m += 2)
        for (int i = 0; i < 3; i++)
            for (int at = 0; at < 13; at++) {
                const char *road;
                CHECK(start(NULL, m == 2 ? "winograd2" : "winograd4", 1, false));
                arrays a = arrays_new(&t.s, 77);
                a.x[(at * 13 + at) * 20 + 7] = bad[i];
                float *y = computed(&t, a.x, a.w, a.bias, a.residual, &road);
                int missed = 0, stray = 0;
                for (int q = 0; q < 2 * 169; q++) {
                    int n = q / 169, h = q / 13 % 13, w = q % 13;
                    bool near = !n && abs(h - at) <= 1 && abs(w - at) <= 1, far = n || abs(h - at) > m || abs(w - at) > m;
                    for (int o = 0; o < 20; o++) {
                        bool finite = isfinite(y[q * 20 + o]);
                        missed += near && finite;
                        stray += far && !finite;
                    }
                }
                CHECK(!missed);
                CHECK(!stray);
                mem_free(y);
                arrays_free(&a);
            }
}

/* … in all taps of the weights that meet it, and in no other channel's. */
static void what_is_not_finite_reaches_the_weights(void)
{
    const conv_shape s = SHAPE(2, 13, 13, 20, 20, 1, 1, 1, 1, 1);
    for (int m = 2; m <= 4; m += 2)
        for (int at = 1; at < 12; at++) {
            const char *road;
            CHECK(start(NULL, m == 2 ? "winograd2" : "winograd4", 1, false));
            float *x = noise(count_x(&s), 5), *dy = noise(count_y(&s), 6);
            x[(at * 13 + at) * 20 + 7] = NAN;
            float *dw = weight_gradient(&s, x, dy, false, &road);
            CHECK_TEXT(road, m == 2 ? "winograd2" : "winograd4");
            for (int i = 0; i < 20 * 20 * 9; i++) CHECK(isnan(dw[i]) == (i / 9 % 20 == 7));
            mem_free(x);
            mem_free(dy);
            mem_free(dw);
        }
}

static void a_nan_survives_the_activation(void)
{
    for (int act = ACT_NONE; act < ACT_COUNT; act++) {
        sample t = { SHAPE(1, 9, 9, 20, 20, 1, 1, 1, 1, 1), true, true, (act_kind)act };
        const char *road;
        CHECK(start(NULL, "winograd4", 1, false));
        arrays a = arrays_new(&t.s, 78);
        a.x[(4 * 9 + 4) * 20 + 7] = NAN;
        float *y = computed(&t, a.x, a.w, a.bias, a.residual, &road);
        for (int o = 0; o < 20; o++) CHECK(isnan(y[(4 * 9 + 4) * 20 + o]));
        mem_free(y);
        arrays_free(&a);
    }
}

int main(void)
{
    RUN(f2_equals_the_definition_on_scalar);
    RUN(f4_equals_the_definition_on_scalar);
    RUN(f2_equals_the_definition_on_avx2);
    RUN(f4_equals_the_definition_on_avx2);
    RUN(f2_equals_the_definition_on_avx512);
    RUN(f4_equals_the_definition_on_avx512);
    RUN(threads_do_not_change_a_bit);
    RUN(exact_leaves_no_winograd);
    RUN(long_sums_of_the_weight_gradient_stay_near_the_definition);
    RUN(many_sums_of_the_weight_gradient_stay_near_the_definition);
    RUN(blocks_of_the_weight_gradient_are_the_same_for_any_number_of_threads);
    RUN(what_is_not_finite_stays_visible);
    RUN(what_is_not_finite_reaches_the_weights);
    RUN(a_nan_survives_the_activation);
    core_stop();
    END();
}
