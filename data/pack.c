/* Packs: decoded images in files that are mapped, not read. PACK/train-00000.pack … and the same for
 * val; each shard stands alone:
 *
 *   0   "LMPACK1\n"
 *   8   bytes of the header and its CRC-32, both 32 bits little-endian
 *   16  header, JSON: split, shard, last (no shard follows), prep, classes,
 *       images [label, height, width, Adler-32 of the pixels, name]
 *   …   zeros up to a multiple of 64, then the pixels of one image after the other, (H, W, 3) bytes,
 *       each image on a multiple of 64; the file ends with the last one
 *
 * Headers are checked when a pack is opened, the pixels of an image when they are first looked at. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "core/io.h"
#include "data/parts.h"

enum { HEAD = 16, ALIGN = 64, MOST_SHARDS = 100000 };
static const char magic[8] = "LMPACK1\n";
static const char zeros[ALIGN];

static size_t aligned(size_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

static bool shard_path(char out[4096], const char *dir, const char *split, int shard, err *e) {
    char name[32];
    snprintf(name, sizeof name, "%s-%05d.pack", split, shard);
    return set_join(out, dir, name, e);
}

static void put32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get32(const void *bytes) {
    const uint8_t *p = bytes;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t header_sum(const void *x, size_t n) { return (uint32_t)crc32_z(0, x, n); }
static uint32_t pixel_sum(const void *x, size_t n) { return (uint32_t)adler32_z(1, x, n); }

/* ---- writing --------------------------------------------------------------------------------- */

enum { CHUNK = 64 };             /* images decoded at a time, on all threads */

typedef struct {
    const data_set *set;
    const char *split, *dir;
    const pack_options *o;
    int64_t from, packed;        /* the chunk's first image; images taken so far */
    data_image im[CHUNK];        /* x NULL: could not be decoded */
    err error[CHUNK];
    int shard;
    buf pixels, images;          /* of the shard in the making; `list` writes into images */
    json_writer list;
} packer;

static void begin_shard(packer *k) {
    buf_free(&k->pixels);
    buf_free(&k->images);
    k->list = json_writer_on(&k->images, false);
    json_begin(&k->list, NULL, '[');
}

static void add_image(packer *k, int64_t i, const data_image *im) {
    size_t bytes = (size_t)im->h * (size_t)im->w * 3;
    buf_put(&k->pixels, zeros, aligned(k->pixels.len) - k->pixels.len);
    buf_put(&k->pixels, im->x, bytes);
    const int64_t number[4] = { data_label(k->set, i), im->h, im->w, pixel_sum(im->x, bytes) };
    json_begin(&k->list, NULL, '[');
    for (int j = 0; j < 4; j++) json_int(&k->list, NULL, number[j]);
    json_text(&k->list, NULL, data_name(k->set, i));
    json_end(&k->list, ']');
    k->packed++;
}

static void put_header(packer *k, bool last, buf *out) {
    char prep[256];
    data_prep p = data_default_prep(k->set);
    data_prep_print(&p, prep);
    json_writer w = json_writer_on(out, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "split", k->split);
    json_int(&w, "shard", k->shard);
    json_bool(&w, "last", last);
    json_text(&w, "prep", prep);
    json_begin(&w, "classes", '[');
    for (int c = 0; c < data_classes(k->set); c++) json_text(&w, NULL, data_class_name(k->set, c));
    json_end(&w, ']');
    json_end(&k->list, ']');
    json_raw(&w, "images", k->images.data);
    json_end(&w, '}');
}

