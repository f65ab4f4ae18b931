/* Batches ahead of time. A worker takes a ticket (the number of a batch since the last seek), makes
 * the whole batch into that ticket's slot of a ring, and takes the next. Which images a batch holds
 * is settled under the lock when the ticket is taken; their pixels depend on (seed, epoch, image)
 * only. So the bits depend neither on the number of workers nor on where a run was resumed.
 *
 * Ring: slots taken … made-1 are made or being made; the consumer holds slot `taken` from one
 * loader_next to the next. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "data/parts.h"

#define MIX_STREAM ((uint64_t)1 << 40)       /* above every image number */

enum { MAX_WORKERS = 256, AHEAD = 2 };         /* batches ready beyond those being made */

typedef struct {
    int64_t epoch, step;
    int n;
    bool ready, failed;
    err error;
    float *x;
    int32_t *position;                         /* in the loader's list */
    int32_t *label, *label2, *index;
    float lam;
} slot;

struct data_loader {
    loader_options o;
    prep_table table;
    int64_t floats;                            /* per image */
    int64_t batches;
    int32_t *order; int64_t order_epoch;       /* permutation of list positions, of one epoch */

    pthread_mutex_t lock;
    pthread_cond_t room;                       /* a slot is free */
    pthread_cond_t done;                       /* a batch is ready, or a worker idle */
    slot *ring; int depth;
    int64_t made, taken;                       /* tickets since the seek */
    bool held, started, at_end;
    int64_t epoch, step;                       /* of the next ticket */
    int busy;
    bool paused, stop;
    atomic_bool hurry;                         /* abandon the batches in the making */
    pthread_t thread[MAX_WORKERS]; int threads;
};

/* ---- making a batch -------------------------------------------------------------------------- */

static int64_t image_at(const data_loader *l, int64_t position) {
    return l->o.index ? l->o.index[position] : position;
}

/* The image of a list position, or the next good one after it. */
static bool look_good(const data_loader *l, int64_t position, int64_t *image, set_view *v, err *e) {
    for (int64_t k = 0; k < l->o.n; k++) {
        *image = image_at(l, (position + k) % l->o.n);
        err mine = { 0 };
        if (set_look(l->o.set, *image, v, &mine)) return true;
        if (mine.code == ERR_NOMEM || l->o.set->fail_on_bad)
            return err_set(e, mine.code, "%s", mine.msg);
    }
    return err_set(e, ERR_DATA, "%s: none of the %lld images can be decoded", l->o.set->spec, (long long)l->o.n);
}

static bool make_images(data_loader *l, slot *s) {
    for (int i = 0; i < s->n && !atomic_load(&l->hurry); i++) {
        int64_t image;
        set_view v;
        if (!look_good(l, s->position[i], &image, &v, &s->error)) return false;
        rng r = rng_at(l->o.seed, RNG_AUGMENT, (uint32_t)s->epoch, (uint64_t)image);
        bool ok = prep_image(&l->table, &l->o.augment, &r, &v, s->x + i * l->floats, &s->error);
        mem_free(v.own);
        if (!ok) return err_note(&s->error, "%s", data_name(l->o.set, image));
        s->index[i] = (int32_t)image;
        s->label[i] = s->label2[i] = data_label(l->o.set, image);
    }
    return true;
}

static void mix(data_loader *l, slot *s) {
    const data_augment *a = &l->o.augment;
    rng r = rng_at(l->o.seed, RNG_AUGMENT, (uint32_t)s->epoch, MIX_STREAM + (uint64_t)s->step);
    bool both = a->mixup > 0 && a->cutmix > 0;
    if (both ? rng_uniform(&r) < 0.5 : a->cutmix > 0) {
        double lam = beta_sample(&r, a->cutmix);
        s->lam = cutmix_batch(s->x, s->n, &l->o.prep, lam, &r);
    } else {
        s->lam = (float)beta_sample(&r, a->mixup);
        mixup_batch(s->x, s->n, l->floats, s->lam);
    }
    for (int i = 0; i < s->n; i++) s->label2[i] = s->label[s->n - 1 - i];
}

