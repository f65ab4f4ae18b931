/* Walks over JPEG markers and PNG chunks before a decoder is given the bytes. The decoder trusts
 * more than it should: it writes past its Huffman tables, reads tables a file never defined, and
 * fills missing data with grey. Whatever passes here has every table it refers to, one frame, all
 * its components, an end, and all codes of a sequential scan. */
#include <string.h>
#include <zlib.h>

#include "data/parts.h"

static unsigned be16(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }
static uint32_t be32(const uint8_t *p) { return (uint32_t)be16(p) << 16 | be16(p + 2); }

static bool side_ok(const char *name, uint32_t w, uint32_t h, err *e) {
    if (w == 0 || h == 0)
        return err_set(e, ERR_DATA, "%s: image is %u×%u pixels", name, w, h);
    if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
        return err_set(e, ERR_DATA, "%s: image is %u×%u pixels, more than %d a side", name, w, h,
                       IMAGE_MAX_SIDE);
    if ((uint64_t)w * h > (uint64_t)1 << 27)
        return err_set(e, ERR_DATA, "%s: image is %u×%u pixels, more than 2^27 in all", name, w, h);
    return true;
}

/* ---- EXIF ------------------------------------------------------------------------------------ */

/* Orientation from a TIFF block, 1 when absent or odd: bad EXIF is no reason to refuse. */
static int exif_orientation(const uint8_t *p, size_t n) {
    if (n < 8 || (memcmp(p, "II*\0", 4) && memcmp(p, "MM\0*", 4))) return 1;
    bool little = p[0] == 'I';
#define U16(at) (little ? (unsigned)p[(at) + 1] << 8 | p[at] : be16(p + (at)))
#define U32(at) (little ? (uint32_t)U16((at) + 2) << 16 | U16(at) : be32(p + (at)))
    size_t at = U32(4);
    if (at > n - 2) return 1;
    unsigned entries = U16(at);
    at += 2;
    for (unsigned i = 0; i < entries && n - at >= 12; i++, at += 12) {
        if (U16(at) != 0x0112) continue;
        unsigned v = U16(at + 8);
        return U16(at + 2) == 3 && v >= 1 && v <= 8 ? (int)v : 1;
    }
#undef U32
#undef U16
    return 1;
}

/* ---- JPEG ------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;
    jpeg_info *info;
    bool frame, progressive;
    uint8_t id[4], quant[4];     /* of the components */
    int wide[4], high[4];        /* their sampling factors */
    const uint8_t *table[2][4];  /* Huffman: DC, AC */
    jpeg_scan scan;              /* the last one */
    bool seen[4];                /* a scan has carried it */
    unsigned have_quant, have_dc, have_ac;   /* bit t: table t is defined */
} walk;

static bool bad(const walk *k, size_t at, const char *what, err *e) {
    return err_set(e, ERR_DATA, "%s: JPEG %s at byte %zu", k->name, what, at);
}

static bool quant_tables(walk *k, const uint8_t *p, size_t n, size_t at, err *e) {
    while (n) {
        size_t need = p[0] >> 4 ? 129 : 65;
        if (p[0] >> 4 > 1 || (p[0] & 15) > 3)
            return bad(k, at, "quantisation table has a bad number", e);
        if (n < need) return bad(k, at, "quantisation table is cut off", e);
        k->have_quant |= 1u << (p[0] & 15);
        p += need; n -= need;
    }
    return true;
}

static bool huffman_tables(walk *k, const uint8_t *p, size_t n, size_t at, err *e) {
    while (n) {
        if (n < 17) return bad(k, at, "Huffman table is cut off", e);
        if (p[0] >> 4 > 1 || (p[0] & 15) > 3)
            return bad(k, at, "Huffman table has a bad number", e);
        unsigned sum = 0, code = 0;
        for (int i = 1; i <= 16; i++) {
            sum += p[i];
            code = code * 2 + p[i];
            if (sum > 256) return bad(k, at, "Huffman table has more than 256 codes", e);
            if (code > 1u << i)
                return bad(k, at, "Huffman table has more codes than bits can tell apart", e);
        }
        if (n < 17 + sum) return bad(k, at, "Huffman table is cut off", e);
        *(p[0] >> 4 ? &k->have_ac : &k->have_dc) |= 1u << (p[0] & 15);
        k->table[p[0] >> 4][p[0] & 15] = p + 1;
        p += 17 + sum; n -= 17 + sum;
    }
    return true;
}

