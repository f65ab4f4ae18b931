/* search: which activations and convolutions to remove under a latency budget, and how to merge what
 * is left into fewer convolutions, exactly. LayerMerge (ICML 2024) and its relatives: Depth (2023)
 * and LayerOnly. Never computes a convolution itself.
 *
 * The graph becomes a chain (positions, skips, barriers); the chain gives the entries: rows
 * (st,end,ker,is_dw) that both tables share; two tables give the front of all solutions at once; a
 * solution applied to the graph is a pruned graph; a pruned graph, fine-tuned, merges into a smaller
 * one. Section numbers are of the algorithm specification. */
#ifndef LM_SEARCH_H
#define LM_SEARCH_H

#include "core/core.h"
#include "data/data.h"
#include "nn/nn.h"
#include "train/train.h"

/* ---- chain (1.1–1.3, 7) ----------------------------------------------------------------------------- */

typedef struct {                 /* conv l with its norm and activation; l = 1 … L */
    int  conv, norm, add, act;   /* node ids, -1 if absent; add: a skip ends here */
    int  cin, cout, k[2], stride[2];
    bool depthwise, irreducible;
    double l1;                   /* sum |W| of the pretrained conv */
} search_pos;

typedef struct {                 /* the tensor of chain node s is added at chain node t */
    int  s, t, add;              /* add: graph node */
    int  conv, norm, slice;      /* projection (conv with norm or -1, or an option-A slice); -1: identity */
    bool fusible;
} search_skip;

typedef struct {
    const nn_graph *g;           /* borrowed */
    int  L;
    search_pos  *pos;            /* [L+1]; pos[0] unused */
    int         *node;           /* [L+1] graph node holding chain node l (after skip and activation) */
    bool        *barrier;        /* [L+1] */
    bool        *native;         /* [L+1] an activation is there in the original */
    search_skip *skip; int n_skip;
    nn_opcode    act;            /* the network's activation, for nodes that gain one (4.1) */
} search_chain;
/* Derived from the graph alone. No conv to search: ERR_CONFIG. */
search_chain *search_chain_new(const nn_graph *g, err *e);
void          search_chain_free(search_chain *c);
void          search_chain_print(const search_chain *c, buf *out);      /* chain.txt */
bool          search_segment_valid(const search_chain *c, int i, int j);   /* 1.4 */

/* ---- entries and tables (1.5, 9) ---------------------------------------------------------------------- */

typedef struct {                 /* positions st+1 … end become one conv */
    int  id, st, end, ker, str;  /* ker 0: the identity */
    bool is_dw;
    int *keep, n_keep;           /* conv_comb: the convs that stay, ascending; owned */
    double  time_ms, stdev_ms;   /* NaN: not known */
    int64_t time_ns;             /* ceil of the decimal text in ns; -1: not known */
    double  importance;          /* NaN: not known */
    int64_t importance_fx;       /* 1e-12 units, round to nearest */
} search_entry;
typedef struct { search_entry *row; int n; int L; } search_table;
extern const search_entry search_entry_blank;            /* nothing known: NaN, -1, stride 1 */
/* All entries, i ascending, then j, then ker, then dense before depthwise; ids 0,1,2,…
 * identity: offer ker 0 for segments without irreducible convs. */
bool search_enumerate(const search_chain *c, bool identity, search_table *out, err *e);
void search_table_free(search_table *t);
search_entry *search_table_find(const search_table *t, int st, int end, int ker, bool is_dw);

/* The reference's CSV, both ways: columns in any order, extra columns and an unnamed index allowed.
 * Unknown or duplicated keys, missing cells, NaN or negative times: ERR_DATA naming file and line. */
bool search_read_times(search_table *out, const char *path, err *e);
bool search_read_importance(search_table *out, const char *path, err *e);   /* normalised importance */
bool search_write_entries(const search_table *t, const char *path, err *e);     /* inspect --segments */
bool search_write_times(const search_table *t, const char *path, err *e);
bool search_write_importance(const search_table *t, const char *path, err *e);
/* Join by key; different key sets: ERR_DATA listing the first missing ones. */
bool search_join(search_table *out, const search_table *times, const search_table *importance, err *e);
void search_keep_print(const int *keep, int n, buf *out);        /* "(3, 4)" "(3,)" "()" */
bool search_keep_parse(const char *text, int **keep, int *n, err *e);

/* ---- solving (5) --------------------------------------------------------------------------------------- */

