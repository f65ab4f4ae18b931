/* The one ruler: forward latency of several plans, measured so that a drift of the machine or a
 * visitor on it meets all of them alike. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nn/op.h"

/* A sample is repeated when others used more than this share of the CPU time it took. The system
 * counts in ticks of 10 ms, so shorter glimpses are not judged. */
static const double foreign_share = 0.05, shortest_glimpse = 0.010;

typedef struct {
    nn_plan *plan;
    int      repeat;             /* forwards of one sample */
    double  *ms;                 /* samples */
    int      n, cap, repeated;
    int64_t *ns;                 /* of the steps in one sample; NULL: nobody asks */
    double  *part;               /* step i's share of sample n at [i * cap + n] */
} candidate;

static double forward_ms(nn_plan *p, int repeat)
{
    const int64_t t0 = clock_ns();
    for (int i = 0; i < repeat; i++)
        nn_plan_forward(p);
    return (double)(clock_ns() - t0) * 1e-6 / repeat;
}

/* Warm-up; from its fastest forward follows how many of them make a sample. */
static void warm(candidate *c, double warm_ms, double min_sample_ms)
{
    const int64_t t0 = clock_ns();
    double best = HUGE_VAL;
    do {
        const double ms = forward_ms(c->plan, 1);
        best = ms < best ? ms : best;
    } while ((double)(clock_ns() - t0) * 1e-6 < warm_ms && !stop_requested());
    const double want = ceil(min_sample_ms / (best > 1e-6 ? best : 1e-6));
    c->repeat = want < 1 ? 1 : want > 1e6 ? 1000000 : (int)want;
}

static void note_parts(candidate *c)
{
    double sum = 0;
    for (int i = 0; i < c->plan->n_step; i++)
        sum += (double)c->ns[i];
    for (int i = 0; i < c->plan->n_step; i++)
        c->part[(size_t)i * (size_t)c->cap + (size_t)c->n] = sum > 0 ? (double)c->ns[i] / sum : 0;
}

