/* Operations on pixels as PIL has them, to the last bit: what RandAugment and colour jitter are made
 * of. Each is a row of pixel_ops; an operation takes one number and leaves its result in k->x. */
#include <math.h>
#include <string.h>

#include "data/parts.h"

static size_t pixels(const canvas *k) { return (size_t)k->h * (size_t)k->w; }

static void swap(canvas *k) {
    uint8_t *t = k->x;
    k->x = k->spare;
    k->spare = t;
}

/* ---- a table per channel ---------------------------------------------------------------------- */

typedef struct { uint8_t of[3][256]; } table;

static void look_up(canvas *k, const table *t) {
    uint8_t *p = k->x, *end = p + pixels(k) * (size_t)k->c;
    if (k->c == 1)
        for (; p < end; p++) *p = t->of[0][*p];
    else
        for (; p < end; p += 3)
            p[0] = t->of[0][p[0]], p[1] = t->of[1][p[1]], p[2] = t->of[2][p[2]];
}

/* The same table for all channels. */
static void look_up_all(canvas *k, table *t) {
    for (int c = 1; c < k->c; c++) memcpy(t->of[c], t->of[0], 256);
    look_up(k, t);
}

static void count(const canvas *k, int64_t n[3][256]) {
    memset(n, 0, 3 * sizeof *n);
    const uint8_t *p = k->x, *end = p + pixels(k) * (size_t)k->c;
    for (; p < end; p += k->c)
        for (int c = 0; c < k->c; c++) n[c][p[c]]++;
}

static uint8_t clip(int64_t v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }

static void autocontrast(canvas *k, double unused) {
    int64_t n[3][256];
    table t;
    (void)unused;
    count(k, n);
    for (int c = 0; c < k->c; c++) {
        int lo = 0, hi = 255;
        while (lo < 255 && !n[c][lo]) lo++;
        while (hi > 0 && !n[c][hi]) hi--;
        double scale = hi > lo ? 255.0 / (hi - lo) : 1, offset = hi > lo ? -lo * scale : 0;
        for (int v = 0; v < 256; v++) t.of[c][v] = clip((int64_t)(v * scale + offset));
    }
    look_up(k, &t);
}

static void equalize(canvas *k, double unused) {
    int64_t n[3][256];
    table t;
    (void)unused;
    count(k, n);
    for (int c = 0; c < k->c; c++) {
        int last = 255;
        while (last > 0 && !n[c][last]) last--;
        int64_t step = ((int64_t)pixels(k) - n[c][last]) / 255, sum = step / 2;
        for (int v = 0; v < 256; v++) {
            t.of[c][v] = step ? clip(sum / step) : (uint8_t)v;
            sum += n[c][v];
        }
    }
    look_up(k, &t);
}

static void invert(canvas *k, double unused) {
    (void)unused;
    for (size_t i = 0, n = pixels(k) * (size_t)k->c; i < n; i++) k->x[i] = (uint8_t)~k->x[i];
}

static void posterize(canvas *k, double bits) {
    uint8_t mask = (uint8_t)~((1 << (8 - (int)bits)) - 1);
    for (size_t i = 0, n = pixels(k) * (size_t)k->c; i < n; i++) k->x[i] &= mask;
}

static void solarize(canvas *k, double threshold) {
    table t;
    for (int v = 0; v < 256; v++) t.of[0][v] = (uint8_t)(v < threshold ? v : 255 - v);
    look_up_all(k, &t);
}

static void solarize_add(canvas *k, double add) {
    table t;
    for (int v = 0; v < 256; v++) t.of[0][v] = v < 128 ? clip(v + (int)add) : (uint8_t)v;
    look_up_all(k, &t);
}

/* ---- between an image without the property and the image -------------------------------------- */

static uint8_t blend(int without, int with, float factor) {
    float v = (float)without + factor * (float)(with - without);
    return (uint8_t)(v <= 0 ? 0 : v >= 255 ? 255 : v);
}

