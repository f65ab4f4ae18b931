/* Every network beside PyTorch's, same random weights and images: logits, loss, running statistics and
 * the gradient of every parameter, of a network with large maps those of its head. Skipped without
 * PyTorch (Debian's python3-torch). */
#include "core/io.h"
#include "nn/nn.h"
#include "tests/test.h"

#define FORWARD  1e-5            /* of the largest value */
#define VARIANCE 3e-5            /* squares, and what many layers have rounded */
#define GRADIENT 1e-4

enum { BATCH = 4 };

static const char *path_of(const char *name, const char *suffix)
{
    char file[64];
    snprintf(file, sizeof file, "%s.%s", name, suffix);
    return in_dir(file);
}

/* He's weights, and norms, statistics and biases that are not what they start as; no dropout. */
static nn_graph *make(const char *model, nn_build b)
{
    err e = { 0 };
    nn_graph *g = nn_model_find(model)->build(&b, &e);
    CHECK_OK(g, e);
    nn_state_init(g, 1);
    rng r = rng_at(2, RNG_TEST, 0, 0);
    for (int i = 0; i < g->n_param; i++) {
        nn_param *p = &g->param[i];
        for (int64_t k = 0; p->role != NN_WEIGHT && k < nn_param_count(p); k++)
            p->x[k] += (float)(0.4 * rng_uniform(&r));
    }
    for (int i = 0; i < g->n_node; i++)
        if (g->node[i].op == NN_OP_dropout)
            g->node[i].attr.p = 0;
    return g;
}

/* ---- comparing ----------------------------------------------------------------------------------- */

static double largest(const float *x, int64_t n)
{
    double m = 0;
    for (int64_t i = 0; i < n; i++)
        m = fmax(m, fabs((double)x[i]));
    return m;
}

/* The largest difference from the file's tensor, relative to its largest value or to `least`. */
static double compare(const tensor_file *f, const char *name, const char *mark, const float *x, int64_t n,
                      double least, double tolerance)
{
    err e = { 0 };
    char full[256];
    snprintf(full, sizeof full, "%s%s", name, mark);
    const tf_tensor *t = tensor_file_find(f, full);
    float *want = t && tf_count(t) == n ? mem_new((size_t)n, sizeof *want, &e) : NULL;
    double diff = 0, off = HUGE_VAL;
    if (x && want && tf_read_f32(t, want, &e)) {
        for (int64_t i = 0; i < n; i++) {
            const double d = fabs((double)x[i] - (double)want[i]);
            diff = d > diff || d != d ? d : diff;
        }
        off = diff / fmax(fmax(largest(want, n), least), 1e-30);
    }
    if (!(off <= tolerance))
        fprintf(stderr, "%s: off by %g\n", full, off);
    CHECK(off <= tolerance);
    mem_free(want);
    return off;
}

typedef struct { double forward, statistics, gradient; } worst;

/* Biases that the other side has moved; torch_nets.py says why. */
static void take_biases(const tensor_file *f, nn_graph *g)
{
    err e = { 0 };
    for (int i = 0; i < g->n_param; i++) {
        const tf_tensor *t = tensor_file_find(f, g->param[i].name);
        CHECK_OK(!t || (tf_count(t) == nn_param_count(&g->param[i]) && tf_read_f32(t, g->param[i].x, &e)), e);
    }
}

/* The file's images or rows into the which-th input, node `in`. */
static void fill_input(const tensor_file *f, const char *name, const nn_node *in, nn_plan *p, int which)
{
    err e = { 0 };
    const int64_t *d = in->dim, n = BATCH * d[1] * d[2] * d[3];
    const tf_tensor *t = tensor_file_find(f, name);
    float *x = t && tf_count(t) == n ? mem_new((size_t)n, sizeof *x, &e) : NULL;
    CHECK_OK(x && tf_read_f32(t, x, &e), e);
    if (x)
        nchw_to_nhwc(x, BATCH, d[3], d[1], d[2], nn_plan_input(p, which));
    mem_free(x);
}

static void check_infer(const tensor_file *f, nn_graph *g, worst *w)
{
    err e = { 0 };
    nn_plan *p = nn_plan_new(g, NN_INFER, BATCH, &e);
    CHECK_OK(p, e);
    if (!p)
        return;
    fill_input(f, "x", &g->node[0], p, 0);
    nn_plan_forward(p);
    const int64_t n = BATCH * g->node[g->output].dim[3];
    w->forward = fmax(w->forward, compare(f, "y", "", nn_plan_output(p), n, 0, FORWARD));
    nn_plan_free(p);
}

/* A bias that a norm further on takes out again has no gradient but rounding: it is measured by its
 * weight's. */
