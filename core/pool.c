#include "core/pool.h"

#include <string.h>

typedef struct pool_block { struct pool_block *before; char pad[8]; char data[]; } pool_block;

enum { POOL_FIRST = 4096, POOL_LARGEST = 1 << 20, POOL_ALIGN = 16 };

void *pool_take(pool *p, size_t bytes, err *e) {
    size_t need;
    if (!size_add(bytes, POOL_ALIGN - 1, &need)) {
        err_set(e, ERR_NOMEM, "out of memory: %zu bytes wanted", bytes);
        return NULL;
    }
    need = need / POOL_ALIGN * POOL_ALIGN;
    if (!p->last || need > p->cap - p->used) {
        size_t block = p->block ? p->block : POOL_FIRST;
        p->block = block < POOL_LARGEST ? block * 2 : block;
        if (block < need)
            block = need;
        size_t total;
        if (!size_add(block, sizeof(pool_block), &total)) {
            err_set(e, ERR_NOMEM, "out of memory: %zu bytes wanted", bytes);
            return NULL;
        }
        pool_block *b = mem_new(1, total, e);
        if (!b)
            return NULL;
        b->before = p->last;
        p->last = b;
        p->used = 0;
        p->cap = block;
    }
    void *got = p->last->data + p->used;
    p->used += need;
    return got;
}

void pool_free(pool *p) {
    for (pool_block *b = p->last; b; ) {
        pool_block *before = b->before;
        mem_free(b);
        b = before;
    }
    *p = (pool){0};
}

bool array_grow(void **array, size_t n, size_t *cap, size_t size, err *e) {
    if (n < *cap)
        return true;
    size_t more = *cap ? *cap : 8;
    if (!size_add(*cap, more, &more))
        return err_set(e, ERR_NOMEM, "out of memory: %zu items wanted", n);
    void *grown = mem_new(more, size, e);
    if (!grown)
        return false;
    if (n)
        memcpy(grown, *array, n * size);
    mem_free(*array);
    *array = grown;
    *cap = more;
    return true;
}
