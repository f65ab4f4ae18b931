/* JSON, CSV, safetensors, zip, gzip and SVG: what is read, what is written, what is refused. */
#include "core/io.h"
#include "tests/test.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>

/* Plainly: thousands of files, and file_write waits for the disk. */
static const char *temp_with(const char *name, const void *data, size_t len) {
    FILE *f = fopen(in_dir(name), "wb");
    CHECK(f && fwrite(data, 1, len, f) == len);
    if (f) fclose(f);
    return in_dir(name);
}

#define HAS(e, part) do { if (!strstr((e).msg, part)) CHECK_TEXT((e).msg, part); } while (0)

/* ---- damage: every prefix, every byte changed, from memory of exactly that size ------------- */

typedef bool parse_fn(const char *data, size_t size, err *e);

static bool parse_copy(parse_fn *parse, const char *data, size_t size) {
    err e = {0};
    char *copy = malloc(size ? size : 1);
    if (size) memcpy(copy, data, size);
    bool ok = parse(copy, size, &e);
    CHECK(ok || (e.code == ERR_DATA && e.msg[0]));
    free(copy);
    return ok;
}

static void damage(parse_fn *parse, const char *data, size_t size) {
    static const unsigned char flip[] = { 0x01, 0x80, 0xff, 0x20, 0x10 };
    char *bad = malloc(size);
    for (size_t n = 0; n < size; n++)
        parse_copy(parse, data, n);
    for (size_t i = 0; i < size; i++)
        for (size_t k = 0; k < sizeof flip; k++) {
            memcpy(bad, data, size);
            bad[i] = (char)(bad[i] ^ flip[k]);
            parse_copy(parse, bad, size);
        }
    rng r = rng_at(2, RNG_TEST, 0, 0);
    for (int k = 0; k < 2000; k++) {
        memcpy(bad, data, size);
        for (int j = 0; j < 3; j++)
            bad[rng_below(&r, (uint32_t)size)] = bad[rng_below(&r, (uint32_t)size)];
        parse_copy(parse, bad, size);
    }
    free(bad);
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json *parse(const char *text, err *e) { return json_parse(text, strlen(text), e); }

static void json_reads_every_kind_of_value(void) {
    err e;
    json *j = parse(" {\"a\": [1, -2.5e3, 0.1, true, false, null, \"x\\n\\u00e9\\ud83d\\ude00\\/\"],"
                    "\t\"b\":{},\r\n\"c\":[] , \"d\\\"\":\"\"}\n", &e);
    CHECK(j && j->type == JSON_OBJECT && j->count == 4);
    if (!j) return;
    const json *a = json_get(j, "a"), *v = a->child;
    CHECK(a->type == JSON_ARRAY && a->count == 7);
    CHECK(v->type == JSON_NUMBER && v->number == 1);
    CHECK((v = v->next)->number == -2500);
    CHECK((v = v->next)->number == 0.1);
    CHECK((v = v->next)->type == JSON_BOOL && v->boolean);
    CHECK((v = v->next)->type == JSON_BOOL && !v->boolean);
    CHECK((v = v->next)->type == JSON_NULL);
    CHECK_TEXT((v = v->next)->text, "x\n\xc3\xa9\xf0\x9f\x98\x80/");
    CHECK(v->next == NULL);
    CHECK(json_get(j, "b")->count == 0 && json_get(j, "c")->count == 0);
    CHECK_TEXT(json_get(j, "d\"")->text, "");
    CHECK(json_get(j, "absent") == NULL && json_get(a, "a") == NULL);
    json_free(j);
    json_free(NULL);
}

static void json_typed_access_names_the_key(void) {
    err e;
    double d;
    int64_t i;
    const char *t;
    json *j = parse("{\"n\":1.5,\"i\":-7,\"t\":\"x\",\"big\":1e300}", &e);
    CHECK(json_get_number(j, "n", &d, &e) && d == 1.5);
    CHECK(json_get_int(j, "i", &i, &e) && i == -7);
    CHECK(json_get_text(j, "t", &t, &e) && !strcmp(t, "x"));
    CHECK(!json_get_int(j, "n", &i, &e));
    HAS(e, "\"n\" is 1.5");
    CHECK(!json_get_int(j, "big", &i, &e));
    CHECK(!json_get_number(j, "t", &d, &e));
    HAS(e, "\"t\" is not a number");
    CHECK(!json_get_text(j, "gone", &t, &e));
    HAS(e, "\"gone\" is missing");
    json_free(j);
}

static void json_refuses_what_is_not_json(void) {
    static const struct { const char *text, *why; } row[] = {
        { "", "1:1: text ends" },
        { "{\"a\":1,\n \"a\":2}", "2:2: key \"a\" appears twice" },
        { "{\"x\":{\"a\":1},\"b\":1,\"x\":2}", "1:20: key \"x\" appears twice" },
        { "[1,]", "1:4: unexpected" },
        { "[1 2]", "1:4: expected ',' or ']'" },
        { "{\"a\" 1}", "expected ':'" },
        { "{a:1}", "expected a key" },
        { "{\"a\":1,}", "expected a key" },
        { "[1]]", "1:4: more text" },
        { "01", "needless zero" },
        { "1.", "no digits after" },
        { ".5", "unexpected" },
        { "+1", "unexpected" },
        { "-", "unexpected" },
        { "1e", "exponent" },
        { "1e999", "too large" },
        { "NaN", "unexpected" },
        { "Infinity", "unexpected" },
        { "tru", "unexpected" },
        { "nulll", "more text" },
        { "'a'", "unexpected" },
        { "\"a", "no closing quote" },
        { "\"a\\", "no closing quote" },
        { "\"\\x\"", "unknown escape" },
        { "\"\\u12g4\"", "hexadecimal" },
        { "\"\\u12\"", "hexadecimal" },
        { "\"\\ud800\"", "without its low" },
        { "\"\\ud800\\u0041\"", "without its low" },
        { "\"\\udc00\"", "without its high" },
        { "\"\\u0000\"", "\\u0000" },
        { "\"a\tb\"", "1:3: control character" },
        { "\"\xc3\"", "not UTF-8" },
        { "\"\xc0\xaf\"", "not UTF-8" },
        { "\"\xed\xa0\x80\"", "not UTF-8" },
        { "\"\xf4\x90\x80\x80\"", "not UTF-8" },
        { "\xef\xbb\xbf{}", "unexpected" },
        { "/**/1", "unexpected" },
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        err e = {0};
        json *j = parse(row[i].text, &e);
        CHECK(j == NULL && e.code == ERR_DATA);
        HAS(e, row[i].why);
        json_free(j);
    }
}

static void json_depth_is_limited_to_64(void) {
    char text[400] = "";
    err e;
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    json *j = parse(text, &e);
    CHECK(j != NULL);
    json_free(j);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    CHECK(!parse(text, &e));
    HAS(e, "1:65: nested deeper than 64");
    char *deep = malloc(1000000);
    memset(deep, '[', 1000000);
    CHECK(!json_parse(deep, 1000000, &e));
    free(deep);
}

static void json_with_many_keys_is_read_quickly(void) {
    buf b = {0};
    err e;
    buf_puts(&b, "{\"k\":0");
    for (int i = 0; i < 200000; i++)
        buf_printf(&b, ",\"key%d\":%d", i, i);
    buf_puts(&b, "}");
    int64_t start = clock_ns();
    json *j = json_parse(b.data, b.len, &e);
    CHECK(j && j->count == 200001);
    CHECK(clock_ns() - start < 5000000000);
    json_free(j);
    buf_free(&b);
}

static bool parse_json(const char *data, size_t size, err *e) {
    json *j = json_parse(data, size, e);
    json_free(j);
    return j != NULL;
}

static void damaged_json_never_crashes(void) {
    static const char text[] = "{\"a\":[1,-2.5e3,true,null,\"\\ud83d\\ude00\xc3\xa9\"],\"b\":{\"c\":{}}}";
    damage(parse_json, text, sizeof text - 1);
}

static void json_writer_output_reads_back(void) {
    buf b = {0};
    err e;
    for (int pretty = 0; pretty < 2; pretty++) {
        json_writer w = json_writer_on(&b, pretty);
        b.len = 0;
        json_begin(&w, NULL, '{');
        json_text(&w, "t\"", "q\"\\\n\x01\xc3\xa9");
        json_text(&w, "none", NULL);
        json_text(&w, "bad", "a\xff" "b");
        json_number(&w, "x", 0.1);
        json_number(&w, "nan", (double)NAN);
        json_int(&w, "i", INT64_MIN);
        json_bool(&w, "yes", true);
        json_raw(&w, "raw", "{\"in\":[]}");
        json_begin(&w, "list", '[');
        for (int i = 0; i < 3; i++)
            json_int(&w, NULL, i);
        json_begin(&w, NULL, '{');
        json_end(&w, '}');
        json_end(&w, ']');
        json_end(&w, '}');
        json *j = json_parse(b.data, b.len, &e);
        CHECK(j && j->count == 9);
        if (!j) continue;
        CHECK_TEXT(json_get(j, "t\"")->text, "q\"\\\n\x01\xc3\xa9");
        CHECK_TEXT(json_get(j, "bad")->text, "a\xef\xbf\xbd" "b");
        CHECK(json_get(j, "nan")->type == JSON_NULL && json_get(j, "none")->type == JSON_NULL);
        CHECK(json_get(j, "x")->number == 0.1 && json_get(j, "list")->count == 4);
        json_free(j);
    }
    buf_free(&b);
}

static void json_writer_text_is_as_documented(void) {
    buf b = {0};
    json_writer w = json_writer_on(&b, false);
    json_begin(&w, NULL, '{');
    json_begin(&w, "a", '[');
    json_int(&w, NULL, 1);
    json_number(&w, NULL, 2.5);
    json_end(&w, ']');
    json_bool(&w, "b", false);
    json_end(&w, '}');
    CHECK_TEXT(b.data, "{\"a\":[1,2.5],\"b\":false}");
    b.len = 0;
    w = json_writer_on(&b, true);
    json_begin(&w, NULL, '{');
    json_begin(&w, "a", '[');
    json_int(&w, NULL, 1);
    json_int(&w, NULL, 2);
    json_end(&w, ']');
    json_begin(&w, "b", '[');
    json_begin(&w, NULL, '{');
    json_int(&w, "c", 3);
    json_end(&w, '}');
    json_end(&w, ']');
    json_begin(&w, "d", '{');
    json_end(&w, '}');
    json_end(&w, '}');
    CHECK_TEXT(b.data, "{\n  \"a\": [1, 2],\n  \"b\": [\n    {\n      \"c\": 3\n    }\n  ],\n  \"d\": {}\n}\n");
    buf_free(&b);
}

static void numbers_print_shortest_and_read_back(void) {
    static const struct { double v; const char *text; } row[] = {
        { 0.1, "0.1" }, { 1e-5, "1e-05" }, { 3, "3" }, { -0.0, "-0" }, { 1e15, "1000000000000000" },
        { 1e22, "1e+22" }, { 1.0 / 3, "0.3333333333333333" }, { 0.1 + 0.2, "0.30000000000000004" },
        { 5e-324, "5e-324" }, { 1.7976931348623157e308, "1.7976931348623157e+308" }, { -2.5, "-2.5" },
        { (double)NAN, "nan" }, { HUGE_VAL, "inf" }, { -HUGE_VAL, "-inf" }, { 100, "100" },
    };
    char text[32];
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        number_print(text, row[i].v);
        CHECK_TEXT(text, row[i].text);
    }
    rng r = rng_at(3, RNG_TEST, 0, 0);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)rng_u32(&r) << 32 | rng_u32(&r);
        double v;
        memcpy(&v, &bits, sizeof v);
        number_print(text, v);
        CHECK(isnan(v) || strtod(text, NULL) == v);
    }
}