static bool write_shard(packer *k, bool last, err *e) {
    char path[4096];
    uint8_t words[8];
    buf header = { 0 }, file = { 0 };
    put_header(k, last, &header);
    put32(words, (uint32_t)header.len);
    put32(words + 4, header_sum(header.data, header.len));
    buf_put(&file, magic, sizeof magic);
    buf_put(&file, words, sizeof words);
    buf_put(&file, header.data, header.len);
    buf_put(&file, zeros, aligned(file.len) - file.len);
    buf_put(&file, k->pixels.data, k->pixels.len);
    bool ok = !(header.failed || file.failed || k->pixels.failed || k->images.failed) ||
              err_set(e, ERR_NOMEM, "no memory for a shard of %zu bytes", k->pixels.len);
    ok = ok && shard_path(path, k->dir, k->split, k->shard++, e) &&
         file_write(path, file.data, file.len, e);
    buf_free(&header);
    buf_free(&file);
    begin_shard(k);
    return ok;
}

static bool ready_image(const packer *k, int64_t i, data_image *im, err *e) {
    data_image next;
    if (!data_decode(k->set, i, im, e)) return false;
    bool ok = true;
    if (im->c != 3 && (ok = image_convert(im, 3, &next, e))) image_free(im), *im = next;
    if (ok && k->o->resize && (ok = image_resize_shorter(im, k->o->resize, 0, 0, &next, e)))
        image_free(im), *im = next;
    if (!ok) image_free(im);
    return ok;
}

static void ready_one(void *ctx, int64_t i, int worker) {
    packer *k = ctx;
    (void)worker;
    k->im[i] = (data_image){ 0 };
    k->error[i] = (err){ 0 };
    ready_image(k, k->from + i, &k->im[i], &k->error[i]);
}

/* The images of a chunk in order; one that cannot be had is left out or ends it all. */
static bool take_chunk(packer *k, int64_t n, err *e) {
    bool ok = true;
    for (int64_t i = 0; i < n; i++) {
        data_image *im = &k->im[i];
        const err *why = &k->error[i];
        if (!im->x && (k->set->fail_on_bad || why->code == ERR_NOMEM))
            ok = ok && err_set(e, why->code, "%s", why->msg);
        if (!ok || !im->x) { image_free(im); continue; }
        size_t bytes = (size_t)im->h * (size_t)im->w * 3;
        if (k->pixels.len && aligned(k->pixels.len) + bytes > k->o->shard_bytes)
            ok = write_shard(k, false, e);
        if (ok) add_image(k, k->from + i, im);
        image_free(im);
    }
    return ok;
}

/* The last one first: what a kill leaves of them is found again from the first. */
void data_pack_discard(const char *split, const char *dir) {
    char path[4096];
    err none = { 0 };
    int n = 0;
    while (shard_path(path, dir, split, n, &none) && file_exists(path)) n++;
    while (n-- && shard_path(path, dir, split, n, &none) && !unlink(path)) {}
}

bool data_pack_may_write(const char *split, const char *dir, err *e) {
    char first[4096];
    if (!shard_path(first, dir, split, 0, e)) return false;
    return !file_exists(first)
        || err_set(e, ERR_USAGE, "%s is there already; a pack is not written over", first);
}

