/* PyTorch checkpoints in both containers. Zip: <name>/data.pkl holds the object, <name>/data/<key>
 * each storage. Legacy: five pickles in a row (magic number, protocol, system, object, list of
 * storage keys), then each storage as an element count and its bytes, in the order of the list. */
#include "core/pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64, NAME_MAX_LENGTH = 1024, VISITS_MAX = 1 << 17 };

/* ---- the object, flattened ---------------------------------------------------------------- */

typedef struct { tensor_file *f; buf name; int visits; err *e; } walk;

static bool add_tensor(walk *w, const pk_tensor *t) {
    tf_tensor out = { .name = w->name.data, .dtype = t->storage->dtype, .rank = t->rank };
    memcpy(out.dim, t->dim, sizeof out.dim);
    memcpy(out.stride, t->stride, sizeof out.stride);
    out.data = t->storage->data;
    if (tf_count(&out)) out.data += t->offset * tf_dtype_bytes[out.dtype];
    return tf_add(w->f, &out, w->e);
}

/* Append ".key"; false with *skip set if the key cannot be part of a name. */
static bool add_key(walk *w, const pk_value *key, bool *skip) {
    *skip = key->type != PK_TEXT && key->type != PK_INT;
    if (*skip) return true;
    if (w->name.len) buf_puts(&w->name, ".");
    if (key->type == PK_INT)
        buf_printf(&w->name, "%" PRId64, key->integer);
    else if (memchr(key->text, 0, key->len) || key->len > NAME_MAX_LENGTH)
        return err_set(w->e, ERR_DATA, "the name of an entry of %.200s is no text", w->name.data);
    else
        buf_put(&w->name, key->text, key->len);
    if (w->name.failed) return err_set(w->e, ERR_NOMEM, "out of memory");
    return w->name.len <= NAME_MAX_LENGTH
        || err_set(w->e, ERR_DATA, "the tensor name %.100s… is too long", w->name.data);
}

static bool flatten(walk *w, pk_value *dict, int depth) {
    if (dict->entered)
        return err_set(w->e, ERR_DATA, "the dict %.200s contains itself", w->name.data);
    if (depth > DEPTH_MAX)
        return err_set(w->e, ERR_DATA, "dicts are nested deeper than %d", DEPTH_MAX);
    dict->entered = true;
    size_t before = w->name.len;
    bool ok = true;
    for (size_t i = 0; ok && i < dict->n; i += 2) {
        pk_value *v = dict->item[i + 1];
        bool skip;
        if (v->type != PK_DICT && v->type != PK_TENSOR) continue;
        if (++w->visits > VISITS_MAX) return err_set(w->e, ERR_DATA, "too many entries");
        ok = add_key(w, dict->item[i], &skip);
        if (ok && !skip)
            ok = v->type == PK_DICT ? flatten(w, v, depth + 1) : add_tensor(w, v->tensor);
        if (!w->name.failed) w->name.data[w->name.len = before] = 0;
    }
    dict->entered = false;
    return ok;
}

static bool has_tensor(const pk_value *dict) {
    for (size_t i = 1; i < dict->n; i += 2)
        if (dict->item[i]->type == PK_TENSOR) return true;
    return false;
}

/* A training checkpoint wraps the state dict in a dict of its own, sometimes twice. Beside it may stand tensors that
 * are no parameters, as the best accuracy so far. */
static pk_value *enter_state(pk_value *top) {
    static const char *const wrappers[] = { "state_dict", "model_state_dict", "model", "net" };
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        pk_value *inner = NULL;
        for (int i = 0; !inner && i < 4; i++) {
            inner = pk_dict_get(top, wrappers[i]);
            if (inner && inner->type != PK_DICT) inner = NULL;
        }
        if (!inner || (has_tensor(top) && !has_tensor(inner))) break;
        top = inner;
    }
    return top;
}

/* DataParallel names everything "module.…". */
static void drop_common_prefix(tensor_file *f) {
    static const char prefix[] = "module.";
    size_t len = sizeof prefix - 1;
    for (int i = 0; i < f->n; i++)
        if (strncmp(f->tensor[i].name, prefix, len) || !f->tensor[i].name[len]) return;
    for (int i = 0; i < f->n; i++)
        memmove(f->tensor[i].name, f->tensor[i].name + len, strlen(f->tensor[i].name + len) + 1);
}

