/* Which steps of an INFER plan run how many images at a time.
 *
 * A batch of 32 images goes through memory between any two steps, and memory is many times slower
 * than the cache. So the steps are cut into stages; a stage takes a group of images through all its
 * steps before it takes the next group. Early steps have large maps and want few images; late steps
 * have heavy weights, which every group reads again, and want many. Between two stages the whole
 * batch is written down, so cuts belong where maps are small.
 *
 * The choice is the one that moves the fewest bytes to and from afar, found by dynamic programming
 * over (step, size of a group). It follows from shapes, threads and the size of the cache alone; an
 * image's result does not depend on it. */
#include <math.h>
#include <string.h>

#include "nn/op.h"

enum { SIZES = 33 };             /* powers of two below the batch, and the batch */
enum { WEIGHT_READS = 2 };       /* what reading a weight costs beside reading a value: measured */
enum { MACS_PER_BYTE = 50 };     /* so much arithmetic hides the fetching of a byte */
enum { CACHE_PER_L2 = 4 };       /* what a core has near, the third level counted, in sizes of its second: measured */
enum { SMALL_CACHE = 8192 };     /* bytes, of NN_PLAN_SMALL_GROUPS: many stages for small networks */

typedef struct {
    const nn_plan *p;
    double *alive;               /* per step: bytes of one image's values alive there */
    double *crossing;            /* … and of those made before it: what a cut in front of it writes */
    double cache;
    int size[SIZES], sizes;
} choice;

/* A cut would not keep a band from running as one. */
static double cut_cost(const choice *c, int i) { return c->p->step[i].before ? HUGE_VAL : 2 * c->crossing[i]; }

static double image_bytes(const nn_plan *p, int node)
{
    const int64_t *d = p->g->node[node].dim;
    return (double)d[1] * (double)d[2] * (double)d[3] * sizeof(float);
}

static void note_life(choice *c, int node, int first, int last)
{
    const double bytes = image_bytes(c->p, node);
    for (int i = first; i <= last; i++) {
        c->alive[i] += bytes;
        if (i > first)
            c->crossing[i] += bytes;
    }
}

static void find_life(choice *c, int *last)
{
    const nn_plan *p = c->p;
    for (int i = 0; i < p->n_step; i++) {
        const nn_step *s = &p->step[i];
        last[s->out] = i;
        for (int k = 0; k < s->n_in; k++)
            last[s->in[k]] = i;
        if (s->residual >= 0)
            last[s->residual] = i;
    }
    for (int i = 0; i < p->g->n_node; i++)
        if (p->home[i] >= 0)
            note_life(c, i, p->home[i], last[i]);
}

/* Bytes from afar for one image of step i: what does not fit the cache and is not fetched while
 * something else is computed, and the weights' share. */
static double far_bytes(const choice *c, int i, int size)
{
    const nn_step *s = &c->p->step[i];
    double weights = 0;
    if (s->op->flags & NN_IS_LOSS && size < c->p->batch)
        return HUGE_VAL;         /* a mean over the batch */
    for (int k = 0; k < s->node->n_w; k++)
        weights += (double)nn_param_count(s->w[k]) * sizeof(float);
    const double hidden = (double)nn_node_macs(c->p->g, s->id) / MACS_PER_BYTE;
    const double values = c->alive[i] * size > c->cache ? fmax(0, c->alive[i] - hidden) : 0;
    return values + WEIGHT_READS * weights / size;
}

static int cheapest(const double *bytes, int n)
{
    int best = n - 1;            /* of equal ones the largest size */
    for (int k = n - 1; k >= 0; k--)
        best = bytes[k] < bytes[best] ? k : best;
    return best;
}

/* Viterbi: bytes[k] moved when the steps up to i end in groups of size[k]; from[i][k] the size of
 * the step before, which is the same or, after a cut that writes and reads what crosses, the best. */
static void choose_sizes(const choice *c, unsigned char (*from)[SIZES], int *pick)
{
    double bytes[SIZES] = { 0 };
    for (int i = 0; i < c->p->n_step; i++) {
        const int other = cheapest(bytes, c->sizes);
        const double cut = bytes[other] + cut_cost(c, i);
        for (int k = 0; k < c->sizes; k++) {
            from[i][k] = (unsigned char)(cut < bytes[k] ? other : k);
            bytes[k] = fmin(cut, bytes[k]) + far_bytes(c, i, c->size[k]);
        }
    }
    int k = cheapest(bytes, c->sizes);
    for (int i = c->p->n_step - 1; i >= 0; k = from[i--][k])
        pick[i] = c->size[k];
}

/* Groups of about equal size: the last one may overlap the one before it. */
static int even_size(int batch, int size)
{
    const int groups = (batch - 1) / size + 1;
    return (batch - 1) / groups + 1;
}

static void make_stages(nn_plan *p, const int *pick)
{
    p->n_stage = 0;
    for (int i = 0; i < p->n_step; i++) {
        p->step[i].batch = even_size(p->batch, pick[i]);
        nn_stage *s = &p->stage[p->n_stage];
        if (p->n_stage && p->step[i].batch == s[-1].group)
            s[-1].end = i + 1;
        else {
            *s = (nn_stage){ i, i + 1, p->step[i].batch };
            p->n_stage++;
        }
        p->step[i].stage = p->n_stage - 1;
    }
}

static void one_stage(nn_plan *p)
{
    p->n_stage = p->n_step > 0;
    p->stage[0] = (nn_stage){ 0, p->n_step, p->batch };
}

/* The unfolding road adds up by the size of its products, so there batches stay whole. */
bool nn_plan_cut(nn_plan *p, unsigned options, err *e)
{
    one_stage(p);
    if (p->mode != NN_INFER || p->batch == 1 || options & NN_PLAN_WHOLE_BATCH || !strcmp(core_conv_road(), "im2col"))
        return true;
    const size_t n = (size_t)p->n_step + 1, nodes = (size_t)p->g->n_node;
    choice c = { .p = p, .cache = options & NN_PLAN_SMALL_GROUPS ? (double)SMALL_CACHE
                                  : (double)core_l2_bytes() * CACHE_PER_L2 * par_threads() };
    c.alive = mem_new(2 * n, sizeof *c.alive, e);
    int *ints = mem_new(n + nodes, sizeof *ints, e);
    unsigned char(*from)[SIZES] = mem_new(n, sizeof *from, e);
    const bool ok = c.alive && ints && from;
    if (ok) {
        c.crossing = c.alive + n;
        for (int64_t size = 1; size < p->batch; size *= 2)
            c.size[c.sizes++] = (int)size;
        c.size[c.sizes++] = p->batch;
        find_life(&c, ints + n);
        choose_sizes(&c, from, ints);
        make_stages(p, ints);
    }
    mem_free(c.alive);
    mem_free(ints);
    mem_free(from);
    return ok;
}
