/* The tensor's size, and the one door between PyTorch's layout and ours. */
#include "core/core.h"

int64_t tensor_count(const tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dim[i];
    return n;
}

/* One sample: src (rows, cols) → dst (cols, rows), in tiles that stay in the cache. */
typedef struct { const float *src; float *dst; int64_t rows, cols; } transposition;

static void transpose(void *ctx, int64_t sample, int worker) {
    (void)worker;
    enum { TILE = 16 };
    const transposition *t = ctx;
    const float *src = t->src + sample * t->rows * t->cols;
    float *dst = t->dst + sample * t->rows * t->cols;
    for (int64_t r0 = 0; r0 < t->rows; r0 += TILE)
        for (int64_t c0 = 0; c0 < t->cols; c0 += TILE) {
            int64_t r1 = r0 + TILE < t->rows ? r0 + TILE : t->rows;
            int64_t c1 = c0 + TILE < t->cols ? c0 + TILE : t->cols;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) dst[c * t->rows + r] = src[r * t->cols + c];
        }
}

void nchw_to_nhwc(const float *src, int64_t n, int64_t c, int64_t h, int64_t w, float *dst) {
    par_for(n, transpose, &(transposition){ src, dst, c, h * w });
}

void nhwc_to_nchw(const float *src, int64_t n, int64_t h, int64_t w, int64_t c, float *dst) {
    par_for(n, transpose, &(transposition){ src, dst, h * w, c });
}