static bool collect(tensor_file *f, pk_value *top, err *e) {
    if (top->type != PK_DICT) return err_set(e, ERR_DATA, "the object is not a dict of tensors");
    walk w = { .f = f, .e = e };
    buf_puts(&w.name, "");
    bool ok = (!w.name.failed || err_set(e, ERR_NOMEM, "out of memory"))
           && flatten(&w, enter_state(top), 0);
    buf_free(&w.name);
    if (!ok) return false;
    if (f->n == 0) return err_set(e, ERR_DATA, "the object holds no tensors");
    drop_common_prefix(f);
    return tf_names_unique(f->tensor, f->n, e);
}

/* ---- zip ---------------------------------------------------------------------------------- */

static bool find_storage(const zip_file *z, const char *folder, size_t folder_len, pk_storage *s,
                         err *e) {
    char name[512];
    if (folder_len + s->key_len + 6 > sizeof name || memchr(s->key, 0, s->key_len))
        return err_set(e, ERR_DATA, "storage %.*s: bad name",
                       s->key_len < 80 ? (int)s->key_len : 80, s->key);
    snprintf(name, sizeof name, "%.*sdata/%.*s", (int)folder_len, folder, (int)s->key_len, s->key);
    const zip_entry *entry = zip_find(z, name);
    if (!entry) return err_set(e, ERR_DATA, "%s is missing", name);
    if (entry->size != (uint64_t)s->count * (uint64_t)tf_dtype_bytes[s->dtype])
        return err_set(e, ERR_DATA, "%s holds %zu bytes, wanted %" PRId64 " elements of %s", name,
                       entry->size, s->count, tf_dtype_names[s->dtype]);
    s->data = entry->data;
    return true;
}

static const zip_entry *find_pickle(const zip_file *z) {
    for (int i = 0; i < z->n; i++) {
        size_t len = strlen(z->entry[i].name);
        if (!strcmp(z->entry[i].name, "data.pkl")
            || (len > 9 && !strcmp(z->entry[i].name + len - 9, "/data.pkl")))
            return &z->entry[i];
    }
    return NULL;
}

static bool check_byte_order(const zip_file *z, const char *folder, size_t folder_len, err *e) {
    char name[512];
    snprintf(name, sizeof name, "%.*sbyteorder", folder_len < 400 ? (int)folder_len : 0, folder);
    const zip_entry *order = zip_find(z, name);
    return !order || (order->size == 6 && !memcmp(order->data, "little", 6))
        || err_set(e, ERR_DATA, "%s is not little", name);
}

static bool read_zip(tensor_file *f, pickle *p, const char *data, size_t size) {
    zip_file *z = &((tf_private *)f->priv)->zip;
    if (!zip_parse(z, data, size, p->e)) return false;
    const zip_entry *entry = find_pickle(z);
    if (!entry) return err_set(p->e, ERR_DATA, "the archive has no data.pkl");
    size_t folder_len = strlen(entry->name) - strlen("data.pkl");
    if (!check_byte_order(z, entry->name, folder_len, p->e)) return false;
    p->where = "data.pkl";
    p->data = entry->data;
    p->size = entry->size;
    pk_value *top = pickle_run(p);
    if (!top) return false;
    if (p->at != p->size)
        return err_set(p->e, ERR_DATA, "data.pkl ends at byte %zu of %zu", p->at, p->size);
    for (size_t i = 0; i < p->n_storage; i++)
        if (!find_storage(z, entry->name, folder_len, p->storage[i], p->e)) return false;
    return collect(f, top, p->e);
}

