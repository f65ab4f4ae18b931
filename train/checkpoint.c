/* Checkpoints: one safetensors file with everything a run is made of. Its metadata carries a SHA-256
 * over the rest, so a damaged file is never continued from; the one before it stays as a spare. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/parts.h"

#define FORMAT "layermerge-checkpoint-1"

/* ---- the state as text: every number is a row -------------------------------------------------- */

typedef enum { AS_DOUBLE, AS_COUNT } field_type;
typedef struct { const char *key; field_type type; size_t offset; } field;
static const field fields[] = {
    { "step",      AS_COUNT,  offsetof(train_state, step) },
    { "loss_sum",  AS_DOUBLE, offsetof(train_state, loss_sum) },
    { "loss_n",    AS_COUNT,  offsetof(train_state, loss_n) },
    { "last_loss", AS_DOUBLE, offsetof(train_state, last_loss) },
    { "epoch_s",   AS_DOUBLE, offsetof(train_state, epoch_s) },
    { "train_s",   AS_DOUBLE, offsetof(train_state, train_s) },
    { "total_s",   AS_DOUBLE, offsetof(train_state, total_s) },
    { "val_step",  AS_COUNT,  offsetof(train_state, val_step) },
    { "val_n",     AS_COUNT,  offsetof(train_state, val.n) },
    { "val_top1",  AS_DOUBLE, offsetof(train_state, val.top1) },
    { "val_top5",  AS_DOUBLE, offsetof(train_state, val.top5) },
    { "val_loss",  AS_DOUBLE, offsetof(train_state, val.loss) },
    { "val_s",     AS_DOUBLE, offsetof(train_state, val.seconds) },
};
enum { FIELDS = sizeof fields / sizeof *fields, META = FIELDS + 4 };

static void field_print(const train_state *s, const field *f, char out[32]) {
    const char *p = (const char *)s + f->offset;
    if (f->type == AS_DOUBLE) number_print(out, *(const double *)(const void *)p);
    else snprintf(out, 32, "%lld", (long long)*(const int64_t *)(const void *)p);
}

static bool field_parse(train_state *s, const field *f, const char *text) {
    char *end, *p = (char *)s + f->offset;
    errno = 0;
    if (f->type == AS_DOUBLE) *(double *)(void *)p = strtod(text, &end);
    else *(int64_t *)(void *)p = strtoll(text, &end, 10);
    return !errno && end != text && !*end;
}

/* Metadata in writing order; the digest comes last. Returns how many are there without it. */
static int meta_fill(text_pair meta[META], char text[FIELDS][32], const train_state *s) {
    int n = 0;
    meta[n++] = (text_pair){ "format", FORMAT };
    meta[n++] = (text_pair){ "job", s->job };
    meta[n++] = (text_pair){ "metrics", s->metrics.data ? s->metrics.data : "" };
    for (int i = 0; i < FIELDS; i++) {
        field_print(s, &fields[i], text[i]);
        meta[n++] = (text_pair){ fields[i].key, text[i] };
    }
    return n;
}

/* ---- the digest --------------------------------------------------------------------------------- */

static void add_text(sha256 *h, const char *text) { sha256_add(h, text, strlen(text) + 1); }

static void add_tensor(sha256 *h, const tf_tensor *t) {
    add_text(h, t->name);
    add_text(h, tf_dtype_names[t->dtype]);
    sha256_add(h, t->dim, (size_t)t->rank * sizeof *t->dim);
    sha256_add(h, t->data, (size_t)tf_count(t) * (size_t)tf_dtype_bytes[t->dtype]);
}

/* Tensors in the order of the file. */
static void digest(const text_pair *meta, int n_meta, const tf_tensor *t, int n, char out[65]) {
    sha256 h;
    sha256_init(&h);
    for (int i = 0; i < n_meta; i++) {
        add_text(&h, meta[i].key);
        add_text(&h, meta[i].value);
    }
    for (int i = 0; i < n; i++) add_tensor(&h, &t[i]);
    sha256_hex(&h, out);
}

/* ---- writing ------------------------------------------------------------------------------------- */

static tf_tensor slot_tensor(const state_slot *s) {
    tf_tensor t = { .name = (char *)(uintptr_t)s->name, .dtype = DT_F32, .rank = s->rank,
                    .data = (const char *)s->x };
    int64_t stride = 1;
    for (int i = s->rank - 1; i >= 0; i--) {
        t.dim[i] = s->dim[i];
        t.stride[i] = stride;
        stride *= s->dim[i];
    }
    return t;
}

static bool write_next(const char *path, const state_slot *slot, int n, const train_state *s, err *e) {
    tf_tensor *t = mem_new((size_t)n, sizeof *t, e);
    bool ok = t != NULL;
    if (ok) {
        for (int i = 0; i < n; i++) t[i] = slot_tensor(&slot[i]);
        text_pair meta[META];
        char text[FIELDS][32], sum[65];
        int n_meta = meta_fill(meta, text, s);
        digest(meta, n_meta, t, n, sum);
        meta[n_meta++] = (text_pair){ "digest", sum };
        ok = safetensors_write(path, t, n, meta, n_meta, e);
    }
    mem_free(t);
    return ok;
}

static bool move(const char *from, const char *to, err *e) {
    return !rename(from, to)
        || err_set(e, ERR_IO, "cannot rename %s to %s: %s", from, to, strerror(errno));
}