static void json_read_names_the_file(void) {
    err e;
    CHECK(!json_read(in_dir("absent.json"), &e) && e.code == ERR_NOINPUT);
    CHECK(!json_read(temp_with("bad.json", "{\n]", 3), &e) && e.code == ERR_DATA);
    HAS(e, "bad.json: 2:1: expected a key");
    CHECK(!json_read(temp_with("empty.json", "", 0), &e) && e.code == ERR_DATA);
    json *j = json_read(temp_with("good.json", "[1]", 3), &e);
    CHECK(j && j->count == 1);
    json_free(j);
}

/* ---- CSV ---------------------------------------------------------------------------------- */

static bool read_csv(csv_table *t, const char *text, err *e) {
    return csv_read(t, temp_with("t.csv", text, strlen(text)), e);
}

static void csv_reads_quotes_line_ends_and_an_index_column(void) {
    csv_table t;
    err e;
    int64_t i;
    double d;
    bool b;
    CHECK_OK(read_csv(&t, ",st,conv_comb,is_dw,imp\r\n0,3,\"(3, 4)\",True,-1.5e-3\r\n"
                          "1,-4,\"say \"\"hi\"\"\nthere\",0,nan\n2,5,,False,inf", &e), e);
    CHECK(t.n_col == 5 && t.n_row == 3);
    CHECK(csv_column(&t, "") == 0 && csv_column(&t, "imp") == 4 && csv_column(&t, "no") == -1);
    CHECK_TEXT(csv_cell(&t, 0, 2), "(3, 4)");
    CHECK_TEXT(csv_cell(&t, 1, 2), "say \"hi\"\nthere");
    CHECK_TEXT(csv_cell(&t, 2, 2), "");
    CHECK(csv_int(&t, 0, 1, &i, &e) && i == 3 && csv_int(&t, 1, 1, &i, &e) && i == -4);
    CHECK(csv_number(&t, 0, 4, &d, &e) && d == -1.5e-3);
    CHECK(csv_number(&t, 1, 4, &d, &e) && isnan(d));
    CHECK(csv_number(&t, 2, 4, &d, &e) && isinf(d));
    CHECK(csv_bool(&t, 0, 3, &b, &e) && b && csv_bool(&t, 1, 3, &b, &e) && !b);
    CHECK(csv_bool(&t, 2, 3, &b, &e) && !b);
    CHECK(!csv_number(&t, 2, 2, &d, &e));
    HAS(e, "t.csv:5: column \"conv_comb\" is empty, wanted a number");   /* a cell above has two lines */
    CHECK(!csv_bool(&t, 0, 1, &b, &e));
    HAS(e, "t.csv:2: column \"st\" is \"3\", wanted True or False");
    int col;
    CHECK(!csv_need(&t, "time", &col, &e) && e.code == ERR_DATA);
    HAS(e, "column \"time\" is missing");
    csv_free(&t);
}

