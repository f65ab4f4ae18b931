/* PyTorch checkpoints: files built here opcode by opcode, files pickled by Python's own pickler, the
 * published weights, and files that mean harm. */
#include "core/io.h"
#include "tests/test.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <zlib.h>

/* ---- writing pickles ---------------------------------------------------------------------- */

#define OPS(b, s) buf_put(b, s, sizeof(s) - 1)

static void put_u32(buf *b, uint32_t v) { buf_put(b, &v, 4); }
static void put_u64(buf *b, uint64_t v) { buf_put(b, &v, 8); }
static void put_int(buf *b, int64_t v) { OPS(b, "\x8a\x08"); buf_put(b, &v, 8); }

static void put_text(buf *b, const char *s) {
    OPS(b, "X");
    put_u32(b, (uint32_t)strlen(s));
    buf_puts(b, s);
}

static void put_sizes(buf *b, const int64_t *v, int n) {
    OPS(b, "(");
    for (int i = 0; i < n; i++)
        put_int(b, v[i]);
    OPS(b, "t");
}

typedef struct {
    const char *storage, *key;
    int64_t count, offset;
    int rank;
    int64_t dim[9], stride[9];
} wanted_tensor;

static void put_tensor(buf *b, wanted_tensor t) {
    OPS(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_text(b, "storage");
    buf_printf(b, "ctorch\n%s\n", t.storage);
    put_text(b, t.key);
    put_text(b, "cpu");
    put_int(b, t.count);
    OPS(b, "tQ");
    put_int(b, t.offset);
    put_sizes(b, t.dim, t.rank);
    put_sizes(b, t.stride, t.rank);
    OPS(b, "\x89" "ccollections\nOrderedDict\n)RtR");
}

/* ---- writing containers ------------------------------------------------------------------- */

typedef struct { const char *key; const void *data; int64_t count; size_t bytes; } raw_storage;

static buf legacy(const buf *object, const raw_storage *s, int n) {
    buf b = {0};
    OPS(&b, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." "\x80\x02M\xe9\x03.");
    OPS(&b, "\x80\x02}(");
    put_text(&b, "little_endian");
    OPS(&b, "\x88u.");
    buf_put(&b, object->data, object->len);
    OPS(&b, "\x80\x02](");
    for (int i = 0; i < n; i++)
        put_text(&b, s[i].key);
    OPS(&b, "e.");
    for (int i = 0; i < n; i++) {
        put_u64(&b, (uint64_t)s[i].count);
        buf_put(&b, s[i].data, s[i].bytes);
    }
    return b;
}

static void zip_add(buf *b, buf *directory, const char *name, const void *data, size_t size) {
    uint32_t at = (uint32_t)b->len, crc = (uint32_t)crc32(0, data, (uInt)size);
    struct { uint16_t need, flags, method, time, date; uint32_t crc, packed, size; uint16_t name, extra; }
        __attribute__((packed)) h = { 20, 0, 0, 0, 0, crc, (uint32_t)size, (uint32_t)size,
                                      (uint16_t)strlen(name), 0 };
    buf_put(b, "PK\3\4", 4);
    buf_put(b, &h, sizeof h);
    buf_puts(b, name);
    buf_put(b, data, size);
    buf_put(directory, "PK\1\2\x14\0", 6);
    buf_put(directory, &h, sizeof h);
    buf_put(directory, "\0\0\0\0\0\0\0\0\0", 10);
    put_u32(directory, at);
    buf_puts(directory, name);
}

static buf zipped(const buf *object, const raw_storage *s, int n) {
    buf b = {0}, directory = {0};
    zip_add(&b, &directory, "archive/data.pkl", object->data, object->len);
    for (int i = 0; i < n; i++) {
        char name[64];
        snprintf(name, sizeof name, "archive/data/%s", s[i].key);
        zip_add(&b, &directory, name, s[i].data, s[i].bytes);
    }
    zip_add(&b, &directory, "archive/version", "3\n", 2);
    uint32_t at = (uint32_t)b.len;
    uint16_t count = (uint16_t)(n + 2), no_comment = 0;
    buf_put(&b, directory.data, directory.len);
    buf_put(&b, "PK\5\6\0\0\0\0", 8);
    buf_put(&b, &count, 2);
    buf_put(&b, &count, 2);
    put_u32(&b, (uint32_t)directory.len);
    put_u32(&b, at);
    buf_put(&b, &no_comment, 2);
    buf_free(&directory);
    return b;
}

/* ---- checking ----------------------------------------------------------------------------- */

/* From memory of exactly that size, so that a read behind its end is caught. */
static bool parse_copy(const char *data, size_t size, bool read, err *e) {
    char *copy = malloc(size ? size : 1);
    tensor_file f;
    if (size) memcpy(copy, data, size);
    e->msg[0] = 0;
    bool ok = pth_parse(&f, copy, size, e);
    for (int i = 0; ok && read && i < f.n; i++) {
        int64_t n = tf_count(&f.tensor[i]);
        CHECK(n >= 0 && n <= 1 << 24);
        float *out = malloc((size_t)n * sizeof *out + 1);
        int64_t *whole = malloc((size_t)n * sizeof *whole + 1);
        err none;
        CHECK(tf_read_f32(&f.tensor[i], out, &none) != tf_read_i64(&f.tensor[i], whole, &none));
        free(whole);
        free(out);
    }
    CHECK(ok || (e->code == ERR_DATA && e->msg[0]));
    tensor_file_close(&f);
    free(copy);
    return ok;
}

/* An object that is a dict {"w": what `body` pushes}, refused with a sentence that holds `why`. */
static void check_refused_object(const buf *object, const char *why) {
    err e;
    static const float zeros[4];
    raw_storage s = { "0", zeros, 4, sizeof zeros };
    buf b = zipped(object, &s, 1);
    CHECK(!parse_copy(b.data, b.len, true, &e));
    if (!strstr(e.msg, why)) {
        CHECK_TEXT(e.msg, why);
    }
    buf_free(&b);
}

static void check_refused(const void *body, size_t len, const char *why) {
    buf object = {0};
    OPS(&object, "\x80\x02}");
    put_text(&object, "w");
    buf_put(&object, body, len);
    OPS(&object, "s.");
    check_refused_object(&object, why);
    buf_free(&object);
}
#define REFUSED(body, why) check_refused(body, sizeof(body) - 1, why)

static void check_refused_tensor(wanted_tensor t, const char *why) {
    buf b = {0};
    put_tensor(&b, t);
    check_refused(b.data, b.len, why);
    buf_free(&b);
}

/* A state dict with two tensors over one storage and one transposed tensor. */
static const float six[6] = { 1, 2, 3, 4, 5, 6 };
static const raw_storage six_storage = { "0", six, 6, sizeof six };

static buf sample_object(void) {
    buf b = {0};
    OPS(&b, "\x80\x02}(");
    put_text(&b, "epoch");
    OPS(&b, "K\x07");
    put_text(&b, "state_dict");
    OPS(&b, "ccollections\nOrderedDict\n)R(");
    put_text(&b, "module.a.weight");
    put_tensor(&b, (wanted_tensor){ "FloatStorage", "0", 6, 0, 2, { 3, 2 }, { 1, 3 } });
    put_text(&b, "module.a.bias");
    put_tensor(&b, (wanted_tensor){ "FloatStorage", "0", 6, 4, 1, { 2 }, { 1 } });
    put_text(&b, "module.a.scale");
    put_tensor(&b, (wanted_tensor){ "FloatStorage", "0", 6, 5, 0, {0}, {0} });
    OPS(&b, "u}");
    put_text(&b, "_metadata");
    OPS(&b, "ccollections\nOrderedDict\n)Rsb");
    put_text(&b, "lr");
    OPS(&b, "G\x3f\xb9\x99\x99\x99\x99\x99\x9au.");
    return b;
}

static void check_sample(buf file) {
    tensor_file f;
    err e;
    float x[6];
    CHECK_OK(pth_parse(&f, file.data, file.len, &e), e);
    CHECK(f.n == 3);
    const tf_tensor *w = tensor_file_find(&f, "a.weight"), *b = tensor_file_find(&f, "a.bias"),
                    *s = tensor_file_find(&f, "a.scale");
    CHECK(w && b && s);
    if (w && b && s) {
        CHECK(w->rank == 2 && w->dim[0] == 3 && w->dim[1] == 2 && w->dtype == DT_F32);
        static const float transposed[6] = { 1, 4, 2, 5, 3, 6 };
        CHECK(tf_read_f32(w, x, &e) && !memcmp(x, transposed, sizeof x));
        CHECK(tf_read_f32(b, x, &e) && x[0] == 5 && x[1] == 6);
        CHECK(s->rank == 0 && tf_count(s) == 1);
        CHECK(tf_read_f32(s, x, &e) && x[0] == 6);
    }
    tensor_file_close(&f);
    buf_free(&file);
}

/* ---- tests: what must be read ------------------------------------------------------------- */

static void zip_container_with_strides_and_shared_storage(void) {
    buf object = sample_object();
    check_sample(zipped(&object, &six_storage, 1));
    buf_free(&object);
}

static void legacy_container_with_strides_and_shared_storage(void) {
    buf object = sample_object();
    check_sample(legacy(&object, &six_storage, 1));
    buf_free(&object);
}

static void every_storage_type_is_read(void) {
    static const struct { const char *storage; const char *bytes; size_t size; tf_dtype dtype; float value; }
    row[] = {
        { "FloatStorage", "\x00\x00\x20\xc0", 4, DT_F32, -2.5f },
        { "DoubleStorage", "\0\0\0\0\0\0\x04\xc0", 8, DT_F64, -2.5f },
        { "HalfStorage", "\x00\xc1", 2, DT_F16, -2.5f },
        { "BFloat16Storage", "\x20\xc0", 2, DT_BF16, -2.5f },
        { "LongStorage", "\xfe\xff\xff\xff\xff\xff\xff\xff", 8, DT_I64, -2 },
        { "IntStorage", "\xfe\xff\xff\xff", 4, DT_I32, -2 },
        { "ShortStorage", "\xfe\xff", 2, DT_I16, -2 },
        { "CharStorage", "\xfe", 1, DT_I8, -2 },
        { "ByteStorage", "\xfe", 1, DT_U8, 254 },
        { "BoolStorage", "\x01", 1, DT_BOOL, 1 },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        buf object = {0};
        OPS(&object, "\x80\x02}");
        put_text(&object, "w");
        put_tensor(&object, (wanted_tensor){ row[i].storage, "5", 1, 0, 1, { 1 }, { 1 } });
        OPS(&object, "s.");
        raw_storage s = { "5", row[i].bytes, 1, row[i].size };
        for (int zip = 0; zip < 2; zip++) {
            buf b = (zip ? zipped : legacy)(&object, &s, 1);
            tensor_file f;
            err e;
            float x = 0;
            int64_t k = 0;
            CHECK_OK(pth_parse(&f, b.data, b.len, &e), e);
            CHECK(f.n == 1 && f.tensor[0].dtype == row[i].dtype);
            const bool whole = row[i].dtype >= DT_I64;
            if (f.n == 1) CHECK_OK((whole ? tf_read_i64(f.tensor, &k, &e) : tf_read_f32(f.tensor, &x, &e)), e);
            CHECK_CLOSE(whole ? (double)k : (double)x, row[i].value, 0);
            tensor_file_close(&f);
            buf_free(&b);
        }
        buf_free(&object);
    }
}

/* One tensor is found, of that name. */
static void check_holds_only(const buf *object, const char *name) {
    buf b = zipped(object, &six_storage, 1);
    tensor_file f;
    err e;
    CHECK_OK(pth_parse(&f, b.data, b.len, &e), e);
    CHECK(f.n == 1);
    if (f.n == 1) CHECK_TEXT(f.tensor[0].name, name);
    tensor_file_close(&f);
    buf_free(&b);
}

static void nested_dicts_are_joined_with_dots(void) {
    buf object = {0};
    wanted_tensor t = { "FloatStorage", "0", 6, 0, 1, { 6 }, { 1 } };
    OPS(&object, "\x80\x02}(");
    put_text(&object, "net");
    OPS(&object, "}(");
    put_text(&object, "block");
    OPS(&object, "}(K\x03}");
    put_text(&object, "w");
    put_tensor(&object, t);
    OPS(&object, "su");
    put_text(&object, "notes");
    OPS(&object, "](NK\1\x88G\0\0\0\0\0\0\0\0)\x85" "eu");
    put_text(&object, "optimizer");
    OPS(&object, "}");
    put_text(&object, "momentum");
    put_tensor(&object, t);
    OPS(&object, "su.");
    check_holds_only(&object, "block.3.w");
    buf_free(&object);
}

/* As PyTorch's and torchvision's training scripts save them. */
static void what_stands_beside_the_state_dict_is_passed_over(void) {
    buf object = {0};
    wanted_tensor t = { "FloatStorage", "0", 6, 0, 1, { 6 }, { 1 } };
    OPS(&object, "\x80\x02}(");
    put_text(&object, "best_acc1");
    put_tensor(&object, (wanted_tensor){ "FloatStorage", "0", 6, 5, 0, {0}, {0} });
    put_text(&object, "args");
    OPS(&object, "cargparse\nNamespace\n)\x81}");
    put_text(&object, "lr");
    OPS(&object, "G\x3f\xb9\x99\x99\x99\x99\x99\x9asb");
    put_text(&object, "milestones");
    OPS(&object, "ccollections\nCounter\n}K\x1eK\1s\x85R");
    put_text(&object, "size");
    OPS(&object, "ctorch\nSize\n(K\1K\2t\x85R");
    put_text(&object, "device");
    OPS(&object, "ctorch\ndevice\n");
    put_text(&object, "cpu");
    OPS(&object, "\x85R");
    put_text(&object, "accuracy");            /* numpy.float64(0) */
    OPS(&object, "cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n");
    put_text(&object, "f8");
    OPS(&object, "\x89\x88\x87R(K\3");
    put_text(&object, "<");
    OPS(&object, "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbc_codecs\nencode\n");
    put_text(&object, "xxxxxxxx");
    put_text(&object, "latin1");
    OPS(&object, "\x86R\x86R");
    put_text(&object, "bytes");
    OPS(&object, "C\2abB\1\0\0\0c\x86");
    put_text(&object, "optimizer");
    OPS(&object, "ccollections\ndefaultdict\nc__builtin__\ndict\n\x85R");
    put_text(&object, "momentum");
    put_tensor(&object, t);
    OPS(&object, "s");
    put_text(&object, "state_dict");
    OPS(&object, "}");
    put_text(&object, "module.fc.bias");
    put_tensor(&object, t);
    OPS(&object, "su.");
    check_holds_only(&object, "fc.bias");
    buf_free(&object);
}

static void python_2_strings_pairs_and_parameters_are_read(void) {
    buf object = {0}, inner = {0};
    put_tensor(&inner, (wanted_tensor){ "FloatStorage", "0", 6, 0, 1, { 6 }, { 1 } });
    OPS(&object, "\x80\x02" "ccollections\nOrderedDict\n](](U\x01wctorch._utils\n_rebuild_parameter\n(");
    buf_put(&object, inner.data, inner.len);
    OPS(&object, "\x88" "ccollections\nOrderedDict\n)RtRe](T\1\0\0\0vNee\x85R.");
    buf b = legacy(&object, &six_storage, 1);
    tensor_file f;
    err e;
    CHECK_OK(pth_parse(&f, b.data, b.len, &e), e);
    CHECK(f.n == 1 && tensor_file_find(&f, "w"));
    tensor_file_close(&f);
    buf_free(&b);
    buf_free(&object);
    buf_free(&inner);
}

static void files_of_pythons_own_pickler_are_read(void) {
    static const char *const path[] = { "tests/golden/pickle2_legacy.pth", "tests/golden/pickle4.pth" };
    for (int i = 0; i < 2; i++) {
        tensor_file f;
        err e;
        float w[6];
        int64_t n = 0;
        CHECK_OK(tensor_file_open(&f, path[i], &e), e);
        CHECK(f.n == 3);
        const tf_tensor *t = tensor_file_find(&f, "conv.weight");
        CHECK(t && t->rank == 2 && t->dim[0] == 2 && t->dim[1] == 3);
        if (t) CHECK(tf_read_f32(t, w, &e) && w[0] == 0.5f && w[5] == 5.5f);
        t = tensor_file_find(&f, "conv.bias");
        if (t) CHECK(tf_read_f32(t, w, &e) && w[0] == 3.5f && w[1] == 4.5f);
        t = tensor_file_find(&f, "bn.num_batches_tracked");
        CHECK(t && tf_read_i64(t, &n, &e) && n == 123456789012);
        tensor_file_close(&f);
    }
}

/* ---- tests: the published weights --------------------------------------------------------- */

static void published_weights_have_their_names_and_shapes(void) {
    csv_table list;
    err e;
    int c_file, c_name, c_dtype, c_shape, checked = 0;
    if (!file_exists("../shared/data/weights/tensors.csv")) SKIP("no ../shared/data/weights");
    CHECK_OK(csv_read(&list, "../shared/data/weights/tensors.csv", &e), e);
    if (!csv_need(&list, "file", &c_file, &e) || !csv_need(&list, "tensor", &c_name, &e)
        || !csv_need(&list, "dtype", &c_dtype, &e) || !csv_need(&list, "shape", &c_shape, &e)) {
        CHECK_TEXT(e.msg, "");
        return;
    }
    tensor_file f = {0};
    const char *open = "";
    for (int64_t r = 0; r < list.n_row; r++) {
        if (strcmp(open, csv_cell(&list, r, c_file))) {
            char path[256];
            open = csv_cell(&list, r, c_file);
            snprintf(path, sizeof path, "../shared/data/weights/%s", open);
            tensor_file_close(&f);
            CHECK_OK(tensor_file_open(&f, path, &e), e);
            checked += f.n;
        }
        const char *name = csv_cell(&list, r, c_name);
        const tf_tensor *t = tensor_file_find(&f, strncmp(name, "module.", 7) ? name : name + 7);
        CHECK(t != NULL);
        if (!t) continue;
        char shape[128] = "";
        for (int d = 0; d < t->rank; d++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%" PRId64, d ? "x" : "",
                     t->dim[d]);
        const char *wanted = csv_cell(&list, r, c_shape);
        CHECK_TEXT(shape, t->rank ? wanted : shape);
        CHECK(t->dtype == (strcmp(csv_cell(&list, r, c_dtype), "int64") ? DT_F32 : DT_I64));
        float *x = malloc((size_t)tf_count(t) * sizeof *x);
        CHECK(tf_read_f32(t, x, &e) == (t->dtype == DT_F32));
        for (int64_t i = 0; t->dtype == DT_F32 && i < tf_count(t); i++)
            CHECK(isfinite(x[i]) && fabsf(x[i]) < 1e6f);
        free(x);
    }
    tensor_file_close(&f);
    CHECK(checked == list.n_row);
    csv_free(&list);
}

/* ---- tests: what must be refused ---------------------------------------------------------- */

static void names_that_could_run_something_are_refused(void) {
    REFUSED("cos\nsystem\n(U\x02lstR", "os.system is not allowed");
    REFUSED("cposix\nsystem\nU\x02ls\x85R", "posix.system is not allowed");
    REFUSED("U\x08" "builtinsU\x04" "eval\x93", "builtins.eval is not allowed");
    REFUSED("ctorch\nload\n", "torch.load is not allowed");
    REFUSED("ctorch._utils\n_rebuild_tensor_v2_\n", "is not allowed");
    REFUSED("cos\nsystem", "cut short");
    REFUSED("U\x01" "aU\x01" "b\x93", "a.b is not allowed");
    REFUSED("ctorch\nFloatStorage\n)R", "not a call");
    REFUSED("U\1a)R", "not a call");
}

static void unknown_opcodes_are_refused_with_their_place(void) {
    REFUSED("i", "data.pkl byte 9: opcode: 0x69 is not allowed");     /* INST */
    REFUSED("o", "0x6f is not allowed");                              /* OBJ */
    REFUSED("\x81", "NEWOBJ: this is not a call of a known name");
    REFUSED("ctorch\nFloatStorage\n)\x81", "NEWOBJ: this is not a call of a known name");
    REFUSED("\x82\x01", "0x82 is not allowed");                       /* EXT1 */
    REFUSED("\x96\x01\0\0\0\0\0\0\0x", "0x96 is not allowed");        /* BYTEARRAY8 */
    REFUSED("S'x'\n", "0x53 is not allowed");
}

static void broken_pickles_are_refused(void) {
    REFUSED("0", "opcode");
    REFUSED("t", "no mark");
    REFUSED("(s", "stack is empty");
    REFUSED("N}s", "not a dict");
    REFUSED("N(e", "not a list");
    REFUSED("](u", "not a dict");
    REFUSED("}(Nu", "a key without a value");
    REFUSED("h\x07", "nothing was stored at 7");
    REFUSED("j\xff\xff\xff\xff", "nothing was stored at 4294967295");
    REFUSED("Nr\xff\xff\xff\xff", "memo index 4294967295 is absurd");
    REFUSED("X\xff\xff\xff\xff" "abc", "cut short");
    REFUSED("\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "cut short");
    REFUSED("\x95\xff\xff\xff\xff\xff\xff\xff\xff", "cut short");
    REFUSED("\x80\x09", "protocol 9");
    REFUSED("]}b", "only dicts may have attributes");
    REFUSED("NQ", "not a storage");
    REFUSED("(U\7storagectorch\nFloatStorage\nU\1""0U\3cpu\x8a\1\xfftQ", "a storage of -1 elements");
    REFUSED("(U\7storagectorch\nFloatStorage\nU\1""0U\3cpuK\4)tQ", "views of storages");
    REFUSED("(U\7storagectorch\nFloatStorage\nU\1""1U\3cpuK\4tQ", "archive/data/1 is missing");
    REFUSED("(U\7storagectorch\nFloatStorage\nU\1""0U\3cpuK\5tQ", "holds 16 bytes, wanted 5 elements");
    REFUSED("ccollections\nOrderedDict\n](Ne\x85R", "list of pairs");
}

static void tensors_outside_their_storage_are_refused(void) {
    const int64_t huge = INT64_MAX / 2;
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 1, { 5 }, { 1 } }, "element 4 of a storage of 4");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 1, 1, { 4 }, { 1 } }, "element 4 of");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, -1, 1, { 4 }, { 1 } }, "not made of");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 2, { 2, 2 }, { 3, 1 } }, "element 4 of");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 1, { -4 }, { 1 } }, "not a size");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 3, 1, { 4 }, { -1 } }, "not a size");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 2, { huge, huge }, { 1, 1 } }, "63 bits");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 2, { 3, 3 }, { huge, huge } }, "63 bits");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, huge, 1, { 3 }, { huge } }, "63 bits");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 4, 0, {0}, {0} }, "element 4 of");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 2, { 9999, 9999 }, { 0, 0 } }, "99980001 elements");
    check_refused_tensor((wanted_tensor){ "FloatStorage", "0", 4, 0, 9, { 1 }, { 1 } }, "at most 8");
}

