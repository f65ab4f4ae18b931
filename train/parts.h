/* What the files of train share. Not for other folders. */
#ifndef LM_TRAIN_PARTS_H
#define LM_TRAIN_PARTS_H

#include "core/io.h"
#include "train/train.h"

/* ---- schedule.c ------------------------------------------------------------------------------- */

/* Learning rate of optimiser step `step` (0 … steps-1); `batches` steps are one epoch. */
double schedule_lr(const train_recipe *r, int64_t step, int64_t steps, int64_t batches);

/* ---- optim.c ---------------------------------------------------------------------------------- */

/* m and v of every trained parameter, in one block; running statistics have none. */
typedef struct {
    train_recipe recipe;
    int n;                       /* parameters of the graph */
    float **m, **v;              /* [n]; v is all NULL for SGD */
    float *memory;
} optimiser;
bool optim_init(optimiser *o, const train_recipe *r, const nn_graph *g, err *e);
void optim_free(optimiser *o);
/* Euclidean norm of all gradients of the last backward; not finite when any of them is not. */
double optim_norm(const nn_graph *g, nn_plan *plan);
/* What gradients are multiplied with so that their norm is at most clip (0: no limit). */
double optim_scale(double norm, double clip);
/* step counts from 0. */
void optim_step(optimiser *o, nn_graph *g, nn_plan *plan, double lr, double scale, int64_t step);
void optim_average(nn_graph *average, const nn_graph *g, double decay);   /* weights and statistics */

/* ---- metric.c --------------------------------------------------------------------------------- */

/* g's own preprocessing, or the data's when it has none, which must give what g takes. */
bool train_prep(const nn_graph *g, const data_set *s, data_prep *out, err *e);
bool train_classes_match(const nn_graph *g, const data_set *s, err *e);
/* Of one image: adds to n, loss sum and hits (top1, top5 hold counts). false: a logit is not finite. */
bool metric_add(eval_result *sum, const float *logit, int classes, int label, int32_t *pred);

/* ---- checkpoint.c ----------------------------------------------------------------------------- */

typedef struct { char name[128]; int rank; int64_t dim[4]; float *x; } state_slot;   /* x is borrowed */

/* What a run knows besides tensors. */
typedef struct {
    char    job[65];             /* which job this is a state of: 64 hexadecimal digits */
    int64_t step;
    double  loss_sum; int64_t loss_n;      /* of the epoch under way */
    double  last_loss;           /* mean of the last whole epoch */
    double  epoch_s;             /* spent in its steps */
    double  train_s, total_s;    /* spent in the steps of whole epochs; in all */
    eval_result val; int64_t val_step;     /* the last validation; -1: none yet */
    buf     metrics;             /* metrics.csv so far, its header included */
} train_state;

/* DIR/last.safetensors becomes DIR/previous.safetensors, then the state becomes last. When writing
 * fails both files are as they were. */
bool checkpoint_save(const char *dir, const state_slot *slot, int n, const train_state *s, err *e);
/* Fill slots and state from the last checkpoint, or from the one before when the last is damaged
 * (then it takes its place and `note` says so). Nothing is touched unless all of it is right. Without a checkpoint: true,
 * *found false. All damaged: ERR_DATA. Of another job (s->job): ERR_CONFIG. */
bool checkpoint_load(const char *dir, const state_slot *slot, int n, train_state *s, bool *found,
                     char note[1200], err *e);
/* Remove what killed writers left behind. */
void checkpoint_sweep(const char *dir);

/* ---- job.c ------------------------------------------------------------------------------------ */

/* Values that fit together: ranges of the recipe, data and network, teacher. */
bool job_check(const train_job *job, err *e);
/* SHA-256 over all that decides the outcome: recipe, seed, graph, starting weights, images. */
bool job_hash(const train_job *job, char out[65], err *e);

/* ---- log.c ------------------------------------------------------------------------------------ */

/* One finished epoch as a line of metrics.csv; val NULL: its cells stay empty. */
typedef struct { int64_t step; double epoch, lr, train_loss, images_per_s, seconds; } metrics_row;
void metrics_add(buf *csv, const metrics_row *r, const eval_result *val);
/* "2026-01-31T12:00:00Z text" at the end of the file. */
bool log_line(const char *path, const char *text, err *e);
bool path_join(char out[4096], const char *dir, const char *name, err *e);

#endif
