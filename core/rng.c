/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
 *
 * key    = the 64-bit seed
 * ctr[0] = block number within the stream, four draws each
 * ctr[1] = index, low 32 bits
 * ctr[2] = epoch
 * ctr[3] = purpose in the top 8 bits, index bits 32…55 below
 * Each block of each stream is a different counter, and the cipher is a bijection for every key, so
 * streams do not overlap while index < 2^56 and a stream takes fewer than 2^34 draws. */
#include "core/core.h"

#include <math.h>

static void philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;                    /* golden ratio */
        k1 += 0xBB67AE85u;                    /* sqrt(3) - 1 */
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

rng rng_at(uint64_t seed, rng_purpose purpose, uint32_t epoch, uint64_t index) {
    return (rng){
        .key = { (uint32_t)seed, (uint32_t)(seed >> 32) },
        .ctr = { 0, (uint32_t)index, epoch,
                 (uint32_t)purpose << 24 | ((uint32_t)(index >> 32) & 0xFFFFFFu) },
    };
}

uint32_t rng_u32(rng *r) {
    if (!r->left) {
        philox(r->ctr, r->key, r->out);
        r->ctr[0]++;
        r->left = 4;
    }
    return r->out[4 - r->left--];
}

double rng_uniform(rng *r) { return rng_u32(r) * 0x1p-32; }

double rng_normal(rng *r) {
    double u = (rng_u32(r) + 0.5) * 0x1p-32;  /* never 0: its logarithm is finite */
    double v = rng_u32(r) * 0x1p-32;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Lemire 2019: the high half of a 32×32 product, redrawn in the sliver that would be biased. */
uint32_t rng_below(rng *r, uint32_t n) {
    uint64_t m = (uint64_t)rng_u32(r) * n;
    if ((uint32_t)m < n) {
        uint32_t sliver = -n % n;
        while ((uint32_t)m < sliver) m = (uint64_t)rng_u32(r) * n;
    }
    return (uint32_t)(m >> 32);
}

void rng_shuffle(rng *r, int32_t *a, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = rng_below(r, (uint32_t)(i + 1));
        int32_t t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
}
