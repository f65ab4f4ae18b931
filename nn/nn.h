/* nn: networks as graphs, plans as programs. Knows no files of images and no search.
 *
 * A graph is data: an array of nodes in topological order and an array of named parameters. It can
 * be copied, printed, parsed, edited into a new graph, and saved: a model file is a safetensors file
 * whose metadata carries the graph's text. A plan is a graph compiled for one mode and batch size:
 * an array of steps over one arena. Planning may fail, running may not. */
#ifndef LM_NN_H
#define LM_NN_H

#include "core/core.h"
#include "core/kern.h"

/* ---- ops --------------------------------------------------------------------------------------- */

/* One file and one row each, in nn/ops. This list makes the enum, the table and the tests.
 *   input     dims from attr.size                      conv2d    w: weight (O,I/g,KH,KW) [bias]
 *   batchnorm w: weight bias running_mean running_var  relu relu6
 *   add       in[0] main branch, in[1] skip            pad       per side, negative crops
 *   slice     every stride-th row and column, then chan[0] / chan[1] zero channels before / after
 *   concat    along channels                           maxpool avgpool globalpool (to 1×1)
 *   linear    w: weight (O, C*H*W in PyTorch's order) [bias]     dropout
 *   softmax_xent  in: logits, target distribution; label smoothing; scalar loss, mean over batch
 *   distill       in: logits, teacher logits: -T² sum softmax(t/T) log softmax(s/T), mean */
#define NN_OPS(X) X(input) X(conv2d) X(batchnorm) X(relu) X(relu6) X(add) X(pad) X(slice) X(concat) \
    X(maxpool) X(avgpool) X(globalpool) X(linear) X(dropout) X(softmax_xent) X(distill)
#define X(name) NN_OP_##name,
typedef enum { NN_OPS(X) NN_OP_COUNT } nn_opcode;
#undef X

/* Attributes of all ops; each op row lists the ones it has (that list prints, parses and checks).
 * Zero-initialise and set what differs; nn_node_add fills k, stride, dilation, groups, weight,
 * temperature that are 0 with 1, eps with 1e-5 and momentum with 0.1. */
typedef struct {
    int   k[2], stride[2], dilation[2];  /* height, width */
    int   pad[4];                        /* top, bottom, left, right */
    int   chan[2];                       /* slice: zero channels before, after */
    int   size[3];                       /* input: H, W, C */
    int   out, groups;                   /* conv2d, linear: output channels */
    bool  bias;                          /* conv2d, linear */
    bool  count_pad;                     /* avgpool: padding counts in the divisor */
    bool  fixed;                         /* conv2d: outside the search (stem, last 1x1, projection) */
    float eps, momentum;                 /* norms */
    float p;                             /* dropout probability */
    float smoothing, temperature, weight;   /* losses: weight in the total */
} nn_attr;

/* ---- graphs -------------------------------------------------------------------------------------- */

typedef enum { NN_WEIGHT, NN_BIAS, NN_NORM_WEIGHT, NN_NORM_BIAS, NN_RUNNING } nn_role;

typedef struct {
    char     name[112];          /* node name + ".weight": torchvision's */
    nn_role  role;               /* NN_RUNNING: no gradient; only NN_WEIGHT gets weight decay */
    int      rank;
    int64_t  dim[4];
    int      node;               /* owner node */
    float   *x;                  /* owned by the graph; never NULL */
} nn_param;

typedef struct {
    nn_opcode op;
    int       in[4], n_in;       /* ids of earlier nodes */
    int       w[5], n_w;         /* indices into param, in the op's order */
    nn_attr   attr;
    int64_t   dim[4];            /* output shape 1,H,W,C */
    char      name[96];          /* "layer2.0.conv1"; unique */
} nn_node;

/* Which chain nodes may not be spanned by a merged conv because of a stride (ALGORITHM 1.3). */
typedef enum { NN_BARRIER_NONE, NN_BARRIER_STRIDE, NN_BARRIER_STRIDE_1X1 } nn_barrier;