static unsigned luma(const uint8_t *p) {
    return (19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16;
}

static void blend_with_grey(canvas *k, int grey, double factor) {
    table t;
    for (int v = 0; v < 256; v++) t.of[0][v] = blend(grey, v, (float)factor);
    look_up_all(k, &t);
}

static void brightness(canvas *k, double factor) { blend_with_grey(k, 0, factor); }

static void contrast(canvas *k, double factor) {
    uint64_t sum = 0;
    const uint8_t *p = k->x, *end = p + pixels(k) * (size_t)k->c;
    for (; p < end; p += k->c) sum += k->c == 3 ? luma(p) : *p;
    blend_with_grey(k, (int)((double)sum / (double)pixels(k) + 0.5), factor);
}

static void color(canvas *k, double factor) {
    if (k->c != 3) return;
    uint8_t *p = k->x, *end = p + pixels(k) * 3;
    for (; p < end; p += 3) {
        int grey = (int)luma(p);
        for (int c = 0; c < 3; c++) p[c] = blend(grey, p[c], (float)factor);
    }
}

/* Blurred by 1 1 1, 1 5 1, 1 1 1 over 13; the outermost pixels stay. */
static void sharpness(canvas *k, double factor) {
    ptrdiff_t c = k->c, row = (ptrdiff_t)k->w * c;
    memcpy(k->spare, k->x, pixels(k) * (size_t)c);
    for (int y = 1; y < k->h - 1; y++)
        for (ptrdiff_t i = c; i < row - c; i++) {
            const uint8_t *p = k->x + y * row + i;
            int sum = p[-row - c] + p[-row] + p[-row + c] + p[-c] + 5 * p[0] + p[c] + p[row - c] +
                      p[row] + p[row + c];
            k->spare[y * row + i] = blend((2 * sum + 13) / 26, p[0], (float)factor);
        }
    swap(k);
}

/* ---- geometry, bilinear ------------------------------------------------------------------------ */

static double between(double a, double b, double d) { return a + (b - a) * d; }

/* Output (x, y) shows the point (a0 x + a1 y + a2, a3 x + a4 y + a5) of the image, pixel centres at
 * halves; outside is the fill colour. */
static void affine(canvas *k, const double a[6]) {
    uint8_t *out = k->spare;
    size_t row = (size_t)k->w * (size_t)k->c;
    for (int y = 0; y < k->h; y++)
        for (int x = 0; x < k->w; x++, out += k->c) {
            double px = a[0] * (x + 0.5) + a[1] * (y + 0.5) + a[2];
            double py = a[3] * (x + 0.5) + a[4] * (y + 0.5) + a[5];
            if (px < 0 || px >= k->w || py < 0 || py >= k->h) {
                memcpy(out, k->fill, (size_t)k->c);
                continue;
            }
            px -= 0.5, py -= 0.5;
            int left = px < 0 ? -1 : (int)px, top = py < 0 ? -1 : (int)py;
            double dx = px - left, dy = py - top;
            int x0 = left < 0 ? 0 : left, x1 = left + 1 < k->w ? left + 1 : left;
            int y0 = top < 0 ? 0 : top, y1 = top + 1 < k->h ? top + 1 : top;
            const uint8_t *r0 = k->x + (size_t)y0 * row, *r1 = k->x + (size_t)y1 * row;
            for (int c = 0; c < k->c; c++) {
                double u = between(r0[x0 * k->c + c], r0[x1 * k->c + c], dx);
                double v = between(r1[x0 * k->c + c], r1[x1 * k->c + c], dx);
                out[c] = (uint8_t)between(u, v, dy);
            }
        }
    swap(k);
}

static void shear_x(canvas *k, double v) { affine(k, (double[6]){ 1, v, 0, 0, 1, 0 }); }
static void shear_y(canvas *k, double v) { affine(k, (double[6]){ 1, 0, 0, v, 1, 0 }); }
static void translate_x(canvas *k, double v) { affine(k, (double[6]){ 1, 0, v * k->w, 0, 1, 0 }); }
static void translate_y(canvas *k, double v) { affine(k, (double[6]){ 1, 0, 0, 0, 1, v * k->h }); }

/* Counter-clockwise about the centre. PIL keeps 15 digits of sine and cosine. */
static void rotate(canvas *k, double degrees) {
    if (degrees == 0) return;
    double angle = -(degrees < 0 ? degrees + 360 : degrees) * (3.14159265358979323846 / 180);
    double c = nearbyint(cos(angle) * 1e15) / 1e15, s = nearbyint(sin(angle) * 1e15) / 1e15;
    double mx = k->w / 2.0, my = k->h / 2.0;
    const double a[6] = { c, s, c * -mx + s * -my + mx, -s, c, -s * -mx + c * -my + my };
    affine(k, a);
}

const pixel_op pixel_ops[] = {
    { "AutoContrast", autocontrast, PIXEL_NOTHING },
    { "Equalize",     equalize,     PIXEL_NOTHING },
    { "Invert",       invert,       PIXEL_NOTHING },
    { "Rotate",       rotate,       PIXEL_DEGREES },
    { "Posterize",    posterize,    PIXEL_BITS },
    { "Solarize",     solarize,     PIXEL_THRESHOLD },
    { "SolarizeAdd",  solarize_add, PIXEL_ADD },
    { "Color",        color,        PIXEL_FACTOR },
    { "Contrast",     contrast,     PIXEL_FACTOR },
    { "Brightness",   brightness,   PIXEL_FACTOR },
    { "Sharpness",    sharpness,    PIXEL_FACTOR },
    { "ShearX",       shear_x,      PIXEL_SHEAR },
    { "ShearY",       shear_y,      PIXEL_SHEAR },
    { "TranslateX",   translate_x,  PIXEL_SHIFT },
    { "TranslateY",   translate_y,  PIXEL_SHIFT },
};
const int pixel_op_count = sizeof pixel_ops / sizeof *pixel_ops;

void pixel_jitter(canvas *k, rng *r, double strength) {
    static void (*const op[3])(canvas *k, double factor) = { brightness, contrast, color };
    int32_t order[3] = { 0, 1, 2 };
    double least = strength < 1 ? 1 - strength : 0, factor[3];
    rng_shuffle(r, order, 3);
    for (int i = 0; i < 3; i++) factor[i] = least + (1 + strength - least) * rng_uniform(r);
    for (int i = 0; i < 3; i++) op[order[i]](k, factor[order[i]]);
}
