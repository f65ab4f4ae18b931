/* Packs hold the same pixels, labels and names as what they were made from, and say so when damaged. */
#include "core/io.h"
#include "tests/data_files.h"

static int64_t pack_ok(const data_set *s, const char *split, const char *to, int resize,
                       size_t shard_bytes) {
    err e = { 0 };
    int64_t packed = -1;
    const pack_options o = { .resize = resize, .shard_bytes = shard_bytes };
    CHECK_OK(data_pack(s, split, in_dir(to), &o, &packed, &e), e);
    return packed;
}

static void same_images(const data_set *a, const data_set *b) {
    CHECK(data_count(a) == data_count(b) && data_classes(a) == data_classes(b));
    for (int c = 0; c < data_classes(a); c++)
        CHECK_TEXT(data_class_name(a, c), data_class_name(b, c));
    for (int64_t i = 0; i < data_count(a) && i < data_count(b); i++) {
        data_image p, q;
        err e = { 0 };
        CHECK_OK(data_decode(a, i, &p, &e), e);
        CHECK_OK(data_decode(b, i, &q, &e), e);
        CHECK(p.h == q.h && p.w == q.w && q.c == 3 && data_label(a, i) == data_label(b, i));
        CHECK_TEXT(data_name(a, i), data_name(b, i));
        bool same = p.h == q.h && p.w == q.w;
        for (int k = 0; same && k < p.h * p.w * 3; k++)
            same = p.x[p.c == 3 ? k : k / 3] == q.x[k];
        CHECK(same);
        image_free(&p), image_free(&q);
    }
}

static void a_pack_holds_what_it_was_made_from(void) {
    make_dir();
    put_folders();
    static const char *const spec[] = { NULL, "builtin:shapes,size=12,train=70,classes=3" };
    for (int i = 0; i < 2; i++)
        for (int small = 0; small < 2; small++) {
            char name[32];
            snprintf(name, sizeof name, "pack%d%d", i, small);
            data_set *s = open_ok(spec[i] ? spec[i] : dir, "train", 0);
            CHECK(pack_ok(s, "train", name, 0, small ? 500 : 1 << 20) == data_count(s));
            data_set *p = open_ok(in_dir(name), "train", 0);
            if (p) same_images(s, p);
            char a[256], b[256], shard[64];
            data_prep x = data_default_prep(s), y = data_default_prep(p);
            data_prep_print(&x, a);
            data_prep_print(&y, b);
            CHECK_TEXT(a, b);
            snprintf(shard, sizeof shard, "%s/train-00001.pack", name);
            CHECK(file_exists(in_dir(shard)) == small);
            data_free(s);
            data_free(p);
        }
    remove_dir();
}

static void a_loader_makes_the_same_batches_from_a_pack(void) {
    make_dir();
    data_set *s = open_ok("builtin:shapes,size=12,train=50", "train", 0);
    pack_ok(s, "train", "pack", 0, 5000);
    data_set *p = open_ok(in_dir("pack"), "train", 0);
    loader_options o = options_for(s), q = options_for(p);
    o.shuffle = q.shuffle = true;
    o.augment = q.augment = (data_augment){ .rrc_min = .2, .hflip = .5, .erase = .3 };
    data_loader *a = loader_ok(&o), *b = loader_ok(&q);
    for (int i = 0; i < 8; i++) {
        data_batch x, y;
        err e = { 0 };
        CHECK_OK(loader_next(a, &x, &e), e);
        CHECK_OK(loader_next(b, &y, &e), e);
        CHECK(x.n == y.n && (!x.n || !memcmp(x.x, y.x, sizeof(float) * (size_t)x.n * 12 * 12 * 3)));
    }
    loader_free(a), loader_free(b);
    data_free(s), data_free(p);
    remove_dir();
}

static void packed_images_are_resized_as_evaluation_would(void) {
    make_dir();
    put_png("train/a/1.png", 40, 60, 100);
    put_png("train/b/2.png", 70, 30, 200);
    data_set *s = open_ok(dir, "train", 0);
    pack_ok(s, "train", "pack", 20, 1 << 20);
    data_set *p = open_ok(in_dir("pack"), "train", 0);
    data_image im;
    err e = { 0 };
    CHECK_OK(data_decode(p, 0, &im, &e), e);
    CHECK(im.h == 20 && im.w == 30);
    image_free(&im);
    CHECK_OK(data_decode(p, 1, &im, &e), e);
    CHECK(im.h == 46 && im.w == 20);
    image_free(&im);
    loader_options o = options_for(s), q = options_for(p);
    o.prep = q.prep = (data_prep){ 16, 16, 3, 20, { 0, 0, 0 }, { 1, 1, 1 } };
    data_loader *a = loader_ok(&o), *b = loader_ok(&q);
    data_batch x, y;
    CHECK_OK(loader_next(a, &x, &e), e);
    CHECK_OK(loader_next(b, &y, &e), e);
    CHECK(x.n == 2 && y.n == 2 && !memcmp(x.x, y.x, sizeof(float) * 2 * 16 * 16 * 3));
    loader_free(a), loader_free(b);
    data_free(s), data_free(p);
    remove_dir();
}

