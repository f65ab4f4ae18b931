/* Files of pixels: JPEG and PNG in, PNG out. The only file that includes the stb decoder, which is
 * compiled for these two formats, without stdio, and with a ceiling on what it may allocate. With
 * JPEG=turbo it decodes PNG only. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "data/parts.h"

/* The decoder's memory is bounded by what an image of the announced size can need, so that a small
 * file cannot unpack to gigabytes. Set before each call. */
static _Thread_local size_t alloc_limit;
static void *limited_alloc(size_t n) { return n <= alloc_limit ? malloc(n) : NULL; }
static void *limited_realloc(void *p, size_t n) { return n <= alloc_limit ? realloc(p, n) : NULL; }

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#ifndef JPEG_TURBO
#define STBI_ONLY_JPEG
#endif
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_NO_GIF
#define stbi_set_unpremultiply_on_load_thread stbi__unpremultiply_on_load_thread  /* its misprint */
#define STBI_MAX_DIMENSIONS IMAGE_MAX_SIDE
#define STBI_ASSERT(x) ((void)0) /* its assertions are about the input; a bad symbol is harmless */
#define STBI_MALLOC(n) limited_alloc(n)
#define STBI_REALLOC(p, n) limited_realloc(p, n)
#define STBI_FREE(p) free(p)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
/* On damaged data the decoder shifts by 32 and more and then ignores the result. That is known, so
 * the undefined-behaviour sanitizer is told to look away; gcc has no other way than `static`. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((no_sanitize("undefined"))), apply_to = function)
#elif defined(__SANITIZE_ADDRESS__)
#pragma GCC diagnostic ignored "-Wattributes"
#define static static __attribute__((no_sanitize("undefined")))
#endif
#include <stb/stb_image.h>
#if defined(__clang__)
#pragma clang attribute pop
#endif
#undef static
#pragma GCC diagnostic pop

void image_free(data_image *im) {
    mem_free(im->x);
    *im = (data_image){ 0 };
}

bool image_new(data_image *im, int h, int w, int c, err *e) {
    *im = (data_image){ h, w, c, mem_new((size_t)h * (size_t)w, (size_t)c, e) };
    return im->x != NULL;
}

/* PIL's luma: (19595 R + 38470 G + 7471 B + 32768) >> 16. */
static void convert_channels(const uint8_t *src, int from, uint8_t *dst, int to, size_t pixels) {
    for (size_t i = 0; i < pixels; i++, src += from, dst += to) {
        if (from >= 3 && to == 1)
            dst[0] = (uint8_t)((19595u * src[0] + 38470u * src[1] + 7471u * src[2] + 32768u) >> 16);
        else
            for (int c = 0; c < to; c++) dst[c] = src[from >= 3 ? c : 0];
    }
}

bool image_convert(const data_image *src, int c, data_image *out, err *e) {
    if (!image_new(out, src->h, src->w, c, e)) return false;
    convert_channels(src->x, src->c, out->x, c, (size_t)src->h * (size_t)src->w);
    return true;
}

/* EXIF orientation o: where row 0 and column 0 of the stored image lie. 5 … 8 swap the axes. */
static bool orient(data_image *im, int o, err *e) {
    if (o <= 1) return true;
    bool swap = o >= 5;
    data_image out;
    if (!image_new(&out, swap ? im->w : im->h, swap ? im->h : im->w, im->c, e)) return false;
    for (int y = 0; y < out.h; y++)
        for (int x = 0; x < out.w; x++) {
            int sy = swap ? x : y, sx = swap ? y : x;
            if (o == 3 || o == 4 || o == 6 || o == 7) sy = im->h - 1 - sy;
            if (o == 2 || o == 3 || o == 7 || o == 8) sx = im->w - 1 - sx;
            memcpy(out.x + ((size_t)y * (size_t)out.w + (size_t)x) * (size_t)im->c,
                   im->x + ((size_t)sy * (size_t)im->w + (size_t)sx) * (size_t)im->c,
                   (size_t)im->c);
        }
    image_free(im);
    *im = out;
    return true;
}

