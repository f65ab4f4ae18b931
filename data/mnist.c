/* IDX files as MNIST and its relatives have them: train-* and t10k-*, gzipped or plain. */
#include <stdio.h>
#include <string.h>

#include "core/io.h"
#include "data/parts.h"

#define IDX_LIMIT ((size_t)1 << 30)

enum { CLASSES = 10 };

static uint32_t be32(const char *text) {
    const uint8_t *p = (const uint8_t *)text;
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* dir/<split>-<what>-ubyte, plain or .gz; false when there is neither. */
static bool idx_path(char out[4096], const char *dir, const char *split, const char *what) {
    for (int gz = 1; gz >= 0; gz--) {
        int n = snprintf(out, 4096, "%s/%s-%s-ubyte%s", dir, split, what, gz ? ".gz" : "");
        if (n > 0 && n < 4096 && file_exists(out)) return true;
    }
    return false;
}

/* Header of `rank` dimensions of bytes, and exactly that many bytes after it. */
static bool idx_read(const char *path, int rank, uint32_t *dim, buf *out, err *e) {
    if (!gzip_read(path, IDX_LIMIT, out, e)) return false;
    size_t head = 4 + 4 * (size_t)rank, want = 1;
    if (out->len < head)
        return err_set(e, ERR_DATA, "%s: %zu bytes are no IDX file", path, out->len);
    if (be32(out->data) != 0x800u + (uint32_t)rank)
        return err_set(e, ERR_DATA,
                       "%s: starts with %08x, an IDX file of bytes in %d dimensions with %08x",
                       path, be32(out->data), rank, 0x800u + (unsigned)rank);
    for (int d = 0; d < rank; d++) {
        dim[d] = be32(out->data + 4 + 4 * d);
        if (d > 0 && (dim[d] == 0 || dim[d] > IMAGE_MAX_SIDE))
            return err_set(e, ERR_DATA, "%s: images of %u pixels a side", path, dim[d]);
        if (!size_mul(want, dim[d], &want)) want = SIZE_MAX / 2;
    }
    if (out->len - head != want)
        return err_set(e, ERR_DATA, "%s: header announces %zu bytes, %zu follow", path, want,
                       out->len - head);
    return true;
}

static bool read_split(data_set *s, const char *images, const char *labels, err *e) {
    bool ok = false;
    buf x = { 0 }, y = { 0 };
    uint32_t xd[3] = { 0 }, yd[1] = { 0 };
    if (!idx_read(images, 3, xd, &x, e) || !idx_read(labels, 1, yd, &y, e)) goto done;
    if (xd[0] != yd[0]) {
        err_set(e, ERR_DATA, "%s: %u images, but %u labels in %s", images, xd[0], yd[0], labels);
        goto done;
    }
    for (size_t i = 8; i < y.len; i++)
        if ((uint8_t)y.data[i] >= CLASSES) {
            err_set(e, ERR_DATA, "%s: image %zu has label %d, wanted 0 to 9", labels, i - 8, (uint8_t)y.data[i]);
            goto done;
        }
    if (!set_alloc(s, xd[0], CLASSES, e) || !set_number_classes(s, e)) goto done;
    s->h = (int)xd[1], s->w = (int)xd[2], s->c = 1;
    if (!(s->pixel = mem_new(x.len - 16, 1, e))) goto done;
    memcpy(s->pixel, x.data + 16, x.len - 16);
    const char *file = strrchr(images, '/') + 1;
    for (int64_t i = 0; i < s->n; i++) {
        s->label[i] = (uint8_t)y.data[8 + i];
        set_add_name(s, i, "%s:%lld", file, (long long)i);
    }
    s->prep = (data_prep){ s->h, s->w, 1, 0, { 0.2860f }, { 0.3530f } };
    ok = true;
done:
    buf_free(&x);
    buf_free(&y);
    return ok;
}

source_answer mnist_open(data_set *s, const char *spec, const char *split, err *e) {
    static const char *const prefix[2] = { "train", "t10k" };
    char images[4096], labels[4096];
    const char *mine = prefix[!strcmp(split, "val")], *other = prefix[!strcmp(split, "train")];
    bool have_images = idx_path(images, spec, mine, "images-idx3");
    bool have_labels = idx_path(labels, spec, mine, "labels-idx1");
    if (!have_images && !have_labels && !idx_path(images, spec, other, "images-idx3"))
        return SOURCE_NOT_MINE;
    if (!have_images || !have_labels) {
        err_set(e, ERR_NOINPUT, "%s/%s-%s-ubyte.gz: no such file", spec, mine,
                have_images ? "labels-idx1" : "images-idx3");
        return have_images || have_labels ? SOURCE_FAILED : SOURCE_ABSENT;
    }
    return read_split(s, images, labels, e) ? SOURCE_OPENED : SOURCE_FAILED;
}
