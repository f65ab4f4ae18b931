/* Sets: what is read, what is refused, subsets, and what a network is shown of an image. */
#include <sys/resource.h>
#include <sys/stat.h>
#include <zlib.h>

#include "tests/data_files.h"

static void refuse(const char *spec, const char *split, err_code code, const char *word) {
    err e = { 0 };
    data_set *s = data_open(spec, split, NULL, &e);
    if (s || e.code != code || !strstr(e.msg, word))
        fprintf(stderr, "%s: wanted code %d and \"%s\", got %d: %s\n", spec, (int)code, word,
                (int)e.code, e.msg);
    CHECK(!s && e.code == code && strstr(e.msg, word));
    data_free(s);
}

/* ---- preprocessing as text ------------------------------------------------------------------- */

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
        "",
        "size=32,32,3",
        "size=32,32 resize=0 mean=0 std=1",
        "size=32,32,1 resize=0 mean=0,0,0 std=1",
        "size=32,32,1 resize=0 mean=0 std=0",
        "size=32,32,1 resize=0 mean=0 std=-1",
        "size=32,32,1 resize=0 mean=nan std=1",
        "size=32,32,1 resize=0 mean=0 std=1 more=1",
        "size=32,32,1 resize=0 mean=0 std=1 std=1",
        "size=32,32,2 resize=0 mean=0,0 std=1,1",
        "size=32,32,1 resize=31 mean=0 std=1",
        "size=32,32,1.5 resize=0 mean=0 std=1",
        "size=0,32,1 resize=0 mean=0 std=1",
        "size=32,32,1 resize=0 mean=0 std=1x",
        "size=32,32,1 resize=0 mean=0, std=1",
        "size=32,32,1 resize=0 mean= 0 std=1",
        "size=32,32,1,4 resize=0 mean=0 std=1",
        "size=32,32,1 resize=0 mean=0",
        "size=99999999999,32,1 resize=0 mean=0 std=1",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        data_prep p;
        err e = { 0 };
        if (data_prep_parse(&p, wrong[i], &e)) fprintf(stderr, "accepted: %s\n", wrong[i]);
        CHECK(e.code == ERR_DATA && strstr(e.msg, "preprocessing"));
    }
}

/* ---- CIFAR-10 -------------------------------------------------------------------------------- */

static void put_cifar(const char *name, int records, int first_label) {
    uint8_t *p = calloc((size_t)records, 3073);
    for (int r = 0; r < records; r++) {
        p[r * 3073] = (uint8_t)((first_label + r) % 10);
        for (int k = 0; k < 3072; k++)
            p[r * 3073 + 1 + k] = (uint8_t)(r * 5 + k / 1024 * 60 + k % 1024 % 32 + k % 1024 / 32);
    }
    put_file(name, p, (size_t)records * 3073);
    free(p);
}

static void cifar_batches_are_read_in_the_order_of_their_names(void) {
    make_dir();
    put_cifar("data_batch_2.bin", 4, 3);
    put_cifar("data_batch_1.bin", 20, 0);
    put_cifar("test_batch.bin", 10, 0);
    put_file("batches.meta.txt",
             "aeroplane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n", 53);
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
    put_cifar("test_batch.bin", 2, 0);
    refuse(dir, "train", ERR_NOINPUT, "/data_batch_1.bin: no such file");
    unlink(in_dir("test_batch.bin"));
    put_cifar("data_batch_1.bin", 2, 0);
    refuse(dir, "val", ERR_NOINPUT, "/test_batch.bin: no such file");
    put_file("test_batch.bin", "short", 5);
    refuse(dir, "val", ERR_DATA, "3073");
    uint8_t p[3073] = { 10 };
    put_file("data_batch_2.bin", p, sizeof p);
    refuse(dir, "train", ERR_DATA, "label 10");
    remove_dir();
}

/* ---- IDX ------------------------------------------------------------------------------------- */

static void put_idx(const char *name, bool gz, int magic, const int *dim, int rank, int bytes) {
    uint8_t p[4096] = { 0, 0, 8, (uint8_t)magic };
    size_t n = 4;
    for (int d = 0; d < rank; d++, n += 4)
        p[n + 2] = (uint8_t)(dim[d] >> 8), p[n + 3] = (uint8_t)dim[d];
    for (int i = 0; i < bytes; i++) p[n++] = (uint8_t)(i % 10);
    if (!gz) { put_file(name, p, n); return; }
    gzFile f = gzopen(in_dir(name), "wb");
    CHECK(f && gzwrite(f, p, (unsigned)n) == (int)n);
    if (f) gzclose(f);
}

