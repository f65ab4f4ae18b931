/* One vector type and a dozen operations, three ways: AVX-512, AVX2 + FMA, and whatever the
 * compiler makes of a 16-byte vector. LANES floats to a vector.
 *
 * Loads and stores of the first n lanes (1 <= n <= LANES) touch no other memory; lanes not loaded
 * are zero. v_max and v_min return their second argument when either is NaN, so v_max(zero, x)
 * lets a NaN in x through. v_fma rounds once where the machine can. */
#ifndef LM_SIMD_H
#define LM_SIMD_H

#include <stdint.h>
#include <string.h>

/* Loops over registers must vanish. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

#include <immintrin.h>
enum { LANES = 16 };
typedef __m512 vf;
INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE __mmask16 v_mask(int n) { return (__mmask16)((1u << n) - 1); }
INLINE vf v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(v_mask(n), p); }
INLINE void v_store_n(float *p, int n, vf a) { _mm512_mask_storeu_ps(p, v_mask(n), a); }
INLINE vf v_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }

#elif defined(__AVX2__)

#include <immintrin.h>
enum { LANES = 8 };
typedef __m256 vf;
static const int32_t v_mask_bits[16] = { -1, -1, -1, -1, -1, -1, -1, -1 };
INLINE __m256i v_mask(int n) { return _mm256_loadu_si256((const __m256i *)(v_mask_bits + 8 - n)); }
INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf v_load_n(const float *p, int n)
{
    return n == LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, v_mask(n));
}
INLINE void v_store_n(float *p, int n, vf a)
{
    if (n == LANES) _mm256_storeu_ps(p, a);
    else _mm256_maskstore_ps(p, v_mask(n), a);
}
INLINE vf v_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }

#else

enum { LANES = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
INLINE vf v_load(const float *p) { vf a; memcpy(&a, p, sizeof a); return a; }
INLINE void v_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf v_load_n(const float *p, int n)
{
    vf a = { 0 };
    if (n == LANES) return v_load(p);
    memcpy(&a, p, (size_t)n * sizeof *p);
    return a;
}
INLINE void v_store_n(float *p, int n, vf a)
{
    if (n == LANES) v_store(p, a);
    else memcpy(p, &a, (size_t)n * sizeof *p);
}
INLINE vf v_set1(float a) { return (vf){ a, a, a, a }; }
INLINE vf v_zero(void) { return (vf){ 0 }; }
INLINE vf v_add(vf a, vf b) { return a + b; }
INLINE vf v_sub(vf a, vf b) { return a - b; }
INLINE vf v_mul(vf a, vf b) { return a * b; }
INLINE vf v_div(vf a, vf b) { return a / b; }
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf v_select(vi which, vf a, vf b) { return (vf)((which & (vi)a) | (~which & (vi)b)); }
INLINE vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
INLINE vf v_min(vf a, vf b) { return v_select(a < b, a, b); }

#endif
#endif
