/* train: loops. Knows how to make a network better and how to measure how good it is; does not know
 * why it is asked. A job is (graph, data, recipe, seed): the same job gives the same bits for any
 * number of threads, and also when it is killed and run again. */
#ifndef LM_TRAIN_H
#define LM_TRAIN_H

#include "core/core.h"
#include "data/data.h"
#include "nn/nn.h"

typedef enum { OPT_SGD, OPT_ADAM, OPT_ADAMW } train_opt;
typedef enum { SCHED_COSINE, SCHED_STEP, SCHED_CONSTANT } train_sched;

typedef struct {                 /* numbers of the paper's tables; a row of recipes.c */
    const char *name, *source;   /* "cifar-resnet", "He et al. 2016, 4.2" */
    double epochs;               /* may be fractional: steps = round(epochs * batches) */
    int    batch;
    train_opt opt;
    double lr, momentum, beta2, opt_eps;   /* momentum is Adam's beta1 */
    bool   nesterov;
    double weight_decay;
    bool   decay_all;            /* also norms and biases */
    train_sched sched;           /* per iteration; STEP: x0.1 at 50 % and 75 % of the steps */
    double warmup_epochs;        /* linear from 0 */
    double smoothing, ema, clip; /* 0: off; clip: global gradient norm */
    double kd, temperature;      /* weight of the distillation term; needs a teacher */
    data_augment augment;
} train_recipe;
extern const train_recipe train_recipes[];               /* ends with name NULL */
const train_recipe *train_recipe_find(const char *name);
/* The row called name (ERR_USAGE, with the list, when there is none); for name NULL the one for networks
 * of g's input size, to train them (g NULL: small ones) or to continue from weights that were trained. */
const train_recipe *train_recipe_for(const char *name, const nn_graph *g, bool trained, err *e);
/* Other epochs than the recipe's: the warm-up is at most a quarter of them. */
void train_recipe_shorten(train_recipe *r, double epochs);

/* A model file, or a builder whose classes and input come from the data where b leaves them 0, and
 * which gets the data's preprocessing for its input size. Other classes than the data's: ERR_CONFIG. */
nn_graph *train_open_model(const char *name_or_file, const nn_build *b, const data_set *s,
                           uint64_t seed, err *e);

/* Transfer: a network for the data's classes with the weights of `from`, published ones or a model
 * file. The network is `model`, as above, or when that is NULL the one in the model file `from`. Where
 * the classes differ the head is a new one, drawn with seed; with map, "1000to:FILE", it is the rows of
 * the 1000 that FILE lists, one number per line, in the order of the data's classes. note: what
 * was loaded, as a sentence. */
nn_graph *train_open_pretrained(const char *model, const char *from, const char *map, const nn_build *b,
                                const data_set *s, uint64_t seed, buf *note, err *e);

/* The data's classes become those of a network with more: "1000to:FILE", FILE as above. */
bool train_relabel(data_set *s, const char *map, err *e);

/* ---- measuring ------------------------------------------------------------------------------------ */

typedef struct { int64_t n; double top1, top5, loss, seconds; } eval_result;   /* percent; mean loss */
/* Evaluate g (INFER plan, its own prep) on index[0..n) of s, or on all of it when index is NULL.
 * pred: n labels or NULL (-1: could not be decoded; such images are not in the result). batch 0: a
 * default. An output that is not finite: ERR_NONFINITE. stop_requested(): ERR_STOPPED. */
bool eval_run(nn_graph *g, const data_set *s, const int32_t *index, int64_t n, int batch,
              eval_result *out, int32_t *pred, err *e);
/* Running statistics of all norms from the training-mode forward over the images (cumulative mean). */
bool train_bn_estimate(nn_graph *g, const data_set *s, const int32_t *index, int64_t n, int batch,
                       uint64_t seed, err *e);

/* ---- training -------------------------------------------------------------------------------------- */

typedef struct {
    int64_t step, steps;         /* optimiser steps done and in all */
    double epoch, lr, loss, images_per_s;   /* loss: running mean of this epoch */
    const eval_result *val;      /* after an epoch, else NULL */
} train_tick;

typedef struct {
    nn_graph *g;                 /* trained in place; holds the EMA weights at the end when ema > 0 */
    nn_graph *teacher;           /* NULL unless recipe.kd > 0 */
    const data_set *train, *val; /* val may be NULL */
    const int32_t *index; int64_t n;        /* training subset; NULL: all */
    const int32_t *val_index; int64_t n_val;
    train_recipe recipe;
    uint64_t seed;
    int  loader_workers;         /* 0: one */
    double val_every;            /* epochs between validations; 0: only at the end */
    /* With a run folder: metrics.csv, log.txt, checkpoints/last.safetensors (weights, running stats,
     * optimiser, EMA, step, metrics so far), written every checkpoint_s seconds, at each epoch's end
     * and on stop; an existing one made by the same job is continued, by another is refused
     * (ERR_CONFIG). NULL: nothing is written. */
    const char *run_dir;
    double checkpoint_s;         /* 0: 30 */
    const char *identity;        /* text that must match for resuming (recipe, data, hash of start) */
    void (*tick)(void *ctx, const train_tick *t); void *ctx;
    void (*note)(void *ctx, const char *text);   /* the lines of log.txt; may be NULL, as may tick */
} train_job;

typedef struct { eval_result val; double train_loss, images_per_s; int64_t steps; bool resumed; } train_result;
/* Non-finite loss or gradient: ERR_NONFINITE naming the step. stop_requested(): saved, ERR_STOPPED. */
bool train_run(const train_job *job, train_result *out, err *e);

/* ---- run folders -------------------------------------------------------------------------------------- */

/* Create dir, write config.json and env.json; an existing config.json with other content is refused
 * with a sentence naming the first key that differs. */
bool run_dir_open(const char *dir, const char *config_json, err *e);
/* A dated line at the end of dir/log.txt. */
bool run_dir_log(const char *dir, const char *text, err *e);

#endif