static void make_batch(data_loader *l, slot *s) {
    s->lam = 1;
    s->failed = !make_images(l, s);
    if (!s->failed && !atomic_load(&l->hurry) && (l->o.augment.mixup > 0 || l->o.augment.cutmix > 0))
        mix(l, s);
}

/* ---- tickets --------------------------------------------------------------------------------- */

static void set_order(data_loader *l, int64_t epoch) {
    if (l->order_epoch == epoch) return;
    for (int64_t i = 0; i < l->o.n; i++) l->order[i] = (int32_t)i;
    if (l->o.shuffle) {
        rng r = rng_at(l->o.seed, RNG_SHUFFLE, (uint32_t)epoch, 0);
        rng_shuffle(&r, l->order, l->o.n);
    }
    l->order_epoch = epoch;
}

/* Under the lock: what the next slot will hold. */
static slot *take_ticket(data_loader *l) {
    slot *s = &l->ring[l->made++ % l->depth];
    int64_t first = l->step * l->o.batch, left = l->o.n - first;
    set_order(l, l->epoch);
    s->epoch = l->epoch;
    s->step = l->step;
    s->n = left < l->o.batch ? (int)left : l->o.batch;
    s->ready = s->failed = false;
    memcpy(s->position, l->order + first, (size_t)s->n * sizeof *s->position);
    if (++l->step == l->batches) l->step = 0, l->epoch++;
    return s;
}

static void *work(void *arg) {
    data_loader *l = arg;
    par_leave_core();
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && (l->paused || l->made - l->taken >= l->depth))
            pthread_cond_wait(&l->room, &l->lock);
        if (l->stop) break;
        slot *s = take_ticket(l);
        l->busy++;
        pthread_mutex_unlock(&l->lock);
        make_batch(l, s);
        pthread_mutex_lock(&l->lock);
        l->busy--;
        s->ready = true;
        pthread_cond_broadcast(&l->done);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Under the lock: no batch in the making, and none will be begun. */
static void halt(data_loader *l) {
    l->paused = true;
    atomic_store(&l->hurry, true);
    while (l->busy) pthread_cond_wait(&l->done, &l->lock);
    atomic_store(&l->hurry, false);
}

void loader_seek(data_loader *l, int64_t epoch, int64_t step) {
    pthread_mutex_lock(&l->lock);
    halt(l);
    l->made = l->taken = 0;
    l->held = false;
    l->started = true;
    l->at_end = step >= l->batches;            /* the end of the epoch comes first */
    l->epoch = epoch + l->at_end;
    l->step = l->at_end ? 0 : step;
    l->paused = false;
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
}