static void check_gradients(const tensor_file *f, const nn_graph *g, nn_plan *p, bool head, worst *w)
{
    for (int i = 0; i < g->n_param; i++) {
        const nn_param *a = &g->param[i];
        if (a->role == NN_RUNNING) {
            w->statistics = fmax(w->statistics, compare(f, a->name, ":after", a->x, nn_param_count(a), 0, VARIANCE));
            continue;
        }
        if (head && g->node[a->node].op != NN_OP_linear)
            continue;
        const int first = g->node[a->node].w[0];
        const bool bias = a->role == NN_BIAS || a->role == NN_NORM_BIAS;
        const double least = bias ? largest(nn_plan_grad(p, first), nn_param_count(&g->param[first])) : 0;
        const double off = compare(f, a->name, ":grad", nn_plan_grad(p, i), nn_param_count(a), least, GRADIENT);
        w->gradient = fmax(w->gradient, off);
    }
}

static void check_train(const tensor_file *f, const nn_graph *plain, bool head, worst *w)
{
    err e = { 0 };
    nn_graph *g = nn_graph_with_loss(plain, 0, 0, 0, &e);
    nn_plan *p = g ? nn_plan_new(g, NN_TRAIN, BATCH, &e) : NULL;
    CHECK_OK(p, e);
    if (p) {
        fill_input(f, "x", &g->node[0], p, 0);
        fill_input(f, "target", &g->node[plain->output], p, 1);
        nn_plan_forward(p);
        const float loss = (float)nn_plan_loss(p);
        w->forward = fmax(w->forward, compare(f, "loss", "", &loss, 1, 0, FORWARD));
        nn_plan_backward(p);
        check_gradients(f, g, p, head, w);
    }
    nn_plan_free(p);
    nn_graph_free(g);
}

/* ---- networks -------------------------------------------------------------------------------------- */

/* The first FEW hold every op. head: below it no gradients, because among so many values some are always near a kink. */
static const struct { const char *name, *model; nn_build build; bool head; } cases[] = {
    { "resnet20", "resnet20", { .h = 32, .w = 32, .c = 3, .classes = 10 }, false },
    { "mobilenetv2_small_1.4", "mobilenetv2", { .h = 32, .w = 32, .c = 3, .classes = 7, .width = 1.4 }, false },
    { "vgg8_bn", "vgg8_bn", { .h = 32, .w = 32, .c = 3, .classes = 10 }, false },
    { "resnet56", "resnet56", { .h = 32, .w = 32, .c = 3, .classes = 10 }, false },
    { "resnet18", "resnet18", { .h = 72, .w = 72, .c = 3, .classes = 7 }, false },
    { "resnet34", "resnet34", { .h = 72, .w = 72, .c = 3, .classes = 7 }, false },
    { "resnet50", "resnet50", { .h = 72, .w = 72, .c = 3, .classes = 7 }, false },
    { "mobilenetv2", "mobilenetv2", { .h = 96, .w = 96, .c = 3, .classes = 7, .width = 1 }, false },
    { "vgg19_bn", "vgg19_bn", { .h = 32, .w = 32, .c = 3, .classes = 7 }, false },
    { "vgg19_bn_224", "vgg19_bn", { .h = 224, .w = 224, .c = 3, .classes = 7 }, true },
};
enum { CASES = sizeof cases / sizeof *cases, FEW = 3 };

static bool python(const char *arguments)
{
    char command[1280];
    snprintf(command, sizeof command,
             "P=/usr/bin/python3; [ -x $P ] || P=python3; PYTHONDONTWRITEBYTECODE=1 $P %s", arguments);
    return system(command) == 0;
}

static void every_network_computes_pytorchs_logits_and_gradients(void)
{
    err e = { 0 };
    char run[1024];
    nn_graph *g[CASES];
    const int n = test_few() ? FEW : CASES;
    int at = snprintf(run, sizeof run, "tests/torch_nets.py %s", temp_dir);
    for (int i = 0; i < n; i++) {
        g[i] = make(cases[i].model, cases[i].build);
        CHECK_OK(nn_weights_save(g[i], path_of(cases[i].name, "model"), &e), e);
        const nn_build *b = &cases[i].build;
        at += snprintf(run + at, sizeof run - (size_t)at, " %s=%d,%d,%d,%d%s", cases[i].name, b->c, b->h,
                       b->w, b->classes, cases[i].head ? ",head" : "");
    }
    CHECK(python(run));
    for (int i = 0; i < n; i++) {
        tensor_file f;
        worst w = { 0, 0, 0 };
        const bool open = tensor_file_open(&f, path_of(cases[i].name, "out"), &e);
        CHECK_OK(open, e);
        if (open) {
            take_biases(&f, g[i]);
            check_infer(&f, g[i], &w);
            check_train(&f, g[i], cases[i].head, &w);
            tensor_file_close(&f);
            printf("%s against PyTorch: forward %.1e, statistics %.1e, gradients %.1e\n", cases[i].name, w.forward,
                   w.statistics, w.gradient);
        }
        nn_graph_free(g[i]);
    }
}

static void skipped_without_pytorch(void) { SKIP("no python3 with torch"); }

int main(void)
{
    START(2);
    make_dir();
    if (python("-c 'import torch' 2>/dev/null"))
        RUN(every_network_computes_pytorchs_logits_and_gradients);
    else
        RUN(skipped_without_pytorch);
    remove_dir();
    core_stop();
    END();
}
