/* The resize's sums of pairs of taps with 32 bytes at a time; the same numbers as in resize.c. */
#include "data/resize.h"

#ifdef __AVX2__
#include <immintrin.h>
#include <string.h>

typedef struct { __m256i high, low; } sum8;

static sum8 add_pair(sum8 s, __m256i pixels, __m256i high, __m256i low) {
    s.high = _mm256_add_epi32(s.high, _mm256_madd_epi16(pixels, high));
    s.low = _mm256_add_epi32(s.low, _mm256_madd_epi16(pixels, low));
    return s;
}

static __m256i total(sum8 s) {
    __m256i v = _mm256_add_epi32(_mm256_slli_epi32(s.high, SPLIT), s.low);
    return _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(HALF)), FRACTION_BITS);
}

/* Eight bytes in each half. */
static __m256i load_two(const void *a, const void *b) {
    __m128i low = _mm_loadl_epi64((const __m128i *)a), high = _mm_loadl_epi64((const __m128i *)b);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

static void store4(uint8_t *to, __m128i v) {
    int32_t bytes = _mm_cvtsi128_si32(v);
    memcpy(to, &bytes, 4);
}

static void store_pixels(uint8_t *to, sum8 s) {
    __m256i v = _mm256_packs_epi32(total(s), total(s));
    v = _mm256_packus_epi16(v, v);
    store4(to, _mm256_castsi256_si128(v));
    store4(to + 3, _mm256_extracti128_si256(v, 1));
}

/* Two pixels at a time, one in each half, of two rows: four bytes are stored for each, so not the last one. */
int resize_colour_rows_avx2(const uint8_t *row, ptrdiff_t down, const filter *f, int out, uint8_t *to,
                            ptrdiff_t to_down) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i spread = _mm256_broadcastsi128_si256(       /* rgbrgb: both reds, both greens, … */
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    int o = 0;
    for (; o + 2 < out; o += 2, to += 6) {
        const uint8_t *a = row + f->first[o] * 3, *b = row + f->first[o + 1] * 3;
        const int32_t *ka = f->pair + (size_t)o * (size_t)f->pairs * 2, *kb = ka + f->pairs * 2;
        int na = f->count[o], nb = f->count[o + 1], count = na > nb ? na : nb;
        sum8 s = { zero, zero }, below = { zero, zero };
        for (int i = 0; i < count; i += 2) {
            __m256i k = load_two(ka + i, kb + i);
            __m256i high = _mm256_shuffle_epi32(k, 0x00), low = _mm256_shuffle_epi32(k, 0x55);
            s = add_pair(s, _mm256_shuffle_epi8(load_two(a, b), spread), high, low);
            below = add_pair(below, _mm256_shuffle_epi8(load_two(a + down, b + down), spread), high, low);
            a += i + 2 < na ? 6 : 0;              /* the shorter one stays, its weights being 0 */
            b += i + 2 < nb ? 6 : 0;
        }
        store_pixels(to, s);
        store_pixels(to + to_down, below);
    }
    return o;
}

size_t resize_column_avx2(const uint8_t *p, size_t row, const int32_t *pair, int count, size_t n,
                          uint8_t *to) {
    const __m256i zero = _mm256_setzero_si256();
    size_t x = 0;
    for (; x + 32 <= n; x += 32) {
        sum8 s[4] = { { zero, zero }, { zero, zero }, { zero, zero }, { zero, zero } };
        for (int i = 0; i < count; i += 2) {
            const uint8_t *above = p + (size_t)i * row + x;
            const __m256i high = _mm256_set1_epi32(pair[i]), low = _mm256_set1_epi32(pair[i + 1]);
            __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)above), b = zero;
            if (i + 1 < count) b = _mm256_loadu_si256((const __m256i *)(const void *)(above + row));
            __m256i left = _mm256_unpacklo_epi8(a, b), right = _mm256_unpackhi_epi8(a, b);
            s[0] = add_pair(s[0], _mm256_unpacklo_epi8(left, zero), high, low);
            s[1] = add_pair(s[1], _mm256_unpackhi_epi8(left, zero), high, low);
            s[2] = add_pair(s[2], _mm256_unpacklo_epi8(right, zero), high, low);
            s[3] = add_pair(s[3], _mm256_unpackhi_epi8(right, zero), high, low);
        }
        __m256i v = _mm256_packs_epi32(total(s[0]), total(s[1]));
        __m256i u = _mm256_packs_epi32(total(s[2]), total(s[3]));
        _mm256_storeu_si256((__m256i *)(void *)(to + x), _mm256_packus_epi16(v, u));
    }
    return x;
}
#else
int resize_colour_rows_avx2(const uint8_t *row, ptrdiff_t down, const filter *f, int out, uint8_t *to,
                            ptrdiff_t to_down) {
    (void)row, (void)down, (void)f, (void)out, (void)to, (void)to_down;
    return 0;
}
size_t resize_column_avx2(const uint8_t *p, size_t row, const int32_t *pair, int count, size_t n,
                          uint8_t *to) {
    (void)p, (void)row, (void)pair, (void)count, (void)n, (void)to;
    return 0;
}
#endif
