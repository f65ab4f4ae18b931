/* From bytes to floats eight at a time: three vectors are eight pixels, in each of which the channels
 * begin elsewhere. A table of 256 values wants two loads for every value; the two divisions that made it,
 * done by products whose rounding is corrected, want seven operations for eight. */
#include "data/parts.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

static __m256 quotient(__m256 a, __m256 b, __m256 back) {
    __m256 q = _mm256_mul_ps(a, back);
    return _mm256_fmadd_ps(_mm256_fnmadd_ps(q, b, a), back, q);
}

/* Eight pixels in their order or turned round: bytes 8*k … 8*k+7 of 24. */
static __m128i bytes_of(const uint8_t *p, bool mirror, int k) {
    static const int start[3] = { 8, 5, 0 };              /* where sixteen bytes hold those that are wanted */
    const __m128i turn[3] = { _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, -1, -1, -1, -1, -1, -1, -1, -1),
                              _mm_setr_epi8(12, 7, 8, 9, 4, 5, 6, 1, -1, -1, -1, -1, -1, -1, -1, -1),
                              _mm_setr_epi8(7, 8, 3, 4, 5, 0, 1, 2, -1, -1, -1, -1, -1, -1, -1, -1) };
    if (!mirror) return _mm_loadl_epi64((const __m128i *)(const void *)(p + 8 * k));
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + start[k])), turn[k]);
}

int normalise_avx2(const prep_table *t, const uint8_t *p, int pixels, bool mirror, float *out) {
    const __m256 all = _mm256_set1_ps(255), back = _mm256_set1_ps(t->back);
    int x = 0;
    for (; x + 8 <= pixels; x += 8, p += 24)
        for (int k = 0; k < 3; k++) {
            __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes_of(p, mirror, k)));
            v = _mm256_sub_ps(quotient(v, all, back), _mm256_loadu_ps(t->mean + 8 * k));
            v = quotient(v, _mm256_loadu_ps(t->std + 8 * k), _mm256_loadu_ps(t->back_std + 8 * k));
            _mm256_storeu_ps((mirror ? out - 3 * (x + 7) : out + 3 * x) + 8 * k, v);
        }
    return x;
}
#else
int normalise_avx2(const prep_table *t, const uint8_t *p, int pixels, bool mirror, float *out) {
    (void)t, (void)p, (void)pixels, (void)mirror, (void)out;
    return 0;
}
#endif