typedef struct {
    char    method[16];
    bool    feasible;
    int64_t budget_ns, time_ns, least_ns;   /* all three include fixed_ns; least -1: not known */
    int64_t fixed_ns;            /* what no choice can change (3.3) */
    int64_t rounding_ns;         /* better ones closer than this to the budget may have been missed; 0: none */
    double  importance;
    int *act, n_act;             /* boundaries a_1 … a_n = L, with 0 first (reference: act) */
    int *conv, n_conv;           /* kept convs, ascending, with 0 (the stem) first */
    search_entry *segment; int n_segment;
} search_solution;
void search_solution_free(search_solution *s);
bool search_solution_write(const search_solution *s, const char *path, err *e);
void search_solution_json(const search_solution *s, buf *out);
bool search_solution_read(search_solution *s, const char *path, err *e);

typedef struct { int64_t time_ns, importance_fx; int n_segment, entry, prev; } search_point;
typedef struct search_front search_front;
/* The exact front of 5.2 over all paths 0 → L; ties as in 5.1. A node that no path reaches is named. */
search_front *search_front_new(const search_table *t, err *e);
void  search_front_free(search_front *f);
int   search_front_count(const search_front *f);                 /* points, time ascending */
/* A front beyond a million points is thinned: no time in it is too early, and none is later than it
 * is by more than this. 0: the front is exact. */
int64_t search_front_rounding(const search_front *f);
search_point search_front_at(const search_front *f, int i);
/* The best point with fixed + time within budget (feasible false, least_ns set, when there is none). */
bool  search_front_solve(const search_front *f, const search_table *t, int64_t budget_ns,
                         int64_t fixed_ns, search_solution *out, err *e);
/* Conv l by itself: the entry (l-1,l] with the largest kernel. None: ERR_DATA. */
const search_entry *search_single_layer(const search_table *t, int l, err *e);
/* Time of the original chain: all of these. */
bool  search_base_time(const search_table *t, int64_t *ns, err *e);
/* Methods are rows: which entries of the table each may use. */
typedef struct { const char *name, *summary; bool (*offers)(const search_entry *row); } search_method;
extern const search_method search_methods[];             /* ends with name NULL */
const search_method *search_method_find(const char *name);
/* The rows a method offers, as a table of its own (rows borrow keep: free only .row with mem_free). */
bool  search_filter(const search_table *t, const search_method *m, search_table *out, err *e);
/* The reference's binned recurrence: int(ms*prec) ticks, rounding to 7 decimals, its ties. */
bool  search_solve_reference(const search_table *t, double budget_ms, double prec,
                             search_solution *out, err *e);
/* "13.4" ms → ns exactly (decimal text, no binary detour); up: ceil, else floor. */
bool  search_parse_ms(const char *text, bool up, int64_t *ns);

/* ---- pruned and merged networks (2, 4.1, 6.1) ------------------------------------------------------------ */

/* The pruned, un-merged network: kept convs with the original's values, padding moved to the first
 * kept conv of each segment, skips padded or cropped, activations at boundaries, vanished blocks y = x. */
nn_graph *search_prune(const search_chain *c, const search_solution *s, err *e);
/* Only one entry replaced, everything else original (4.1): the solution that importance scores. */
bool search_single_entry(const search_chain *c, const search_entry *entry, search_solution *out, err *e);
/* pruned: search_prune's graph, possibly trained since. Every segment becomes one conv (A.4). */
nn_graph *search_merge(const search_chain *c, const search_solution *s, const nn_graph *pruned, err *e);

typedef struct { bool verified; double max_abs, max_rel, variation, agreement; int64_t n; } search_verdict;
/* Outputs of two graphs on noise (set NULL) or images: max difference relative to the largest output.
 * variation: how much outputs change from image to image, by the same measure. A network that says the
 * same of every image (0) proves nothing by agreeing with another. */
bool search_verify(nn_graph *a, nn_graph *b, const data_set *set, int64_t n, uint64_t seed,
                   double tolerance, search_verdict *out, err *e);

/* ---- the two tables --------------------------------------------------------------------------------------- */

typedef struct {
    int batch;
    nn_time_options time;
    void (*tick)(void *ctx, int done, int total); void *ctx;
} search_latency_options;
/* 3.3: what no choice can change (before the chain, its pools, behind it), the whole network, and the
 * factor that was put on every number so that fixed + sum of single layers = base (near 1). All at the
 * machine's pace in the mean over the measurement. */
