/* Convolution against loops written only here, on every instruction set and road. */
#include "core/kern.h"
#include "tests/test.h"

#include <stdlib.h>

/* ---- numbers between fences --------------------------------------------------------------------- */

enum { FENCE = 64 };
static const float fence_mark = 12345.678f;

static float *fenced_new(size_t n)
{
    float *p = mem_new(n + 2 * FENCE, sizeof *p, NULL);
    for (size_t i = 0; i < FENCE; i++) p[i] = p[FENCE + n + i] = fence_mark;
    return p + FENCE;
}

static bool fenced_free(float *p, size_t n)
{
    bool whole = true;
    for (size_t i = 0; i < FENCE; i++) whole &= p[-1 - (long)i] == fence_mark && p[n + i] == fence_mark;
    mem_free(p - FENCE);
    return whole;
}

static float *noise(size_t n, uint64_t id)
{
    float *p = fenced_new(n);
    rng r = rng_at(1, RNG_TEST, 0, id);
    for (size_t i = 0; i < n; i++) p[i] = (float)(2 * rng_uniform(&r) - 1);
    return p;
}

/* ---- the naive loops ------------------------------------------------------------------------------ */

static size_t count_x(const conv_shape *s) { return (size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)s->c; }
static size_t count_w(const conv_shape *s) { return (size_t)s->o * (size_t)(s->c / s->groups) * (size_t)s->kh * (size_t)s->kw; }
static size_t count_y(const conv_shape *s)
{
    return (size_t)s->n * (size_t)conv_out_h(s) * (size_t)conv_out_w(s) * (size_t)s->o;
}

/* Every product of the convolution: y[*iy] += x[*ix] * w[*iw]. One thread's loops: the sanitizer of threads
 * would see nothing in them, slowly. */
static __attribute__((noinline, no_sanitize("thread"))) void naive(const conv_shape *s, const float *x, const float *w, const float *dy, double *y, double *dx, double *dw)
{
    int OH = conv_out_h(s), OW = conv_out_w(s), cg = s->c / s->groups, og = s->o / s->groups;
    for (int n = 0; n < s->n; n++)
        for (int oh = 0; oh < OH; oh++)
            for (int ow = 0; ow < OW; ow++)
                for (int o = 0; o < s->o; o++)
                    for (int c = 0; c < cg; c++)
                        for (int a = 0; a < s->kh; a++)
                            for (int b = 0; b < s->kw; b++) {
                                int ih = oh * s->sh - s->pt + a * s->dh, iw = ow * s->sw - s->pl + b * s->dw;
                                if (ih < 0 || ih >= s->h || iw < 0 || iw >= s->w) continue;
                                size_t ix = (((size_t)n * (size_t)s->h + (size_t)ih) * (size_t)s->w + (size_t)iw) * (size_t)s->c + (size_t)(o / og * cg + c);
                                size_t iq = (((size_t)o * (size_t)cg + (size_t)c) * (size_t)s->kh + (size_t)a) * (size_t)s->kw + (size_t)b;
                                size_t iy = (((size_t)n * (size_t)OH + (size_t)oh) * (size_t)OW + (size_t)ow) * (size_t)s->o + (size_t)o;
                                y[iy] += (double)x[ix] * (double)w[iq];
                                dx[ix] += (double)dy[iy] * (double)w[iq];
                                dw[iq] += (double)dy[iy] * (double)x[ix];
                            }
}

static double naive_act(act_kind act, double v)
{
    if (act == ACT_SILU) return v / (1 + exp(-v));
    if (act == ACT_RELU6 && v > 6) return 6;
    return act != ACT_NONE && v < 0 ? 0 : v;
}

/* Largest error over the largest value, which sums of products keep within a few roundings. */
static double worst(const float *got, const double *want, size_t n)
{
    double error = 0, scale = 1;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= error)) error = d;
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    return error / scale;
}

/* ---- one shape, all passes ------------------------------------------------------------------------ */

typedef struct {
    conv_shape s;
    bool bias, residual, accumulate;
    act_kind act;
    bool prologue;
    act_kind before;             /* its activation */
    float *x, *w, *dy, *b, *r, *scale, *shift;
    float *prepared;             /* x behind the prologue, or x */
    double *y, *dx, *dw;         /* wanted (sample_want) */
} sample;