static void objects_without_tensors_are_refused(void) {
    REFUSED("N", "holds no tensors");
    REFUSED("}(NNu", "holds no tensors");
    buf list = {0};
    OPS(&list, "\x80\x02].");
    check_refused_object(&list, "not a dict");
    buf_free(&list);
}

static void containers_that_contain_themselves_end(void) {
    REFUSED("}q\x01U\1xh\x01s", "contains itself");
    REFUSED("]q\x01h\x01" "a", "holds no tensors");
    REFUSED("(]q\x01h\x01" "ath\x01\x85\x85", "a");     /* and the tuple goes nowhere */
}

static void deep_nesting_ends(void) {
    enum { DEEP = 200000 };
    buf b = {0};
    for (int i = 0; i < DEEP; i++)
        OPS(&b, "}NK");                       /* {… 0x4e: … } */
    check_refused(b.data, b.len, "");
    b.len = 0;
    OPS(&b, "N");
    for (int i = 0; i < DEEP; i++)
        OPS(&b, "\x85");
    check_refused(b.data, b.len, "holds no tensors");
    b.len = 0;
    for (int i = 0; i < DEEP; i++)
        OPS(&b, "}K\1");
    OPS(&b, "N");
    for (int i = 0; i < DEEP; i++)
        OPS(&b, "s");
    check_refused(b.data, b.len, "nested deeper than 64");
    buf_free(&b);
}

