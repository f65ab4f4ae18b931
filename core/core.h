/* core: numbers and memory. Knows no network.
 *
 * Everything else stands on this header: errors that carry one sentence, an arena, a growable
 * buffer, files written atomically, counter-based random numbers, one thread pool, a clock, the
 * tensor, and the matrix product. Kernels (convolution, norms, pooling, optimiser) have their own
 * contract in core/kern.h, file formats in core/io.h, the command line in core/cli.h.
 *
 * Library code never exits, never prints and never aborts on bad input: a function that can fail
 * returns bool or NULL and takes `err *e` last. Two globals exist, the pool and the kernel table;
 * core_init sets both once. */
#ifndef LM_CORE_H
#define LM_CORE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORE_VERSION "0.1.0"     /* of the program and the library */

/* ---- errors ------------------------------------------------------------------------------- */

/* The value is the program's exit code. */
typedef enum {
    ERR_NONE = 0,
    ERR_NEGATIVE = 1,     /* a negative answer: infeasible budget, verification failed */
    ERR_USAGE = 64,       /* unknown verb or flag, impossible flag value */
    ERR_DATA = 65,        /* bad content in a file */
    ERR_NOINPUT = 66,     /* missing input */
    ERR_INTERNAL = 70,
    ERR_NOMEM = 71,
    ERR_IO = 74,          /* read or write failed, disk full */
    ERR_STOPPED = 75,     /* stopped early with everything saved: run the same command again */
    ERR_NONFINITE = 76,   /* loss or gradient is not finite */
    ERR_CONFIG = 78,      /* values that do not fit together, e.g. shapes */
} err_code;

typedef struct { err_code code; char msg[16384]; } err;  /* msg: one sentence, no newline; long lists fit */

