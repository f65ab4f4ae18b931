/* Errors, memory, files, random numbers, threads, the matrix product. */
#define _GNU_SOURCE
#include "core/core.h"
#include "core/io.h"
#include "tests/test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int files_in_folder(void) {
    char command[512];
    snprintf(command, sizeof command, "ls -A %s | wc -l", temp_dir);
    FILE *f = popen(command, "r");
    int n = -1;
    if (!f || fscanf(f, "%d", &n) != 1) n = -1;
    if (f) pclose(f);
    return n;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void an_error_keeps_its_code_and_grows_to_the_left(void) {
    err e = {0};
    CHECK(!err_set(&e, ERR_DATA, "line %d is odd", 7));
    CHECK(!err_note(&e, "reading %s", "a.csv"));
    CHECK(e.code == ERR_DATA);
    CHECK_TEXT(e.msg, "reading a.csv: line 7 is odd");
    CHECK(!err_set(NULL, ERR_DATA, "nobody listens"));
    CHECK(!err_note(NULL, "nobody listens"));
}

static void an_error_stays_one_line_of_bounded_length(void) {
    err e = {0};
    char big[2 * sizeof e.msg];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    err_set(&e, ERR_DATA, "file\nname %s", big);
    CHECK(!strchr(e.msg, '\n') && strlen(e.msg) == sizeof e.msg - 1);
    err_note(&e, "%s", big);
    CHECK(strlen(e.msg) == sizeof e.msg - 1);
    err_set(&e, ERR_DATA, "inner");
    err_set(&e, ERR_IO, "outer %s", e.msg);
    CHECK_TEXT(e.msg, "outer inner");
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void sizes_that_overflow_are_refused(void) {
    size_t out = 5;
    CHECK(!size_mul(SIZE_MAX / 2, 3, &out) && out == 5);
    CHECK(!size_add(SIZE_MAX, 1, &out) && out == 5);
    CHECK(size_mul(6, 7, &out) && out == 42);
    CHECK(size_mul(SIZE_MAX, 0, &out) && out == 0);
    CHECK(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
}

static void memory_is_zeroed_and_aligned(void) {
    err e = {0};
    for (size_t n = 0; n < 300; n += 37) {
        char *p = mem_new(n, 3, &e);
        CHECK(p && (uintptr_t)p % 64 == 0);
        for (size_t i = 0; p && i < 3 * n; i++) CHECK(p[i] == 0);
        if (p) memset(p, 0xAA, 3 * n);
        mem_free(p);
    }
    mem_free(NULL);
    char *t = mem_text("copy me", &e);
    CHECK_TEXT(t, "copy me");
    mem_free(t);
}

static void memory_nobody_has_is_an_error(void) {
    err e = {0};
    CHECK(!mem_new(SIZE_MAX / 2, 4, &e) && e.code == ERR_NOMEM);
    e = (err){0};
    CHECK(!mem_new(SIZE_MAX / 128, 64, &e) && e.code == ERR_NOMEM);
    e = (err){0};
    CHECK(!mem_new((size_t)1 << 46, 1, &e) && e.code == ERR_NOMEM);
    arena a;
    e = (err){0};
    CHECK(!arena_init(&a, SIZE_MAX - 100, &e) && e.code == ERR_NOMEM);
    CHECK(!arena_init(&a, (size_t)1 << 46, &e));
    CHECK(!arena_take(&a, 1));
    arena_free(&a);
}

static void allocation_fails_on_request(void) {
    err e = {0};
    int64_t before = mem_fail_at(2);
    void *p = mem_new(1, 1, &e), *q = mem_new(1, 1, &e), *r = mem_new(1, 1, NULL);
    CHECK(p && !q && r && e.code == ERR_NOMEM);
    CHECK(mem_fail_at(0) == before + 3);
    mem_free(p);
    mem_free(r);
}

static void an_arena_hands_out_aligned_zeroed_memory_until_full(void) {
    err e = {0};
    size_t sizes[] = { 0, 100, 4096, (3 << 20) + 5 };
    for (int s = 0; s < 4; s++) {
        arena a;
        CHECK_OK(arena_init(&a, sizes[s], &e), e);
        if (a.cap >= 2 << 20) CHECK((uintptr_t)a.base % (2 << 20) == 0);
        CHECK(!arena_take(&a, sizes[s] + 64));
        char *first = arena_take(&a, sizes[s] / 2), *second = arena_take(&a, sizes[s] / 2 > 64 ? sizes[s] / 2 - 64 : 0);
        CHECK(first && second && (uintptr_t)second % 64 == 0 && second >= first + sizes[s] / 2);
        for (size_t i = 0; first && i < sizes[s] / 2; i++)
            if (first[i]) { CHECK(!"zeroed"); break; }
        if (first) memset(first, 1, sizes[s] / 2);
        arena_free(&a);
        arena_free(&a);
    }
}

static void a_buffer_grows_and_stays_text(void) {
    buf b = {0};
    for (int i = 0; i < 1000; i++) buf_printf(&b, "%d,", i);
    CHECK(!b.failed && b.len == 3890 && strlen(b.data) == b.len);
    char long_text[1000];
    memset(long_text, 'y', 999);
    long_text[999] = '\0';
    buf_free(&b);
    buf_printf(&b, "<%s>", long_text);
    CHECK(b.len == 1001 && b.data[0] == '<' && b.data[1000] == '>' && !b.data[1001]);
    buf_free(&b);
    CHECK(!b.data && !b.len);
}

static void a_failed_growth_sticks(void) {
    buf b = {0};
    buf_puts(&b, "kept");
    mem_fail_at(1);
    char big[1000] = {0};
    buf_put(&b, big, sizeof big);
    CHECK(b.failed);
    buf_puts(&b, "more");
    CHECK(b.failed && b.len == 4);
    CHECK_TEXT(b.data, "kept");
    mem_fail_at(0);
    buf_free(&b);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void a_file_reads_back_as_written(void) {
    err e = {0};
    const char *path = in_dir("f.bin");
    char data[200000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * 31 >> 3);
    CHECK_OK(file_write(path, data, sizeof data, &e), e);
    buf b = {0};
    CHECK_OK(file_read(path, &b, &e), e);
    CHECK(b.len == sizeof data && !memcmp(b.data, data, b.len));
    buf_free(&b);
    file_map m;
    CHECK_OK(file_map_open(&m, path, &e), e);
    CHECK(m.size == sizeof data && !memcmp(m.data, data, m.size));
    file_map_close(&m);
    CHECK_OK(file_write(path, "", 0, &e), e);
    CHECK_OK(file_read(path, &b, &e), e);
    CHECK(b.len == 0);
    CHECK_TEXT(b.data, "");
    buf_free(&b);
    CHECK_OK(file_map_open(&m, path, &e), e);
    CHECK(m.size == 0 && m.data);
    file_map_close(&m);
    CHECK(file_exists(path) && !file_is_dir(path) && file_is_dir(temp_dir));
    unlink(path);
    CHECK(!file_exists(path));
}

static void one_file_is_known_under_all_its_names(void) {
    err e = {0};
    char dotted[600], link_path[600], other[600];
    const char *path = in_dir("same");
    snprintf(dotted, sizeof dotted, "%s/./same", temp_dir);
    snprintf(link_path, sizeof link_path, "%s/link", temp_dir);
    snprintf(other, sizeof other, "%s/./other", temp_dir);
    CHECK(file_same(path, path) && !file_same(path, NULL) && !file_same(NULL, NULL));
    CHECK(file_same(path, dotted) && !file_same(path, other));     /* neither is there */
    CHECK(file_same("same-nowhere", "./same-nowhere") && !file_same("no/same", "same"));
    CHECK_OK(file_write(path, "1", 1, &e), e);
    CHECK(!file_same(path, other) && !file_same(other, path));
    CHECK_OK(file_write(other, "1", 1, &e), e);
    CHECK(file_same(path, dotted) && !file_same(path, other));
    CHECK(!symlink("same", link_path) && file_same(link_path, path) && !file_same(link_path, other));
    CHECK_OK(file_differ("--in", path, "--out", other, &e), e);
    CHECK(!file_differ("--in", path, "--out", dotted, &e) && e.code == ERR_USAGE);
    CHECK(strstr(e.msg, "--in ") && strstr(e.msg, "and --out ") && strstr(e.msg, "different files"));
    unlink(link_path), unlink(path), unlink(other);
}

static void a_missing_input_is_named(void) {
    err e = {0};
    buf b = {0};
    file_map m;
    char hex[65];
    const char *path = in_dir("nowhere");
    CHECK(!file_read(path, &b, &e) && e.code == ERR_NOINPUT && strstr(e.msg, path));
    e = (err){0};
    CHECK(!file_map_open(&m, path, &e) && e.code == ERR_NOINPUT && strstr(e.msg, path));
    CHECK(!file_sha256(path, hex, &e));
    e = (err){0};
    CHECK(!file_read(temp_dir, &b, &e) && e.code == ERR_NOINPUT && strstr(e.msg, "folder"));
    buf_free(&b);
}

static void a_file_that_cannot_be_mapped_is_copied(void) {
    err e = {0};
    file_map m;
    CHECK_OK(file_map_open(&m, "/proc/self/status", &e), e);
    CHECK(m.size > 100 && !memcmp(m.data, "Name:", 5));
    file_map_close(&m);
}

/* The limit on file sizes stands in for a full disk. */
static void a_write_that_fails_leaves_the_old_file(void) {
    err e = {0};
    const char *path = in_dir("precious");
    CHECK_OK(file_write(path, "old", 3, &e), e);
    struct rlimit keep, tight;
    getrlimit(RLIMIT_FSIZE, &keep);
    tight = (struct rlimit){ 1000, keep.rlim_max };
    setrlimit(RLIMIT_FSIZE, &tight);
    char big[5000] = {0};
    bool wrote = file_write(path, big, sizeof big, &e);
    setrlimit(RLIMIT_FSIZE, &keep);
    CHECK(!wrote && e.code == ERR_IO && strstr(e.msg, path));
    buf b = {0};
    CHECK_OK(file_read(path, &b, &e), e);
    CHECK_TEXT(b.data, "old");
    buf_free(&b);
    CHECK(files_in_folder() == 1);
    unlink(path);
}

static void held_room_has_no_name_and_is_refused_when_there_is_none(void) {
    err e = {0};
    int fd, before = files_in_folder();
    struct stat st;
    CHECK_OK(file_hold_room(in_dir("later"), 5000, &fd, &e), e);
    CHECK(files_in_folder() == before);
    if (fd >= 0) {
        CHECK(!fstat(fd, &st) && st.st_size == 5000 && st.st_blocks > 0);
        close(fd);
    }
    CHECK(file_hold_room("/dev/null", 5000, &fd, &e) && fd == -1);
    CHECK(!file_hold_room(in_dir("no/folder"), 5000, &fd, &e) && e.code == ERR_IO && fd == -1);
    struct rlimit keep, tight;
    getrlimit(RLIMIT_FSIZE, &keep);
    tight = (struct rlimit){ 1000, keep.rlim_max };
    setrlimit(RLIMIT_FSIZE, &tight);
    bool held = file_hold_room(in_dir("later"), 5000, &fd, &e);
    setrlimit(RLIMIT_FSIZE, &keep);
    CHECK(!held && fd == -1 && e.code == ERR_IO && strstr(e.msg, "later: no room for 5000 bytes"));
    CHECK(files_in_folder() == before);
}

static void a_folder_that_may_not_be_written_is_the_cause(void) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {                               /* root may write anywhere */
        err e = {0};
        if (!getuid() && setuid(65534)) _exit(2);
        bool may = file_may_write("/layermerge-is-not-there", &e);
        _exit(may || e.code != ERR_IO || strstr(e.msg, "No such file"));
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    if (WEXITSTATUS(status) == 2) SKIP("root cannot become another user");
    CHECK(WEXITSTATUS(status) == 0);
}

static void a_full_disk_is_an_io_error(void) {
    if (!file_exists("/dev/full")) SKIP("no /dev/full");
    err e = {0};
    CHECK(!file_write("/dev/full", "x", 1, &e) && e.code == ERR_IO && strstr(e.msg, "/dev/full"));
    e = (err){0};
    CHECK(!file_append_line("/dev/full", "x", &e) && e.code == ERR_IO);
    e = (err){0};
    CHECK(!file_write(in_dir("no/such/folder"), "x", 1, &e) && e.code == ERR_IO);
    e = (err){0};
    CHECK(!file_write(temp_dir, "x", 1, &e) && e.code == ERR_IO);
}

static void writing_keeps_links_and_permissions(void) {
    err e = {0};
    const char *real = in_dir("real"), *link_path = in_dir("link");
    CHECK_OK(file_write(real, "1", 1, &e), e);
    CHECK(chmod(real, 0640) == 0 && symlink("real", link_path) == 0);
    CHECK_OK(file_write(link_path, "22", 2, &e), e);
    struct stat st;
    CHECK(lstat(link_path, &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(stat(real, &st) == 0 && st.st_size == 2 && (st.st_mode & 0777) == 0640);
    unlink(real);
    unlink(link_path);
}

static void lines_are_appended(void) {
    err e = {0};
    const char *path = in_dir("log");
    CHECK_OK(file_append_line(path, "one", &e), e);
    CHECK_OK(file_append_line(path, "two", &e), e);
    buf b = {0};
    CHECK_OK(file_read(path, &b, &e), e);
    CHECK_TEXT(b.data, "one\ntwo\n");
    buf_free(&b);
    unlink(path);
}

static void folders_are_made_with_their_parents(void) {
    err e = {0};
    CHECK_OK(file_make_dirs(in_dir("a/b//c/"), &e), e);
    CHECK_OK(file_make_dirs(in_dir("a/b/c"), &e), e);
    CHECK(file_is_dir(in_dir("a/b/c")));
    CHECK_OK(file_write(in_dir("a/file"), "", 0, &e), e);
    CHECK(!file_make_dirs(in_dir("a/file/x"), &e) && e.code == ERR_IO);
    unlink(in_dir("a/file"));
    rmdir(in_dir("a/b/c"));
    rmdir(in_dir("a/b"));
    rmdir(in_dir("a"));
}

static void sha256_matches_the_published_vectors(void) {
    static const struct { const char *text, *hex; } known[] = {   /* FIPS 180-4 examples */
        { "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
        { "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    };
    char hex[65];
    for (int i = 0; i < 3; i++) {
        sha256 s;
        sha256_init(&s);
        sha256_add(&s, known[i].text, strlen(known[i].text));
        sha256_hex(&s, hex);
        CHECK_TEXT(hex, known[i].hex);
    }
    sha256 s;                                 /* a million times "a", in uneven pieces */
    sha256_init(&s);
    char a[977];
    memset(a, 'a', sizeof a);
    for (size_t left = 1000000; left; ) {
        size_t take = left % 976 + 1 < left ? left % 976 + 1 : left;
        sha256_add(&s, a, take);
        left -= take;
    }
    sha256_hex(&s, hex);
    CHECK_TEXT(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    err e = {0};
    CHECK_OK(file_write(in_dir("abc"), "abc", 3, &e), e);
    CHECK_OK(file_sha256(in_dir("abc"), hex, &e), e);
    CHECK_TEXT(hex, known[1].hex);
    unlink(in_dir("abc"));
}

/* ---- random numbers -------------------------------------------------------------------------- */

static void philox_matches_the_random123_vectors(void) {
    static const struct { uint32_t ctr[4], key[2], out[4]; } known[] = {
        { {0}, {0}, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (int i = 0; i < 3; i++) {
        rng r = {0};
        memcpy(r.ctr, known[i].ctr, sizeof r.ctr);
        memcpy(r.key, known[i].key, sizeof r.key);
        for (int k = 0; k < 4; k++) CHECK(rng_u32(&r) == known[i].out[k]);
    }
}

static void streams_depend_on_all_of_their_name(void) {
    rng base = rng_at(1, RNG_NOISE, 2, 3);
    rng other[] = { rng_at(2, RNG_NOISE, 2, 3), rng_at(1 + ((uint64_t)1 << 32), RNG_NOISE, 2, 3),
                    rng_at(1, RNG_SPLIT, 2, 3), rng_at(1, RNG_NOISE, 3, 3), rng_at(1, RNG_NOISE, 2, 4),
                    rng_at(1, RNG_NOISE, 2, 3 + ((uint64_t)1 << 32)),
                    rng_at(1, RNG_NOISE, 2, 3 + ((uint64_t)1 << 55)) };
    rng again = rng_at(1, RNG_NOISE, 2, 3);
    uint32_t first = rng_u32(&base);
    CHECK(rng_u32(&again) == first);
    for (int i = 0; i < 7; i++) CHECK(rng_u32(&other[i]) != first);
    for (int i = 0; i < 3; i++) rng_u32(&base);
    CHECK(rng_u32(&base) != first);           /* the fifth draw comes from the next block */
}

static void uniform_and_normal_have_their_moments(void) {
    enum { N = 200000 };
    rng r = rng_at(7, RNG_TEST, 0, 0);
    double s1 = 0, s2 = 0, lo = 1, hi = 0;
    for (int i = 0; i < N; i++) {
        double u = rng_uniform(&r);
        s1 += u;
        s2 += u * u;
        if (u < lo) lo = u;
        if (u > hi) hi = u;
    }
    CHECK(lo >= 0 && hi < 1 && lo < 1e-4 && hi > 1 - 1e-4);
    CHECK_CLOSE(s1 / N, 0.5, 0.003);
    CHECK_CLOSE(s2 / N, 1.0 / 3, 0.003);
    double m[5] = {0};
    for (int i = 0; i < N; i++) {
        double x = rng_normal(&r), p = 1;
        for (int k = 1; k < 5; k++) m[k] += (p *= x);
    }
    CHECK_CLOSE(m[1] / N, 0, 0.012);
    CHECK_CLOSE(m[2] / N, 1, 0.02);
    CHECK_CLOSE(m[3] / N, 0, 0.05);
    CHECK_CLOSE(m[4] / N, 3, 0.15);
}

static void below_is_even_and_shuffle_is_a_permutation(void) {
    rng r = rng_at(3, RNG_TEST, 0, 1);
    int count[7] = {0};
    for (int i = 0; i < 70000; i++) {
        uint32_t x = rng_below(&r, 7);
        CHECK(x < 7);
        count[x < 7 ? x : 0]++;
    }
    for (int i = 0; i < 7; i++) CHECK_CLOSE(count[i], 10000, 500);
    CHECK(rng_below(&r, 1) == 0);
    int low = 0;                              /* 3·2^30: a plain remainder hits the first third twice as often */
    for (int i = 0; i < 30000; i++) low += rng_below(&r, 3u << 30) < 1u << 30;
    CHECK_CLOSE(low, 10000, 500);
    int32_t a[1000], seen[1000] = {0}, fixed = 0;
    for (int i = 0; i < 1000; i++) a[i] = i;
    rng_shuffle(&r, a, 1000);
    for (int i = 0; i < 1000; i++) {
        seen[a[i]]++;
        fixed += a[i] == i;
    }
    for (int i = 0; i < 1000; i++) CHECK(seen[i] == 1);
    CHECK(fixed < 10);
    int first[3] = {0};
    for (int i = 0; i < 3000; i++) {
        int32_t three[3] = { 0, 1, 2 };
        rng_shuffle(&r, three, 3);
        first[three[0]]++;
    }
    for (int i = 0; i < 3; i++) CHECK_CLOSE(first[i], 1000, 150);
}

/* ---- threads --------------------------------------------------------------------------------- */

typedef struct { atomic_int *hits; atomic_int bad; double *out; } visit;

static void visit_item(void *ctx, int64_t i, int worker) {
    visit *v = ctx;
    if (worker < 0 || worker >= par_threads()) atomic_fetch_add(&v->bad, 1);
    atomic_fetch_add(&v->hits[i], 1);
    if (v->out) v->out[i] = sqrt((double)i);
}

static void start(int threads) {
    err e = {0};
    core_stop();
    CHECK_OK(core_init(&(core_options){ .threads = threads, .isa = test_isa() }, &e), e);
}

static void every_item_is_visited_once_on_any_number_of_threads(void) {
    enum { N = 5000 };
    static atomic_int hits[N];
    static double out[N];
    int threads[] = { 1, 2, 7 };
    for (int t = 0; t < 3; t++) {
        start(threads[t]);
        CHECK(par_threads() == threads[t]);
        int64_t sizes[] = { 0, 1, 2, 3, 17, N };
        for (int s = 0; s < 6; s++) {
            memset(hits, 0, sizeof hits);
            memset(out, 0, sizeof out);
            visit v = { .hits = hits, .out = out };
            par_for(sizes[s], visit_item, &v);
            CHECK(!atomic_load(&v.bad));
            for (int64_t i = 0; i < N; i++)
                if (atomic_load(&hits[i]) != (i < sizes[s])) { CHECK(!"visited once"); break; }
            for (int64_t i = 0; i < sizes[s]; i++)
                if (fabs(out[i] - sqrt((double)i)) > 0) { CHECK(!"its result is there"); break; }
        }
    }
    core_stop();
    CHECK(par_threads() == 1);
}

static void add_one(void *ctx, int64_t i, int worker) {
    (void)i, (void)worker;
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void many_small_jobs_lose_nothing(void) {
    int threads[] = { 2, 3 };
    for (int t = 0; t < 2; t++) {
        start(threads[t]);
        atomic_int sum = 0;
        for (int job = 0; job < 20000; job++) {
            par_for(1 + job % 5, add_one, &sum);
            if (job % 5000 == 0) usleep(2000);        /* let the workers fall asleep */
        }
        CHECK(atomic_load(&sum) == 4000 * (1 + 2 + 3 + 4 + 5));
    }
    core_stop();
}

typedef struct { atomic_int sum, strayed; } nested;

static void nested_inner(void *ctx, int64_t i, int worker) {
    (void)i;
    nested *c = ((void **)ctx)[0];
    if (worker != *(int *)((void **)ctx)[1]) atomic_fetch_add(&c->strayed, 1);
    atomic_fetch_add(&c->sum, 1);
}

static void nested_outer(void *ctx, int64_t i, int worker) {
    (void)i;
    void *both[2] = { ctx, &worker };
    par_for(10, nested_inner, both);
}

static void a_nested_call_stays_on_its_worker(void) {
    start(3);
    nested c = {0};
    par_for(100, nested_outer, &c);
    CHECK(atomic_load(&c.sum) == 1000 && !atomic_load(&c.strayed));
    core_stop();
}

static void *stranger(void *arg) {
    for (int i = 0; i < 2000; i++) par_for(10, add_one, arg);
    return NULL;
}

static void a_thread_outside_the_pool_may_call_at_any_time(void) {
    start(2);
    pthread_t t[2];
    atomic_int theirs = 0, ours = 0;
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&t[i], NULL, stranger, &theirs) == 0);
    for (int i = 0; i < 2000; i++) par_for(10, add_one, &ours);
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    CHECK(atomic_load(&theirs) == 40000 && atomic_load(&ours) == 20000);
    core_stop();
}

static void slow_item(void *ctx, int64_t i, int worker) {
    (void)worker;
    usleep(i ? 3000 : 0);
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void the_owner_waits_for_slow_workers(void) {
    start(2);
    for (int round = 1; round < 4; round++) {
        atomic_int sum = 0;
        par_for(3, slow_item, &sum);
        CHECK(atomic_load(&sum) == 3);
    }
    core_stop();
}

typedef struct { atomic_int begun, strayed; int n; } gathering;

static void wait_for_all(void *ctx, int64_t i, int worker) {
    gathering *g = ctx;
    if (worker != (int)i) atomic_fetch_add(&g->strayed, 1);
    atomic_fetch_add(&g->begun, 1);
    while (atomic_load(&g->begun) % g->n) usleep(10);
}

/* Where each worker can do but one item, it is that of its own share. */
static void a_worker_takes_its_own_share_first(void) {
    for (int threads = 2; threads <= 5; threads += 3) {
        start(threads);
        for (int round = 0; round < 20; round++) {
            gathering g = { .n = threads };
            par_for(threads, wait_for_all, &g);
            CHECK(atomic_load(&g.begun) == threads && !atomic_load(&g.strayed));
        }
        core_stop();
    }
}

/* ---- the machine ----------------------------------------------------------------------------- */

static void what_does_not_exist_is_refused_by_name(void) {
    err e = {0};
    core_stop();
    CHECK(!core_init(&(core_options){ .isa = "avx9" }, &e) && e.code == ERR_CONFIG && strstr(e.msg, "avx9"));
    CHECK(!core_init(&(core_options){ .threads = -1 }, &e) && e.code == ERR_CONFIG && strstr(e.msg, "-1"));
    CHECK(!core_init(&(core_options){ .conv = "magic" }, &e) && strstr(e.msg, "magic"));
    CHECK_OK(core_init(&(core_options){ .isa = "scalar", .threads = 1, .conv = "im2col" }, &e), e);
    CHECK(core_isa() == ISA_SCALAR);
    CHECK_TEXT(core_conv_road(), "im2col");
    CHECK(!core_init(&(core_options){0}, &e) && e.code == ERR_INTERNAL);
    core_stop();
    CHECK_OK(core_init(&(core_options){0}, &e), e);
    CHECK(par_threads() == core_cpus() || par_threads() < core_cpus());
    isa_level best = core_isa();
    core_stop();
    for (int i = (int)best + 1; i < ISA_COUNT; i++) {
        e = (err){0};
        CHECK(!core_init(&(core_options){ .isa = isa_names[i] }, &e) && strstr(e.msg, isa_names[i]));
    }
    core_stop();
}

static void the_description_is_a_json_object(void) {
    start(1);
    buf b = {0};
    core_describe(&b);
    err e = {0};
    json *j = json_parse(b.data, b.len, &e);
    CHECK_OK(j, e);
    const char *key[] = { "compiler", "flags", "commit", "cpu", "isa", "blas", "jpeg" };
    for (int i = 0; j && i < 6; i++) {
        const char *text = NULL;
        CHECK_OK(json_get_text(j, key[i], &text, &e), e);
    }
    int64_t threads = 0;
    CHECK(j && json_get_int(j, "threads", &threads, &e) && threads == 1);
    json_free(j);
    buf_free(&b);
    core_stop();
}

static void clocks_go_forward(void) {
    int64_t t = clock_ns();
    double self = clock_cpu_self(), all = clock_cpu_all();
    while (clock_cpu_self() < self + 0.03 && clock_ns() < t + INT64_C(20000000000)) continue;
    CHECK(clock_ns() >= t + 15000000);        /* that much of one core takes that much time */
    CHECK(clock_cpu_self() >= self + 0.03 && clock_cpu_all() >= all);
}

static void a_signal_asks_to_stop(void) {
    stop_install();
    CHECK(!stop_requested());
    raise(SIGTERM);
    CHECK(stop_requested());
    stop_request(false);
    CHECK(!stop_requested());
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
}

/* ---- tensors and products -------------------------------------------------------------------- */

static void layouts_turn_into_each_other(void) {
    enum { N = 2, C = 21, H = 5, W = 7 };
    float a[N * C * H * W], b[N * C * H * W], back[N * C * H * W];
    for (int i = 0; i < N * C * H * W; i++) a[i] = (float)i;
    nchw_to_nhwc(a, N, C, H, W, b);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            for (int h = 0; h < H; h++)
                for (int w = 0; w < W; w++)
                    if (fabsf(b[((n * H + h) * W + w) * C + c] - a[((n * C + c) * H + h) * W + w]) > 0) {
                        CHECK(!"channels last");
                        return;
                    }
    nhwc_to_nchw(b, N, H, W, C, back);
    CHECK(!memcmp(a, back, sizeof a));
    CHECK(tensor_count(&(tensor){ .rank = 3, .dim = { 2, 3, 4 } }) == 24 && tensor_count(&(tensor){0}) == 1);
}

static void the_product_is_the_product(void) {
    start(2);
    int shape[][3] = { {1,1,1}, {3,5,7}, {4,16,9}, {65,130,70}, {6,1,200}, {1,300,65}, {2,3,0}, {0,2,2} };
    rng r = rng_at(1, RNG_TEST, 0, 9);
    enum { MOST = 210 * 310 };
    static float a[MOST], b[MOST], c[MOST], c0[MOST];
    static double da[MOST], db[MOST], dc[MOST];
    for (int i = 0; i < MOST; i++) {
        da[i] = (double)(a[i] = (float)rng_normal(&r));
        db[i] = (double)(b[i] = (float)rng_normal(&r));
        c0[i] = (float)rng_normal(&r);
    }
    for (int s = 0; s < (int)(sizeof shape / sizeof *shape); s++)
        for (int mode = 0; mode < 12; mode++) {
            bool ta = mode & 1, tb = mode & 2;
            float beta = (float[]){ 0, 1, -0.5f }[mode / 4];
            int m = shape[s][0], n = shape[s][1], k = shape[s][2];
            int lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 2, ldc = n + 1;
            for (int i = 0; i < MOST; i++) {
                c[i] = mode < 4 && i % ldc < n && i / ldc < m ? NAN : c0[i];   /* beta 0 forgets even NaN */
                dc[i] = (double)c[i];
            }
            gemm_f32(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
            gemm_f64(ta, tb, m, n, k, da, lda, db, ldb, (double)beta, dc, ldc);
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++) {
                    double want = mode < 4 ? 0 : (double)beta * (double)c0[i * ldc + j];
                    for (int p = 0; p < k; p++)
                        want += da[ta ? p * lda + i : i * lda + p] * db[tb ? j * ldb + p : p * ldb + j];
                    if (!(fabs(want - (double)c[i * ldc + j]) < 1e-4) || !(fabs(want - dc[i * ldc + j]) < 1e-12)) {
                        CHECK_CLOSE(c[i * ldc + j], want, 1e-4);
                        CHECK_CLOSE(dc[i * ldc + j], want, 1e-12);
                        return;
                    }
                }
            for (int i = 0; i < m; i++)       /* the column beyond the product is untouched */
                CHECK(!(fabsf(c[i * ldc + n] - c0[i * ldc + n]) > 0));
        }
    core_stop();
}

int main(void) {
    make_dir();
    signal(SIGXFSZ, SIG_IGN);

    RUN(an_error_keeps_its_code_and_grows_to_the_left);
    RUN(an_error_stays_one_line_of_bounded_length);
    RUN(sizes_that_overflow_are_refused);
    RUN(memory_is_zeroed_and_aligned);
    RUN(memory_nobody_has_is_an_error);
    RUN(allocation_fails_on_request);
    RUN(an_arena_hands_out_aligned_zeroed_memory_until_full);
    RUN(a_buffer_grows_and_stays_text);
    RUN(a_failed_growth_sticks);
    RUN(a_file_reads_back_as_written);
    RUN(one_file_is_known_under_all_its_names);
    RUN(a_missing_input_is_named);
    RUN(a_file_that_cannot_be_mapped_is_copied);
    RUN(a_write_that_fails_leaves_the_old_file);
    RUN(held_room_has_no_name_and_is_refused_when_there_is_none);
    RUN(a_folder_that_may_not_be_written_is_the_cause);
    RUN(a_full_disk_is_an_io_error);
    RUN(writing_keeps_links_and_permissions);
    RUN(lines_are_appended);
    RUN(folders_are_made_with_their_parents);
    RUN(sha256_matches_the_published_vectors);
    RUN(philox_matches_the_random123_vectors);
    RUN(streams_depend_on_all_of_their_name);
    RUN(uniform_and_normal_have_their_moments);
    RUN(below_is_even_and_shuffle_is_a_permutation);
    RUN(every_item_is_visited_once_on_any_number_of_threads);
    RUN(many_small_jobs_lose_nothing);
    RUN(a_nested_call_stays_on_its_worker);
    RUN(a_thread_outside_the_pool_may_call_at_any_time);
    RUN(the_owner_waits_for_slow_workers);
    RUN(a_worker_takes_its_own_share_first);
    RUN(what_does_not_exist_is_refused_by_name);
    RUN(the_description_is_a_json_object);
    RUN(clocks_go_forward);
    RUN(a_signal_asks_to_stop);
    RUN(layouts_turn_into_each_other);
    RUN(the_product_is_the_product);

    remove_dir();
    END();
}
