/* Augmentation: every operation equals PIL's to the last bit, and what is drawn depends on seed, epoch
 * and image alone. tests/golden/make_pil.py wrote the golden pictures and tells what is in them. */
#include "core/io.h"
#include "data/parts.h"
#include "tests/data_files.h"

/* ---- operations ------------------------------------------------------------------------------- */

static canvas canvas_of(const tf_tensor *t) {
    size_t n = (size_t)tf_count(t);
    canvas k = { (int)t->dim[0], (int)t->dim[1], (int)t->dim[2], malloc(n), malloc(n),
                 { 124, 116, 104 } };
    memcpy(k.x, t->data, n);
    return k;
}

static const pixel_op *op_named(const char *name, size_t len) {
    for (int i = 0; i < pixel_op_count; i++)
        if (!strncmp(pixel_ops[i].name, name, len) && !pixel_ops[i].name[len]) return &pixel_ops[i];
    return NULL;
}

static void every_operation_equals_pil_bit_for_bit(void) {
    tensor_file f;
    err e = { 0 };
    CHECK_OK(tensor_file_open(&f, "tests/golden/pil_ops.safetensors", &e), e);
    if (!f.n) return;
    int cases[32] = { 0 };
    for (int i = 0; i < f.n; i++) {
        char picture[16] = "";
        const char *op = strchr(f.tensor[i].name, '/');
        if (!op) continue;
        memcpy(picture, f.tensor[i].name, (size_t)(op - f.tensor[i].name));
        const char *number = strchr(++op, '/');
        const tf_tensor *from = tensor_file_find(&f, picture);
        const pixel_op *row = op_named(op, (size_t)(number - op));
        CHECK(from && row);
        if (!from || !row) continue;
        canvas k = canvas_of(from);
        row->run(&k, strtod(number + 1, NULL));
        int most = 0, wrong = 0;
        for (int64_t j = 0; j < tf_count(from); j++) {
            int d = abs((int)k.x[j] - (uint8_t)f.tensor[i].data[j]);
            wrong += d > 0;
            most = d > most ? d : most;
        }
        if (wrong) fprintf(stderr, "%s: %d values, most %d\n", f.tensor[i].name, wrong, most);
        CHECK(!wrong);
        cases[row - pixel_ops]++;
        free(k.x), free(k.spare);
    }
    for (int i = 0; i < pixel_op_count; i++) CHECK(cases[i] >= 3);
    tensor_file_close(&f);
}

/* ---- RandAugment ------------------------------------------------------------------------------ */

static void randaug_is_read_and_printed_as_timm_writes_it(void) {
    data_randaug a, b;
    err e = { 0 };
    char text[128];
    CHECK_OK(data_randaug_parse(&a, "rand-m9-n3-mstd0.5-inc1", &e), e);
    CHECK(a.m == 9 && a.n == 3 && a.mstd == 0.5 && a.inc == 1 && a.p == 0.5 && a.mmax == 10);
    data_randaug_print(&a, text);
    CHECK_OK(data_randaug_parse(&b, text, &e), e);
    CHECK(!memcmp(&a, &b, sizeof a));
    CHECK_OK(data_randaug_parse(&a, "rand", &e), e);
    CHECK(a.m == 10 && a.n == 2 && a.mstd == 0 && a.inc == 0);
    CHECK_OK(data_randaug_parse(&a, "none", &e), e);
    data_randaug_print(&a, text);
    CHECK(a.n == 0 && !strcmp(text, "none"));
    static const char *const wrong[] = { "", "rand-", "rand9", "rand-m", "rand-m9x", "rand-q3",
        "rand-m-9", "rand-n1.5", "rand-n0", "rand-inc2", "rand-p2", "augmix-m3", "rand-m9--n2", "rand-mnan" };
    for (int i = 0; i < 14; i++)
        CHECK(!data_randaug_parse(&a, wrong[i], &e) && e.code == ERR_USAGE && strstr(e.msg, wrong[i]));
}

