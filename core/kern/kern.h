/* What the kernel files share; nobody outside core/kern and core_init includes this.
 *
 * The public functions of core/kern.h live in conv.c, norm.c, pool.c and optim.c. They cut the work
 * by shape, hand the pieces to par_for, and reach their inner loops through one table of function
 * pointers that kern_select fills once. kern_body.h writes these loops once; kern_portable.c,
 * kern_avx2.c and kern_avx512.c compile it. */
#ifndef LM_KERN_INTERNAL_H
#define LM_KERN_INTERNAL_H

#include <math.h>

#include "core/kern.h"

/* ---- register tiles of dense convolution: body_conv.h, body_strip.h, body_wgrad.h -------------- */

enum { TILE_MAX = 16, LANES_MAX = 16, WIDEST = 2 * LANES_MAX };        /* no tile is taller, no vector longer, no panel wider */

enum { STRIP_TAPS = 3 };                                /* neighbouring taps that share what is loaded, at most */
enum { TILE_FETCH = 16, STRIP_FETCH = 2 * TILE_FETCH }; /* floats that a step fetches: one line, or two */
typedef struct {
    int32_t x, w;                                       /* offsets in floats */
    int32_t taps;                                       /* of a strip: 2 … STRIP_TAPS, … */
    uint32_t live;                                      /* … and bits of its pixels that are inside the image */
} conv_run;

/* y[oy[i]][0 … 16*NV) = clamp(bias + sum over runs of x[ox[i] + run.x …]·w[run.w …] + residual). A strip has its
 * pixels x_step apart, from ox[0] on, and taps as far from each other, which lie side by side in w. A series is many
 * tiles of one run, its pixels x_step and y_step apart, from ox[0] and oy[0] on; of one vector they are twins: len is even, w is
 * [len/2][16][2]. A list is many tiles of any runs. */
typedef struct {
    const float *x, *w;
    const int32_t *ox, *oy;                             /* MR pixels: floats from x and from y */
    const conv_run *run; int runs, len;
    int64_t pair;                                       /* NV 4: floats of w from two vectors to the next two */
    int64_t x_step, y_step;
    int tiles;                                          /* of a series or a list */
    float *y;
    const float *bias, *residual;                       /* either may be NULL; residual as y */
    float lo, hi;
    int lanes;                                          /* valid in the last vector */
    bool resume, suspend;                               /* start from sum; leave the result in sum, not y */
    float *sum;                                         /* MR × NV vectors */
    const float *far;                                   /* lines from here on are fetched by the way; NULL: none */
} tile_args;
typedef void (*tile_kernel)(const tile_args *);

/* sum[i][0 … 16*NV) (+)= sum over images, lines, pixels of x[i]·dy[0 … 16*NV) */
typedef struct {
    const float *x, *dy;
    int64_t x_img, dy_img, x_line, dy_line, x_step, dy_step;
    int imgs, lines, count;
    int lanes;
    bool add;
    int64_t x_ahead, dy_ahead;                          /* floats to those that are fetched by the way; both 0: none */
    int64_t x_far, dy_far;                              /* from one of those to the next */
    float *x_to, *dy_to;                                /* copies: TILE_MAX and WIDEST floats a pixel; NULL: none */
    float *sum;
} wtile_args;

/* y[r*y_step + i] = x[r*x_step + i] for i < floats; with scale, clamp(x*scale[i] + shift[i]) between lo and hi. Whole
 * vectors of y are written. */
typedef struct {
    int64_t rows, x_step, y_step;
    int floats;
    const float *x, *scale, *shift;                     /* scale NULL: no prologue */
    float lo, hi, *y;
} slice_args;

/* ---- depthwise convolution: body_dw.h ----------------------------------------------------------- */

/* Neighbouring taps of a row that share the pixels they read: output t and tap b of the chunk read
 * pixel j = t*stride + b, if bit j of live is set (else it lies outside the image or is not wanted). */
enum { CHUNK_TAPS = 5 };
typedef struct { int32_t x, w; uint32_t live; int taps; } dw_chunk;    /* x: floats to pixel 0; w: first tap */

enum { DW_WIDTHS = 3 };
extern const int dw_widths[DW_WIDTHS];                  /* outputs of one tile: 4, 7, 8 */

typedef struct { int64_t x, y; } dw_ahead;              /* floats to what is fetched by the way; y: of y or dy */

/* Tiles alike, in lines; for all t < count and c < channels of each
 * dw:       y[t*y_step + c] = clamp(bias[c] + sum of x·w + residual)
 * dw_wgrad: sum[tap][c] += x·dy[t*y_step + c]; sum is strided as w, each tap padded to whole vectors.
 * With scale, x is clamp(x*scale[c] + shift[c]) between in_lo and in_hi. */
