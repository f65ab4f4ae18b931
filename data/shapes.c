/* builtin:shapes: images made on the fly from (seed, split, index), nothing to download. One large
 * figure of the label's kind, tilted, stretched, textured and partly hidden, on a textured background
 * with small distractors, in varying contrast and noise: hard enough that capacity matters.
 *
 * Coordinates: the image is [-1,1]², a figure lives in (u,v) around its own centre and fits in the
 * unit circle. A figure is a function negative inside and positive outside, roughly a distance. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/parts.h"

enum { MAX_SIZE = 256 };

/* ---- figures --------------------------------------------------------------------------------- */

/* The n-fold fold: x along the nearest of n spokes, y across. */
static void fold(float u, float v, int n, const float *spoke, float *x, float *y) {
    float best = -1e9f;
    for (int k = 0; k < n; k++) best = fmaxf(best, u * spoke[2 * k] + v * spoke[2 * k + 1]);
    *x = best;
    *y = sqrtf(fmaxf(0, u * u + v * v - best * best));
}

static const float spokes3[] = { 1, 0, -.5f, .8660254f, -.5f, -.8660254f };
static const float spokes4[] = { 1, 0, 0, 1, -1, 0, 0, -1 };
static const float spokes5[] = {
    1, 0, .309017f, .9510565f, -.809017f, .5877853f, -.809017f, -.5877853f, .309017f, -.9510565f,
};
static const float spokes6[] = {
    1, 0, .5f, .8660254f, -.5f, .8660254f, -1, 0, -.5f, -.8660254f, .5f, -.8660254f,
};

static float polygon(float u, float v, int n, const float *spoke, float apothem) {
    float x, y;
    fold(u, v, n, spoke, &x, &y);
    return x - apothem;
}

/* Tips at radius 1, notches at (nx, ny) of the folded plane: the line between them. */
static float star(float u, float v, int n, const float *spoke, float nx, float ny) {
    float x, y, dx = nx - 1, dy = ny;
    fold(u, v, n, spoke, &x, &y);
    return (dy * (x - 1) - dx * y) / sqrtf(dx * dx + dy * dy);
}

static float box(float u, float v, float half_u, float half_v) {
    return fmaxf(fabsf(u) - half_u, fabsf(v) - half_v);
}

static float disc(float u, float v)     { return sqrtf(u * u + v * v) - .82f; }
static float square(float u, float v)   { return box(u, v, .7f, .7f); }
static float triangle(float u, float v) { return polygon(u, v, 3, spokes3, .5f); }
static float pentagon(float u, float v) { return polygon(u, v, 5, spokes5, .74f); }
static float hexagon(float u, float v)  { return polygon(u, v, 6, spokes6, .78f); }
static float star5(float u, float v)    { return star(u, v, 5, spokes5, .42f, .305f); }
static float star4(float u, float v)    { return star(u, v, 4, spokes4, .3f, .3f); }
static float cross(float u, float v)    { return fminf(box(u, v, .9f, .3f), box(u, v, .3f, .9f)); }
static float ring(float u, float v)     { return fabsf(sqrtf(u * u + v * v) - .66f) - .19f; }
static float frame(float u, float v)    { return fabsf(box(u, v, .58f, .58f)) - .17f; }
static float half_disc(float u, float v) {
    return fmaxf(sqrtf(u * u + (v + .4f) * (v + .4f)) - .95f, -v - .4f);
}
static float crescent(float u, float v) {
    return fmaxf(sqrtf(u * u + v * v) - .9f, .68f - sqrtf((u - .45f) * (u - .45f) + v * v));
}
static float arrow(float u, float v) {
    float head = fmaxf(u * .7071f + fabsf(v) * .7071f - .6f, .1f - u);
    return fminf(head, box(u + .4f, v, .5f, .24f));
}
static float letter_l(float u, float v) {
    return fminf(box(u + .4f, v, .24f, .85f), box(u - .1f, v + .6f, .65f, .24f));
}
static float letter_t(float u, float v) {
    return fminf(box(u, v - .55f, .75f, .24f), box(u, v + .1f, .24f, .8f));
}
static float drop(float u, float v) {
    float round = sqrtf((u + .25f) * (u + .25f) + v * v) - .58f;
    float tip = fmaxf(fabsf(v) * .87f + u * .5f - .46f, -u - .1f);
    return fminf(round, tip);
}

