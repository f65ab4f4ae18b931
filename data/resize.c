/* Resize with antialias, equal to PIL's BILINEAR to the last bit: a triangle filter whose support
 * grows with the shrink factor, weights in 22-bit fixed point, first along rows, then along
 * columns, each pass rounded to 8 bits. */
#include <assert.h>
#include <math.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "data/parts.h"
#include "data/resize.h"

static void filter_free(filter *f) {
    mem_free(f->first);
    mem_free(f->count);
    mem_free(f->weight);
    mem_free(f->pair);
}

/* The weights of position o two by two, split into upper and lower bits; 0 beyond the last. */
static void split_weights(filter *f, int o) {
    const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;
    int32_t *to = f->pair + (size_t)o * (size_t)f->pairs * 2;
    const int32_t mask = (1 << SPLIT) - 1;
    for (int i = 0; i < f->count[o]; i += 2, to += 2) {
        int32_t a = k[i], b = i + 1 < f->count[o] ? k[i + 1] : 0;
        to[0] = a >> SPLIT | b >> SPLIT << 16;
        to[1] = (a & mask) | (b & mask) << 16;
    }
}

/* Positions `start` to start + n of `out`, over from … to of `in` pixels. */
static bool filter_new(filter *f, int in, double from, double to, int out, int start, int n, err *e) {
    float lo = (float)from, hi = (float)to;    /* PIL keeps the box in floats */
    double scale = (double)(hi - lo) / out, grow = scale < 1 ? 1 : scale, support = grow;
    f->taps = (int)ceil(support) * 2 + 1;
    f->pairs = (f->taps + 1) / 2;
    f->first = mem_new((size_t)n, sizeof *f->first, e);
    f->count = f->first ? mem_new((size_t)n, sizeof *f->count, e) : NULL;
    f->weight = f->count ? mem_new((size_t)n * (size_t)f->taps, sizeof *f->weight, e) : NULL;
    f->pair = f->weight ? mem_new(2 * (size_t)n * (size_t)f->pairs, sizeof *f->pair, e) : NULL;
    double *w = f->pair ? mem_new((size_t)f->taps, sizeof *w, e) : NULL;
    if (!w) return false;
    for (int o = 0; o < n; o++) {
        double centre = (double)lo + (start + o + 0.5) * scale, sum = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (last > in) last = in;
        for (int i = 0; i < last - first; i++) {
            double d = fabs((i + first - centre + 0.5) * (1.0 / grow));
            w[i] = d < 1 ? 1 - d : 0;
            sum += w[i];
        }
        f->first[o] = first;
        f->count[o] = last - first;
        for (int i = 0; i < last - first; i++)
            f->weight[(size_t)o * (size_t)f->taps + (size_t)i] =
                (int32_t)(0.5 + (sum != 0 ? w[i] / sum : w[i]) * (1 << FRACTION_BITS));
        const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;   /* a weight of 0 at the end */
        while (f->count[o] > 1 && !k[f->count[o] - 1]) f->count[o]--;
        split_weights(f, o);
    }
    mem_free(w);
    return true;
}

/* ---- along rows ------------------------------------------------------------------------------ */

