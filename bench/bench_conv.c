/* Convolution, layer by layer: GFLOP/s of nominal work (padding counted) and the fraction of the
 * multiply-add rate measured before and after each sample; and the fraction of its time that reading what it reads
 * and writing what it writes takes by itself, from wherever repeating leaves it: a layer near 100 of
 * either can hardly be faster. Every shape is checked against the loops of kern_ref.c on a few outputs
 * before it is timed.
 *   bench_conv [--threads N] [--batch N] [--mode forward|dgrad|wgrad|all] [--isa NAME]
 *              [--conv ROAD] [--exact yes] [--far yes] [--only TEXT]
 * Repeating a layer keeps its weights near. With --far they come from memory, as they do in a network: one copy of many
 * after the other. */
#include "core/core.h"
#include "core/kern/kern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { const char *net; int h, c, o, k, stride; bool depthwise; } layer;

static const layer layers[] = {
    /* ResNet-20 and -56, 32×32 images */
    { "resnet20", 32, 3, 16, 3, 1, false },   { "resnet20", 32, 16, 16, 3, 1, false }, { "resnet20", 32, 16, 32, 3, 2, false },
    { "resnet20", 32, 16, 32, 1, 2, false },  { "resnet20", 16, 32, 32, 3, 1, false }, { "resnet20", 16, 32, 64, 3, 2, false },
    { "resnet20", 16, 32, 64, 1, 2, false },  { "resnet20", 8, 64, 64, 3, 1, false },
    /* what merging makes of them */
    { "merged20", 32, 16, 16, 5, 1, false },  { "merged20", 32, 16, 16, 9, 1, false }, { "merged20", 16, 32, 32, 5, 1, false },
    { "merged20", 16, 32, 32, 9, 1, false },  { "merged20", 8, 64, 64, 5, 1, false },  { "merged20", 8, 64, 64, 9, 1, false },
    /* ResNet-34, 224×224 */
    { "resnet34", 224, 3, 64, 7, 2, false },  { "resnet34", 56, 64, 64, 3, 1, false },   { "resnet34", 56, 64, 128, 3, 2, false },
    { "resnet34", 56, 64, 128, 1, 2, false }, { "resnet34", 28, 128, 128, 3, 1, false }, { "resnet34", 28, 128, 256, 3, 2, false },
    { "resnet34", 14, 256, 256, 3, 1, false }, { "resnet34", 14, 256, 512, 3, 2, false }, { "resnet34", 7, 512, 512, 3, 1, false },
    /* MobileNetV2 */
    { "mnv2", 224, 3, 32, 3, 2, false }, { "mnv2", 112, 32, 16, 1, 1, false }, { "mnv2", 112, 16, 96, 1, 1, false },
    { "mnv2", 56, 96, 24, 1, 1, false }, { "mnv2", 56, 24, 144, 1, 1, false }, { "mnv2", 56, 144, 24, 1, 1, false },
    { "mnv2", 28, 144, 32, 1, 1, false }, { "mnv2", 28, 32, 192, 1, 1, false }, { "mnv2", 28, 192, 32, 1, 1, false },
    { "mnv2", 14, 192, 64, 1, 1, false }, { "mnv2", 14, 64, 384, 1, 1, false }, { "mnv2", 14, 384, 64, 1, 1, false },
    { "mnv2", 14, 384, 96, 1, 1, false }, { "mnv2", 14, 96, 576, 1, 1, false }, { "mnv2", 14, 576, 96, 1, 1, false },
    { "mnv2", 7, 576, 160, 1, 1, false }, { "mnv2", 7, 160, 960, 1, 1, false }, { "mnv2", 7, 960, 160, 1, 1, false },
    { "mnv2", 7, 960, 320, 1, 1, false }, { "mnv2", 7, 320, 1280, 1, 1, false },
    { "mnv2 dw", 112, 32, 32, 3, 1, true }, { "mnv2 dw", 112, 96, 96, 3, 2, true }, { "mnv2 dw", 56, 144, 144, 3, 1, true },
    { "mnv2 dw", 56, 144, 144, 3, 2, true }, { "mnv2 dw", 28, 192, 192, 3, 1, true }, { "mnv2 dw", 28, 192, 192, 3, 2, true },
    { "mnv2 dw", 14, 384, 384, 3, 1, true }, { "mnv2 dw", 14, 576, 576, 3, 1, true }, { "mnv2 dw", 14, 576, 576, 3, 2, true },
    { "mnv2 dw", 7, 960, 960, 3, 1, true },
    /* merged kernels */
    { "merged dw", 56, 144, 144, 5, 1, true }, { "merged dw", 56, 144, 144, 7, 1, true }, { "merged dw", 28, 192, 192, 9, 1, true },
    { "merged dw", 28, 192, 192, 11, 1, true }, { "merged dw", 14, 384, 384, 7, 1, true },
    { "merged", 56, 24, 24, 3, 1, false }, { "merged", 56, 24, 24, 5, 1, false }, { "merged", 28, 32, 32, 5, 1, false },
    { "merged", 28, 32, 32, 7, 1, false }, { "merged", 14, 64, 64, 7, 1, false }, { "merged", 56, 64, 64, 5, 1, false },
    { "merged", 56, 64, 64, 11, 1, false }, { "merged", 28, 128, 128, 9, 1, false }, { "merged", 14, 256, 256, 5, 1, false },
    { "merged", 14, 256, 256, 9, 1, false }, { "merged", 14, 256, 256, 15, 1, false }, { "merged", 7, 512, 512, 5, 1, false },
    /* DDPM U-Net, 3×3 stages */
    { "ddpm", 32, 128, 128, 3, 1, false }, { "ddpm", 16, 256, 256, 3, 1, false }, { "ddpm", 16, 512, 256, 3, 1, false },
    { "ddpm", 8, 256, 256, 3, 1, false }, { "ddpm", 4, 256, 256, 3, 1, false },
};

