/* Folders of little data sets, for the tests of sets and of loaders. */
#ifndef LM_TEST_DATA_FILES_H
#define LM_TEST_DATA_FILES_H

#include <stdlib.h>
#include <unistd.h>

#include "core/core.h"
#include "data/data.h"
#include "tests/test.h"

static const char *const dir = temp_dir;

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

static inline void put_folders(void) {
    put_png("train/cat/b.PNG", 8, 8, 10);
    put_png("train/cat/a.jpeg", 8, 10, 20);              /* recognised by content */
    put_png("train/ant/x.png", 8, 8, 30);
    put_png("train/ant/y.png", 8, 8, 40);
    put_png("val/cat/v.png", 8, 8, 50);
    put_file("train/cat/notes.txt", "no image", 8);
    put_file("train/ant/.hidden.png", "no image", 8);
    put_file("train/README", "no class", 8);
}

static data_loader *loader_ok(const loader_options *o) {
    err e = { 0 };
    data_loader *l = loader_new(o, &e);
    CHECK_OK(l != NULL, e);
    return l;
}

static loader_options options_for(const data_set *s) {
    return (loader_options){
        .set = s, .batch = 16, .prep = data_default_prep(s), .seed = 3, .workers = 1
    };
}

#endif
