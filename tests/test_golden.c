/* The outside world: every op, loss, optimiser and two small networks against what PyTorch computed
 * for the same numbers. tests/golden/make_torch.py wrote the files and tells what is in them. */
#include "core/io.h"
#include "tests/test.h"
#include "nn/nn.h"

#define FORWARD  1e-5            /* of the largest value */
#define GRADIENT 1e-4

/* One case of a file: its graph and the tensors called case/what. */
typedef struct {
    const tensor_file *f;
    const char *name;
    nn_graph *g;
    int batch;
} golden;

static const tf_tensor *find(const golden *c, const char *what, const char *mark)
{
    char name[256];
    snprintf(name, sizeof name, "%s/%s%s", c->name, what, mark);
    return tensor_file_find(c->f, name);
}

/* The tensor's values, for the caller to mem_free; NULL if there are not count of them. */
static float *values(const tf_tensor *t, int64_t count)
{
    err e = { 0 };
    if (!t || tf_count(t) != count)
        return NULL;
    float *x = mem_new((size_t)count, sizeof *x, &e);
    CHECK_OK(x && tf_read_f32(t, x, &e), e);
    return x;
}

/* The same of an image or a row, from N,C,H,W or N,C to the N,H,W,C of a node. */
static float *image(const golden *c, const tf_tensor *t, int node)
{
    err e = { 0 };
    const int64_t *d = c->g->node[node].dim, area = d[1] * d[2], C = d[3];
    float *from = values(t, c->batch * area * C);
    float *to = from ? mem_new((size_t)(c->batch * area * C), sizeof *to, &e) : NULL;
    for (int64_t i = 0; to && i < c->batch * area * C; i++)
        to[(i / (C * area) * area + i % area) * C + i / area % C] = from[i];
    mem_free(from);
    return to;
}

/* `want` is freed. A comparison that cannot be made has failed. */
static void compare(const golden *c, const char *what, const char *mark, const float *x,
                    float *want, int64_t count, double tolerance)
{
    double diff = 0, size = 0;
    for (int64_t i = 0; x && want && i < count; i++) {
        const double d = fabs((double)x[i] - (double)want[i]);
        diff = d > diff || d != d ? d : diff;
        size = fmax(size, fabs((double)want[i]));
    }
    const bool close = x && want && size > 0 && diff <= tolerance * size;
    const char *const wrong = !want ? "not in the file" : !x ? "not computed" : "not PyTorch's";
    if (!close)
        fprintf(stderr, "%s/%s%s: %s, off by %g of %g\n", c->name, what, mark, wrong, diff, size);
    CHECK(close);
    mem_free(want);
}

static void load(golden *c)
{
    for (int i = 0; i < c->g->n_param; i++) {
        nn_param *p = &c->g->param[i];
        float *x = values(find(c, p->name, ""), nn_param_count(p));
        CHECK(x);
        if (x)
            memcpy(p->x, x, (size_t)nn_param_count(p) * sizeof *x);
        mem_free(x);
    }
}

static void fill(const golden *c, nn_plan *p)
{
    for (int i = 0, which = 0; i < c->g->n_node; i++) {
        const nn_node *n = &c->g->node[i];
        if (n->n_in > 0)
            continue;
        float *x = image(c, find(c, n->name, ""), i), *to = nn_plan_input(p, which++);
        CHECK(x);
        if (x)
            memcpy(to, x, (size_t)(c->batch * n->dim[1] * n->dim[2] * n->dim[3]) * sizeof *x);
        mem_free(x);
    }
}

static void check_forward(const golden *c, nn_plan *p, const char *mark)
{
    const nn_node *out = &c->g->node[c->g->output];
    fill(c, p);
    nn_plan_forward(p);
    const float loss = (float)nn_plan_loss(p);
    compare(c, "total", mark, &loss, values(find(c, "total", mark), 1), 1, FORWARD);
    if (out->n_in > 0)
        compare(c, out->name, mark, nn_plan_output(p),
                image(c, find(c, out->name, mark), c->g->output),
                c->batch * out->dim[1] * out->dim[2] * out->dim[3], FORWARD);
}

/* Gradients of all parameters and of all inputs but targets; running statistics have moved. */
static void check_backward(const golden *c, nn_plan *p)
{
    nn_plan_backward(p);
    for (int i = 0; i < c->g->n_param; i++) {
        const nn_param *w = &c->g->param[i];
        const bool running = w->role == NN_RUNNING;
        const char *mark = running ? ":after" : ":grad";
        if (strncmp(w->name, "head.", 5) != 0)
            compare(c, w->name, mark, running ? w->x : nn_plan_grad(p, i),
                    values(find(c, w->name, mark), nn_param_count(w)), nn_param_count(w),
                    running ? FORWARD : GRADIENT);
    }
    for (int i = 0, which = 0; i < c->g->n_node; i++) {
        const nn_node *n = &c->g->node[i];
        if (n->n_in > 0)
            continue;
        const float *grad = nn_plan_input_grad(p, which++);
        if (strcmp(n->name, "target") != 0 && strcmp(n->name, "teacher") != 0)
            compare(c, n->name, ":grad", grad, image(c, find(c, n->name, ":grad"), i),
                    c->batch * n->dim[1] * n->dim[2] * n->dim[3], GRADIENT);
    }
}

