/* Inside search: what a solution does to the chain, and the walk that turns the original graph into
 * the pruned or the merged one. Included by the structural files of search and their tests. */
#ifndef LM_SEARCH_REWRITE_H
#define LM_SEARCH_REWRITE_H

#include "search/search.h"

/* The add reads a tensor of the path itself: no projection, no slice, nothing else in between. */
bool search_skip_is_identity(const search_chain *c, const search_skip *k);
/* The graph node a skip reads: what its projection or slice, or else its add, reads. */
int  search_skip_source(const search_chain *c, const search_skip *k);
/* Kernel size of the segment (i,j] with the convs in keep: largest of height and width (1.5), 0: none. */
int  search_kernel_of(const search_chain *c, const int *keep, int n_keep);
/* Total stride of (i,j]: largest of both directions. */
int  search_stride_of(const search_chain *c, int i, int j);
/* The conv that an entry becomes, per direction; groups are the common divisor of all that is merged into it. */
typedef struct { int k[2], stride[2], groups; } search_shape;
search_shape search_shape_of(const search_chain *c, const search_entry *row);

typedef struct {
    bool fused;                  /* the whole block is inside one segment and becomes one conv with it */
    bool empty;                  /* no conv of the branch is left: the skip alone remains (2.7) */
    bool identity;
    int  pad[4];                 /* zeros around (negative: cut from) what is added, sliced or projected */
    int  own[4];                 /* padding of the projection itself */
} skip_plan;

/* All arrays by position 0 … L. excess: by how many rows and columns (top, bottom, left, right) the
 * tensor of a node is larger than in the original, because the padding of convs behind it was moved
 * in front of it (2.3). */
typedef struct {
    const search_chain *c;
    const search_solution *s;
    int  *segment;               /* segment that conv l belongs to */
    bool *kept;
    bool *boundary;
    bool *active;                /* an activation follows node l */
    int (*excess)[4];
    int (*pad)[4];               /* of kept conv l */
    skip_plan *skip;             /* like c->skip */
} rewrite_plan;

/* Checks the solution against the chain: ERR_DATA. */
bool rewrite_plan_init(rewrite_plan *p, const search_chain *c, const search_solution *s, err *e);
void rewrite_plan_free(rewrite_plan *p);

/* Merged: one conv per segment. Its shape alone: with a pattern for weights, which costs nothing to make, and
 * padding that gives the right size. */
typedef enum { REWRITE_PRUNED, REWRITE_MERGED, REWRITE_SHAPES } rewrite_mode;
/* The graph of the plan; values come from `values` by name. owner, if not NULL, becomes the segment that each
 * node of the graph belongs to, -1: what no choice can change. A skip belongs to the segment it ends in. Freed by
 * the caller. */
nn_graph *rewrite_graph(const rewrite_plan *p, const nn_graph *values, rewrite_mode mode, int **owner, err *e);
/* Segment m as one affine conv (A.4), values from `values`; the identity when nothing is left. */
bool rewrite_segment(const rewrite_plan *p, int m, const nn_graph *values, nn_affine *out, err *e);

#endif
