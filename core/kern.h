/* Kernels: the loops that cost time, behind plain functions. A kernel takes pointers and sizes and
 * knows no network. Activations are N,H,W,C; weights O,I/groups,KH,KW as in PyTorch; what a kernel
 * wants differently it packs for itself.
 *
 * Every function here uses the pool (par_for), cuts its work by shape (bands of rows by threads too,
 * which changes no sum) and adds partial sums in index order: the result does not depend on the number of threads. None allocates except the
 * *_new functions. The inner loops are one body compiled for plain vectors, AVX2 and AVX-512, chosen
 * once by core_init; core/kern/kern_ref.c is the definition of convolution. NaN in gives NaN out. */
#ifndef LM_KERN_H
#define LM_KERN_H

#include "core/core.h"

typedef enum { ACT_NONE, ACT_RELU, ACT_RELU6, ACT_SILU, ACT_COUNT } act_kind;

/* Rows summed up in parts. A part has the number of its rows, then for every channel their sum, then
 * for every channel their squared distances from the part's mean. */
#define ROW_PART(c) (1 + 2 * (int64_t)(c))
typedef struct { const double *part; int64_t parts; } row_sums;

typedef struct { float *p; bool accumulate; } grad_out;

/* ---- convolution (cross-correlation, no kernel flip) ----------------------------------------- */

typedef struct {
    int n, h, w, c;              /* input */
    int o, kh, kw;               /* weights (o, c/groups, kh, kw) */
    int sh, sw;                  /* stride */
    int pt, pb, pl, pr;          /* zero padding per side, >= 0 */
    int dh, dw;                  /* dilation */
    int groups;
} conv_shape;

int  conv_out_h(const conv_shape *s);      /* floor((h+pt+pb-dh*(kh-1)-1)/sh)+1 */
int  conv_out_w(const conv_shape *s);
bool conv_shape_check(const conv_shape *s, err *e);     /* positive sizes, groups divide, output >= 1 */
int64_t conv_macs(const conv_shape *s);    /* nominal multiply-adds, padding counted */

/* CONV_PROLOGUE: forward and weight gradient will be given a prologue, where there can be one. CONV_NORM_GRAD:
 * conv_backward will be given a norm, where there can be one. CONV_SUMS: forward will be given sums to make, where it can.
 * CONV_INSIDE: forward will run inside a task, on one thread, and need not be cut for more. */
typedef enum { CONV_FORWARD = 1, CONV_DATA_GRAD = 2, CONV_WEIGHT_GRAD = 4, CONV_PROLOGUE = 8, CONV_NORM_GRAD = 16, CONV_SUMS = 32,
               CONV_INSIDE = 64 } conv_pass;
/* Unless core_options says exact, every pass of a 3×3 convolution may be Winograd's, if
 * that is faster for its shape: F(2×2,3×3), of noise wrong by at most 1e-6 of the largest output, or
 * F(4×4,3×3), by 3.2e-6 (tests/test_winograd.c). The weight gradient's sums run over all pixels: of 130,000 of
 * them it is wrong by 7e-6, up to six times as much as its definition.
 *
 * Everything that depends on the shape alone: tile heights, the split over threads, offset tables
 * (im2col as a table of pointers), which taps are zero. Immutable after creation; owns its memory. */
typedef struct conv_plan conv_plan;
conv_plan *conv_plan_new(const conv_shape *s, unsigned passes, err *e);
void       conv_plan_free(conv_plan *p);
const conv_shape *conv_plan_shape(const conv_plan *p);
const char *conv_plan_road(const conv_plan *p);         /* "direct", "depthwise", "full", …; "winograd4" if any pass is */

/* Weights packed for one pass (CONV_FORWARD or CONV_DATA_GRAD): floats wanted, and the packing. */
/* conv_packs false: packed weights are the weights, and these will do for them. */
bool   conv_packs(const conv_plan *p);
size_t conv_packed_floats(const conv_plan *p, conv_pass pass);
void   conv_pack(const conv_plan *p, conv_pass pass, const float *w_oihw, float *packed);
/* Scratch floats that the largest of the plan's passes wants (all workers together: of the pool and
 * instruction set that core_init had started when the plan was made). */
size_t conv_scratch_floats(const conv_plan *p);

/* What happens to a value of x when it is read: act(x*scale[c] + shift[c]), not for ACT_SILU; padding stays
 * 0. So a norm's output need not be stored. Only where conv_has_prologue says so: a value is then made
 * for every time it is read, so kernels that read it few times from memory take part. */