typedef struct { double fixed_ms, base_ms, scale; } search_fixed;
/* Fill time_ms, stdev_ms, time_ns of every entry; same shape, same number. t needs the single layers. */
bool search_measure(const search_chain *c, search_table *t, const search_latency_options *o,
                    search_fixed *fixed, err *e);

typedef enum { IMP_FINETUNE, IMP_BN, IMP_RECONSTRUCT } search_score;
typedef struct {
    search_score method;
    double  epochs, lr;
    int     batch;
    data_augment augment;        /* of the short fine-tuning */
    int64_t train_images, score_images;      /* disjoint ranges of data_pick on the training split */
    int     scores;              /* repeats over seeds, averaged; standard error reported */
    bool    keep_single;         /* do not reset single-layer entries (4.1.4) */
    uint64_t seed;
    int     from, to;            /* entry ids [from,to); to 0: all */
    int     shard, shards;       /* --shard i/n */
    void (*tick)(void *ctx, int done, int total, const char *note); void *ctx;
} search_importance_options;
/* Image counts that are 0 become a tenth of `images`, at most 50000. */
void search_importance_defaults(search_importance_options *o, int64_t images);
/* Are there enough of them? */
bool search_importance_fits(const search_importance_options *o, int64_t images, err *e);
/* Write the missing parts importance<id>.csv of the range into dir (atomic; valid ones skipped; claims
 * let several processes share dir). Parts carry a hash of weights, data and settings. */
bool search_importance_run(const search_chain *c, const search_table *t, const data_set *train,
                           const search_importance_options *o, const char *dir, err *e);
/* All parts → importance.csv and normalized_importance.csv; lists missing, mixed or duplicate parts. */
bool search_importance_collect(const search_chain *c, search_table *t, const char *dir, err *e);

/* ---- reports ------------------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;            /* "base" "pruned" "merged" */
    double top1, loss, median_ms, p10_ms, p90_ms, predicted_ms;   /* NaN: not applicable */
    int64_t macs, params;
} search_row;
void search_report_table(const search_row *row, int n, buf *out);        /* aligned text */
/* Every point, with what no choice can change in its time: time_ms,importance,segments. */
bool search_front_write(const search_front *f, int64_t fixed_ns, const char *path, err *e);
/* Run folder of compress (report.json, front.csv, solution.json) or of train (metrics.csv, from which it
 * makes report.json too) → report.svg and report.html. */
bool search_report(const char *run_dir, err *e);

/* ---- the whole path ------------------------------------------------------------------------------------------- */

typedef struct {
    const nn_graph *base;
    const data_set *train, *val;
    const char *run_dir, *config;            /* config: JSON that run_dir is pinned to */
    double  speedup;             /* budget = base latency / speedup, or … */
    int64_t budget_ns;           /* … this, when speedup is 0 */
    const search_method *method;
    bool    identity;
    bool    train_base;          /* base has random weights and is trained first, … */
    train_recipe base_recipe, tune_recipe;   /* … so; fine-tuning of the pruned network */
    bool    distill;             /* fine-tune with the base network as the teacher */
    search_latency_options latency;
    search_importance_options importance;
    uint64_t seed;
    void (*progress)(void *ctx, const char *stage, int64_t done, int64_t total, const char *note);
    void (*warn)(void *ctx, const char *sentence);   /* what a user should know; may be NULL */
    void *ctx;
} search_job;
typedef struct {
    search_row row[3];           /* base, pruned, merged */
    search_verdict verdict;      /* pruned against merged: images of the validation split and noise */
    double  speedup, predicted_speedup, budget_ms;
    double  table_base_ms;       /* of the base when the table was made. row[].predicted_ms is the table's, times
                                  * what the base takes now / this; budget_ms is the table's */
    int     entries, batch;
    double  least_ms;            /* of ERR_NEGATIVE because of budget_ms: the least feasible latency; else 0 */
} search_outcome;
/* base.safetensors chain.txt time.csv importance/ normalized_importance.csv front.csv solution.json
 * pruned.safetensors metrics.csv checkpoints/ tuned.safetensors merged.safetensors verify.json report.json
 * report.svg report.html in run_dir.
 * A file that is there is not made again: run again to continue. The solution is tightened until the
 * merged network *measures* the speed-up asked for (before any fine-tuning is spent on it). */
bool search_compress(const search_job *job, search_outcome *out, err *e);

#endif