typedef struct {
    nn_node  *node;  int n_node, cap_node;
    nn_param *param; int n_param, cap_param;
    int        output;           /* node id of the logits */
    char       arch[64];         /* "resnet20", or what it was made from */
    nn_barrier barrier;
    char       prep[256];        /* data_prep as text; opaque here */
} nn_graph;

nn_graph *nn_graph_new(const char *arch, err *e);
nn_graph *nn_graph_copy(const nn_graph *g, err *e);     /* parameters too */
void      nn_graph_free(nn_graph *g);
/* The which-th input node, as nn_plan_input counts them; NULL: there are not so many. */
const nn_node *nn_input(const nn_graph *g, int which);
const nn_node *nn_only_input(const nn_graph *g);        /* NULL when there are none or several */

/* Append a node, create its parameters (values 0; norms: 1,0,0,1) and infer its shape. Returns its
 * id, or -1 with e set (shapes that do not fit: ERR_CONFIG naming the node and both numbers). Any
 * in[] of -1 returns -1 at once, so a builder may chain calls and look at the last id only. */
int nn_node_add(nn_graph *g, nn_opcode op, const char *name, const int *in, int n_in,
                const nn_attr *attr, err *e);
/* Shorthands over nn_node_add. Square kernels, symmetric padding. */
int nn_add_input(nn_graph *g, const char *name, int h, int w, int c, err *e);
int nn_add_conv(nn_graph *g, const char *name, int in, int out, int k, int stride, int pad,
                int groups, bool bias, bool fixed, err *e);
int nn_add_norm(nn_graph *g, const char *name, int in, err *e);
int nn_add_op(nn_graph *g, nn_opcode op, const char *name, int in, err *e);          /* relu … */
int nn_add_add(nn_graph *g, const char *name, int main_branch, int skip, err *e);
int nn_add_linear(nn_graph *g, const char *name, int in, int out, bool bias, err *e);
/* A copy with a second input "target" (classes) and softmax_xent on the output; with temperature > 0
 * also an input "teacher" and a distill node: loss = (1-kd)*xent + kd*distill. */
nn_graph *nn_graph_with_loss(const nn_graph *g, double smoothing, double kd, double temperature, err *e);

int  nn_graph_find(const nn_graph *g, const char *name);         /* node id or -1 */
int  nn_param_find(const nn_graph *g, const char *name);
int64_t nn_param_count(const nn_param *p);
int  nn_graph_users(const nn_graph *g, int node, int *user, int max);   /* ids of nodes that read it */
/* A copy without nodes the output does not need. Losses are kept. */
nn_graph *nn_graph_prune(const nn_graph *g, err *e);
bool nn_graph_check(const nn_graph *g, err *e);                  /* order, shapes, names: for parsed files */

/* "relu1 = relu(bn1)" and "conv1 = conv2d(x) out=16 k=3,3 pad=1,1,1,1": one node per line after a
 * header line; attributes at their default are not printed. print(parse(t)) = t. */
void      nn_graph_print(const nn_graph *g, buf *out);
nn_graph *nn_graph_parse(const char *text, err *e);

int64_t nn_node_macs(const nn_graph *g, int node);               /* one image; conv2d and linear */
int64_t nn_graph_macs(const nn_graph *g);
int64_t nn_graph_weights(const nn_graph *g);                     /* trained floats (no running stats) */
/* The shape of a conv2d (or of a linear as a valid conv) node for a batch. */
conv_shape nn_conv_shape(const nn_graph *g, int node, int batch);

/* ---- parameters: initialise, load, save ----------------------------------------------------------- */

/* Convs: He normal, fan out (torchvision); linear: uniform ±1/sqrt(fan_in); norms 1,0,0,1. */
void nn_state_init(nn_graph *g, uint64_t seed);
/* Re-initialise one node: conv and bias uniform ±1/sqrt(fan_in), norm 1,0,0,1 (ALGORITHM 4.1.4). */
void nn_state_reset(nn_graph *g, int node, uint64_t seed, uint64_t index);
/* Copy values of equally named, equally shaped parameters; returns how many. */
int  nn_state_copy(nn_graph *to, const nn_graph *from);

