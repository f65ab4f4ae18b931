/* Protobuf, written: varints, and messages whose length is put in front of them when they end. */
#include "core/io.h"

#include <assert.h>
#include <string.h>

enum { VARINT = 0, BYTES = 2, FLOAT = 5, LENGTH_BYTES = 5 };

static void put_varint(buf *b, uint64_t v) {
    for (; v >= 0x80; v >>= 7) buf_put(b, &(uint8_t){ (uint8_t)(v | 0x80) }, 1);
    buf_put(b, &(uint8_t){ (uint8_t)v }, 1);
}

static void put_tag(buf *b, int field, int wire) {
    put_varint(b, (uint64_t)field << 3 | (uint64_t)wire);
}

void pb_int(buf *b, int field, int64_t v) {
    put_tag(b, field, VARINT);
    put_varint(b, (uint64_t)v);
}

void pb_float(buf *b, int field, float v) {
    put_tag(b, field, FLOAT);
    buf_put(b, &v, sizeof v);
}

void pb_bytes(buf *b, int field, const void *data, size_t len) {
    put_tag(b, field, BYTES);
    put_varint(b, len);
    buf_put(b, data, len);
}

void pb_text(buf *b, int field, const char *s) { pb_bytes(b, field, s, strlen(s)); }

size_t pb_begin(buf *b, int field) {
    put_tag(b, field, BYTES);
    buf_put(b, "\0\0\0\0\0", LENGTH_BYTES);
    return b->len;
}

void pb_end(buf *b, size_t begun) {
    if (b->failed) return;
    const uint64_t len = b->len - begun;
    assert(len >> 7 * LENGTH_BYTES == 0);
    for (int i = 0; i < LENGTH_BYTES; i++) {
        const uint8_t more = i < LENGTH_BYTES - 1 ? 0x80 : 0;
        b->data[begun - LENGTH_BYTES + (size_t)i] = (char)((len >> 7 * i & 0x7f) | more);
    }
}