/* Least and greatest number of each kind that timm gives for a magnitude from 0 to 10. */
static const struct { pixel_number kind; double lo, hi; } ranges[8] = {
    { PIXEL_NOTHING, 0, 0 }, { PIXEL_DEGREES, -30, 30 }, { PIXEL_SHEAR, -.3, .3 },
      { PIXEL_SHIFT, -.45, .45 }, { PIXEL_BITS, 0, 4 }, { PIXEL_THRESHOLD, 0, 256 },
      { PIXEL_ADD, 0, 110 }, { PIXEL_FACTOR, .1, 1.9 },
};

static void half_of_the_draws_do_something_and_all_operations_come(void) {
    for (int inc = 0; inc < 2; inc++) {
        const data_randaug a = { .n = 1, .m = 10, .mstd = 101, .mmax = 10, .inc = inc, .p = 0.5 };
        int seen[32] = { 0 }, done = 0, draws = 20000;
        double lo[8], hi[8];
        for (int i = 0; i < 8; i++) lo[i] = 1e9, hi[i] = -1e9;
        for (int i = 0; i < draws; i++) {
            rng r = rng_at(5, RNG_AUGMENT, 0, (uint64_t)i);
            double v;
            const pixel_op *op = randaug_draw(&a, &r, &v);
            if (!op) continue;
            done++;
            seen[op - pixel_ops]++;
            lo[op->number] = fmin(lo[op->number], v);
            hi[op->number] = fmax(hi[op->number], v);
        }
        CHECK_CLOSE(done, draws / 2, 300);
        for (int i = 0; i < pixel_op_count; i++)
            CHECK_CLOSE(seen[i], done / pixel_op_count, 130);
        for (int i = 0; i < 8; i++) {
            double width = ranges[i].hi - ranges[i].lo, most = width > 10 ? 4 + width / 50 : .35 * width;
            CHECK(lo[ranges[i].kind] >= ranges[i].lo - 1e-12);
            CHECK(hi[ranges[i].kind] <= ranges[i].hi + 1e-12);
            CHECK_CLOSE(lo[ranges[i].kind], ranges[i].lo, most);
            CHECK_CLOSE(hi[ranges[i].kind], ranges[i].hi, most);
        }
    }
}

static void a_magnitude_is_what_timm_makes_of_it(void) {
    static const double plain[8] = { 0, 27, .27, .405, 3, 230, 99, 1.72 };
    static const double rising[8] = { 0, 27, .27, .405, 1, 26, 99, 1.81 };
    for (int inc = 0; inc < 2; inc++) {
        const data_randaug a = { .n = 1, .m = 9, .mmax = 10, .inc = inc, .p = 1 };
        for (int i = 0; i < 500; i++) {
            rng r = rng_at(5, RNG_AUGMENT, 0, (uint64_t)i);
            double v;
            const pixel_op *op = randaug_draw(&a, &r, &v);
            double want = (inc ? rising : plain)[op->number];
            if (inc && op->number == PIXEL_FACTOR && v < 1) want = 0.19;
            CHECK_CLOSE(fabs(v), want, 1e-12);
        }
    }
}

/* ---- in a loader ------------------------------------------------------------------------------- */

static void operations_that_never_come_leave_crops_and_mirrors_as_they_were(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=40", "train", 0);
    loader_options o = options_for(s), q;
    o.augment = (data_augment){ .pad = 5, .hflip = .5 };
    q = o;
    q.augment.aa = (data_randaug){ .n = 2, .m = 9, .mmax = 10, .p = 0 };
    data_loader *a = loader_ok(&o), *b = loader_ok(&q);
    for (int i = 0; i < 3; i++) {
        data_batch x, y;
        err e = { 0 };
        CHECK_OK(loader_next(a, &x, &e), e);
        CHECK_OK(loader_next(b, &y, &e), e);
        CHECK(x.n == y.n && !memcmp(x.x, y.x, sizeof(float) * (size_t)x.n * 16 * 16 * 3));
    }
    loader_free(a), loader_free(b);
    data_free(s);
}

