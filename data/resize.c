/* Resize with antialias, equal to PIL's BILINEAR to the last bit: a triangle filter whose support
 * grows with the shrink factor, weights in 22-bit fixed point, first along rows, then along
 * columns, each pass rounded to 8 bits. */
#include <math.h>
#include <string.h>

#include "data/parts.h"

enum { FRACTION_BITS = 32 - 8 - 2 };           /* 8 bits of pixel, 2 bits of headroom */

/* For each output position: where its taps start, how many there are, and their weights. */
typedef struct { int taps; int32_t *first, *count, *weight; } filter;

static void filter_free(filter *f) {
    mem_free(f->first);
    mem_free(f->count);
    mem_free(f->weight);
}

static bool filter_new(filter *f, int in, double from, double to, int out, err *e) {
    float lo = (float)from, hi = (float)to;    /* PIL keeps the box in floats */
    double scale = (double)(hi - lo) / out, grow = scale < 1 ? 1 : scale, support = grow;
    f->taps = (int)ceil(support) * 2 + 1;
    f->first = mem_new((size_t)out, sizeof *f->first, e);
    f->count = f->first ? mem_new((size_t)out, sizeof *f->count, e) : NULL;
    f->weight = f->count ? mem_new((size_t)out * (size_t)f->taps, sizeof *f->weight, e) : NULL;
    double *w = f->weight ? mem_new((size_t)f->taps, sizeof *w, e) : NULL;
    if (!w) return false;
    for (int o = 0; o < out; o++) {
        double centre = (double)lo + (o + 0.5) * scale, sum = 0;
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
    }
    mem_free(w);
    return true;
}

static uint8_t clip8(int32_t v) {
    v >>= FRACTION_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* src (h, w, c) → dst (h, out, c), rows y0 … y1-1 only. */
static void resize_rows(const data_image *src, const filter *f, int out, int y0, int y1,
                        uint8_t *dst) {
    const int32_t half = 1 << (FRACTION_BITS - 1);
    int c = src->c;
    for (int y = y0; y < y1; y++) {
        const uint8_t *row = src->x + (size_t)y * (size_t)src->w * (size_t)c;
        uint8_t *to = dst + (size_t)y * (size_t)out * (size_t)c;
        for (int o = 0; o < out; o++, to += c) {
            const uint8_t *p = row + (size_t)f->first[o] * (size_t)c;
            const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;
            int n = f->count[o];
            if (c == 3) {
                int32_t a = half, b = half, d = half;
                for (int i = 0; i < n; i++, p += 3)
                    a += p[0] * k[i], b += p[1] * k[i], d += p[2] * k[i];
                to[0] = clip8(a), to[1] = clip8(b), to[2] = clip8(d);
            } else {
                int32_t a = half;
                for (int i = 0; i < n; i++) a += p[i] * k[i];
                to[0] = clip8(a);
            }
        }
    }
}

/* src (·, row) → dst (out, row): whole rows are added up, 64 columns at a time. */
static void resize_columns(const uint8_t *src, size_t row, const filter *f, int out, uint8_t *dst) {
    for (int o = 0; o < out; o++) {
        const int32_t *k = f->weight + (size_t)o * (size_t)f->taps;
        const uint8_t *p = src + (size_t)f->first[o] * row;
        for (size_t x = 0; x < row; x += 64) {
            size_t n = row - x < 64 ? row - x : 64;
            int32_t sum[64];
            for (size_t j = 0; j < n; j++) sum[j] = 1 << (FRACTION_BITS - 1);
            for (int i = 0; i < f->count[o]; i++)
                for (size_t j = 0; j < n; j++) sum[j] += p[(size_t)i * row + x + j] * k[i];
            for (size_t j = 0; j < n; j++) dst[(size_t)o * row + x + j] = clip8(sum[j]);
        }
    }
}

bool image_resize(const data_image *src, double x, double y, double w, double h, int oh, int ow,
                  data_image *out, err *e) {
    *out = (data_image){ 0 };
    if (oh < 1 || ow < 1 || oh > IMAGE_MAX_SIDE || ow > IMAGE_MAX_SIDE)
        return err_set(e, ERR_CONFIG, "cannot resize to %d×%d pixels", ow, oh);
    if (!(x >= 0 && y >= 0 && w > 0 && h > 0 && x + w <= src->w && y + h <= src->h))
        return err_set(e, ERR_CONFIG, "the box %g,%g %g×%g is not inside an image of %d×%d", x, y,
                       w, h, src->w, src->h);
    size_t c = (size_t)src->c;
    bool ok = false;
    filter fx = { 0 }, fy = { 0 };
    uint8_t *wide = NULL;
    data_image r = { oh, ow, src->c, mem_new((size_t)oh * (size_t)ow, c, e) };
    if (!r.x) return false;

    /* A pass that would change nothing is left out: it would still round. */
    bool rows = ow != src->w || x > 0 || x + w < src->w,
         columns = oh != src->h || y > 0 || y + h < src->h;
    if (rows && !filter_new(&fx, src->w, x, x + w, ow, e)) goto done;
    if (columns && !filter_new(&fy, src->h, y, y + h, oh, e)) goto done;
    const uint8_t *middle = src->x;
    if (rows) {
        uint8_t *to = r.x;
        if (columns) to = wide = mem_new((size_t)src->h * (size_t)ow, c, e);
        if (!to) goto done;
        int y0 = columns ? fy.first[0] : 0;
        int y1 = columns ? fy.first[oh - 1] + fy.count[oh - 1] : src->h;
        resize_rows(src, &fx, ow, y0, y1, to);
        middle = to;
    }
    if (columns) resize_columns(middle, (size_t)ow * c, &fy, oh, r.x);
    else if (!rows) memcpy(r.x, src->x, (size_t)oh * (size_t)ow * c);
    ok = true;
done:
    filter_free(&fx);
    filter_free(&fy);
    mem_free(wide);
    if (ok) *out = r;
    else mem_free(r.x);
    return ok;
}