static uint8_t clip8(int32_t v) {
    v >>= FRACTION_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row (in, c) → (out, c). */
static void resize_row(const uint8_t *row, int c, const filter *f, int out, uint8_t *to) {
    for (int o = 0; o < out; o++)
        for (int j = 0; j < c; j++) {
            const uint8_t *p = row + f->first[o] * c + j;
            const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;
            int32_t sum = HALF;
            for (int i = 0; i < f->count[o]; i++, p += c) sum += *p * k[i];
            *to++ = clip8(sum);
        }
}

/* Bytes of the first columns of an output row, from `from` to n, of whole rows added up. */
static void resize_column(const uint8_t *p, size_t row, const int32_t *k, int count, size_t from,
                          size_t n, uint8_t *to) {
    for (size_t x = from; x < n; x++) {
        int32_t sum = HALF;
        for (int i = 0; i < count; i++) sum += p[(size_t)i * row + x] * k[i];
        to[x] = clip8(sum);
    }
}

#ifdef __SSE2__
/* The same sums, two taps at a time: a weight of 22 bits is split into 11 and 11, so that products of
 * 16-bit numbers, which the machine adds in pairs, are exact. */
typedef struct { __m128i high, low; } sum4;

static sum4 add_pair(sum4 s, __m128i pixels, const int32_t pair[2]) {
    s.high = _mm_add_epi32(s.high, _mm_madd_epi16(pixels, _mm_set1_epi32(pair[0])));
    s.low = _mm_add_epi32(s.low, _mm_madd_epi16(pixels, _mm_set1_epi32(pair[1])));
    return s;
}

static __m128i total(sum4 s) {
    __m128i v = _mm_add_epi32(_mm_slli_epi32(s.high, SPLIT), s.low);
    return _mm_srai_epi32(_mm_add_epi32(v, _mm_set1_epi32(HALF)), FRACTION_BITS);
}

static __m128i load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

static __m128i load4(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm_cvtsi32_si128(v);
}

/* A colour row, from pixel o on, with BEYOND bytes behind its end that may be read. */
static void resize_colour_row(const uint8_t *row, const filter *f, int o, int out, uint8_t *to) {
    const __m128i zero = _mm_setzero_si128();
    for (to += o * 3; o < out; o++, to += 3) {
        const uint8_t *p = row + f->first[o] * 3;
        const int32_t *k = f->pair + (size_t)o * (size_t)f->pairs * 2;
        sum4 s = { zero, zero };
        for (int i = 0; i < f->count[o]; i += 2, p += 6) {
            __m128i two = _mm_unpacklo_epi8(load4(p), load4(p + 3));
            s = add_pair(s, _mm_unpacklo_epi8(two, zero), k + i);
        }
        __m128i v = _mm_packs_epi32(total(s), zero);
        int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(v, zero));
        memcpy(to, &bytes, 3);
    }
}

/* Sixteen or more columns at a time; returns how many were done. */
static size_t resize_column_wide(const uint8_t *p, size_t row, const int32_t *pair, int count,
                                 size_t n, uint8_t *to) {
    const __m128i zero = _mm_setzero_si128();
    size_t x = core_isa() >= ISA_AVX2 ? resize_column_avx2(p, row, pair, count, n, to) : 0;
    for (; x + 16 <= n; x += 16) {
        sum4 s[4] = { { zero, zero }, { zero, zero }, { zero, zero }, { zero, zero } };
        for (int i = 0; i < count; i += 2) {
            const uint8_t *above = p + (size_t)i * row + x;
            __m128i a = load16(above), b = i + 1 < count ? load16(above + row) : zero;
            __m128i left = _mm_unpacklo_epi8(a, b), right = _mm_unpackhi_epi8(a, b);
            s[0] = add_pair(s[0], _mm_unpacklo_epi8(left, zero), pair + i);
            s[1] = add_pair(s[1], _mm_unpackhi_epi8(left, zero), pair + i);
            s[2] = add_pair(s[2], _mm_unpacklo_epi8(right, zero), pair + i);
            s[3] = add_pair(s[3], _mm_unpackhi_epi8(right, zero), pair + i);
        }
        __m128i v = _mm_packs_epi32(total(s[0]), total(s[1]));
        __m128i u = _mm_packs_epi32(total(s[2]), total(s[3]));
        _mm_storeu_si128((__m128i *)(void *)(to + x), _mm_packus_epi16(v, u));
    }
    return x;
}
#else
static size_t resize_column_wide(const uint8_t *p, size_t row, const int32_t *pair, int count,
                                 size_t n, uint8_t *to) {
    (void)p, (void)row, (void)pair, (void)count, (void)n, (void)to;
    return 0;
}
static void resize_colour_row(const uint8_t *row, const filter *f, int o, int out, uint8_t *to) {
    (void)o;
    resize_row(row, 3, f, out, to);
}
#endif

/* Two rows as above, or one twice. */
static void resize_colour_rows(const uint8_t *row, ptrdiff_t down, const filter *f, int out, uint8_t *to,
                               ptrdiff_t to_down) {
    int o = core_isa() >= ISA_AVX2 ? resize_colour_rows_avx2(row, down, f, out, to, to_down) : 0;
    resize_colour_row(row, f, o, out, to);
    if (down) resize_colour_row(row + down, f, o, out, to + to_down);
}

/* Rows y0 … y1-1 of src (·, w, c) → dst (y1-y0, out, c). line: room for a row and BEYOND bytes; rows
 * behind which the image has fewer than that are read from there. */
