/* Is a sequential JPEG scan all there? The decoder fills what is missing with grey and says nothing, so
 * the codes are walked first: their lengths only, no coefficients. */
#include <string.h>

#include "data/parts.h"

enum { FAST = 9 };               /* bits looked up at once */

typedef struct {
    uint16_t fast[1 << FAST];    /* length << 8 | value; 0: a longer code */
    int32_t beyond[18];          /* codes of this length are below this, left-aligned to 16 bits */
    int32_t first[17], at[17];   /* first code of a length, and the place of its value */
    const uint8_t *value; int values;
} table;

static void table_build(table *t, const uint8_t *dht) {
    int32_t code = 0, place = 0;
    memset(t->fast, 0, sizeof t->fast);
    t->value = dht + 16;
    for (int len = 1; len <= 16; len++) {
        t->first[len] = code;
        t->at[len] = place;
        for (int i = 0; i < dht[len - 1]; i++, code++, place++) {
            if (len > FAST) continue;
            int from = code << (FAST - len), n = 1 << (FAST - len);
            for (int k = 0; k < n && from + k < 1 << FAST; k++)
                t->fast[from + k] = (uint16_t)(len << 8 | t->value[place]);
        }
        t->beyond[len] = code << (16 - len);
        code <<= 1;
    }
    t->values = place;
}

/* Bits of the scan, the first in the highest place; `end` is the marker behind it. */
typedef struct { const uint8_t *p, *end; uint64_t bits; int n; jpeg_scan_state state; } reader;

static void fill(reader *r) {
    while (r->n <= 48 && r->p < r->end) {
        uint8_t b = *r->p;
        if (b == 0xFF && (r->end - r->p < 2 || r->p[1])) {
            if (r->end - r->p < 2 || r->p[1] == 0xFF) { r->p++; continue; }   /* a fill byte */
            return;                                      /* a restart */
        }
        r->p += b == 0xFF ? 2 : 1;
        r->bits |= (uint64_t)b << (56 - r->n);
        r->n += 8;
    }
}

static bool skip(reader *r, int bits) {
    if (bits > r->n) {
        r->state = r->p < r->end ? SCAN_UNKNOWN : SCAN_CUT;
        return false;
    }
    r->bits <<= bits;
    r->n -= bits;
    return true;
}

/* The next symbol with the bits that belong to it, which are as many as its low four bits say. */
static bool symbol(reader *r, const table *t, int *out) {
    if (r->n < 32) fill(r);
    int fast = t->fast[r->bits >> (64 - FAST)], len = fast >> 8;
    *out = fast & 255;
    if (!fast) {
        int32_t code = (int32_t)(r->bits >> 48);
        for (len = FAST + 1; len <= 16 && code >= t->beyond[len];) len++;
        int place = len <= 16 ? t->at[len] + (code >> (16 - len)) - t->first[len] : -1;
        if (place < 0 || place >= t->values) {
            r->state = r->n < 16 && r->p == r->end ? SCAN_CUT : SCAN_UNKNOWN;
            return false;
        }
        *out = t->value[place];
    }
    return skip(r, len + (*out & 15));
}

static bool block(reader *r, const table *dc, const table *ac) {
    int s;
    if (!symbol(r, dc, &s)) return false;
    for (int k = 1; k < 64; k++) {
        if (!symbol(r, ac, &s)) return false;
        if (!(s & 15) && s != 0xF0) return true;         /* end of block */
        k += s >> 4;
    }
    return true;
}

static bool restart(reader *r) {
    r->bits = 0, r->n = 0;
    if (r->end - r->p >= 2 && r->p[0] == 0xFF && r->p[1] >= 0xD0 && r->p[1] <= 0xD7) {
        r->p += 2;
        return true;
    }
    r->state = r->p >= r->end ? SCAN_CUT : SCAN_UNKNOWN;
    return false;
}

jpeg_scan_state jpeg_scan_check(const jpeg_scan *s, const uint8_t *p, const uint8_t *end) {
    table t[2][4];
    reader r = { p, end, 0, 0, SCAN_WHOLE };
    for (int i = 0; i < s->n; i++) {
        table_build(&t[0][i], s->dc[i]);
        table_build(&t[1][i], s->ac[i]);
    }
    for (int64_t m = 0; m < s->mcus; m++) {
        if (s->restart && m && m % s->restart == 0 && !restart(&r)) return r.state;
        for (int i = 0; i < s->n; i++)
            for (int b = 0; b < s->blocks[i]; b++)
                if (!block(&r, &t[0][i], &t[1][i])) return r.state;
    }
    return SCAN_WHOLE;
}
