/* The solver against brute force, the tables against bad files, the JSON against itself. */
#include "core/core.h"
#include "search/search.h"
#include "tests/test.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- random instances ----------------------------------------------------------------------------- */

static search_entry row_of(int st, int end, int ker, bool dw, int64_t ns, int64_t fx)
{
    search_entry r = search_entry_blank;
    r.st = st; r.end = end; r.ker = ker; r.is_dw = dw;
    r.time_ns = ns; r.time_ms = (double)ns / 1e6;
    r.importance_fx = fx; r.importance = (double)fx * 1e-12;
    return r;
}

/* Few distinct values, so that ties, zero latencies and negative importances are common. */
static void random_table(search_table *t, uint64_t seed, int L, bool reachable)
{
    rng r = rng_at(seed, RNG_TEST, 0, 0);
    int levels = 2 + (int)rng_below(&r, 30);
    *t = (search_table){ .L = L };
    t->row = mem_new(512, sizeof *t->row, NULL);
    for (int i = 0; i < L; i++)
        for (int j = i + 1; j <= L && j <= i + 4; j++)
            for (int k = 1; k <= 5; k += 2)
                for (int dw = 0; dw < 2; dw++)
                    if ((reachable && j == i + 1 && k == 1 && !dw) || rng_below(&r, 100) < 25) {
                        t->row[t->n] = row_of(i, j, k, dw, rng_below(&r, (uint32_t)levels),
                                              (int64_t)rng_below(&r, (uint32_t)levels) - levels / 4);
                        t->row[t->n].id = t->n;
                        t->n++;
                    }
}

/* ---- brute force: all paths, the tie rules written out a second time --------------------------------- */

typedef struct { int64_t time, fx; int n, rows[16]; } route;
typedef struct { const search_table *t; int64_t budget; bool found; route best, at; } brute;

static bool better(const search_table *t, const route *a, const route *b)
{
    if (a->fx != b->fx) return a->fx > b->fx;
    if (a->time != b->time) return a->time < b->time;
    if (a->n != b->n) return a->n < b->n;
    for (int i = 0; i < a->n; i++)
        if (t->row[a->rows[i]].end != t->row[b->rows[i]].end) return t->row[a->rows[i]].end < t->row[b->rows[i]].end;
    for (int i = 0; i < a->n; i++) {
        const search_entry *x = &t->row[a->rows[i]], *y = &t->row[b->rows[i]];
        if (x->ker != y->ker) return x->ker < y->ker;
        if (x->is_dw != y->is_dw) return y->is_dw;
    }
    return false;
}

static void walk(brute *b, int node)
{
    if (node == b->t->L) {
        if (b->at.time <= b->budget && (!b->found || better(b->t, &b->at, &b->best))) { b->best = b->at; b->found = true; }
        return;
    }
    for (int r = 0; r < b->t->n; r++) {
        const search_entry *row = &b->t->row[r];
        if (row->st != node) continue;
        b->at.rows[b->at.n++] = r;
        b->at.time += row->time_ns;
        b->at.fx += row->importance_fx;
        walk(b, row->end);
        b->at.n--;
        b->at.time -= row->time_ns;
        b->at.fx -= row->importance_fx;
    }
}

static void compare_with_brute_force(const search_table *t, const search_front *f, int64_t budget)
{
    err e = { 0 };
    brute b = { .t = t, .budget = budget };
    search_solution s;
    walk(&b, 0);
    CHECK_OK(search_front_solve(f, t, budget, 0, &s, &e), e);
    CHECK(s.feasible == b.found);
    CHECK(s.least_ns == search_front_at(f, 0).time_ns);
    if (b.found && s.feasible) {
        CHECK(s.time_ns == b.best.time);
        CHECK(s.time_ns <= budget);
        CHECK(s.n_segment == b.best.n);
        for (int m = 0; m < s.n_segment && m < b.best.n; m++) CHECK(s.segment[m].id == t->row[b.best.rows[m]].id);
    }
    search_solution_free(&s);
}

