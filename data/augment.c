/* From pixels to the floats of a batch: geometry in 8 bits, then one pass that crops, mirrors, pads
 * and normalises through a table of 256 values per channel. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/parts.h"

/* ---- preprocessing as text ------------------------------------------------------------------- */

/* The fewest digits that read back as the same float. */
static void float_print(char out[32], float v) {
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(out, 32, "%.*g", digits, (double)v);
        if ((float)strtod(out, NULL) == v) return;
    }
}

void data_prep_print(const data_prep *p, char out[256]) {
    int n = snprintf(out, 256, "size=%d,%d,%d resize=%d", p->h, p->w, p->c, p->resize);
    for (int which = 0; which < 2; which++) {
        n += snprintf(out + n, 256 - (size_t)n, which ? " std=" : " mean=");
        for (int c = 0; c < p->c; c++) {
            char number[32];
            float_print(number, (which ? p->std : p->mean)[c]);
            n += snprintf(out + n, 256 - (size_t)n, "%s%s", c ? "," : "", number);
        }
    }
}

/* "a,b,c" of at most max numbers up to a blank or the end; *n of them. */
static bool numbers(const char *text, size_t len, double *out, int max, int *n) {
    const char *end = text + len;
    for (*n = 0; *n < max;) {
        if (text >= end || isspace((unsigned char)*text)) return false;
        char *stop;
        out[(*n)++] = strtod(text, &stop);
        if (stop == text || stop > end) return false;
        if (stop == end) return true;
        if (*stop != ',') return false;
        text = stop + 1;
    }
    return false;
}

static bool whole(double v, double lo, double hi) { return v >= lo && v <= hi && v == floor(v); }

static bool prep_check(const data_prep *p, int n_mean, int n_std, err *e) {
    if (n_mean != p->c || n_std != p->c)
        return err_set(e, ERR_DATA, "preprocessing has %d channels, %d means and %d stds", p->c,
                       n_mean, n_std);
    if (p->resize && p->resize < (p->h > p->w ? p->h : p->w))
        return err_set(e, ERR_DATA, "preprocessing resizes to %d, less than the crop of %d×%d",
                       p->resize, p->h, p->w);
    return true;
}

bool data_prep_parse(data_prep *p, const char *text, err *e) {
    static const char *const key[4] = { "size=", "resize=", "mean=", "std=" };
    static const int most[4] = { 3, 1, 3, 3 };
    double v[4][3] = { { 0 } };
    int n[4] = { 0 };
    for (const char *at = text; *(at += strspn(at, " "));) {
        size_t len = strcspn(at, " "), k = 0;
        while (k < 4 && strncmp(at, key[k], strlen(key[k]))) k++;
        if (k == 4 || n[k] ||
            !numbers(at + strlen(key[k]), len - strlen(key[k]), v[k], most[k], &n[k]))
            return err_set(e, ERR_DATA, "preprocessing \"%s\": \"%.*s\" is not understood", text,
                           (int)len, at);
        at += len;
    }
    if (n[0] != 3 || n[1] != 1)
        return err_set(e, ERR_DATA, "preprocessing \"%s\": size=h,w,c and resize=n are wanted",
                       text);
    if (!whole(v[0][0], 1, IMAGE_MAX_SIDE) || !whole(v[0][1], 1, IMAGE_MAX_SIDE) ||
        (v[0][2] != 1 && v[0][2] != 3) || !whole(v[1][0], 0, IMAGE_MAX_SIDE))
        return err_set(e, ERR_DATA, "preprocessing \"%s\": impossible size", text);
    data_prep r = { (int)v[0][0], (int)v[0][1], (int)v[0][2], (int)v[1][0], { 0 }, { 0 } };
    for (int c = 0; c < r.c; c++) {
        r.mean[c] = (float)v[2][c], r.std[c] = (float)v[3][c];
        if (!isfinite(r.mean[c]) || !isfinite(r.std[c]) || (c < n[3] && !(r.std[c] > 0)))
            return err_set(e, ERR_DATA,
                           "preprocessing \"%s\": mean must be finite and std positive", text);
    }
    if (!prep_check(&r, n[2], n[3], e)) return false;
    *p = r;
    return true;
}

data_prep data_prep_at(data_prep p, int h, int w) {
    int was = p.h > p.w ? p.h : p.w, now = h > w ? h : w;   /* a crop lies inside what is resized */
    p.resize = (int)lround((double)p.resize * now / was);
    p.h = h, p.w = w;
    return p;
}

/* ---- geometry -------------------------------------------------------------------------------- */