typedef struct { char key[64]; const char *value; } nn_meta;
/* Model file: safetensors with __metadata__ {"format","graph","arch","barrier","prep", + extra}. */
bool      nn_model_save(const nn_graph *g, const char *path, const nn_meta *extra, int n, err *e);
nn_graph *nn_model_load(const char *path, err *e);               /* every tensor checked */
/* Only the tensors, under their names, as PyTorch's users write them: no graph. */
bool      nn_weights_save(const nn_graph *g, const char *path, err *e);
/* The network in evaluation mode as an ONNX model appended to out: any batch size, nodes and tensors
 * under their names, preprocessing and extra in metadata_props. */
enum { NN_ONNX_OPSET = 13 };
bool      nn_onnx_print(const nn_graph *g, const nn_meta *extra, int n, buf *out, err *e);

/* ---- builders and import ----------------------------------------------------------------------------- */

typedef struct { int classes; int h, w, c; double width; } nn_build;     /* 0: the model's own default */
typedef struct {
    const char *name;            /* "resnet20" */
    const char *summary;
    nn_build    standard;        /* classes, input, width when not given */
    nn_graph *(*build)(const nn_build *b, err *e);   /* weights zero, norms 1,0,0,1 */
} nn_model;
extern const nn_model *const nn_models[];                /* NULL-terminated */
const nn_model *nn_model_find(const char *name);
/* The input size as the command line has it, "C,H,W", into b; NULL: not asked for. */
bool nn_build_input(nn_build *b, const char *chw, err *e);
/* A builder name (initialised with seed) or a model file, by what exists. What b asks of a file must
 * be what it holds (ERR_CONFIG). b NULL asks for nothing. */
nn_graph *nn_model_open(const char *name_or_file, const nn_build *b, uint64_t seed, err *e);
/* Published weights (.pth/.pt/.th/.safetensors in torchvision's, timm's or akamaster's names) into a
 * built graph; every missing, extra or misshapen tensor is named in the sentence (first few). */
bool nn_import(nn_graph *g, const char *path, err *e);
/* The same for a network whose head, the layer that makes its output, may have other classes than the
 * file's. Then the head keeps the values it has; or, with row (n = g's classes), its class o becomes
 * the file's class row[o], of as many as `of`. */
typedef struct { const int32_t *row; int n, of; } nn_head_map;
typedef enum { NN_HEAD_LOADED, NN_HEAD_KEPT, NN_HEAD_PICKED } nn_head_fate;
typedef struct { nn_head_fate fate; const char *head; int tensors; } nn_transferred;   /* head: g's node; tensors: loaded */
bool nn_transfer(nn_graph *g, const char *path, const nn_head_map *map, nn_transferred *out, err *e);

/* ---- plans ---------------------------------------------------------------------------------------------- */

typedef enum {
    NN_INFER,                    /* batch norm folded, conv + bias + skip + activation in one step */
    NN_TRAIN,                    /* batch statistics, gradients of all trained parameters */
} nn_mode;

typedef struct nn_plan nn_plan;
/* The plan borrows g, which must outlive it; INFER copies (folded, packed) weights, TRAIN reads
 * g->param[].x at every forward and updates running statistics there. INFER takes a big batch through
 * its steps in groups of images that stay in the cache; results are the same to the bit. */
nn_plan *nn_plan_new(nn_graph *g, nn_mode mode, int batch, err *e);
void     nn_plan_free(nn_plan *p);
int      nn_plan_batch(const nn_plan *p);
float   *nn_plan_input(nn_plan *p, int which);           /* batch,H,W,C of the which-th input node */
const float *nn_plan_output(const nn_plan *p);           /* batch,H,W,C of g->output */
const float *nn_plan_value(const nn_plan *p, int node);  /* NULL if the plan does not keep it */
void     nn_plan_forward(nn_plan *p);
/* Gradients of the total loss; nn_plan_grad is valid until the next backward. */
void     nn_plan_backward(nn_plan *p);
double   nn_plan_loss(const nn_plan *p);                 /* weighted sum of the loss nodes */
float   *nn_plan_grad(nn_plan *p, int param);            /* NULL for NN_RUNNING */
/* Input gradient instead of dropping it (tests, reconstruction); call before the first backward. */
float   *nn_plan_input_grad(nn_plan *p, int which);      /* NULL unless made with nn_plan_want_input_grad */
nn_plan *nn_plan_new_with_input_grad(nn_graph *g, int batch, err *e);   /* TRAIN */
/* Dropout draws are a function of (seed, epoch, step, node, element). */
void     nn_plan_random(nn_plan *p, uint64_t seed, int64_t epoch, int64_t step);
/* >= 0 overrides every norm's momentum (1/(i+1) for step i averages the batches); < 0: attr's. */
void     nn_plan_momentum(nn_plan *p, double momentum);
/* INFER: fold and pack again after g's parameters changed. */
void     nn_plan_refresh(nn_plan *p);

