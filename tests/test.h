/* A test is a sentence: static void conv2d_same_padding_counts_the_border(void). RUN(it) in main,
 * END() last. SKIP("reason") returns from the test and says so. A program that writes files asks for
 * make_dir() first, names them with in_dir("a/b") and ends with remove_dir(). */
#ifndef LM_TEST_H
#define LM_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int test_passed, test_failed, test_skipped, test_bad, test_skip;

#define CHECK(cond) do { if (!(cond)) { test_bad++; \
    fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #cond); } } while (0)
#define CHECK_CLOSE(a, b, tol) do { double a_ = (double)(a), b_ = (double)(b); \
    if (!(fabs(a_ - b_) <= (double)(tol))) { test_bad++; \
    fprintf(stderr, "%s:%d: %s = %.9g, %s = %.9g\n", __FILE__, __LINE__, #a, a_, #b, b_); } } while (0)
#define CHECK_TEXT(a, b) do { const char *a_ = (a), *b_ = (b); if (!a_ || strcmp(a_, b_)) { test_bad++; \
    fprintf(stderr, "%s:%d: %s is \"%s\", wanted \"%s\"\n", __FILE__, __LINE__, #a, a_ ? a_ : "(null)", b_); } } while (0)
#define CHECK_OK(call, e) do { if (!(call)) { test_bad++; \
    fprintf(stderr, "%s:%d: %s failed: %s\n", __FILE__, __LINE__, #call, (e).msg); } } while (0)
#define SKIP(why) do { test_skip = 1; printf("skipped: %s: %s\n", __func__, why); return; } while (0)

#define RUN(t) do { test_bad = test_skip = 0; t(); \
    if (test_bad) { test_failed++; printf("FAILED: %s\n", #t); } \
    else if (test_skip) test_skipped++; else test_passed++; \
    fflush(stdout); } while (0)
/* The instruction set that the whole suite is run with (make test TEST_ISA=), NULL: the best. */
static inline const char *test_isa(void)
{
    const char *isa = getenv("TEST_ISA");
    return isa && *isa ? isa : NULL;
}

/* TEST_FEW: where everything is slow (sanitizers), without what repeats the same for other numbers. */
static inline bool test_few(void) { return getenv("TEST_FEW") != NULL; }

/* First in the main of a program that computes: threads of the pool, 0: all. Wants core/core.h. */
#define START(n) do { err e_ = { 0 }; \
    if (!core_init(&(core_options){ .threads = (n), .isa = test_isa() }, &e_)) { \
        fprintf(stderr, "%s\n", e_.msg); \
        return 1; \
    } } while (0)
#define END() do { printf("%s: %d passed, %d failed, %d skipped\n", __FILE__, test_passed, test_failed, \
    test_skipped); return test_failed > 0; } while (0)

static char temp_dir[256];

/* A new folder in $TMPDIR or /tmp. */
static inline void make_dir(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(temp_dir, sizeof temp_dir, "%.200s/layermerge-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(temp_dir)) {
        perror(temp_dir);
        exit(1);
    }
}

/* Of the last eight names asked for, each has memory of its own. */
static inline const char *in_dir(const char *name)
{
    static char path[8][512];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", temp_dir, name);
    return path[turn];
}

static inline void remove_dir(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", temp_dir);
    if (system(command)) fprintf(stderr, "cannot remove %s\n", temp_dir);
}

#endif
