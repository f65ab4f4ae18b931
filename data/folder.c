/* Class folders: DIR/train/<class>/image.jpg, DIR/val/<class>/…. Classes are the sorted folder
 * names of train/ (of val/ when there is no train/); only files named as JPEG or PNG are images. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "data/parts.h"

typedef struct { char **name; int64_t n, cap; } names;
typedef struct { char *dir; } folder;

static void names_free(names *l) {
    for (int64_t i = 0; i < l->n; i++) mem_free(l->name[i]);
    free(l->name);
    *l = (names){ 0 };
}

static bool names_add(names *l, const char *name, err *e) {
    if (l->n == l->cap) {
        int64_t cap = l->cap ? 2 * l->cap : 64;
        char **grown = realloc(l->name, (size_t)cap * sizeof *grown);
        if (!grown) return err_set(e, ERR_NOMEM, "no memory for %lld names", (long long)cap);
        l->name = grown;
        l->cap = cap;
    }
    if (!(l->name[l->n] = mem_text(name, e))) return false;
    l->n++;
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_image_name(const char *name) {
    static const char *const ends[] = { ".jpg", ".jpeg", ".png" };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof ends / sizeof *ends; i++)
        if (!strcasecmp(dot, ends[i])) return true;
    return false;
}

/* A pipe or a device has no end. A link that leads nowhere is an image that cannot be decoded. */
static bool is_wanted(const char *path, bool folders) {
    struct stat st;
    if (stat(path, &st)) return !folders;
    return folders ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode);
}

/* Sorted entries of dir, hidden ones left out: folders, or files with an image's name. */
static bool list(const char *dir, bool folders, names *out, err *e) {
    bool ok = true;
    char path[4096];
    DIR *d = opendir(dir);
    if (!d) return err_set(e, ERR_IO, "cannot open %s: %s", dir, strerror(errno));
    for (struct dirent *f; ok && (f = readdir(d));) {
        if (f->d_name[0] == '.' || (!folders && !is_image_name(f->d_name))) continue;
        ok = set_join(path, dir, f->d_name, e);
        if (ok && is_wanted(path, folders)) ok = names_add(out, f->d_name, e);
    }
    closedir(d);
    if (out->n) qsort(out->name, (size_t)out->n, sizeof *out->name, by_name);
    return ok;
}

static bool produce(const data_set *s, int64_t k, data_image *out, err *e) {
    const folder *f = s->source;
    char path[4096];
    file_map m;
    if (!set_join(path, f->dir, s->names.data + s->name_at[k], e) || !file_map_open(&m, path, e))
        return false;
    bool ok = image_decode(m.data, m.size, path, 0, out, e);
    file_map_close(&m);
    return ok;
}

static void source_free(void *source) {
    folder *f = source;
    mem_free(f->dir);
    mem_free(f);
}

/* All image files of a split as "class/file", and the label of each in `at`. */
static bool list_split(const char *dir, const names *classes, names *files, buf *labels, err *e) {
    bool ok = false;
    char path[4096];
    names here = { 0 }, found = { 0 };
    if (!list(dir, true, &here, e)) goto done;
    for (int64_t i = 0; i < here.n; i++) {
        char **c = bsearch(&here.name[i], classes->name, (size_t)classes->n, sizeof *c, by_name);
        if (!c) {
            err_set(e, ERR_DATA, "%s/%s: this class is not among those of train", dir,
                    here.name[i]);
            goto done;
        }
        int32_t label = (int32_t)(c - classes->name);
        if (!set_join(path, dir, here.name[i], e) || !list(path, false, &found, e)) goto done;
        if (!found.n) {
            err_set(e, ERR_DATA, "%s: no images in this class folder", path);
            goto done;
        }
        for (int64_t k = 0; k < found.n; k++) {
            if (!set_join(path, here.name[i], found.name[k], e) || !names_add(files, path, e))
                goto done;
            buf_put(labels, &label, sizeof label);
        }
        names_free(&found);
    }
    ok = !labels->failed || err_set(e, ERR_NOMEM, "no memory for the labels of %s", dir);
done:
    names_free(&here);
    names_free(&found);
    return ok;
}

static bool fill(data_set *s, const char *dir, const names *classes, err *e) {
    bool ok = false;
    names files = { 0 };
    buf labels = { 0 };
    if (!list_split(dir, classes, &files, &labels, e)) goto done;
    if (!set_alloc(s, files.n, (int)classes->n, e)) goto done;
    for (int c = 0; c < s->classes; c++)
        if (!set_name_class(s, c, classes->name[c], e)) goto done;
    if (labels.len) memcpy(s->label, labels.data, labels.len);
    for (int64_t i = 0; i < files.n; i++) set_add_name(s, i, "%s", files.name[i]);
    folder *f = mem_new(1, sizeof *f, e);
    if (!f) goto done;
    s->source = f;
    s->source_free = source_free;
    s->produce = produce;
    if (!(f->dir = mem_text(dir, e))) goto done;
    s->prep =
        (data_prep){ 224, 224, 3, 256, { 0.485f, 0.456f, 0.406f }, { 0.229f, 0.224f, 0.225f } };
    ok = true;
done:
    names_free(&files);
    buf_free(&labels);
    return ok;
}

source_answer folder_open(data_set *s, const char *spec, const char *split, err *e) {
    char train[4096], dir[4096];
    if (!set_join(train, spec, "train", e) || !set_join(dir, spec, split, e)) return SOURCE_FAILED;
    char val[4096];
    if (!set_join(val, spec, "val", e)) return SOURCE_FAILED;
    if (!file_is_dir(train) && !file_is_dir(val)) return SOURCE_NOT_MINE;
    if (!file_exists(dir)) {
        err_set(e, ERR_NOINPUT, "%s: no such folder", dir);
        return SOURCE_ABSENT;
    }
    names classes = { 0 };
    const char *named = file_is_dir(train) ? train : val;
    bool ok = list(named, true, &classes, e);
    if (ok && !classes.n) ok = err_set(e, ERR_DATA, "%s: no class folders", named);
    ok = ok && fill(s, dir, &classes, e);
    names_free(&classes);
    return ok ? SOURCE_OPENED : SOURCE_FAILED;
}