static float *noise(size_t n, uint64_t id)
{
    float *p = mem_new(n, sizeof *p, NULL);
    rng r = rng_at(1, RNG_TEST, 0, id);
    for (size_t i = 0; p && i < n; i++) p[i] = (float)rng_uniform(&r) - 0.5f;
    return p;
}

/* ---- the ceiling ------------------------------------------------------------------------------------ */

static volatile double sink;

static void spin_piece(void *ctx, int64_t i, int worker)
{
    (void)i;
    (void)worker;
    sink = kern.fma_spin(*(const int64_t *)ctx);
}

/* Multiply-add rate of all threads without memory, GFLOP/s: for some 40 microseconds. */
static double peak(void)
{
    int64_t steps = 5000, pieces = 4 * par_threads(), t = clock_ns();
    par_for(pieces, spin_piece, &steps);
    return 2.0 * (double)(steps * pieces) * kern.fma_chains * kern.lanes / (double)(clock_ns() - t);
}

/* ---- one layer -------------------------------------------------------------------------------------- */

typedef struct { int threads, batch; bool exact, far; const char *mode, *isa, *conv, *only; } settings;

typedef struct {
    conv_shape s;
    conv_plan *plan;
    float *x, *w, *y, *packed, *scratch, *bias;
    size_t packed_floats;        /* of the pass's weights; none for the weight gradient */
    int copies, turn;            /* of packed; the one used last */
} bench;

enum { FAR_FLOATS_OF_WEIGHTS = 24 << 20 };      /* three times the last-level cache of the machines measured */

static void bench_free(bench *b)
{
    conv_plan_free(b->plan);
    mem_free(b->x);
    mem_free(b->w);
    mem_free(b->y);
    mem_free(b->packed);
    mem_free(b->scratch);
    mem_free(b->bias);
}

static size_t count(int a, int b, int c, int d) { return (size_t)a * (size_t)b * (size_t)c * (size_t)d; }

static bool pack_copies(bench *b, conv_pass which, bool far, err *e)
{
    b->copies = 1;
    if (which == CONV_WEIGHT_GRAD) return true;
    b->packed_floats = conv_packed_floats(b->plan, which);
    if (far) b->copies = (int)kern_max(1, (int64_t)(FAR_FLOATS_OF_WEIGHTS / b->packed_floats));
    b->packed = mem_new(b->packed_floats * (size_t)b->copies, sizeof(float), e);
    if (!b->packed) return false;
    conv_pack(b->plan, which, b->w, b->packed);
    for (int i = 1; i < b->copies; i++) memcpy(b->packed + (size_t)i * b->packed_floats, b->packed, b->packed_floats * sizeof(float));
    return true;
}