static bool frame_header(walk *k, const uint8_t *p, size_t n, size_t at, err *e) {
    if (k->frame) return bad(k, at, "has a second frame", e);
    if (n < 6) return bad(k, at, "frame header is cut off", e);
    if (p[0] != 8)
        return err_set(e, ERR_DATA, "%s: JPEG has %d bits a sample, only 8 are read", k->name,
                       p[0]);
    jpeg_info *f = k->info;
    f->h = (int)be16(p + 1), f->w = (int)be16(p + 3), f->components = p[5];
    if (!side_ok(k->name, (uint32_t)f->w, (uint32_t)f->h, e)) return false;
    if (f->components != 1 && f->components != 3 && f->components != 4)
        return err_set(e, ERR_DATA, "%s: JPEG has %d components, only 1, 3 and 4 are read", k->name,
                       f->components);
    if (n != 6 + 3 * (size_t)f->components) return bad(k, at, "frame header has a wrong length", e);
    for (int i = 0; i < f->components; i++) {
        const uint8_t *c = p + 6 + 3 * i;
        k->id[i] = c[0];
        k->quant[i] = c[2];
        for (int j = 0; j < i; j++)
            if (k->id[j] == c[0]) return bad(k, at, "has two components of one name", e);
        int sh = c[1] >> 4, sv = c[1] & 15;
        if (sh < 1 || sh > 4 || sv < 1 || sv > 4 || c[2] > 3)
            return bad(k, at, "component is malformed", e);
        k->wide[i] = sh, k->high[i] = sv;
    }
    k->frame = true;
    return true;
}

static int64_t units(int pixels, int mine, int most) {    /* blocks of 8 over a side */
    int64_t samples = ((int64_t)pixels * mine + most - 1) / most;
    return (samples + 7) / 8;
}

/* A scan of one component has its blocks only, others whole units of all. */
static void count_units(walk *k, const int *component) {
    const jpeg_info *f = k->info;
    jpeg_scan *s = &k->scan;
    int wide = 1, high = 1;
    for (int i = 0; i < f->components; i++) {
        wide = k->wide[i] > wide ? k->wide[i] : wide;
        high = k->high[i] > high ? k->high[i] : high;
    }
    int c = component[0];
    s->mcus = s->n == 1 ? units(f->w, k->wide[c], wide) * units(f->h, k->high[c], high)
                        : units(f->w, 1, wide) * units(f->h, 1, high);
    for (int i = 0; i < s->n; i++)
        s->blocks[i] = s->n == 1 ? 1 : k->wide[component[i]] * k->high[component[i]];
}

static bool scan_header(walk *k, const uint8_t *p, size_t n, size_t at, err *e) {
    if (!k->frame) return bad(k, at, "scan comes before the frame", e);
    if (n < 1 || p[0] < 1 || p[0] > k->info->components || n != 4 + 2 * (size_t)p[0])
        return bad(k, at, "scan header is malformed", e);
    const uint8_t *tail = p + 1 + 2 * p[0];
    /* A progressive scan uses DC tables for coefficient 0 (none to refine it), AC tables after. */
    bool needs_dc = !k->progressive || (tail[0] == 0 && tail[2] >> 4 == 0);
    bool needs_ac = !k->progressive || tail[1] > 0;
    if (!k->progressive && (tail[0] || tail[2])) return bad(k, at, "scan header is malformed", e);
    if (k->progressive && tail[0] == 0 && tail[1] != 0)
        return bad(k, at, "scan mixes DC and AC", e);
    if (k->progressive && tail[0] != 0 && p[0] != 1)
        return bad(k, at, "AC scan has several components", e);
    int component[4];
    k->scan.n = p[0];
    for (int i = 0; i < p[0]; i++) {
        int c = 0, dc = p[2 + 2 * i] >> 4, ac = p[2 + 2 * i] & 15;
        while (c < k->info->components && k->id[c] != p[1 + 2 * i]) c++;
        if (c == k->info->components) return bad(k, at, "scan names an unknown component", e);
        if (dc > 3 || ac > 3) return bad(k, at, "scan header is malformed", e);
        if (!(k->have_quant >> k->quant[c] & 1))
            return bad(k, at, "scan lacks its quantisation table", e);
        if ((needs_dc && !(k->have_dc >> dc & 1)) || (needs_ac && !(k->have_ac >> ac & 1)))
            return bad(k, at, "scan lacks its Huffman table", e);
        k->seen[c] = k->seen[c] || tail[0] == 0;
        component[i] = c;
        k->scan.dc[i] = k->table[0][dc], k->scan.ac[i] = k->table[1][ac];
    }
    count_units(k, component);
    return true;
}