/* a/b by one over b, the rounding corrected (Markstein, IBM J. Res. Dev. 34, 1990). */
static float quotient(float a, float b, float back) {
    float q = a * back;
    return fmaf(fmaf(-q, b, a), back, q);
}

void prep_table_init(prep_table *t, const data_prep *p) {
    *t = (prep_table){ .prep = *p };
    for (int c = 0; c < p->c; c++)
        for (int v = 0; v < 256; v++) t->value[c][v] = ((float)v / 255.0f - p->mean[c]) / p->std[c];
    t->back = 1 / 255.0f;
    t->by_product = p->c == 3;
    for (int i = 0; t->by_product && i < 24; i++) {
        t->mean[i] = p->mean[i % 3];
        t->std[i] = p->std[i % 3];
        t->back_std[i] = 1 / t->std[i];
    }
    for (int i = 0; t->by_product && i < 3 * 256; i++) {
        int c = i / 256;
        float x = quotient(quotient((float)(i % 256), 255, t->back) - t->mean[c], t->std[c], t->back_std[c]);
        t->by_product = !memcmp(&x, &t->value[c][i % 256], sizeof x);
    }
}

/* Where the centre of n pixels begins: torchvision rounds the half of an odd margin to even. */
static int centre(int of, int n) { return (int)nearbyint((of - n) / 2.0); }

bool image_resize_shorter(const data_image *im, int to, int crop_h, int crop_w, data_image *out,
                          err *e) {
    int h = im->h <= im->w ? to : (int)((int64_t)to * im->h / im->w);
    int w = im->w <= im->h ? to : (int)((int64_t)to * im->w / im->h);
    image_part part = { 0, 0, h, w };
    if (crop_h) part = (image_part){ centre(h, crop_h), centre(w, crop_w), crop_h, crop_w };
    return image_resize_part(im, &(image_box){ 0, 0, im->w, im->h }, h, w, &part, out, e);
}

/* A box of random area and shape, ten tries; then the largest box of a permitted shape, centred. */
static void random_box(rng *r, int h, int w, double least, double box[4]) {
    for (int i = 0; i < 10; i++) {
        double area = (least + (1 - least) * rng_uniform(r)) * h * w;
        double ratio = exp(log(3.0 / 4) + (log(4.0 / 3) - log(3.0 / 4)) * rng_uniform(r));
        double bw = nearbyint(sqrt(area * ratio)), bh = nearbyint(sqrt(area / ratio));
        if (bw < 1 || bh < 1 || bw > w || bh > h) continue;
        box[0] = rng_below(r, (uint32_t)(w - bw) + 1);
        box[1] = rng_below(r, (uint32_t)(h - bh) + 1);
        box[2] = bw, box[3] = bh;
        return;
    }
    double ratio = (double)w / h;
    box[2] = ratio > 4.0 / 3 ? nearbyint(h * 4.0 / 3) : w;
    box[3] = ratio < 3.0 / 4 ? nearbyint(w / (3.0 / 4)) : h;
    box[0] = floor((w - box[2]) / 2);
    box[1] = floor((h - box[3]) / 2);
}

/* Where the output's corner lies in the image: negative or beyond the edge where padding shows. */
typedef struct { int y, x; bool mirror; } window;

/* The window as an image of its own, in 8 bits, and as much room again behind it. */
static bool cut_window(const data_prep *p, const data_image *im, window at, data_image *out, err *e) {
    size_t c = (size_t)im->c;
    *out = (data_image){ p->h, p->w, im->c, mem_new(2 * (size_t)p->h * (size_t)p->w, c, e) };
    if (!out->x) return false;
    int first = at.x < 0 ? -at.x : 0, last = im->w - at.x < p->w ? im->w - at.x : p->w;
    for (int y = 0; y < p->h; y++) {
        int sy = at.y + y;
        if (sy < 0 || sy >= im->h) continue;
        uint8_t *to = out->x + (size_t)y * (size_t)p->w * c;
        const uint8_t *from = im->x + (size_t)sy * (size_t)im->w * c;
        if (!at.mirror && last > first)
            memcpy(to + (size_t)first * c, from + (size_t)(at.x + first) * c,
                   (size_t)(last - first) * c);
        for (int x = first; at.mirror && x < last; x++)
            memcpy(to + (size_t)(p->w - 1 - x) * c, from + (size_t)(at.x + x) * c, c);
    }
    return true;
}

