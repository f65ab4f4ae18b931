/* Zip archives (PKWARE APPNOTE 6.3) and gzip (RFC 1952), over zlib. The central directory is what
 * counts; a local header only says where data begins. */
#include "core/io.h"
#include "core/tensorfile.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    ZIP_LOCAL = 30, ZIP_CENTRAL = 46, ZIP_END = 22, ZIP64_LOCATOR = 20, ZIP64_END = 56,
    COMMENT_MAX = 65535,
};

typedef struct {
    const char *data; size_t size;
    size_t at, left;             /* the part of the directory still to read */
    err *e;
} cursor;

/* `len` bytes at `at` lie inside a file of `size` bytes. */
static bool inside(uint64_t at, uint64_t len, size_t size) {
    return at <= size && len <= size - at;
}

/* ---- where the directory is --------------------------------------------------------------- */

static bool find_end(cursor *c, size_t *end) {
    size_t least = c->size > ZIP_END + COMMENT_MAX ? c->size - ZIP_END - COMMENT_MAX : 0;
    for (size_t at = c->size < ZIP_END ? 0 : c->size - ZIP_END + 1; at-- > least; )
        if (!memcmp(c->data + at, "PK\5\6", 4)
            && le_u16(c->data + at + 20) == c->size - at - ZIP_END) {
            *end = at;
            return true;
        }
    return err_set(c->e, ERR_DATA, "zip: no end record, the file is cut short or not a zip");
}

static bool find_directory(cursor *c, uint64_t *count) {
    size_t end = 0;
    if (!find_end(c, &end)) return false;
    const char *p = c->data + end;
    uint64_t len = le_u32(p + 12), at = le_u32(p + 16), disks = le_u16(p + 4) | le_u16(p + 6);
    *count = le_u16(p + 10);
    if (end >= ZIP64_LOCATOR && !memcmp(p - ZIP64_LOCATOR, "PK\6\7", 4)) {
        uint64_t end64 = le_u64(p - ZIP64_LOCATOR + 8);
        if (!inside(end64, ZIP64_END, c->size) || memcmp(c->data + end64, "PK\6\6", 4))
            return err_set(c->e, ERR_DATA, "zip: the 64-bit end record at byte %" PRIu64
                           " is not there", end64);
        p = c->data + end64;
        disks = le_u32(p + 16) | le_u32(p + 20);
        *count = le_u64(p + 32);
        len = le_u64(p + 40);
        at = le_u64(p + 48);
    }
    if (disks)
        return err_set(c->e, ERR_DATA, "zip: split over several files");
    if (!inside(at, len, c->size) || *count > len / ZIP_CENTRAL || *count > INT_MAX)
        return err_set(c->e, ERR_DATA, "zip: the directory (%" PRIu64 " entries, %" PRIu64
                       " bytes at byte %" PRIu64 ") does not fit into the file", *count, len, at);
    c->at = (size_t)at;
    c->left = (size_t)len;
    return true;
}

/* ---- one entry ---------------------------------------------------------------------------- */

typedef struct { uint64_t size, packed, at; uint32_t crc; unsigned flags, method; } central;

/* The 64-bit extra field holds, in this order, those values whose 32-bit fields are all ones. */
static bool read_extra64(central *h, const char *extra, size_t len) {
    uint64_t *value[] = { &h->size, &h->packed, &h->at };
    while (len >= 4) {
        size_t id = le_u16(extra), n = le_u16(extra + 2);
        extra += 4;
        len -= 4;
        if (n > len) return false;
        for (size_t i = 0, at = 0; id == 1 && i < 3; i++)
            if (*value[i] == UINT32_MAX) {
                if (at + 8 > n) return false;
                *value[i] = le_u64(extra + at);
                at += 8;
            }
        extra += n;
        len -= n;
    }
    return true;
}

static bool inflate_entry(zip_entry *z, const char *from, size_t packed, size_t size, err *e) {
    /* Deflate cannot do better than 1032:1, so a larger promise is a lie not worth memory. */
    if (packed > UINT_MAX || size > UINT_MAX || size / 1032 > packed)
        return err_set(e, ERR_DATA, "zip: %s: %zu bytes cannot come from %zu", z->name, size,
                       packed);
    char *out = mem_new(size + 1, 1, e);
    if (!out) return false;
    z->data = out;
    z->owned = true;
    z_stream s = { .next_in = (Bytef *)(uintptr_t)from, .avail_in = (uInt)packed,
                   .next_out = (Bytef *)out, .avail_out = (uInt)size };
    if (inflateInit2(&s, -MAX_WBITS) != Z_OK)
        return err_set(e, ERR_NOMEM, "out of memory inflating %s", z->name);
    int got = inflate(&s, Z_FINISH);
    bool ok = got == Z_STREAM_END && s.avail_out == 0 && s.avail_in == 0;
    inflateEnd(&s);
    return ok || err_set(e, ERR_DATA, "zip: %s: compressed data is damaged", z->name);
}