static const struct { const char *name; float (*at)(float u, float v); } figures[] = {
    { "disc", disc }, { "square", square }, { "triangle", triangle }, { "pentagon", pentagon },
    { "hexagon", hexagon }, { "star", star5 }, { "cross", cross }, { "ring", ring },
    { "crescent", crescent }, { "half-disc", half_disc }, { "arrow", arrow }, { "frame", frame },
    { "letter-l", letter_l }, { "letter-t", letter_t }, { "four-star", star4 }, { "drop", drop },
};
enum { FIGURES = sizeof figures / sizeof *figures };

/* ---- painting -------------------------------------------------------------------------------- */

static float between(rng *r, float lo, float hi) { return lo + (hi - lo) * (float)rng_uniform(r); }

/* A plane wave sin(kx*x + ky*y + phase), sharpened; by rows and columns, so that painting it costs
 * no sines. */
typedef struct {
    float sx[MAX_SIZE], cx[MAX_SIZE], sy[MAX_SIZE], cy[MAX_SIZE], sharp, colour[3];
} wave;

static void wave_init(wave *w, rng *r, int size, float amplitude) {
    float turn = between(r, 0, 6.2831853f), frequency = between(r, 2, 14);
    float kx = frequency * cosf(turn), ky = frequency * sinf(turn),
          phase = between(r, 0, 6.2831853f);
    for (int i = 0; i < size; i++) {
        float at = ((float)i + .5f) * 2 / (float)size - 1;
        w->sx[i] = sinf(kx * at + phase), w->cx[i] = cosf(kx * at + phase);
        w->sy[i] = sinf(ky * at), w->cy[i] = cosf(ky * at);
    }
    w->sharp = between(r, 1, 4);
    for (int c = 0; c < 3; c++) w->colour[c] = between(r, -amplitude, amplitude);
}

static float wave_at(const wave *w, int x, int y) {
    float v = w->sharp * (w->sx[x] * w->cy[y] + w->cx[x] * w->sy[y]);
    return v < -1 ? -1 : v > 1 ? 1 : v;
}

/* A figure placed in the image: (u,v) = m * ((x,y) - centre). */
typedef struct { float (*at)(float u, float v); float x, y, m[4], scale, colour[3]; } placed;

/* Turned by up to tilt either way, and a little stretched and sheared. */
static void place(placed *p, rng *r, float scale, float tilt, float stretch) {
    float turn = between(r, -tilt, tilt), s = expf(between(r, -stretch, stretch));
    float shear = between(r, -stretch, stretch), c = cosf(turn) / scale, d = sinf(turn) / scale;
    p->m[0] = c * s, p->m[1] = d * s;
    p->m[2] = (-d + shear * c) / s, p->m[3] = (c + shear * d) / s;
    p->scale = scale;
}