/* As in pandas, with which the reference's tables are read; later errors still name the file's own line. */
static void csv_skips_blank_lines(void) {
    csv_table t;
    err e = { 0 };
    double d;
    CHECK_OK(read_csv(&t, "\na,b\n\n1,2\r\n\r\n\n3,x\n\n", &e), e);
    CHECK(t.n_row == 2 && csv_line(&t, 0) == 4 && csv_line(&t, 1) == 7);
    CHECK(csv_number(&t, 0, 1, &d, &e) && d == 2 && csv_number(&t, 1, 0, &d, &e) && d == 3);
    CHECK(!csv_number(&t, 1, 1, &d, &e));
    HAS(e, "t.csv:7: column \"b\" is \"x\"");
    csv_free(&t);
}

static void csv_numbers_are_the_whole_cell(void) {
    static const char *const bad[] = { "1x", "0x10", " 1", "1 ", "--1", "1e", "1,", "nanx", "e", "." };
    static const char *const bad_int[] = { "1.0", "1e3", "", "+-1", "99999999999999999999", " 1", "0x1" };
    csv_table t;
    err e;
    double d;
    int64_t i;
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        char text[64];
        snprintf(text, sizeof text, "a\n\"%s\"\n", bad[k]);
        CHECK_OK(read_csv(&t, text, &e), e);
        CHECK(!csv_number(&t, 0, 0, &d, &e) && e.code == ERR_DATA);
        csv_free(&t);
    }
    for (size_t k = 0; k < sizeof bad_int / sizeof *bad_int; k++) {
        char text[64];
        snprintf(text, sizeof text, "a,b\n\"%s\",\n", bad_int[k]);
        CHECK_OK(read_csv(&t, text, &e), e);
        CHECK(!csv_int(&t, 0, 0, &i, &e) && e.code == ERR_DATA);
        csv_free(&t);
    }
    CHECK_OK(read_csv(&t, "a,b\n1e999,1e-999\n", &e), e);
    CHECK(!csv_number(&t, 0, 0, &d, &e));
    CHECK(csv_number(&t, 0, 1, &d, &e) && d == 0);
    csv_free(&t);
}

