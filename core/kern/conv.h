/* Roads of the convolution, private to core/kern.
 *
 * A road is a plan with the four things done with it. conv.c picks one per shape; each file makes
 * its own kind of plan: conv_tile.c (forward and data gradient on the register tile) together with
 * conv_wgrad.c, wgrad_one.c, winograd.c and winograd_wgrad.c, depthwise.c, full.c, im2col.c, and the loops of kern_ref.c. */
#ifndef LM_CONV_H
#define LM_CONV_H

#include "core/kern/kern.h"

/* ---- a gather: what forward and data gradient have in common ---------------------------------- */

/* out[q] = sum over taps and channels of in[q*stride + offset(tap)] · w[tap], zero outside the
 * image. Forward is one gather. The data gradient is one for each of the sh×sw phases of the
 * input's rows and columns, of stride 1: rows h with equal (h+pt) mod sh read the same taps. */
typedef struct {
    int n, ih, iw;               /* image read */
    int qh, qw;                  /* grid of output pixels */
    int64_t y_img, y_row, y_col, y_base;  /* floats from one output pixel to the next; of the first */
    int groups, c, o;            /* channels of one group, read and written */
    int sh, sw;
    int th, tw;                  /* taps; th*tw = 0: the sum is empty */
    int *row, *col;              /* offset of each tap, ascending; row owns the memory of all four */
    int *kr, *kc;                /* its place in the kernel */
    bool transposed;             /* channels read are the weights' out-channels */
} gather;

/* Fills g[]: 1 for forward, up to sh*sw for the data gradient. Returns how many, 0 on failure. */
int  gathers_new(const conv_shape *s, conv_pass pass, gather *g, err *e);
void gathers_free(gather *g, int n);
/* Where in OIHW the weight for (group, out, in, tap row, tap column) stands. */
int64_t gather_weight(const gather *g, const conv_shape *s, int group, int o, int c, int a, int b);
/* First and last+1 tap that is inside [0,size) for some q in [q0,q1]. */
void taps_live(const int *offset, int taps, int q0, int q1, int stride, int size, int *t0, int *t1);

/* 1×1, every pixel by itself. */
static inline bool is_one(const conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->sh == 1 && s->sw == 1 && !s->pt && !s->pb && !s->pl && !s->pr;
}

static inline bool is_depthwise(const conv_shape *s) { return s->groups > 1 && s->groups == s->c && s->groups == s->o; }

/* ---- roads ------------------------------------------------------------------------------------ */

/* Work is cut until there are about this many pieces, if each is then worth PIECE_MACS. */
enum { PIECES = 32, PIECE_MACS = 1 << 17 };
/* Scratch of one worker, in whole steps: so most layers begin it in the same place, and no core writes to what another
 * core wrote for the layer before, which would make it wait. */
enum { SCRATCH_STEP = 1 << 18 };
static inline size_t scratch_of_worker(size_t floats)
{
    return (floats + SCRATCH_STEP - 1) / SCRATCH_STEP * SCRATCH_STEP;
}
/* No cache holds so many floats: by the time they are wanted they are far away again. */
enum { FAR_FLOATS = 1 << 23 };

/* A task's end, if its kernels stored past the caches: such stores are in no order with others until then. */
static inline void stream_end(void)
{
#ifdef __x86_64__
    __builtin_ia32_sfence();
#endif
}

/* One gather on the register tile. Phases of one pass run together; their packed weights lie one
 * after another, each from packed_at on. */
typedef struct tile_plan tile_plan;
/* how: of CONV_PROLOGUE, CONV_SUMS, CONV_INSIDE. Takes the gather over. */
tile_plan *tile_plan_new(const gather *g, const conv_shape *s, unsigned how, size_t packed_at, err *e);
void   tile_plan_free(tile_plan *p);
size_t tile_packed_floats(const tile_plan *p);
void   tile_pack(const tile_plan *p, const float *w_oihw, float *packed);
size_t tile_scratch_floats(const tile_plan *p);
int64_t tile_parts(const tile_plan *p);                 /* of ep->part, forward; of moments */
bool   tile_is_long(int64_t steps);                     /* sums of so many products, which take scratch */
/* moments: of what is put out, the data gradient, or NULL. */
void   tile_run(tile_plan *const *phase, int phases, const float *x, const conv_prologue *pro, const float *packed,
                const conv_epilogue *ep, const grad_moments *moments, float *y, float *scratch);

