/* Are two networks the same function? Outputs on noise or on images, side by side. */
#include "search/search.h"

#include <math.h>
#include <string.h>

enum { BATCH_MOST = 64, BATCH_VALUES = 1 << 20, NOISE_IMAGES = 32 };

typedef struct {
    nn_plan *a, *b;
    int64_t in, out;             /* values per image */
    double tolerance, top;       /* largest |output| of a so far */
    double varies;               /* largest change of an output of a from the first image's */
    float  *first;               /* that image's outputs */
    int64_t agreed;
    search_verdict *v;
} comparison;

static int64_t values(const int64_t *d) { return d[1] * d[2] * d[3]; }

static bool same_ends(const nn_graph *a, const nn_graph *b, err *e)
{
    const nn_node *x = nn_input(a, 0), *y = nn_input(b, 0);
    if (!x || !y)
        return err_set(e, ERR_CONFIG, "%s: the network has no input", x ? b->arch : a->arch);
    const int64_t *p = x->dim, *q = y->dim;
    const char *what = "input";
    if (!memcmp(p, q, sizeof x->dim)) {
        p = a->node[a->output].dim;
        q = b->node[b->output].dim;
        what = "output";
    }
    if (memcmp(p, q, sizeof x->dim))
        return err_set(e, ERR_CONFIG, "the networks cannot be compared: %s %lldx%lldx%lld and %lldx%lldx%lld", what,
                       (long long)p[1], (long long)p[2], (long long)p[3],
                       (long long)q[1], (long long)q[2], (long long)q[3]);
    return true;
}

static int64_t argmax(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* The first n images of a's input have been filled. */
static bool compare(comparison *c, int n, err *e)
{
    memcpy(nn_plan_input(c->b, 0), nn_plan_input(c->a, 0), (size_t)(n * c->in) * sizeof(float));
    nn_plan_forward(c->a);
    nn_plan_forward(c->b);
    const float *a = nn_plan_output(c->a), *b = nn_plan_output(c->b);
    if (!vec_is_finite(n * c->out, a))
        return err_set(e, ERR_NONFINITE, "nothing can be verified: the output of the network is not finite");
    for (int64_t i = 0; i < n * c->out; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        c->v->max_abs = d > c->v->max_abs ? d : isnan(d) ? (double)INFINITY : c->v->max_abs;
        c->top = fmax(c->top, fabs((double)a[i]));
    }
    if (c->v->n == 0)
        memcpy(c->first, a, (size_t)c->out * sizeof(float));
    for (int64_t i = 0; i < n * c->out; i++)
        c->varies = fmax(c->varies, fabs((double)a[i] - (double)c->first[i % c->out]));
    /* What rounding may swap is a tie. */
    double tie = 2 * fmin(c->tolerance, 1e-3) * c->top;
    for (int i = 0; i < n; i++, a += c->out, b += c->out) {
        int64_t first = argmax(a, c->out), second = argmax(b, c->out);
        c->agreed += first == second || (double)a[first] - (double)a[second] <= tie;
    }
    c->v->n += n;
    return true;
}

static bool compare_noise(comparison *c, int64_t n, uint64_t seed, err *e)
{
    int batch = nn_plan_batch(c->a);
    for (int64_t at = 0; at < n; at += batch) {
        if (stop_requested())
            return err_set(e, ERR_STOPPED, "stopped while verifying");
        int now = (int)(n - at < batch ? n - at : batch);
        for (int i = 0; i < now; i++) {
            rng r = rng_at(seed, RNG_NOISE, 0, (uint64_t)(at + i));
            float *x = nn_plan_input(c->a, 0) + i * c->in;
            for (int64_t k = 0; k < c->in; k++)
                x[k] = (float)rng_normal(&r);
        }
        if (!compare(c, now, e))
            return false;
    }
    return true;
}

static bool prep_of(const nn_graph *g, const data_set *set, data_prep *out, err *e)
{
    if (g->prep[0])
        return data_prep_parse(out, g->prep, e);
    const int64_t *d = nn_input(g, 0)->dim;
    *out = data_default_prep(set);
    out->h = (int)d[1];
    out->w = (int)d[2];
    out->c = (int)d[3];
    return true;
}

static bool compare_images(comparison *c, const nn_graph *g, const data_set *set, int64_t n, err *e)
{
    int64_t all = data_count(set);
    loader_options o = { .set = set, .n = n, .batch = nn_plan_batch(c->a) };
    if (!prep_of(g, set, &o.prep, e))
        return false;
    if ((int64_t)o.prep.h * o.prep.w * o.prep.c != c->in)
        return err_set(e, ERR_CONFIG, "%s: preprocessing makes %dx%dx%d, the network takes %lld values", g->arch,
                       o.prep.h, o.prep.w, o.prep.c, (long long)c->in);
    int32_t *index = mem_new((size_t)n, sizeof *index, e);
    for (int64_t i = 0; index && i < n; i++)
        index[i] = (int32_t)(i * all / n);                 /* evenly, so that all classes are met */
    o.index = index;
    data_loader *l = index ? loader_new(&o, e) : NULL;
    bool ok = l != NULL;
    data_batch b = { .n = 1 };
    while (ok && b.n > 0) {
        ok = loader_next(l, &b, e) && (!stop_requested() || err_set(e, ERR_STOPPED, "stopped while verifying"));
        if (ok && b.n > 0) {
            memcpy(nn_plan_input(c->a, 0), b.x, (size_t)(b.n * c->in) * sizeof(float));
            ok = compare(c, b.n, e);
        }
    }
    loader_free(l);
    mem_free(index);
    return ok;
}

bool search_verify(nn_graph *a, nn_graph *b, const data_set *set, int64_t n, uint64_t seed,
                   double tolerance, search_verdict *out, err *e)
{
    *out = (search_verdict){ 0 };
    if (!same_ends(a, b, e))
        return false;
    int64_t most = set ? data_count(set) : INT64_MAX;
    if (n <= 0 || n > most)
        n = set ? most : NOISE_IMAGES;
    comparison c = { .in = values(nn_input(a, 0)->dim), .out = values(a->node[a->output].dim),
                     .tolerance = tolerance, .v = out };
    int64_t batch = BATCH_VALUES / c.in;
    batch = batch < 1 ? 1 : batch > BATCH_MOST ? BATCH_MOST : batch;
    batch = batch > n ? n : batch;
    c.a = nn_plan_new(a, NN_INFER, (int)batch, e);
    c.b = c.a ? nn_plan_new(b, NN_INFER, (int)batch, e) : NULL;
    c.first = c.b ? mem_new((size_t)c.out, sizeof *c.first, e) : NULL;
    bool ok = c.first && (set ? compare_images(&c, a, set, n, e) : compare_noise(&c, n, seed, e));
    if (ok) {
        out->max_rel = c.top > 0 ? out->max_abs / c.top : out->max_abs > 0 ? (double)INFINITY : 0;
        out->variation = c.top > 0 ? c.varies / c.top : 0;
        out->agreement = out->n > 0 ? (double)c.agreed / (double)out->n : 0;
        out->verified = out->n > 0 && out->max_rel <= tolerance && c.agreed == out->n;
    }
    nn_plan_free(c.a);
    nn_plan_free(c.b);
    mem_free(c.first);
    return ok;
}