static void csv_refuses_broken_tables(void) {
    static const struct { const char *text, *why; } row[] = {
        { "", "is empty" }, { "\n\n", "is empty" },
        { "a,b\n1,2\n3\n", "t.csv:3: 1 cells where the header has 2" },
        { "a,b\n1,2,3\n", "t.csv:2: 3 cells" },
        { "a,b\n\r1,2\n", "t.csv:2: a carriage return" },
        { "a,b\n1,\"2\n3,4\n", "t.csv:2: a quoted cell is never closed" },
        { "a,b\n1,\"2\"x\n", "t.csv:2: text after a closing quote" },
        { "a,b\n1,2\"x\n", "t.csv:2: a quote inside" },
        { "a\rb\n", "carriage return" },
        { "a,b,a\n", "column \"a\" appears twice" },
    };
    csv_table t;
    err e;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        CHECK(!read_csv(&t, row[i].text, &e) && e.code == ERR_DATA);
        HAS(e, row[i].why);
    }
    CHECK(!csv_read(&t, temp_with("nul.csv", "a\n\0\n", 4), &e) && e.code == ERR_DATA);
    HAS(e, "NUL");
    CHECK(!csv_read(&t, in_dir("absent.csv"), &e) && e.code == ERR_NOINPUT);
}

static void csv_accepts_a_header_alone_a_byte_order_mark_and_blank_ends(void) {
    csv_table t;
    err e;
    CHECK_OK(read_csv(&t, "a,b", &e), e);
    CHECK(t.n_row == 0 && t.n_col == 2);
    csv_free(&t);
    CHECK_OK(read_csv(&t, "\xef\xbb\xbf" "a,,\n1,2,3\n\r\n\n", &e), e);
    CHECK(t.n_row == 1 && csv_column(&t, "a") == 0);
    csv_free(&t);
}

static void csv_quote_is_undone_by_reading(void) {
    static const char *const cell[] = { "plain", "a,b", "a\"b", "two\nlines", "\r", "", "(3, 4)" };
    buf b = {0};
    csv_table t;
    err e;
    for (int line = 0; line < 2; line++)
        for (int i = 0; i < 7; i++) {
            csv_quote(&b, cell[i]);
            buf_puts(&b, i < 6 ? "," : "\n");
        }
    CHECK(!strncmp(b.data, "plain,\"a,b\",\"a\"\"b\",", 19));
    CHECK_OK(csv_read(&t, temp_with("q.csv", b.data, b.len), &e), e);
    for (int i = 0; i < 7 && t.n_row == 1; i++) {
        CHECK_TEXT(t.name[i], cell[i]);
        CHECK_TEXT(csv_cell(&t, 0, i), cell[i]);
    }
    CHECK(t.n_row == 1);
    csv_free(&t);
    buf_free(&b);
}

static bool parse_csv(const char *data, size_t size, err *e) {
    csv_table t;
    double d;
    if (!csv_read(&t, temp_with("d.csv", data, size), e)) return false;
    for (int64_t i = 0; i < t.n_row; i++)
        for (int k = 0; k < t.n_col; k++)
            csv_number(&t, i, k, &d, NULL);
    csv_free(&t);
    return true;
}

static void damaged_csv_never_crashes(void) {
    static const char text[] = ",a,\"b\"\r\n0,\"x\"\"y\n\",2\n1,-3.5,nan\n";
    damage(parse_csv, text, sizeof text - 1);
}

/* ---- safetensors -------------------------------------------------------------------------- */

static const float some_floats[6] = { 1, -2, 3.5f, 0, 1e-3f, 7 };
static const int64_t some_ints[2] = { -5, 1 };
static const uint8_t some_bytes[3] = { 0, 1, 255 };

static int sample_tensors(tf_tensor *t) {
    t[0] = (tf_tensor){ .name = "bytes", .dtype = DT_U8, .rank = 1, .dim = { 3 }, .data = (const char *)some_bytes };
    t[1] = (tf_tensor){ .name = "w \"\xc3\xa9", .dtype = DT_F32, .rank = 2, .dim = { 2, 3 }, .data = (const char *)some_floats };
    t[2] = (tf_tensor){ .name = "scalar", .dtype = DT_I64, .rank = 0, .data = (const char *)some_ints };
    t[3] = (tf_tensor){ .name = "nothing", .dtype = DT_F32, .rank = 3, .dim = { 4, 0, 1000000 } };
    return 4;
}

static const text_pair sample_meta[] = { { "graph", "conv 3\nrelu" }, { "format", "pt" } };

static buf sample_file(void) {
    tf_tensor t[4];
    buf b = {0};
    err e;
    int n = sample_tensors(t);
    CHECK_OK(safetensors_write(in_dir("s.safetensors"), t, n, sample_meta, 2, &e), e);
    CHECK_OK(file_read(in_dir("s.safetensors"), &b, &e), e);
    return b;
}