/* Blend colour (and a wave's texture, if any) where the figure is, with a soft edge of a pixel. */
static void paint(float *image, int size, const placed *p, const wave *texture) {
    float reach = p->scale * 1.6f, step = 2 / (float)size, soft = p->scale * (float)size / 2;
    int y0 = (int)((p->y - reach + 1) / step), y1 = (int)((p->y + reach + 1) / step) + 1;
    int x0 = (int)((p->x - reach + 1) / step), x1 = (int)((p->x + reach + 1) / step) + 1;
    for (int y = y0 < 0 ? 0 : y0; y < (y1 > size ? size : y1); y++)
        for (int x = x0 < 0 ? 0 : x0; x < (x1 > size ? size : x1); x++) {
            float dx = ((float)x + .5f) * step - 1 - p->x, dy = ((float)y + .5f) * step - 1 - p->y;
            float cover = .5f -
                          soft * p->at(p->m[0] * dx + p->m[1] * dy, p->m[2] * dx + p->m[3] * dy);
            if (cover <= 0) continue;
            if (cover > 1) cover = 1;
            float t = texture ? wave_at(texture, x, y) : 0,
                  *to = image + 3 * ((size_t)y * (size_t)size + (size_t)x);
            for (int c = 0; c < 3; c++) {
                float colour = p->colour[c] + (texture ? t * texture->colour[c] : 0);
                to[c] += cover * (colour - to[c]);
            }
        }
}

static void paint_background(float *image, int size, rng *r, const float base[3], wave *w) {
    wave_init(&w[0], r, size, 22);
    wave_init(&w[1], r, size, 10);
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++, image += 3) {
            float a = wave_at(&w[0], x, y), b = wave_at(&w[1], x, y);
            for (int c = 0; c < 3; c++)
                image[c] = base[c] + a * w[0].colour[c] + b * w[1].colour[c];
        }
}

static float bar(float u, float v) { return box(u, v, 1.5f, .2f); }

static void random_colour(rng *r, float colour[3]) {
    for (int c = 0; c < 3; c++) colour[c] = between(r, 20, 235);
}

static void paint_distractors(float *image, int size, rng *r) {
    static float (*const kind[])(float, float) = { disc, square, triangle, bar, ring, cross };
    for (uint32_t n = rng_below(r, 3); n; n--) {
        placed p = { .at = kind[rng_below(r, 6)], .x = between(r, -1, 1), .y = between(r, -1, 1) };
        place(&p, r, between(r, .12f, .24f), 3.2f, .3f);
        random_colour(r, p.colour);
        paint(image, size, &p, NULL);
    }
}

/* Something in front: a bar or a patch near the figure's middle. */
static void paint_occluder(float *image, int size, rng *r, const placed *figure) {
    float s = figure->scale;
    placed p = { .at = rng_below(r, 2) ? bar : square,
                 .x = figure->x + between(r, -.6f, .6f) * s,
                 .y = figure->y + between(r, -.6f, .6f) * s };
    place(&p, r, s * (p.at == bar ? between(r, .5f, .9f) : between(r, .25f, .42f)), 3.2f, .2f);
    random_colour(r, p.colour);
    paint(image, size, &p, NULL);
}

