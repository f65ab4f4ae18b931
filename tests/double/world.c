#include "nn/nn.h"

#include "tests/double/world.h"

struct double_world { nn_graph *g; nn_plan *p; };

double_world *double_open(const char *graph_text, int batch, err *e)
{
    double_world *d = mem_new(1, sizeof *d, e);
    if (!d)
        return NULL;
    d->g = nn_graph_parse(graph_text, e);
    d->p = d->g ? nn_plan_new_with_input_grad(d->g, batch, e) : NULL;
    if (!d->p) {
        double_close(d);
        return NULL;
    }
    nn_plan_random(d->p, 1, 2, 3);
    return d;
}

void double_close(double_world *d)
{
    if (!d)
        return;
    nn_plan_free(d->p);
    nn_graph_free(d->g);
    mem_free(d);
}

double *double_param(double_world *d, int param) { return d->g->param[param].x; }
double *double_input(double_world *d, int which) { return nn_plan_input(d->p, which); }
double *double_param_grad(double_world *d, int param) { return nn_plan_grad(d->p, param); }
double *double_input_grad(double_world *d, int which) { return nn_plan_input_grad(d->p, which); }
void    double_backward(double_world *d) { nn_plan_backward(d->p); }

double double_loss(double_world *d)
{
    nn_plan_forward(d->p);
    return nn_plan_loss(d->p);
}
