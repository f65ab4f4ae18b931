/* What the two files of the resize share: PIL's filter of one direction and the sums of its pairs. */
#ifndef LM_RESIZE_H
#define LM_RESIZE_H

#include <stddef.h>
#include <stdint.h>

enum {
    FRACTION_BITS = 32 - 8 - 2,                /* 8 bits of pixel, 2 bits of headroom */
    HALF = 1 << (FRACTION_BITS - 1),
    SPLIT = FRACTION_BITS / 2,
    BEYOND = 8,                                /* bytes behind a row that may be read */
};

/* For each output position: where its taps start, how many there are, and their weights. */
typedef struct {
    int taps, pairs;             /* room for each output position; 0 beyond its count */
    int32_t *first, *count, *weight;
    int32_t *pair;               /* of weights, 16 bits each: the upper bits of both, the lower bits */
} filter;

/* As many of the first pixels of two colour rows, and of the first columns of an output row, as AVX2
 * does in whole steps; returns how many. down, to_down: bytes from the first row to the second. */
int resize_colour_rows_avx2(const uint8_t *row, ptrdiff_t down, const filter *f, int out, uint8_t *to,
                            ptrdiff_t to_down);
size_t resize_column_avx2(const uint8_t *p, size_t row, const int32_t *pair, int count, size_t n,
                          uint8_t *to);

#endif