static bool decode_stb(const uint8_t *p, size_t size, const char *name, const jpeg_info *info, bool jpeg,
                       int want_c, data_image *out, err *e) {
    /* JPEG planes are padded to blocks and kept as shorts when progressive; PNG rows have up to
     * 16 bits × 4 channels, and the unpacked stream at most doubles on its way up. */
    size_t wide = (size_t)info->w + 64, high = (size_t)info->h + 64;
    alloc_limit = 2 * (8 * wide + 64) * high + 2 * size + 65536;
    int w, h, c;
    stbi_uc *x = stbi_load_from_memory(p, (int)size, &w, &h, &c, 0);
    if (!x) {
        const char *why = stbi_failure_reason();
        return err_set(e, ERR_DATA, "%s: cannot be decoded: %s", name, why ? why : "damaged");
    }
    int have = jpeg || c > 2 ? (c == 1 ? 1 : 3) : 1;
    bool ok = image_new(out, h, w, want_c ? want_c : have, e);
    if (ok) convert_channels(x, c, out->x, out->c, (size_t)h * (size_t)w);
    stbi_image_free(x);
    return ok;
}

#ifdef JPEG_TURBO
static bool decode_turbo(const uint8_t *p, size_t size, const char *name, int want_c, data_image *out,
                         err *e) {
    if (!jpeg_turbo(p, size, name, out, e)) return false;
    if (!want_c || want_c == out->c) return true;
    data_image im = *out;
    bool ok = image_convert(&im, want_c, out, e);
    image_free(&im);
    return ok;
}
#endif

bool image_decode(const void *bytes, size_t size, const char *name, int want_c, data_image *out,
                  err *e) {
    const uint8_t *p = bytes;
    *out = (data_image){ 0 };
    if (size > (size_t)1 << 30) return err_set(e, ERR_DATA, "%s: more than 2^30 bytes", name);
    jpeg_info info = { .orientation = 1 };
    bool jpeg = size >= 2 && p[0] == 0xFF && p[1] == 0xD8;
    if (jpeg ? !jpeg_walk(p, size, name, &info, e) : !png_walk(p, size, name, &info.w, &info.h, e))
        return false;
#ifdef JPEG_TURBO
    bool ok = jpeg ? decode_turbo(p, size, name, want_c, out, e)
                   : decode_stb(p, size, name, &info, false, want_c, out, e);
#else
    bool ok = decode_stb(p, size, name, &info, jpeg, want_c, out, e);
#endif
    ok = ok && orient(out, info.orientation, e);
    if (!ok) image_free(out);
    return ok;
}

/* ---- PNG out --------------------------------------------------------------------------------- */

static void put32(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8),
    p[3] = (uint8_t)v;
}

static void put_chunk(buf *b, const char *type, const void *data, size_t n) {
    uint8_t word[4];
    put32(word, (uint32_t)n);
    buf_put(b, word, 4);
    buf_put(b, type, 4);
    if (n) buf_put(b, data, n);
    uLong crc = crc32(crc32(0, NULL, 0), (const Bytef *)type, 4);
    if (n) crc = crc32(crc, data, (uInt)n);
    put32(word, (uint32_t)crc);
    buf_put(b, word, 4);
}

bool image_write_png(const char *path, const data_image *im, err *e) {
    bool ok = false;
    buf png = { 0 };
    size_t row = (size_t)im->w * (size_t)im->c, raw_size = (row + 1) * (size_t)im->h;
    uLongf packed_size = compressBound(raw_size);
    uint8_t *raw = mem_new(raw_size, 1, e), *packed = raw ? mem_new(packed_size, 1, e) : NULL;
    if (!packed) goto done;
    for (int y = 0; y < im->h; y++)              /* each row: filter 0, then the pixels */
        memcpy(raw + (row + 1) * (size_t)y + 1, im->x + row * (size_t)y, row);
    if (compress2(packed, &packed_size, raw, raw_size, 6) != Z_OK) {
        err_set(e, ERR_NOMEM, "%s: no memory to compress the image", path);
        goto done;
    }
    uint8_t header[13] = { [8] = 8, [9] = im->c == 3 ? 2 : 0 };
    put32(header, (uint32_t)im->w);
    put32(header + 4, (uint32_t)im->h);
    buf_put(&png, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&png, "IHDR", header, 13);
    put_chunk(&png, "IDAT", packed, packed_size);
    put_chunk(&png, "IEND", NULL, 0);
    ok = png.failed ? err_set(e, ERR_NOMEM, "%s: no memory for the image", path)
                    : file_write(path, png.data, png.len, e);
done:
    buf_free(&png);
    mem_free(packed);
    mem_free(raw);
    return ok;
}