typedef struct { const float *scale, *shift; act_kind act; } conv_prologue;
bool conv_has_prologue(const conv_shape *s);

/* What happens to a sum before it is stored:  y = act(sum + bias[o] + residual[same place as y]).
 * residual may be the same memory as y. part: the rows of y are summed up while they are near (see
 * row_sums; not with ACT_SILU), if conv_parts(plan) is not 0 (it is without CONV_SUMS): so many times ROW_PART(o) doubles.
 * next: floats that the caller will read next, n_next of them, which a dense direct convolution fetches by the way. */
typedef struct { const float *bias, *residual; act_kind act; double *part; const float *next; int64_t n_next; } conv_epilogue;
int64_t conv_parts(const conv_plan *p);

/* y (n,oh,ow,o). pro may be NULL (x as it is), ep too (no bias, no residual, no activation). */
void conv_forward(const conv_plan *p, const float *x, const conv_prologue *pro, const float *packed,
                  const conv_epilogue *ep, float *y, float *scratch);
/* dx (n,h,w,c) = or += gradient. packed: for CONV_DATA_GRAD. */
void conv_data_grad(const conv_plan *p, const float *dy, const float *packed, bool accumulate,
                    float *dx, float *scratch);
/* dw (o,c/groups,kh,kw) = or += gradient. */
void conv_weight_grad(const conv_plan *p, const float *x, const conv_prologue *pro, const float *dy,
                      bool accumulate, float *dw, float *scratch);

/* Both at once, with the same bits.
 * norm: dy is the gradient behind the norm that reads y, and what the norm's backward makes of it (bn_grad) is made
 * bit by bit and never written down. For plans made with CONV_NORM_GRAD, and only where conv_joins_norm says so: few
 * weights, many pixels.
 * sums: dx is the gradient behind the norm that makes x of pro, and what that norm's backward sums up is summed up
 * while dx is near, if conv_grad_parts(plan) is not 0: so many times 2c doubles, see bn_backward. */
typedef struct bn_grad bn_grad;
typedef struct { const float *mean; double *part; } grad_sums;
typedef struct {
    const float *x, *dy;
    const conv_prologue *pro;
    const bn_grad *norm;
    const float *packed;         /* for CONV_DATA_GRAD */
    grad_out dx, dw;             /* dx.p NULL: not wanted */
    grad_sums sums;              /* part NULL: not wanted; if wanted, dx must not accumulate */
} conv_grads;
bool conv_joins_norm(const conv_shape *s);
int64_t conv_grad_parts(const conv_plan *p);
void conv_backward(const conv_plan *p, const conv_grads *g, float *scratch);

/* ---- convolutions in bands: several that follow each other, rows by rows (INFER) ----------------- */

/* link[k] reads what link[k-1] puts out; only the last one's output is ever whole, the others' rows live in
 * scratch. The same bits as one after the other. */
enum { CONV_BANDS_MAX = 8 };
typedef struct conv_bands conv_bands;
typedef struct { const float *packed; conv_epilogue ep; } conv_link;     /* residual: the last link only; part: none */
/* Small depthwise kernels, dense 1×1 ones, and dense ones with a stride along the rows may be given; it wins where the maps
 * between are too large for the cache. */
bool conv_bands_win(const conv_shape *s, int n);
/* rows: of the last output in a band; 0: as many as the cache allows. */
conv_bands *conv_bands_new(const conv_shape *s, int n, int rows, err *e);
void   conv_bands_free(conv_bands *b);
size_t conv_bands_scratch_floats(const conv_bands *b);
/* packed: by any plan of the link's shape. ns: the time every link took is added, all threads together; or NULL. */
void   conv_bands_forward(const conv_bands *b, const float *x, const conv_link *link, float *y, float *scratch, int64_t *ns);

/* ---- rows × channels: norms, activations, sums ------------------------------------------------ */
/* rows = n*h*w; x[r*c + ch]. Sums over rows are formed in double in a fixed order. */

/* What forward leaves for backward, c floats each: mean, variance (biased), 1/sqrt(var + eps), and
 * scale, shift with y = act(x*scale + shift + residual). */
typedef struct { float *mean, *var, *invstd, *scale, *shift; } bn_stats;

/* Training-mode batch norm with fused residual and activation:
 *   y = act((x-mean)*invstd*gamma + beta + residual).
 * known: the sums of x, where somebody has them; else NULL. residual may be NULL. scratch:
 * bn_scratch_bytes(rows, c). y may be the residual's memory; x's only if the caller does not want
 * backward. y NULL: only the statistics are wanted. */