typedef struct {
    const float *x;
    int64_t x_row, w_row, x_step, w_step, y_step;       /* from a tap row, pixel, tap, output to the next */
    int64_t x_next, x_line, y_next, y_line;             /* to the next tile and line; y: of y, dy and residual */
    const dw_chunk *chunk; int chunks, rows, tiles, lines;
    int at;                                             /* the first chunk's x */
    int count, channels;
    const float *w, *bias, *residual;                   /* the latter may be NULL */
    float lo, hi, *y;
    const float *dy;
    float *sum;
    dw_ahead ahead[2]; int turn, fetched;               /* of a line's tiles before turn and from it on; of x so many tap rows, the last */
    const float *scale, *shift;                         /* of the prologue, or NULL */
    float in_lo, in_hi;
} dw_args;

/* ---- kernels as large as their map: body_full.h ------------------------------------------------- */

/* sum[i*sum_step + o] (+)= x[i*step …]·w[o*step …] over count floats, i < images, o < outs: at most DOT_IMAGES and dot_outs. */
enum { DOT_IMAGES = 2 };
typedef struct {
    const float *x, *w;
    int64_t step, count;
    int images, outs, sum_step;
    bool add;
    float *sum;
} dot_args;

/* ---- Winograd's transforms: body_wino.h --------------------------------------------------------- */

/* Points of F(4×4,3×3). Of all pairs of sixteenths this one rounds least: half the usual 1 and 2. */
#define WINO_P 0.625f
#define WINO_Q 1.5f

/* v[k*plane + c] = place k of the transformed patch, whole vectors. x: its first pixel, inside the
 * image or not; what is outside rows [r0,r1) and columns [c0,c1) of the patch counts as zero. */
typedef struct {
    const float *x;
    int64_t x_row, x_col, plane;
    int r0, r1, c0, c1, channels;
    int64_t ahead;                                      /* floats to M×M pixels that are fetched by the way, or 0 */
    float *v;
} wino_in_args;

/* u[k*plane + o] = place k of G g G' for kernels g[9][2*LANES_MAX] of out-channels o < wide; rounded once. */
typedef struct {
    double G[6][3];
    int A, wide;                                        /* A: M+2 */
    const float *g;
    int64_t plane;
    float *u;
} wino_w_args;

/* out[t*step + o] = tap t of G' m G for out-channels o < nv vectors, of places m[k*plane + o]. */
typedef struct {
    const float *m;
    int64_t plane;
    int nv, step;
    const float (*G)[3];
    float *out;
} wino_dw_args;

/* y[rows][cols][16*nv) = clamp(tile of m[k*plane …] + bias + residual) */
typedef struct {
    const float *m, *bias, *residual;                   /* the latter may be NULL; residual as y */
    int64_t plane, y_row, y_col;
    int rows, cols, nv, lanes;                          /* of the tile inside the image; lanes of the last vector */
    int64_t ahead;                                      /* floats from y to the tile that is fetched by the way, or 0 */
    float lo, hi;
    float *y;
} wino_out_args;

/* ---- rows × channels, plain vectors: body_norm.h ------------------------------------------------ */

typedef struct {
    int64_t rows, count; int c, width;                  /* sums: rows × c; else count floats, patterns of width */
    int64_t step, sum_step;                             /* sums: floats from a row to the next; from sums to sums of squares */
    const float *x, *y, *dy, *residual, *mean, *pivot;
    const float *p0, *p1, *p2;                          /* patterns; affine: either may be NULL */
    const float *g0, *g1;                               /* y NULL: patterns that make of x what the gate is asked */
    act_kind act;
    float gate_high;                                    /* the gate of the ReLU kinds: 0 < y < gate_high; NaN: no end */
    double *sum;                                        /* of values, and sum_step further of squares or products */
    float *out;
    grad_out dx, dres;
} norm_args;

typedef struct {
    int64_t count;
    float *w, *m, *v;
    const float *g;
    float gscale, lr, mu, wd, b1, b2, eps, step, root_c2, a, b;
    bool flag, nesterov;                                /* flag: SGD's first step; Adam's decoupled decay */
} optim_args;

/* ---- pooling: body_pool.h ------------------------------------------------------------------------- */

/* One window, cut to the image: from one of its lines, pixels to the next. Forward writes channels of
 * out; backward adds to out, which then is dx at the window's first pixel. */
typedef struct {
    const float *x, *dy;
    int64_t line, step;
    int rows, cols, channels;
    float weight;                                       /* of a mean */
    float *out;
} pool_args;

/* ---- the table ----------------------------------------------------------------------------------- */