static void safetensors_written_are_read_back(void) {
    tensor_file f;
    err e;
    float x[6];
    int64_t i[3];
    buf b = sample_file(), again = sample_file();
    CHECK(b.len == again.len && !memcmp(b.data, again.data, b.len));
    uint64_t header = 0;
    memcpy(&header, b.data, 8);
    CHECK((header + 8) % 64 == 0 && b.len == header + 8 + 24 + 8 + 3);
    CHECK_OK(tensor_file_open(&f, in_dir("s.safetensors"), &e), e);
    CHECK(f.n == 4 && f.n_meta == 2);
    CHECK_TEXT(tensor_file_meta(&f, "graph"), "conv 3\nrelu");
    CHECK(tensor_file_meta(&f, "no") == NULL && tensor_file_find(&f, "no") == NULL);
    CHECK_TEXT(f.meta_key[1], "format");
    CHECK_TEXT(f.tensor[0].name, "bytes");
    const tf_tensor *w = tensor_file_find(&f, "w \"\xc3\xa9"), *s = tensor_file_find(&f, "scalar");
    CHECK(w && w->rank == 2 && w->stride[0] == 3 && (uintptr_t)w->data % 4 == 0);
    CHECK(w && tf_read_f32(w, x, &e) && !memcmp(x, some_floats, sizeof x));
    CHECK(w && !tf_read_i64(w, i, &e) && e.code == ERR_DATA);
    CHECK(s && s->rank == 0 && tf_count(s) == 1 && tf_read_i64(s, i, &e) && i[0] == -5);
    CHECK(s && !tf_read_f32(s, x, &e) && e.code == ERR_DATA);
    HAS(e, "scalar is I64, a float is wanted");
    CHECK(tf_read_i64(&f.tensor[0], i, &e) && i[2] == 255);
    CHECK(tf_count(&f.tensor[3]) == 0 && tf_read_f32(&f.tensor[3], x, &e));
    tensor_file_close(&f);
    buf_free(&b);
    buf_free(&again);
}

static void half_precision_is_widened_exactly(void) {
    static const struct { uint16_t half; float value; } row[] = {
        { 0x3c00, 1 }, { 0xc100, -2.5f }, { 0x0001, 0x1p-24f }, { 0x8001, -0x1p-24f }, { 0x03ff, 0x3ffp-24f },
        { 0x0400, 0x1p-14f }, { 0x7bff, 65504 }, { 0x7c00, HUGE_VALF }, { 0xfc00, -HUGE_VALF }, { 0x8000, -0.0f },
    };
    err e;
    float x;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        tf_tensor t = { .name = "h", .dtype = DT_F16, .data = (const char *)&row[i].half };
        CHECK(tf_read_f32(&t, &x, &e) && x == row[i].value && signbit(x) == signbit(row[i].value));
    }
    uint16_t nan_half = 0x7e00, bf = 0xbfc0;
    tf_tensor t = { .name = "h", .dtype = DT_F16, .data = (const char *)&nan_half };
    CHECK(tf_read_f32(&t, &x, &e) && isnan(x));
    t = (tf_tensor){ .name = "b", .dtype = DT_BF16, .data = (const char *)&bf };
    CHECK(tf_read_f32(&t, &x, &e) && x == -1.5f);
}

static void strided_tensors_are_gathered_row_by_row(void) {
    int16_t data[24];
    int64_t out[24];
    err e;
    for (int i = 0; i < 24; i++)
        data[i] = (int16_t)i;
    tf_tensor t = { .name = "s", .dtype = DT_I16, .rank = 3, .dim = { 2, 3, 4 }, .stride = { 1, 8, 2 },
                    .data = (const char *)data };
    CHECK(tf_read_i64(&t, out, &e));
    for (int a = 0, k = 0; a < 2; a++)
        for (int b = 0; b < 3; b++)
            for (int c = 0; c < 4; c++)
                CHECK(out[k++] == a + 8 * b + 2 * c);
}

/* A file with this header and `size` bytes of data. */
static bool open_header(const char *header, size_t size, err *e) {
    buf b = {0};
    uint64_t len = strlen(header);
    tensor_file f;
    buf_put(&b, &len, 8);
    buf_puts(&b, header);
    for (size_t i = 0; i < size; i++)
        buf_put(&b, "", 1);
    bool ok = safetensors_parse(&f, b.data, b.len, e);
    tensor_file_close(&f);
    buf_free(&b);
    return ok;
}

