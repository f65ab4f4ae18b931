/* Sets and loaders: what is read, what is refused, and that batches are the same whoever makes them. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "core/core.h"
#include "data/data.h"
#include "tests/test.h"

/* ---- a folder for each test --------------------------------------------------------------------------- */

static char dir[64];

static void make_dir(void) {
    strcpy(dir, "/tmp/lm_data_XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
}

static void remove_dir(void) {
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK(system(command) == 0);
}

static const char *in_dir(const char *name) {
    static char path[4][256];
    static int k;
    k = (k + 1) % 4;
    snprintf(path[k], sizeof path[k], "%s/%s", dir, name);
    return path[k];
}

static void put_file(const char *name, const void *data, size_t n) {
    char path[256];
    err e = { 0 };
    snprintf(path, sizeof path, "%s", in_dir(name));
    *strrchr(path, '/') = 0;
    CHECK_OK(file_make_dirs(path, &e), e);
    CHECK_OK(file_write(in_dir(name), data, n, &e), e);
}

/* A picture of one colour with a bright pixel in a corner. */
static void put_png(const char *name, int h, int w, int value) {
    uint8_t *x = calloc((size_t)(h * w), 3);
    memset(x, value, (size_t)(h * w * 3));
    x[0] = 255;
    char path[256];
    err e = { 0 };
    snprintf(path, sizeof path, "%s", in_dir(name));
    *strrchr(path, '/') = 0;
    CHECK_OK(file_make_dirs(path, &e), e);
    data_image im = { h, w, 3, x };
    CHECK_OK(image_write_png(in_dir(name), &im, &e), e);
    free(x);
}

static data_set *open_ok(const char *spec, const char *split, int64_t limit) {
    err e = { 0 };
    data_options o = { .limit = limit, .seed = 7 };
    data_set *s = data_open(spec, split, &o, &e);
    CHECK_OK(s != NULL, e);
    return s;
}

static void refuse(const char *spec, const char *split, err_code code, const char *word) {
    err e = { 0 };
    data_set *s = data_open(spec, split, NULL, &e);
    if (s || e.code != code || !strstr(e.msg, word))
        fprintf(stderr, "%s: wanted code %d and \"%s\", got %d: %s\n", spec, (int)code, word, (int)e.code, e.msg);
    CHECK(!s && e.code == code && strstr(e.msg, word));
    data_free(s);
}

/* ---- preprocessing as text ---------------------------------------------------------------------------- */

static void prep_survives_print_and_parse(void) {
    const data_prep p[] = {
        { 224, 192, 3, 256, { .485f, .456f, .406f }, { .229f, .224f, .225f } },
        { 28, 28, 1, 0, { .1f }, { 1.0f / 3 } },
    };
    for (int i = 0; i < 2; i++) {
        char text[256];
        data_prep q;
        err e = { 0 };
        data_prep_print(&p[i], text);
        CHECK_OK(data_prep_parse(&q, text, &e), e);
        CHECK(!memcmp(&p[i], &q, sizeof q));
    }
    char text[256];
    data_prep_print(&p[1], text);
    CHECK_TEXT(text, "size=28,28,1 resize=0 mean=0.1 std=0.33333334");
}

static void a_wrong_prep_is_refused(void) {
    static const char *const wrong[] = {
        "", "size=32,32,3", "size=32,32 resize=0 mean=0 std=1", "size=32,32,1 resize=0 mean=0,0,0 std=1",
        "size=32,32,1 resize=0 mean=0 std=0", "size=32,32,1 resize=0 mean=0 std=-1",
        "size=32,32,1 resize=0 mean=nan std=1", "size=32,32,1 resize=0 mean=0 std=1 more=1",
        "size=32,32,1 resize=0 mean=0 std=1 std=1", "size=32,32,2 resize=0 mean=0,0 std=1,1",
        "size=32,32,1 resize=31 mean=0 std=1", "size=32,32,1.5 resize=0 mean=0 std=1",
        "size=0,32,1 resize=0 mean=0 std=1", "size=32,32,1 resize=0 mean=0 std=1x",
        "size=32,32,1 resize=0 mean=0, std=1", "size=32,32,1 resize=0 mean= 0 std=1",
        "size=32,32,1,4 resize=0 mean=0 std=1", "size=32,32,1 resize=0 mean=0",
        "size=99999999999,32,1 resize=0 mean=0 std=1",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        data_prep p;
        err e = { 0 };
        if (data_prep_parse(&p, wrong[i], &e)) fprintf(stderr, "accepted: %s\n", wrong[i]);
        CHECK(e.code == ERR_DATA && strstr(e.msg, "preprocessing"));
    }
}

/* ---- CIFAR-10 ------------------------------------------------------------------------------------------ */

static void put_cifar(const char *name, int records, int first_label) {
    uint8_t *p = calloc((size_t)records, 3073);
    for (int r = 0; r < records; r++) {
        p[r * 3073] = (uint8_t)((first_label + r) % 10);
        for (int k = 0; k < 3072; k++) p[r * 3073 + 1 + k] = (uint8_t)(r * 5 + k / 1024 * 60 + k % 1024 % 32 + k % 1024 / 32);
    }
    put_file(name, p, (size_t)records * 3073);
    free(p);
}

static void cifar_batches_are_read_in_the_order_of_their_names(void) {
    make_dir();
    put_cifar("data_batch_2.bin", 4, 3);
    put_cifar("data_batch_1.bin", 20, 0);
    put_cifar("test_batch.bin", 10, 0);
    put_file("batches.meta.txt", "aeroplane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n", 53);
    data_set *s = open_ok(dir, "train", 0);
    if (s) {
        CHECK(data_count(s) == 24 && data_classes(s) == 10);
        CHECK_TEXT(data_class_name(s, 1), "car");
        CHECK_TEXT(data_name(s, 0), "data_batch_1.bin:0");
        CHECK_TEXT(data_name(s, 21), "data_batch_2.bin:1");
        CHECK(data_label(s, 21) == 4 && data_label(s, 19) == 9);
        data_image im;
        err e = { 0 };
        CHECK_OK(data_decode(s, 21, &im, &e), e);
        CHECK(im.h == 32 && im.w == 32 && im.c == 3);
        CHECK(im.x[0] == 5 && im.x[1] == 65 && im.x[2] == 125);              /* interleaved */
        CHECK(im.x[3] == 6 && im.x[32 * 3] == 6 && im.x[3071] == 5 + 120 + 62);
        image_free(&im);
        data_prep p = data_default_prep(s);
        CHECK(p.h == 32 && p.w == 32 && p.c == 3 && p.resize == 0);
        CHECK_CLOSE(p.mean[0], 0.485, 1e-7);
    }
    data_free(s);
    s = open_ok(dir, "val", 0);
    if (s) {
        CHECK(data_count(s) == 10);
        CHECK_TEXT(data_name(s, 9), "test_batch.bin:9");
    }
    data_free(s);
    remove_dir();
}

static void a_wrong_cifar_file_is_refused(void) {
    make_dir();
    put_cifar("data_batch_1.bin", 2, 0);
    refuse(dir, "val", ERR_NOINPUT, "test_batch.bin");
    put_file("test_batch.bin", "short", 5);
    refuse(dir, "val", ERR_DATA, "3073");
    uint8_t p[3073] = { 10 };
    put_file("data_batch_2.bin", p, sizeof p);
    refuse(dir, "train", ERR_DATA, "label 10");
    remove_dir();
}

/* ---- IDX ------------------------------------------------------------------------------------------------ */

static void put_idx(const char *name, bool gz, int magic, const int *dim, int rank, int bytes) {
    uint8_t p[4096] = { 0, 0, 8, (uint8_t)magic };
    size_t n = 4;
    for (int d = 0; d < rank; d++, n += 4) p[n + 2] = (uint8_t)(dim[d] >> 8), p[n + 3] = (uint8_t)dim[d];
    for (int i = 0; i < bytes; i++) p[n++] = (uint8_t)(i % 10);
    if (!gz) { put_file(name, p, n); return; }
    gzFile f = gzopen(in_dir(name), "wb");
    CHECK(f && gzwrite(f, p, (unsigned)n) == (int)n);
    if (f) gzclose(f);
}

static void idx_files_are_read_gzipped_or_plain(void) {
    for (int gz = 0; gz < 2; gz++) {
        make_dir();
        put_idx(gz ? "train-images-idx3-ubyte.gz" : "train-images-idx3-ubyte", gz, 3, (int[]){ 12, 5, 4 }, 3, 240);
        put_idx(gz ? "train-labels-idx1-ubyte.gz" : "train-labels-idx1-ubyte", gz, 1, (int[]){ 12 }, 1, 12);
        data_set *s = open_ok(dir, "train", 0);
        if (s) {
            CHECK(data_count(s) == 12 && data_classes(s) == 10 && data_label(s, 11) == 1);
            CHECK_TEXT(data_class_name(s, 9), "9");
            CHECK_TEXT(data_name(s, 3), gz ? "train-images-idx3-ubyte.gz:3" : "train-images-idx3-ubyte:3");
            data_image im;
            err e = { 0 };
            CHECK_OK(data_decode(s, 1, &im, &e), e);
            CHECK(im.h == 5 && im.w == 4 && im.c == 1 && im.x[3] == 3);
            image_free(&im);
            data_prep p = data_default_prep(s);
            CHECK(p.h == 5 && p.w == 4 && p.c == 1);
            CHECK_CLOSE(p.mean[0], 0.2860, 1e-6);
            CHECK_CLOSE(p.std[0], 0.3530, 1e-6);
        }
        data_free(s);
        refuse(dir, "val", ERR_NOINPUT, "t10k-images");
        remove_dir();
    }
}

static void a_wrong_idx_file_is_refused(void) {
    make_dir();
    put_idx("t10k-images-idx3-ubyte", false, 3, (int[]){ 2, 3, 3 }, 3, 18);
    refuse(dir, "val", ERR_NOINPUT, "t10k-labels");
    put_idx("t10k-labels-idx1-ubyte", false, 1, (int[]){ 3 }, 1, 3);
    refuse(dir, "val", ERR_DATA, "3 labels");
    put_idx("t10k-labels-idx1-ubyte", false, 1, (int[]){ 2 }, 1, 3);
    refuse(dir, "val", ERR_DATA, "announces 2");
    put_idx("t10k-labels-idx1-ubyte", false, 3, (int[]){ 2 }, 1, 2);
    refuse(dir, "val", ERR_DATA, "00000803");
    put_idx("t10k-labels-idx1-ubyte", false, 1, (int[]){ 2 }, 1, 2);
    put_idx("t10k-images-idx3-ubyte", false, 3, (int[]){ 2, 3, 0 }, 3, 0);
    refuse(dir, "val", ERR_DATA, "0 pixels");
    put_file("t10k-images-idx3-ubyte", "\0\0\x08\x03\xff\xff\xff\xff\0\0\x40\0\0\0\x40\0", 16);
    refuse(dir, "val", ERR_DATA, "announces");
    remove_dir();
}

/* ---- class folders --------------------------------------------------------------------------------------- */

static void put_folders(void) {
    put_png("train/cat/b.PNG", 8, 8, 10);
    put_png("train/cat/a.jpeg", 8, 10, 20);              /* recognised by content */
    put_png("train/ant/x.png", 8, 8, 30);
    put_png("train/ant/y.png", 8, 8, 40);
    put_png("val/cat/v.png", 8, 8, 50);
    put_file("train/cat/notes.txt", "no image", 8);
    put_file("train/ant/.hidden.png", "no image", 8);
    put_file("train/README", "no class", 8);
}

static void class_folders_are_labelled_by_their_sorted_names(void) {
    make_dir();
    put_folders();
    data_set *s = open_ok(dir, "train", 0);
    if (s) {
        CHECK(data_count(s) == 4 && data_classes(s) == 2);
        CHECK_TEXT(data_class_name(s, 0), "ant");
        CHECK_TEXT(data_name(s, 0), "ant/x.png");
        CHECK_TEXT(data_name(s, 2), "cat/a.jpeg");
        CHECK(data_label(s, 1) == 0 && data_label(s, 2) == 1);
        data_image im;
        err e = { 0 };
        for (int again = 0; again < 2; again++) {         /* from the file, then from memory */
            CHECK_OK(data_decode(s, 2, &im, &e), e);
            CHECK(im.h == 8 && im.w == 10 && im.c == 3 && im.x[0] == 255 && im.x[1] == 20);
            image_free(&im);
        }
        CHECK(data_default_prep(s).h == 224 && data_default_prep(s).resize == 256);
    }
    data_free(s);
    s = open_ok(dir, "val", 0);
    if (s) CHECK(data_count(s) == 1 && data_classes(s) == 2 && data_label(s, 0) == 1);   /* train's numbers */
    data_free(s);
    remove_dir();
}

static void class_folders_that_do_not_fit_are_refused(void) {
    make_dir();
    refuse(in_dir("nothing"), "train", ERR_NOINPUT, "no such folder");
    refuse(dir, "train", ERR_DATA, "neither");
    put_file("file", "x", 1);
    refuse(in_dir("file"), "train", ERR_DATA, "a folder is wanted");
    put_folders();
    refuse(dir, "test", ERR_USAGE, "split test");
    put_png("val/zebra/v.png", 8, 8, 50);
    refuse(dir, "val", ERR_DATA, "zebra");
    put_file("train/bee/notes.txt", "x", 1);
    refuse(dir, "train", ERR_DATA, "train/bee: no images");
    remove_dir();
    make_dir();
    put_png("train/a/v.png", 8, 8, 50);
    refuse(dir, "val", ERR_NOINPUT, "/val");
    remove_dir();
}

static void the_limit_is_balanced_and_keeps_the_order(void) {
    data_set *s = open_ok("builtin:shapes,classes=5,train=100", "train", 23);
    if (!s) return;
    int have[5] = { 0 };
    CHECK(data_count(s) == 23);
    int64_t last = -1;
    for (int64_t i = 0; i < 23; i++) {
        have[data_label(s, i)]++;
        long long at = atoll(strchr(data_name(s, i), ':') + 1);
        CHECK(at > last && at % 5 == data_label(s, i));
        last = at;
    }
    for (int c = 0; c < 5; c++) CHECK(have[c] == 4 || have[c] == 5);
    data_free(s);
    s = open_ok("builtin:shapes,train=100", "train", 1000);
    if (s) CHECK(data_count(s) == 100);
    data_free(s);
}

/* ---- shapes ----------------------------------------------------------------------------------------------- */

static void shapes_are_a_function_of_seed_split_and_number(void) {
    data_set *a = open_ok("builtin:shapes", "train", 0), *b = open_ok("builtin:shapes,seed=42,size=32", "train", 0);
    data_set *v = open_ok("builtin:shapes", "val", 0), *t = open_ok("builtin:shapes,seed=43", "train", 0);
    if (a && b && v && t) {
        CHECK(data_count(a) == 8000 && data_count(v) == 2000 && data_classes(a) == 10);
        data_image x, y, z, w;
        err e = { 0 };
        CHECK_OK(data_decode(a, 1234, &x, &e), e);
        CHECK_OK(data_decode(b, 1234, &y, &e), e);
        CHECK_OK(data_decode(v, 1234, &z, &e), e);
        CHECK_OK(data_decode(t, 1234, &w, &e), e);
        CHECK(x.h == 32 && x.w == 32 && x.c == 3);
        CHECK(!memcmp(x.x, y.x, 3072) && memcmp(x.x, z.x, 3072) && memcmp(x.x, w.x, 3072));
        image_free(&x), image_free(&y), image_free(&z), image_free(&w);
        data_prep p = data_default_prep(a);
        CHECK(p.h == 32 && p.c == 3 && p.mean[2] == .5f && p.std[2] == .25f);
    }
    data_free(a), data_free(b), data_free(v), data_free(t);
}

static void shapes_of_any_size_and_class_are_drawn(void) {
    data_set *s = open_ok("builtin:shapes,classes=16,size=9,train=32,val=3", "train", 0);
    err e = { 0 };
    for (int i = 0; s && i < 32; i++) {
        data_image im;
        CHECK_OK(data_decode(s, i, &im, &e), e);
        CHECK(im.h == 9 && im.w == 9);
        image_free(&im);
    }
    data_free(s);
    s = open_ok("builtin:shapes,size=256,train=2", "train", 0);
    data_image im = { 0 };
    if (s) CHECK_OK(data_decode(s, 1, &im, &e), e);
    image_free(&im);
    data_free(s);
}

static void a_wrong_shapes_spec_is_refused(void) {
    static const char *const wrong[] = {
        "builtin:shapes,classes=17", "builtin:shapes,classes=1", "builtin:shapes,size=7", "builtin:shapes,size=",
        "builtin:shapes,size=32x", "builtin:shapes,siz=32", "builtin:shapes,", "builtin:shapes,train=0",
        "builtin:shapes,seed=-1", "builtin:shapes,seed=99999999999999999999", "builtin:shapes,size", "builtin:shape",
        "builtin:shapes2", "builtin:", "builtin:shapes,size=32,,train=5", "builtin:shapes,size= 32",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) refuse(wrong[i], "train", ERR_USAGE, "builtin:");
}

/* ---- balanced subsets --------------------------------------------------------------------------------------- */

static void disjoint_ranges_are_disjoint_and_each_is_balanced(void) {
    data_set *s = open_ok("builtin:shapes,classes=7,train=700", "train", 0);
    if (!s) return;
    int32_t all[700], part[100], other[700];
    err e = { 0 };
    CHECK_OK(data_pick(s, 5, 0, 700, all, &e), e);
    int seen[700] = { 0 };
    for (int i = 0; i < 700; i++) seen[all[i]]++;
    for (int i = 0; i < 700; i++) CHECK(seen[i] == 1);
    for (int from = 0; from < 700; from += 100) {
        CHECK_OK(data_pick(s, 5, from, 100, part, &e), e);
        CHECK(!memcmp(part, all + from, sizeof part));
        int have[7] = { 0 };
        for (int i = 0; i < 100; i++) have[data_label(s, part[i])]++;
        for (int c = 0; c < 7; c++) CHECK(have[c] == 14 || have[c] == 15);
    }
    CHECK_OK(data_pick(s, 6, 0, 700, other, &e), e);
    CHECK(memcmp(all, other, sizeof all));
    CHECK(!data_pick(s, 5, 600, 101, part, &e) && e.code == ERR_CONFIG);
    CHECK(!data_pick(s, 5, -1, 5, part, &e));
    CHECK(!data_pick(s, 5, 5, INT64_MAX, part, &e));
    data_free(s);
}

static void a_class_of_one_image_cannot_be_picked_from(void) {
    data_set *s = open_ok("builtin:shapes,classes=5,train=9", "train", 0);
    int32_t out[9];
    err e = { 0 };
    if (s) CHECK(!data_pick(s, 1, 0, 4, out, &e) && e.code == ERR_DATA && strstr(e.msg, "hexagon has 1"));
    data_free(s);
}

/* ---- batches ---------------------------------------------------------------------------------------------- */

static data_loader *loader_ok(const loader_options *o) {
    err e = { 0 };
    data_loader *l = loader_new(o, &e);
    CHECK_OK(l != NULL, e);
    return l;
}

static loader_options options_for(const data_set *s) {
    return (loader_options){ .set = s, .batch = 16, .prep = data_default_prep(s), .seed = 3, .workers = 1 };
}

/* One batch of evaluation of a single picture, as floats. */
static bool load_one(const char *name, data_prep p, float *x) {
    err e = { 0 };
    bool ok = data_load_file(in_dir(name), &p, x, &e);
    CHECK_OK(ok, e);
    return ok;
}

static void evaluation_resizes_crops_and_normalises(void) {
    make_dir();
    put_png("p/a.png", 4, 6, 51);
    float x[4 * 6 * 3];
    data_prep p = { 4, 6, 3, 0, { .1f, .2f, .3f }, { .5f, .25f, 1 } };
    if (load_one("p/a.png", p, x)) {
        CHECK(x[0] == (1.0f - .1f) / .5f && x[1] == (51 / 255.0f - .2f) / .25f && x[2] == 51 / 255.0f - .3f);
        CHECK(x[3] == (51 / 255.0f - .1f) / .5f);
    }
    data_prep shrink = { 2, 2, 3, 2, { 0 }, { 1, 1, 1 } };                    /* to 3×2, the middle of it */
    if (load_one("p/a.png", shrink, x)) CHECK(x[1] == 51 / 255.0f && x[0] < 1);
    data_prep luma = { 4, 6, 1, 0, { 0 }, { 1 } };
    if (load_one("p/a.png", luma, x)) CHECK(x[1] == 51 / 255.0f && x[0] == ((19595 * 255 + 45941 * 51 + 32768) >> 16) / 255.0f);
    data_prep stretch = { 3, 3, 3, 0, { 0 }, { 1, 1, 1 } };
    if (load_one("p/a.png", stretch, x)) CHECK(x[4] == 51 / 255.0f);
    uint8_t g[4] = { 0, 100, 200, 255 };
    data_image im = { 2, 2, 1, g };
    err e = { 0 };
    CHECK_OK(image_write_png(in_dir("p/g.png"), &im, &e), e);
    data_prep grey = { 2, 2, 3, 0, { 0, .5f, 0 }, { 1, 1, 2 } };
    if (load_one("p/g.png", grey, x)) CHECK(x[3] == 100 / 255.0f && x[4] == 100 / 255.0f - .5f && x[5] == 100 / 255.0f / 2);
    CHECK(!data_load_file(in_dir("p/none.png"), &p, x, &e) && e.code == ERR_NOINPUT);
    put_file("p/bad.png", "nonsense", 8);
    CHECK(!data_load_file(in_dir("p/bad.png"), &p, x, &e) && e.code == ERR_DATA && strstr(e.msg, "bad.png"));
    remove_dir();
}

static void an_epoch_holds_every_image_once_and_ends(void) {
    data_set *s = open_ok("builtin:shapes,size=8,train=50", "train", 0);
    if (!s) return;
    for (int shuffle = 0; shuffle < 2; shuffle++)
        for (int drop = 0; drop < 2; drop++) {
            loader_options o = options_for(s);
            o.shuffle = shuffle, o.drop_last = drop;
            data_loader *l = loader_ok(&o);
            CHECK(loader_batches(l) == (drop ? 3 : 4));
            int first[2] = { -1, -1 };
            for (int epoch = 0; epoch < 2; epoch++) {
                int seen[50] = { 0 }, total = 0;
                for (;;) {
                    data_batch b;
                    err e = { 0 };
                    CHECK_OK(loader_next(l, &b, &e), e);
                    if (!b.n) break;
                    if (first[epoch] < 0) first[epoch] = b.index[0] * 64 + b.index[1];
                    for (int i = 0; i < b.n; i++) {
                        seen[b.index[i]]++;
                        CHECK(b.label[i] == data_label(s, b.index[i]) && b.label2[i] == b.label[i]);
                        CHECK(shuffle || b.index[i] == total + i);
                    }
                    CHECK(b.lam == 1);
                    total += b.n;
                }
                CHECK(total == (drop ? 48 : 50));
                for (int i = 0; i < 50; i++) CHECK(seen[i] == 1 || (drop && seen[i] == 0));
            }
            CHECK((first[0] != first[1]) == shuffle);
            loader_free(l);
        }
    data_free(s);
}

/* A sum over everything the next `batches` batches say; the ends of epochs count too. */
static uint64_t fingerprint(data_loader *l, int batches, int64_t floats) {
    uint64_t h = 1469598103934665603u;
    for (int k = 0; k < batches; k++) {
        data_batch b;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        uint32_t lam;
        memcpy(&lam, &b.lam, 4);
        h = (h ^ (uint64_t)b.n ^ (uint64_t)lam << 20) * 1099511628211u;
        for (int64_t i = 0; i < b.n * floats; i++) {
            uint32_t bits;
            memcpy(&bits, b.x + i, 4);
            h = (h ^ bits) * 1099511628211u;
        }
        for (int i = 0; i < b.n; i++)
            h = (h ^ (uint64_t)b.label[i] ^ (uint64_t)b.label2[i] << 8 ^ (uint64_t)b.index[i] << 16) * 1099511628211u;
    }
    return h;
}

static void bits_do_not_depend_on_workers_or_resume(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=100", "train", 0);
    if (!s) return;
    loader_options o = options_for(s);
    o.shuffle = true;
    o.augment = (data_augment){ .pad = 2, .hflip = .5, .mixup = .4, .erase = .5, .rrc_min = .3 };
    const int64_t floats = 16 * 16 * 3;
    uint64_t whole = 0, tail = 0;                         /* 7 batches and an end: 8 calls an epoch */
    for (int workers = 1; workers <= 5; workers += 2) {
        o.workers = workers;
        data_loader *l = loader_ok(&o);
        loader_seek(l, 0, 0);
        uint64_t a = fingerprint(l, 24, floats);
        loader_seek(l, 0, 0);
        fingerprint(l, 11, floats);
        uint64_t b = fingerprint(l, 13, floats);
        CHECK(workers == 1 || (a == whole && b == tail));
        whole = a, tail = b;
        loader_seek(l, 1, 3);                             /* where the twelfth call is */
        CHECK(fingerprint(l, 13, floats) == tail);
        loader_free(l);
        l = loader_ok(&o);
        loader_seek(l, 0, 7);                             /* the end of epoch 0 comes first */
        data_batch end;
        err e = { 0 };
        CHECK_OK(loader_next(l, &end, &e), e);
        CHECK(end.n == 0);
        fingerprint(l, 3, floats);
        CHECK(fingerprint(l, 13, floats) == tail);
        loader_free(l);
    }
    data_free(s);
}

static void pixels_do_not_depend_on_batch_size_or_order(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=60", "train", 0);
    if (!s) return;
    const int64_t floats = 16 * 16 * 3;
    float *x = calloc(60, sizeof(float) * (size_t)floats);
    for (int pass = 0; pass < 2; pass++) {
        loader_options o = options_for(s);
        o.augment = (data_augment){ .pad = 2, .hflip = .5, .erase = .5 };
        o.batch = pass ? 7 : 60;
        o.shuffle = pass;
        data_loader *l = loader_ok(&o);
        for (int total = 0; total < 60;) {
            data_batch b;
            err e = { 0 };
            CHECK_OK(loader_next(l, &b, &e), e);
            for (int i = 0; i < b.n; i++) {
                float *mine = x + b.index[i] * floats;
                if (pass) CHECK(!memcmp(mine, b.x + i * floats, sizeof(float) * (size_t)floats));
                else memcpy(mine, b.x + i * floats, sizeof(float) * (size_t)floats);
            }
            total += b.n;
            if (!b.n) break;
        }
        loader_free(l);
    }
    free(x);
    data_free(s);
}

/* An image as the network would see it without normalisation. */
static const data_prep plain8 = { 8, 8, 3, 0, { 0, 0, 0 }, { 1, 1, 1 } };

static void mirrored_and_padded_images_are_shifts_of_the_original(void) {
    data_set *s = open_ok("builtin:shapes,size=8,train=40", "train", 0);
    if (!s) return;
    int shifts[5][5] = { { 0 } }, mirrors = 0;
    loader_options o = options_for(s);
    o.prep = plain8;
    o.augment = (data_augment){ .pad = 2, .hflip = .5 };
    data_loader *l = loader_ok(&o);
    for (int k = 0; k < 40; k++) {
        data_batch b;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        for (int i = 0; i < b.n; i++) {
            data_image im;
            CHECK_OK(data_decode(s, b.index[i], &im, &e), e);
            int found = 0;
            for (int dy = -2; dy <= 2; dy++)
                for (int dx = -2; dx <= 2; dx++)
                    for (int mirror = 0; mirror < 2; mirror++) {
                        bool same = true;
                        for (int y = 0; same && y < 8; y++)
                            for (int x = 0; same && x < 8; x++) {
                                int sy = y + dy, sx = (mirror ? 7 - x : x) + dx;
                                bool in = sy >= 0 && sy < 8 && sx >= 0 && sx < 8;
                                for (int c = 0; c < 3; c++)
                                    same = same && b.x[((i * 8 + y) * 8 + x) * 3 + c] ==
                                                       (in ? (float)im.x[(sy * 8 + sx) * 3 + c] / 255.0f : 0.0f);
                            }
                        if (same) found++, shifts[dy + 2][dx + 2]++, mirrors += mirror;
                    }
            CHECK(found == 1);
            image_free(&im);
        }
    }
    for (int i = 0; i < 25; i++) CHECK(shifts[i / 5][i % 5] > 0);
    CHECK(mirrors > 150 && mirrors < 400);
    loader_free(l);
    data_free(s);
}

static void mixup_mixes_with_the_mirror_of_the_batch(void) {
    data_set *s = open_ok("builtin:shapes,size=8,train=40", "train", 0);
    if (!s) return;
    loader_options o = options_for(s);
    o.prep = plain8, o.augment.mixup = .5, o.batch = 5;
    data_loader *l = loader_ok(&o);
    double sum = 0;
    float last = -1;
    for (int k = 0; k < 90; k++) {
        data_batch b;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        if (!b.n) continue;
        CHECK(b.lam >= 0 && b.lam <= 1 && b.lam != last);
        last = b.lam;
        sum += (double)b.lam / 80;
        for (int i = 0; i < b.n; i++) {
            data_image p, q;
            CHECK(b.label2[i] == b.label[b.n - 1 - i] && b.label[i] == data_label(s, b.index[i]));
            CHECK_OK(data_decode(s, b.index[i], &p, &e), e);
            CHECK_OK(data_decode(s, b.index[b.n - 1 - i], &q, &e), e);
            for (int j = 0; j < 192; j++)
                CHECK_CLOSE(b.x[i * 192 + j], ((double)b.lam * p.x[j] + (1 - (double)b.lam) * q.x[j]) / 255, 1e-6);
            image_free(&p), image_free(&q);
        }
    }
    CHECK_CLOSE(sum, .5, .15);
    loader_free(l);
    data_free(s);
}

static void erasing_replaces_a_box_by_noise(void) {
    data_set *s = open_ok("builtin:shapes,size=16,train=200", "train", 0);
    if (!s) return;
    loader_options o = options_for(s);
    o.prep = (data_prep){ 16, 16, 3, 0, { 0 }, { 1, 1, 1 } };
    o.augment.erase = 1, o.batch = 200;
    data_loader *l = loader_ok(&o);
    data_batch b;
    err e = { 0 };
    CHECK_OK(loader_next(l, &b, &e), e);
    int64_t outside = 0, touched = 0;
    for (int64_t i = 0; i < b.n * 768; i++) outside += b.x[i] < 0 || b.x[i] > 1;
    for (int i = 0; i < b.n; i++) {
        bool any = false;
        for (int j = 0; j < 768; j++) any = any || b.x[i * 768 + j] < 0 || b.x[i * 768 + j] > 1;
        touched += any;
    }
    CHECK(touched > 180);
    CHECK(outside > 768 * 200 / 20 && outside < 768 * 200 / 4);
    loader_free(l);
    data_free(s);
}

static void subsets_and_impossible_options(void) {
    data_set *s = open_ok("builtin:shapes,size=8,train=40", "train", 0);
    if (!s) return;
    const int32_t index[3] = { 39, 4, 17 }, wrong[1] = { 40 };
    loader_options o = options_for(s);
    o.index = index, o.n = 3;
    data_loader *l = loader_ok(&o);
    data_batch b;
    err e = { 0 };
    CHECK_OK(loader_next(l, &b, &e), e);
    CHECK(b.n == 3 && b.index[0] == 39 && b.index[1] == 4 && b.index[2] == 17);
    loader_free(l);
    o.drop_last = true;
    CHECK(!loader_new(&o, &e) && e.code == ERR_CONFIG);
    o = options_for(s), o.index = wrong, o.n = 1;
    CHECK(!loader_new(&o, &e) && e.code == ERR_CONFIG);
    o = options_for(s), o.batch = 0;
    CHECK(!loader_new(&o, &e) && e.code == ERR_USAGE);
    o = options_for(s), o.augment.hflip = 1.5;
    CHECK(!loader_new(&o, &e) && e.code == ERR_USAGE);
    o = options_for(s), o.augment.mixup = (double)NAN;
    CHECK(!loader_new(&o, &e) && e.code == ERR_USAGE);
    for (int k = 1; k <= 10; k++) {
        e = (err){ 0 };
        o = options_for(s);
        mem_fail_at(k);
        l = loader_new(&o, &e);
        mem_fail_at(0);
        CHECK(!l == (k < 10) && (l || e.code == ERR_NOMEM));
        loader_free(l);
    }
    data_free(s);
}

static void bad_images_are_listed_and_replaced_by_the_next_good_one(void) {
    make_dir();
    put_folders();
    put_file("train/ant/w.jpg", "not a picture", 13);    /* ant/w.jpg is number 0 */
    uint8_t cut[] = { 0xFF, 0xD8, 0xFF, 0xE0, 0, 200, 'J' };
    put_file("train/cat/c.jpg", cut, sizeof cut);        /* the last one */
    for (int workers = 1; workers < 4; workers += 2) {
        data_set *s = open_ok(dir, "train", 0);
        loader_options o = options_for(s);
        o.prep = plain8, o.batch = 6, o.workers = workers;
        data_loader *l = loader_ok(&o);
        data_batch b;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        CHECK(b.n == 6 && b.index[0] == 1 && b.index[1] == 1 && b.index[4] == 4 && b.index[5] == 1);
        CHECK(b.label[0] == 0 && b.label[5] == 0 && b.x[1] == 30 / 255.0f);
        int64_t bad[4];
        CHECK(data_bad(s, bad, 4) == 2 && bad[0] == 0 && bad[1] == 5);
        CHECK(data_bad(s, bad, 0) == 2);
        loader_free(l);
        data_free(s);
    }
    err e = { 0 };
    data_options strict = { .fail_on_bad = true };
    data_set *s = data_open(dir, "train", &strict, &e);
    CHECK_OK(s != NULL, e);
    loader_options o = options_for(s);
    o.prep = plain8;
    data_loader *l = loader_ok(&o);
    data_batch b;
    CHECK(!loader_next(l, &b, &e) && e.code == ERR_DATA && strstr(e.msg, "ant/w.jpg"));
    loader_free(l);
    data_free(s);
    s = open_ok(dir, "train", 0);
    const int32_t only_bad[2] = { 0, 5 };
    o = options_for(s), o.prep = plain8, o.index = only_bad, o.n = 2;
    l = loader_ok(&o);
    CHECK(!loader_next(l, &b, &e) && e.code == ERR_DATA && strstr(e.msg, "none of the 2"));
    loader_free(l);
    data_free(s);
    remove_dir();
}

static void a_loader_may_be_freed_or_moved_at_any_moment(void) {
    data_set *s = open_ok("builtin:shapes,size=32,train=3000", "train", 0);
    if (!s) return;
    loader_options o = options_for(s);
    o.batch = 256, o.workers = 3, o.augment = (data_augment){ .pad = 4, .hflip = .5, .mixup = 1 };
    for (int k = 0; k < 40; k++) {
        data_loader *l = loader_ok(&o);
        data_batch b;
        err e = { 0 };
        if (k % 4 > 0) loader_seek(l, k, k % 3);
        if (k % 4 > 1) CHECK_OK(loader_next(l, &b, &e), e);
        if (k % 4 > 2) loader_seek(l, 0, 1);
        if (k % 5 == 0) usleep((unsigned)k * 100);
        loader_free(l);
    }
    loader_free(NULL);
    data_free(s);
    data_free(NULL);
}

static void real_cifar_and_photographs_load(void) {
    if (!file_is_dir("../shared/data/cifar-10-batches-bin")) SKIP("no ../shared/data");
    data_set *s = open_ok("../shared/data/cifar-10-batches-bin", "val", 0);
    if (s) {
        CHECK(data_count(s) == 10000);
        CHECK_TEXT(data_class_name(s, 3), "cat");
        CHECK(data_label(s, 0) == 3 && data_label(s, 1) == 8);
    }
    data_free(s);
    s = open_ok("../shared/data/fashion-mnist", "val", 0);
    if (s) CHECK(data_count(s) == 10000 && data_label(s, 0) == 9 && data_label(s, 1) == 2);
    data_free(s);
    s = open_ok("../shared/data/imagenette-224", "val", 40);
    if (s) {
        loader_options o = options_for(s);
        o.batch = 40, o.workers = 2;
        data_loader *l = loader_ok(&o);
        data_batch b;
        err e = { 0 };
        CHECK_OK(loader_next(l, &b, &e), e);
        CHECK(b.n == 40 && data_bad(s, NULL, 0) == 0);
        double sum = 0, square = 0, n = 40.0 * 224 * 224 * 3;
        for (int64_t i = 0; i < 40 * 224 * 224 * 3; i++) sum += (double)b.x[i] / n, square += (double)(b.x[i] * b.x[i]) / n;
        CHECK(fabs(sum) < 1 && square > .3 && square < 3);
        loader_free(l);
    }
    data_free(s);
}

int main(void) {
    RUN(prep_survives_print_and_parse);
    RUN(a_wrong_prep_is_refused);
    RUN(cifar_batches_are_read_in_the_order_of_their_names);
    RUN(a_wrong_cifar_file_is_refused);
    RUN(idx_files_are_read_gzipped_or_plain);
    RUN(a_wrong_idx_file_is_refused);
    RUN(class_folders_are_labelled_by_their_sorted_names);
    RUN(class_folders_that_do_not_fit_are_refused);
    RUN(the_limit_is_balanced_and_keeps_the_order);
    RUN(shapes_are_a_function_of_seed_split_and_number);
    RUN(shapes_of_any_size_and_class_are_drawn);
    RUN(a_wrong_shapes_spec_is_refused);
    RUN(disjoint_ranges_are_disjoint_and_each_is_balanced);
    RUN(a_class_of_one_image_cannot_be_picked_from);
    RUN(evaluation_resizes_crops_and_normalises);
    RUN(an_epoch_holds_every_image_once_and_ends);
    RUN(bits_do_not_depend_on_workers_or_resume);
    RUN(pixels_do_not_depend_on_batch_size_or_order);
    RUN(mirrored_and_padded_images_are_shifts_of_the_original);
    RUN(mixup_mixes_with_the_mirror_of_the_batch);
    RUN(erasing_replaces_a_box_by_noise);
    RUN(subsets_and_impossible_options);
    RUN(bad_images_are_listed_and_replaced_by_the_next_good_one);
    RUN(a_loader_may_be_freed_or_moved_at_any_moment);
    RUN(real_cifar_and_photographs_load);
    END();
}