bool checkpoint_save(const char *dir, const state_slot *slot, int n, const train_state *s, err *e) {
    char last[4096], previous[4096], next[4096];
    return path_join(last, dir, "last.safetensors", e)
        && path_join(previous, dir, "previous.safetensors", e)
        && path_join(next, dir, "next.safetensors", e)
        && (!s->metrics.failed || err_set(e, ERR_NOMEM, "out of memory for the metrics"))
        && write_next(next, slot, n, s, e)
        && (!file_exists(last) || move(last, previous, e))
        && move(next, last, e);
}

/* ---- reading -------------------------------------------------------------------------------------- */

static bool same_shape(const tf_tensor *t, const state_slot *s) {
    if (t->dtype != DT_F32 || t->rank != s->rank) return false;
    for (int i = 0; i < s->rank; i++)
        if (t->dim[i] != s->dim[i]) return false;
    return true;
}

static bool find_tensors(const tensor_file *f, const state_slot *slot, int n, const tf_tensor **t,
                         err *e) {
    if (f->n != n)
        return err_set(e, ERR_DATA, "it has %d tensors, the run has %d", f->n, n);
    for (int i = 0; i < n; i++) {
        t[i] = tensor_file_find(f, slot[i].name);
        if (!t[i]) return err_set(e, ERR_DATA, "it has no tensor %s", slot[i].name);
        if (!same_shape(t[i], &slot[i]))
            return err_set(e, ERR_DATA, "tensor %s has another shape or type", slot[i].name);
    }
    return true;
}

/* s, except for job and metrics, from the file's metadata. */
static bool read_fields(const tensor_file *f, train_state *s, text_pair meta[META], err *e) {
    static const char *const first[] = { "format", "job", "metrics" };
    for (int i = 0; i < META - 1; i++) {
        const char *key = i < 3 ? first[i] : fields[i - 3].key;
        const char *value = tensor_file_meta(f, key);
        if (!value) return err_set(e, ERR_DATA, "it lacks \"%s\"", key);
        if (i >= 3 && !field_parse(s, &fields[i - 3], value))
            return err_set(e, ERR_DATA, "its \"%s\" is not a number", key);
        meta[i] = (text_pair){ key, value };
    }
    return true;
}

static bool take(const tensor_file *f, const state_slot *slot, int n, const tf_tensor **t,
                 train_state *s, err *e) {
    const char *format = tensor_file_meta(f, "format"), *job = tensor_file_meta(f, "job");
    const char *said = tensor_file_meta(f, "digest");
    if (!format || strcmp(format, FORMAT) || !job || !said)
        return err_set(e, ERR_DATA, "it is not a checkpoint");
    train_state read = { .metrics = {0} };
    text_pair meta[META];
    char sum[65];
    if (!read_fields(f, &read, meta, e)) return false;
    digest(meta, META - 1, f->tensor, f->n, sum);
    if (strcmp(sum, said)) return err_set(e, ERR_DATA, "it is damaged: the digest does not match");
    if (strcmp(job, s->job))
        return err_set(e, ERR_CONFIG, "it belongs to another job (other settings, data or starting "
                       "weights); use another run folder");
    if (!find_tensors(f, slot, n, t, e)) return false;

    buf_puts(&read.metrics, tensor_file_meta(f, "metrics"));
    if (read.metrics.failed) return err_set(e, ERR_NOMEM, "out of memory");
    for (int i = 0; i < n; i++) memcpy(slot[i].x, t[i]->data, (size_t)tf_count(t[i]) * sizeof(float));
    memcpy(read.job, s->job, sizeof read.job);
    buf_free(&s->metrics);
    *s = read;
    return true;
}

static bool load_file(const char *path, const state_slot *slot, int n, train_state *s, err *e) {
    tensor_file f = {0};
    const tf_tensor **t = mem_new((size_t)n, sizeof *t, e);
    bool ok = t && tensor_file_open(&f, path, e);
    if (ok) {
        ok = take(&f, slot, n, t, s, e) || err_note(e, "%s", path);
        tensor_file_close(&f);
    }
    mem_free(t);
    return ok;
}

bool checkpoint_load(const char *dir, const state_slot *slot, int n, train_state *s, bool *found,
                     char note[1200], err *e) {
    char path[2][4096];
    note[0] = 0;
    *found = false;
    if (!path_join(path[0], dir, "last.safetensors", e)
        || !path_join(path[1], dir, "previous.safetensors", e)) return false;
    bool last = file_exists(path[0]), previous = file_exists(path[1]);
    if (!last && !previous) return true;

    err first = {0};
    *found = last && load_file(path[0], slot, n, s, &first);
    if (*found) return true;
    if (last && (first.code != ERR_DATA || !previous)) {
        if (e) *e = first;
        return first.code != ERR_DATA ? false
             : err_set(e, ERR_DATA, "%s; remove it to start the run again", first.msg);
    }
    if (!load_file(path[1], slot, n, s, e)) return false;
    if (last && !move(path[1], path[0], e)) return false;   /* or the next save would keep the damaged one */
    *found = true;
    if (last)
        snprintf(note, 1200, "continuing from the checkpoint before the last one: %.1000s", first.msg);
    return true;
}

/* ".tmp-PID-SERIAL" of a process that is no more. */
void checkpoint_sweep(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *f; (f = readdir(d)); ) {
        long pid;
        char path[4096];
        if (sscanf(f->d_name, ".tmp-%ld-", &pid) != 1 || pid <= 0) continue;
        if (kill((pid_t)pid, 0) == 0 || errno != ESRCH) continue;
        if (path_join(path, dir, f->d_name, NULL)) unlink(path);
    }
    closedir(d);
}