static void the_front_equals_brute_force_on_2000_random_instances(void)
{
    for (int i = 0; i < 2000 && !test_bad; i++) {
        search_table t;
        err e = { 0 };
        random_table(&t, 1000 + (uint64_t)i, 1 + i % 6, i % 5 != 0);
        search_front *f = search_front_new(&t, &e);
        brute any = { .t = &t, .budget = INT64_MAX };
        walk(&any, 0);
        CHECK((f != NULL) == any.found);
        if (f) {
            for (int p = 0; p < search_front_count(f); p++) {        /* every breakpoint, and just below it */
                search_point at = search_front_at(f, p);
                if (p) CHECK(at.time_ns > search_front_at(f, p - 1).time_ns && at.importance_fx > search_front_at(f, p - 1).importance_fx);
                compare_with_brute_force(&t, f, at.time_ns);
                compare_with_brute_force(&t, f, at.time_ns - 1);
            }
            compare_with_brute_force(&t, f, INT64_MAX / 4);
        } else {
            CHECK(e.code == ERR_DATA);
        }
        search_front_free(f);
        mem_free(t.row);
    }
}

/* 20 free choices of 1, 2, 4, … ns: 2^20 points, one for every budget. */
static void a_front_of_a_million_points_is_thinned_and_says_so(void)
{
    enum { L = 20 };
    search_table t = { .L = L, .row = mem_new(2 * L, sizeof *t.row, NULL) };
    err e = { 0 };
    for (int i = 0; i < L; i++) {
        t.row[t.n++] = row_of(i, i + 1, 1, false, 0, 0);
        t.row[t.n++] = row_of(i, i + 1, 3, false, 1 << i, 1 << i);
    }
    for (int l = 4; l <= L; l += L - 4) {
        search_table part = { .L = l, .row = t.row, .n = 2 * l };
        search_front *f = search_front_new(&part, &e);
        CHECK_OK(f, e);
        const int64_t rounding = search_front_rounding(f);
        CHECK(l == L ? rounding > 0 && rounding < 10 : rounding == 0);
        for (int64_t budget = 0; budget < 1 << l; budget += 1 + (1 << l) / 999) {
            search_solution s;
            CHECK_OK(search_front_solve(f, &part, budget, 0, &s, &e), e);
            CHECK(s.feasible && s.time_ns <= budget && s.time_ns >= budget - rounding && s.rounding_ns == rounding);
            search_solution_free(&s);
        }
        search_front_free(f);
    }
    mem_free(t.row);
}

static void the_fixed_part_is_inside_the_budget(void)
{
    search_table t;
    err e = { 0 };
    random_table(&t, 7, 5, true);
    search_front *f = search_front_new(&t, &e);
    int64_t least = search_front_at(f, 0).time_ns;
    search_solution s;
    CHECK_OK(search_front_solve(f, &t, least + 99, 100, &s, &e), e);
    CHECK(!s.feasible && s.least_ns == least + 100);
    search_solution_free(&s);
    CHECK_OK(search_front_solve(f, &t, least + 100, 100, &s, &e), e);
    CHECK(s.feasible && s.time_ns == least + 100);
    search_solution_free(&s);
    search_front_free(f);
    mem_free(t.row);
}

/* The binned recurrence with fine bins and safe rounding must sit within one bin of the front. Here its
 * truncation is harmless because every time is a whole number of ticks. */
static void the_reference_recurrence_agrees_when_ticks_are_exact(void)
{
    for (int i = 0; i < 200 && !test_bad; i++) {
        search_table t;
        err e = { 0 };
        random_table(&t, 5000 + (uint64_t)i, 2 + i % 5, true);
        for (int r = 0; r < t.n; r++) {                              /* at least one tick each, values of 1e-3 */
            t.row[r].time_ns = (t.row[r].time_ns + 1) * 1000000;
            t.row[r].time_ms = (double)t.row[r].time_ns / 1e6;
            t.row[r].importance_fx *= 1000000000;
            t.row[r].importance = (double)t.row[r].importance_fx * 1e-12;
        }
        search_front *f = search_front_new(&t, &e);
        for (int budget = 1; budget < 40; budget += 3) {
            search_solution exact, ticks;
            CHECK_OK(search_front_solve(f, &t, budget * 1000000LL, 0, &exact, &e), e);
            CHECK_OK(search_solve_reference(&t, budget, 1, &ticks, &e), e);
            CHECK(exact.feasible == ticks.feasible);
            CHECK_CLOSE(exact.importance, ticks.importance, 1e-9);
            search_solution_free(&exact);
            search_solution_free(&ticks);
        }
        search_front_free(f);
        mem_free(t.row);
    }
}