static void sample_fill(sample *t, uint64_t id)
{
    size_t nx = count_x(&t->s), nw = count_w(&t->s), ny = count_y(&t->s);
    t->x = noise(nx, id * 8);
    t->w = noise(nw, id * 8 + 1);
    t->dy = noise(ny, id * 8 + 2);
    t->b = noise((size_t)t->s.o, id * 8 + 3);
    t->r = noise(ny, id * 8 + 4);
    t->scale = noise((size_t)t->s.c, id * 8 + 5);
    t->shift = noise((size_t)t->s.c, id * 8 + 6);
    t->prepared = fenced_new(nx);
    for (size_t i = 0, c = 0; i < nx; i++, c = (c + 1) % (size_t)t->s.c)
        t->prepared[i] = t->prologue ? (float)naive_act(t->before, (double)fmaf(t->x[i], t->scale[c], t->shift[c])) : t->x[i];
}

/* What all passes should give. */
static void sample_want(sample *t)
{
    size_t nx = count_x(&t->s), nw = count_w(&t->s), ny = count_y(&t->s);
    t->y = mem_new(ny, sizeof *t->y, NULL);
    t->dx = mem_new(nx, sizeof *t->dx, NULL);
    t->dw = mem_new(nw, sizeof *t->dw, NULL);
    naive(&t->s, t->prepared, t->w, t->dy, t->y, t->dx, t->dw);
    for (size_t i = 0; i < ny; i++) {
        double v = t->y[i] + (t->bias ? (double)t->b[i % (size_t)t->s.o] : 0) + (t->residual ? (double)t->r[i] : 0);
        t->y[i] = naive_act(t->act, v);
    }
    /* Accumulation starts from the noise r and x and w. */
    for (size_t i = 0; t->accumulate && i < nx; i++) t->dx[i] += (double)t->x[i];
    for (size_t i = 0; t->accumulate && i < nw; i++) t->dw[i] += (double)t->w[i];
}

static void sample_drop(sample *t)
{
    CHECK(fenced_free(t->x, count_x(&t->s)));
    CHECK(fenced_free(t->w, count_w(&t->s)));
    CHECK(fenced_free(t->dy, count_y(&t->s)));
    CHECK(fenced_free(t->b, (size_t)t->s.o));
    CHECK(fenced_free(t->r, count_y(&t->s)));
    CHECK(fenced_free(t->scale, (size_t)t->s.c));
    CHECK(fenced_free(t->shift, (size_t)t->s.c));
    CHECK(fenced_free(t->prepared, count_x(&t->s)));
    mem_free(t->y);
    mem_free(t->dx);
    mem_free(t->dw);
}

typedef struct { float *y, *dx, *dw; double *part; int64_t parts; } result;     /* part NULL: the road has none */

/* Runs all passes the way a network does. y starts as garbage; scratch is dirty. */
static bool run(const sample *t, unsigned passes, result *out)
{
    err e = { 0 };
    size_t nx = count_x(&t->s), nw = count_w(&t->s), ny = count_y(&t->s);
    const bool lazy = t->prologue && conv_has_prologue(&t->s);
    const conv_prologue own = { t->scale, t->shift, t->before }, *pro = lazy ? &own : NULL;
    const float *x = lazy ? t->x : t->prepared;
    conv_plan *p = conv_plan_new(&t->s, passes | (lazy ? CONV_PROLOGUE : 0), &e);
    CHECK_OK(p, e);
    if (!p) return false;
    size_t ns = conv_scratch_floats(p);
    float *scratch = noise(ns, 99);
    for (size_t i = 0; i < ns; i++) scratch[i] = NAN;
    *out = (result){ .y = noise(ny, 97), .dx = fenced_new(nx), .dw = fenced_new(nw) };
    conv_epilogue ep = { .bias = t->bias ? t->b : NULL, .residual = t->residual ? out->y : NULL, .act = t->act };
    if (passes & CONV_FORWARD) {
        out->parts = t->act == ACT_SILU ? 0 : conv_parts(p);
        if (out->parts) ep.part = out->part = mem_new((size_t)(out->parts * ROW_PART(t->s.o)), sizeof *out->part, NULL);
        size_t np = conv_packed_floats(p, CONV_FORWARD);
        float *packed = noise(np, 98);
        conv_pack(p, CONV_FORWARD, t->w, packed);
        if (t->residual) memcpy(out->y, t->r, ny * sizeof *out->y);   /* residual in place */
        conv_forward(p, x, pro, packed, t->bias || t->residual || t->act || ep.part ? &ep : NULL, out->y, scratch);
        CHECK(fenced_free(packed, np));
    }
    if (passes & CONV_DATA_GRAD) {
        size_t np = conv_packed_floats(p, CONV_DATA_GRAD);
        float *packed = noise(np, 98);
        conv_pack(p, CONV_DATA_GRAD, t->w, packed);
        for (size_t i = 0; i < nx; i++) out->dx[i] = t->accumulate ? t->x[i] : NAN;
        conv_data_grad(p, t->dy, packed, t->accumulate, out->dx, scratch);
        CHECK(fenced_free(packed, np));
    }
    if (passes & CONV_WEIGHT_GRAD) {
        for (size_t i = 0; i < nw; i++) out->dw[i] = t->accumulate ? t->w[i] : NAN;
        conv_weight_grad(p, x, pro, t->dy, t->accumulate, out->dw, scratch);
    }
    CHECK(fenced_free(scratch, ns));
    conv_plan_free(p);
    return true;
}

