/* RandAugment (Cubuk et al. 2019) with the choices and the notation of timm: n operations drawn with
 * replacement, each done with probability p at a magnitude of m, which mstd spreads. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/parts.h"

#define LEVELS 10.0                            /* magnitude 10 is the whole range of an operation */
#define UNIFORM 100                            /* a larger mstd: uniform from 0 to m */

/* ---- "rand-m9-n2-mstd0.5" --------------------------------------------------------------------- */

static const struct { const char *key; double lo, hi; size_t at; } parts[] = {
    { "mstd", 0, 1e6, offsetof(data_randaug, mstd) },
    { "mmax", 0, LEVELS, offsetof(data_randaug, mmax) },
    { "inc", 0, 1, offsetof(data_randaug, inc) },
    { "m", 0, 1e3, offsetof(data_randaug, m) },
    { "n", 1, 100, offsetof(data_randaug, n) },
    { "p", 0, 1, offsetof(data_randaug, p) },
};
enum { PARTS = sizeof parts / sizeof *parts };

static bool read_part(data_randaug *a, const char *text, size_t len) {
    size_t letters = strcspn(text, "0123456789.");
    for (int i = 0; i < PARTS; i++) {
        if (letters != strlen(parts[i].key) || strncmp(text, parts[i].key, letters)) continue;
        char *end;
        double v = strtod(text + letters, &end);
        if (letters == len || end != text + len) return false;
        if (!(v >= parts[i].lo && v <= parts[i].hi)) return false;
        *(double *)(void *)((char *)a + parts[i].at) = v;
        return true;
    }
    return false;
}

bool data_randaug_parse(data_randaug *a, const char *text, err *e) {
    data_randaug r = { .n = 2, .m = LEVELS, .mmax = LEVELS, .p = 0.5 };
    if (!strcmp(text, "none")) {
        *a = (data_randaug){ 0 };
        return true;
    }
    bool ok = !strncmp(text, "rand", 4) && (!text[4] || text[4] == '-');
    for (const char *at = text + 4; ok && *at;) {
        size_t len = strcspn(++at, "-");
        ok = read_part(&r, at, len);
        at += len;
    }
    if (!ok || r.n != floor(r.n) || r.inc != floor(r.inc))
        return err_set(e, ERR_USAGE,
                       "--aa %s: none, or rand with -m -n -mstd -mmax -inc -p and their numbers, as "
                       "rand-m9-n2-mstd0.5", text);
    *a = r;
    return true;
}

void data_randaug_print(const data_randaug *a, char out[128]) {
    if (!(a->n > 0)) snprintf(out, 128, "none");
    else
        snprintf(out, 128, "rand-m%.9g-n%.9g-mstd%.9g-mmax%.9g-inc%.9g-p%.9g", a->m, a->n, a->mstd,
                 a->mmax, a->inc, a->p);
}

/* ---- from magnitude to number ------------------------------------------------------------------ */

static double sign(rng *r) { return rng_uniform(r) > 0.5 ? -1 : 1; }

/* level 0 … 1. Two families: plain, where several operations are mildest at 1, and increasing. */
static double number_for(pixel_number kind, double level, bool increasing, rng *r) {
    switch (kind) {
    case PIXEL_DEGREES:   return level * 30 * sign(r);
    case PIXEL_SHEAR:     return level * 0.3 * sign(r);
    case PIXEL_SHIFT:     return level * 0.45 * sign(r);
    case PIXEL_ADD:       return floor(level * 110);
    case PIXEL_BITS:      return increasing ? 4 - floor(level * 4) : floor(level * 4);
    case PIXEL_THRESHOLD: return increasing ? 256 - floor(level * 256) : floor(level * 256);
    case PIXEL_FACTOR:
        if (!increasing) return level * 1.8 + 0.1;
        return fmax(0.1, 1 + level * 0.9 * sign(r));
    case PIXEL_NOTHING: break;
    }
    return 0;
}

const pixel_op *randaug_draw(const data_randaug *a, rng *r, double *number) {
    const pixel_op *op = &pixel_ops[rng_below(r, (uint32_t)pixel_op_count)];
    if (rng_uniform(r) >= a->p) return NULL;
    double m = a->m;
    if (a->mstd > UNIFORM) m *= rng_uniform(r);
    else if (a->mstd > 0) m += a->mstd * rng_normal(r);
    m = fmax(0, fmin(m, a->mmax));
    *number = number_for(op->number, m / LEVELS, a->inc > 0, r);
    return op;
}

void randaug(canvas *k, const data_randaug *a, rng *r) {
    for (int i = 0; i < (int)a->n; i++) {
        double number;
        const pixel_op *op = randaug_draw(a, r, &number);
        if (op) op->run(k, number);
    }
}