static void everything_together_does_not_depend_on_workers(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=90", "train", 0);
    loader_options o = options_for(s);
    o.augment = (data_augment){ .rrc_min = .3, .hflip = .5, .erase = .3, .mixup = .3, .cutmix = 1,
                                .jitter = .4 };
    err e = { 0 };
    CHECK_OK(data_randaug_parse(&o.augment.aa, "rand-m9-n3-mstd0.5", &e), e);
    data_loader *l[3];
    for (int i = 0; i < 3; i++) o.workers = 1 + 2 * i, o.shuffle = true, l[i] = loader_ok(&o);
    int boxes = 0, mixes = 0;
    for (int k = 0; k < 30; k++) {
        data_batch b[3];
        for (int i = 0; i < 3; i++) CHECK_OK(loader_next(l[i], &b[i], &e), e);
        for (int i = 1; i < 3; i++)
            CHECK(b[i].n == b[0].n && b[i].lam == b[0].lam &&
                  (!b[0].n || !memcmp(b[i].x, b[0].x, sizeof(float) * (size_t)b[0].n * 768)));
        double pixels = (double)b[0].lam * 256;
        if (b[0].n) *(pixels == floor(pixels) ? &boxes : &mixes) += 1;
    }
    CHECK(boxes >= 6 && mixes >= 6);
    for (int i = 0; i < 3; i++) loader_free(l[i]);
    data_free(s);
}

static void cutmix_exchanges_a_box_whose_share_is_lam(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=40", "train", 0);
    loader_options o = options_for(s), plain = options_for(s);
    o.augment.cutmix = 1, o.batch = plain.batch = 5;
    data_loader *l = loader_ok(&o), *p = loader_ok(&plain);
    double sum = 0;
    for (int k = 0; k < 71; k++) {                       /* 8 batches and an end */
        data_batch b, x;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        CHECK_OK(loader_next(p, &x, &e), e);
        if (!b.n) continue;
        sum += (double)b.lam / 63;
        for (int i = 0; i < b.n; i++) {
            int other = 0, y0 = 16, y1 = -1, x0 = 16, x1 = -1;
            for (int j = 0; j < 256; j++) {
                const float *here = b.x + (i * 256 + j) * 3, *mine = x.x + (i * 256 + j) * 3,
                            *mirror = x.x + ((b.n - 1 - i) * 256 + j) * 3;
                if (!memcmp(here, mine, 12)) continue;
                CHECK(!memcmp(here, mirror, 12));
                other++;
                y0 = j / 16 < y0 ? j / 16 : y0, y1 = j / 16 > y1 ? j / 16 : y1;
                x0 = j % 16 < x0 ? j % 16 : x0, x1 = j % 16 > x1 ? j % 16 : x1;
            }
            int box = (int)lround((1 - (double)b.lam) * 256);
            CHECK(other <= box && b.label2[i] == b.label[b.n - 1 - i]);
            if (other) CHECK((y1 - y0 + 1) * (x1 - x0 + 1) <= box);
            if (i != 2) CHECK(other > box / 3);          /* equal pixels are few */
        }
    }
    CHECK_CLOSE(sum, .73, .1);                           /* boxes are cut at the border and rounded down */
    loader_free(l), loader_free(p);
    data_free(s);
}

