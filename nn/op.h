/* Inside nn: what an op is, and what a plan makes of it. Included only within nn, and by tests.
 *
 * An op is one row of nn_ops[] (ops/NAME.c). A plan turns nodes into steps: a step is an op with
 * its memory resolved to pointers, so running is a loop over steps and nothing else. */
#ifndef LM_NN_OP_H
#define LM_NN_OP_H

#include "nn/nn.h"

/* ---- attributes ------------------------------------------------------------------------------ */

/* name, values, type, default, least, greatest: prints, parses and checks every attribute. */
#define NN_ATTRS(X) \
    X(size, 3, INT, 0, 0, 1 << 20)  X(out, 1, INT, 0, 0, 1 << 20) X(k, 2, INT, 1, 1, 1 << 12) \
    X(stride, 2, INT, 1, 1, 1 << 12) X(pad, 4, INT, 0, -(1 << 12), 1 << 12) \
    X(dilation, 2, INT, 1, 1, 1 << 12) X(groups, 1, INT, 1, 1, 1 << 20) \
    X(chan, 2, INT, 0, 0, 1 << 20) \
    X(bias, 1, BOOL, 0, 0, 1) X(count_pad, 1, BOOL, 0, 0, 1) X(fixed, 1, BOOL, 0, 0, 1) \
    X(eps, 1, FLOAT, 1e-5, 0, 1) X(momentum, 1, FLOAT, 0.1, 0, 1) X(p, 1, FLOAT, 0, 0, 0.999) \
    X(smoothing, 1, FLOAT, 0, 0, 1) X(temperature, 1, FLOAT, 1, 1e-3, 1e6) \
    X(weight, 1, FLOAT, 1, 0, 1e6)
#define X(name, ...) NN_AT_##name,
enum { NN_ATTRS(X) NN_ATTR_COUNT };
#undef X
#define NN_HAS(name) (1u << NN_AT_##name)

typedef enum { NN_ATTR_INT, NN_ATTR_BOOL, NN_ATTR_FLOAT } nn_attr_type;
typedef struct {
    const char *name; size_t offset; int count; nn_attr_type type; double value, least, greatest;
} nn_attr_row;
extern const nn_attr_row nn_attr_rows[NN_ATTR_COUNT];
double nn_attr_get(const nn_attr *a, int row, int i);
void   nn_attr_set(nn_attr *a, int row, int i, double v);
nn_attr nn_attr_default(void);
/* nn_node_add without filling zeros in: every attribute is as it shall be. */
int    nn_node_append(nn_graph *g, nn_opcode op, const char *name, const int *in, int n_in,
                      const nn_attr *attr, err *e);
extern const char *const nn_barrier_names[3];

/* ---- steps ----------------------------------------------------------------------------------- */

/* What the caller sets between runs. */
typedef struct { double momentum; uint64_t seed; int64_t epoch, step; bool timed; } nn_run;

/* When a step's private memory must hold its content. */
typedef enum {
    NN_AT_FORWARD,               /* scratch of forward */
    NN_AT_BACKWARD,              /* scratch of backward */
    NN_AT_REFRESH,               /* scratch of refresh */
    NN_FORWARD_TO_BACKWARD,      /* left by forward for backward */
    NN_ALWAYS,                   /* from refresh on: packed weights */
    NN_UNTIL_READER,             /* left by forward for the forward of step `reader` */
    NN_BACK_TO_GIVER,            /* left by backward for the backward of step `giver` */
    NN_BACK_TO_NORM,             /* … of step `norm_in` */
} nn_when;
typedef struct { nn_when when; size_t bytes; void *p; } nn_memory;
enum { NN_MEMORIES = 8 };

