/* Tensor files: which reader, who owns what, and elements turned into float or int64. */
#include "core/tensorfile.h"
#include "core/pool.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensor files hold little-endian elements and are read in place"
#endif

const char *const tf_dtype_names[DT_COUNT] = {
    [DT_F32] = "F32", [DT_F64] = "F64", [DT_F16] = "F16", [DT_BF16] = "BF16", [DT_I64] = "I64",
    [DT_I32] = "I32", [DT_U8] = "U8", [DT_BOOL] = "BOOL", [DT_I16] = "I16", [DT_I8] = "I8",
    [DT_U16] = "U16", [DT_U32] = "U32", [DT_U64] = "U64",
    [DT_F8_E4M3] = "F8_E4M3", [DT_F8_E5M2] = "F8_E5M2", [DT_C64] = "C64",
};
const int tf_dtype_bytes[DT_COUNT] = {
    [DT_F32] = 4, [DT_F64] = 8, [DT_F16] = 2, [DT_BF16] = 2, [DT_I64] = 8,
    [DT_I32] = 4, [DT_U8] = 1, [DT_BOOL] = 1, [DT_I16] = 2, [DT_I8] = 1,
    [DT_U16] = 2, [DT_U32] = 4, [DT_U64] = 8,
    [DT_F8_E4M3] = 1, [DT_F8_E5M2] = 1, [DT_C64] = 8,
};

uint64_t le_u64(const char *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }
uint32_t le_u32(const char *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
uint16_t le_u16(const char *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }

/* ---- opening and closing ------------------------------------------------------------------ */

bool tf_begin(tensor_file *f, err *e) {
    *f = (tensor_file){0};
    return (f->priv = mem_new(1, sizeof(tf_private), e)) != NULL;
}

bool tf_add(tensor_file *f, const tf_tensor *t, err *e) {
    tf_private *p = f->priv;
    void *grown = f->tensor;
    if (f->n == INT_MAX)
        return err_set(e, ERR_DATA, "too many tensors");
    if (!array_grow(&grown, (size_t)f->n, &p->cap, sizeof *t, e))
        return false;
    f->tensor = grown;
    tf_tensor copy = *t;
    if (!(copy.name = mem_text(t->name, e)))
        return false;
    f->tensor[f->n++] = copy;
    return true;
}

bool tf_add_meta(tensor_file *f, const char *key, const char *value, err *e) {
    tf_private *p = f->priv;
    size_t key_cap = p->meta_cap, value_cap = p->meta_cap;
    void *keys = f->meta_key, *values = f->meta_value;
    if (!array_grow(&keys, (size_t)f->n_meta, &key_cap, sizeof *f->meta_key, e))
        return false;
    f->meta_key = keys;
    if (!array_grow(&values, (size_t)f->n_meta, &value_cap, sizeof *f->meta_value, e))
        return false;
    f->meta_value = values;
    p->meta_cap = value_cap;
    char *k = mem_text(key, e), *v = k ? mem_text(value, e) : NULL;
    if (!v) {
        mem_free(k);
        return false;
    }
    f->meta_key[f->n_meta] = k;
    f->meta_value[f->n_meta++] = v;
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool tf_names_unique(const tf_tensor *t, int n, err *e) {
    char **name = mem_new((size_t)n, sizeof *name, e);
    if (!name)
        return false;
    for (int i = 0; i < n; i++)
        name[i] = t[i].name;
    qsort(name, (size_t)n, sizeof *name, by_name);
    bool ok = true;
    for (int i = 1; ok && i < n; i++)
        if (!strcmp(name[i - 1], name[i]))
            ok = err_set(e, ERR_DATA, "tensor %.200s appears twice", name[i]);
    mem_free(name);
    return ok;
}

static bool parse_any(tensor_file *f, const char *data, size_t size, err *e) {
    const bool brace = size > 8 && data[8] == '{';
    if (brace && le_u64(data) <= size - 8)       /* its length may well begin with 0x80 */
        return safetensors_parse(f, data, size, e);
    if (size >= 4 && (!memcmp(data, "PK\3\4", 4) || (unsigned char)data[0] == 0x80))
        return pth_parse(f, data, size, e);
    if (brace)
        return safetensors_parse(f, data, size, e);
    *f = (tensor_file){0};
    return err_set(e, ERR_DATA, "is neither safetensors nor a PyTorch file");
}

bool tensor_file_open(tensor_file *f, const char *path, err *e) {
    file_map map;
    *f = (tensor_file){0};
    if (!file_map_open(&map, path, e))
        return false;
    char *copy = mem_text(path, e);
    bool ok = copy != NULL;
    if (ok && !(ok = parse_any(f, map.data, map.size, e)))
        err_note(e, "%s", path);
    if (!ok) {
        mem_free(copy);
        file_map_close(&map);
        return false;
    }
    f->path = copy;
    ((tf_private *)f->priv)->map = map;
    return true;
}

void tensor_file_close(tensor_file *f) {
    tf_private *p = f->priv;
    for (int i = 0; i < f->n; i++)
        mem_free(f->tensor[i].name);
    for (int i = 0; i < f->n_meta; i++) {
        mem_free(f->meta_key[i]);
        mem_free(f->meta_value[i]);
    }
    mem_free(f->tensor);
    mem_free(f->meta_key);
    mem_free(f->meta_value);
    mem_free(f->path);
    if (p) {
        zip_free(&p->zip);
        if (p->map.data)
            file_map_close(&p->map);
        mem_free(p);
    }
    *f = (tensor_file){0};
}

const tf_tensor *tensor_file_find(const tensor_file *f, const char *name) {
    for (int i = 0; i < f->n; i++)
        if (!strcmp(f->tensor[i].name, name))
            return &f->tensor[i];
    return NULL;
}

const char *tensor_file_meta(const tensor_file *f, const char *key) {
    for (int i = 0; i < f->n_meta; i++)
        if (!strcmp(f->meta_key[i], key))
            return f->meta_value[i];
    return NULL;
}

/* ---- shapes ------------------------------------------------------------------------------- */

bool tf_shape_count(const int64_t *dim, int rank, tf_dtype dtype, int64_t *count) {
    int64_t n = 1;
    bool zero = false;
    for (int i = 0; i < rank; i++) {
        if (dim[i] < 0)
            return false;
        zero |= dim[i] == 0;
    }
    for (int i = 0; i < rank && !zero; i++)
        if (__builtin_mul_overflow(n, dim[i], &n))
            return false;
    *count = zero ? 0 : n;
    return *count <= INT64_MAX / tf_dtype_bytes[dtype];
}

void tf_dense_strides(const int64_t *dim, int rank, int64_t *stride) {
    uint64_t step = 1;           /* wraps only if another dim is 0, and then nobody steps */
    for (int i = rank - 1; i >= 0; i--) {
        stride[i] = (int64_t)step;
        step *= (uint64_t)dim[i];
    }
}

int64_t tf_count(const tf_tensor *t) {
    int64_t n = 0;
    tf_shape_count(t->dim, t->rank, t->dtype, &n);
    return n;
}

/* ---- elements ----------------------------------------------------------------------------- */

static float f32_from_bits(uint32_t bits) { float v; memcpy(&v, &bits, sizeof v); return v; }

static float f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31)
        return f32_from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent)
        return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 0x1p-24f;
    return sign ? -tiny : tiny;
}

