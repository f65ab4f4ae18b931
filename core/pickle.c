#include "core/pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Real checkpoints stay far below; a hostile one is stopped before it fills the memory. */
enum { VALUES_MAX = 1 << 22 };

/* Tensors may have more elements than their storage (expand), up to this: 64 MB as float. */
enum { EXPANDED_MAX = 1 << 24 };

static bool fail(pickle *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool fail(pickle *p, const char *fmt, ...) {
    char what[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(p->e, ERR_DATA, "%s byte %zu: %s: %s", p->where, p->op_at, p->op, what);
}

/* ---- input, stack, memo ------------------------------------------------------------------- */

static const char *take(pickle *p, size_t n) {
    if (n > p->size - p->at) {
        fail(p, "the pickle is cut short");
        return NULL;
    }
    p->at += n;
    return p->data + p->at - n;
}

/* Unsigned little-endian of 1, 2, 4 or 8 bytes. */
static bool take_uint(pickle *p, int width, uint64_t *out) {
    const char *c = take(p, (size_t)width);
    if (!c) return false;
    *out = 0;
    for (int i = width - 1; i >= 0; i--)
        *out = *out << 8 | (unsigned char)c[i];
    return true;
}

static pk_value *value_new(pickle *p, pk_type type) {
    if (p->n_value >= VALUES_MAX) {
        fail(p, "more than %d values", VALUES_MAX);
        return NULL;
    }
    pk_value *v = pool_take(&p->memory, sizeof *v, p->e);
    if (!v) return NULL;
    p->n_value++;
    v->type = type;
    return v;
}

static bool push(pickle *p, pk_value *v) {
    void *grown = p->stack;
    if (!v || !array_grow(&grown, p->n_stack, &p->cap_stack, sizeof *p->stack, p->e)) return false;
    p->stack = grown;
    p->stack[p->n_stack++] = v;
    return true;
}

/* At least n values above the innermost mark: nothing may reach below it. */
static bool need(pickle *p, size_t n) {
    size_t floor = p->n_mark ? p->mark[p->n_mark - 1] : 0;
    return p->n_stack - floor >= n || fail(p, "the stack is empty");
}

static pk_value *pop(pickle *p) { return need(p, 1) ? p->stack[--p->n_stack] : NULL; }

static pk_value *top(pickle *p) { return need(p, 1) ? p->stack[p->n_stack - 1] : NULL; }

/* Take the values above the innermost mark off the stack; they stay readable until a push. */
static bool pop_mark(pickle *p, pk_value ***item, size_t *n) {
    *item = NULL;
    *n = 0;
    if (p->n_mark == 0) return fail(p, "no mark");
    size_t from = p->mark[--p->n_mark];
    *item = p->stack + from;
    *n = p->n_stack - from;
    p->n_stack = from;
    return true;
}

static bool items_add(pickle *p, pk_value *v, pk_value *const *item, size_t n) {
    if (n > v->cap - v->n) {
        size_t cap = v->n + n > 2 * v->cap ? v->n + n : 2 * v->cap;
        pk_value **grown = pool_take(&p->memory, cap * sizeof *grown, p->e);
        if (!grown) return false;
        if (v->n) memcpy(grown, v->item, v->n * sizeof *grown);
        v->item = grown;
        v->cap = cap;
    }
    if (n) memcpy(v->item + v->n, item, n * sizeof *item);
    v->n += n;
    return true;
}

static bool memo_put(pickle *p, uint64_t index) {
    pk_value *v = top(p);
    if (!v) return false;
    if (index >= VALUES_MAX) return fail(p, "memo index %" PRIu64 " is absurd", index);
    while (p->cap_memo <= index) {
        void *grown = p->memo;
        if (!array_grow(&grown, p->cap_memo, &p->cap_memo, sizeof *p->memo, p->e)) return false;
        p->memo = grown;
    }
    p->n_memo += p->memo[index] == NULL;
    p->memo[index] = v;
    return true;
}

/* ---- the names ---------------------------------------------------------------------------- */

static pk_value *call_dict(pickle *p, const pk_value *args) {
    pk_value *dict = value_new(p, PK_DICT);
    if (!dict || args->n == 0) return dict;
    const pk_value *pairs = args->item[0];            /* Python 2: one list of [key, value] */
    if (args->n > 1 || pairs->type != PK_LIST) goto bad;
    p->n_value += pairs->n;                           /* one list may be copied many times */
    if (p->n_value > VALUES_MAX) {
        fail(p, "more than %d values", VALUES_MAX);
        return NULL;
    }
    for (size_t i = 0; i < pairs->n; i++) {
        const pk_value *pair = pairs->item[i];
        if ((pair->type != PK_LIST && pair->type != PK_TUPLE) || pair->n != 2) goto bad;
        if (!items_add(p, dict, pair->item, 2)) return NULL;
    }
    return dict;
bad:
    fail(p, "an OrderedDict is made of a list of pairs");
    return NULL;
}

/* What stands beside the tensors of a training checkpoint: nobody asks what is in it. */
static pk_value *call_nothing(pickle *p, const pk_value *args) {
    (void)args;
    return value_new(p, PK_DICT);
}

static bool take_sizes(pickle *p, const pk_value *tuple, const char *what, int64_t *out, int *n) {
    if (tuple->type != PK_TUPLE || tuple->n > TF_RANK)
        return fail(p, "the tensor's %s is not a tuple of at most %d", what, TF_RANK);
    for (size_t i = 0; i < tuple->n; i++) {
        if (tuple->item[i]->type != PK_INT || tuple->item[i]->integer < 0)
            return fail(p, "the tensor's %s holds something that is not a size", what);
        out[i] = tuple->item[i]->integer;
    }
    *n = (int)tuple->n;
    return true;
}

/* The last element must lie inside the storage. */
static bool check_tensor(pickle *p, const pk_tensor *t) {
    int64_t count, last = t->offset;
    if (!tf_shape_count(t->dim, t->rank, t->storage->dtype, &count))
        return fail(p, "the tensor's size does not fit into 63 bits");
    for (int d = 0; d < t->rank && count; d++) {
        int64_t span;
        if (__builtin_mul_overflow(t->dim[d] - 1, t->stride[d], &span)
            || __builtin_add_overflow(last, span, &last))
            return fail(p, "the tensor's strides do not fit into 63 bits");
    }
    if (count && last >= t->storage->count)
        return fail(p, "the tensor reaches element %" PRId64 " of a storage of %" PRId64, last,
                    t->storage->count);
    return (count <= t->storage->count || count <= EXPANDED_MAX)
        || fail(p, "a tensor of %" PRId64 " elements in a storage of %" PRId64, count,
                t->storage->count);
}

/* (storage, offset, size, stride[, requires_grad, hooks[, metadata]]) */
static pk_value *call_tensor(pickle *p, const pk_value *args) {
    pk_value *v = value_new(p, PK_TENSOR);
    pk_tensor *t = v ? v->tensor = pool_take(&p->memory, sizeof *t, p->e) : NULL;
    int n_stride = 0;
    if (!t) return NULL;
    if (args->n < 4 || args->n > 7 || args->item[0]->type != PK_STORAGE
        || args->item[1]->type != PK_INT || args->item[1]->integer < 0) {
        fail(p, "the tensor is not made of storage, offset, size and stride");
        return NULL;
    }
    t->storage = args->item[0]->storage;
    t->offset = args->item[1]->integer;
    if (!take_sizes(p, args->item[2], "size", t->dim, &t->rank)
        || !take_sizes(p, args->item[3], "stride", t->stride, &n_stride))
        return NULL;
    if (t->rank != n_stride) {
        fail(p, "the tensor has %d sizes but %d strides", t->rank, n_stride);
        return NULL;
    }
    return check_tensor(p, t) ? v : NULL;
}

static pk_value *call_parameter(pickle *p, const pk_value *args) {
    if (args->n >= 1 && args->n <= 3 && args->item[0]->type == PK_TENSOR)
        return args->item[0];
    fail(p, "a parameter is made of a tensor");
    return NULL;
}

static const struct {
    const char *module, *name;
    pk_value *(*call)(pickle *p, const pk_value *args);   /* NULL: the name of a storage */
    tf_dtype dtype;
} names[] = {
    { "collections", "OrderedDict", call_dict, DT_COUNT },
    { "torch._utils", "_rebuild_tensor", call_tensor, DT_COUNT },
    { "torch._utils", "_rebuild_tensor_v2", call_tensor, DT_COUNT },
    { "torch._utils", "_rebuild_parameter", call_parameter, DT_COUNT },
    { "argparse", "Namespace", call_nothing, DT_COUNT },
    { "collections", "Counter", call_nothing, DT_COUNT },
    { "torch", "Size", call_nothing, DT_COUNT },
    { "torch", "device", call_nothing, DT_COUNT },
    { "collections", "defaultdict", call_nothing, DT_COUNT },
    { "__builtin__", "dict", call_nothing, DT_COUNT },
    { "builtins", "dict", call_nothing, DT_COUNT },
    { "pathlib", "PosixPath", call_nothing, DT_COUNT },
    { "_codecs", "encode", call_nothing, DT_COUNT },
    { "numpy", "dtype", call_nothing, DT_COUNT },
    { "numpy", "ndarray", call_nothing, DT_COUNT },
    { "numpy.core.multiarray", "scalar", call_nothing, DT_COUNT },
    { "numpy.core.multiarray", "_reconstruct", call_nothing, DT_COUNT },
    { "numpy._core.multiarray", "scalar", call_nothing, DT_COUNT },
    { "numpy._core.multiarray", "_reconstruct", call_nothing, DT_COUNT },
    { "torch", "FloatStorage", NULL, DT_F32 },
    { "torch", "DoubleStorage", NULL, DT_F64 },
    { "torch", "HalfStorage", NULL, DT_F16 },
    { "torch", "BFloat16Storage", NULL, DT_BF16 },
    { "torch", "LongStorage", NULL, DT_I64 },
    { "torch", "IntStorage", NULL, DT_I32 },
    { "torch", "ShortStorage", NULL, DT_I16 },
    { "torch", "CharStorage", NULL, DT_I8 },
    { "torch", "ByteStorage", NULL, DT_U8 },
    { "torch", "BoolStorage", NULL, DT_BOOL },
};

static bool same(const char *text, size_t len, const char *wanted) {
    return len == strlen(wanted) && !memcmp(text, wanted, len);
}

static bool push_name(pickle *p, const char *module, size_t module_len, const char *name,
                      size_t name_len) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (same(module, module_len, names[i].module) && same(name, name_len, names[i].name)) {
            pk_value *v = value_new(p, PK_NAME);
            if (v) v->integer = (int64_t)i;
            return push(p, v);
        }
    return fail(p, "the name %.*s.%.*s is not allowed", module_len < 80 ? (int)module_len : 80,
                module, name_len < 80 ? (int)name_len : 80, name);
}

/* ---- the opcodes -------------------------------------------------------------------------- */

static bool op_proto(pickle *p, int arg) {
    uint64_t version;
    (void)arg;
    return take_uint(p, 1, &version) && (version <= 5 || fail(p, "protocol %" PRIu64, version));
}

static bool op_frame(pickle *p, int arg) {
    uint64_t len;
    (void)arg;
    return take_uint(p, 8, &len) && (len <= p->size - p->at || fail(p, "the pickle is cut short"));
}

static bool op_mark(pickle *p, int arg) {
    void *grown = p->mark;
    (void)arg;
    if (!array_grow(&grown, p->n_mark, &p->cap_mark, sizeof *p->mark, p->e)) return false;
    p->mark = grown;
    p->mark[p->n_mark++] = p->n_stack;
    return true;
}

static bool op_put(pickle *p, int width) {              /* width 0: the next free index */
    uint64_t index = p->n_memo;
    return (width == 0 || take_uint(p, width, &index)) && memo_put(p, index);
}

static bool op_get(pickle *p, int width) {
    uint64_t index;
    if (!take_uint(p, width, &index)) return false;
    if (index >= p->cap_memo || !p->memo[index])
        return fail(p, "nothing was stored at %" PRIu64, index);
    return push(p, p->memo[index]);
}

static bool op_new(pickle *p, int type) { return push(p, value_new(p, (pk_type)type)); }

static bool op_bool(pickle *p, int value) {
    pk_value *v = value_new(p, PK_BOOL);
    if (v) v->integer = value;
    return push(p, v);
}

static bool op_int(pickle *p, int width) {
    uint64_t bits;
    if (!take_uint(p, width, &bits)) return false;
    pk_value *v = value_new(p, PK_INT);
    if (v) v->integer = width == 4 ? (int32_t)(uint32_t)bits : (int64_t)bits;
    return push(p, v);
}

static bool op_long(pickle *p, int width) {             /* two's complement, as short as possible */
    uint64_t n;
    const char *bytes;
    if (!take_uint(p, width, &n) || !(bytes = take(p, n))) return false;
    pk_value *v = value_new(p, n <= 8 ? PK_INT : PK_LONG);
    if (v && n <= 8) {
        uint64_t bits = n && (unsigned char)bytes[n - 1] >= 0x80 ? UINT64_MAX : 0;
        for (size_t i = n; i-- > 0; )
            bits = bits << 8 | (unsigned char)bytes[i];
        v->integer = (int64_t)bits;
    } else if (v) {
        v->text = bytes;
        v->len = n;
    }
    return push(p, v);
}

static bool op_float(pickle *p, int arg) {              /* the one big-endian number */
    const char *c = take(p, 8);
    uint64_t bits = 0;
    (void)arg;
    if (!c) return false;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | (unsigned char)c[i];
    pk_value *v = value_new(p, PK_FLOAT);
    if (v) memcpy(&v->number, &bits, sizeof bits);
    return push(p, v);
}

static bool op_text(pickle *p, int width) {
    uint64_t n;
    const char *text;
    if (!take_uint(p, width, &n) || !(text = take(p, n))) return false;
    pk_value *v = value_new(p, PK_TEXT);
    if (v) {
        v->text = text;
        v->len = n;
    }
    return push(p, v);
}

static bool push_tuple(pickle *p, pk_value *const *item, size_t n) {
    pk_value *v = value_new(p, PK_TUPLE);
    return v && items_add(p, v, item, n) && push(p, v);
}

static bool op_tuple(pickle *p, int n) {                /* 0: down to the mark */
    pk_value **item;
    size_t count;
    if (n == 0) return pop_mark(p, &item, &count) && push_tuple(p, item, count);
    if (!need(p, (size_t)n)) return false;
    p->n_stack -= (size_t)n;
    return push_tuple(p, p->stack + p->n_stack, (size_t)n);
}

static bool add_to(pickle *p, pk_type type, pk_value *const *item, size_t n) {
    pk_value *into = top(p);
    if (!into) return false;
    if (into->type != type)
        return fail(p, "the container is not a %s", type == PK_DICT ? "dict" : "list");
    if (type == PK_DICT && n % 2) return fail(p, "a key without a value");
    return items_add(p, into, item, n);
}

static bool op_add(pickle *p, int type) {               /* one item, or one key and value */
    size_t n = type == PK_DICT ? 2 : 1;
    if (!need(p, n)) return false;
    p->n_stack -= n;
    return add_to(p, (pk_type)type, p->stack + p->n_stack, n);
}

static bool op_add_marked(pickle *p, int type) {
    pk_value **item;
    size_t n;
    return pop_mark(p, &item, &n) && add_to(p, (pk_type)type, item, n);
}

/* Attributes of an object (a state dict's _metadata, all of a Namespace) mean nothing here. */
static bool op_build(pickle *p, int arg) {
    (void)arg;
    if (!need(p, 2)) return false;
    p->n_stack--;
    return top(p)->type == PK_DICT || fail(p, "only dicts may have attributes");
}

/* ("storage", class, key, location, count[, view]) */
static bool op_persid(pickle *p, int arg) {
    pk_value *id = pop(p);
    (void)arg;
    if (!id) return false;
    if (id->type != PK_TUPLE || id->n < 5 || id->n > 6 || !pk_is_text(id->item[0], "storage")
        || id->item[1]->type != PK_NAME || names[id->item[1]->integer].call
        || id->item[2]->type != PK_TEXT || id->item[4]->type != PK_INT)
        return fail(p, "the outside object is not a storage");
    if (id->n == 6 && id->item[5]->type != PK_NONE)
        return fail(p, "views of storages are not supported");
    if (id->item[4]->integer < 0 || id->item[4]->integer > INT64_MAX / 8)
        return fail(p, "a storage of %" PRId64 " elements", id->item[4]->integer);
    pk_value *v = value_new(p, PK_STORAGE);
    pk_storage *s = v ? pool_take(&p->memory, sizeof *s, p->e) : NULL;
    void *grown = p->storage;
    if (!s || !array_grow(&grown, p->n_storage, &p->cap_storage, sizeof *p->storage, p->e))
        return false;
    *s = (pk_storage){ .key = id->item[2]->text, .key_len = id->item[2]->len,
                       .dtype = names[id->item[1]->integer].dtype, .count = id->item[4]->integer };
    p->storage = grown;
    p->storage[p->n_storage++] = s;
    v->storage = s;
    return push(p, v);
}

static bool op_reduce(pickle *p, int arg) {
    (void)arg;
    if (!need(p, 2)) return false;
    const pk_value *args = pop(p), *name = pop(p);
    if (name->type != PK_NAME || args->type != PK_TUPLE || !names[name->integer].call)
        return fail(p, "this is not a call of a known name");
    pk_value *v = names[name->integer].call(p, args);
    return v && push(p, v);
}

static bool op_global(pickle *p, int arg) {             /* module \n name \n */
    const char *part[2];
    size_t len[2];
    (void)arg;
    for (int i = 0; i < 2; i++) {
        part[i] = p->data + p->at;
        const char *end = memchr(part[i], '\n', p->size - p->at);
        if (!end) return fail(p, "the pickle is cut short");
        len[i] = (size_t)(end - part[i]);
        p->at += len[i] + 1;
    }
    return push_name(p, part[0], len[0], part[1], len[1]);
}

static bool op_stack_global(pickle *p, int arg) {
    (void)arg;
    if (!need(p, 2)) return false;
    const pk_value *name = pop(p), *module = pop(p);
    if (name->type != PK_TEXT || module->type != PK_TEXT) return fail(p, "a name is not a text");
    return push_name(p, module->text, module->len, name->text, name->len);
}

enum { OP_STOP = '.' };

static const struct { const char *name; bool (*run)(pickle *p, int arg); int arg; } ops[256] = {
    [0x80] = { "PROTO", op_proto, 0 },           [0x95] = { "FRAME", op_frame, 0 },
    ['('] = { "MARK", op_mark, 0 },
    ['q'] = { "BINPUT", op_put, 1 },             ['r'] = { "LONG_BINPUT", op_put, 4 },
    [0x94] = { "MEMOIZE", op_put, 0 },
    ['h'] = { "BINGET", op_get, 1 },             ['j'] = { "LONG_BINGET", op_get, 4 },
    ['N'] = { "NONE", op_new, PK_NONE },
    ['}'] = { "EMPTY_DICT", op_new, PK_DICT },   [']'] = { "EMPTY_LIST", op_new, PK_LIST },
    [')'] = { "EMPTY_TUPLE", op_new, PK_TUPLE },
    [0x88] = { "NEWTRUE", op_bool, 1 },          [0x89] = { "NEWFALSE", op_bool, 0 },
    ['K'] = { "BININT1", op_int, 1 },            ['M'] = { "BININT2", op_int, 2 },
    ['J'] = { "BININT", op_int, 4 },             ['G'] = { "BINFLOAT", op_float, 0 },
    [0x8a] = { "LONG1", op_long, 1 },
    [0x8c] = { "SHORT_BINUNICODE", op_text, 1 }, ['X'] = { "BINUNICODE", op_text, 4 },
    [0x8d] = { "BINUNICODE8", op_text, 8 },
    ['U'] = { "SHORT_BINSTRING", op_text, 1 },   ['T'] = { "BINSTRING", op_text, 4 },
    ['C'] = { "SHORT_BINBYTES", op_text, 1 },    ['B'] = { "BINBYTES", op_text, 4 },
    ['t'] = { "TUPLE", op_tuple, 0 },            [0x85] = { "TUPLE1", op_tuple, 1 },
    [0x86] = { "TUPLE2", op_tuple, 2 },          [0x87] = { "TUPLE3", op_tuple, 3 },
    ['s'] = { "SETITEM", op_add, PK_DICT },      ['u'] = { "SETITEMS", op_add_marked, PK_DICT },
    ['a'] = { "APPEND", op_add, PK_LIST },       ['e'] = { "APPENDS", op_add_marked, PK_LIST },
    ['b'] = { "BUILD", op_build, 0 },            ['Q'] = { "BINPERSID", op_persid, 0 },
    ['R'] = { "REDUCE", op_reduce, 0 },          [0x81] = { "NEWOBJ", op_reduce, 0 },
    ['c'] = { "GLOBAL", op_global, 0 },          [0x93] = { "STACK_GLOBAL", op_stack_global, 0 },
};

pk_value *pickle_run(pickle *p) {
    void *stack = p->stack;
    if (!array_grow(&stack, 0, &p->cap_stack, sizeof *p->stack, p->e)) return NULL;
    p->stack = stack;
    p->n_stack = p->n_mark = p->n_memo = 0;
    if (p->cap_memo) memset(p->memo, 0, p->cap_memo * sizeof *p->memo);
    for (;;) {
        p->op_at = p->at;
        p->op = "next opcode";
        const char *code = take(p, 1);
        if (!code) return NULL;
        unsigned char op = (unsigned char)*code;
        if (op == OP_STOP) {
            p->op = "STOP";
            return pop(p);
        }
        if (!ops[op].run) {
            p->op = "opcode";
            fail(p, "0x%02x is not allowed", op);
            return NULL;
        }
        p->op = ops[op].name;
        if (!ops[op].run(p, ops[op].arg)) return NULL;
    }
}

void pickle_free(pickle *p) {
    mem_free(p->stack);
    mem_free(p->mark);
    mem_free(p->memo);
    mem_free(p->storage);
    pool_free(&p->memory);
    *p = (pickle){0};
}

bool pk_is_text(const pk_value *v, const char *text) {
    return v->type == PK_TEXT && same(v->text, v->len, text);
}

pk_value *pk_dict_get(const pk_value *dict, const char *key) {
    for (size_t i = dict->type == PK_DICT ? dict->n : 0; i >= 2; i -= 2)
        if (pk_is_text(dict->item[i - 2], key)) return dict->item[i - 1];
    return NULL;
}
