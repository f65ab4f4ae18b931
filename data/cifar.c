/* CIFAR-10, binary version: records of one label byte and 3×32×32 pixels, planes of red, green and
 * blue. Training images are those of all data_batch_*.bin, in the order of their names. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/parts.h"

enum { SIDE = 32, PLANE = SIDE * SIDE, RECORD = 1 + 3 * PLANE, CLASSES = 10, MAX_FILES = 1000 };

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names in `dir` that start with `prefix` and end with ".bin", sorted; -1: out of memory. */
static int list_batches(const char *dir, const char *prefix, char *name[MAX_FILES], err *e) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *f; d && n >= 0 && n < MAX_FILES && (f = readdir(d));) {
        size_t len = strlen(f->d_name);
        if (strncmp(f->d_name, prefix, strlen(prefix)) || len < 4 ||
            strcmp(f->d_name + len - 4, ".bin"))
            continue;
        if (!(name[n] = mem_text(f->d_name, e))) {
            while (n) mem_free(name[--n]);
            n = -2;
        }
        n++;
    }
    if (d) closedir(d);
    if (n > 0) qsort(name, (size_t)n, sizeof *name, by_name);
    return n;
}

static bool add_records(data_set *s, int64_t first, const char *path, const char *name,
                        const buf *b, err *e) {
    const uint8_t *p = (const uint8_t *)b->data;
    for (size_t r = 0; r < b->len / RECORD; r++, p += RECORD) {
        int64_t i = first + (int64_t)r;
        if (p[0] >= CLASSES)
            return err_set(e, ERR_DATA, "%s: record %zu has label %d, wanted 0 to 9", path, r,
                           p[0]);
        s->label[i] = p[0];
        set_add_name(s, i, "%s:%zu", name, r);
        uint8_t *x = s->pixel + (size_t)i * 3 * PLANE;
        for (int k = 0; k < PLANE; k++, x += 3)
            x[0] = p[1 + k], x[1] = p[1 + PLANE + k], x[2] = p[1 + 2 * PLANE + k];
    }
    return true;
}

static bool read_class_names(data_set *s, const char *dir, err *e) {
    char path[4096];
    buf text = { 0 };
    if (!set_number_classes(s, e) || !set_join(path, dir, "batches.meta.txt", e)) return false;
    if (!file_exists(path)) return true;
    bool ok = file_read(path, &text, e);
    char *at = text.data;
    for (int c = 0; ok && c < CLASSES && *at; c++) {
        size_t len = strcspn(at, "\r\n");
        char *next = at + len + strspn(at + len, "\r\n");
        at[len] = 0;
        ok = len == 0 || set_name_class(s, c, at, e);
        at = next;
    }
    buf_free(&text);
    return ok;
}

static bool read_batches(data_set *s, const char *dir, char *const *name, int n, err *e) {
    bool ok = false;
    char path[4096];
    int64_t total = 0, first = 0;
    buf *file = mem_new((size_t)n, sizeof *file, e);
    if (!file) return false;
    for (int i = 0; i < n; i++) {
        if (!set_join(path, dir, name[i], e) || !file_read(path, &file[i], e)) goto done;
        if (file[i].len == 0 || file[i].len % RECORD) {
            err_set(e, ERR_DATA, "%s: %zu bytes are not a multiple of %d", path, file[i].len,
                    RECORD);
            goto done;
        }
        total += (int64_t)(file[i].len / RECORD);
    }
    if (!set_alloc(s, total, CLASSES, e)) goto done;
    s->h = s->w = SIDE, s->c = 3;
    if (!(s->pixel = mem_new((size_t)total, 3 * PLANE, e))) goto done;
    for (int i = 0; i < n; i++) {
        if (!set_join(path, dir, name[i], e) || !add_records(s, first, path, name[i], &file[i], e))
            goto done;
        first += (int64_t)(file[i].len / RECORD);
        buf_free(&file[i]);
    }
    ok = read_class_names(s, dir, e);
done:
    for (int i = 0; i < n; i++) buf_free(&file[i]);
    mem_free(file);
    return ok;
}

source_answer cifar_open(data_set *s, const char *spec, const char *split, err *e) {
    static const char *const prefix[2] = { "data_batch_", "test_batch.bin" };
    const bool val = !strcmp(split, "val");
    char *name[MAX_FILES];
    int other = list_batches(spec, prefix[!val], name, e);
    for (int i = 0; i < other; i++) mem_free(name[i]);
    int n = other < 0 ? -1 : list_batches(spec, prefix[val], name, e);
    if (n < 0) return SOURCE_FAILED;
    source_answer answer = SOURCE_NOT_MINE;
    if (n > 0) {
        answer = read_batches(s, spec, name, n, e) ? SOURCE_OPENED : SOURCE_FAILED;
        s->prep =
            (data_prep){ SIDE, SIDE, 3, 0, { 0.485f, 0.456f, 0.406f }, { 0.229f, 0.224f, 0.225f } };
    } else if (other > 0) {
        err_set(e, ERR_NOINPUT, "%s/%s: no such file", spec, val ? prefix[1] : "data_batch_1.bin");
        answer = SOURCE_ABSENT;
    }
    while (n) mem_free(name[--n]);
    return answer;
}