/* Each dict holds the one before ten times: the file is tiny, the tree is not. */
static void shared_dicts_do_not_multiply_without_end(void) {
    buf b = {0};
    put_tensor(&b, (wanted_tensor){ "FloatStorage", "0", 4, 0, 1, { 4 }, { 1 } });
    for (int level = 0; level < 12; level++) {
        buf_printf(&b, "q%c0", 'a' + level);
        b.len--;                              /* the value stays on the stack, memoized */
        OPS(&b, "}(");
        for (char k = '0'; k <= '9'; k++)
            buf_printf(&b, "U\1%ch%c", k, 'a' + level);
        OPS(&b, "u");
    }
    for (int level = 0; level < 12; level++)
        OPS(&b, "\x86");
    buf object = {0};
    OPS(&object, "\x80\x02");
    buf_put(&object, b.data, b.len - 12);
    OPS(&object, ".");
    check_refused_object(&object, "too many entries");
    buf_free(&object);
    buf_free(&b);
}

static void one_list_copied_many_times_is_refused(void) {
    buf b = {0};
    OPS(&b, "](");
    for (int i = 0; i < 10000; i++)
        OPS(&b, "](NNe");
    OPS(&b, "eq\1(ccollections\nOrderedDict\nq\2");
    for (int i = 0; i < 10000; i++)
        OPS(&b, "h\2h\1\x85R");
    OPS(&b, "t");
    check_refused(b.data, b.len, "more than 4194304 values");
    buf_free(&b);
}