/* Noise: the sum of four random bytes is close enough to a normal number, and one draw. */
static void quantise(const float *image, size_t n, rng *r, float sigma, uint8_t *out) {
    float scale = sigma / 147.8f;              /* the sum's standard deviation */
    for (size_t i = 0; i < n; i++) {
        uint32_t u = rng_u32(r);
        int sum = (int)((u & 255) + (u >> 8 & 255) + (u >> 16 & 255) + (u >> 24)) - 510;
        float v = image[i] + scale * (float)sum + .5f;
        out[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}

static void draw(rng *r, int label, int size, float *image, wave *w, uint8_t *out) {
    float base[3], contrast = between(r, 60, 120), sign = rng_below(r, 2) ? 1.f : -1.f;
    for (int c = 0; c < 3; c++) base[c] = between(r, 50, 205);
    paint_background(image, size, r, base, w);
    paint_distractors(image, size, r);

    placed figure = { .at = figures[label].at,
                      .x = between(r, -.25f, .25f),
                      .y = between(r, -.25f, .25f) };
    place(&figure, r, between(r, .48f, .82f), .45f, .15f);
    for (int c = 0; c < 3; c++)
        figure.colour[c] = base[c] + sign * contrast * between(r, .5f, 1);
    wave_init(&w[2], r, size, 18);
    paint(image, size, &figure, &w[2]);
    if (rng_below(r, 100) < 50) paint_occluder(image, size, r, &figure);
    quantise(image, 3 * (size_t)size * (size_t)size, r, between(r, 5, 24), out);
}

/* ---- the set --------------------------------------------------------------------------------- */

typedef struct { int64_t classes, size, train, val, seed; } recipe;
typedef struct { uint64_t seed; uint32_t split; int size; } source;

static bool produce(const data_set *s, int64_t k, data_image *out, err *e) {
    const source *f = s->source;
    size_t n = 3 * (size_t)f->size * (size_t)f->size;
    *out = (data_image){ f->size, f->size, 3, mem_new(n, 1, e) };
    float *image = out->x ? mem_new(n, sizeof *image, e) : NULL;
    wave *w = image ? mem_new(3, sizeof *w, e) : NULL;
    if (w) {
        rng r = rng_at(f->seed, RNG_SYNTH, f->split, (uint64_t)k);
        draw(&r, s->label[k], f->size, image, w, out->x);
    } else {
        image_free(out);
    }
    mem_free(w);
    mem_free(image);
    return out->x != NULL;
}

static bool parse(recipe *c, const char *spec, err *e) {
    const struct { const char *name; int64_t *value, lo, hi; } key[] = {
        { "classes", &c->classes, 2, FIGURES }, { "size", &c->size, 8, MAX_SIZE },
        { "train", &c->train, 1, 10000000 }, { "val", &c->val, 1, 10000000 },
        { "seed", &c->seed, 0, INT64_MAX },
    };
    const char *at = spec + strlen("builtin:shapes");
    while (*at) {
        const char *word = at + 1, *equal = strchr(word, '=');
        size_t i = 0, len = equal ? (size_t)(equal - word) : 0;
        while (i < 5 && !(equal && strlen(key[i].name) == len && !strncmp(key[i].name, word, len)))
            i++;
        if (i == 5)
            return err_set(e, ERR_USAGE,
                           "%s: \"%.*s\" is not one of classes= size= train= val= seed=", spec,
                           (int)strcspn(word, ",="), word);
        char *end = NULL;
        long long v = equal[1] >= '0' && equal[1] <= '9' ? strtoll(equal + 1, &end, 10) : -1;
        if (!end || (*end && *end != ',') || v < key[i].lo || v > key[i].hi || end - equal > 20)
            return err_set(e, ERR_USAGE, "%s: %s wants a whole number from %lld to %lld", spec,
                           key[i].name, (long long)key[i].lo, (long long)key[i].hi);
        *key[i].value = v;
        at = end;
    }
    return true;
}

source_answer shapes_open(data_set *s, const char *spec, const char *split, err *e) {
    size_t len = strlen("builtin:shapes");
    if (strncmp(spec, "builtin:shapes", len) || (spec[len] && spec[len] != ','))
        return SOURCE_NOT_MINE;
    recipe c = { .classes = 10, .size = 32, .train = 8000, .val = 2000, .seed = 42 };
    if (!parse(&c, spec, e)) return SOURCE_FAILED;
    bool val = !strcmp(split, "val");
    if (!set_alloc(s, val ? c.val : c.train, (int)c.classes, e)) return SOURCE_FAILED;
    for (int k = 0; k < s->classes; k++)
        if (!set_name_class(s, k, figures[k].name, e)) return SOURCE_FAILED;
    for (int64_t i = 0; i < s->n; i++) {
        s->label[i] = (int32_t)(i % c.classes);
        set_add_name(s, i, "shapes/%s:%lld", split, (long long)i);
    }
    source *f = mem_new(1, sizeof *f, e);
    if (!f) return SOURCE_FAILED;
    *f = (source){ (uint64_t)c.seed, val, (int)c.size };
    s->source = f;
    s->source_free = mem_free;
    s->produce = produce;
    s->prep = (data_prep){ f->size, f->size, 3, 0, { .5f, .5f, .5f }, { .25f, .25f, .25f } };
    return SOURCE_OPENED;
}
