/* From files to floats: images per second of one thread, each way of preparing them beside the others.
 * Every way makes all images of a split a few times, after once that is not counted (the first reader of
 * a mapped shard waits for its pages); decoded images are not kept, as in an epoch over a set that memory
 * does not hold. One line of key=value words per way: the median, the slowest and the fastest time through.
 *   bench_data [--data DIR] [--split train|val] [--limit N] */
#include "data/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct way { const char *name; data_augment augment; const char *aa; } ways[] = {
    { "evaluate", { 0 }, NULL },
    { "crop+flip", { .rrc_min = 0.08, .hflip = 0.5 }, NULL },
    { "crop+flip+jitter", { .rrc_min = 0.08, .hflip = 0.5, .jitter = 0.4 }, NULL },
    { "crop+flip+randaugment+erase", { .rrc_min = 0.08, .hflip = 0.5, .erase = 0.25 },
      "rand-m9-n2-mstd0.5" },
};
enum { WAYS = sizeof ways / sizeof *ways, PASSES = 5 };

/* Seconds to prepare every image once, or only to decode it (a NULL). */
static double once(const data_set *s, const data_augment *a, float *x)
{
    prep_table t;
    err e = { 0 };
    data_prep p = data_default_prep(s);
    prep_table_init(&t, &p);
    int64_t start_ns = clock_ns();
    for (int64_t i = 0; i < data_count(s); i++) {
        set_view v;
        rng r = rng_at(1, RNG_AUGMENT, 0, (uint64_t)i);
        if (!set_look(s, i, &v, &e) || (a && !prep_image(&t, a, &r, &v, x, &e))) {
            fprintf(stderr, "bench_data: %s\n", e.msg);
            exit(1);
        }
        mem_free(v.own);
    }
    return (double)(clock_ns() - start_ns) * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(const char *data, const char *way, const data_set *s, const data_augment *a, float *x)
{
    double seconds[PASSES], n = (double)data_count(s);
    once(s, a, x);
    for (int i = 0; i < PASSES; i++) seconds[i] = once(s, a, x);
    qsort(seconds, PASSES, sizeof *seconds, by_value);
    printf("bench=data data=%s way=%s images=%.0f images_per_s=%.0f slowest=%.0f fastest=%.0f\n", data, way, n,
           n / seconds[PASSES / 2], n / seconds[PASSES - 1], n / seconds[0]);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const char *data = "../shared/data/imagenette-224", *split = "val";
    data_options o = { .limit = 300, .seed = 1, .forget = true };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--data")) data = argv[i + 1];
        else if (!strcmp(argv[i], "--split")) split = argv[i + 1];
        else if (!strcmp(argv[i], "--limit")) o.limit = atoll(argv[i + 1]);
        else argc = 0;
    }
    if (argc % 2 == 0) {
        fprintf(stderr, "usage: bench_data [--data DIR] [--split train|val] [--limit N]\n");
        return 64;
    }
    mem_keep();                                          /* as the program does */
    err e = { 0 };
    if (!core_init(&(core_options){ .threads = 1 }, &e)) return 1;
    data_set *s = data_open(data, split, &o, &e);
    if (!s) {
        printf("bench=data skipped: %s\n", e.msg);
        return 0;
    }
    data_prep p = data_default_prep(s);
    float *x = mem_new((size_t)p.h * (size_t)p.w * (size_t)p.c, sizeof *x, NULL);
    if (!x) return 1;
    bench(data, "decode", s, NULL, x);
    for (int i = 0; i < WAYS; i++) {
        data_augment a = ways[i].augment;
        if (ways[i].aa && !data_randaug_parse(&a.aa, ways[i].aa, &e)) return 1;
        bench(data, ways[i].name, s, &a, x);
    }
    mem_free(x);
    data_free(s);
    return 0;
}