static void result_drop(const sample *t, result *r)
{
    mem_free(r->part);
    CHECK(fenced_free(r->y, count_y(&t->s)));
    CHECK(fenced_free(r->dx, count_x(&t->s)));
    CHECK(fenced_free(r->dw, count_w(&t->s)));
}

static void describe(const sample *t, const char *where)
{
    const conv_shape *s = &t->s;
    fprintf(stderr, "  %s: n%d %dx%dx%d -> %d, k%dx%d s%dx%d p%d,%d,%d,%d d%dx%d g%d%s%s%s%s act %d\n", where, s->n, s->h, s->w,
            s->c, s->o, s->kh, s->kw, s->sh, s->sw, s->pt, s->pb, s->pl, s->pr, s->dh, s->dw, s->groups,
            t->bias ? " bias" : "", t->prologue ? " prologue" : "", t->residual ? " residual" : "", t->accumulate ? " accumulate" : "", t->act);
}

/* Error of the sums that come with the outputs, over the largest: number of rows, sums, squares about the mean. */
static double worst_sum(const sample *t, const result *r)
{
    int O = t->s.o;
    double rows = (double)count_y(&t->s) / O, seen = 0, error = 0, scale = 1;
    for (int64_t k = 0; k < r->parts; k++) seen += r->part[k * ROW_PART(O)];
    if (r->parts && seen != rows) return (double)INFINITY;
    for (int o = 0; r->parts && o < O; o++) {
        double sum = 0, square = 0, want = 0, want_square = 0;
        for (size_t i = (size_t)o; i < count_y(&t->s); i += (size_t)O) want += (double)r->y[i];
        for (size_t i = (size_t)o; i < count_y(&t->s); i += (size_t)O) want_square += pow((double)r->y[i] - want / rows, 2);
        for (int64_t k = 0; k < r->parts; k++) sum += r->part[k * ROW_PART(O) + 1 + o];
        for (int64_t k = 0; k < r->parts; k++) {
            const double *p = r->part + k * ROW_PART(O);
            square += p[1 + O + o] + p[0] * pow(p[1 + o] / p[0] - sum / rows, 2);
        }
        scale = fmax(scale, fmax(fabs(want), want_square));
        error = fmax(error, fmax(fabs(sum - want), fabs(square - want_square)));
    }
    return error / scale;
}

static const unsigned all_passes = CONV_FORWARD | CONV_DATA_GRAD | CONV_WEIGHT_GRAD | CONV_SUMS;

static void hold_to_naive(sample *t, const char *where)
{
    sample_want(t);
    result got;
    int before = test_bad;
    if (!run(t, all_passes, &got)) return;
    double tol = 3e-6;
    double ey = worst(got.y, t->y, count_y(&t->s)), ex = worst(got.dx, t->dx, count_x(&t->s)), ew = worst(got.dw, t->dw, count_w(&t->s));
    CHECK(ey <= tol);
    CHECK(ex <= tol);
    CHECK(ew <= tol);
    CHECK(worst_sum(t, &got) <= tol);
    result_drop(t, &got);
    if (test_bad > before) {
        fprintf(stderr, "  errors %g %g %g\n", ey, ex, ew);
        describe(t, where);
    }
}

