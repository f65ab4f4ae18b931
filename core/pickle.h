/* A pickle read as data. The machine knows the opcodes and the handful of names that PyTorch's
 * checkpoints are made of and refuses everything else, so nothing is ever called or imported.
 * For core only. */
#ifndef LM_PICKLE_H
#define LM_PICKLE_H

#include "core/pool.h"
#include "core/tensorfile.h"

typedef enum {
    PK_NONE, PK_BOOL, PK_INT, PK_LONG, PK_FLOAT, PK_TEXT, PK_TUPLE, PK_LIST, PK_DICT, PK_NAME,
    PK_STORAGE, PK_TENSOR,
} pk_type;

typedef struct {
    const char *key; size_t key_len;        /* borrowed from the pickle */
    tf_dtype dtype;
    int64_t count;
    const char *data;                       /* NULL until the container has found it */
} pk_storage;

typedef struct {                            /* inside its storage: checked when it is built */
    const pk_storage *storage;
    int64_t offset;
    int rank;
    int64_t dim[TF_RANK], stride[TF_RANK];
} pk_tensor;

typedef struct pk_value {
    pk_type type;
    bool entered;                           /* a dict somebody is walking through */
    union {
        int64_t integer;                    /* bool, int; name: its row */
        double number;
        struct { const char *text; size_t len; };             /* text; long: its bytes */
        struct { struct pk_value **item; size_t n, cap; };    /* dict: key, value, key, … */
        pk_storage *storage;
        pk_tensor *tensor;
    };
} pk_value;

typedef struct {
    const char *data; size_t size, at;      /* at: where the next pickle begins */
    const char *where;                      /* for messages */
    pk_storage **storage; size_t n_storage, cap_storage;
    pool memory;
    pk_value **stack; size_t n_stack, cap_stack;
    size_t *mark; size_t n_mark, cap_mark;
    pk_value **memo; size_t n_memo, cap_memo;
    size_t op_at, n_value;
    const char *op;                         /* name of the running opcode */
    err *e;
} pickle;

/* Run one pickle from p->at; NULL: p->e says what is wrong and where. Values and storages live
 * until pickle_free; several pickles may follow each other. */
pk_value *pickle_run(pickle *p);
void pickle_free(pickle *p);

bool pk_is_text(const pk_value *v, const char *text);
pk_value *pk_dict_get(const pk_value *dict, const char *key);   /* the last one wins; may be NULL */

#endif
