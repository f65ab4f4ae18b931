/* The matrix product: OpenBLAS kept to one thread, or plain loops. The only file that knows BLAS.
 *
 * Two thread pools would fight, and work cut by a library's thread count changes the bits, so ours
 * calls OpenBLAS from its workers and OpenBLAS starts none. */
#include "core/machine.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef BLAS_NONE
#include <cblas.h>
/* Where several BLAS are installed, cblas.h may be another's: then OpenBLAS' own are not in it. */
char *openblas_get_config(void);
char *openblas_get_corename(void);
int   openblas_get_parallel(void);
void  openblas_set_num_threads(int threads);
#endif

#define REAL       float
#define GEMM_LOOPS loops_f32
#include "core/gemm_loops.h"
#undef REAL
#undef GEMM_LOOPS
#define REAL       double
#define GEMM_LOOPS loops_f64
#include "core/gemm_loops.h"

#ifdef BLAS_NONE

void gemm_f32(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
              const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    loops_f32(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void gemm_f64(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
              const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
    loops_f64(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

const char *gemm_name(void) { return "none"; }
int gemm_thread_limit(void) { return INT_MAX; }

bool gemm_init(err *e) {
    (void)e;
    return true;
}

#else

/* OpenBLAS counts in int, and wants leading dimensions that are positive even where nothing is. */
static bool fits_blas(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
    return m > 0 && n > 0 && k > 0 && m < INT_MAX && n < INT_MAX && k < INT_MAX
        && lda < INT_MAX && ldb < INT_MAX && ldc < INT_MAX;
}

void gemm_f32(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
              const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (!fits_blas(m, n, k, lda, ldb, ldc)) {
        loops_f32(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                (int)m, (int)n, (int)k, 1, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void gemm_f64(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
              const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
    if (!fits_blas(m, n, k, lda, ldb, ldc)) {
        loops_f64(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                (int)m, (int)n, (int)k, 1, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

/* "OpenBLAS 0.3.21 DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=64" */
const char *gemm_name(void) {
    static char name[128];
    char version[32] = "";
    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    snprintf(name, sizeof name, "openblas %s %s", version, openblas_get_corename());
    return name;
}

int gemm_thread_limit(void) {
    const char *max = strstr(openblas_get_config(), "MAX_THREADS=");
    int limit = max ? atoi(max + strlen("MAX_THREADS=")) : 0;
    return limit > 0 ? limit : INT_MAX;
}

/* A serial OpenBLAS built without locks returns wrong numbers when called from several threads at
 * once; so every worker multiplies small integers, whose product is exact, for ten milliseconds. */
enum { SIDE = 48, CHECK_NS = 10000000 };

typedef struct {
    float a[SIDE * SIDE], b[SIDE * SIDE], want[SIDE * SIDE];
    int64_t end;
    atomic_bool bad;
} check;

static void check_worker(void *ctx, int64_t i, int worker) {
    (void)i, (void)worker;
    check *k = ctx;
    float got[SIDE * SIDE];
    do {
        gemm_f32(false, false, SIDE, SIDE, SIDE, k->a, SIDE, k->b, SIDE, 0, got, SIDE);
        if (memcmp(got, k->want, sizeof got)) atomic_store(&k->bad, true);
    } while (clock_ns() < k->end && !atomic_load(&k->bad));
}

static bool calls_may_overlap(void) {
    check k = { .end = clock_ns() + CHECK_NS };
    for (int i = 0; i < SIDE * SIDE; i++) {
        k.a[i] = (float)(i * 7 % 13 - 6);
        k.b[i] = (float)(i * 5 % 11 - 5);
    }
    for (int i = 0; i < SIDE * SIDE; i++)
        for (int p = 0; p < SIDE; p++)
            k.want[i] += k.a[i / SIDE * SIDE + p] * k.b[p * SIDE + i % SIDE];
    par_for(par_threads(), check_worker, &k);
    return !atomic_load(&k.bad);
}

/* An OpenMP build overrides the call with its own setting (OpenBLAS issue 5806). */
bool gemm_init(err *e) {
    const char *omp = getenv("OMP_NUM_THREADS");
    if (openblas_get_parallel() == 2 && (!omp || strcmp(omp, "1")))
        return err_set(e, ERR_CONFIG, "this OpenBLAS uses OpenMP and would start threads of its own: "
                       "set OMP_NUM_THREADS=1, or install the pthread or serial build");
    openblas_set_num_threads(1);
    if (!calls_may_overlap())
        return err_set(e, ERR_CONFIG, "%s gives wrong numbers when called from several threads: "
                       "install one built with USE_LOCKING=1, or build with BLAS=none", gemm_name());
    return true;
}

#endif