/* ---- samples ---------------------------------------------------------------------------------------- */

static int pick(rng *r, const int *of, int n) { return of[rng_below(r, (uint32_t)n)]; }

static sample random_sample(uint64_t id)
{
    static const int channels[] = { 1, 2, 3, 4, 5, 7, 8, 10, 15, 16, 17, 24, 31, 32, 33, 40, 48, 64, 70 };
    static const int kernels[] = { 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 9, 11, 15 }, strides[] = { 1, 1, 1, 2, 2, 3 }, dilations[] = { 1, 1, 1, 2, 3 };
    for (uint32_t epoch = 0;; epoch++) {
        rng r = rng_at(2, RNG_TEST, epoch, id);
        conv_shape s = { .n = 1 + (int)rng_below(&r, 5), .h = 1 + (int)rng_below(&r, 20), .w = 1 + (int)rng_below(&r, 20),
                         .groups = 1, .kh = pick(&r, kernels, 13), .kw = pick(&r, kernels, 13) };
        s.c = pick(&r, channels, 19);
        s.o = pick(&r, channels, 19);
        if (rng_below(&r, 3)) s.kw = s.kh;
        s.sh = pick(&r, strides, 6);
        s.sw = rng_below(&r, 2) ? s.sh : pick(&r, strides, 6);
        s.dh = pick(&r, dilations, 5);
        s.dw = rng_below(&r, 2) ? s.dh : pick(&r, dilations, 5);
        s.pt = (int)rng_below(&r, (uint32_t)s.kh + 2);
        s.pb = (int)rng_below(&r, (uint32_t)s.kh + 1);
        s.pl = (int)rng_below(&r, (uint32_t)s.kw + 2);
        s.pr = (int)rng_below(&r, (uint32_t)s.kw + 1);
        if (!rng_below(&r, 3)) s.pt = s.pb = s.pl = s.pr = 0;
        switch (rng_below(&r, 4)) {
        case 0: s.o = s.groups = s.c; break;                          /* depthwise */
        case 1:
            s.groups = 2 + (int)rng_below(&r, 3);
            s.c *= s.groups;
            s.o *= s.groups;
            break;
        default: break;
        }
        if (!conv_shape_check(&s, NULL) || conv_macs(&s) > 3000000) continue;
        return (sample){ .s = s, .bias = rng_below(&r, 2), .residual = rng_below(&r, 2), .accumulate = rng_below(&r, 2),
                         .act = (act_kind)rng_below(&r, ACT_COUNT), .prologue = rng_below(&r, 2),
                         .before = (act_kind)rng_below(&r, ACT_SILU) };
    }
}