static uint32_t crc_of(const char *data, size_t size) {
    uLong crc = crc32(0, NULL, 0);
    while (size) {
        uInt part = size < INT_MAX ? (uInt)size : INT_MAX;
        crc = crc32(crc, (const Bytef *)data, part);
        data += part;
        size -= part;
    }
    return (uint32_t)crc;
}

static bool read_data(const cursor *c, const central *h, zip_entry *z) {
    const char *local = inside(h->at, ZIP_LOCAL, c->size) ? c->data + h->at : NULL;
    if (!local || memcmp(local, "PK\3\4", 4))
        return err_set(c->e, ERR_DATA, "zip: %s: no entry at byte %" PRIu64, z->name, h->at);
    size_t name = le_u16(local + 26), skip = ZIP_LOCAL + name + le_u16(local + 28);
    if (!inside(h->at, skip, c->size) || !inside(h->at + skip, h->packed, c->size))
        return err_set(c->e, ERR_DATA, "zip: %s: %" PRIu64 " bytes at byte %" PRIu64
                       " reach past the end of the file", z->name, h->packed, h->at);
    if (name != strlen(z->name) || memcmp(local + ZIP_LOCAL, z->name, name))
        return err_set(c->e, ERR_DATA, "zip: %s: the entry at byte %" PRIu64 " has another name",
                       z->name, h->at);
    if (h->flags & 1)
        return err_set(c->e, ERR_DATA, "zip: %s: is encrypted", z->name);
    if ((h->method != 0 && h->method != 8) || (h->method == 0 && h->packed != h->size))
        return err_set(c->e, ERR_DATA, "zip: %s: compression %u of %" PRIu64 " to %" PRIu64
                       " bytes is not understood", z->name, h->method, h->size, h->packed);
    z->data = local + skip;
    z->size = (size_t)h->size;
    if (h->method == 8 && !inflate_entry(z, local + skip, (size_t)h->packed, z->size, c->e))
        return false;
    return crc_of(z->data, z->size) == h->crc
        || err_set(c->e, ERR_DATA, "zip: %s: checksum is wrong", z->name);
}

static bool read_entry(cursor *c, zip_file *z, uint64_t *packed_sum) {
    const char *p = c->data + c->at;
    if (c->left < ZIP_CENTRAL || memcmp(p, "PK\1\2", 4))
        return err_set(c->e, ERR_DATA, "zip: no directory entry at byte %zu", c->at);
    size_t name = le_u16(p + 28), extra = le_u16(p + 30);
    size_t len = ZIP_CENTRAL + name + extra + le_u16(p + 32);
    central h = { .flags = le_u16(p + 8), .method = le_u16(p + 10), .crc = le_u32(p + 16),
                  .packed = le_u32(p + 20), .size = le_u32(p + 24), .at = le_u32(p + 42) };
    if (len > c->left || memchr(p + ZIP_CENTRAL, 0, name)
        || !read_extra64(&h, p + ZIP_CENTRAL + name, extra))
        return err_set(c->e, ERR_DATA, "zip: the directory entry at byte %zu is damaged", c->at);
    /* Entries that share their bytes are how small files unpack to enormous ones. */
    if (h.packed > c->size - *packed_sum)
        return err_set(c->e, ERR_DATA, "zip: the directory entry at byte %zu overlaps others",
                       c->at);
    *packed_sum += h.packed;
    zip_entry *entry = &z->entry[z->n];
    if (!(entry->name = mem_new(name + 1, 1, c->e))) return false;
    memcpy(entry->name, p + ZIP_CENTRAL, name);
    z->n++;
    c->at += len;
    c->left -= len;
    return read_data(c, &h, entry);
}