static void an_unreachable_node_is_named(void)
{
    search_entry rows[] = { row_of(0, 1, 3, false, 5, 1), row_of(2, 3, 3, false, 5, 1) };
    search_table t = { rows, 2, 3 };
    err e = { 0 };
    CHECK(!search_front_new(&t, &e));
    CHECK(e.code == ERR_DATA && strstr(e.msg, "node 3") && strstr(e.msg, "node 1"));
}

/* ---- decimal text ------------------------------------------------------------------------------------- */

static void milliseconds_become_nanoseconds_without_a_binary_detour(void)
{
    static const struct { const char *text; bool up; int64_t ns; } good[] = {
        { "2.3", true, 2300000 }, { "2.3", false, 2300000 }, { "1.1677890269160272", true, 1167790 },
        { "1.1677890269160272", false, 1167789 }, { "0", true, 0 }, { "0.0000001", true, 1 },
        { "0.0000001", false, 0 }, { "1e-05", true, 10 }, { "1.5E2", true, 150000000 }, { "000.100", true, 100000 },
        { "1e-400", true, 1 }, { ".5", true, 500000 }, { "5.", true, 5000000 },
        { "0.00000000000000000000000000000000000000000000000000000000000000001", true, 1 },
    };
    static const char *bad[] = { "", "-1", "nan", "1e", "1.2.3", "1x", " 1", "1e30", "99999999999999999999", "." };
    int64_t ns;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(search_parse_ms(good[i].text, good[i].up, &ns));
        CHECK_CLOSE(ns, good[i].ns, 0);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!search_parse_ms(bad[i], true, &ns));
}

/* ---- files ----------------------------------------------------------------------------------------------- */

static const char *file(const char *name, const char *text)
{
    const char *path = in_dir(name);
    err e = { 0 };
    if (text) CHECK_OK(file_write(path, text, strlen(text), &e), e);
    return path;
}

static void tables_join_by_key_in_any_order_of_rows_and_columns(void)
{
    search_table times, imps, all;
    err e = { 0 };
    CHECK_OK(search_read_times(&times, file("t.csv", "stdev,time,is_dw,str,ker,end,st,extra\n"
        "0.1,2.5,False,1,3,2,1,x\r\n0.1,1.5,0,1,3,1,0,\"a,b\"\n0,2,True,1,5,2,0,\n"), &e), e);
    CHECK_OK(search_read_importance(&imps, file("i.csv", ",id,st,end,ker,str,is_dw,conv_comb,importance\n"
        "0,9,0,1,3,1,False,\"(1,)\",0.5\n1,8,0,2,5,1,1,\"(1, 2)\",0.25\n2,7,1,2,3,1,False,\"(2,)\",-1e-3\n"), &e), e);
    CHECK_OK(search_join(&all, &times, &imps, &e), e);
    const search_entry *row = search_table_find(&all, 0, 2, 5, true);
    CHECK(row && row->time_ns == 2000000 && row->importance_fx == 250000000000 && row->n_keep == 2 && row->keep[1] == 2 && row->id == 8);
    CHECK(all.n == 3 && all.L == 2);
    search_table_free(&all); search_table_free(&times); search_table_free(&imps);
}

