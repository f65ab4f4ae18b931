/* What the readers of tensor files share. For core only; everybody else sees core/io.h. */
#ifndef LM_TENSORFILE_H
#define LM_TENSORFILE_H

#include "core/io.h"

enum { TF_RANK = 8 };

typedef struct { file_map map; zip_file zip; size_t cap, meta_cap; } tf_private;

bool tf_begin(tensor_file *f, err *e);                  /* an empty file with its private part */
bool tf_add(tensor_file *f, const tf_tensor *t, err *e);   /* name is copied, data borrowed */
bool tf_add_meta(tensor_file *f, const char *key, const char *value, err *e);
bool tf_names_unique(const tf_tensor *t, int n, err *e);

/* Product of dims; false if a dim is negative or the product or its bytes exceed 63 bits. */
bool tf_shape_count(const int64_t *dim, int rank, tf_dtype dtype, int64_t *count);
void tf_dense_strides(const int64_t *dim, int rank, int64_t *stride);

/* Little-endian integers of a file, at any alignment. */
uint64_t le_u64(const char *p);
uint32_t le_u32(const char *p);
uint16_t le_u16(const char *p);

#endif