typedef struct nn_op nn_op;
typedef struct nn_step {
    const nn_op   *op;
    const nn_node *node;         /* borrowed from the graph, as everything below */
    nn_mode   mode;
    int       id, out;           /* node; node whose value the step leaves, after fusion */
    int       in[4], n_in;       /* nodes read, dropouts of INFER looked through */
    int       batch;             /* images of one forward: the stage's group */
    int       stage;
    int       norm, residual;    /* fused nodes: batch norm folded into this; added; -1: none */
    act_kind  act;
    bool      active;            /* takes part in backward */
    bool      want[4];           /* the gradient of in[k] is wanted */
    const nn_node  *src[4];      /* nodes of in[], of the step alone even in a band */
    const nn_param *w[5];        /* read at every run: their x may change */
    const nn_param *norm_w[4];   /* of the folded norm */
    float     norm_eps;

    const float *x[4], *res;     /* inputs, residual */
    float       *y;
    const float *dy;             /* gradient of y; NULL for losses */
    grad_out     dx[4], dres;    /* written in this order; p NULL: nobody needs it */
    grad_out     dw[5];
    nn_memory    mem[NN_MEMORIES];
    conv_plan   *conv;           /* owned */
    int          reader;         /* TRAIN: step of the norm that wants y's sums; -1 */
    const struct nn_step *giver; /* TRAIN: whose sums this norm may take; NULL */
    row_sums     sums;           /* of y, for the reader; parts 0: it has to do without */
    bool         lazy;           /* TRAIN: a norm whose only reader applies it; y is x, not written */
    const struct nn_step *norm_in;       /* TRAIN: the lazy norm behind which x[0] is wanted; NULL */
    const struct nn_step *applier;       /* … of a lazy norm: that step */
    row_sums     back_sums;      /* of dx[0], for the backward of norm_in; parts 0: it has to do without */
    const struct nn_step *norm_out;      /* TRAIN: the norm of y whose backward this step's completes; NULL */
    bool         half;           /* … is such a norm: its backward sums, and its dx is dy, not written */
    struct nn_step *before;      /* INFER: the step that runs with this one, band by band of rows; NULL */
    bool         absorbed;       /* … is such a step: it keeps weights for the one behind it, and has no y */
    conv_bands  *bands;          /* owned, of the last step of a band; in[0] is then what the first one reads */
    int64_t      ns;             /* of a timed run in bands, all threads together */
    double       loss;           /* losses: mean over the batch, unweighted */
} nn_step;

void nn_ask(nn_step *s, int slot, nn_when when, size_t bytes);   /* in prepare */

/* ---- ops ------------------------------------------------------------------------------------- */

enum {
    NN_INPLACE = 1,              /* forward may write y over x[0] */
    NN_GRAD_INPLACE = 2,         /* backward may write dres, or the last dx, over dy */
    NN_NEEDS_IN = 4,             /* backward reads x */
    NN_NEEDS_OUT = 8,            /* backward reads y (with a fused activation every op does) */
    NN_FUSE_INFER = 16,          /* applies residual and activation itself in INFER */
    NN_FUSE_TRAIN = 32,          /*   ... for TRAIN */
    NN_FOLD_NORM = 64,           /* INFER: absorbs a batch norm into its weights */
    NN_IS_NORM = 128,            /* can be folded */
    NN_IS_SUM = 256,             /* can be a residual */
    NN_IS_LOSS = 512,            /* scalar; gradient flows to in[0] only */
    NN_TRAIN_ONLY = 1024,        /* identity in INFER */
    NN_NO_STEP = 2048,           /* an input: nothing to compute */
    NN_ACT_ONLY = 4096,          /* fuses activations, not residuals */
    NN_GIVES_SUMS = 8192,        /* TRAIN: can sum up the rows of y while it makes them */
    NN_APPLIES_NORM = 16384,     /* TRAIN: can apply the norm before it to what it reads, see conv_prologue */
    NN_JOINS_NORM = 65536,       /* TRAIN: its backward can complete that of the norm behind it, see conv_joins_norm */
    NN_IN_BANDS = 32768,         /* INFER: can run with others of its kind, band by band, see conv_bands */
};

typedef struct {
    const char *suffix; nn_role role; float value;
    bool if_bias;                /* exists only with attr.bias */
} nn_param_row;
typedef struct { int rank; int64_t dim[4]; } nn_dims;

struct nn_op {
    const char *name, *onnx;
    unsigned    flags, attrs;    /* NN_INPLACE …; NN_HAS(k) … */
    int         in_min, in_max;
    act_kind    act;             /* the activation this op is, or ACT_NONE */
    nn_param_row param[5];       /* ends at suffix NULL */
    /* Output shape from the inputs' nodes, and shapes of the parameters in the order of param[]. */
    bool (*shape)(nn_node *n, const nn_node *const *in, nn_dims *param, err *e);
    bool (*prepare)(nn_step *s, err *e);                     /* may be NULL */
    void (*refresh)(nn_step *s);               /* INFER: weights changed; may be NULL */
    void (*forward)(nn_step *s, const nn_run *r);
    void (*backward)(nn_step *s, const nn_run *r);
};
#define X(name) extern const nn_op nn_op_##name;
NN_OPS(X)
#undef X
extern const nn_op *const nn_ops[NN_OP_COUNT];