typedef struct {
    int lanes;
    int tallest[3], longest[2], wtallest[2];            /* heights worth using: 1 … tallest[NV/2]; 0: none */
    int tallest_half, tallest_short[3];                 /* in series: of halves, of sums of few products */
    tile_kernel tile[3][TILE_MAX + 1];                  /* [NV/2][MR], NV 1, 2 or 4 */
    tile_kernel tile_half[TILE_MAX + 1];                /* [MR], NV 2, of the second vector half; w has that half twice */
    tile_kernel series[3][TILE_MAX + 1], series_half[TILE_MAX + 1];     /* as tile; NV 1 and 2 up to tallest_short */
    tile_kernel list[TILE_MAX + 1];                     /* NV 2, pixels where ox and oy say */
    tile_kernel strip[2][TILE_MAX + 1], strip_list[2][TILE_MAX + 1];    /* [NV-1][MR] */
    void (*wtile[2][TILE_MAX + 1])(const wtile_args *);
    void (*slice)(const slice_args *);
    int dot_outs;
    void (*dot)(const dot_args *);
    void (*wino_in[2])(const wino_in_args *);           /* F(2×2), F(4×4) */
    void (*wino_out[2])(const wino_out_args *);
    void (*wino_w)(const wino_w_args *);
    void (*wino_dy[2])(const wino_in_args *);           /* x being an output tile */
    void (*wino_dw[2])(const wino_dw_args *);
    void (*dw[DW_WIDTHS][2])(const dw_args *);          /* [width][stride-1] */
    void (*dw_stream[DW_WIDTHS][2])(const dw_args *);   /* as dw, of aligned vectors and without a prologue; past the caches; or NULL */
    void (*dw_wgrad[DW_WIDTHS][2])(const dw_args *);
    void (*moments)(const norm_args *);                 /* sum += x - pivot and its square; pivot NULL: 0 */
    void (*back_moments)(const norm_args *);            /* sum += dz and dz*(x - mean) */
    void (*affine)(const norm_args *);
    void (*bn_back)(const norm_args *);
    void (*act_back)(const norm_args *);
    void (*pool_max)(const pool_args *);
    void (*pool_max_back)(const pool_args *);
    void (*pool_mean)(const pool_args *);
    void (*pool_mean_back)(const pool_args *);
    void (*sgd)(const optim_args *);
    void (*adam)(const optim_args *);
    void (*blend)(const optim_args *);
    double (*squares)(int64_t count, const float *x);
    bool (*finite)(int64_t count, const float *x);
    double (*fma_spin)(int64_t steps);                  /* steps * fma_chains * lanes multiply-adds, no memory */
    int fma_chains;
} kern_table;

extern kern_table kern;
void kern_portable(kern_table *k);
void kern_avx2(kern_table *k);
void kern_avx512(kern_table *k);

/* ---- sums over rows, norm.c --------------------------------------------------------------------- */

/* Of channels [c0, c0+c) of a part, whose row is `step` floats: rows are added as they come, about the
 * first row that comes; then the part is closed. part: ROW_PART(all channels) doubles, see row_sums. */
typedef struct { double *part; const float *first; int64_t step, n; int all, c0, c; } row_part;
row_part row_part_open(double *part, int all, int c0, int c, int64_t step);
void     row_part_add(row_part *p, const float *x, int64_t rows);       /* x: channel c0 of the first row */
void     row_part_close(const row_part *p);

/* What the backward of a norm sums up of dx, the gradient of its output, for rows of channels [c0, c0+c) of `all`: added
 * to part, 2*all doubles. x: what the norm reads. */
typedef struct grad_moments { conv_prologue gate; const float *x, *mean; double *part; int all; } grad_moments;
void grad_moments_open(const grad_moments *m, int64_t part, int c0, int c);
void grad_moments_add(const grad_moments *m, int64_t part, int c0, int c, int64_t rows, int64_t at, int64_t step, const float *dx);

/* ---- choices, called by core_init before anything computes ------------------------------------ */

void kern_select(isa_level isa);
/* road NULL: "direct". exact: no Winograd under "direct". The roads "reference", "winograd2" and
 * "winograd4" (wherever they can) are for tests and benchmarks. */
bool conv_road_select(const char *road, bool exact, err *e);
const char *conv_road(void);
bool conv_exact(void);

/* ---- the definition --------------------------------------------------------------------------- */

/* A convolution in loops: the road "reference". Weights as they come, OIHW. */
void ref_conv_forward(const conv_shape *s, const float *x, const float *w, const conv_epilogue *ep,
                      float *y);
void ref_conv_data_grad(const conv_shape *s, const float *dy, const float *w, bool accumulate,
                        float *dx);
void ref_conv_weight_grad(const conv_shape *s, const float *x, const float *dy, bool accumulate,
                          float *dw);

float act_value(act_kind act, float v);                 /* a NaN survives */
/* What the clamping activations clamp to; of the others infinity. */
static inline float act_low(act_kind act) { return act == ACT_RELU || act == ACT_RELU6 ? 0 : -INFINITY; }
static inline float act_high(act_kind act) { return act == ACT_RELU6 ? 6 : INFINITY; }

static inline int64_t kern_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t kern_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t kern_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
