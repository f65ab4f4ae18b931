/* The latency table: every entry has a number, the base's layers add up to the base, the same shape is the
 * same number, and what is twice the work takes longer. Numbers themselves are the machine's. */
#include <math.h>
#include <string.h>

#include "search/search.h"
#include "tests/test.h"

typedef struct {
    nn_graph *g;
    search_chain *c;
    search_table t;
    search_fixed fixed;
    int ticks, last, total;
} measured;

static void tick(void *ctx, int done, int total)
{
    measured *m = ctx;
    CHECK(done >= m->last && done <= total && (!m->total || total == m->total));
    m->last = done;
    m->total = total;
    m->ticks++;
}

static const search_entry *entry(const measured *m, int st, int end, int ker)
{
    const search_entry *row = search_table_find(&m->t, st, end, ker, false);
    CHECK(row != NULL);
    return row ? row : &search_entry_blank;
}

static bool measure(measured *m, const char *model, int side, int classes, bool identity, int batch, err *e)
{
    nn_build b = { .h = side, .w = side, .c = 3, .classes = classes };
    const search_latency_options o = { .batch = batch, .time = { .rounds = 3, .min_sample_ms = 0.2, .warm_ms = 1, .spread = 0.5 },
                                       .tick = tick, .ctx = m };
    *m = (measured){ .g = nn_model_open(model, &b, 1, e) };
    m->c = m->g ? search_chain_new(m->g, e) : NULL;
    return m->c && search_enumerate(m->c, identity, &m->t, e) && search_measure(m->c, &m->t, &o, &m->fixed, e);
}

static void measured_free(measured *m)
{
    search_table_free(&m->t);
    search_chain_free(m->c);
    nn_graph_free(m->g);
}

static void every_network_has_a_table_that_adds_up(void)
{
    static const struct { const char *model; int side; bool identity; } all[] = {
        { "resnet20", 16, false }, { "resnet20", 16, true }, { "mobilenetv2", 32, false }, { "vgg19_bn", 32, false },
    };
    for (size_t i = 0; i < (test_few() ? 2 : sizeof all / sizeof *all); i++) {
        measured m;
        err e = { 0 };
        CHECK_OK(measure(&m, all[i].model, all[i].side, 10, all[i].identity, 3, &e), e);
        CHECK(m.ticks > 0 && m.last == m.total && m.total > 1 && m.total < m.t.n);
        int identities = 0;
        for (int r = 0; r < m.t.n; r++) {
            const search_entry *row = &m.t.row[r];
            CHECK(row->ker ? row->time_ns > 0 : row->time_ns == 0);
            CHECK(row->time_ms == (double)row->time_ns / 1e6 && row->stdev_ms >= 0);
            identities += row->ker == 0;
        }
        CHECK(all[i].identity == (identities > 0));
        int64_t layers;
        CHECK_OK(search_base_time(&m.t, &layers, &e), e);
        /* Every entry is rounded up to a nanosecond. */
        CHECK(fabs(m.fixed.fixed_ms + (double)layers / 1e6 - m.fixed.base_ms) <= 1e-9 * m.fixed.base_ms + 2e-6 * m.t.L);
        CHECK(m.fixed.fixed_ms > 0 && m.fixed.fixed_ms < m.fixed.base_ms);
        CHECK(m.fixed.scale > 0 && isfinite(m.fixed.scale));      /* how near 1 it is, says the machine */
        measured_free(&m);
    }
}

static void same_shapes_are_the_same_number_and_more_work_takes_longer(void)
{
    measured m;
    err e = { 0 };
    CHECK_OK(measure(&m, "resnet20", 32, 10, false, 8, &e), e);
    /* The first convs of blocks 1 to 3; their second ones, which have an addition. */
    CHECK(entry(&m, 0, 1, 3)->time_ns == entry(&m, 2, 3, 3)->time_ns && entry(&m, 0, 1, 3)->time_ns == entry(&m, 4, 5, 3)->time_ns);
    CHECK(entry(&m, 1, 2, 3)->time_ns == entry(&m, 3, 4, 3)->time_ns);
    CHECK(entry(&m, 0, 2, 3)->time_ns == entry(&m, 2, 4, 3)->time_ns);
    CHECK(entry(&m, 0, 2, 5)->time_ns > entry(&m, 0, 2, 3)->time_ns);
    measured_free(&m);
}

static void it_stops_when_asked(void)
{
    measured m;
    err e = { 0 };
    stop_request(true);
    CHECK(!measure(&m, "resnet20", 16, 10, false, 1, &e) && e.code == ERR_STOPPED);
    stop_request(false);
    measured_free(&m);
}

int main(void)
{
    START(0);
    RUN(every_network_has_a_table_that_adds_up);
    RUN(same_shapes_are_the_same_number_and_more_work_takes_longer);
    RUN(it_stops_when_asked);
    core_stop();
    END();
}