static bool jpeg_segment(walk *k, int marker, const uint8_t *p, size_t n, size_t at, err *e) {
    switch (marker) {
    case 0xDB: return quant_tables(k, p, n, at, e);
    case 0xC4: return huffman_tables(k, p, n, at, e);
    case 0xC0: case 0xC1: case 0xC2:
        k->progressive = marker == 0xC2;
        return frame_header(k, p, n, at, e);
    case 0xDA: return scan_header(k, p, n, at, e);
    case 0xDD:
        if (n == 2) k->scan.restart = (int)be16(p);
        return n == 2 || bad(k, at, "restart interval has a wrong length", e);
    case 0xE1:
        if (n >= 6 && !memcmp(p, "Exif\0", 6))
            k->info->orientation = exif_orientation(p + 6, n - 6);
        return true;
    case 0xEE:
        if (n >= 12 && !memcmp(p, "Adobe", 6)) k->info->adobe = p[11];
        return true;
    case 0xDC: return true;
    default:
        if ((marker >= 0xE0 && marker <= 0xEF) || marker == 0xFE) return true;
        if (marker >= 0xC3 && marker <= 0xCF)
            return err_set(e, ERR_DATA,
                           "%s: JPEG of a kind (marker %02X) that is not read: lossless, "
                           "arithmetic or hierarchical",
                           k->name, (unsigned)marker);
        return bad(k, at, "has an unknown marker", e);
    }
}

/* From the first coded byte to the marker that ends the data; FF00 is data, FFD0…D7 restarts. */
static size_t entropy_end(const uint8_t *p, size_t size, size_t at) {
    for (;;) {
        const uint8_t *f = at < size ? memchr(p + at, 0xFF, size - at) : NULL;
        if (!f) return size;
        size_t mark = (size_t)(f - p);
        at = mark + 1;
        while (at < size && p[at] == 0xFF) at++;
        if (at < size && p[at] != 0 && !(p[at] >= 0xD0 && p[at] <= 0xD7)) return mark;
    }
}

bool jpeg_walk(const uint8_t *p, size_t size, const char *name, jpeg_info *out, err *e) {
    *out = (jpeg_info){ .adobe = -1, .orientation = 1 };
    walk k = { .name = name, .info = out };
    if (size < 4 || p[0] != 0xFF || p[1] != 0xD8) return bad(&k, 0, "does not start as one", e);
    size_t at = 2;
    for (;;) {
        if (at < size && p[at] != 0xFF) return bad(&k, at, "has a stray byte between segments", e);
        while (at < size && p[at] == 0xFF) at++;
        if (at >= size)
            return err_set(e, ERR_DATA, "%s: JPEG is cut off: no end of image in %zu bytes", name,
                           size);
        int marker = p[at++];
        if (marker == 0xD9) break;
        if (size - at < 2) return bad(&k, at, "segment is cut off", e);
        size_t n = be16(p + at);
        if (n < 2 || n > size - at) return bad(&k, at, "segment is cut off", e);
        if (!jpeg_segment(&k, marker, p + at + 2, n - 2, at, e)) return false;
        at += n;
        if (marker != 0xDA) continue;
        size_t end = entropy_end(p, size, at);
        if (!k.progressive && end < size && jpeg_scan_check(&k.scan, p + at, p + end) == SCAN_CUT)
            return bad(&k, end, "is cut off inside its scan", e);
        at = end;
    }
    for (int i = 0; i < out->components; i++)
        if (!k.seen[i]) return bad(&k, at, "ends before all its components came", e);
    if (!k.frame) return bad(&k, at, "has no image", e);
    if (out->components == 4 && out->adobe != 0 && out->adobe != 2)
        return err_set(e, ERR_DATA,
                       "%s: JPEG has 4 components without an Adobe segment: its inks are ambiguous",
                       name);
    return true;
}

/* ---- PNG ------------------------------------------------------------------------------------- */

bool png_walk(const uint8_t *p, size_t size, const char *name, int *w, int *h, err *e) {
    if (size < 8 || memcmp(p, "\x89PNG\r\n\x1a\n", 8))
        return err_set(e, ERR_DATA, "%s: neither JPEG nor PNG", name);
    bool first = true, data = false;
    for (size_t at = 8;; first = false) {
        if (size - at < 12)
            return err_set(e, ERR_DATA, "%s: PNG is cut off after %zu bytes", name, size);
        uint32_t n = be32(p + at);
        const uint8_t *type = p + at + 4;
        if (n > size - at - 12)
            return err_set(e, ERR_DATA, "%s: PNG chunk at byte %zu is cut off", name, at);
        if (crc32(crc32(0, NULL, 0), type, n + 4) != be32(type + 4 + n))
            return err_set(e, ERR_DATA, "%s: PNG chunk at byte %zu is damaged", name, at);
        bool header = !memcmp(type, "IHDR", 4);
        if (header != first || (header && n != 13))
            return err_set(e, ERR_DATA, "%s: PNG does not start with one header", name);
        if (header) {
            if (!side_ok(name, be32(type + 4), be32(type + 8), e)) return false;
            *w = (int)be32(type + 4), *h = (int)be32(type + 8);
        }
        data = data || !memcmp(type, "IDAT", 4);
        at += 12 + (size_t)n;
        if (!memcmp(type, "IEND", 4)) break;
    }
    return data || err_set(e, ERR_DATA, "%s: PNG has no pixels", name);
}