static void normalise(const prep_table *t, const data_image *im, window at, float *out) {
    int H = t->prep.h, W = t->prep.w, C = t->prep.c, c_in = im->c;
    int first = at.x < 0 ? -at.x : 0, last = im->w - at.x < W ? im->w - at.x : W;   /* inside */
    int step = at.mirror ? -C : C;
    bool wide = t->by_product && core_isa() >= ISA_AVX2;
    for (int y = 0; y < H; y++, out += W * C) {
        int sy = at.y + y;
        bool row = sy >= 0 && sy < im->h;
        int from = row && last > first ? first : W, to = row && last > first ? last : W;
        float *o = at.mirror ? out + (W - 1) * C : out;
        for (int x = 0; x < from; x++, o += step)
            for (int c = 0; c < C; c++) o[c] = t->value[c][0];
        size_t start = (size_t)(row ? sy : 0) * (size_t)im->w + (size_t)(at.x + first);
        const uint8_t *p = im->x + start * (size_t)c_in;
        int done = c_in == 3 && wide ? normalise_avx2(t, p, to - from, at.mirror, o) : 0;
        p += done * C, o += done * step;
        if (C == 3 && c_in == 3)
            for (int x = from + done; x < to; x++, p += 3, o += step)
                o[0] = t->value[0][p[0]], o[1] = t->value[1][p[1]], o[2] = t->value[2][p[2]];
        else
            for (int x = from; x < to; x++, p++, o += step)
                for (int c = 0; c < C; c++) o[c] = t->value[c][*p];
        for (int x = to; x < W; x++, o += step)
            for (int c = 0; c < C; c++) o[c] = t->value[c][0];
    }
}

/* Random erasing as timm's "pixel" mode: a box of 2 to 33 % of the area becomes normal noise. */
static void erase(const data_prep *p, rng *r, float *x) {
    for (int i = 0; i < 10; i++) {
        double area = (0.02 + (1.0 / 3 - 0.02) * rng_uniform(r)) * p->h * p->w;
        double ratio = exp(log(0.3) - 2 * log(0.3) * rng_uniform(r));
        int h = (int)nearbyint(sqrt(area * ratio)), w = (int)nearbyint(sqrt(area / ratio));
        if (h >= p->h || w >= p->w) continue;
        int top = (int)rng_below(r, (uint32_t)(p->h - h) + 1),
            left = (int)rng_below(r, (uint32_t)(p->w - w) + 1);
        for (int y = top; y < top + h; y++)
            for (int k = left * p->c; k < (left + w) * p->c; k++)
                x[y * p->w * p->c + k] = (float)rng_normal(r);
        return;
    }
}

static bool distorts(const data_augment *a) { return a->aa.n > 0 || a->jitter > 0; }

/* What changes colours and shapes, on exactly the pixels the network will see. */
static void distort(const data_prep *p, const data_augment *a, rng *r, data_image *im) {
    size_t bytes = (size_t)im->h * (size_t)im->w * (size_t)im->c;
    canvas k = { im->h, im->w, im->c, im->x, im->x + bytes, { 0 } };
    for (int c = 0; c < im->c; c++)
        k.fill[c] = (uint8_t)fmax(0, fmin(255, nearbyint((double)p->mean[c] * 255)));
    if (a->aa.n > 0) randaug(&k, &a->aa, r);
    if (a->jitter > 0) pixel_jitter(&k, r, a->jitter);
    if (k.x != im->x) memcpy(im->x, k.x, bytes);
}

/* The image as wanted before the final window: grey or colour, random box, resize. *own is set when
 * the result is new memory. */
static bool shape_image(const prep_table *t, const data_augment *a, rng *r, data_image *im,
                        bool *own, err *e) {
    const data_prep *p = &t->prep;
    data_image next;
    *own = false;
    if (im->c != p->c && (p->c == 1 || distorts(a))) {
        if (!image_convert(im, p->c, &next, e)) return false;
        *im = next;
        *own = true;
    }
    bool fits = im->h == p->h && im->w == p->w, ok = true;
    if (a->rrc_min > 0) {
        double box[4];
        random_box(r, im->h, im->w, a->rrc_min, box);
        ok = image_resize(im, box[0], box[1], box[2], box[3], p->h, p->w, &next, e);
    } else if (p->resize) {
        bool moves = a->pad > 0;                         /* else only the centre is looked at */
        ok = image_resize_shorter(im, p->resize, moves ? 0 : p->h, moves ? 0 : p->w, &next, e);
    } else if (!fits) {
        ok = image_resize(im, 0, 0, im->w, im->h, p->h, p->w, &next, e);
    } else {
        return true;
    }
    if (*own) mem_free(im->x);
    *own = ok;
    if (ok) *im = next;
    return ok;
}