static void one_name_for_two_tensors_is_refused(void) {
    buf b = {0};
    wanted_tensor t = { "FloatStorage", "0", 4, 0, 1, { 4 }, { 1 } };
    OPS(&b, "}(");
    put_text(&b, "a.b");
    put_tensor(&b, t);
    put_text(&b, "a");
    OPS(&b, "}");
    put_text(&b, "b");
    put_tensor(&b, t);
    OPS(&b, "su");
    check_refused(b.data, b.len, "tensor w.a.b appears twice");
    buf_free(&b);
}

static void legacy_storages_must_match_their_tensors(void) {
    buf object = sample_object();
    err e;
    raw_storage other = six_storage;
    other.key = "1";
    raw_storage both[2] = { six_storage, six_storage }, shorter = six_storage, longer = six_storage;
    shorter.count = 5;
    longer.bytes -= 4;
    struct { const raw_storage *s; int n; const char *why; } row[] = {
        { &other, 1, "storage 1 belongs to no tensor" },
        { &other, 0, "storage 0 is missing" },
        { both, 2, "storage 0 is listed twice" },
        { &shorter, 1, "storage 0 should have 6 elements" },
        { &longer, 1, "storage 0 is cut short" },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        buf b = legacy(&object, row[i].s, row[i].n);
        CHECK(!parse_copy(b.data, b.len, true, &e));
        if (!strstr(e.msg, row[i].why)) CHECK_TEXT(e.msg, row[i].why);
        buf_free(&b);
    }
    buf b = legacy(&object, &six_storage, 1);
    OPS(&b, "x");
    CHECK(!parse_copy(b.data, b.len, true, &e) && strstr(e.msg, "the data ends at"));
    buf_free(&b);
    buf_free(&object);
}