/* Small things many ops want. */
static inline int64_t nn_rows(const nn_step *s, const nn_node *n)
{
    return (int64_t)s->batch * n->dim[1] * n->dim[2];
}
static inline int64_t nn_count(const nn_step *s, const nn_node *n)
{
    return nn_rows(s, n) * n->dim[3];
}
bool nn_same_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e);
bool nn_pool_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e);
void nn_act_forward(nn_step *s, const nn_run *r);
void nn_act_backward(nn_step *s, const nn_run *r);
/* The window attributes of a node as a convolution's shape, one group. */
conv_shape nn_window(const nn_node *n, const nn_node *in, int batch);
/* Losses: y holds each image's loss, s->loss their mean; all arithmetic of a row in double. */
typedef double nn_row_loss(const nn_step *s, int64_t row);
bool   nn_loss_shape(nn_node *n, const nn_node *const *in, nn_dims *param, err *e);
bool   nn_loss_prepare(nn_step *s, err *e);
void   nn_loss_forward(nn_step *s, nn_row_loss *loss);
/* Row i: logits, targets and (in backward) the gradient of the logits, n of each. */
typedef struct { const float *z, *t; float *dz; int64_t n; bool accumulate; } nn_loss_row;
nn_loss_row nn_loss_row_at(const nn_step *s, int64_t i);
void   nn_loss_row_put(const nn_loss_row *r, int64_t c, double g);       /* dz_c */
double nn_log_sum_exp(const float *z, int64_t n, double T);      /* log sum_c exp(z_c / T) */
/* conv2d and linear are the same step: linear is one window over the whole map. */
conv_shape nn_conv_window(const nn_node *n, const nn_node *in, int batch);
bool nn_conv_shapes(nn_node *n, const nn_node *const *in, nn_dims *param, err *e);
bool nn_conv_prepare(nn_step *s, err *e);
void nn_conv_refresh(nn_step *s);
void nn_conv_forward(nn_step *s, const nn_run *r);
void nn_conv_backward(nn_step *s, const nn_run *r);
/* The shapes of a step and those before it in its band, the first one first; how many, at most one more than
 * there is room for in CONV_BANDS_MAX, which are then not written. */
int  nn_band_shapes(const nn_step *s, conv_shape *shape);
/* What a norm of TRAIN has made of the batch's statistics. */
conv_prologue nn_norm_prologue(const nn_step *norm);
const float *nn_norm_mean(const nn_step *norm);
/* What a half norm's backward has left to do. */
bn_grad nn_norm_grad(const nn_step *norm);

/* "64x3x7x7", for sentences. */
void nn_dims_print(buf *out, int rank, const int64_t *dim);

/* ---- plans ----------------------------------------------------------------------------------- */

/* Memory that is alive from time first to time last. Time: -1 refresh, 0 … n-1 the steps, then
 * backward of the last step at n down to the first at 2n-1; 2n: after everything. */
typedef struct {
    size_t bytes, offset; int first, last;
    int same;                    /* lives in that buffer's memory; -1: has its own */
    bool whole;                  /* of all groups of a stage */
    bool scratch;                /* alive at one time only, private to a step */
} nn_buffer;

/* Steps [first, end) run for `group` images at a time; the last group may overlap the one before. */
typedef struct { int first, end, group; } nn_stage;

struct nn_plan {
    nn_graph  *g;
    nn_mode    mode;
    int        batch, n_step;
    nn_step   *step;
    nn_stage  *stage; int n_stage;
    bool      *whole;            /* per node: its value is the whole batch's, not one group's */
    int       *alias;            /* per node: the node that holds its value */
    int       *home;             /* per node: step that leaves its value, or -1 */
    bool      *wanted;           /* per node: its gradient is */
    int       *value, *grad;     /* per node: buffer or -1 */
    int       *param_grad;       /* per parameter: buffer or -1 */
    int      (*memory)[NN_MEMORIES];   /* per step: buffers of mem[] */
    nn_buffer *buffer; int n_buffer;
    arena      mem;
    size_t     live_bytes, weight_bytes, scratch_bytes;
    nn_run     run;
    bool       want_input_grad, poison;
    int64_t   *spent;            /* ns of each time 0 … 2n-1, added up; NULL: nobody asks */
};
bool  nn_plan_cut(nn_plan *p, unsigned options, err *e);     /* group.c: steps into stages */
bool  nn_plan_lay_out(nn_plan *p, err *e);                   /* layout.c: from steps to pointers */
void *nn_plan_at(const nn_plan *p, int buffer);              /* NULL for -1 */
/* For tests (and always under address sanitizer): memory is filled with NaN before its first writer
 * and after its last reader. */
void  nn_plan_poison(nn_plan *p, bool on);
/* For benchmarks: from now on the nanoseconds of every step are added to ns[step], those of its backward
 * to ns[2n-1-step]; ns is the caller's, NULL ends it. */
void  nn_plan_watch(nn_plan *p, int64_t *ns);
/* Every public way to make a plan ends here; tests compare plans with and without fusion, whole
 * batches with groups made as if the cache were tiny, bands with steps one after the other, and norms whose
 * backward is their own. */
enum { NN_PLAN_INPUT_GRAD = 1, NN_PLAN_NO_FUSION = 2, NN_PLAN_WHOLE_BATCH = 4, NN_PLAN_SMALL_GROUPS = 8,
       NN_PLAN_NO_BANDS = 16, NN_PLAN_WHOLE_NORMS = 32 };
nn_plan *nn_plan_build(nn_graph *g, nn_mode mode, int batch, unsigned options, err *e);

#endif
