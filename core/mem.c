/* Memory: overflow-checked sizes, zeroed aligned blocks, the arena, the growable buffer. */
#include "core/core.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#endif
#ifdef UNDER_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n)   __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n)   ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

enum { LINE = 64, HUGE_PAGE = 2 << 20, MANY_PAGES = 8 << 20, BIG_REQUEST = 256 << 20,
       KEEP_BLOCK = 4 << 20, KEEP_FREE = 64 << 20 };

bool size_mul(size_t a, size_t b, size_t *out) {
    if (b && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}

/* ---- allocation ------------------------------------------------------------------------------ */

static _Atomic int64_t calls, fail_call;      /* fail_call: the number of the call that fails, 0: none */

int64_t mem_fail_at(int64_t k) {
    int64_t now = atomic_load(&calls);
    atomic_store(&fail_call, k > 0 ? now + k : 0);
    return now;
}

/* Linux lends more memory than it has and kills whoever uses it, so a big request is compared with
 * what is there. 1 when unknown. */
static bool memory_is_there(size_t bytes) {
    if (bytes < BIG_REQUEST) return true;
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f) return true;
    char line[128];
    unsigned long long kib, have = 0;
    bool known = false;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1) { have += kib; known = true; }
        if (sscanf(line, "SwapFree: %llu", &kib) == 1) have += kib;
    }
    fclose(f);
    return !known || bytes / 1024 <= have;
}

static bool may_have(size_t bytes) {
    int64_t call = atomic_fetch_add(&calls, 1) + 1;
    return call != atomic_load(&fail_call) && memory_is_there(bytes);
}

void *mem_new(size_t n, size_t size, err *e) {
    size_t bytes, padded;
    void *p = NULL;
    if (!size_mul(n, size, &bytes) || !size_add(bytes, 2 * HUGE_PAGE, &padded)) {
        err_set(e, ERR_NOMEM, "out of memory: %zu items of %zu bytes are more than any machine has",
                n, size);
        return NULL;
    }
    const bool big = bytes >= MANY_PAGES;
    if (!may_have(bytes) || posix_memalign(&p, big ? HUGE_PAGE : LINE, bytes ? bytes : 1)) {
        err_set(e, ERR_NOMEM, "out of memory: %zu bytes wanted", bytes);
        return NULL;
    }
    if (big) madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);   /* fewer faults: a wish */
    return memset(p, 0, bytes ? bytes : 1);
}

void mem_free(void *p) { free(p); }

void mem_keep(void) {
#ifdef __GLIBC__                              /* a knob of this C library alone */
    mallopt(M_MMAP_THRESHOLD, KEEP_BLOCK);
    mallopt(M_TRIM_THRESHOLD, KEEP_FREE);
#endif
}

char *mem_text(const char *s, err *e) {
    size_t n = strlen(s);
    char *copy = mem_new(n + 1, 1, e);
    return copy ? memcpy(copy, s, n) : NULL;
}

/* ---- arena ----------------------------------------------------------------------------------- */

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

/* Bytes mapped for an arena of `cap`: whole huge pages once there is one to fill. */
static size_t arena_mapped(size_t cap) {
    return round_up(cap ? cap : 1, cap >= HUGE_PAGE ? HUGE_PAGE : (size_t)sysconf(_SC_PAGESIZE));
}

bool arena_init(arena *a, size_t bytes, err *e) {
    *a = (arena){0};
    size_t slack;
    if (!size_add(bytes, 2 * HUGE_PAGE, &slack) || !may_have(bytes))
        return err_set(e, ERR_NOMEM, "out of memory: %zu bytes wanted", bytes);
    size_t cap = round_up(bytes, LINE), len = arena_mapped(cap);
    size_t extra = cap >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *p = mmap(NULL, len + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return err_set(e, ERR_NOMEM, "out of memory: %zu bytes wanted", bytes);
    if (extra) {                              /* cut the map so that it starts on a huge page */
        size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
        if (head) munmap(p, head);
        if (head < extra) munmap(p + head + len, extra - head);
        p += head;
        madvise(p, len, MADV_HUGEPAGE);       /* a wish; without it the arena is slower, not wrong */
    }
    *a = (arena){ .base = p, .cap = cap };
    POISON(p, len);
    return true;
}

void *arena_take(arena *a, size_t bytes) {
    if (bytes > a->cap - a->used) return NULL;
    char *p = a->base + a->used;
    a->used += round_up(bytes, LINE);         /* cap is a multiple of LINE, so this stays inside */
    UNPOISON(p, bytes);
    return p;
}

void arena_free(arena *a) {
    if (!a->base) return;
    UNPOISON(a->base, arena_mapped(a->cap));
    munmap(a->base, arena_mapped(a->cap));
    *a = (arena){0};
}

/* ---- buffer ---------------------------------------------------------------------------------- */

/* Room for `more` bytes and the NUL. */
static bool buf_reserve(buf *b, size_t more) {
    size_t need;
    if (b->failed) return false;
    if (!size_add(b->len, more, &need) || !size_add(need, 1, &need)) return !(b->failed = true);
    if (need <= b->cap) return true;
    size_t cap = b->cap < SIZE_MAX / 2 && 2 * b->cap > need ? 2 * b->cap : need;
    char *data = mem_new(cap < 64 ? 64 : cap, 1, NULL);
    if (!data) return !(b->failed = true);
    if (b->len) memcpy(data, b->data, b->len);
    mem_free(b->data);
    b->data = data;
    b->cap = cap < 64 ? 64 : cap;
    return true;
}

void buf_put(buf *b, const void *data, size_t len) {
    if (!buf_reserve(b, len)) return;
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_puts(buf *b, const char *s) { buf_put(b, s, strlen(s)); }

void buf_vprintf(buf *b, const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    char small[256];
    int n = vsnprintf(small, sizeof small, fmt, ap);
    if (n < 0) b->failed = true;
    else if ((size_t)n < sizeof small) buf_put(b, small, (size_t)n);
    else if (buf_reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void buf_printf(buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_vprintf(b, fmt, ap);
    va_end(ap);
}

void buf_free(buf *b) {
    mem_free(b->data);
    *b = (buf){0};
}
