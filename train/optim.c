/* Optimisers: PyTorch's SGD, Adam and AdamW over the parameters of a graph; clipping by the global
 * norm; the moving average of the weights (timm's ModelEma). The arithmetic is in core/kern.h. */
#include <math.h>

#include "train/parts.h"

bool optim_init(optimiser *o, const train_recipe *r, const nn_graph *g, err *e) {
    bool adam = r->opt != OPT_SGD;
    int64_t total = 0;
    *o = (optimiser){ .recipe = *r, .n = g->n_param };
    for (int i = 0; i < g->n_param; i++)
        if (g->param[i].role != NN_RUNNING) total += nn_param_count(&g->param[i]);

    o->m = mem_new((size_t)g->n_param, sizeof *o->m, e);
    o->v = mem_new((size_t)g->n_param, sizeof *o->v, e);
    o->memory = mem_new((size_t)total * (adam ? 2 : 1), sizeof *o->memory, e);
    if (!o->m || !o->v || !o->memory) { optim_free(o); return false; }

    float *m = o->memory, *v = o->memory + total;
    for (int i = 0; i < g->n_param; i++) {
        if (g->param[i].role == NN_RUNNING) continue;
        int64_t count = nn_param_count(&g->param[i]);
        o->m[i] = m;
        m += count;
        if (adam) o->v[i] = v, v += count;
    }
    return true;
}

void optim_free(optimiser *o) {
    mem_free(o->m);
    mem_free(o->v);
    mem_free(o->memory);
    *o = (optimiser){0};
}

double optim_norm(const nn_graph *g, nn_plan *plan) {
    double sum = 0;
    for (int i = 0; i < g->n_param; i++) {
        const float *grad = nn_plan_grad(plan, i);
        if (grad) sum += vec_sum_squares(nn_param_count(&g->param[i]), grad);
    }
    return sqrt(sum);
}

double optim_scale(double norm, double clip) {
    double scale = clip > 0 ? clip / (norm + 1e-6) : 1;   /* the 1e-6 is PyTorch's */
    return scale < 1 ? scale : 1;
}

void optim_step(optimiser *o, nn_graph *g, nn_plan *plan, double lr, double scale, int64_t step) {
    const train_recipe *r = &o->recipe;
    for (int i = 0; i < o->n; i++) {
        const nn_param *p = &g->param[i];
        const float *grad = nn_plan_grad(plan, i);
        if (!grad) continue;
        double wd = p->role == NN_WEIGHT || r->decay_all ? r->weight_decay : 0;
        int64_t count = nn_param_count(p);
        if (r->opt == OPT_SGD)
            sgd_step(count, p->x, grad, o->m[i], (float)scale, (float)lr, (float)r->momentum,
                     (float)wd, r->nesterov, step == 0);
        else
            adam_step(count, p->x, grad, o->m[i], o->v[i], (float)scale, (float)lr,
                      (float)r->momentum, (float)r->beta2, (float)r->opt_eps, (float)wd,
                      r->opt == OPT_ADAMW, step + 1);
    }
}

void optim_average(nn_graph *average, const nn_graph *g, double decay) {
    for (int i = 0; i < g->n_param; i++)
        ema_step(nn_param_count(&g->param[i]), average->param[i].x, g->param[i].x, (float)decay);
}