static void idx_files_are_read_gzipped_or_plain(void) {
    for (int gz = 0; gz < 2; gz++) {
        make_dir();
        put_idx(gz ? "train-images-idx3-ubyte.gz" : "train-images-idx3-ubyte", gz, 3,
                (int[]){ 12, 5, 4 }, 3, 240);
        put_idx(gz ? "train-labels-idx1-ubyte.gz" : "train-labels-idx1-ubyte", gz, 1, (int[]){ 12 },
                1, 12);
        data_set *s = open_ok(dir, "train", 0);
        if (s) {
            CHECK(data_count(s) == 12 && data_classes(s) == 10 && data_label(s, 11) == 1);
            CHECK_TEXT(data_class_name(s, 9), "9");
            CHECK_TEXT(data_name(s, 3),
                       gz ? "train-images-idx3-ubyte.gz:3" : "train-images-idx3-ubyte:3");
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
    put_file("t10k-labels-idx1-ubyte", "\0\0\x08\x01\0\0\0\x02\x09\x0a", 10);
    refuse(dir, "val", ERR_DATA, "/t10k-labels-idx1-ubyte: image 1 has label 10, wanted 0 to 9");
    put_idx("t10k-labels-idx1-ubyte", false, 1, (int[]){ 2 }, 1, 2);
    put_idx("t10k-images-idx3-ubyte", false, 3, (int[]){ 2, 3, 0 }, 3, 0);
    refuse(dir, "val", ERR_DATA, "0 pixels");
    put_file("t10k-images-idx3-ubyte", "\0\0\x08\x03\xff\xff\xff\xff\0\0\x40\0\0\0\x40\0", 16);
    refuse(dir, "val", ERR_DATA, "announces");
    remove_dir();
}

/* ---- class folders --------------------------------------------------------------------------- */

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
    if (s)
        CHECK(data_count(s) == 1 && data_classes(s) == 2 &&
              data_label(s, 0) == 1); /* train's numbers */
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

static void images_are_regular_files_and_links_to_them(void) {
    make_dir();
    put_folders();
    CHECK(!symlink("../cat/b.PNG", in_dir("train/ant/link.png")) && !mkfifo(in_dir("train/ant/pipe.png"), 0600));
    CHECK(!symlink("/dev/zero", in_dir("train/ant/device.png")) && !mkdir(in_dir("train/ant/folder.png"), 0700));
    data_set *s = open_ok(dir, "train", 0);
    if (s) {
        CHECK(data_count(s) == 5);
        CHECK_TEXT(data_name(s, 0), "ant/link.png");
    }
    data_free(s);
    remove_dir();
}

static void a_split_that_is_not_there_is_told_from_one_that_cannot_be_opened(void) {
    err e = { 0 };
    bool absent = false;
    const data_options o = { .absent = &absent };
    make_dir();
    put_png("train/a/v.png", 8, 8, 50);
    CHECK(!data_open(dir, "val", &o, &e) && e.code == ERR_NOINPUT && absent);
    put_png("val/a/v.png", 8, 8, 50);
    struct rlimit had, none;                             /* what may not be read, also for root */
    getrlimit(RLIMIT_NOFILE, &had);
    none = had, none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    data_set *s = data_open(dir, "val", &o, &e);
    setrlimit(RLIMIT_NOFILE, &had);
    CHECK(!s && e.code == ERR_IO && !absent && strstr(e.msg, "cannot open ") && strstr(e.msg, "/train: "));
    data_free(s);
    remove_dir();
    make_dir();
    put_idx("train-labels-idx1-ubyte", false, 1, (int[]){ 1 }, 1, 1);
    put_idx("train-images-idx3-ubyte", false, 3, (int[]){ 1, 3, 3 }, 3, 9);
    CHECK(!data_open(dir, "val", &o, &e) && e.code == ERR_NOINPUT && absent);
    put_idx("t10k-images-idx3-ubyte", false, 3, (int[]){ 1, 3, 3 }, 3, 9);
    CHECK(!data_open(dir, "val", &o, &e) && e.code == ERR_NOINPUT && !absent);       /* half of it is */
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

/* ---- shapes ---------------------------------------------------------------------------------- */

static void shapes_are_a_function_of_seed_split_and_number(void) {
    data_set *a = open_ok("builtin:shapes", "train", 0),
             *b = open_ok("builtin:shapes,seed=42,size=32", "train", 0);
    data_set *v = open_ok("builtin:shapes", "val", 0),
             *t = open_ok("builtin:shapes,seed=43", "train", 0);
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
        "builtin:shapes,classes=17",
        "builtin:shapes,classes=1",
        "builtin:shapes,size=7",
        "builtin:shapes,size=",
        "builtin:shapes,size=32x",
        "builtin:shapes,siz=32",
        "builtin:shapes,",
        "builtin:shapes,train=0",
        "builtin:shapes,seed=-1",
        "builtin:shapes,seed=99999999999999999999",
        "builtin:shapes,size",
        "builtin:shape",
        "builtin:shapes2",
        "builtin:",
        "builtin:shapes,size=32,,train=5",
        "builtin:shapes,size= 32",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refuse(wrong[i], "train", ERR_USAGE, "builtin:");
}

/* ---- balanced subsets ------------------------------------------------------------------------ */

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
    if (s)
        CHECK(!data_pick(s, 1, 0, 4, out, &e) && e.code == ERR_DATA &&
              strstr(e.msg, "hexagon has 1"));
    data_free(s);
}

/* ---- preprocessing --------------------------------------------------------------------------- */

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
        CHECK(x[0] == (1.0f - .1f) / .5f && x[1] == (51 / 255.0f - .2f) / .25f &&
              x[2] == 51 / 255.0f - .3f);
        CHECK(x[3] == (51 / 255.0f - .1f) / .5f);
    }
    data_prep shrink = { 2, 2, 3, 2, { 0 }, { 1, 1, 1 } }; /* to 3×2, the middle of it */
    if (load_one("p/a.png", shrink, x)) CHECK(x[1] == 51 / 255.0f && x[0] < 1);
    data_prep luma = { 4, 6, 1, 0, { 0 }, { 1 } };
    if (load_one("p/a.png", luma, x))
        CHECK(x[1] == 51 / 255.0f && x[0] == ((19595 * 255 + 45941 * 51 + 32768) >> 16) / 255.0f);
    data_prep stretch = { 3, 3, 3, 0, { 0 }, { 1, 1, 1 } };
    if (load_one("p/a.png", stretch, x)) CHECK(x[4] == 51 / 255.0f);
    uint8_t g[4] = { 0, 100, 200, 255 };
    data_image im = { 2, 2, 1, g };
    err e = { 0 };
    CHECK_OK(image_write_png(in_dir("p/g.png"), &im, &e), e);
    data_prep grey = { 2, 2, 3, 0, { 0, .5f, 0 }, { 1, 1, 2 } };
    if (load_one("p/g.png", grey, x))
        CHECK(x[3] == 100 / 255.0f && x[4] == 100 / 255.0f - .5f && x[5] == 100 / 255.0f / 2);
    CHECK(!data_load_file(in_dir("p/none.png"), &p, x, &e) && e.code == ERR_NOINPUT);
    put_file("p/bad.png", "nonsense", 8);
    CHECK(!data_load_file(in_dir("p/bad.png"), &p, x, &e) && e.code == ERR_DATA &&
          strstr(e.msg, "bad.png"));
    remove_dir();
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
        for (int64_t i = 0; i < 40 * 224 * 224 * 3; i++)
            sum += (double)b.x[i] / n, square += (double)(b.x[i] * b.x[i]) / n;
        CHECK(fabs(sum) < 1 && square > .3 && square < 3);
        loader_free(l);
    }
    data_free(s);
}

