/* A test is a sentence: static void conv2d_same_padding_counts_the_border(void). RUN(it) in main,
 * END() last. SKIP("reason") returns from the test and says so. */
#ifndef LM_TEST_H
#define LM_TEST_H

#include <math.h>
#include <stdio.h>
#include <string.h>

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
#define END() do { printf("%s: %d passed, %d failed, %d skipped\n", __FILE__, test_passed, test_failed, \
    test_skipped); return test_failed > 0; } while (0)

#endif