static void jitter_changes_brightness_contrast_and_saturation_within_bounds(void) {
    double lo = 1e9, hi = 0, grey_lo = 1e9, grey_hi = 0;
    for (int i = 0; i < 2000; i++) {
        uint8_t x[6] = { 100, 100, 100, 100, 100, 100 }, y[6] = { 150, 100, 50, 150, 100, 50 }, z[6];
        canvas k = { 1, 2, 3, x, z, { 0 } };
        rng r = rng_at(3, RNG_AUGMENT, 0, (uint64_t)i);
        pixel_jitter(&k, &r, 0.4);
        CHECK(x[0] == x[1] && x[1] == x[2]);
        lo = fmin(lo, x[0]), hi = fmax(hi, x[0]);
        k.x = y;
        r = rng_at(3, RNG_AUGMENT, 0, (uint64_t)i);
        pixel_jitter(&k, &r, 0.4);
        double spread = (double)(y[0] - y[2]) / x[0];    /* contrast × saturation, before brightness */
        grey_lo = fmin(grey_lo, spread), grey_hi = fmax(grey_hi, spread);
    }
    CHECK(lo >= 60 && lo < 64 && hi <= 140 && hi > 136);
    CHECK(grey_lo > .3 && grey_lo < .5 && grey_hi < 2 && grey_hi > 1.6);
}

/* Where images are mirrored, stick out of the window, and are not whole steps wide. */
static void vectors_normalise_to_the_bits_of_the_definition(void) {
    enum { SIDE = 75 };
    static const data_prep preps[] = {
        { SIDE, SIDE, 3, 0, { 0.485f, 0.456f, 0.406f }, { 0.229f, 0.224f, 0.225f } },
        { SIDE, SIDE, 3, 0, { 0, 0, 0 }, { 1, 1, 1 } },
        { SIDE, SIDE, 3, 0, { -3.7f, 0.1f, 1e-9f }, { 1e-3f, 7.3f, 1e30f } },
    };
    static uint8_t x[SIDE * SIDE * 3];
    static float got[SIDE * SIDE * 3];
    rng r = rng_at(3, RNG_TEST, 0, 0);
    err e = { 0 };
    CHECK_OK(core_init(&(core_options){ .threads = 1, .isa = test_isa() }, &e), e);
    for (int trial = 0; trial < 60; trial++) {
        const data_prep *p = &preps[trial % 3];
        prep_table t;
        prep_table_init(&t, p);
        CHECK(t.by_product || trial % 3 == 2);
        const set_view v = { SIDE, SIDE, 3, x, NULL };
        const data_augment a = { .pad = trial % 20, .hflip = (double)(trial / 3 % 2) };
        for (size_t i = 0; i < sizeof x; i++) x[i] = (uint8_t)rng_u32(&r);
        rng draws = rng_at(5, RNG_AUGMENT, 0, (uint64_t)trial), again = draws;
        CHECK_OK(prep_image(&t, &a, &draws, &v, got, &e), e);
        int down = 0, right = 0;
        if (a.pad) down = (int)rng_below(&again, 2 * (uint32_t)a.pad + 1) - a.pad, right = (int)rng_below(&again, 2 * (uint32_t)a.pad + 1) - a.pad;
        bool same = true;
        for (int i = 0; i < SIDE * SIDE * 3; i++) {
            int c = i % 3, row = i / 3 / SIDE + down, column = a.hflip > 0 ? SIDE - 1 - i / 3 % SIDE : i / 3 % SIDE;
            column += right;
            bool inside = row >= 0 && row < SIDE && column >= 0 && column < SIDE;
            float byte = inside ? x[(row * SIDE + column) * 3 + c] : 0, want = (byte / 255.0f - p->mean[c]) / p->std[c];
            same = same && !memcmp(&want, &got[i], sizeof want);
        }
        CHECK(same);
    }
    core_stop();
}

int main(void) {
    RUN(every_operation_equals_pil_bit_for_bit);
    RUN(randaug_is_read_and_printed_as_timm_writes_it);
    RUN(half_of_the_draws_do_something_and_all_operations_come);
    RUN(a_magnitude_is_what_timm_makes_of_it);
    RUN(operations_that_never_come_leave_crops_and_mirrors_as_they_were);
    RUN(everything_together_does_not_depend_on_workers);
    RUN(cutmix_exchanges_a_box_whose_share_is_lam);
    RUN(vectors_normalise_to_the_bits_of_the_definition);
    RUN(jitter_changes_brightness_contrast_and_saturation_within_bounds);
    END();
}
