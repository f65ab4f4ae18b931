/* Loaders: every image once, and the same batches whoever makes them, whenever they are wanted. */
#include "tests/data_files.h"

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
            h = (h ^ (uint64_t)b.label[i] ^ (uint64_t)b.label2[i] << 8 ^
                 (uint64_t)b.index[i] << 16) *
                1099511628211u;
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
    uint64_t whole = 0, tail = 0; /* 7 batches and an end: 8 calls an epoch */
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
                                    same = same &&
                                           b.x[((i * 8 + y) * 8 + x) * 3 + c] ==
                                               (in ? (float)im.x[(sy * 8 + sx) * 3 + c] / 255.0f
                                                   : 0.0f);
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
                CHECK_CLOSE(b.x[i * 192 + j],
                            ((double)b.lam * p.x[j] + (1 - (double)b.lam) * q.x[j]) / 255, 1e-6);
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

int main(void) {
    RUN(an_epoch_holds_every_image_once_and_ends);
    RUN(bits_do_not_depend_on_workers_or_resume);
    RUN(pixels_do_not_depend_on_batch_size_or_order);
    RUN(mirrored_and_padded_images_are_shifts_of_the_original);
    RUN(mixup_mixes_with_the_mirror_of_the_batch);
    RUN(erasing_replaces_a_box_by_noise);
    RUN(subsets_and_impossible_options);
    RUN(bad_images_are_listed_and_replaced_by_the_next_good_one);
    RUN(a_loader_may_be_freed_or_moved_at_any_moment);
    END();
}