static void check_graph(golden *c, const char *text)
{
    err e = { 0 };
    c->g = nn_graph_parse(text, &e);
    CHECK_OK(c->g, e);
    const tf_tensor *x = find(c, "x", "");
    CHECK(x);
    if (c->g && x) {
        c->batch = (int)x->dim[0];
        load(c);
        nn_plan *infer = nn_plan_new(c->g, NN_INFER, c->batch, &e);
        CHECK_OK(infer, e);
        if (infer)
            check_forward(c, infer, find(c, "total", ":eval") ? ":eval" : "");
        nn_plan_free(infer);
        nn_plan *train = nn_plan_new_with_input_grad(c->g, c->batch, &e);
        CHECK_OK(train, e);
        if (train) {
            check_forward(c, train, "");
            check_backward(c, train);
        }
        nn_plan_free(train);
    }
    nn_graph_free(c->g);
}

enum { LR, MOMENTUM, BETA2, EPS, DECAY, OPTIONS };

/* Three steps, each from where ours, not PyTorch's, came to. What is compared is the way so far. */
static void check_optimiser(const golden *c, const char *class)
{
    err e = { 0 };
    const tf_tensor *start = find(c, "w0", "");
    const int64_t n = start ? tf_count(start) : 0;
    float *o = values(find(c, "options", ""), OPTIONS);
    float *w0 = values(start, n), *w = values(start, n);
    float *m = mem_new((size_t)n, sizeof *m, &e), *v = mem_new((size_t)n, sizeof *v, &e);
    CHECK_OK(o && w0 && w && m && v, e);
    for (int t = 1; o && w0 && w && m && v && t <= 3; t++) {
        const char *const g_name[] = { "g1", "g2", "g3" }, *const w_name[] = { "w1", "w2", "w3" };
        float *g = values(find(c, g_name[t - 1], ""), n);
        float *want = values(find(c, w_name[t - 1], ""), n);
        CHECK(g && want);
        if (!g || !want) {
            mem_free(g);
            mem_free(want);
            break;
        }
        if (!strcmp(class, "SGD"))
            sgd_step(n, w, g, m, 1, o[LR], o[MOMENTUM], o[DECAY],
                     !strcmp(c->name, "sgd_nesterov"), t == 1);
        else
            adam_step(n, w, g, m, v, 1, o[LR], o[MOMENTUM], o[BETA2], o[EPS], o[DECAY],
                      !strcmp(class, "AdamW"), t);
        for (int64_t i = 0; i < n; i++) {
            want[i] -= w0[i];
            g[i] = w[i] - w0[i];
        }
        compare(c, w_name[t - 1], " - w0", g, want, n, FORWARD);
        mem_free(g);
    }
    mem_free(o);
    mem_free(w0);
    mem_free(w);
    mem_free(m);
    mem_free(v);
}

static void check_file(const char *path, int cases)
{
    err e = { 0 };
    tensor_file f;
    const bool open = tensor_file_open(&f, path, &e);
    CHECK_OK(open, e);
    if (!open)
        return;
    CHECK(f.n_meta == cases);
    for (int i = 0; i < f.n_meta; i++) {
        golden c = { .f = &f, .name = f.meta_key[i] };
        if (!strncmp(f.meta_value[i], "graph ", 6))
            check_graph(&c, f.meta_value[i]);
        else
            check_optimiser(&c, f.meta_value[i]);
    }
    tensor_file_close(&f);
}

static void convolutions_are_pytorchs(void)
{
    check_file("tests/golden/torch_conv2d.safetensors", 15);
}
static void linear_flattens_a_map_as_pytorch_does(void)
{
    check_file("tests/golden/torch_linear.safetensors", 3);
}
static void batchnorm_is_pytorchs_in_both_modes(void)
{
    check_file("tests/golden/torch_batchnorm.safetensors", 5);
}
static void activations_sums_and_reshapings_are_pytorchs(void)
{
    check_file("tests/golden/torch_shape.safetensors", 10);
}
static void pools_are_pytorchs_with_ties_and_padding(void)
{
    check_file("tests/golden/torch_pool.safetensors", 11);
}
static void losses_are_pytorchs(void)
{
    check_file("tests/golden/torch_loss.safetensors", 9);
}
static void small_networks_have_pytorchs_loss_and_gradients(void)
{
    check_file("tests/golden/torch_net.safetensors", 2);
}
static void optimisers_walk_pytorchs_way(void)
{
    check_file("tests/golden/torch_optim.safetensors", 6);
}

int main(void)
{
    START(0);
    RUN(convolutions_are_pytorchs);
    RUN(linear_flattens_a_map_as_pytorch_does);
    RUN(batchnorm_is_pytorchs_in_both_modes);
    RUN(activations_sums_and_reshapings_are_pytorchs);
    RUN(pools_are_pytorchs_with_ties_and_padding);
    RUN(losses_are_pytorchs);
    RUN(small_networks_have_pytorchs_loss_and_gradients);
    RUN(optimisers_walk_pytorchs_way);
    core_stop();
    END();
}
