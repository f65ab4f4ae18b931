/* The thread pool.
 *
 * The items of a job are dealt out in as many neighbouring shares as there are threads, and a worker
 * takes its own before it helps others with theirs. Cores exchange memory far more slowly than they
 * read their own caches; jobs that go through the same images one after the other, in the same
 * order, find most of what they read on the core that wrote it.
 *
 * A share is one 64-bit word: the job's number in the high 40 bits, the items nobody has claimed yet
 * in the low 24. Claiming one is a compare-and-swap that decrements the word, and a job ends when
 * its claimed items are done; so a worker that comes late, or not at all, holds nobody up, and what
 * the job is may be read without locks by whoever holds a claim. Job numbers do not come round
 * within days, hence a stale word cannot match.
 *
 * Idle workers spin for a while (a wake-up from sleep costs more than most jobs), then sleep. The
 * while adapts: doubled when spinning found work, halved when it did not, and given up at once when
 * the clock shows that somebody else was using this core meanwhile.
 *
 * Only the thread that called core_init hands out work. Calls from others (data loaders) and nested
 * calls run serially on their own thread. */
#define _GNU_SOURCE                           /* pthread_setaffinity_np, sched_getaffinity */
#include "core/machine.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

enum {
    ITEM_BITS = 24, ITEM_MASK = (1 << ITEM_BITS) - 1,
    SPIN_MIN_NS = 2000, SPIN_MAX_NS = 50000,  /* how long an idle worker spins */
    JOIN_SPIN_NS = 200000,                    /* how long the owner spins for the last items */
    PREEMPTED_NS = 100000,                    /* such a gap between two looks at the clock */
};

typedef struct {
    _Alignas(64) _Atomic uint64_t word;       /* job number and unclaimed items */
    int64_t end;                              /* the last item and one, counted from base */
} share;

static struct {
    _Alignas(64) _Atomic uint64_t job;        /* its number: what workers poll */
    atomic_bool stop;
    atomic_int sleepers;
    par_fn *fn;                               /* the job; stable while any claim is held */
    void *ctx;
    int64_t base, n;                          /* items base … base+n-1 */
    share *share;                             /* [threads] */
    _Alignas(64) _Atomic int64_t done;        /* items finished */
    atomic_bool owner_sleeps;
    _Alignas(64) pthread_mutex_t lock;
    pthread_cond_t work, finished;
    pthread_t *thread;
    int threads;                              /* with the owner; 0: no pool */
    bool room;                                /* a core for every thread: spinning takes none away */
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER,
           .work = PTHREAD_COND_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER };

static struct { bool on; cpu_set_t before; } pinned;   /* before: where the process may run */
static _Thread_local bool is_owner;
static _Thread_local int inside = -1;         /* worker number while inside a job */
static _Thread_local uint64_t seen;           /* the last job this worker has looked at */

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claim and run items of one share until there are none; how many. */
static int64_t take_share(share *s, int worker, int64_t *n) {
    int64_t mine = 0;
    uint64_t word = atomic_load_explicit(&s->word, memory_order_relaxed);
    while (word & ITEM_MASK) {
        if (!atomic_compare_exchange_weak_explicit(&s->word, &word, word - 1,
                                                   memory_order_acquire, memory_order_relaxed))
            continue;
        *n = pool.n;
        pool.fn(pool.ctx, pool.base + s->end - (int64_t)(word & ITEM_MASK), worker);
        mine++;
        word = atomic_load_explicit(&s->word, memory_order_relaxed);
    }
    return mine;
}

/* The own share, then the others'. All items belong to one job, because a job cannot end before its
 * claims are counted as done, which happens here last. */
static void take_items(int worker) {
    int64_t mine = 0, n = 0;
    inside = worker;
    for (int k = 0; k < pool.threads; k++)
        mine += take_share(&pool.share[(worker + k) % pool.threads], worker, &n);
    inside = -1;
    if (mine && atomic_fetch_add(&pool.done, mine) + mine == n && atomic_load(&pool.owner_sleeps)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_signal(&pool.finished);
        pthread_mutex_unlock(&pool.lock);
    }
}

static bool work_waits(void) {
    return atomic_load(&pool.job) != seen || atomic_load(&pool.stop);
}

static bool job_is_done(void) { return atomic_load(&pool.done) == pool.n; }

/* Spin until ready() or for `budget` nanoseconds or until somebody else wants the core. */
static bool spin(bool (*ready)(void), int64_t budget) {
    int64_t start = clock_ns(), last = start;
    for (;;) {
        for (int k = 0; k < 32; k++) {
            if (ready()) return true;
            relax();
        }
        int64_t now = clock_ns();
        if (now - start > budget || now - last > PREEMPTED_NS) return ready();
        last = now;
    }
}