static void undecodable_images_are_left_out_of_a_pack_or_end_it(void) {
    make_dir();
    put_folders();
    put_file("train/ant/w.jpg", "not a picture", 13);
    data_set *s = open_ok(dir, "train", 0);
    CHECK(pack_ok(s, "train", "pack", 0, 1 << 20) == 4 && data_count(s) == 5);
    data_set *p = open_ok(in_dir("pack"), "train", 0);
    CHECK(data_count(p) == 4);
    CHECK_TEXT(data_name(p, 0), "ant/x.png");
    data_free(p);
    data_free(s);
    err e = { 0 };
    int64_t packed;
    const pack_options o = { .shard_bytes = 1 << 20 };
    s = data_open(dir, "train", &(data_options){ .fail_on_bad = true }, &e);
    CHECK(!data_pack(s, "train", in_dir("strict"), &o, &packed, &e) && e.code == ERR_DATA);
    CHECK(strstr(e.msg, "ant/w.jpg") && !file_exists(in_dir("strict/train-00000.pack")));
    CHECK(!data_pack(s, "train", in_dir("pack"), &o, &packed, &e) && e.code == ERR_USAGE);
    data_free(s);
    remove_dir();
}

/* Without the waiting of file_write: it is called for every byte. */
static void put_bytes(const char *name, const void *data, size_t n) {
    FILE *f = fopen(in_dir(name), "wb");
    CHECK(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

/* Any one byte of a pack changed: refused when opened, or the image it belongs to is bad. */
static void a_damaged_pack_is_refused(void) {
    make_dir();
    data_set *s = open_ok("builtin:shapes,size=8,train=4,classes=2", "train", 0), *p;
    pack_ok(s, "train", "pack", 0, 1 << 20);
    data_free(s);
    buf b = { 0 };
    err e = { 0 };
    CHECK_OK(file_read(in_dir("pack/train-00000.pack"), &b, &e), e);
    int refused = 0, bad = 0;
    for (size_t i = 0; i < b.len; i++) {
        b.data[i] ^= 4;
        put_bytes("pack/train-00000.pack", b.data, b.len);
        b.data[i] ^= 4;
        e = (err){ 0 };
        p = data_open(in_dir("pack"), "train", NULL, &e);
        if (!p) {
            CHECK(e.code == ERR_DATA && strstr(e.msg, "train-00000.pack"));
            refused++;
            continue;
        }
        for (int k = 0; k < 4; k++) {
            data_image im;
            if (data_decode(p, k, &im, &e)) image_free(&im);
            else bad++;
        }
        CHECK(data_bad(p, NULL, 0) <= 1);
        data_free(p);
    }
    CHECK(bad == 4 * 192 && refused > 200);
    for (size_t n = 0; n < b.len; n++) {
        put_bytes("pack/train-00000.pack", b.data, n);
        p = data_open(in_dir("pack"), "train", NULL, &e);
        CHECK(!p && e.code == ERR_DATA);
        data_free(p);
    }
    buf_put(&b, "x", 1);
    put_file("pack/train-00000.pack", b.data, b.len);
    CHECK(!data_open(in_dir("pack"), "train", NULL, &e) && strstr(e.msg, "pixels"));
    buf_free(&b);
    remove_dir();
}

static void shards_that_are_missing_or_strange_are_named(void) {
    make_dir();
    data_set *s = open_ok("builtin:shapes,size=8,train=8,classes=2", "train", 0);
    data_set *t = open_ok("builtin:shapes,size=8,train=8,classes=4", "train", 0);
    pack_ok(s, "train", "pack", 0, 200);
    pack_ok(t, "train", "other", 0, 200);
    buf b = { 0 };
    err e = { 0 };
    CHECK(!data_open(in_dir("pack"), "val", NULL, &e) && e.code == ERR_NOINPUT);
    CHECK_OK(file_read(in_dir("other/train-00001.pack"), &b, &e), e);
    put_file("pack/train-00001.pack", b.data, b.len);
    CHECK(!data_open(in_dir("pack"), "train", NULL, &e) && strstr(e.msg, "not of the same pack"));
    put_file("pack/train-00000.pack", b.data, b.len);
    CHECK(!data_open(in_dir("pack"), "train", NULL, &e) && strstr(e.msg, "holds shard 1"));
    unlink(in_dir("other/train-00002.pack"));
    CHECK(!data_open(in_dir("other"), "train", NULL, &e) && e.code == ERR_DATA);
    CHECK(strstr(e.msg, "train-00002.pack: this shard is missing"));
    buf_free(&b);
    data_free(s), data_free(t);
    remove_dir();
}

static void photographs_keep_their_pixels_in_a_pack(void) {
    const char *spec = "../shared/data/imagenette-224";
    if (!file_is_dir(spec)) SKIP("../shared/data/imagenette-224 is not there");
    make_dir();
    data_set *s = open_ok(spec, "val", 40);
    CHECK(pack_ok(s, "val", "pack", 0, 4 << 20) == 40);
    data_set *p = open_ok(in_dir("pack"), "val", 0);
    if (p) same_images(s, p);
    data_free(s), data_free(p);
    remove_dir();
}

int main(void) {
    START(2);
    RUN(a_pack_holds_what_it_was_made_from);
    RUN(a_loader_makes_the_same_batches_from_a_pack);
    RUN(packed_images_are_resized_as_evaluation_would);
    RUN(undecodable_images_are_left_out_of_a_pack_or_end_it);
    RUN(a_damaged_pack_is_refused);
    RUN(shards_that_are_missing_or_strange_are_named);
    RUN(photographs_keep_their_pixels_in_a_pack);
    core_stop();
    END();
}