/* ---- the archive -------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const zip_entry *)a)->name, ((const zip_entry *)b)->name);
}

bool zip_parse(zip_file *z, const char *data, size_t size, err *e) {
    cursor c = { .data = data, .size = size, .e = e };
    uint64_t count, packed_sum = 0;
    *z = (zip_file){0};
    bool ok = find_directory(&c, &count)
           && (z->entry = mem_new((size_t)count, sizeof *z->entry, e));
    while (ok && (uint64_t)z->n < count)
        ok = read_entry(&c, z, &packed_sum);
    if (ok)                      /* sorted: zip_find searches by halves */
        qsort(z->entry, (size_t)z->n, sizeof *z->entry, by_name);
    for (int i = 1; ok && i < z->n; i++)
        if (!by_name(&z->entry[i - 1], &z->entry[i]))
            ok = err_set(e, ERR_DATA, "zip: %s appears twice", z->entry[i].name);
    if (!ok) zip_free(z);
    return ok;
}

void zip_free(zip_file *z) {
    for (int i = 0; i < z->n; i++) {
        mem_free(z->entry[i].name);
        if (z->entry[i].owned) mem_free((void *)(uintptr_t)z->entry[i].data);
    }
    mem_free(z->entry);
    *z = (zip_file){0};
}

const zip_entry *zip_find(const zip_file *z, const char *name) {
    zip_entry key = { .name = (char *)(uintptr_t)name };
    return z->n ? bsearch(&key, z->entry, (size_t)z->n, sizeof key, by_name) : NULL;
}

/* ---- gzip --------------------------------------------------------------------------------- */

static bool is_gzip(const char *data, size_t len) {
    return len >= 2 && !memcmp(data, "\x1f\x8b", 2);
}

/* Inflate until a member ends; *used counts its bytes. */
static bool inflate_member(z_stream *s, const char *data, size_t len, size_t *used, size_t limit,
                           buf *out, err *e) {
    char chunk[16384];
    size_t fed = 0;
    int got = Z_OK;
    while (got == Z_OK || got == Z_BUF_ERROR) {
        if (s->avail_in == 0) {
            s->next_in = (Bytef *)(uintptr_t)(data + fed);
            s->avail_in = len - fed < INT_MAX ? (uInt)(len - fed) : INT_MAX;
            fed += s->avail_in;
        }
        s->next_out = (Bytef *)chunk;
        s->avail_out = sizeof chunk;
        bool dry = s->avail_in == 0;
        got = inflate(s, Z_NO_FLUSH);
        size_t made = sizeof chunk - s->avail_out;
        if (made > limit - out->len)
            return err_set(e, ERR_DATA, "gzip: unpacks to more than %zu bytes", limit);
        buf_put(out, chunk, made);
        if (out->failed)
            return err_set(e, ERR_NOMEM, "out of memory unpacking gzip");
        if (dry && made == 0 && got != Z_STREAM_END)
            return err_set(e, ERR_DATA, "gzip: cut short after %zu bytes", len);
    }
    *used = fed - s->avail_in;
    s->avail_in = 0;
    return got == Z_STREAM_END
        || err_set(e, got == Z_MEM_ERROR ? ERR_NOMEM : ERR_DATA,
                   "gzip: data is damaged near byte %zu", *used);
}

static bool gunzip(const char *data, size_t len, size_t limit, buf *out, err *e) {
    z_stream s = {0};
    if (inflateInit2(&s, MAX_WBITS + 16) != Z_OK)
        return err_set(e, ERR_NOMEM, "out of memory unpacking gzip");
    bool ok = true;
    for (size_t at = 0, used; ok && at < len; at += used) {
        if (!is_gzip(data + at, len - at))
            ok = err_set(e, ERR_DATA, "gzip: garbage behind the data at byte %zu", at);
        else
            ok = inflateReset(&s) == Z_OK
              && inflate_member(&s, data + at, len - at, &used, limit, out, e);
        if (!ok) break;
    }
    inflateEnd(&s);
    return ok;
}

bool gzip_read(const char *path, size_t limit, buf *out, err *e) {
    buf file = {0};
    buf_free(out);
    if (!file_read(path, &file, e)) {
        buf_free(&file);
        return false;
    }
    if (!is_gzip(file.data, file.len)) {
        *out = file;
        if (file.len <= limit) return true;
        buf_free(out);
        return err_set(e, ERR_DATA, "%s: holds %zu bytes, more than %zu", path, file.len, limit);
    }
    buf_put(out, "", 0);
    bool ok = gunzip(file.data, file.len, limit, out, e) || err_note(e, "%s", path);
    buf_free(&file);
    if (!ok) buf_free(out);
    return ok;
}