bool prep_image(const prep_table *t, const data_augment *a, rng *r, const set_view *v, float *out,
                err *e) {
    static const data_augment none;
    const data_prep *p = &t->prep;
    data_image im = { v->h, v->w, v->c, (uint8_t *)(uintptr_t)v->x };
    bool own;
    if (!a) a = &none;
    if (!shape_image(t, a, r, &im, &own, e)) return false;
    window at = { centre(im.h, p->h), centre(im.w, p->w), false };
    if (a->pad > 0) {
        at.y += (int)rng_below(r, 2 * (uint32_t)a->pad + 1) - a->pad;
        at.x += (int)rng_below(r, 2 * (uint32_t)a->pad + 1) - a->pad;
    }
    at.mirror = a->hflip > 0 && rng_uniform(r) < a->hflip;
    bool ok = true;
    if (distorts(a)) {
        data_image seen;
        if ((ok = cut_window(p, &im, at, &seen, e))) {
            distort(p, a, r, &seen);
            normalise(t, &seen, (window){ 0, 0, false }, out);
            mem_free(seen.x);
        }
    } else {
        normalise(t, &im, at, out);
    }
    if (a->erase > 0 && rng_uniform(r) < a->erase) erase(p, r, out);
    if (own) mem_free(im.x);
    return ok;
}

/* ---- mixup and cutmix ----------------------------------------------------------------------------------- */

/* Gamma(a): Marsaglia and Tsang 2000; a < 1 by way of a+1. */
static double gamma_sample(rng *r, double a) {
    if (a < 1) {
        double u = (rng_u32(r) + 0.5) * 0x1p-32;
        return gamma_sample(r, a + 1) * pow(u, 1 / a);
    }
    double d = a - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = rng_normal(r), v = 1 + c * x;
        v = v * v * v;
        double u = (rng_u32(r) + 0.5) * 0x1p-32;
        if (v > 0 && log(u) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
    }
}

double beta_sample(rng *r, double a) {
    double x = gamma_sample(r, a), y = gamma_sample(r, a);
    return x + y > 0 ? x / (x + y) : 0.5;      /* both underflow only for tiny a */
}

/* Pair by pair, so that no copy of the batch is needed. */
void mixup_batch(float *x, int n, int64_t floats, float lam) {
    for (int i = 0; i < n / 2; i++) {
        float *a = x + i * floats, *b = x + (n - 1 - i) * floats;
        for (int64_t k = 0; k < floats; k++) {
            float u = a[k], v = b[k];
            a[k] = lam * u + (1 - lam) * v;
            b[k] = lam * v + (1 - lam) * u;
        }
    }
}

static int clip_to(int v, int most) { return v < 0 ? 0 : v > most ? most : v; }

float cutmix_batch(float *x, int n, const data_prep *p, double lam, rng *r) {
    int bh = (int)(p->h * sqrt(1 - lam)), bw = (int)(p->w * sqrt(1 - lam));
    int cy = (int)rng_below(r, (uint32_t)p->h), cx = (int)rng_below(r, (uint32_t)p->w);
    int y0 = clip_to(cy - bh / 2, p->h), y1 = clip_to(cy + bh / 2, p->h);
    int x0 = clip_to(cx - bw / 2, p->w), x1 = clip_to(cx + bw / 2, p->w);
    int64_t row = (int64_t)p->w * p->c, floats = row * p->h;
    for (int i = 0; i < n / 2; i++)
        for (int y = y0; y < y1; y++) {
            float *a = x + i * floats + y * row, *b = x + (n - 1 - i) * floats + y * row;
            for (int k = x0 * p->c; k < x1 * p->c; k++) {
                float u = a[k];
                a[k] = b[k];
                b[k] = u;
            }
        }
    return (float)(1 - (double)((y1 - y0) * (x1 - x0)) / ((double)p->h * p->w));
}

/* ---- one image for prediction ---------------------------------------------------------------- */

bool data_load_bytes(const void *bytes, size_t size, const char *name, const data_prep *prep, float *x, err *e) {
    data_image im;
    if (!image_decode(bytes, size, name, 0, &im, e)) return false;
    prep_table t;
    prep_table_init(&t, prep);
    set_view v = { im.h, im.w, im.c, im.x, NULL };
    bool ok = prep_image(&t, NULL, NULL, &v, x, e);
    image_free(&im);
    return ok || err_note(e, "%s", name);
}

bool data_load_file(const char *path, const data_prep *prep, float *x, err *e) {
    file_map m;
    if (!file_map_open(&m, path, e)) return false;
    bool ok = data_load_bytes(m.data, m.size, path, prep, x, e);
    file_map_close(&m);
    return ok;
}