/* Forward or data gradient of 3×3 kernels, stride 1, as F(M×M,3×3). */
typedef struct wino_plan wino_plan;
bool   wino_can(const conv_shape *s, conv_pass pass);
int    wino_choose(const conv_shape *s, conv_pass pass);  /* M = 4, 2, or 0: the direct road is faster. Not the weight gradient */
wino_plan *wino_plan_new(const conv_shape *s, conv_pass pass, int M, err *e);
void   wino_plan_free(wino_plan *p);
size_t wino_packed_floats(const wino_plan *p);
void   wino_pack(const wino_plan *p, const float *w_oihw, float *packed);
size_t wino_scratch_floats(const wino_plan *p);
void   wino_run(const wino_plan *p, const float *x, const float *packed, const conv_epilogue *ep, float *y,
                float *scratch);

/* G of F(M×M,3×3): M+2 rows. */
void   wino_kernel_transform(int M, double G[][3]);
/* Tiles of M×M outputs of all images, in one row; a tile's image, first output row and column. Found for the first of some
 * tiles, for the others by stepping on: beside a tile of few channels the divisions show. */
typedef struct { int M, OH, OW; } wino_grid;
typedef struct { int n, h, w; } wino_place;
wino_grid  wino_grid_of(const conv_shape *s, int M);
int64_t    wino_tiles(const conv_shape *s, int M);
wino_place wino_place_of(const wino_grid *g, int64_t tile);
static inline wino_place wino_next(const wino_grid *g, wino_place at)
{
    at.w += g->M;
    if (at.w >= g->OW) at = (wino_place){ at.n, at.h + g->M, 0 };
    if (at.h >= g->OH) at = (wino_place){ at.n + 1, 0, 0 };
    return at;
}
/* Floats from a tile's transformed channels to the next one's, so that rows keep out of each other's cache lines. */
int    wino_row_floats(int channels);
/* Pixels of many channels, in a map that a near cache does not hold, are fetched a tile ahead. Those of few the machine
 * fetches itself as well. */
bool   wino_is_far(int64_t pixels, int channels);
/* v[k*plane + c] = place k of the patch that makes the tile. fetched: pixels of the tile beside it are fetched by the way. */
void   wino_patch(const conv_shape *s, int M, const float *x, wino_place at, bool fetched, float *v, int64_t plane);
/* The weight gradient behind the same transforms. */
typedef struct wino_wgrad_plan wino_wgrad_plan;
int    wino_wgrad_choose(const conv_shape *s);          /* M = 4, 2, or 0 */
wino_wgrad_plan *wino_wgrad_plan_new(const conv_shape *s, int M, err *e);
void   wino_wgrad_plan_free(wino_wgrad_plan *p);
size_t wino_wgrad_scratch_floats(const wino_wgrad_plan *p);
void   wino_wgrad_run(const wino_wgrad_plan *p, const float *x, const float *dy, bool accumulate, float *dw, float *scratch);

/* What the weight gradient of WGRAD_UNIT pixels after another does beside (1×1, see wgrad_joins): their dy it makes of a
 * norm's, and hands it on. */
enum { WGRAD_UNIT = 128 };
typedef struct {
    const bn_grad *norm;
    void (*then)(void *ctx, int block, bool first, int64_t pixel, const float *dy);     /* first: of the block */
    void *ctx;
} wgrad_join;
typedef struct wgrad_plan wgrad_plan;
bool   wgrad_joins(const conv_shape *s);
wgrad_plan *wgrad_plan_new(const conv_shape *s, bool prologue, bool joins, err *e);
void   wgrad_plan_free(wgrad_plan *p);
int    wgrad_blocks(const wgrad_plan *p);
size_t wgrad_scratch_floats(const wgrad_plan *p);
void   wgrad_run(const wgrad_plan *p, const float *x, const conv_prologue *pro, const float *dy, const wgrad_join *join,
                 bool accumulate, float *dw, float *scratch);

/* dw[o*step + r] = turned[r][o] for r < rows and o < outs, or added to it. The odd width keeps a column's floats out of
 * each other's cache lines. */
enum { WGRAD_CHUNK = 128 };
void wgrad_put(float (*turned)[WIDEST + 1], int rows, int outs, bool accumulate, float *dw, int64_t step);