/* ---- legacy ------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b) {
    const pk_storage *x = *(pk_storage *const *)a, *y = *(pk_storage *const *)b;
    size_t len = x->key_len < y->key_len ? x->key_len : y->key_len;
    int order = len ? memcmp(x->key, y->key, len) : 0;
    return order ? order : (x->key_len > y->key_len) - (x->key_len < y->key_len);
}

static bool check_preamble(pickle *p) {
    static const char magic[] = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    const pk_value *v = pickle_run(p);
    if (!v) return false;
    if (v->type != PK_LONG || v->len != sizeof magic - 1 || memcmp(v->text, magic, v->len))
        return err_set(p->e, ERR_DATA, "the first pickle is not PyTorch's magic number");
    if (!(v = pickle_run(p))) return false;
    if (v->type != PK_INT || v->integer != 1001)
        return err_set(p->e, ERR_DATA, "the container's protocol is not 1001");
    if (!(v = pickle_run(p))) return false;
    v = pk_dict_get(v, "little_endian");
    return (v && v->type == PK_BOOL && v->integer)
        || err_set(p->e, ERR_DATA, "the file was not written on a little-endian machine");
}

/* All storages of one key: the first decides type and size, the others must agree. */
static bool read_storage(pickle *p, const pk_value *key) {
    pk_storage wanted = { .key = key->text, .key_len = key->len }, *probe = &wanted;
    char name[80];
    snprintf(name, sizeof name, "%.*s", key->len < 79 ? (int)key->len : 79, key->text);
    pk_storage **hit = NULL;
    if (p->n_storage) hit = bsearch(&probe, p->storage, p->n_storage, sizeof probe, by_key);
    if (!hit) return err_set(p->e, ERR_DATA, "storage %s belongs to no tensor", name);
    while (hit > p->storage && !by_key(hit - 1, &probe)) hit--;
    if ((*hit)->data) return err_set(p->e, ERR_DATA, "storage %s is listed twice", name);
    size_t left = p->size - p->at;
    uint64_t count = (uint64_t)(*hit)->count, bytes = (uint64_t)tf_dtype_bytes[(*hit)->dtype];
    if (left < 8 || le_u64(p->data + p->at) != count)
        return err_set(p->e, ERR_DATA, "byte %zu: storage %s should have %" PRIu64 " elements",
                       p->at, name, count);
    if (count > (left - 8) / bytes)
        return err_set(p->e, ERR_DATA, "byte %zu: storage %s is cut short", p->at, name);
    for (pk_storage **s = hit; s < p->storage + p->n_storage && !by_key(s, &probe); s++) {
        if ((*s)->count != (*hit)->count || (*s)->dtype != (*hit)->dtype)
            return err_set(p->e, ERR_DATA, "storage %s has two types or sizes", name);
        (*s)->data = p->data + p->at + 8;
    }
    p->at += 8 + (size_t)(count * bytes);
    return true;
}

static bool read_legacy(tensor_file *f, pickle *p, const char *data, size_t size) {
    p->where = "pickle";
    p->data = data;
    p->size = size;
    if (!check_preamble(p)) return false;
    pk_value *top = pickle_run(p), *keys = top ? pickle_run(p) : NULL;
    if (!keys) return false;
    if (keys->type != PK_LIST) return err_set(p->e, ERR_DATA, "the storage keys are not a list");
    if (p->n_storage) qsort(p->storage, p->n_storage, sizeof *p->storage, by_key);
    for (size_t i = 0; i < keys->n; i++) {
        if (keys->item[i]->type != PK_TEXT)
            return err_set(p->e, ERR_DATA, "a storage key is not a text");
        if (!read_storage(p, keys->item[i])) return false;
    }
    for (size_t i = 0; i < p->n_storage; i++)
        if (!p->storage[i]->data)
            return err_set(p->e, ERR_DATA, "storage %.*s is missing",
                           p->storage[i]->key_len < 80 ? (int)p->storage[i]->key_len : 80,
                           p->storage[i]->key);
    if (p->at != p->size)
        return err_set(p->e, ERR_DATA, "the data ends at byte %zu of %zu", p->at, p->size);
    return collect(f, top, p->e);
}

bool pth_parse(tensor_file *f, const char *data, size_t size, err *e) {
    pickle p = { .e = e };
    bool zip = size >= 2 && !memcmp(data, "PK", 2);
    bool ok = tf_begin(f, e) && (zip ? read_zip : read_legacy)(f, &p, data, size);
    pickle_free(&p);
    if (!ok) tensor_file_close(f);
    return ok;
}