/* Store code and sentence; always returns false, so `return err_set(e, ...)` fails. e may be NULL. */
bool err_set(err *e, err_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Prefix the sentence already there: "loading r34.safetensors: header is not JSON". Returns false. */
bool err_note(err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- memory ------------------------------------------------------------------------------- */

/* a*b and a+b for sizes; false on overflow and *out is then untouched. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Zeroed memory for n items of `size` bytes, 64-byte aligned; NULL and ERR_NOMEM when it cannot be
 * had or n*size overflows. Freed with mem_free (NULL is fine). n = 0 gives a valid pointer. */
void *mem_new(size_t n, size_t size, err *e);
void  mem_free(void *p);
/* For a program's first line: what is freed stays with the process (64 MB of it, blocks below 4 MB)
 * instead of going back to the system and coming again, page by page, with the next image. */
void  mem_keep(void);
char *mem_text(const char *s, err *e);                  /* a copy of s, freed with mem_free */
/* For tests: the k-th mem_new from now fails (0: never). Returns the number of calls so far. */
int64_t mem_fail_at(int64_t k);

/* One block mapped with huge pages where the system has them; what is taken is never freed singly. */
typedef struct { char *base; size_t used, cap; } arena;
bool  arena_init(arena *a, size_t bytes, err *e);       /* zeroed */
void *arena_take(arena *a, size_t bytes);               /* 64-byte aligned; NULL when full */
void  arena_free(arena *a);

/* Growable bytes, always NUL-terminated. A failed growth sticks: check `failed` once at the end. */
typedef struct { char *data; size_t len, cap; bool failed; } buf;
void buf_put(buf *b, const void *data, size_t len);
void buf_puts(buf *b, const char *s);
void buf_printf(buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(buf *b, const char *fmt, va_list ap);
void buf_free(buf *b);                                  /* back to the empty buffer {0} */

/* ---- files -------------------------------------------------------------------------------- */

bool file_exists(const char *path);
bool file_is_dir(const char *path);
/* Do both lead to one file, which writing the one would change under the other? By text, by what is there,
 * or, of files that are not there yet, by folder and name. NULL is no file. */
bool file_same(const char *a, const char *b);
bool file_differ(const char *flag_a, const char *a, const char *flag_b, const char *b, err *e);  /* or ERR_USAGE */
bool file_make_dirs(const char *path, err *e);          /* mkdir -p */
bool file_read(const char *path, buf *out, err *e);     /* whole file; missing: ERR_NOINPUT */
/* Whole or not at all: temporary name in the same folder, fsync, rename, fsync of the folder.
 * On failure (disk full: ERR_IO) the old file is untouched and the temporary one removed. */
bool file_write(const char *path, const void *data, size_t len, err *e);
/* Could file_write succeed? For long work whose result must not be lost to a mistyped name. */
bool file_may_write(const char *path, err *e);
/* Room on the disk of `path` for that many bytes, held until close(*fd) or the end of the process, under
 * no name. *fd is -1 where there is nothing to hold (a device, a file system that cannot). */
bool file_hold_room(const char *path, int64_t bytes, int *fd, err *e);
bool file_append_line(const char *path, const char *line, err *e);   /* one write, '\n' added */

/* Read-only map of a file. size 0 gives data = "" . */
typedef struct { const char *data; size_t size; } file_map;
bool file_map_open(file_map *m, const char *path, err *e);
void file_map_close(file_map *m);

/* SHA-256 (FIPS 180-4) in hexadecimal, 64 digits and NUL. */
typedef struct { uint32_t h[8]; uint64_t bytes; uint8_t block[64]; } sha256;
void sha256_init(sha256 *s);
void sha256_add(sha256 *s, const void *data, size_t len);
void sha256_hex(sha256 *s, char out[65]);               /* finishes s */
bool file_sha256(const char *path, char out[65], err *e);

/* ---- random numbers ------------------------------------------------------------------------ */

/* Philox4x32-10 (Salmon et al. 2011), a function of (seed, purpose, epoch, index) and a counter:
 * the crop of sample 1234 in epoch 7 does not depend on who computes it, and a checkpoint needs no
 * generator state. */
typedef enum {
    RNG_INIT, RNG_SHUFFLE, RNG_AUGMENT, RNG_DROPOUT, RNG_NOISE, RNG_SPLIT, RNG_SYNTH, RNG_TEST,
} rng_purpose;

typedef struct { uint32_t key[2], ctr[4], out[4]; int left; } rng;
rng      rng_at(uint64_t seed, rng_purpose purpose, uint32_t epoch, uint64_t index);
uint32_t rng_u32(rng *r);
double   rng_uniform(rng *r);                           /* [0,1), 32 bits */
double   rng_normal(rng *r);                            /* Box-Muller, one value per two draws */
uint32_t rng_below(rng *r, uint32_t n);                 /* 0 … n-1, unbiased; n > 0 */
void     rng_shuffle(rng *r, int32_t *a, int64_t n);    /* Fisher-Yates */

/* ---- the machine --------------------------------------------------------------------------- */

typedef enum { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_COUNT } isa_level;   /* each includes the former */
extern const char *const isa_names[ISA_COUNT];          /* "scalar" "avx2" "avx512" */

typedef struct {
    int threads;                 /* 0: the cores this process may use */
    const char *isa;             /* NULL: the best the CPU has; a name it lacks is refused */
    const char *conv;            /* NULL or "direct": register tiles; "im2col": unfold + gemm */
    bool exact;                  /* every convolution by its definition, none by Winograd, in training too */
} core_options;

/* Start the pool, choose kernels, check OpenBLAS (serial or single-threaded, ten-millisecond
 * concurrent self-check). Once per process, before any other call that computes; core_stop joins
 * the workers. core_init again after core_stop is allowed (tests do it). */
bool core_init(const core_options *o, err *e);
void core_stop(void);

isa_level   core_isa(void);
const char *core_conv_road(void);                       /* "direct" or "im2col" */
bool        core_exact(void);
int         core_cpus(void);                            /* cores this process may use */
size_t      core_l2_bytes(void);                        /* cache of one core; 1 MiB where unknown */
/* JSON object text describing machine and build: compiler, flags, cpu, isa, blas, threads, commit. */
void core_describe(buf *out);

/* ---- threads ------------------------------------------------------------------------------- */

/* One pinned pool. fn(ctx, i, worker) is called once for each 0 <= i < n, in any order on any
 * worker; worker < par_threads() picks per-worker scratch. Work is cut by shape, never by the
 * number of threads, and every item writes its own outputs: so bits do not depend on the pool.
 * Neighbouring items mostly share a worker, the same in every call: cut and number work alike.
 * Nested calls run serially on the calling worker. Small n*cost: call it anyway, a fork-join
 * costs well under a microsecond while the workers spin. */
typedef void par_fn(void *ctx, int64_t i, int worker);
void par_for(int64_t n, par_fn *fn, void *ctx);
int  par_threads(void);
/* The first call of a thread that is not the pool's (a data loader): run on any core. A thread starts
 * on the core of the one that created it, and the pool's are pinned when they fill the machine. */
void par_leave_core(void);

/* SIGINT and SIGTERM set a flag; long loops poll it, save and return ERR_STOPPED. A second one kills,
 * half a second after the first at the earliest. */
void stop_install(void);
bool stop_requested(void);
void stop_request(bool on);                             /* for tests */

int64_t clock_ns(void);                                 /* monotonic */
/* CPU seconds used by this process, and by everybody on the machine (from /proc/stat; -1 if
 * unknown): a timing sample during which others computed is contaminated. */
double clock_cpu_self(void);
double clock_cpu_all(void);

/* ---- tensors ------------------------------------------------------------------------------- */

/* float32, contiguous, row-major. Images N,H,W,C; weights O,I,KH,KW; vectors rank 1. */
typedef struct { int rank; int64_t dim[4]; float *x; } tensor;
int64_t tensor_count(const tensor *t);                  /* product of dims, 1 for rank 0 */
void nchw_to_nhwc(const float *src, int64_t n, int64_t c, int64_t h, int64_t w, float *dst);
void nhwc_to_nchw(const float *src, int64_t n, int64_t h, int64_t w, int64_t c, float *dst);

/* C (m×n) = A' (m×k) · B' (k×n) + beta·C, row-major; A' is A or its transpose. Runs on the calling
 * thread (callers cut the work and use par_for). BLAS, or plain blocked loops with BLAS=none. */
void gemm_f32(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
              const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void gemm_f64(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
              const double *b, int64_t ldb, double beta, double *c, int64_t ldc);
const char *gemm_name(void);                            /* "openblas 0.3.21 SkylakeX" or "none" */
bool        gemm_init(err *e);                          /* called by core_init */

#endif