bool data_pack(const data_set *s, const char *split, const char *dir, const pack_options *o,
               int64_t *packed, err *e) {
    if (!file_make_dirs(dir, e) || !data_pack_may_write(split, dir, e)) return false;
    packer *k = mem_new(1, sizeof *k, e);
    if (!k) return false;
    *k = (packer){ .set = s, .split = split, .dir = dir, .o = o };
    begin_shard(k);
    bool ok = true;
    for (; ok && k->from < data_count(s); k->from += CHUNK) {
        int64_t left = data_count(s) - k->from, n = left < CHUNK ? left : CHUNK;
        par_for(n, ready_one, k);
        ok = take_chunk(k, n, e);
        if (ok && stop_requested()) ok = err_set(e, ERR_STOPPED, "stopped before all was packed");
        if (ok && o->tick) o->tick(o->ctx, k->from + n);
    }
    if (ok && !k->packed) ok = err_set(e, ERR_DATA, "%s: none of the %lld images can be decoded",
                                       s->spec, (long long)data_count(s));
    ok = ok && write_shard(k, true, e);
    *packed = k->packed;
    buf_free(&k->pixels);
    buf_free(&k->images);
    mem_free(k);
    return ok;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct { const uint8_t *x; int32_t label, h, w; uint32_t sum; size_t name_at; } packed;
typedef struct { buf map, image; atomic_uchar *sound; } pack;   /* file_map and packed, one by one */

static void source_free(void *source) {
    pack *p = source;
    file_map *m = (file_map *)(void *)p->map.data;
    for (size_t i = 0; i < p->map.len / sizeof *m; i++) file_map_close(&m[i]);
    buf_free(&p->map);
    buf_free(&p->image);
    mem_free(p->sound);
    mem_free(p);
}

static bool look(const data_set *s, int64_t i, set_view *v, err *e) {
    const pack *p = s->source;
    const packed *im = (const packed *)(const void *)p->image.data + i;
    if (!atomic_load(&p->sound[i])) {
        if (pixel_sum(im->x, (size_t)im->h * (size_t)im->w * 3) != im->sum)
            return err_set(e, ERR_DATA, "%s: its pixels in the pack are damaged",
                           s->names.data + s->name_at[i]);
        atomic_store(&p->sound[i], 1);
    }
    *v = (set_view){ im->h, im->w, 3, im->x, NULL };
    return true;
}

/* One member of "images": numbers within their ranges, a name, and its place; *at moves behind it. */
static bool read_image(data_set *s, const json *v, const file_map *m, size_t *at, packed *out) {
    double number[4];
    int n = 0;
    const json *c = v->type == JSON_ARRAY && v->count == 5 ? v->child : NULL;
    for (; n < 4 && c && c->type == JSON_NUMBER; c = c->next) number[n++] = c->number;
    const double most[4] = { s->classes - 1, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE, UINT32_MAX };
    for (int i = 0; i < n; i++)
        if (!(number[i] >= (i == 1 || i == 2) && number[i] <= most[i]) ||
            number[i] != (double)(uint32_t)number[i]) return false;
    if (n < 4 || !c || c->type != JSON_STRING) return false;
    size_t from = aligned(*at), bytes = (size_t)number[1] * (size_t)number[2] * 3;
    if (from > m->size || bytes > m->size - from) return false;
    *out = (packed){ (const uint8_t *)m->data + from, (int32_t)number[0], (int32_t)number[1],
                     (int32_t)number[2], (uint32_t)number[3], s->names.len };
    buf_put(&s->names, c->text, strlen(c->text) + 1);
    *at = from + bytes;
    return true;
}

/* Class names and preprocessing: the first shard's; the others must say the same. */
static bool read_kind(data_set *s, int shard, const json *head, err *e) {
    const char *prep;
    char have[256];
    const json *c = json_get(head, "classes");
    if (!json_get_text(head, "prep", &prep, e)) return false;
    if (!c || c->type != JSON_ARRAY || !c->count) return err_set(e, ERR_DATA, "no classes");
    if (!shard) {
        if (!data_prep_parse(&s->prep, prep, e)) return false;
        s->classes = c->count;
        if (!(s->class_name = mem_new((size_t)c->count, sizeof *s->class_name, e))) return false;
    }
    data_prep_print(&s->prep, have);
    bool same = s->classes == c->count && !strcmp(prep, have);
    const json *name = c->child;
    for (int i = 0; same && i < s->classes; i++, name = name->next) {
        if (name->type != JSON_STRING) return err_set(e, ERR_DATA, "a class without a name");
        if (!shard && !set_name_class(s, i, name->text, e)) return false;
        same = !strcmp(name->text, s->class_name[i]);
    }
    return same || err_set(e, ERR_DATA, "not of the same pack as the first shard");
}

static bool read_images(data_set *s, const json *head, const file_map *m, size_t at, err *e) {
    pack *p = s->source;
    const json *images = json_get(head, "images");
    packed im;
    if (!images || images->type != JSON_ARRAY) return err_set(e, ERR_DATA, "no list of images");
    for (const json *v = images->child; v; v = v->next) {
        if (!read_image(s, v, m, &at, &im))
            return err_set(e, ERR_DATA, "image %lld of the pack is malformed",
                           (long long)(p->image.len / sizeof im));
        buf_put(&p->image, &im, sizeof im);
    }
    if (at != m->size)
        return err_set(e, ERR_DATA, "%zu bytes of pixels, the header tells of %zu", m->size, at);
    return !p->image.failed || err_set(e, ERR_NOMEM, "no memory for the list of images");
}

static bool read_head(data_set *s, const char *split, int shard, const file_map *m, bool *last,
                      err *e) {
    if (m->size < HEAD || memcmp(m->data, magic, sizeof magic))
        return err_set(e, ERR_DATA, "not a shard of a pack");
    size_t n = get32(m->data + 8);
    if (n > m->size - HEAD) return err_set(e, ERR_DATA, "cut off in the header");
    if (header_sum(m->data + HEAD, n) != get32(m->data + 12))
        return err_set(e, ERR_DATA, "the header is damaged");
    json *head = json_parse(m->data + HEAD, n, e);
    if (!head) return false;
    const char *mine;
    int64_t number;
    const json *end = json_get(head, "last");
    bool ok = json_get_text(head, "split", &mine, e) && json_get_int(head, "shard", &number, e);
    if (ok && (strcmp(mine, split) || number != shard || !end || end->type != JSON_BOOL))
        ok = err_set(e, ERR_DATA, "holds shard %lld of %s", (long long)number, mine);
    ok = ok && read_kind(s, shard, head, e) && read_images(s, head, m, HEAD + n, e);
    *last = ok && end->boolean;
    json_free(head);
    return ok;
}

static bool read_shard(data_set *s, const char *dir, const char *split, int shard, bool *last,
                       err *e) {
    pack *p = s->source;
    char path[4096];
    file_map m;
    if (!shard_path(path, dir, split, shard, e)) return false;
    if (!file_exists(path)) return err_set(e, ERR_DATA, "%s: this shard is missing", path);
    if (!file_map_open(&m, path, e)) return false;
    buf_put(&p->map, &m, sizeof m);
    if (p->map.failed) {
        file_map_close(&m);
        return err_set(e, ERR_NOMEM, "no memory for %d shards", shard + 1);
    }
    return read_head(s, split, shard, &m, last, e) || err_note(e, "%s", path);
}

static bool fill(data_set *s, const char *dir, const char *split, err *e) {
    bool last = false;
    pack *p = s->source = mem_new(1, sizeof *p, e);
    if (!p) return false;
    s->source_free = source_free;
    s->look = look;
    for (int shard = 0; !last; shard++)
        if (shard == MOST_SHARDS || !read_shard(s, dir, split, shard, &last, e)) return false;
    int64_t n = (int64_t)(p->image.len / sizeof(packed));
    const packed *im = (const packed *)(const void *)p->image.data;
    if (!set_count(s, n, e) || !(p->sound = mem_new((size_t)n, sizeof *p->sound, e))) return false;
    for (int64_t i = 0; i < n; i++) s->label[i] = im[i].label, s->name_at[i] = im[i].name_at;
    return true;
}

source_answer pack_open(data_set *s, const char *spec, const char *split, err *e) {
    static const char *const splits[2] = { "train", "val" };
    char path[4096];
    bool any = false, mine = false;
    for (int i = 0; i < 2; i++) {
        if (!shard_path(path, spec, splits[i], 0, e)) return SOURCE_FAILED;
        bool here = file_exists(path);
        any = any || here;
        mine = mine || (here && !strcmp(split, splits[i]));
    }
    if (!any) return SOURCE_NOT_MINE;
    if (!mine) {
        err_set(e, ERR_NOINPUT, "%s: the pack has no split %s", spec, split);
        return SOURCE_ABSENT;
    }
    return fill(s, spec, split, e) ? SOURCE_OPENED : SOURCE_FAILED;
}
