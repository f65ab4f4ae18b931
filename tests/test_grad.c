/* Gradients: the runtime compiled in double against central differences, then the ordinary float
 * library against the double one on the same graphs. */
#include "tests/test.h"
#include "tests/naive.h"
#include "tests/double/world.h"

enum { MAX_INPUTS = 8 };

/* A small graph around one op: the op of interest sits between a convolution, so that its input
 * gradient is checked through weights as well, and a head that ends in a loss. */
typedef struct { nn_graph *g; char *text; int batch; } sample;

static void finish(sample *s, nn_graph *g, int output, const rng *r, err *e)
{
    buf text = { 0 };
    CHECK_OK(output >= 0, *e);
    g->output = output;
    const bool teach = r->ctr[1] % 2;
    s->g = nn_graph_with_loss(g, 0.1, teach ? 0.7 : 0, teach ? 3 : 0, e);
    CHECK_OK(s->g, *e);
    nn_graph_free(g);
    random_params(s->g, r->ctr[1]);
    nn_graph_print(s->g, &text);
    s->text = text.data;
}

static void make_op_sample(sample *s, nn_opcode op, uint64_t seed)
{
    err e = { 0 };
    rng r = rng_at(seed, RNG_TEST, (uint32_t)op, 9), id = r;
    const int c = between(&r, 2, 7);
    s->batch = between(&r, 1, 3);
    nn_graph *g = nn_graph_new("op", &e);
    const int x = nn_add_input(g, "x", between(&r, 5, 8), between(&r, 5, 8), c, &e);
    const int a = nn_add_conv(g, "before", x, c, 3, 1, 1, 1, op != NN_OP_batchnorm, false, &e);
    const int in[4] = { a, x, a, x };
    const nn_attr attr = random_attr(op, c, &r);
    const int n_in = op == NN_OP_add ? 2 : op == NN_OP_concat ? 4 : 1;
    finish(s, g, nn_add_linear(g, "fc", nn_node_add(g, op, "op", in, n_in, &attr, &e), 5, true, &e),
           &id, &e);
}

static void make_net_sample(sample *s, uint64_t seed)
{
    err e = { 0 };
    const rng id = rng_at(seed, RNG_TEST, 50, 9);
    s->batch = 2 + (int)(seed % 2);
    nn_graph *g = random_net(seed, &e);
    finish(s, g, g->output, &id, &e);
}

static void free_sample(sample *s)
{
    nn_graph_free(s->g);
    mem_free(s->text);
}

static int64_t input_count(const sample *s, int node)
{
    const int64_t *d = s->g->node[node].dim;
    return s->batch * d[1] * d[2] * d[3];
}

/* Values of all inputs, the same in both worlds. Targets do not sum to one: mixtures need not. */
static void fill_inputs(const sample *s, double_world *d, nn_plan *p)
{
    rng r = rng_at(3, RNG_TEST, 77, 0);
    for (int i = 0, which = 0; i < s->g->n_node; i++) {
        if (s->g->node[i].n_in > 0)
            continue;
        const int64_t n = input_count(s, i), c = s->g->node[i].dim[3];
        for (int64_t k = 0; k < n; k++) {
            const float v = (float)(which == 1 ? 0.1 + (k % c == (k / c) % 3) : rng_normal(&r));
            double_input(d, which)[k] = (double)v;
            if (p)
                nn_plan_input(p, which)[k] = v;
        }
        which++;
    }
}

static double_world *open_double(const sample *s, nn_plan *p)
{
    err e = { 0 };
    double_world *d = double_open(s->text, s->batch, &e);
    CHECK_OK(d, e);
    for (int i = 0; d && i < s->g->n_param; i++)
        for (int64_t k = 0; k < nn_param_count(&s->g->param[i]); k++)
            double_param(d, i)[k] = (double)s->g->param[i].x[k];
    if (d)
        fill_inputs(s, d, p);
    return d;
}

/* |grad - (loss(x+h) - loss(x-h)) / 2h|. A kink of an activation within h spoils the quotient, so a
 * few h are tried: a wrong gradient is wrong for all of them. */
static double off_by(double_world *d, double *x, double grad, double enough)
{
    const double at = *x;
    double best = HUGE_VAL;
    for (double h = 1e-5; h > 5e-8 && best > enough; h /= 10) {
        *x = at + h;
        const double up = double_loss(d);
        *x = at - h;
        const double down = double_loss(d);
        best = fmin(best, fabs(grad - (up - down) / (2 * h)));
    }
    *x = at;
    return best;
}