static void resize_rows(const data_image *src, const filter *f, int out, int y0, int y1,
                        uint8_t *line, uint8_t *dst) {
    size_t in = (size_t)src->w * (size_t)src->c, n = (size_t)out * (size_t)src->c;
    for (int y = y0, two; y < y1; y += 1 + two, dst += n * (size_t)(1 + two)) {
        const uint8_t *row = src->x + (size_t)y * in;
        two = y + 1 < y1 && (size_t)(src->h - 2 - y) * in >= BEYOND;
        if ((size_t)(src->h - 1 - y) * in < BEYOND) row = memcpy(line, row, in);
        if (src->c == 3) resize_colour_rows(row, two ? (ptrdiff_t)in : 0, f, out, dst, two ? (ptrdiff_t)n : 0);
        for (size_t k = 0; src->c != 3 && k <= (size_t)two; k++) resize_row(row + k * in, src->c, f, out, dst + k * n);
    }
}

/* src, whose rows are `row` bytes apart → dst (out, n bytes). */
static void resize_columns(const uint8_t *src, size_t row, const filter *f, int out, size_t n,
                           uint8_t *dst) {
    for (int o = 0; o < out; o++, dst += n) {
        const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;
        const uint8_t *p = src + (size_t)f->first[o] * row;
        const int32_t *pair = f->pair + (size_t)o * (size_t)f->pairs * 2;
        size_t done = resize_column_wide(p, row, pair, f->count[o], n, dst);
        resize_column(p, row, k, f->count[o], done, n, dst);
    }
}

bool image_resize_part(const data_image *src, const image_box *box, int oh, int ow,
                       const image_part *part, data_image *out, err *e) {
    *out = (data_image){ 0 };
    double x = box->x, y = box->y, w = box->w, h = box->h;
    if (oh < 1 || ow < 1 || oh > IMAGE_MAX_SIDE || ow > IMAGE_MAX_SIDE)
        return err_set(e, ERR_CONFIG, "cannot resize to %d×%d pixels", ow, oh);
    if (!(x >= 0 && y >= 0 && w > 0 && h > 0 && x + w <= src->w && y + h <= src->h))
        return err_set(e, ERR_CONFIG, "the box %g,%g %g×%g is not inside an image of %d×%d", x, y,
                       w, h, src->w, src->h);
    assert(part->y >= 0 && part->x >= 0 && part->h > 0 && part->w > 0);
    assert(part->h <= oh - part->y && part->w <= ow - part->x);
    size_t c = (size_t)src->c, in = (size_t)src->w * c, n = (size_t)part->w * c;
    bool ok = false;
    filter fx = { 0 }, fy = { 0 };
    uint8_t *wide = NULL, *line = NULL;
    data_image r = { part->h, part->w, src->c, mem_new((size_t)part->h, n, e) };
    if (!r.x) return false;

    /* A pass that would change nothing is left out: it would still round. */
    bool rows = ow != src->w || x > 0 || x + w < src->w,
         columns = oh != src->h || y > 0 || y + h < src->h;
    if (rows && !filter_new(&fx, src->w, x, x + w, ow, part->x, part->w, e)) goto done;
    if (columns && !filter_new(&fy, src->h, y, y + h, oh, part->y, part->h, e)) goto done;
    int y0 = columns ? fy.first[0] : part->y;            /* the first row of src that is needed */
    int y1 = columns ? fy.first[part->h - 1] + fy.count[part->h - 1] : part->y + part->h;
    for (int o = 0; columns && o < part->h; o++) fy.first[o] -= y0;
    const uint8_t *middle = src->x + (size_t)y0 * in + (rows ? 0 : (size_t)part->x * c);
    if (rows) {
        uint8_t *to = r.x;
        if (columns) to = wide = mem_new((size_t)(y1 - y0), n, e);
        if (!to || !(line = mem_new(in + BEYOND, 1, e))) goto done;
        resize_rows(src, &fx, part->w, y0, y1, line, to);
        middle = to;
    }
    if (columns) resize_columns(middle, rows ? n : in, &fy, part->h, n, r.x);
    else if (!rows)
        for (int i = 0; i < part->h; i++) memcpy(r.x + (size_t)i * n, middle + (size_t)i * in, n);
    ok = true;
done:
    filter_free(&fx);
    filter_free(&fy);
    mem_free(wide);
    mem_free(line);
    if (ok) *out = r;
    else mem_free(r.x);
    return ok;
}

bool image_resize(const data_image *src, double x, double y, double w, double h, int oh, int ow,
                  data_image *out, err *e) {
    return image_resize_part(src, &(image_box){ x, y, w, h }, oh, ow, &(image_part){ 0, 0, oh, ow },
                             out, e);
}