bool loader_next(data_loader *l, data_batch *b, err *e) {
    *b = (data_batch){ 0 };
    if (!l->started) loader_seek(l, 0, 0);
    pthread_mutex_lock(&l->lock);
    if (l->held) {
        l->held = false;
        l->taken++;
        pthread_cond_signal(&l->room);
    }
    if (l->at_end) {
        l->at_end = false;
        pthread_mutex_unlock(&l->lock);
        return true;
    }
    slot *s = &l->ring[l->taken % l->depth];
    while (l->made <= l->taken || !s->ready) pthread_cond_wait(&l->done, &l->lock);
    bool ok = !s->failed;
    if (ok) {
        l->held = true;
        l->at_end = s->step == l->batches - 1;
        *b = (data_batch){ s->n, s->x, s->label, s->label2, s->index, s->lam };
    } else {
        err_set(e, s->error.code, "%s", s->error.msg);
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

/* ---- life ------------------------------------------------------------------------------------ */

int64_t loader_batches(const data_loader *l) { return l->batches; }

void loader_free(data_loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    atomic_store(&l->hurry, true);
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->threads; i++) pthread_join(l->thread[i], NULL);
    for (int i = 0; l->ring && i < l->depth; i++) {
        mem_free(l->ring[i].x);
        mem_free(l->ring[i].position);
    }
    mem_free(l->ring);
    mem_free(l->order);
    pthread_cond_destroy(&l->room);
    pthread_cond_destroy(&l->done);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

static bool options_check(const loader_options *o, int64_t n, err *e) {
    const data_augment *a = &o->augment;
    if (o->batch < 1) return err_set(e, ERR_USAGE, "a batch of %d images", o->batch);
    if (n < 1 || (o->drop_last && n < o->batch))
        return err_set(e, ERR_CONFIG, "%lld images do not fill one batch of %d", (long long)n,
                       o->batch);
    if (n > INT32_MAX) return err_set(e, ERR_CONFIG, "%lld images in one epoch", (long long)n);
    if (a->pad < 0 || a->pad > IMAGE_MAX_SIDE)
        return err_set(e, ERR_USAGE, "padding by %d pixels", a->pad);
    if (!(a->rrc_min >= 0 && a->rrc_min <= 1 && a->hflip >= 0 && a->hflip <= 1 && a->erase >= 0 &&
          a->erase <= 1))
        return err_set(e, ERR_USAGE,
                       "probabilities and area fractions of the augmentation are from 0 to 1");
    if (!(a->mixup >= 0 && a->mixup <= 1e6)) return err_set(e, ERR_USAGE, "mixup %g", a->mixup);
    if (!(a->cutmix >= 0 && a->cutmix <= 1e6)) return err_set(e, ERR_USAGE, "cutmix %g", a->cutmix);
    if (!(a->jitter >= 0 && a->jitter <= 100))
        return err_set(e, ERR_USAGE, "colour jitter %g", a->jitter);
    for (int64_t i = 0; o->index && i < n; i++)
        if (o->index[i] < 0 || o->index[i] >= data_count(o->set))
            return err_set(e, ERR_CONFIG, "image %d of a set of %lld", o->index[i],
                           (long long)data_count(o->set));
    return true;
}

static bool slot_alloc(data_loader *l, slot *s, err *e) {
    size_t batch = (size_t)l->o.batch;
    s->x = mem_new(batch * (size_t)l->floats, sizeof *s->x, e);
    s->position = s->x ? mem_new(4 * batch, sizeof *s->position, e) : NULL;
    if (!s->position) return false;
    s->label = s->position + batch;
    s->label2 = s->label + batch;
    s->index = s->label2 + batch;
    return true;
}

data_loader *loader_new(const loader_options *o, err *e) {
    int64_t n = o->index ? o->n : data_count(o->set);
    if (!options_check(o, n, e)) return NULL;
    data_loader *l = mem_new(1, sizeof *l, e);
    if (!l) return NULL;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->room, NULL);
    pthread_cond_init(&l->done, NULL);
    l->o = *o;
    l->o.n = n;
    l->floats = (int64_t)o->prep.h * o->prep.w * o->prep.c;
    l->batches = (n + (o->drop_last ? 0 : o->batch - 1)) / o->batch;
    l->order_epoch = -1;
    l->paused = true;
    prep_table_init(&l->table, &o->prep);
    int workers = o->workers < 1 ? 1 : o->workers > MAX_WORKERS ? MAX_WORKERS : o->workers;
    l->depth = workers + AHEAD;
    bool ok = (l->order = mem_new((size_t)n, sizeof *l->order, e)) &&
              (l->ring = mem_new((size_t)l->depth, sizeof *l->ring, e));
    for (int i = 0; ok && i < l->depth; i++) ok = slot_alloc(l, &l->ring[i], e);
    while (ok && l->threads < workers) {
        if (pthread_create(&l->thread[l->threads], NULL, work, l))
            ok = err_set(e, ERR_NOMEM, "cannot start loader thread %d", l->threads + 1);
        else
            l->threads++;
    }
    if (ok) return l;
    loader_free(l);
    return NULL;
}
