/* safetensors: 8 bytes header length, a JSON header, then the data without holes or overlap.
 *   {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets": [from, to]}, …} */
#include "core/tensorfile.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_MAX = 100000000, DATA_ALIGN = 64 };       /* the maximum is the format's own */

/* ---- reading ------------------------------------------------------------------------------ */

typedef struct { uint64_t from, to; const char *name; } range;

static bool read_meta(tensor_file *f, const json *meta, err *e) {
    if (meta->type != JSON_OBJECT)
        return err_set(e, ERR_DATA, "__metadata__ is not an object");
    for (const json *m = meta->child; m; m = m->next) {
        if (m->type != JSON_STRING)
            return err_set(e, ERR_DATA, "__metadata__ \"%.200s\" is not a text", m->key);
        if (!tf_add_meta(f, m->key, m->text, e)) return false;
    }
    return true;
}

/* The elements of an array as sizes; -1 if it is no such array or longer than max, -2 if one of them is
 * beyond every file. */
static int read_sizes(const json *array, int64_t *out, int max) {
    if (!array || array->type != JSON_ARRAY || array->count > max) return -1;
    int n = 0;
    for (const json *m = array->child; m; m = m->next) {
        if (m->type != JSON_NUMBER || m->number < 0 || m->number != floor(m->number))
            return -1;
        if (m->number > 9007199254740992.0) return -2;
        out[n++] = (int64_t)m->number;
    }
    return n;
}

static bool read_dtype(const json *j, tf_dtype *out) {
    for (int i = 0; j && j->type == JSON_STRING && i < DT_COUNT; i++)
        if (!strcmp(j->text, tf_dtype_names[i])) {
            *out = (tf_dtype)i;
            return true;
        }
    return false;
}

static bool read_tensor(tensor_file *f, const json *j, const char *data, size_t size, range *r,
                        err *e) {
    tf_tensor t = { .name = j->key };
    int64_t at[2], count;
    if (!*j->key)
        return err_set(e, ERR_DATA, "a tensor has no name");
    if (j->type != JSON_OBJECT)
        return err_set(e, ERR_DATA, "tensor %.200s is not described by an object", j->key);
    if (!read_dtype(json_get(j, "dtype"), &t.dtype)) {
        const json *d = json_get(j, "dtype");
        return err_set(e, ERR_DATA, "tensor %.200s: dtype %.40s is not supported", j->key,
                       d && d->type == JSON_STRING ? d->text : "(none)");
    }
    t.rank = read_sizes(json_get(j, "shape"), t.dim, TF_RANK);
    if (t.rank == -1)
        return err_set(e, ERR_DATA, "tensor %.200s: shape is not a list of at most 8 sizes",
                       j->key);
    if (t.rank < 0 || !tf_shape_count(t.dim, t.rank, t.dtype, &count))
        return err_set(e, ERR_DATA, "tensor %.200s: its shape is too big for any file", j->key);
    if (read_sizes(json_get(j, "data_offsets"), at, 2) != 2 || at[0] > at[1]
        || (uint64_t)at[1] > size)
        return err_set(e, ERR_DATA, "tensor %.200s: data_offsets do not lie within %zu bytes"
                       " of data", j->key, size);
    if (at[1] - at[0] != count * tf_dtype_bytes[t.dtype])
        return err_set(e, ERR_DATA, "tensor %.200s: %" PRId64 " elements of %s but %" PRId64
                       " bytes", j->key, count, tf_dtype_names[t.dtype], at[1] - at[0]);
    tf_dense_strides(t.dim, t.rank, t.stride);
    t.data = data + at[0];
    *r = (range){ (uint64_t)at[0], (uint64_t)at[1], j->key };
    return tf_add(f, &t, e);
}

static int by_offset(const void *a, const void *b) {
    const range *x = a, *y = b;
    if (x->from != y->from) return x->from < y->from ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to);
}

/* Every byte of data belongs to exactly one tensor. */
static bool check_ranges(range *r, int n, size_t size, err *e) {
    uint64_t at = 0;
    qsort(r, (size_t)n, sizeof *r, by_offset);
    for (int i = 0; i < n; at = r[i++].to)
        if (r[i].from != at)
            return err_set(e, ERR_DATA, "tensor %.200s begins at data byte %" PRIu64
                           " but the one before ends at %" PRIu64, r[i].name, r[i].from, at);
    return at == size
        || err_set(e, ERR_DATA, "tensors end at data byte %" PRIu64 " of %zu", at, size);
}

static bool read_header(tensor_file *f, const json *header, const char *data, size_t size, err *e) {
    range *r = mem_new((size_t)header->count, sizeof *r, e);
    bool ok = r != NULL;
    for (const json *j = header->child; ok && j; j = j->next)
        ok = !strcmp(j->key, "__metadata__") ? read_meta(f, j, e)
                                             : read_tensor(f, j, data, size, &r[f->n], e);
    ok = ok && check_ranges(r, f->n, size, e);
    mem_free(r);
    return ok;
}

bool safetensors_parse(tensor_file *f, const char *data, size_t size, err *e) {
    *f = (tensor_file){0};
    uint64_t len = size >= 8 ? le_u64(data) : 0;
    if (size < 8 || len > HEADER_MAX || len > size - 8)
        return err_set(e, ERR_DATA, "safetensors: a header of %" PRIu64 " bytes does not fit into"
                       " a file of %zu", len, size);
    if (len == 0 || data[8] != '{')
        return err_set(e, ERR_DATA, "safetensors: header is not a JSON object");
    json *header = json_parse(data + 8, (size_t)len, e);
    if (!header) return err_note(e, "safetensors: header");
    bool ok = tf_begin(f, e) && read_header(f, header, data + 8 + len, size - 8 - (size_t)len, e);
    json_free(header);
    if (ok) return true;
    tensor_file_close(f);
    return err_note(e, "safetensors");
}

