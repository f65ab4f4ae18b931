/* One vector type and a dozen operations, three ways: AVX-512, AVX2 + FMA, and whatever the
 * compiler makes of a 16-byte vector. LANES floats to a vector.
 *
 * Loads and stores of the first n lanes (1 <= n <= LANES) touch no other memory; lanes not loaded
 * are zero. v_max and v_min return their second argument when either is NaN, so v_max(zero, x)
 * lets a NaN in x through. v_fma rounds once where the machine can.
 * v_sum adds the lanes up, halves onto halves.
 * v_stream stores past the caches, where the machine can, to an address that is a multiple of a vector's bytes:
 * other threads see it after stream_end.
 * v_held(a) is a, in a register: gcc would rather read memory again for each use.
 * v_set2(p) is p[0] and p[1] again and again; v_even(a, b) is the even lanes of a, then those of b, v_odd(a, b) the odd ones.
 * v_halves(a, b) is the first half of a and the last of b; v_swap(a) exchanges a's.
 * bits_held(a) is a, of which nothing is known: gcc would rather have a register for each of its bits. at_held(p) is p: gcc would
 * rather have a register for each distance from where it was. step_held(s) is s: for each of its multiples.
 * v_gate(y, lo, hi, v) is v, or zero where y <= lo or y >= hi (a NaN among y or hi holds nothing
 * back). v_pick(x, m, a, b) is a where x equals m or is NaN, else b. vd is a vector of LANES/2 doubles; v_lo and v_hi widen the halves of a vf. */
#ifndef LM_SIMD_H
#define LM_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Loops over registers must vanish. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Arguments are copied, or every store of a vector might have changed them: a vector may lie anywhere. */
#define OWN(a) const __typeof__(*(a)) own_##a = *(a); (a) = &own_##a

INLINE const float *at_held(const float *p) { __asm__("" : "+r"(p)); return p; }
INLINE int64_t step_held(int64_t s) { __asm__("" : "+r"(s)); return s; }
INLINE uint32_t bits_held(uint32_t a) { __asm__ volatile("" : "+r"(a)); return a; }

#if defined(__AVX512F__)