static bool bench_new(bench *b, const layer *l, const settings *o, conv_pass which, err *e)
{
    const int pad = l->k / 2, batch = o->batch;
    b->s = (conv_shape){ batch, l->h, l->h, l->c, l->o, l->k, l->k, l->stride, l->stride, pad, pad, pad, pad, 1, 1,
                         l->depthwise ? l->c : 1 };
    const conv_shape *s = &b->s;
    if (!(b->plan = conv_plan_new(s, which, e))) return false;
    b->x = noise(count(batch, l->h, l->h, l->c), 1);
    b->w = noise(count(l->o, l->c / s->groups, l->k, l->k), 2);
    b->y = noise(count(batch, conv_out_h(s), conv_out_w(s), l->o), 3);
    b->bias = noise((size_t)l->o, 4);
    b->scratch = mem_new(conv_scratch_floats(b->plan), sizeof(float), e);
    if (!b->x || !b->w || !b->y || !b->bias || !b->scratch) return err_set(e, ERR_NOMEM, "no memory for the arrays of a layer");
    return pack_copies(b, which, o->far, e);
}

static const float *next_weights(bench *b)
{
    b->turn = (b->turn + 1) % b->copies;
    return b->packed + (size_t)b->turn * b->packed_floats;
}

static void pass(bench *b, conv_pass which)
{
    conv_epilogue ep = { .bias = b->bias, .act = ACT_RELU };
    if (which == CONV_FORWARD) conv_forward(b->plan, b->x, NULL, next_weights(b), &ep, b->y, b->scratch);
    else if (which == CONV_DATA_GRAD) conv_data_grad(b->plan, b->y, next_weights(b), false, b->x, b->scratch);
    else conv_weight_grad(b->plan, b->x, NULL, b->y, false, b->w, b->scratch);
}

/* Some outputs of each pass against their definition. */
static double wrong(bench *b, conv_pass which)
{
    const conv_shape *s = &b->s;
    int OH = conv_out_h(s), OW = conv_out_w(s), cg = s->c / s->groups, og = s->o / s->groups;
    double worst = 0, scale = 1e-30;
    rng r = rng_at(3, RNG_TEST, 0, which);
    pass(b, which);
    for (int trial = 0; trial < 8; trial++) {
        int n = (int)rng_below(&r, (uint32_t)s->n), o = (int)rng_below(&r, (uint32_t)s->o), c = (int)rng_below(&r, (uint32_t)cg);
        int group = o / og, a0 = (int)rng_below(&r, (uint32_t)s->kh), b0 = (int)rng_below(&r, (uint32_t)s->kw);
        int h = (int)rng_below(&r, (uint32_t)(which == CONV_FORWARD ? OH : s->h));
        int w = trial & 1 ? 0 : (int)rng_below(&r, (uint32_t)(which == CONV_FORWARD ? OW : s->w));
        double sum = which == CONV_FORWARD ? (double)b->bias[o] : 0, got;
        if (which == CONV_WEIGHT_GRAD) {
            for (int i = 0; i < s->n; i++)
                for (int oh = 0; oh < OH; oh++)
                    for (int ow = 0; ow < OW; ow++) {
                        int ih = oh * s->sh - s->pt + a0, iw = ow * s->sw - s->pl + b0;
                        if (ih >= 0 && iw >= 0 && ih < s->h && iw < s->w)
                            sum += (double)b->x[count(i, s->h, s->w, s->c) + count(1, ih, s->w, s->c) + count(1, 1, iw, s->c) + (size_t)(group * cg + c)]
                                 * (double)b->y[count(i, OH, OW, s->o) + count(1, oh, OW, s->o) + count(1, 1, ow, s->o) + (size_t)o];
                    }
            got = (double)b->w[count(o, cg, s->kh, s->kw) + count(1, c, s->kh, s->kw) + (size_t)(a0 * s->kw + b0)];
        } else {
            for (int i = 0; i < s->kh; i++)
                for (int k = 0; k < s->kw; k++) {
                    int ih = which == CONV_FORWARD ? h * s->sh - s->pt + i : h + s->pt - i;
                    int iw = which == CONV_FORWARD ? w * s->sw - s->pl + k : w + s->pl - k;
                    if (which == CONV_FORWARD) {
                        if (ih < 0 || iw < 0 || ih >= s->h || iw >= s->w) continue;
                        for (int q = 0; q < cg; q++)
                            sum += (double)b->x[count(n, s->h, s->w, s->c) + count(1, ih, s->w, s->c) + count(1, 1, iw, s->c) + (size_t)(group * cg + q)]
                                 * (double)b->w[count(o, cg, s->kh, s->kw) + count(1, q, s->kh, s->kw) + (size_t)(i * s->kw + k)];
                    } else {
                        if (ih < 0 || iw < 0 || ih % s->sh || iw % s->sw || ih / s->sh >= OH || iw / s->sw >= OW) continue;
                        for (int q = group * og; q < (group + 1) * og; q++)
                            sum += (double)b->y[count(n, OH, OW, s->o) + count(1, ih / s->sh, OW, s->o) + count(1, 1, iw / s->sw, s->o) + (size_t)q]
                                 * (double)b->w[count(q, cg, s->kh, s->kw) + count(1, c, s->kh, s->kw) + (size_t)(i * s->kw + k)];
                    }
                }
            if (which == CONV_FORWARD && sum < 0) sum = 0;
            got = which == CONV_FORWARD
                ? (double)b->y[count(n, OH, OW, s->o) + count(1, h, OW, s->o) + count(1, 1, w, s->o) + (size_t)o]
                : (double)b->x[count(n, s->h, s->w, s->c) + count(1, h, s->w, s->c) + count(1, 1, w, s->c) + (size_t)(group * cg + c)];
        }
        worst = fmax(worst, fabs(got - sum));
        scale = fmax(scale, fabs(sum));
    }
    return worst / fmax(scale, sqrt((double)cg * s->kh * s->kw) / 16);
}

