/* The matrix product in plain loops, included by gemm.c once per type: REAL and GEMM_LOOPS name it.
 * Blocks of B stay in the cache (a transposed one is turned round first), four rows of C share each
 * load of B, and every sum runs over k upwards whatever the blocking: bits depend on shapes alone. */
static void GEMM_LOOPS(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const REAL *a, int64_t lda,
                       const REAL *b, int64_t ldb, REAL beta, REAL *c, int64_t ldc) {
    enum { KB = 64, NB = 128 };
    REAL turned[KB * NB];
    int64_t row = ta ? 1 : lda, col = ta ? lda : 1;      /* a(i,p) = a[i*row + p*col] */
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
    for (int64_t j0 = 0; j0 < n; j0 += NB)
        for (int64_t p0 = 0; p0 < k; p0 += KB) {
            int64_t nb = n - j0 < NB ? n - j0 : NB, kb = k - p0 < KB ? k - p0 : KB;
            const REAL *block = b + p0 * ldb + j0;
            int64_t stride = ldb;
            if (tb) {
                for (int64_t j = 0; j < nb; j++)
                    for (int64_t p = 0; p < kb; p++)
                        turned[p * NB + j] = b[(j0 + j) * ldb + p0 + p];
                block = turned;
                stride = NB;
            }
            int64_t i = 0;
            for (; i + 4 <= m; i += 4) {
                REAL *restrict c0 = c + i * ldc + j0, *restrict c1 = c0 + ldc;
                REAL *restrict c2 = c1 + ldc, *restrict c3 = c2 + ldc;
                for (int64_t p = 0; p < kb; p++) {
                    const REAL *ap = a + i * row + (p0 + p) * col, *bp = block + p * stride;
                    REAL a0 = ap[0], a1 = ap[row], a2 = ap[2 * row], a3 = ap[3 * row];
                    for (int64_t j = 0; j < nb; j++) {
                        c0[j] += a0 * bp[j];
                        c1[j] += a1 * bp[j];
                        c2[j] += a2 * bp[j];
                        c3[j] += a3 * bp[j];
                    }
                }
            }
            for (; i < m; i++) {
                REAL *restrict c0 = c + i * ldc + j0;
                for (int64_t p = 0; p < kb; p++) {
                    REAL a0 = a[i * row + (p0 + p) * col];
                    const REAL *bp = block + p * stride;
                    for (int64_t j = 0; j < nb; j++) c0[j] += a0 * bp[j];
                }
            }
        }
}