static void safetensors_headers_are_checked_strictly(void) {
#define T(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct { const char *header; size_t size; const char *why; } row[] = {
        { "[]", 0, "not a JSON object" },
        { " {}", 0, "not a JSON object" },
        { "{\"a\":1}", 0, "tensor a is not described" },
        { "{\"a\":{}}", 0, "dtype (none)" },
        { "{\"\":" T("F32", "[1]", "[0,4]") "}", 4, "no name" },
        { "{\"a\":" T("F99", "[1]", "[0,4]") "}", 4, "tensor a: dtype F99 is not supported" },
        { "{\"a\":" T("F32", "1", "[0,4]") "}", 4, "shape" },
        { "{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4, "shape" },
        { "{\"a\":" T("F32", "[1.5]", "[0,4]") "}", 4, "shape" },
        { "{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "shape is not a list of at most 8 sizes" },
        { "{\"a\":" T("F32", "[4294967296,4294967296]", "[0,4]") "}", 4, "shape is too big" },
        { "{\"a\":" T("F32", "[1e300]", "[0,4]") "}", 4, "shape is too big" },
        { "{\"a\":" T("F32", "[0,1e300]", "[0,0]") "}", 0, "shape is too big" },
        { "{\"a\":" T("F32", "[1]", "[0,4,8]") "}", 8, "data_offsets" },
        { "{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, "data_offsets" },
        { "{\"a\":" T("F32", "[2]", "[0,8]") "}", 4, "data_offsets" },
        { "{\"a\":" T("F32", "[2]", "[0,4]") "}", 4, "2 elements of F32 but 4 bytes" },
        { "{\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "begins at data byte 4 but the one before ends at 0" },
        { "{\"a\":" T("F32", "[1]", "[0,4]") "}", 5, "tensors end at data byte 4 of 5" },
        { "{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}", 4, "begins at data byte 0" },
        { "{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[1]", "[4,8]") "}", 8, "begins at data byte 4" },
        { "{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[8,12]") "}", 12, "before ends at 4" },
        { "{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "appears twice" },
        { "{\"__metadata__\":{\"a\":1}}", 0, "not a text" },
        { "{\"__metadata__\":[]}", 0, "not an object" },
        { "{", 0, "safetensors: header: 1:2" },
    };
    err e;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        CHECK(!open_header(row[i].header, row[i].size, &e) && e.code == ERR_DATA);
        HAS(e, row[i].why);
    }
    CHECK_OK(open_header("{}   ", 0, &e), e);
    CHECK_OK(open_header("{\"b\":" T("U8", "[4]", "[4,8]") ",\"z\":" T("F32", "[0]", "[4,4]")
                         ",\"a\":" T("F32", "[1]", "[0,4]") "}", 8, &e), e);
#undef T
    tensor_file f;
    CHECK(!safetensors_parse(&f, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, &e));
    HAS(e, "18446744073709551615 bytes does not fit");
    CHECK(!tensor_file_open(&f, temp_with("x.bin", "hello, this is a text", 21), &e));
    HAS(e, "x.bin: is neither safetensors nor a PyTorch file");
    CHECK(!tensor_file_open(&f, temp_with("empty.bin", "", 0), &e) && e.code == ERR_DATA);
    CHECK(!tensor_file_open(&f, in_dir("absent.bin"), &e) && e.code == ERR_NOINPUT);
}

/* A pickle begins with 0x80, and so does such a file whose header is 128, 384, 640… bytes long. */
static void a_header_of_any_length_is_that_of_a_safetensors_file(void) {
    for (uint64_t len = 60; len <= 700; len++) {
        buf b = {0};
        err e = {0};
        tensor_file f;
        buf_put(&b, &len, 8);
        buf_printf(&b, "%-*s1234", (int)len, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
        CHECK_OK(tensor_file_open(&f, temp_with("padded", b.data, b.len), &e), e);
        CHECK(f.n == 1);
        tensor_file_close(&f);
        buf_free(&b);
    }
}

static void every_type_of_safetensors_is_listed_and_read_as_what_it_is(void) {
    static const struct { const char *name; size_t bytes; bool real, whole; } row[] = {
        { "F64", 8, true, false }, { "F32", 4, true, false }, { "F16", 2, true, false }, { "BF16", 2, true, false },
        { "I64", 8, false, true }, { "I32", 4, false, true }, { "I16", 2, false, true }, { "I8", 1, false, true },
        { "U8", 1, false, true }, { "BOOL", 1, false, true }, { "U16", 2, false, false }, { "U32", 4, false, false },
        { "U64", 8, false, false }, { "C64", 8, false, false },
        { "F8_E4M3", 1, false, false }, { "F8_E5M2", 1, false, false },
    };
    CHECK(sizeof row / sizeof *row == DT_COUNT);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        buf b = {0};
        err e = {0};
        tensor_file f;
        float x[2];
        int64_t k[2];
        uint64_t len = 100;
        char header[101];
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"%s\",\"shape\":[2],\"data_offsets\":[0,%zu]}}",
                 row[i].name, 2 * row[i].bytes);
        buf_put(&b, &len, 8);
        buf_printf(&b, "%-100s", header);
        buf_put(&b, (char[16]){ 0 }, 2 * row[i].bytes);
        CHECK_OK(safetensors_parse(&f, b.data, b.len, &e), e);
        if (f.n == 1) {
            CHECK_TEXT(tf_dtype_names[f.tensor->dtype], row[i].name);
            CHECK(tf_read_f32(f.tensor, x, &e) == row[i].real && (row[i].real || e.code == ERR_DATA));
            if (!row[i].real) HAS(e, row[i].name);
            CHECK(tf_read_i64(f.tensor, k, &e) == row[i].whole);
        }
        tensor_file_close(&f);
        buf_free(&b);
    }
}

static void safetensors_writer_refuses_what_cannot_be_read(void) {
    err e;
    tf_tensor one = { .name = "a", .dtype = DT_F32, .rank = 1, .dim = { 2 }, .data = (const char *)some_floats };
    tf_tensor two[2] = { one, one };
    text_pair twice[2] = { { "k", "1" }, { "k", "2" } };
    const char *path = "nowhere.safetensors";
    CHECK(!safetensors_write(path, two, 2, NULL, 0, &e));
    HAS(e, "tensor a appears twice");
    CHECK(!safetensors_write(path, &one, 1, twice, 2, &e));
    HAS(e, "metadata \"k\" appears twice");
    tf_tensor bad = one;
    bad.name = "__metadata__";
    CHECK(!safetensors_write(path, &bad, 1, NULL, 0, &e));
    bad = one;
    bad.dim[0] = -1;
    CHECK(!safetensors_write(path, &bad, 1, NULL, 0, &e));
    bad = one;
    bad.data = NULL;
    CHECK(!safetensors_write(path, &bad, 1, NULL, 0, &e));
    bad = one;
    bad.stride[0] = 2;
    CHECK(!safetensors_write(path, &bad, 1, NULL, 0, &e));
    HAS(e, "writing nowhere.safetensors: tensor a is not contiguous");
    CHECK(!file_exists(path));
    CHECK(!safetensors_write(in_dir("no/such/folder/x"), &one, 1, NULL, 0, &e) && e.code == ERR_IO);
}

static bool parse_safetensors(const char *data, size_t size, err *e) {
    tensor_file f;
    bool ok = safetensors_parse(&f, data, size, e);
    for (int i = 0; ok && i < f.n; i++) {
        float *x = malloc((size_t)tf_count(&f.tensor[i]) * sizeof *x + 1);
        int64_t *k = malloc((size_t)tf_count(&f.tensor[i]) * sizeof *k + 1);
        const bool real = tf_read_f32(&f.tensor[i], x, NULL), whole = tf_read_i64(&f.tensor[i], k, NULL);
        CHECK(!real || !whole);
        free(k);
        free(x);
    }
    tensor_file_close(&f);
    return ok;
}