typedef struct { size_t arena_bytes, live_bytes, weight_bytes, scratch_bytes; int steps; } nn_plan_info;
nn_plan_info nn_plan_describe(const nn_plan *p);         /* live: largest set alive at one step */
void     nn_plan_print(const nn_plan *p, buf *out);      /* one line per step: op, shape, road, offsets */

/* ---- the one ruler ------------------------------------------------------------------------------------------ */

typedef struct { double median_ms, p10_ms, p90_ms, mean_ms, stdev_ms; int samples, repeated; } nn_timing;
typedef struct { double median, stdev; } nn_share;       /* of a forward's time, from sample to sample */
typedef struct {
    int rounds;                  /* samples per candidate; 0: 31 */
    double min_sample_ms;        /* a sample repeats the forward until this long; 0: 2 ms */
    double warm_ms;              /* warm-up per candidate; 0: 100 ms */
    double spread;               /* accept when (p75-p25)/median is below, else more rounds; 0: 0.02 */
    nn_share *const *share;      /* per plan: room for a share per node of its graph. A step's share stands at the
                                  * first node it computes; medians add up to 1. NULL: not wanted */
    void (*tick)(void *ctx, int done, int total); void *ctx;   /* progress; may be NULL */
} nn_time_options;
/* Forward latency of n plans, rounds interleaved in a shuffled order; samples during which other
 * processes computed are repeated (at most as many again). Polls stop_requested: then ERR_STOPPED. */
bool nn_plan_time(nn_plan *const *plan, int n, const nn_time_options *o, nn_timing *out, err *e);

/* ---- affine algebra: convolutions as values, in double (ALGORITHM 2) ---------------------------------------- */

typedef struct {
    bool    identity;            /* K=1, S=1, P=0, no weights */
    int     cin, cout, groups;
    int     k[2], stride[2], pad[4];
    double *w, *b;               /* (cout, cin/groups, kh, kw), (cout); owned */
} nn_affine;
nn_affine nn_affine_identity(int channels);
/* conv2d node with its batch norm (-1: none) folded in double; dilation becomes a zero-stuffed kernel. */
bool nn_affine_conv(nn_affine *out, const nn_graph *g, int conv, int norm, err *e);
/* A slice node (option-A shortcut) as a 1×1 strided convolution. */
bool nn_affine_slice(nn_affine *out, const nn_graph *g, int slice, err *e);
/* second ∘ first, 2.2 and the structure table of 2.4. second must have pad 0 unless first is the
 * identity (2.3): otherwise ERR_INTERNAL. Depthwise stays compact, groups become the gcd. */
bool nn_affine_compose(nn_affine *out, const nn_affine *first, const nn_affine *second, err *e);
/* y = F(x) + x: one on the channel diagonal at tap P (2.5). Groups stay when the diagonal fits. */
bool nn_affine_add_skip(nn_affine *a, err *e);
/* y = F(x) + p(x): p embedded at tap offset P - pp, the kernel growing where p is larger. Result
 * groups = gcd. The caller sees to equal output sizes. */
bool nn_affine_add_projection(nn_affine *a, const nn_affine *p, err *e);
/* Expand groups to dense in place. */
bool nn_affine_dense(nn_affine *a, err *e);
void nn_affine_free(nn_affine *a);
/* Append the conv2d (with bias) that computes a, rounded to float once. Returns its id; `in` itself
 * for the identity. */
int  nn_affine_node(nn_graph *g, const char *name, int in, const nn_affine *a, err *e);

#endif