/* ---- tests: damage ------------------------------------------------------------------------ */

static void damage_everywhere(const buf *b) {
    err e;
    CHECK(parse_copy(b->data, b->len, true, &e));
    for (size_t n = 0; n < b->len; n++)
        CHECK(!parse_copy(b->data, n, true, &e));
    char *copy = malloc(b->len);
    memcpy(copy, b->data, b->len);
    for (size_t i = 0; i < b->len; i++)
        for (int k = 0; k < 6; k++) {
            static const unsigned char flip[6] = { 0x01, 0x80, 0xff, 0x55, 0x20, 0x7f };
            copy[i] = (char)(copy[i] ^ flip[k]);
            parse_copy(copy, b->len, true, &e);
            copy[i] = b->data[i];
        }
    rng r = rng_at(1, RNG_TEST, 0, 0);
    for (int k = 0; k < 3000; k++) {
        for (int j = 0; j < 4; j++)
            copy[rng_below(&r, (uint32_t)b->len)] = (char)rng_u32(&r);
        parse_copy(copy, b->len, true, &e);
        memcpy(copy, b->data, b->len);
    }
    free(copy);
}

static void damaged_files_never_crash(void) {
    buf object = sample_object(), zip = zipped(&object, &six_storage, 1),
        old = legacy(&object, &six_storage, 1);
    damage_everywhere(&zip);
    damage_everywhere(&old);
    buf_free(&object);
    buf_free(&zip);
    buf_free(&old);
}