size_t bn_scratch_bytes(int64_t rows, int c);
void bn_forward(int64_t rows, int c, const float *x, const row_sums *known, const float *gamma, const float *beta,
                float eps, const float *residual, act_kind act, const bn_stats *st, float *y, void *scratch);
/* Backward of the above. known: where somebody has them, the sums of dz, which is dy through the activation's gate,
 * and of dz*(x-mean), in parts of 2c doubles; else NULL. y is the fused output, which masks the activation; NULL if there was no
 * residual: then x tells. Not for ACT_SILU, whose slope the output does not tell: there use
 * act_backward, then this without. dx = or += ; dres (may be NULL) = or += gradient of the residual;
 * dgamma, dbeta = or += . dx.p may be NULL; dx or dres, not both, may be dy's memory. */
void bn_backward(int64_t rows, int c, const float *x, const float *y, const float *dy, const row_sums *known, const float *gamma,
                 const bn_stats *st, act_kind act, grad_out dx, grad_out dres, grad_out dgamma, grad_out dbeta, void *scratch);
/* The same in two steps, of a norm without residual. The first sums: dgamma, dbeta, and bn_grad_floats(c) of coef;
 * the second makes rows [first, first+rows) of dx, dx being the first of them, on the caller's thread. */
struct bn_grad { int c; act_kind act; const float *x, *coef; };
size_t bn_grad_floats(int c);
void bn_backward_sums(int64_t rows, int c, const float *x, const float *dy, const row_sums *known, const float *gamma,
                      const bn_stats *st, act_kind act, grad_out dgamma, grad_out dbeta, float *coef, void *scratch);
void bn_grad_rows(const bn_grad *g, int64_t first, int64_t rows, const float *dy, float *dx);
/* y = act(x*scale[ch] + shift[ch] + residual); scale, shift, residual may be NULL (1, 0, 0). y may be
 * the memory of x or of the residual. */
void affine_forward(int64_t rows, int c, const float *x, const float *scale, const float *shift,
                    const float *residual, act_kind act, float *y);
/* dx = or += dy * act'(…): ReLU kinds read y (the output), ACT_SILU reads x (the input). dx may be
 * dy's memory. */
void act_backward(int64_t count, act_kind act, const float *x, const float *y, const float *dy,
                  bool accumulate, float *dx);
/* out[ch] = or += sum over rows of x: the gradient of a bias. scratch: bn_scratch_bytes. */
void channel_sum(int64_t rows, int c, const float *x, bool accumulate, float *out, void *scratch);
void vec_add(int64_t count, const float *a, bool accumulate, float *y);   /* y = or += a */

/* ---- pooling ---------------------------------------------------------------------------------- */
/* Only n,h,w,c, kernel, stride, padding of the shape are read. Max: padding counts as -inf. Average:
 * divides by kh*kw when count_pad, else by the taps inside the image. Backward of max sends each dy
 * to the first maximum in row-major tap order, as PyTorch does. */
void maxpool_forward(const conv_shape *s, const float *x, float *y);
void maxpool_backward(const conv_shape *s, const float *x, const float *dy, bool accumulate, float *dx);
void avgpool_forward(const conv_shape *s, bool count_pad, const float *x, float *y);
void avgpool_backward(const conv_shape *s, bool count_pad, const float *dy, bool accumulate, float *dx);

/* ---- optimiser: one fused pass over a parameter ---------------------------------------------- */

/* PyTorch's SGD: g += wd*w; m = first ? g : mu*m + g; w -= lr*(nesterov ? g + mu*m : m).
 * g is scaled by gscale first (gradient clipping). */
void sgd_step(int64_t count, float *w, const float *g, float *m, float gscale, float lr, float mu,
              float wd, bool nesterov, bool first);
/* Adam, or AdamW when decoupled: bias-corrected with step t >= 1, as torch.optim. */
void adam_step(int64_t count, float *w, const float *g, float *m, float *v, float gscale, float lr,
               float b1, float b2, float eps, float wd, bool decoupled, int64_t t);
void ema_step(int64_t count, float *avg, const float *w, float decay);   /* avg = decay*avg + (1-decay)*w */
/* Sum of squares in double, fixed order; and whether every value is finite. */
double vec_sum_squares(int64_t count, const float *x);
bool   vec_is_finite(int64_t count, const float *x);

#endif