/* The same of 1×1 kernels with many channels. */
typedef struct wgrad_one_plan wgrad_one_plan;
bool   wgrad_one_can(const conv_shape *s);
wgrad_one_plan *wgrad_one_plan_new(const conv_shape *s, err *e);
void   wgrad_one_plan_free(wgrad_one_plan *p);
size_t wgrad_one_scratch_floats(const wgrad_one_plan *p);
void   wgrad_one_run(const wgrad_one_plan *p, const float *x, const conv_prologue *pro, const float *dy, bool accumulate, float *dw,
                     float *scratch);

typedef struct dw_plan dw_plan;                         /* one gather of a depthwise convolution */
dw_plan *dw_plan_new(const gather *g, const conv_shape *s, size_t packed_at, err *e);       /* takes the gather over */
void   dw_plan_free(dw_plan *p);
size_t dw_packed_floats(const dw_plan *p);
int64_t dw_parts(const dw_plan *p);
void   dw_pack(const dw_plan *p, const float *w_oihw, float *packed);
void   dw_run(dw_plan *const *phase, int phases, const float *x, const conv_prologue *pro, const float *packed,
              const conv_epilogue *ep, float *y);
/* For the plan of the forward gather only. dw_join: both gradients, band by band of rows; phase: of the data gradient,
 * none where dx is not wanted. Parts of moments are the blocks. */
bool   dw_joins(const conv_shape *s);
int    dw_blocks(const dw_plan *p);
size_t dw_join_scratch_floats(const dw_plan *p, dw_plan *const *phase, int phases);
void   dw_join_run(const dw_plan *p, dw_plan *const *phase, int phases, const conv_grads *g, const grad_moments *m, float *scratch);
size_t dw_wgrad_scratch_floats(const dw_plan *p);
void   dw_wgrad_run(const dw_plan *p, const float *x, const conv_prologue *pro, const float *dy, bool accumulate,
                    float *dw, float *scratch);

/* Kernels as large as their map; weights as they come. */
typedef struct full_plan full_plan;
bool   full_can(const conv_shape *s);
full_plan *full_plan_new(const conv_shape *s, err *e);
void   full_plan_free(full_plan *p);
size_t full_scratch_floats(const full_plan *p);
void   full_forward(const full_plan *p, const float *x, const float *w, const conv_epilogue *ep, float *y, float *scratch);
void   full_data_grad(const full_plan *p, const float *dy, const float *w, grad_out dx, float *scratch);
void   full_weight_grad(const full_plan *p, const float *x, const float *dy, grad_out dw, float *scratch);

typedef struct im2col_plan im2col_plan;                 /* all passes by unfolding */
im2col_plan *im2col_plan_new(const conv_shape *s, err *e);
void   im2col_plan_free(im2col_plan *p);
size_t im2col_packed_floats(const im2col_plan *p);      /* the same for both passes */
void   im2col_pack(const im2col_plan *p, const float *w_oihw, float *packed);
size_t im2col_scratch_floats(const im2col_plan *p);
void   im2col_forward(const im2col_plan *p, const float *x, const float *packed, const conv_epilogue *ep,
                      float *y, float *scratch);
void   im2col_data_grad(const im2col_plan *p, const float *dy, const float *packed, bool accumulate,
                        float *dx, float *scratch);
void   im2col_weight_grad(const im2col_plan *p, const float *x, const float *dy, bool accumulate,
                          float *dw, float *scratch);

/* Memory to bring nearer bit by bit while something else is computed. */
typedef struct { const char *at, *end; int64_t step; } fetch;
static inline void fetch_some(fetch *f)
{
    for (const char *stop = f->end - f->at > f->step ? f->at + f->step : f->end; f->at < stop; f->at += 64)
        __builtin_prefetch(f->at, 0, 2);
}

/* From one array to another, to be fetched there. */
static inline int64_t floats_to(const float *from, const float *to) { return ((intptr_t)to - (intptr_t)from) / (intptr_t)sizeof *to; }

/* Out-channels of a group as panels of two vectors, the last of one if that is enough. */
typedef struct { int first, nv, lanes; } panel;         /* lanes: valid in the last vector */
void  silu_in_place(float *y, int channels);
int   panel_count(int channels);
panel panel_at(int channels, int i);
/* One and a half vectors at most. */
static inline bool panel_is_half(panel v) { return v.nv == 2 && 2 * v.lanes <= kern.lanes; }
/* Panel i and, where pairs are wanted, the next of those `left` if it has two vectors too: n panels, nv vectors, the
 * last of which has the lanes of what is returned. */
panel panels_at(int channels, int i, int left, bool pairs, int *n, int *nv);

#endif