/* One sample. It is dirty when, meanwhile, others computed for a noticeable share of the time. */
static double sample(candidate *c, bool *dirty)
{
    const double self = clock_cpu_self(), all = clock_cpu_all();
    if (c->ns) {
        memset(c->ns, 0, (size_t)c->plan->n_step * sizeof *c->ns);
        nn_plan_watch(c->plan, c->ns);
    }
    const int64_t t0 = clock_ns();
    const double ms = forward_ms(c->plan, c->repeat);
    nn_plan_watch(c->plan, NULL);
    if (c->ns)
        note_parts(c);
    const double wall = (double)(clock_ns() - t0) * 1e-9;
    const double others = clock_cpu_all() - all - (clock_cpu_self() - self);
    *dirty = all >= 0 && others > shortest_glimpse && others > foreign_share * wall * core_cpus();
    return ms;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted samples, interpolated. */
static double quantile(const double *ms, int n, double q)
{
    const double at = q * (n - 1);
    const int i = (int)at;
    return i + 1 < n ? ms[i] + (at - i) * (ms[i + 1] - ms[i]) : ms[n - 1];
}

static double deviation(const double *x, int n, double mean)
{
    double squares = 0;
    for (int i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(squares / (n - 1)) : 0;
}

static double mean_of(const double *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum / n;
}

static nn_timing summary(candidate *c)
{
    nn_timing t = { .samples = c->n, .repeated = c->repeated, .mean_ms = mean_of(c->ms, c->n) };
    t.stdev_ms = deviation(c->ms, c->n, t.mean_ms);
    qsort(c->ms, (size_t)c->n, sizeof *c->ms, compare);
    t.median_ms = quantile(c->ms, c->n, 0.5);
    t.p10_ms = quantile(c->ms, c->n, 0.1);
    t.p90_ms = quantile(c->ms, c->n, 0.9);
    return t;
}

/* Medians of shares do not quite add up to 1: they are made to. */
static void find_shares(candidate *c, nn_share *share)
{
    const nn_plan *p = c->plan;
    double sum = 0;
    for (int i = 0; i < p->g->n_node; i++)
        share[i] = (nn_share){ 0 };
    for (int i = 0; i < p->n_step; i++) {
        double *part = c->part + (size_t)i * (size_t)c->cap;
        nn_share *to = &share[p->step[i].id];
        to->stdev = deviation(part, c->n, mean_of(part, c->n));
        qsort(part, (size_t)c->n, sizeof *part, compare);
        sum += to->median = quantile(part, c->n, 0.5);
    }
    for (int i = 0; i < p->g->n_node; i++)
        share[i].median /= sum > 0 ? sum : 1;
}

static bool is_steady(const candidate *c, double spread, double *sorted)
{
    memcpy(sorted, c->ms, (size_t)c->n * sizeof *sorted);
    qsort(sorted, (size_t)c->n, sizeof *sorted, compare);
    return quantile(sorted, c->n, 0.75) - quantile(sorted, c->n, 0.25) <=
           spread * quantile(sorted, c->n, 0.5);
}

/* One round: every candidate that is not yet steady, in a fresh order. */
static bool measure_round(candidate *c, int n, int round, int *order, const bool *steady, err *e)
{
    rng r = rng_at(0, RNG_SHUFFLE, 0, (uint64_t)round);
    for (int i = 0; i < n; i++)
        order[i] = i;
    rng_shuffle(&r, order, n);
    for (int i = 0; i < n; i++) {
        candidate *k = &c[order[i]];
        if (steady[order[i]])
            continue;
        if (stop_requested())
            return err_set(e, ERR_STOPPED, "stopped while measuring");
        bool dirty;
        double ms = sample(k, &dirty);
        while (dirty && k->repeated < k->cap / 2 && !stop_requested()) {
            k->repeated++;
            ms = sample(k, &dirty);
        }
        k->ms[k->n++] = ms;
    }
    return true;
}

static bool measure(candidate *c, int n, const nn_time_options *o, int rounds, int *order,
                    bool *steady, double *sorted, err *e)
{
    const double min_sample = o->min_sample_ms > 0 ? o->min_sample_ms : 2;
    const double warm_ms = o->warm_ms > 0 ? o->warm_ms : 100;
    const double spread = o->spread > 0 ? o->spread : 0.02;
    for (int i = 0; i < n; i++)
        warm(&c[i], warm_ms, min_sample);
    bool again = true;
    for (int round = 0; again && round < 2 * rounds; round++) {
        if (!measure_round(c, n, round, order, steady, e))
            return false;
        if (o->tick && round < rounds)
            o->tick(o->ctx, round + 1, rounds);
        again = round + 1 < rounds;
        for (int i = 0; round + 1 >= rounds && i < n; i++) {
            steady[i] = steady[i] || is_steady(&c[i], spread, sorted);
            again = again || !steady[i];
        }
    }
    return true;
}

static bool candidate_init(candidate *c, nn_plan *plan, double *ms, int cap, bool parts, err *e)
{
    const size_t steps = (size_t)plan->n_step + 1;
    *c = (candidate){ .plan = plan, .ms = ms, .cap = cap };
    return !parts || ((c->ns = mem_new(steps, sizeof *c->ns, e)) && (c->part = mem_new(steps * (size_t)cap, sizeof *c->part, e)));
}

bool nn_plan_time(nn_plan *const *plan, int n, const nn_time_options *o, nn_timing *out, err *e)
{
    const nn_time_options normal = { 0 };
    o = o ? o : &normal;
    const int rounds = o->rounds > 0 ? o->rounds : 31, cap = 2 * rounds;
    candidate *c = mem_new((size_t)n, sizeof *c, e);
    double *ms = mem_new((size_t)(n + 1) * (size_t)cap, sizeof *ms, e);
    int *order = mem_new((size_t)n, sizeof *order, e);
    bool *steady = mem_new((size_t)n, sizeof *steady, e);
    bool ok = c && ms && order && steady;
    for (int i = 0; ok && i < n; i++)
        ok = candidate_init(&c[i], plan[i], ms + (size_t)i * (size_t)cap, cap, o->share && o->share[i], e);
    ok = ok && measure(c, n, o, rounds, order, steady, ms + (size_t)n * (size_t)cap, e);
    for (int i = 0; ok && i < n; i++) {
        if (c[i].part)
            find_shares(&c[i], o->share[i]);
        out[i] = summary(&c[i]);
    }
    for (int i = 0; c && i < n; i++) {
        mem_free(c[i].ns);
        mem_free(c[i].part);
    }
    mem_free(c);
    mem_free(ms);
    mem_free(order);
    mem_free(steady);
    return ok;
}
