/* JPEG by libjpeg-turbo, for builds with JPEG=turbo. The only file that includes the library. It gets
 * what jpeg_walk has let pass, and is told to see in it what the stb decoder sees: the same colour
 * spaces, no smoothing of what a progressive file leaves out, and of the many things the library only
 * warns of, a code that is in no table is damage. */
#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

#include "data/parts.h"

typedef struct { struct jpeg_error_mgr base; jmp_buf back; } errors;

static void leave(j_common_ptr d) { longjmp(((errors *)d->err)->back, 1); }

static void message(j_common_ptr d, int level) {
    if (level < 0 && d->err->msg_code == JWRN_HUFF_BAD_CODE) leave(d);
}

/* Three components are YCbCr unless they are called R, G and B, or Adobe says so and JFIF does not. */
static bool is_rgb(const struct jpeg_decompress_struct *d) {
    const jpeg_component_info *c = d->comp_info;
    return (c[0].component_id == 'R' && c[1].component_id == 'G' && c[2].component_id == 'B')
        || (d->saw_Adobe_marker && d->Adobe_transform == 0 && !d->saw_JFIF_marker);
}

static uint8_t times(unsigned a, unsigned b) {           /* a·b/255, rounded */
    unsigned t = a * b + 128;
    return (uint8_t)((t + (t >> 8)) >> 8);
}

static void read_rows(struct jpeg_decompress_struct *d, data_image *out) {
    size_t row = (size_t)out->w * (size_t)out->c;
    JSAMPARRAY inks = d->num_components < 4 ? NULL
        : d->mem->alloc_sarray((j_common_ptr)d, JPOOL_IMAGE, d->output_width * 4, 1);
    while (d->output_scanline < d->output_height) {
        uint8_t *to = out->x + row * d->output_scanline;
        jpeg_read_scanlines(d, inks ? inks : &to, 1);
        for (int x = 0; inks && x < out->w; x++)         /* Adobe's inks are inverted */
            for (int c = 0; c < 3; c++) to[3 * x + c] = times(inks[0][4 * x + c], inks[0][4 * x + 3]);
    }
}

static bool read_image(struct jpeg_decompress_struct *d, const uint8_t *p, size_t size, data_image *out,
                       err *e) {
    jpeg_create_decompress(d);
    jpeg_mem_src(d, p, (unsigned long)size);
    jpeg_read_header(d, TRUE);
    int n = d->num_components;
    if (n == 3) d->jpeg_color_space = is_rgb(d) ? JCS_RGB : JCS_YCbCr;
    d->out_color_space = n == 1 ? JCS_GRAYSCALE : n == 3 ? JCS_RGB : JCS_CMYK;
    d->do_block_smoothing = FALSE;
    jpeg_start_decompress(d);
    if (!image_new(out, (int)d->output_height, (int)d->output_width, n == 1 ? 1 : 3, e)) return false;
    read_rows(d, out);
    return true;
}

static bool read_or_say(struct jpeg_decompress_struct *d, errors *own, const uint8_t *p, size_t size,
                        const char *name, data_image *out, err *e) {
    char why[JMSG_LENGTH_MAX];
    if (!setjmp(own->back)) return read_image(d, p, size, out, e);
    own->base.format_message((j_common_ptr)d, why);
    image_free(out);
    return err_set(e, own->base.msg_code == JERR_OUT_OF_MEMORY ? ERR_NOMEM : ERR_DATA,
                   "%s: cannot be decoded: %s", name, why);
}

bool jpeg_turbo(const uint8_t *p, size_t size, const char *name, data_image *out, err *e) {
    struct jpeg_decompress_struct d = { 0 };
    errors own;
    d.err = jpeg_std_error(&own.base);
    own.base.error_exit = leave;
    own.base.emit_message = message;
    bool ok = read_or_say(&d, &own, p, size, name, out, e);
    jpeg_destroy_decompress(&d);
    return ok;
}