static void failed_allocations_are_reported(void) {
    buf object = sample_object(), b = zipped(&object, &six_storage, 1);
    for (int k = 1; k < 60; k++) {
        tensor_file f;
        err e = {0};
        mem_fail_at(k);
        bool ok = pth_parse(&f, b.data, b.len, &e);
        mem_fail_at(0);
        CHECK(ok || e.code == ERR_NOMEM);
        tensor_file_close(&f);
    }
    buf_free(&object);
    buf_free(&b);
}

static void hostile_files_cost_little_memory(void) {
#ifdef __SANITIZE_THREAD__
    SKIP("the thread sanitizer keeps a shadow of all memory");
#endif
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    CHECK(u.ru_maxrss < 1 << 20);             /* KiB; sanitizers keep some freed memory */
}

int main(void) {
    RUN(zip_container_with_strides_and_shared_storage);
    RUN(legacy_container_with_strides_and_shared_storage);
    RUN(every_storage_type_is_read);
    RUN(nested_dicts_are_joined_with_dots);
    RUN(what_stands_beside_the_state_dict_is_passed_over);
    RUN(python_2_strings_pairs_and_parameters_are_read);
    RUN(files_of_pythons_own_pickler_are_read);
    RUN(published_weights_have_their_names_and_shapes);
    RUN(names_that_could_run_something_are_refused);
    RUN(unknown_opcodes_are_refused_with_their_place);
    RUN(broken_pickles_are_refused);
    RUN(tensors_outside_their_storage_are_refused);
    RUN(objects_without_tensors_are_refused);
    RUN(containers_that_contain_themselves_end);
    RUN(deep_nesting_ends);
    RUN(shared_dicts_do_not_multiply_without_end);
    RUN(one_list_copied_many_times_is_refused);
    RUN(one_name_for_two_tensors_is_refused);
    RUN(legacy_storages_must_match_their_tensors);
    RUN(damaged_files_never_crash);
    RUN(failed_allocations_are_reported);
    RUN(hostile_files_cost_little_memory);
    END();
}