static void damaged_safetensors_never_crash(void) {
    buf b = sample_file();
    damage(parse_safetensors, b.data, b.len);
    for (size_t n = 0; n < b.len; n++)
        CHECK(!parse_copy(parse_safetensors, b.data, n));
    buf_free(&b);
}

static void failed_allocations_are_reported(void) {
    buf b = sample_file();
    tf_tensor t[4];
    int n = sample_tensors(t);
    bool written = false;
    for (int k = 1; k < 60; k++) {
        tensor_file f;
        err e = {0};
        mem_fail_at(k);
        bool ok = safetensors_parse(&f, b.data, b.len, &e);
        mem_fail_at(0);
        CHECK(ok || e.code == ERR_NOMEM);
        tensor_file_close(&f);
        e.code = ERR_NONE;
        mem_fail_at(k);
        written = written || safetensors_write(in_dir("m.safetensors"), t, n, sample_meta, 2, &e);
        mem_fail_at(0);
        CHECK(written || e.code == ERR_NOMEM);
        csv_table table;
        temp_with("m.csv", "a,b\n1,2\n", 8);
        mem_fail_at(k);
        ok = csv_read(&table, in_dir("m.csv"), &e);
        mem_fail_at(0);
        CHECK(ok || e.code == ERR_NOMEM);
        if (ok) csv_free(&table);
    }
    CHECK(written);
    buf_free(&b);
}

/* ---- zip and gzip ------------------------------------------------------------------------- */

/* Made by Python's zipfile: "a.txt" deflated (1000 times 'x'), "d/b.bin" stored, a comment; and one
 * with the 64-bit extra fields and end record. */
static const char *const zip_paths[] = { "tests/golden/small.zip", "tests/golden/small64.zip" };

static void zip_entries_are_inflated_and_checked(void) {
    for (int k = 0; k < 2; k++) {
        buf b = {0};
        zip_file z;
        err e;
        CHECK_OK(file_read(zip_paths[k], &b, &e), e);
        CHECK_OK(zip_parse(&z, b.data, b.len, &e), e);
        CHECK(z.n == 2);
        const zip_entry *a = zip_find(&z, "a.txt"), *d = zip_find(&z, "d/b.bin");
        CHECK(a && a->size == 1000 && a->owned && a->data[999] == 'x');
        CHECK(d && d->size == 4 && !d->owned && !memcmp(d->data, "\0\1\2\3", 4));
        CHECK(zip_find(&z, "b.bin") == NULL);
        zip_free(&z);
        buf_free(&b);
    }
}

static bool parse_zip(const char *data, size_t size, err *e) {
    zip_file z;
    bool ok = zip_parse(&z, data, size, e);
    for (int i = 0; ok && i < z.n; i++)
        CHECK(z.entry[i].size <= 1000 && strlen(z.entry[i].name) < 100);
    zip_free(&z);
    return ok;
}

static void damaged_zips_never_crash(void) {
    for (int k = 0; k < 2; k++) {
        buf b = {0};
        err e;
        CHECK_OK(file_read(zip_paths[k], &b, &e), e);
        for (size_t n = 0; n < b.len; n++)
            CHECK(!parse_copy(parse_zip, b.data, n));
        damage(parse_zip, b.data, b.len);
        buf_free(&b);
    }
}

