/* Sets of numbered images, whatever they come from: opening, names, the limit, and decoded pixels
 * that stay in memory while there is room. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/parts.h"

#define MEMO_BYTES ((long long)256 << 20)      /* decoded pixels kept per set */

static source_open *const sources[] = { shapes_open, pack_open, cifar_open, mnist_open,
                                       folder_open };

/* ---- what sources use ------------------------------------------------------------------------ */

bool set_count(data_set *s, int64_t n, err *e) {
    if (n > INT32_MAX) return err_set(e, ERR_DATA, "%lld images are more than 2^31", (long long)n);
    s->n = s->n_source = n;
    s->label = mem_new((size_t)n, sizeof *s->label, e);
    s->name_at = s->label ? mem_new((size_t)n, sizeof *s->name_at, e) : NULL;
    return s->name_at != NULL;
}

bool set_alloc(data_set *s, int64_t n, int classes, err *e) {
    s->classes = classes;
    s->class_name = mem_new((size_t)classes, sizeof *s->class_name, e);
    return s->class_name && set_count(s, n, e);
}

bool set_name_class(data_set *s, int label, const char *name, err *e) {
    mem_free(s->class_name[label]);
    s->class_name[label] = mem_text(name, e);
    return s->class_name[label] != NULL;
}

bool set_number_classes(data_set *s, err *e) {
    for (int c = 0; c < s->classes; c++) {
        char name[16];
        snprintf(name, sizeof name, "%d", c);
        if (!set_name_class(s, c, name, e)) return false;
    }
    return true;
}

void set_add_name(data_set *s, int64_t i, const char *fmt, ...) {
    va_list ap;
    s->name_at[i] = s->names.len;
    va_start(ap, fmt);
    buf_vprintf(&s->names, fmt, ap);
    va_end(ap);
    buf_put(&s->names, "", 1);
}

bool set_join(char out[4096], const char *dir, const char *name, err *e) {
    int n = snprintf(out, 4096, "%s/%s", dir, name);
    return (n >= 0 && n < 4096) || err_set(e, ERR_DATA, "%s/%s: the path is too long", dir, name);
}

/* ---- opening --------------------------------------------------------------------------------- */

static bool apply_limit(data_set *s, const data_options *o, err *e) {
    if (o->limit < 0) return err_set(e, ERR_USAGE, "a limit of %lld images", (long long)o->limit);
    if (o->limit == 0 || o->limit >= s->n) return true;
    int32_t *map = s->map = mem_new((size_t)o->limit, sizeof *map, e);
    uint8_t *take = map ? mem_new((size_t)s->n, 1, e) : NULL;
    if (!take || !balanced_order(s->label, s->n, s->classes, o->seed, 0, o->limit, map, e)) {
        mem_free(take);
        return false;
    }
    for (int64_t i = 0; i < o->limit; i++) take[map[i]] = 1; /* in the order of the files */
    for (int64_t i = 0, k = 0; i < s->n; i++)
        if (take[i]) map[k++] = (int32_t)i;
    mem_free(take);
    s->n = o->limit;
    return true;
}

bool data_size_parse(data_options *o, const char *text, err *e) {
    char end;
    if (!text) return true;
    int n = sscanf(text, "%5d,%5d%c", &o->h, &o->w, &end);
    if (n == 1) n = sscanf(text, "%5d%c", &o->h, &end) == 1 ? 2 : 0, o->w = o->h;
    if (n == 2 && o->h >= 1 && o->h <= IMAGE_MAX_SIDE && o->w >= 1 && o->w <= IMAGE_MAX_SIDE)
        return true;
    return err_set(e, ERR_USAGE, "--size %s: one side or height,width from 1 to %d is wanted", text,
                   IMAGE_MAX_SIDE);
}

static bool finish_open(data_set *s, const char *spec, const data_options *o, err *e) {
    if (s->n == 0) return err_set(e, ERR_DATA, "%s: no images", spec);
    if (s->names.failed) return err_set(e, ERR_NOMEM, "%s: no memory for the names", spec);
    s->bad = mem_new((size_t)s->n, sizeof *s->bad, e);
    if (!s->bad) return false;
    if (s->produce) {
        s->memo = mem_new((size_t)s->n, sizeof *s->memo, e);
        s->memo_left = s->memo ? mem_new(1, sizeof *s->memo_left, e) : NULL;
        if (!s->memo_left) return false;
        atomic_store(s->memo_left, o->forget ? 0 : MEMO_BYTES);
    }
    s->fail_on_bad = o->fail_on_bad;
    s->sized = o->h > 0;
    if (s->sized) s->prep = data_prep_at(s->prep, o->h, o->w);
    return apply_limit(s, o, e);
}

data_set *data_open(const char *spec, const char *split, const data_options *o, err *e) {
    static const data_options none;
    bool builtin = !strncmp(spec, "builtin:", 8);
    if (strcmp(split, "train") && strcmp(split, "val")) {
        err_set(e, ERR_USAGE, "split %s: train and val are known", split);
        return NULL;
    }
    if (!builtin && !file_is_dir(spec)) {
        if (file_exists(spec)) err_set(e, ERR_DATA, "%s: a folder is wanted, not a file", spec);
        else err_set(e, ERR_NOINPUT, "%s: no such folder", spec);
        return NULL;
    }
    if (!builtin && access(spec, R_OK | X_OK)) {
        err_set(e, ERR_NOINPUT, "cannot open %s: %s", spec, strerror(errno));
        return NULL;
    }
    data_set *s = mem_new(1, sizeof *s, e);
    if (!s) return NULL;
    source_answer answer = (s->spec = mem_text(spec, e)) ? SOURCE_NOT_MINE : SOURCE_FAILED;
    for (size_t i = 0; i < sizeof sources / sizeof *sources && answer == SOURCE_NOT_MINE; i++)
        answer = sources[i](s, spec, split, e);
    if (o && o->absent) *o->absent = answer == SOURCE_ABSENT;
    if (answer == SOURCE_NOT_MINE) {
        if (builtin) err_set(e, ERR_USAGE, "%s: the built-in set is builtin:shapes", spec);
        else
            err_set(e, ERR_DATA,
                    "%s: neither class folders (train/ and val/) nor CIFAR-10 binary nor IDX "
                    "files nor a pack",
                    spec);
    }
    if (answer != SOURCE_OPENED || !finish_open(s, spec, o ? o : &none, e)) {
        data_free(s);
        return NULL;
    }
    return s;
}