static const conv_shape known[] = {                                   /* what networks are made of, made smaller */
    { 2, 32, 32, 3, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },            /* CIFAR stem */
    { 3, 16, 16, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
    { 2, 16, 16, 16, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 },
    { 2, 16, 16, 16, 32, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1 },
    { 5, 8, 8, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
    { 1, 56, 56, 3, 64, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1 },            /* ImageNet stem */
    { 1, 7, 7, 128, 96, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
    { 1, 14, 14, 32, 32, 15, 15, 1, 1, 7, 7, 7, 7, 1, 1, 1 },         /* merged */
    { 4, 9, 9, 24, 24, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 1 },
    { 2, 14, 14, 96, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },           /* projection */
    { 8, 16, 16, 24, 144, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },          /* expansion: 2048 pixels */
    { 2, 28, 28, 1, 10, 5, 5, 1, 1, 0, 0, 0, 0, 1, 1, 1 },            /* one channel in, ten out */
    { 2, 28, 28, 144, 144, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 144 },
    { 2, 28, 28, 96, 96, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 96 },
    { 3, 7, 7, 72, 72, 7, 7, 1, 1, 3, 3, 3, 3, 1, 1, 72 },
    { 1, 12, 12, 20, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 20 },          /* two out-channels per in-channel */
    { 2, 3, 3, 16, 16, 3, 3, 1, 1, 9, 8, 7, 9, 1, 1, 1 },             /* padding wider than the image */
    { 1, 1, 40, 16, 16, 1, 9, 1, 2, 0, 0, 4, 4, 1, 1, 1 },            /* one row */
    { 1, 7, 6, 104, 40, 11, 11, 1, 1, 5, 5, 5, 5, 1, 1, 1 },          /* sums in blocks: with a copy, */
    { 2, 9, 9, 40, 424, 5, 5, 2, 2, 2, 2, 2, 2, 1, 1, 1 },            /* of the data gradient's phases, */
    { 1, 8, 7, 352, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },            /* in place */
    { 8, 7, 7, 40, 70, 7, 7, 1, 1, 0, 0, 0, 0, 1, 1, 1 },             /* fully connected: behind a map, */
    { 33, 1, 1, 1100, 10, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },          /* behind a mean, with many images, */
    { 1, 1, 1, 4500, 3, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },            /* with one */
    { 17, 3, 5, 7, 19, 3, 5, 2, 3, 0, 0, 0, 0, 1, 1, 1 },
    { 2, 6, 29, 8, 40, 4, 15, 1, 1, 0, 0, 9, 9, 1, 1, 1 },            /* strips with ends far outside */
    { 1, 4, 27, 240, 33, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 1 },           /* strips, sums in blocks */
    { 2, 15, 13, 161, 170, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },         /* many channels of both sides: 390 pixels, */
    { 1, 7, 7, 350, 81, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },            /* and 49 */
    { 2, 9, 32, 40, 40, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 40 },           /* the widest tiles of depthwise kernels, of 17 pixels */
    { 1, 9, 33, 24, 24, 5, 5, 2, 2, 2, 2, 2, 2, 1, 1, 24 },           /* and of 19 */
    { 1, 6, 32, 20, 20, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 20 },
    { 1, 11, 130, 3, 40, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 },           /* a stem: its tiles are a list, */
    { 1, 21, 70, 3, 45, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 },            /* and these strips are one */
    { 1, 9, 11, 40, 136, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1 },           /* lists of empty sums: phases of the data gradient, */
    { 1, 7, 6, 96, 256, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1 },            /* and with pairs of panels */
    { 2, 11, 13, 30, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },           /* twins: three loops of eight and three of two, */
    { 1, 9, 23, 44, 108, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },           /* behind panels of two vectors, */
    { 1, 10, 10, 24, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 2 },           /* in groups */
};
/* Random samples keep their numbers, and so their shapes, when known ones are added. */
enum { KNOWN = sizeof known / sizeof *known, FIRST_RANDOM = 25, RANDOM = 120, FEW = 24 };

static sample known_sample(int i)
{
    return (sample){ .s = known[i], .bias = true, .residual = i % 3 == 0, .accumulate = i % 2, .act = i % 2 ? ACT_RELU : ACT_NONE,
                      .prologue = true, .before = ACT_RELU6 };
}

static void every_sample(void (*body)(sample *, const char *), const char *where)
{
    const int n = KNOWN + (test_few() ? FEW : RANDOM);
    for (int i = 0; i < n; i++) {
        const int id = i < KNOWN ? i : FIRST_RANDOM + i - KNOWN;
        sample t = i < KNOWN ? known_sample(i) : random_sample((uint64_t)id);
        sample_fill(&t, (uint64_t)id);
        body(&t, where);
        sample_drop(&t);
    }
}

static bool start(const char *isa, const char *road, int threads)
{
    core_stop();
    err e = { 0 };
    return core_init(&(core_options){ .threads = threads, .isa = isa, .conv = road, .exact = true }, &e);
}

/* ---- tests -------------------------------------------------------------------------------------------- */

static void one(sample *t, const char *where) { hold_to_naive(t, where); }

static void convolution_equals_loops_on_scalar(void)
{
    if (!start("scalar", NULL, 2)) SKIP("scalar is not here");
    every_sample(one, "scalar");
}

static void convolution_equals_loops_on_avx2(void)
{
    if (!start("avx2", NULL, 2)) SKIP("no AVX2");
    every_sample(one, "avx2");
}

static void convolution_equals_loops_on_avx512(void)
{
    if (!start("avx512", NULL, 2)) SKIP("no AVX-512");
    every_sample(one, "avx512");
}

static void convolution_equals_loops_on_the_im2col_road(void)
{
    if (!start(NULL, "im2col", 2)) SKIP("no im2col");
    every_sample(one, "im2col");
}

static void the_reference_equals_loops(void)
{
    if (!start(NULL, "reference", 2)) SKIP("no reference");
    every_sample(one, "reference");
}

/* Results of all samples with so many threads, kept for comparison. */
static result kept[KNOWN + RANDOM];
static int at;

static void keep(sample *t, const char *where)
{
    (void)where;
    run(t, all_passes, &kept[at++]);
}

static void compare(sample *t, const char *where)
{
    result r, alone, *k = &kept[at++];
    int before = test_bad;
    run(t, all_passes, &r);
    run(t, CONV_FORWARD | CONV_WEIGHT_GRAD, &alone);      /* without sums: cut for so many threads */
    CHECK(!alone.parts && !memcmp(alone.y, k->y, count_y(&t->s) * sizeof *alone.y));
    CHECK(!memcmp(r.y, k->y, count_y(&t->s) * sizeof *r.y));
    CHECK(!memcmp(r.dx, k->dx, count_x(&t->s) * sizeof *r.dx));
    CHECK(!memcmp(r.dw, k->dw, count_w(&t->s) * sizeof *r.dw));
    CHECK(!r.parts || !memcmp(r.part, k->part, (size_t)(r.parts * ROW_PART(t->s.o)) * sizeof *r.part));
    if (test_bad > before) describe(t, where);
    result_drop(t, &r);
    result_drop(t, &alone);
}

static void drop_kept(sample *t, const char *where)
{
    (void)where;
    result_drop(t, &kept[at++]);
}

static void threads_do_not_change_a_bit_on(const char *road)
{
    at = 0;
    if (!start(NULL, road, 1)) { CHECK(false); return; }
    every_sample(keep, "1 thread");
    for (int threads = 2; threads <= 7; threads += 5) {
        at = 0;
        if (!start(NULL, road, threads)) { CHECK(false); return; }
        every_sample(compare, threads == 2 ? "2 threads" : "7 threads");
    }
    at = 0;
    every_sample(drop_kept, "");
}

static void threads_do_not_change_a_bit(void) { threads_do_not_change_a_bit_on("direct"); }
static void threads_do_not_change_a_bit_of_im2col(void) { threads_do_not_change_a_bit_on("im2col"); }

static int prologues;

static void same_without_prologue(sample *t, const char *where)
{
    if (!t->prologue || !conv_has_prologue(&t->s)) return;
    result lazy, eager;
    sample plain = *t;
    int before = test_bad;
    plain.prologue = false;
    plain.x = t->prepared;
    prologues++;
    run(t, CONV_FORWARD | CONV_WEIGHT_GRAD, &lazy);
    run(&plain, CONV_FORWARD | CONV_WEIGHT_GRAD, &eager);
    CHECK(!memcmp(lazy.y, eager.y, count_y(&t->s) * sizeof *lazy.y));
    CHECK(!memcmp(lazy.dw, eager.dw, count_w(&t->s) * sizeof *lazy.dw));
    if (test_bad > before) describe(t, where);
    result_drop(t, &lazy);
    result_drop(&plain, &eager);
}

static void a_prologue_changes_no_bit(void)
{
    prologues = 0;
    if (!start(NULL, NULL, 2)) { CHECK(false); return; }
    every_sample(same_without_prologue, "prologue");
    CHECK(prologues > 5);
}

/* n images at a time, into y. */
static void forward(const conv_shape *of, int n, const float *x, const float *w, float *y)
{
    err e = { 0 };
    conv_shape s = *of;
    s.n = n;
    conv_plan *p = conv_plan_new(&s, CONV_FORWARD, &e);
    CHECK_OK(p, e);
    if (!p) return;
    float *packed = mem_new(conv_packed_floats(p, CONV_FORWARD), sizeof *packed, NULL);
    float *scratch = mem_new(conv_scratch_floats(p) + 1, sizeof *scratch, NULL);
    conv_pack(p, CONV_FORWARD, w, packed);
    for (int i = 0; i < of->n; i += n)
        conv_forward(p, x + i * s.h * s.w * s.c, NULL, packed, NULL, y + i * conv_out_h(&s) * conv_out_w(&s) * s.o, scratch);
    mem_free(packed);
    mem_free(scratch);
    conv_plan_free(p);
}

/* No cache holds these: what is read is fetched before, what depthwise kernels write goes past the caches where it is
 * aligned. */
static void maps_that_are_far_equal_those_of_one_image(void)
{
    static const conv_shape far[] = {
        { 130, 28, 28, 32, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },  { 9, 13, 13, 20, 44, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },
        { 44, 112, 112, 12, 16, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 },
        { 84, 28, 28, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 32 },  { 134, 28, 28, 32, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 32 },
        { 50, 32, 32, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 48 },  { 70, 32, 32, 48, 48, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 48 },
        { 84, 28, 28, 40, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 40 },
    };
    static const char *const isa[] = { "scalar", "avx2", "avx512" };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
            if (!start(isa[k], NULL, 1)) continue;
            const conv_shape *s = &far[i];
            const size_t nx = count_x(s), nw = count_w(s), ny = count_y(s);
            float *x = noise(nx, 80 + i), *w = noise(nw, 90), *want = mem_new(ny, sizeof *want, NULL);
            float *got = mem_new(ny + 1, sizeof *got, NULL);
            forward(s, 1, x, w, want);
            for (int off = 0; off < 2; off++) {
                forward(s, s->n, x, w, got + off);
                CHECK(!memcmp(got + off, want, ny * sizeof *got));
            }
            CHECK(fenced_free(x, nx) && fenced_free(w, nw));
            mem_free(want);
            mem_free(got);
        }
}

/* With two threads each goes through less, which it need not fetch; tiles and their sums are the same. */
static void weight_gradients_of_far_maps_do_not_depend_on_threads(void)
{
    static const conv_shape far[] = {
        { 70, 32, 32, 48, 48, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 48 },  { 84, 32, 32, 40, 40, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 40 },
        { 44, 32, 32, 48, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 48 },
    };
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        sample t = { .s = far[i] };
        result one_thread, two;
        const size_t nw = count_w(&t.s);
        sample_fill(&t, 95 + i);
        sample_want(&t);
        if (!start(NULL, NULL, 1) || !run(&t, CONV_FORWARD | CONV_WEIGHT_GRAD, &one_thread)) { CHECK(false); return; }
        if (!start(NULL, NULL, 2) || !run(&t, CONV_FORWARD | CONV_WEIGHT_GRAD, &two)) { CHECK(false); return; }
        CHECK(worst(one_thread.dw, t.dw, nw) <= 3e-6);
        CHECK(!memcmp(one_thread.dw, two.dw, nw * sizeof *two.dw));
        result_drop(&t, &one_thread);
        result_drop(&t, &two);
        sample_drop(&t);
    }
}

/* Whether an output is one of few or of many, of a whole vector or a part: its sum is the same. (Not of twins, which add up
 * even and odd channels apart.) The last one's sums come in parts. */
static void an_out_channel_does_not_depend_on_how_many_there_are(void)
{
    enum { MOST = 64 };
    static const conv_shape many[] = {
        { 1, 5, 9, 13, MOST, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1 }, { 2, 7, 8, 20, MOST, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 },
        { 1, 9, 9, 1400, MOST, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 },
    };
    static const char *const isa[] = { "scalar", "avx2", "avx512" };
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
            if (!start(isa[k], NULL, 1)) continue;
            conv_shape s = many[i];
            const size_t nx = count_x(&s), nw = count_w(&s), ny = count_y(&s);
            float *x = noise(nx, 70 + i), *w = noise(nw, 75), *want = mem_new(ny, sizeof *want, NULL), *got = fenced_new(ny);
            forward(&s, s.n, x, w, want);
            for (s.o = 1; s.o <= 40; s.o++) {
                int differ = 0;
                forward(&s, s.n, x, w, got);
                for (size_t q = 0; q < ny / MOST; q++) differ += memcmp(got + q * (size_t)s.o, want + q * MOST, (size_t)s.o * sizeof *got) != 0;
                CHECK(!differ);
            }
            CHECK(fenced_free(x, nx) && fenced_free(w, nw) && fenced_free(got, ny));
            mem_free(want);
        }
}

