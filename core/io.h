/* File formats, each in one file: JSON, CSV, tensor files (safetensors, PyTorch's .pth in both
 * containers), zip, gzip, protobuf, SVG. Readers trust nothing: every length is checked against the bytes
 * that are there, and an error names the file and the place. */
#ifndef LM_IO_H
#define LM_IO_H

#include "core/core.h"

/* ---- JSON ------------------------------------------------------------------------------------ */

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_type;
typedef struct json {
    json_type type;
    bool boolean;
    double number;
    char *text;                  /* JSON_STRING: UTF-8, NUL-terminated */
    char *key;                   /* inside an object */
    struct json *child, *next;   /* first member; next sibling */
    int count;                   /* members of an array or object */
} json;
json *json_parse(const char *text, size_t len, err *e);   /* duplicate keys and depth > 64 are errors */
json *json_read(const char *path, err *e);
void  json_free(json *j);
const json *json_get(const json *object, const char *key);            /* NULL if absent */
/* Typed access that fails with a sentence naming the key. */
bool json_get_number(const json *object, const char *key, double *out, err *e);
bool json_get_int(const json *object, const char *key, int64_t *out, err *e);
bool json_get_text(const json *object, const char *key, const char **out, err *e);   /* borrowed */

/* Writer: members in call order; key NULL inside arrays. Numbers print shortest round-trip form;
 * a non-finite number prints null. */
typedef struct { buf *out; int depth; bool has_member[64]; bool pretty; } json_writer;
json_writer json_writer_on(buf *out, bool pretty);
void json_begin(json_writer *w, const char *key, char bracket);       /* '{' or '[' */
void json_end(json_writer *w, char bracket);                          /* '}' or ']' */
void json_text(json_writer *w, const char *key, const char *value);   /* value NULL: null */
void json_number(json_writer *w, const char *key, double value);
void json_int(json_writer *w, const char *key, int64_t value);
void json_bool(json_writer *w, const char *key, bool value);
void json_raw(json_writer *w, const char *key, const char *json_text);  /* already JSON */
/* The shortest decimal that reads back as exactly v ("0.1", "1e-05", "nan", "inf"). */
void number_print(char out[32], double v);

/* ---- CSV (RFC 4180, comma, header line, \n or \r\n, blank lines are skipped) -------------------- */

typedef struct { int n_col; int64_t n_row; char **name; char **cell; int64_t *line; char *memory; char *path; } csv_table;
bool csv_read(csv_table *t, const char *path, err *e);
void csv_free(csv_table *t);
int  csv_column(const csv_table *t, const char *name);                /* -1 if absent */
bool csv_need(const csv_table *t, const char *name, int *col, err *e);
const char *csv_cell(const csv_table *t, int64_t row, int col);
int64_t csv_line(const csv_table *t, int64_t row);                    /* where the row begins in the file */
/* Strict: the whole cell must be the value. Errors name file, line and column. */
bool csv_number(const csv_table *t, int64_t row, int col, double *out, err *e);
bool csv_int(const csv_table *t, int64_t row, int col, int64_t *out, err *e);
bool csv_bool(const csv_table *t, int64_t row, int col, bool *out, err *e);   /* True False 0 1 */
void csv_quote(buf *out, const char *cell);                           /* quotes only when needed */

/* ---- tensor files ----------------------------------------------------------------------------- */

/* What stands behind DT_I8 is known by name and size only: it can be listed, not read. */
typedef enum { DT_F32, DT_F64, DT_F16, DT_BF16, DT_I64, DT_I32, DT_U8, DT_BOOL, DT_I16, DT_I8,
               DT_U16, DT_U32, DT_U64, DT_F8_E4M3, DT_F8_E5M2, DT_C64, DT_COUNT } tf_dtype;
extern const char *const tf_dtype_names[DT_COUNT];      /* safetensors names: "F32" … */
extern const int         tf_dtype_bytes[DT_COUNT];

typedef struct {
    char *name;
    tf_dtype dtype;
    int rank;                    /* 0 … 8 */
    int64_t dim[8], stride[8];   /* stride in elements; safetensors: contiguous */
    const char *data;            /* borrowed from the file's map or memory */
} tf_tensor;

typedef struct {
    char *path;
    tf_tensor *tensor; int n;
    char **meta_key, **meta_value; int n_meta;
    void *priv;                  /* map, inflated storages, strings */
} tensor_file;

/* Recognised by content: safetensors; PyTorch zip; PyTorch legacy pickle. A pickle is data: a
 * whitelist of opcodes and names (OrderedDict, tensor rebuild, storages, parameter), anything else
 * is an error with its position. Checkpoints are flattened: a nested "state_dict" (or "model") is
 * entered, and non-tensor values are ignored. A "module." prefix common to all names is dropped. */
bool tensor_file_open(tensor_file *f, const char *path, err *e);
void tensor_file_close(tensor_file *f);
const tf_tensor *tensor_file_find(const tensor_file *f, const char *name);
const char      *tensor_file_meta(const tensor_file *f, const char *key);
int64_t tf_count(const tf_tensor *t);
bool tf_read_f32(const tf_tensor *t, float *out, err *e);   /* F32 F64 F16 BF16 only; strides resolved */
bool tf_read_i64(const tf_tensor *t, int64_t *out, err *e); /* I64 I32 U8 BOOL I16 I8 only */

typedef struct { const char *key, *value; } text_pair;
/* safetensors, written whole or not at all; tensors contiguous; deterministic bytes; the header is
 * padded with spaces so that data is 64-byte aligned. Metadata in the order given. */
bool safetensors_write(const char *path, const tf_tensor *t, int n, const text_pair *meta,
                       int n_meta, err *e);
bool safetensors_parse(tensor_file *f, const char *data, size_t size, err *e);  /* data stays borrowed */
bool pth_parse(tensor_file *f, const char *data, size_t size, err *e);

/* ---- zip and gzip ------------------------------------------------------------------------------ */

typedef struct { char *name; const char *data; size_t size; bool owned; } zip_entry;
typedef struct { zip_entry *entry; int n; } zip_file;
bool zip_parse(zip_file *z, const char *data, size_t size, err *e);   /* stored or deflated, CRC checked, zip64 */
void zip_free(zip_file *z);
const zip_entry *zip_find(const zip_file *z, const char *name);
/* A .gz file (or a plain one, returned as it is) into memory; truncated or corrupt: ERR_DATA;
 * more than limit bytes: ERR_DATA. */
bool gzip_read(const char *path, size_t limit, buf *out, err *e);

/* ---- protobuf, written ---------------------------------------------------------------------------- */

/* Fields are appended to b. A message lies between begin and end, and may hold others: its length is
 * five bytes long whatever its value, so that nothing is moved when it ends. Floats and the content
 * of pb_bytes are little-endian where they are on this machine. */
void   pb_int(buf *b, int field, int64_t v);
void   pb_float(buf *b, int field, float v);
void   pb_text(buf *b, int field, const char *s);
void   pb_bytes(buf *b, int field, const void *data, size_t len);
size_t pb_begin(buf *b, int field);
void   pb_end(buf *b, size_t begun);

/* ---- SVG ---------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    const double *x, *y; int n;
    bool line, points;
    const char *const *label;    /* text beside each point, or NULL */
} svg_series;
typedef struct {
    const char *title, *x_label, *y_label;
    const svg_series *series; int n_series;
} svg_plot;
/* A self-contained figure (640×400, white background, nice ticks, legend). */
void svg_draw(const svg_plot *p, buf *out);

#endif