void data_free(data_set *s) {
    if (!s) return;
    if (s->source_free) s->source_free(s->source);
    for (int64_t i = 0; s->memo && i < s->n_source; i++) mem_free(atomic_load(&s->memo[i]));
    for (int c = 0; s->class_name && c < s->classes; c++) mem_free(s->class_name[c]);
    mem_free(s->spec);
    mem_free(s->memo);
    mem_free(s->memo_left);
    mem_free(s->class_name);
    mem_free(s->label);
    mem_free(s->name_at);
    buf_free(&s->names);
    mem_free(s->pixel);
    mem_free(s->map);
    mem_free(s->bad);
    mem_free(s);
}

/* ---- looking --------------------------------------------------------------------------------- */

bool data_relabel(data_set *s, const int32_t *to, int classes, err *e) {
    char **name = mem_new((size_t)classes, sizeof *name, e);
    if (!name) return false;
    for (int c = 0; c < s->classes; c++) {
        mem_free(name[to[c]]);
        name[to[c]] = s->class_name[c];
    }
    for (int64_t i = 0; i < s->n_source; i++) s->label[i] = to[s->label[i]];
    mem_free(s->class_name);
    s->class_name = name;
    s->classes = classes;
    return true;
}

int64_t     data_number(const data_set *s, int64_t i) { return s->map ? s->map[i] : i; }
int64_t     data_count(const data_set *s) { return s->n; }
int         data_classes(const data_set *s) { return s->classes; }
const char *data_class_name(const data_set *s, int label) { return s->class_name[label]; }
int         data_label(const data_set *s, int64_t i) { return s->label[data_number(s, i)]; }
const char *data_name(const data_set *s, int64_t i) {
    return s->names.data + s->name_at[data_number(s, i)];
}
data_prep   data_default_prep(const data_set *s) { return s->prep; }
bool        data_sized(const data_set *s) { return s->sized; }

int64_t data_bad(const data_set *s, int64_t *index, int64_t max) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->n; i++)
        if (atomic_load(&s->bad[data_number(s, i)])) {
            if (n < max) index[n] = i;
            n++;
        }
    return n;
}

bool data_bad_text(const data_set *s, buf *out) {
    enum { NAMED = 8 };
    int64_t first[NAMED], n = data_bad(s, first, NAMED);
    if (!n) return false;
    buf_printf(out, "%lld of %lld images could not be decoded and were left out:", (long long)n,
               (long long)s->n);
    for (int64_t i = 0; i < n && i < NAMED; i++) buf_printf(out, " %s", data_name(s, first[i]));
    if (n > NAMED) buf_puts(out, " ...");
    return true;
}

/* Keep a copy while there is room. Two threads may come with the same image; one copy stays. */
static void keep(const data_set *s, int64_t k, const data_image *im) {
    long long bytes = (long long)im->h * im->w * im->c;
    if (atomic_fetch_sub(s->memo_left, bytes) < bytes) {
        atomic_fetch_add(s->memo_left, bytes);
        return;
    }
    set_frame *f = mem_new(sizeof *f + (size_t)bytes, 1, NULL), *none = NULL;
    if (f) {
        f->h = im->h, f->w = im->w, f->c = im->c;
        memcpy(f->x, im->x, (size_t)bytes);
    }
    if (!f || !atomic_compare_exchange_strong(&s->memo[k], &none, f)) {
        atomic_fetch_add(s->memo_left, bytes);
        mem_free(f);
    }
}

bool set_look(const data_set *s, int64_t i, set_view *v, err *e) {
    int64_t k = data_number(s, i);
    if (s->pixel) {
        size_t one = (size_t)s->h * (size_t)s->w * (size_t)s->c;
        *v = (set_view){ s->h, s->w, s->c, s->pixel + (size_t)k * one, NULL };
        return true;
    }
    set_frame *f = s->look ? NULL : atomic_load(&s->memo[k]);
    if (f) {
        *v = (set_view){ f->h, f->w, f->c, f->x, NULL };
        return true;
    }
    data_image im;
    err mine = { 0 };
    if (s->look ? !s->look(s, k, v, &mine) : !s->produce(s, k, &im, &mine)) {
        if (mine.code != ERR_NOMEM) atomic_store(&s->bad[k], 1);
        return err_set(e, mine.code, "%s", mine.msg);
    }
    if (s->look) return true;
    keep(s, k, &im);
    *v = (set_view){ im.h, im.w, im.c, im.x, im.x };
    return true;
}

bool data_decode(const data_set *s, int64_t i, data_image *out, err *e) {
    set_view v;
    *out = (data_image){ 0 };
    if (!set_look(s, i, &v, e)) return false;
    uint8_t *x = v.own;
    if (!x) {
        size_t bytes = (size_t)v.h * (size_t)v.w * (size_t)v.c;
        if (!(x = mem_new(bytes, 1, e))) return false;
        memcpy(x, v.x, bytes);
    }
    *out = (data_image){ v.h, v.w, v.c, x };
    return true;
}
