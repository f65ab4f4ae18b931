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

/* One sample. It is dirty when, meanwhile, others computed for a noticeable share of the time. */
static double sample(const candidate *c, bool *dirty)
{
    const double self = clock_cpu_self(), all = clock_cpu_all();
    const int64_t t0 = clock_ns();
    const double ms = forward_ms(c->plan, c->repeat);
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

static nn_timing summary(candidate *c)
{
    nn_timing t = { .samples = c->n, .repeated = c->repeated };
    double sum = 0, squares = 0;
    for (int i = 0; i < c->n; i++)
        sum += c->ms[i];
    t.mean_ms = sum / c->n;
    for (int i = 0; i < c->n; i++)
        squares += (c->ms[i] - t.mean_ms) * (c->ms[i] - t.mean_ms);
    t.stdev_ms = c->n > 1 ? sqrt(squares / (c->n - 1)) : 0;
    qsort(c->ms, (size_t)c->n, sizeof *c->ms, compare);
    t.median_ms = quantile(c->ms, c->n, 0.5);
    t.p10_ms = quantile(c->ms, c->n, 0.1);
    t.p90_ms = quantile(c->ms, c->n, 0.9);
    return t;
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
        c[i] = (candidate){ .plan = plan[i], .ms = ms + (size_t)i * (size_t)cap, .cap = cap };
    ok = ok && measure(c, n, o, rounds, order, steady, ms + (size_t)n * (size_t)cap, e);
    for (int i = 0; ok && i < n; i++)
        out[i] = summary(&c[i]);
    mem_free(c);
    mem_free(ms);
    mem_free(order);
    mem_free(steady);
    return ok;
}