/* n elements, `step` elements apart, at any alignment. */
#define EACH(type, expr) do { for (int64_t i = 0; i < n; i++) { \
    type v; memcpy(&v, p + i * step * (int64_t)sizeof v, sizeof v); out[i] = (expr); } } while (0)

static void run_to_f32(tf_dtype dtype, const char *p, int64_t n, int64_t step, void *to) {
    float *out = to;
    switch (dtype) {
    case DT_F32:  EACH(float, v); break;
    case DT_F64:  EACH(double, (float)v); break;
    case DT_F16:  EACH(uint16_t, f32_from_f16(v)); break;
    case DT_BF16: EACH(uint16_t, f32_from_bits((uint32_t)v << 16)); break;
    default: break;
    }
}

static void run_to_i64(tf_dtype dtype, const char *p, int64_t n, int64_t step, void *to) {
    int64_t *out = to;
    switch (dtype) {
    case DT_I64:  EACH(int64_t, v); break;
    case DT_I32:  EACH(int32_t, v); break;
    case DT_I16:  EACH(int16_t, v); break;
    case DT_I8:   EACH(int8_t, v); break;
    case DT_U8:   EACH(uint8_t, v); break;
    case DT_BOOL: EACH(uint8_t, v != 0); break;
    default: break;
    }
}

/* Every run along the last dimension, in row-major order; `size` is that of an output element. */
static void each_run(const tf_tensor *t, char *out, size_t size,
                     void (*run)(tf_dtype, const char *, int64_t, int64_t, void *)) {
    int64_t count = tf_count(t), bytes = tf_dtype_bytes[t->dtype];
    int64_t at[TF_RANK] = {0}, dense[TF_RANK];
    if (count == 0)
        return;
    tf_dense_strides(t->dim, t->rank, dense);
    if (!memcmp(dense, t->stride, sizeof *dense * (size_t)t->rank)) {
        run(t->dtype, t->data, count, 1, out);
        return;
    }
    int last = t->rank - 1;
    for (int64_t done = 0; done < count; done += t->dim[last]) {
        int64_t from = 0;
        for (int d = 0; d < last; d++)
            from += at[d] * t->stride[d];
        run(t->dtype, t->data + from * bytes, t->dim[last], t->stride[last], out);
        out += (size_t)t->dim[last] * size;
        for (int d = last - 1; d >= 0 && ++at[d] == t->dim[d]; d--)
            at[d] = 0;
    }
}

static bool is_float(const tf_tensor *t) {
    return t->dtype == DT_F32 || t->dtype == DT_F64 || t->dtype == DT_F16 || t->dtype == DT_BF16;
}

static bool is_integer(const tf_tensor *t) { return t->dtype >= DT_I64 && t->dtype <= DT_I8; }

static const char *dtype_name(const tf_tensor *t) {
    return (unsigned)t->dtype < DT_COUNT ? tf_dtype_names[t->dtype] : "of an unknown type";
}

bool tf_read_f32(const tf_tensor *t, float *out, err *e) {
    if (!is_float(t))
        return err_set(e, ERR_DATA, "%s is %s, a float%s is wanted", t->name, dtype_name(t),
                       t->dtype == DT_F8_E4M3 || t->dtype == DT_F8_E5M2 ? " of 16 bits or more" : "");
    each_run(t, (char *)out, sizeof *out, run_to_f32);
    return true;
}

bool tf_read_i64(const tf_tensor *t, int64_t *out, err *e) {
    if (!is_integer(t))
        return err_set(e, ERR_DATA, "%s is %s, a signed integer or a byte is wanted", t->name, dtype_name(t));
    each_run(t, (char *)out, sizeof *out, run_to_i64);
    return true;
}
