/* Many small things that die together: the nodes of a JSON text, the values of a pickle. For the
 * format readers of core only. */
#ifndef LM_POOL_H
#define LM_POOL_H

#include "core/core.h"

typedef struct { struct pool_block *last; size_t used, cap, block; } pool;   /* {0} is empty */
void *pool_take(pool *p, size_t bytes, err *e);   /* zeroed, 16-byte aligned; NULL: ERR_NOMEM */
void  pool_free(pool *p);

/* Make room for one more item in an array of n items of `size` bytes; *cap is its capacity.
 * Doubles, so n pushes cost n copies in all. On failure the array is untouched. */
bool array_grow(void **array, size_t n, size_t *cap, size_t size, err *e);

#endif