static void sleep_until_work(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!work_waits()) pthread_cond_wait(&pool.work, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *work(void *arg) {
    int worker = (int)(intptr_t)arg;
    int64_t most = pool.room ? SPIN_MAX_NS : 0, budget = most;
    while (!atomic_load(&pool.stop)) {
        if (budget && spin(work_waits, budget)) {
            budget = 2 * budget < most ? 2 * budget : most;
        } else {
            budget = budget / 2 > SPIN_MIN_NS || !most ? budget / 2 : SPIN_MIN_NS;
            sleep_until_work();
        }
        if (seen == atomic_load(&pool.job)) continue;
        seen = atomic_load(&pool.job);
        take_items(worker);
    }
    return NULL;
}

static void wake(int64_t wanted) {
    int sleepers = atomic_load(&pool.sleepers);
    if (!sleepers) return;
    pthread_mutex_lock(&pool.lock);
    if (wanted >= sleepers) pthread_cond_broadcast(&pool.work);
    else while (wanted--) pthread_cond_signal(&pool.work);
    pthread_mutex_unlock(&pool.lock);
}

static void wait_for_claims(void) {
    if (spin(job_is_done, pool.room ? JOIN_SPIN_NS : SPIN_MIN_NS)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.owner_sleeps, true);
    while (!job_is_done()) pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.owner_sleeps, false);
    pthread_mutex_unlock(&pool.lock);
}

static void run_job(int64_t base, int64_t n, par_fn *fn, void *ctx) {
    pool.fn = fn;
    pool.ctx = ctx;
    pool.base = base;
    pool.n = n;
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    uint64_t job = atomic_load_explicit(&pool.job, memory_order_relaxed) + 1;
    for (int k = 0; k < pool.threads; k++) {
        int64_t first = n * k / pool.threads, end = n * (k + 1) / pool.threads;
        pool.share[k].end = end;
        atomic_store_explicit(&pool.share[k].word, job << ITEM_BITS | (uint64_t)(end - first), memory_order_release);
    }
    atomic_store(&pool.job, job);
    wake(n - 1);
    take_items(0);
    if (!job_is_done()) wait_for_claims();
}

void par_for(int64_t n, par_fn *fn, void *ctx) {
    if (is_owner && inside < 0 && pool.threads > 1 && n > 1) {
        for (int64_t base = 0; base < n; base += ITEM_MASK)
            run_job(base, n - base < ITEM_MASK ? n - base : ITEM_MASK, fn, ctx);
        return;
    }
    int before = inside;
    inside = before < 0 ? 0 : before;
    for (int64_t i = 0; i < n; i++) fn(ctx, i, inside);
    inside = before;
}

int par_threads(void) { return pool.threads > 0 ? pool.threads : 1; }

int par_allowed_cpus(void) {
    cpu_set_t now;
    if (pinned.on) return CPU_COUNT(&pinned.before);
    return sched_getaffinity(0, sizeof now, &now) ? 0 : CPU_COUNT(&now);
}

/* One core per thread, when the pool uses all cores there are. With fewer threads than cores a fixed
 * choice would pile processes that run side by side onto the same cores. The owner is pinned too:
 * left free it can end up on a worker's core, where the two take turns and no balancer sees a load
 * worth moving. */
static void pin_threads(void) {
    pinned.on = par_allowed_cpus() == pool.threads &&
                !sched_getaffinity(0, sizeof pinned.before, &pinned.before);
    for (int cpu = 0, worker = 0; pinned.on && cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &pinned.before)) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(worker ? pool.thread[worker] : pthread_self(), sizeof one, &one);
        worker++;
    }
}

void par_leave_core(void) {
    if (pinned.on) pthread_setaffinity_np(pthread_self(), sizeof pinned.before, &pinned.before);
}

static void free_pool(void) {
    mem_free(pool.thread);
    mem_free(pool.share);
    pool.thread = NULL;
    pool.share = NULL;
    pool.threads = 0;
}

bool par_start(int threads, err *e) {
    pool.thread = mem_new((size_t)threads, sizeof *pool.thread, e);
    pool.share = mem_new((size_t)threads, sizeof *pool.share, e);
    if (!pool.thread || !pool.share) {
        free_pool();
        return false;
    }
    pool.room = threads <= core_cpus();
    atomic_store(&pool.stop, false);
    atomic_store(&pool.job, 0);
    is_owner = true;
    for (pool.threads = 1; pool.threads < threads; pool.threads++) {
        int cause = pthread_create(&pool.thread[pool.threads], NULL, work,
                                   (void *)(intptr_t)pool.threads);
        if (!cause) continue;
        int had = pool.threads;
        par_stop();
        return err_set(e, ERR_CONFIG, "%d threads wanted, the system gives %d: %s", threads, had,
                       strerror(cause));
    }
    pin_threads();
    return true;
}

void par_stop(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.stop, true);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 1; i < pool.threads; i++) pthread_join(pool.thread[i], NULL);
    free_pool();
    is_owner = false;
    par_leave_core();
    pinned.on = false;
}