static void bad_tables_are_refused_with_file_and_line(void)
{
    static const struct { const char *text, *says; } bad[] = {
        { "id,st,end,ker,str,is_dw\n0,0,1,3,1,False\n", "time" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,0,1,3,1,False,nan,0\n", "bad.csv:2" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,0,1,3,1,False,-1,0\n", "bad.csv:2" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,0,1,3,1,False,1,0\n1,0,1,3,1,False,2,0\n", "twice" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,1,1,3,1,False,1,0\n", "bad.csv:2" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,0,1,3,1,Maybe,1,0\n", "bad.csv:2" },
        { "id,st,end,ker,str,is_dw,time,stdev\n", "no rows" },
        { "id,st,end,ker,str,is_dw,time,stdev\n0,0,1,3,1,False,1\n", "" },
        { "", "" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        search_table t;
        err e = { 0 };
        CHECK(!search_read_times(&t, file("bad.csv", bad[i].text), &e));
        CHECK(e.code == ERR_DATA);
        if (!strstr(e.msg, bad[i].says) || !strstr(e.msg, "bad.csv")) CHECK_TEXT(e.msg, bad[i].says);
    }
}

static void different_key_sets_are_an_error_that_names_them(void)
{
    search_table times, imps, all;
    err e = { 0 };
    CHECK_OK(search_read_times(&times, file("t.csv", "st,end,ker,str,is_dw,time\n0,1,3,1,0,1\n1,2,3,1,0,1\n"), &e), e);
    CHECK_OK(search_read_importance(&imps, file("i.csv", "st,end,ker,str,is_dw,conv_comb,importance\n0,1,3,1,0,\"(1,)\",1\n"), &e), e);
    CHECK(!search_join(&all, &times, &imps, &e) && e.code == ERR_DATA && strstr(e.msg, "(1,2]"));
    search_table_free(&times); search_table_free(&imps);
}

static void a_solution_survives_writing_and_reading(void)
{
    search_table t;
    err e = { 0 };
    random_table(&t, 3, 6, true);
    search_front *f = search_front_new(&t, &e);
    search_solution a, b;
    CHECK_OK(search_front_solve(f, &t, 1000000, 0, &a, &e), e);
    const char *path = file("s.json", NULL);
    CHECK_OK(search_solution_write(&a, path, &e), e);
    CHECK_OK(search_solution_read(&b, path, &e), e);
    CHECK(b.n_segment == a.n_segment && b.n_act == a.n_act && b.time_ns == a.time_ns && b.budget_ns == a.budget_ns);
    buf x = { 0 }, y = { 0 };
    search_solution_json(&a, &x);
    search_solution_json(&b, &y);
    CHECK_TEXT(x.data, y.data);
    for (size_t cut = 0; cut < x.len; cut += 3) {                    /* a torn file is refused, never a crash */
        search_solution c;
        x.data[cut] = 0;
        CHECK(!search_solution_read(&c, file("torn.json", x.data), &e));
        x.data[cut] = y.data[cut];
    }
    buf_free(&x); buf_free(&y);
    search_solution_free(&a); search_solution_free(&b);
    search_front_free(f);
    mem_free(t.row);
}

static void methods_offer_what_their_papers_allow(void)
{
    int keep2[] = { 1, 2 }, keep1[] = { 1 };
    search_entry rows[] = { row_of(0, 1, 3, false, 1, 1), row_of(0, 2, 5, false, 1, 1), row_of(0, 2, 3, false, 1, 1) };
    rows[0].keep = keep1; rows[0].n_keep = 1;
    rows[1].keep = keep2; rows[1].n_keep = 2;
    rows[2].keep = keep1; rows[2].n_keep = 1;
    search_table t = { rows, 3, 2 }, out;
    static const struct { const char *name; int n; } want[] = { { "layermerge", 3 }, { "depth", 2 }, { "layeronly", 1 } };
    for (int i = 0; i < 3; i++) {
        err e = { 0 };
        CHECK_OK(search_filter(&t, search_method_find(want[i].name), &out, &e), e);
        CHECK(out.n == want[i].n);
        mem_free(out.row);
    }
}

int main(void)
{
    make_dir();
    RUN(the_front_equals_brute_force_on_2000_random_instances);
    RUN(a_front_of_a_million_points_is_thinned_and_says_so);
    RUN(the_fixed_part_is_inside_the_budget);
    RUN(the_reference_recurrence_agrees_when_ticks_are_exact);
    RUN(an_unreachable_node_is_named);
    RUN(milliseconds_become_nanoseconds_without_a_binary_detour);
    RUN(tables_join_by_key_in_any_order_of_rows_and_columns);
    RUN(bad_tables_are_refused_with_file_and_line);
    RUN(different_key_sets_are_an_error_that_names_them);
    RUN(a_solution_survives_writing_and_reading);
    RUN(methods_offer_what_their_papers_allow);
    remove_dir();
    END();
}