/* Reads [at, at + read) and writes [to, to + written) of floats: what a pass cannot do without. */
typedef struct { const float *at[2]; int64_t read[2]; float *to; int64_t written; } traffic;
enum { NEAR = 4096, TRAFFIC_PIECES = 32 };

static void traffic_piece(void *ctx, int64_t i, int worker)
{
    (void)worker;
    const traffic *t = ctx;
    float near[NEAR] = { 0 };
    for (int k = 0; k < 2; k++)
        for (int64_t f = t->read[k] * i / TRAFFIC_PIECES, end = t->read[k] * (i + 1) / TRAFFIC_PIECES; f < end; f += NEAR) {
            memcpy(near, t->at[k] + f, (size_t)kern_min(NEAR, end - f) * sizeof *near);
            sink = (double)near[0];
        }
    for (int64_t f = t->written * i / TRAFFIC_PIECES, end = t->written * (i + 1) / TRAFFIC_PIECES; f < end; f += NEAR)
        memcpy(t->to + f, near, (size_t)kern_min(NEAR, end - f) * sizeof *near);
}

static void only_traffic(bench *b, conv_pass which)
{
    const conv_shape *s = &b->s;
    const int64_t x = (int64_t)count(s->n, s->h, s->w, s->c), y = (int64_t)count(s->n, conv_out_h(s), conv_out_w(s), s->o);
    const int64_t w = (int64_t)count(s->o, s->c / s->groups, s->kh, s->kw), packed = (int64_t)b->packed_floats;
    traffic t = which == CONV_FORWARD   ? (traffic){ { b->x, next_weights(b) }, { x, packed }, b->y, y }
              : which == CONV_DATA_GRAD ? (traffic){ { b->y, next_weights(b) }, { y, packed }, b->x, x }
                                        : (traffic){ { b->x, b->y }, { x, y }, b->w, w };
    par_for(TRAFFIC_PIECES, traffic_piece, &t);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

enum { SAMPLES = 200, FEWEST = 9, SAMPLE_NS = 20000 };

/* Passes that make a sample: of one that is over in a microsecond, reading the clock and a cold start would be a part. */
static int passes_of_sample(bench *b, void (*what)(bench *, conv_pass), conv_pass which)
{
    what(b, which);
    const int64_t start = clock_ns();
    what(b, which);
    return (int)kern_max(1, SAMPLE_NS / kern_max(1, clock_ns() - start));
}

/* Seconds and peaks in turn, for a shared machine changes its pace within a run. Both sorted. Returns how many. */
static int take_samples(bench *b, void (*what)(bench *, conv_pass), conv_pass which, double *seconds, double *share)
{
    const int passes = passes_of_sample(b, what, which);
    double total = 0;
    int n = 0;
    for (; n < FEWEST || (n < SAMPLES && total < 0.15); n++) {
        const double before = peak();
        int64_t start = clock_ns();
        for (int i = 0; i < passes; i++) what(b, which);
        seconds[n] = (double)(clock_ns() - start) * 1e-9 / passes;
        share[n] = 2e-9 * (double)conv_macs(&b->s) / seconds[n] / fmax(before, peak());
        total += seconds[n];
    }
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    qsort(share, (size_t)n, sizeof *share, by_value);
    return n;
}

/* seconds: in which nobody else was in the way, the tenth percentile; share of the peak: the median. */
typedef struct { double seconds, share; } speed;

static speed speed_of(bench *b, void (*what)(bench *, conv_pass), conv_pass which)
{
    double seconds[SAMPLES], share[SAMPLES];
    const int n = take_samples(b, what, which, seconds, share);
    return (speed){ seconds[n / 10], share[n / 2] };
}

/* ---- all of them ------------------------------------------------------------------------------------ */

static const struct { const char *name; conv_pass pass; } modes[] = {
    { "forward", CONV_FORWARD }, { "dgrad", CONV_DATA_GRAD }, { "wgrad", CONV_WEIGHT_GRAD },
};

static bool read_settings(int argc, char **argv, settings *o)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) return false;
        if (!strcmp(argv[i], "--threads")) o->threads = atoi(value);
        else if (!strcmp(argv[i], "--batch")) o->batch = atoi(value);
        else if (!strcmp(argv[i], "--mode")) o->mode = value;
        else if (!strcmp(argv[i], "--isa")) o->isa = value;
        else if (!strcmp(argv[i], "--conv")) o->conv = value;
        else if (!strcmp(argv[i], "--exact")) o->exact = !strcmp(value, "yes");
        else if (!strcmp(argv[i], "--far")) o->far = !strcmp(value, "yes");
        else if (!strcmp(argv[i], "--only")) o->only = value;
        else return false;
    }
    return o->batch > 0;
}