#include <immintrin.h>
enum { LANES = 16 };
typedef __m512 vf;
INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE void v_stream(float *p, vf a) { _mm512_stream_ps(p, a); }
INLINE __mmask16 v_mask(int n) { return (__mmask16)((1u << n) - 1); }
INLINE vf v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(v_mask(n), p); }
INLINE void v_store_n(float *p, int n, vf a) { _mm512_mask_storeu_ps(p, v_mask(n), a); }
INLINE vf v_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf v_set2(const float *p) { double two; memcpy(&two, p, sizeof two); return _mm512_castpd_ps(_mm512_set1_pd(two)); }
INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
INLINE vf v_held(vf a) { __asm__("" : "+v"(a)); return a; }
INLINE vf v_halves(vf a, vf b) { return _mm512_mask_blend_ps(0xff00, a, b); }
INLINE vf v_swap(vf a) { return _mm512_shuffle_f32x4(a, a, 0x4e); }
INLINE vf v_even(vf a, vf b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
INLINE vf v_odd(vf a, vf b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}
INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf v_pick(vf x, vf m, vf a, vf b)
{
    __mmask16 k = _mm512_cmp_ps_mask(x, m, _CMP_EQ_OQ) | _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(b, k, a);
}
INLINE vf v_gate(vf y, vf lo, vf hi, vf v)
{
    __mmask16 open = _mm512_cmp_ps_mask(y, lo, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(y, hi, _CMP_NGE_UQ);
    return _mm512_maskz_mov_ps(open, v);
}
/* 2^n, where the low bits of a float hold the integer n. */
INLINE vf v_pow2(vf a)
{
    __m512i one = _mm512_set1_epi32(0x3f800000), n = _mm512_slli_epi32(_mm512_castps_si512(a), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, one));
}
INLINE float v_sum(vf a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
typedef __m512d vd;
INLINE vd v_lo(vf a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
INLINE vd v_hi(vf a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
INLINE vd d_zero(void) { return _mm512_setzero_pd(); }
INLINE vd d_add(vd a, vd b) { return _mm512_add_pd(a, b); }
INLINE vd d_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
INLINE vd d_load(const double *p) { return _mm512_loadu_pd(p); }
INLINE void d_store(double *p, vd a) { _mm512_storeu_pd(p, a); }

#elif defined(__AVX2__)

#include <immintrin.h>
enum { LANES = 8 };
typedef __m256 vf;
static const int32_t v_mask_bits[16] = { -1, -1, -1, -1, -1, -1, -1, -1 };
INLINE __m256i v_mask(int n) { return _mm256_loadu_si256((const __m256i *)(v_mask_bits + 8 - n)); }
INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE void v_stream(float *p, vf a) { _mm256_stream_ps(p, a); }
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
INLINE vf v_set2(const float *p) { double two; memcpy(&two, p, sizeof two); return _mm256_castpd_ps(_mm256_set1_pd(two)); }
INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
INLINE vf v_held(vf a) { __asm__("" : "+x"(a)); return a; }
INLINE vf v_halves(vf a, vf b) { return _mm256_blend_ps(a, b, 0xf0); }
INLINE vf v_swap(vf a) { return _mm256_permute2f128_ps(a, a, 1); }
INLINE vf v_in_order(vf a) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8)); }
INLINE vf v_even(vf a, vf b) { return v_in_order(_mm256_shuffle_ps(a, b, 0x88)); }
INLINE vf v_odd(vf a, vf b) { return v_in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf v_pick(vf x, vf m, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_or_ps(_mm256_cmp_ps(x, m, _CMP_EQ_OQ), _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
INLINE vf v_gate(vf y, vf lo, vf hi, vf v)
{
    vf open = _mm256_and_ps(_mm256_cmp_ps(y, lo, _CMP_NLE_UQ), _mm256_cmp_ps(y, hi, _CMP_NGE_UQ));
    return _mm256_and_ps(open, v);
}
INLINE vf v_pow2(vf a)
{
    __m256i one = _mm256_set1_epi32(0x3f800000), n = _mm256_slli_epi32(_mm256_castps_si256(a), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, one));
}
INLINE float v_sum(vf a)
{
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
typedef __m256d vd;
INLINE vd v_lo(vf a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
INLINE vd v_hi(vf a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
INLINE vd d_zero(void) { return _mm256_setzero_pd(); }
INLINE vd d_add(vd a, vd b) { return _mm256_add_pd(a, b); }
INLINE vd d_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
INLINE vd d_load(const double *p) { return _mm256_loadu_pd(p); }
INLINE void d_store(double *p, vd a) { _mm256_storeu_pd(p, a); }

#else

enum { LANES = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
INLINE vf v_load(const float *p) { vf a; memcpy(&a, p, sizeof a); return a; }
INLINE void v_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE void v_stream(float *p, vf a) { v_store(p, a); }
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
INLINE vf v_set2(const float *p) { return (vf){ p[0], p[1], p[0], p[1] }; }
INLINE vf v_zero(void) { return (vf){ 0 }; }
INLINE vf v_held(vf a) { return a; }
INLINE vf v_halves(vf a, vf b) { return (vf){ a[0], a[1], b[2], b[3] }; }
INLINE vf v_swap(vf a) { return (vf){ a[2], a[3], a[0], a[1] }; }
INLINE vf v_even(vf a, vf b) { return (vf){ a[0], a[2], b[0], b[2] }; }
INLINE vf v_odd(vf a, vf b) { return (vf){ a[1], a[3], b[1], b[3] }; }
INLINE vf v_add(vf a, vf b) { return a + b; }
INLINE vf v_sub(vf a, vf b) { return a - b; }
INLINE vf v_mul(vf a, vf b) { return a * b; }
INLINE vf v_div(vf a, vf b) { return a / b; }
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf v_select(vi which, vf a, vf b) { return (vf)((which & (vi)a) | (~which & (vi)b)); }
INLINE vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
INLINE vf v_min(vf a, vf b) { return v_select(a < b, a, b); }
INLINE vf v_pick(vf x, vf m, vf a, vf b) { return v_select((x == m) | (x != x), a, b); }
INLINE vf v_sqrt(vf a) { return (vf){ sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3]) }; }
INLINE vf v_gate(vf y, vf lo, vf hi, vf v) { return (vf)(~((y <= lo) | (y >= hi)) & (vi)v); }
INLINE vf v_pow2(vf a) { return (vf)(((vi)a << 23) + 0x3f800000); }
INLINE float v_sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
typedef double vd __attribute__((vector_size(16)));
INLINE vd v_lo(vf a) { return (vd){ (double)a[0], (double)a[1] }; }
INLINE vd v_hi(vf a) { return (vd){ (double)a[2], (double)a[3] }; }
INLINE vd d_zero(void) { return (vd){ 0 }; }
INLINE vd d_add(vd a, vd b) { return a + b; }
INLINE vd d_fma(vd a, vd b, vd c) { return a * b + c; }
INLINE vd d_load(const double *p) { vd a; memcpy(&a, p, sizeof a); return a; }
INLINE void d_store(double *p, vd a) { memcpy(p, &a, sizeof a); }

#endif

/* e^x to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's series of r.
 * Saturates where float does; NaN stays NaN. */
INLINE vf v_exp(vf x)
{
    const vf magic = v_set1(12582912.0f);               /* 1.5·2^23: adding it rounds to an integer */
    x = v_min(v_set1(88.3f), v_max(v_set1(-87.3f), x));
    vf t = v_fma(x, v_set1(1.44269504f), magic), n = v_sub(t, magic);
    vf r = v_fma(n, v_set1(-0.693359375f), x);          /* ln 2 in two parts */
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_fma(r, v_set1(1.0f / 5040), v_set1(1.0f / 720));
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1.0f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_mul(p, v_pow2(t));
}

INLINE vf v_sigmoid(vf x) { return v_div(v_set1(1), v_add(v_set1(1), v_exp(v_sub(v_zero(), x)))); }

#endif
