/* Measuring a network on images: top-1, top-5, mean loss; and the batch-norm statistics that go with
 * its weights. */
#include <math.h>
#include <string.h>

#include "train/parts.h"

/* ---- do network and data fit together? --------------------------------------------------------- */

static int64_t classes_of(const nn_graph *g) {
    const int64_t *d = g->node[g->output].dim;
    return d[1] * d[2] * d[3];
}

bool train_prep(const nn_graph *g, const data_set *s, data_prep *out, err *e) {
    if (!g->prep[0]) *out = data_default_prep(s);
    else if (!data_prep_parse(out, g->prep, e)) return err_note(e, "preprocessing of %s", g->arch);
    const nn_node *in = nn_input(g, 0);
    if (!in) return err_set(e, ERR_CONFIG, "%s has no input", g->arch);
    if (out->h != in->dim[1] || out->w != in->dim[2] || out->c != in->dim[3])
        return err_set(e, ERR_CONFIG, "preprocessing gives images of %dx%dx%d, %s takes %lldx%lldx%lld",
                       out->h, out->w, out->c, g->arch, (long long)in->dim[1], (long long)in->dim[2],
                       (long long)in->dim[3]);
    return true;
}

bool train_classes_match(const nn_graph *g, const data_set *s, err *e) {
    if (classes_of(g) == data_classes(s)) return true;
    return err_set(e, ERR_CONFIG, "%s has %lld classes, the data has %d", g->arch,
                   (long long)classes_of(g), data_classes(s));
}

/* ---- one image ---------------------------------------------------------------------------------- */

bool metric_add(eval_result *sum, const float *logit, int classes, int label, int32_t *pred) {
    int best = 0, before = 0;                 /* classes that rank above the label */
    for (int c = 0; c < classes; c++) {
        if (!isfinite(logit[c])) return false;
        if (logit[c] > logit[best]) best = c;
        before += logit[c] > logit[label] || (logit[c] == logit[label] && c < label);
    }
    double z = 0;
    for (int c = 0; c < classes; c++) z += exp((double)logit[c] - (double)logit[best]);
    sum->loss += log(z) + (double)logit[best] - (double)logit[label];
    sum->top1 += before < 1;
    sum->top5 += before < 5;
    sum->n++;
    if (pred) *pred = best;
    return true;
}

/* ---- a set --------------------------------------------------------------------------------------- */

static int default_batch(const data_prep *p, int64_t n) {
    int64_t batch = p->h * p->w <= 64 * 64 ? 128 : 32;
    return (int)(batch < n ? batch : n);
}

typedef struct {
    nn_plan *plan; data_loader *loader;
    const data_set *set;
    const int32_t *index;        /* which images; NULL: all */
    int classes; int64_t floats;
    int64_t at;                  /* place in the list of images */
} evaluator;

static bool add_batch(evaluator *v, const data_batch *b, eval_result *sum, int32_t *pred, err *e) {
    memcpy(nn_plan_input(v->plan, 0), b->x, (size_t)(b->n * v->floats) * sizeof(float));
    nn_plan_forward(v->plan);
    const float *y = nn_plan_output(v->plan);
    for (int i = 0; i < b->n; i++, v->at++) {
        int32_t *guess = pred ? &pred[v->at] : NULL;
        if (guess) *guess = -1;
        /* The loader puts another image in the place of a bad one; that one counts only once. */
        if (b->index[i] != (v->index ? v->index[v->at] : (int32_t)v->at)) continue;
        if (!metric_add(sum, y + (int64_t)i * v->classes, v->classes, b->label[i], guess))
            return err_set(e, ERR_NONFINITE, "%s: the output of the network is not finite",
                           data_name(v->set, b->index[i]));
    }
    return true;
}

static bool add_all(evaluator *v, eval_result *sum, int32_t *pred, err *e) {
    data_batch b;
    loader_seek(v->loader, 0, 0);
    while (loader_next(v->loader, &b, e)) {
        if (!b.n) return true;
        if (stop_requested()) return err_set(e, ERR_STOPPED, "stopped while evaluating");
        if (!add_batch(v, &b, sum, pred, e)) return false;
    }
    return false;
}

bool eval_run(nn_graph *g, const data_set *s, const int32_t *index, int64_t n, int batch,
              eval_result *out, int32_t *pred, err *e) {
    loader_options o = { .set = s, .index = index, .n = index ? n : data_count(s) };
    *out = (eval_result){0};
    if (!train_classes_match(g, s, e) || !train_prep(g, s, &o.prep, e)) return false;
    if (o.n < 1) return err_set(e, ERR_CONFIG, "there are no images to evaluate");
    o.batch = batch > 0 ? batch : default_batch(&o.prep, o.n);
    if (o.batch > o.n) o.batch = (int)o.n;

    evaluator v = { .set = s, .index = index, .classes = data_classes(s),
                    .floats = (int64_t)o.prep.h * o.prep.w * o.prep.c };
    v.plan = nn_plan_new(g, NN_INFER, o.batch, e);
    v.loader = v.plan ? loader_new(&o, e) : NULL;
    int64_t start = clock_ns();
    bool ok = v.loader && add_all(&v, out, pred, e);
    loader_free(v.loader);
    nn_plan_free(v.plan);
    if (!ok || !out->n) return false;

    out->seconds = (double)(clock_ns() - start) * 1e-9;
    out->top1 *= 100 / (double)out->n;
    out->top5 *= 100 / (double)out->n;
    out->loss /= (double)out->n;
    return true;
}

/* ---- batch-norm statistics ----------------------------------------------------------------------- */

bool train_bn_estimate(nn_graph *g, const data_set *s, const int32_t *index, int64_t n, int batch,
                       uint64_t seed, err *e) {
    loader_options o = { .set = s, .index = index, .n = index ? n : data_count(s), .seed = seed,
                         .shuffle = true, .drop_last = true };
    if (!train_prep(g, s, &o.prep, e)) return false;
    if (o.n < 1) return err_set(e, ERR_CONFIG, "there are no images to estimate statistics from");
    o.batch = batch > 0 ? batch : default_batch(&o.prep, o.n);
    if (o.batch > o.n) o.batch = (int)o.n;

    nn_plan *plan = nn_plan_new(g, NN_TRAIN, o.batch, e);
    data_loader *loader = plan ? loader_new(&o, e) : NULL;
    bool ok = loader != NULL;
    size_t pixels = (size_t)o.prep.h * (size_t)o.prep.w;
    size_t bytes = (size_t)o.batch * pixels * (size_t)o.prep.c * sizeof(float);
    int64_t batches = loader ? loader_batches(loader) : 0;
    if (loader) loader_seek(loader, 0, 0);
    for (int64_t i = 0; ok && i < batches; i++) {
        data_batch b;
        if (stop_requested()) ok = err_set(e, ERR_STOPPED, "stopped while estimating statistics");
        if (!ok || !(ok = loader_next(loader, &b, e))) break;
        memcpy(nn_plan_input(plan, 0), b.x, bytes);
        nn_plan_momentum(plan, 1 / (double)(i + 1));    /* the mean of all batches so far */
        nn_plan_random(plan, seed, 0, i);
        nn_plan_forward(plan);
    }
    loader_free(loader);
    nn_plan_free(plan);
    return ok;
}