/* The worst of at most `probes` values of a tensor, against its largest gradient. */
static double probe(double_world *d, double *x, const double *grad, int64_t n, int probes, rng *r)
{
    double size = 1e-3, worst = 0;
    for (int64_t i = 0; i < n; i++)
        size = fmax(size, fabs(grad[i]));
    for (int k = 0; k < probes && k < n; k++) {
        const int64_t i = n <= probes ? k : (int64_t)rng_below(r, (uint32_t)n);
        worst = fmax(worst, off_by(d, &x[i], grad[i], 1e-7 * size) / size);
    }
    return worst;
}

static void check_differences(const sample *s)
{
    rng r = rng_at(8, RNG_TEST, 78, 0);
    double_world *d = open_double(s, NULL);
    if (!d)
        return;
    double_loss(d);
    double_backward(d);
    double worst = 0;
    for (int i = 0; i < s->g->n_param; i++)
        if (double_param_grad(d, i))
            worst = fmax(worst, probe(d, double_param(d, i), double_param_grad(d, i),
                                      nn_param_count(&s->g->param[i]), 12, &r));
    for (int i = 0, which = 0; i < s->g->n_node; i++)
        if (s->g->node[i].n_in == 0) {
            if (double_input_grad(d, which))
                worst = fmax(worst, probe(d, double_input(d, which), double_input_grad(d, which),
                                          input_count(s, i), 12, &r));
            which++;
        }
    if (!(worst < 1e-6))
        fprintf(stderr, "batch %d, differences off by %g\n%s", s->batch, worst, s->text);
    CHECK(worst < 1e-6);
    double_close(d);
}

/* Gradients that vanish in exact arithmetic (a bias before a norm) leave noise: hence the floor. */
static double apart(const float *a, const double *b, int64_t n)
{
    double size = 1e-2, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - b[i]);
        size = fmax(size, fabs(b[i]));
        worst = off > worst || off != off ? off : worst;
    }
    return worst / size;
}

static void check_float(const sample *s)
{
    err e = { 0 };
    nn_plan *p = nn_plan_new_with_input_grad(s->g, s->batch, &e);
    CHECK_OK(p, e);
    double_world *d = p ? open_double(s, p) : NULL;
    if (d) {
        double worst = 0;
        nn_plan_random(p, 1, 2, 3);
        nn_plan_forward(p);
        CHECK_CLOSE(nn_plan_loss(p), double_loss(d), 1e-5 * fabs(nn_plan_loss(p)));
        nn_plan_backward(p);
        double_backward(d);
        for (int i = 0; i < s->g->n_param; i++)
            if (double_param_grad(d, i))
                worst = fmax(worst, apart(nn_plan_grad(p, i), double_param_grad(d, i),
                                          nn_param_count(&s->g->param[i])));
        CHECK(double_input_grad(d, 0) && nn_plan_input_grad(p, 0) && !nn_plan_input_grad(p, 1));
        worst = fmax(worst,
                     apart(nn_plan_input_grad(p, 0), double_input_grad(d, 0), input_count(s, 0)));
        if (!(worst < 2e-5))
            fprintf(stderr, "batch %d, floats off by %g\n%s", s->batch, worst, s->text);
        CHECK(worst < 2e-5);
    }
    double_close(d);
    nn_plan_free(p);
}

static bool has_gradient(int op)
{
    /* losses end every sample */
    return op != NN_OP_input && op != NN_OP_softmax_xent && op != NN_OP_distill;
}

static void every_op_has_the_gradient_of_its_forward(void)
{
    for (int op = 0; op < NN_OP_COUNT; op++)
        for (uint64_t seed = 0; has_gradient(op) && seed < 12; seed++) {
            sample s;
            make_op_sample(&s, (nn_opcode)op, seed);
            check_differences(&s);
            free_sample(&s);
        }
}

static void float_gradients_of_every_op_equal_the_double_ones(void)
{
    for (int op = 0; op < NN_OP_COUNT; op++)
        for (uint64_t seed = 0; has_gradient(op) && seed < 12; seed++) {
            sample s;
            make_op_sample(&s, (nn_opcode)op, seed);
            check_float(&s);
            free_sample(&s);
        }
}

static void a_net_of_everything_has_the_gradient_of_its_forward(void)
{
    for (uint64_t seed = 0; seed < 12; seed++) {
        sample s;
        make_net_sample(&s, seed);
        check_differences(&s);
        free_sample(&s);
    }
}

static void float_gradients_of_nets_equal_the_double_ones(void)
{
    for (uint64_t seed = 0; seed < 12; seed++) {
        sample s;
        make_net_sample(&s, seed);
        check_float(&s);
        free_sample(&s);
    }
}

int main(void)
{
    START(0);
    RUN(every_op_has_the_gradient_of_its_forward);
    RUN(a_net_of_everything_has_the_gradient_of_its_forward);
    RUN(float_gradients_of_every_op_equal_the_double_ones);
    RUN(float_gradients_of_nets_equal_the_double_ones);
    core_stop();
    END();
}