static void a_nan_in_the_image_survives_the_activation(void)
{
    for (int act = ACT_NONE; act < ACT_COUNT; act++)
        for (int depthwise = 0; depthwise < 2; depthwise++) {
            if (!start(NULL, NULL, 1)) { CHECK(false); return; }
            sample t = { .s = { 1, 9, 9, 20, 20, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, depthwise ? 20 : 1 }, .bias = true, .act = (act_kind)act };
            sample_fill(&t, 5);
            t.prepared[(4 * 9 + 4) * 20 + 7] = NAN;
            result r;
            run(&t, CONV_FORWARD, &r);
            for (int i = 0; i < 81; i++) {
                bool near = abs(i / 9 - 4) <= 1 && abs(i % 9 - 4) <= 1;
                CHECK(isnan(r.y[i * 20 + 7]) == near);
                CHECK(isnan(r.y[i * 20 + 8]) == (near && !depthwise));
            }
            result_drop(&t, &r);
            sample_drop(&t);
        }
}

static void shapes_that_cannot_be_are_refused(void)
{
    const conv_shape good = { 1, 8, 8, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    conv_shape bad[] = { good, good, good, good, good, good };
    bad[0].c = 0;
    bad[1].groups = 3;
    bad[2].pl = -1;
    bad[3].kh = 11;
    bad[4].sw = 0;
    bad[5].dh = 0;
    err e = { 0 };
    CHECK(conv_shape_check(&good, &e));
    for (int i = 0; i < 6; i++) {
        e = (err){ 0 };
        CHECK(!conv_plan_new(&bad[i], CONV_FORWARD, &e));
        CHECK(e.code == ERR_CONFIG && e.msg[0]);
    }
}

static void a_plan_without_memory_is_an_error_and_leaks_nothing(void)
{
    if (!start(NULL, NULL, 1)) { CHECK(false); return; }
    const conv_shape shape[] = { { 2, 9, 9, 8, 8, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 }, { 2, 9, 9, 8, 8, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 8 } };
    for (int i = 0; i < 2; i++)
        for (int k = 1;; k++) {
            err e = { 0 };
            mem_fail_at(k);
            conv_plan *p = conv_plan_new(&shape[i], all_passes, &e);
            mem_fail_at(0);
            conv_plan_free(p);
            if (p) break;
            CHECK(e.code == ERR_NOMEM);
        }
}

static void the_road_is_named(void)
{
    err e = { 0 };
    conv_shape dense = known[1], depthwise = known[12];
    static const char *const want[][3] = { { "direct", "direct", "depthwise" }, { "im2col", "im2col", "im2col" } };
    for (int i = 0; i < 2; i++) {
        if (!start(NULL, want[i][0], 1)) { CHECK(false); continue; }
        conv_plan *p = conv_plan_new(&dense, CONV_FORWARD, &e), *q = conv_plan_new(&depthwise, CONV_FORWARD, &e);
        CHECK_TEXT(conv_plan_road(p), want[i][1]);
        CHECK_TEXT(conv_plan_road(q), want[i][2]);
        CHECK(!memcmp(conv_plan_shape(p), &dense, sizeof dense));
        conv_plan_free(p);
        conv_plan_free(q);
    }
    core_stop();
    CHECK(!core_init(&(core_options){ .threads = 1, .conv = "fastest" }, &e));
    CHECK(strstr(e.msg, "fastest"));
}

int main(void)
{
    RUN(convolution_equals_loops_on_scalar);
    RUN(convolution_equals_loops_on_avx2);
    RUN(convolution_equals_loops_on_avx512);
    RUN(convolution_equals_loops_on_the_im2col_road);
    RUN(the_reference_equals_loops);
    RUN(threads_do_not_change_a_bit);
    RUN(threads_do_not_change_a_bit_of_im2col);
    RUN(a_prologue_changes_no_bit);
    RUN(maps_that_are_far_equal_those_of_one_image);
    RUN(weight_gradients_of_far_maps_do_not_depend_on_threads);
    RUN(an_out_channel_does_not_depend_on_how_many_there_are);
    RUN(a_nan_in_the_image_survives_the_activation);
    RUN(shapes_that_cannot_be_are_refused);
    RUN(a_plan_without_memory_is_an_error_and_leaks_nothing);
    RUN(the_road_is_named);
    core_stop();
    END();
}