/* ---- writing ------------------------------------------------------------------------------ */

static bool check_tensor(const tf_tensor *t, int64_t *count, err *e) {
    int64_t dense[TF_RANK], none[TF_RANK] = {0};
    size_t bytes = sizeof *dense * (size_t)(t->rank > 0 ? t->rank : 0);
    if (!t->name || !*t->name || !strcmp(t->name, "__metadata__"))
        return err_set(e, ERR_CONFIG, "a tensor cannot be named \"%s\"", t->name ? t->name : "");
    if ((unsigned)t->dtype >= DT_COUNT || t->rank < 0 || t->rank > TF_RANK
        || !tf_shape_count(t->dim, t->rank, t->dtype, count) || (*count && !t->data))
        return err_set(e, ERR_CONFIG, "tensor %s cannot be written: bad type, shape or data",
                       t->name);
    tf_dense_strides(t->dim, t->rank, dense);
    if (*count && memcmp(t->stride, dense, bytes) && memcmp(t->stride, none, bytes))
        return err_set(e, ERR_CONFIG, "tensor %s is not contiguous", t->name);   /* 0: left unset */
    return true;
}

/* Wide elements first, so that each tensor is aligned to its own elements. */
static bool place_tensors(const tf_tensor *t, int n, uint64_t *from, uint64_t *size, err *e) {
    *size = 0;
    for (int width = 8; width >= 1; width /= 2)
        for (int i = 0; i < n; i++) {
            int64_t count;
            if (!check_tensor(&t[i], &count, e)) return false;
            if (tf_dtype_bytes[t[i].dtype] != width) continue;
            from[i] = *size;
            *size += (uint64_t)(count * width);
            if (*size > INT64_MAX / 2)
                return err_set(e, ERR_NOMEM, "tensors of %" PRIu64 " bytes are too large", *size);
        }
    return true;
}

static bool check_meta(const text_pair *meta, int n, err *e) {
    for (int i = 0; i < n; i++) {
        if (!meta[i].key || !meta[i].value)
            return err_set(e, ERR_CONFIG, "metadata %d has no key or no value", i);
        for (int k = 0; k < i; k++)
            if (!strcmp(meta[i].key, meta[k].key))
                return err_set(e, ERR_CONFIG, "metadata \"%.200s\" appears twice", meta[i].key);
    }
    return true;
}

static void write_tensor(json_writer *w, const tf_tensor *t, uint64_t from) {
    json_begin(w, t->name, '{');
    json_text(w, "dtype", tf_dtype_names[t->dtype]);
    json_begin(w, "shape", '[');
    for (int d = 0; d < t->rank; d++)
        json_int(w, NULL, t->dim[d]);
    json_end(w, ']');
    json_begin(w, "data_offsets", '[');
    json_int(w, NULL, (int64_t)from);
    json_int(w, NULL, (int64_t)from + tf_count(t) * tf_dtype_bytes[t->dtype]);
    json_end(w, ']');
    json_end(w, '}');
}

static void write_header(buf *out, const tf_tensor *t, int n, const uint64_t *from,
                         const text_pair *meta, int n_meta) {
    json_writer w = json_writer_on(out, false);
    buf_put(out, "\0\0\0\0\0\0\0", 8);
    json_begin(&w, NULL, '{');
    if (n_meta > 0) {
        json_begin(&w, "__metadata__", '{');
        for (int i = 0; i < n_meta; i++)
            json_text(&w, meta[i].key, meta[i].value);
        json_end(&w, '}');
    }
    for (int i = 0; i < n; i++)
        write_tensor(&w, &t[i], from[i]);
    json_end(&w, '}');
    while (!out->failed && out->len % DATA_ALIGN)
        buf_puts(out, " ");
    uint64_t len = out->len - 8;
    if (!out->failed) memcpy(out->data, &len, sizeof len);
}

bool safetensors_write(const char *path, const tf_tensor *t, int n, const text_pair *meta,
                       int n_meta, err *e) {
    buf out = {0};
    uint64_t size, *from = mem_new((size_t)n, sizeof *from, e);
    bool ok = from && place_tensors(t, n, from, &size, e)
           && check_meta(meta, n_meta, e) && tf_names_unique(t, n, e);
    char *file = NULL;
    if (ok) {
        write_header(&out, t, n, from, meta, n_meta);
        ok = !out.failed || err_set(e, ERR_NOMEM, "out of memory");
        ok = ok && (out.len - 8 <= HEADER_MAX || err_set(e, ERR_CONFIG, "header is too long"));
    }
    size_t total = 0;
    ok = ok && (size_add(out.len, size, &total) || err_set(e, ERR_NOMEM, "out of memory"))
            && (file = mem_new(total, 1, e));
    if (ok) {
        memcpy(file, out.data, out.len);
        for (int i = 0; i < n; i++) {
            size_t bytes = (size_t)tf_count(&t[i]) * (size_t)tf_dtype_bytes[t[i].dtype];
            if (bytes) memcpy(file + out.len + from[i], t[i].data, bytes);
        }
    }
    ok = ok ? file_write(path, file, total, e) : err_note(e, "writing %s", path);
    mem_free(from);
    mem_free(file);
    buf_free(&out);
    return ok;
}