static buf gzipped(const void *data, size_t len) {
    buf b = {0};
    char out[4096];
    z_stream s = { .next_in = (Bytef *)(uintptr_t)data, .avail_in = (uInt)len, .next_out = (Bytef *)out,
                   .avail_out = sizeof out };
    CHECK(deflateInit2(&s, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    CHECK(deflate(&s, Z_FINISH) == Z_STREAM_END);
    buf_put(&b, out, sizeof out - s.avail_out);
    deflateEnd(&s);
    return b;
}

static void gzip_reads_members_in_a_row_and_plain_files(void) {
    char zeros[50000] = {0};
    buf one = gzipped("hello ", 6), two = gzipped(zeros, sizeof zeros), out = {0};
    err e;
    buf_put(&one, two.data, two.len);
    CHECK_OK(gzip_read(temp_with("m.gz", one.data, one.len), 50006, &out, &e), e);
    CHECK(out.len == 50006 && !memcmp(out.data, "hello \0\0", 8));
    CHECK(!gzip_read(in_dir("m.gz"), 50005, &out, &e) && e.code == ERR_DATA);
    HAS(e, "m.gz: gzip: unpacks to more than 50005 bytes");
    CHECK(out.len == 0);
    CHECK_OK(gzip_read(temp_with("plain", "text", 4), 4, &out, &e), e);
    CHECK(out.len == 4 && !strcmp(out.data, "text"));
    CHECK(!gzip_read(in_dir("plain"), 3, &out, &e) && e.code == ERR_DATA);
    HAS(e, "holds 4 bytes");
    CHECK_OK(gzip_read(temp_with("plain0", "", 0), 0, &out, &e), e);
    CHECK(!gzip_read(in_dir("absent"), 9, &out, &e) && e.code == ERR_NOINPUT);
    buf_free(&one);
    buf_free(&two);
    buf_free(&out);
}

static void damaged_gzip_is_refused(void) {
    buf b = gzipped("some text, some more text, and some text", 40), out = {0};
    err e;
    for (size_t n = 2; n < b.len; n++) {
        CHECK(!gzip_read(temp_with("cut.gz", b.data, n), 1000, &out, &e) && e.code == ERR_DATA);
        HAS(e, "cut short");
    }
    b.data[b.len - 6] ^= 1;                   /* checksum */
    CHECK(!gzip_read(temp_with("bad.gz", b.data, b.len), 1000, &out, &e) && e.code == ERR_DATA);
    HAS(e, "damaged");
    b.data[b.len - 6] ^= 1;
    buf_puts(&b, "junk");
    CHECK(!gzip_read(temp_with("junk.gz", b.data, b.len), 1000, &out, &e) && e.code == ERR_DATA);
    HAS(e, "garbage behind the data at byte");
    buf_free(&b);
    buf_free(&out);
}

static void fashion_mnist_unpacks_to_its_size(void) {
    buf out = {0};
    err e;
    const char *path = "../shared/data/fashion-mnist/t10k-labels-idx1-ubyte.gz";
    if (!file_exists(path)) SKIP("no ../shared/data/fashion-mnist");
    CHECK_OK(gzip_read(path, 1 << 20, &out, &e), e);
    CHECK(out.len == 10008);
    buf_free(&out);
}

/* ---- SVG ---------------------------------------------------------------------------------- */

static int count(const char *text, const char *part) {
    int n = 0;
    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

static void svg_holds_lines_markers_labels_and_escaped_text(void) {
    static const double x[] = { 1, 1.5, 2, 2.5, 3 }, y[] = { 71.2, 70.9, (double)NAN, 69.5, 66.1 };
    static const double x2[] = { 1, 2, 2.9 }, y2[] = { 70, 66, 60 };
    static const char *const label[] = { "base", NULL, "<b>&\"" };
    svg_series s[2] = { { "LayerMerge", x, y, 5, true, true, NULL }, { "depth & co", x2, y2, 3, false, true, label } };
    svg_plot p = { "Accuracy <-> speed", "speedup", "top-1 (%)", s, 2 };
    buf b = {0};
    svg_draw(&p, &b);
    CHECK(!strncmp(b.data, "<svg xmlns=", 11) && strstr(b.data, "width=\"640\" height=\"400\""));
    CHECK(strstr(b.data, "</svg>\n") == b.data + b.len - 7);
    CHECK(strstr(b.data, "Accuracy &lt;-&gt; speed") && strstr(b.data, "&lt;b&gt;&amp;&quot;"));
    CHECK(strstr(b.data, "depth &amp; co"));
    CHECK(count(b.data, "<circle") == 5);     /* four visible points and one in the legend */
    CHECK(count(b.data, "h6.4v6.4") == 4);
    CHECK(!strstr(b.data, "nan") && !strstr(b.data, "inf"));
    if (getenv("LM_SVG")) file_write(getenv("LM_SVG"), b.data, b.len, NULL);
    buf_free(&b);
}

static void svg_survives_odd_numbers(void) {
    static const double odd[][2] = { { 0, 0 }, { 5, 5 }, { (double)NAN, HUGE_VAL }, { -1e308, 1e308 }, { 1e-320, 2e-320 },
                                     { 1e15, 1e15 + 1 }, { -3e-7, 2e9 }, { -1e299, 1e299 } };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        svg_series s = { "s", odd[i], odd[i], 2, true, true, NULL };
        svg_plot p = { NULL, NULL, NULL, &s, 1 };
        buf b = {0};
        svg_draw(&p, &b);
        CHECK(b.len < 20000 && !strstr(b.data, "nan") && !strstr(b.data, "inf"));
        buf_free(&b);
    }
    svg_plot none = { "empty", "x", "y", NULL, 0 };
    buf b = {0};
    svg_draw(&none, &b);
    CHECK(strstr(b.data, ">0.2<") && strstr(b.data, "</svg>"));
    buf_free(&b);
}

int main(void) {
    make_dir();
    RUN(json_reads_every_kind_of_value);
    RUN(json_typed_access_names_the_key);
    RUN(json_refuses_what_is_not_json);
    RUN(json_depth_is_limited_to_64);
    RUN(json_with_many_keys_is_read_quickly);
    RUN(damaged_json_never_crashes);
    RUN(json_writer_output_reads_back);
    RUN(json_writer_text_is_as_documented);
    RUN(numbers_print_shortest_and_read_back);
    RUN(json_read_names_the_file);
    RUN(csv_reads_quotes_line_ends_and_an_index_column);
    RUN(csv_skips_blank_lines);
    RUN(csv_numbers_are_the_whole_cell);
    RUN(csv_refuses_broken_tables);
    RUN(csv_accepts_a_header_alone_a_byte_order_mark_and_blank_ends);
    RUN(csv_quote_is_undone_by_reading);
    RUN(damaged_csv_never_crashes);
    RUN(safetensors_written_are_read_back);
    RUN(half_precision_is_widened_exactly);
    RUN(strided_tensors_are_gathered_row_by_row);
    RUN(safetensors_headers_are_checked_strictly);
    RUN(a_header_of_any_length_is_that_of_a_safetensors_file);
    RUN(every_type_of_safetensors_is_listed_and_read_as_what_it_is);
    RUN(safetensors_writer_refuses_what_cannot_be_read);
    RUN(damaged_safetensors_never_crash);
    RUN(failed_allocations_are_reported);
    RUN(zip_entries_are_inflated_and_checked);
    RUN(damaged_zips_never_crash);
    RUN(gzip_reads_members_in_a_row_and_plain_files);
    RUN(damaged_gzip_is_refused);
    RUN(fashion_mnist_unpacks_to_its_size);
    RUN(svg_holds_lines_markers_labels_and_escaped_text);
    RUN(svg_survives_odd_numbers);
    remove_dir();
    END();
}