static void a_size_asked_for_scales_the_preprocessing(void) {
    make_dir();
    put_folders();
    data_options o = { 0 };
    err e = { 0 };
    char text[256];
    CHECK_OK(data_size_parse(&o, "112", &e), e);
    CHECK(o.h == 112 && o.w == 112);
    data_set *s = data_open(dir, "train", &o, &e);
    CHECK_OK(s != NULL, e);
    data_prep p = data_default_prep(s);
    CHECK(p.h == 112 && p.w == 112 && p.resize == 128 && data_sized(s));
    data_free(s);
    CHECK_OK(data_size_parse(&o, "64,96", &e), e);
    s = data_open("builtin:shapes,train=8", "train", &o, &e);
    p = data_default_prep(s);
    CHECK(p.h == 64 && p.w == 96 && p.resize == 0);
    data_free(s);
    s = data_open(dir, "train", &o, &e);
    p = data_default_prep(s);
    data_prep_print(&p, text);
    CHECK(p.resize == 110 && data_prep_parse(&p, text, &e));
    data_free(s);
    s = open_ok(dir, "train", 0);
    CHECK(!data_sized(s) && data_default_prep(s).h == 224);
    data_free(s);
    static const char *const wrong[] = { "", "0", "-3", "8,", "8,x", "8,8,8", "20000", "8x8", "1e2" };
    for (int i = 0; i < 9; i++)
        CHECK(!data_size_parse(&o, wrong[i], &e) && e.code == ERR_USAGE);
    CHECK(data_size_parse(&o, NULL, &e));
    remove_dir();
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
    RUN(images_are_regular_files_and_links_to_them);
    RUN(a_split_that_is_not_there_is_told_from_one_that_cannot_be_opened);
    RUN(the_limit_is_balanced_and_keeps_the_order);
    RUN(shapes_are_a_function_of_seed_split_and_number);
    RUN(shapes_of_any_size_and_class_are_drawn);
    RUN(a_wrong_shapes_spec_is_refused);
    RUN(disjoint_ranges_are_disjoint_and_each_is_balanced);
    RUN(a_class_of_one_image_cannot_be_picked_from);
    RUN(evaluation_resizes_crops_and_normalises);
    RUN(a_size_asked_for_scales_the_preprocessing);
    RUN(real_cifar_and_photographs_load);
    END();
}