static bool bench_layer(const layer *l, const settings *o, err *e)
{
    bool ok = true;
    printf("%-9s %3d² %4d→%-4d k%-2d s%d", l->net, l->h, l->c, l->o, l->k, l->stride);
    for (int m = 0; ok && m < 3; m++) {
        if (strcmp(o->mode, "all") && strcmp(o->mode, modes[m].name)) continue;
        bench b = { 0 };
        ok = bench_new(&b, l, o, modes[m].pass, e);
        double error = ok ? wrong(&b, modes[m].pass) : 0;
        if (ok && !(error < 5e-5)) ok = err_set(e, ERR_INTERNAL, "%s is wrong by %g", modes[m].name, error);
        if (ok) {
            const speed all = speed_of(&b, pass, modes[m].pass), memory = speed_of(&b, only_traffic, modes[m].pass);
            printf("  %s %9.4f ms %6.1f GFLOP/s %3.0f %%, memory %3.0f %%", modes[m].name, all.seconds * 1e3,
                   2e-9 * (double)conv_macs(&b.s) / all.seconds, 100 * all.share, 100 * all.share / memory.share);
        }
        bench_free(&b);
    }
    printf("\n");
    fflush(stdout);
    return ok;
}

int main(int argc, char **argv)
{
    settings o = { .threads = 1, .batch = 1, .mode = "all" };
    err e = { 0 };
    if (!read_settings(argc, argv, &o)) {
        fprintf(stderr, "usage: bench_conv [--threads N] [--batch N] [--mode forward|dgrad|wgrad|all] [--isa NAME]"
                        " [--conv ROAD] [--exact yes] [--far yes] [--only TEXT]\n");
        return ERR_USAGE;
    }
    if (!core_init(&(core_options){ .threads = o.threads, .isa = o.isa, .conv = o.conv, .exact = o.exact }, &e)) goto failed;
    double top = 0;
    for (int i = 0; i < SAMPLES; i++) top = fmax(top, peak());
    printf("%s, %d threads, batch %d, road %s: multiply-add peak %.1f GFLOP/s\n", isa_names[core_isa()], par_threads(), o.batch,
           core_conv_road(), top);
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        if ((!o.only || strstr(layers[i].net, o.only)) && !bench_layer(&layers[i], &o, &e)) goto failed;
    core_stop();
    return 0;
failed:
    fprintf(stderr, "bench_conv: %s\n", e.msg);
    core_stop();
    return e.code ? (int)e.code : ERR_INTERNAL;
}
