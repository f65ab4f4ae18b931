/* What the files of data share: the inside of a set, and the steps between a decoded image and the
 * floats of a batch. Not for other folders. */
#ifndef LM_DATA_PARTS_H
#define LM_DATA_PARTS_H

#include <stdatomic.h>

#include "data/data.h"

#define IMAGE_MAX_SIDE 16384

/* ---- JPEG and PNG before the decoder sees them ----------------------------------------------- */

typedef struct {
    int w, h, components;
    int adobe;                   /* colour transform of the Adobe segment; -1: no such segment */
    int orientation;             /* EXIF 1 … 8 */
} jpeg_info;
bool jpeg_walk(const uint8_t *p, size_t size, const char *name, jpeg_info *out, err *e);
/* A sequential scan: Huffman tables (16 counts, then values) and blocks per unit of each component. */
typedef struct {
    int n, blocks[4], restart;   /* units between restarts; 0: none */
    int64_t mcus;
    const uint8_t *dc[4], *ac[4];
} jpeg_scan;
/* CUT: the data end before the last unit. UNKNOWN: they are damaged in another way. */
typedef enum { SCAN_WHOLE, SCAN_CUT, SCAN_UNKNOWN } jpeg_scan_state;
jpeg_scan_state jpeg_scan_check(const jpeg_scan *s, const uint8_t *p, const uint8_t *end);
/* A walked JPEG by the library of JPEG=turbo, with one channel or three. */
bool jpeg_turbo(const uint8_t *p, size_t size, const char *name, data_image *out, err *e);
bool png_walk(const uint8_t *p, size_t size, const char *name, int *w, int *h, err *e);

/* Of what image_resize makes of the box only the part, bit for bit: the rest is not computed. */
typedef struct { double x, y, w, h; } image_box;
typedef struct { int y, x, h, w; } image_part;
bool image_resize_part(const data_image *src, const image_box *box, int oh, int ow,
                       const image_part *part, data_image *out, err *e);
/* Shorter side to `to`, as torchvision: the longer one is cut to a whole number; of that the centre of
 * crop_h×crop_w pixels, or everything (0, 0). */
bool image_resize_shorter(const data_image *im, int to, int crop_h, int crop_w, data_image *out, err *e);
bool image_convert(const data_image *src, int c, data_image *out, err *e);   /* grey ↔ colour */
bool image_new(data_image *im, int h, int w, int c, err *e);

/* ---- sets ------------------------------------------------------------------------------------ */

/* One image's pixels: borrowed from the set, or owned (`own` to be freed with mem_free). */
typedef struct { int h, w, c; const uint8_t *x; uint8_t *own; } set_view;
typedef struct { int h, w, c; uint8_t x[]; } set_frame;     /* decoded pixels that stay in memory */

/* A source fills n, classes, class_name, label, prep and either `pixel` (all images of one size) or
 * `produce` (made on request; kept afterwards while memo_left lasts), or `look` (lie in memory as they
 * are). */
struct data_set {
    char *spec;                  /* what it was opened as, for errors */
    int64_t n;
    int classes;
    char **class_name;           /* classes */
    int32_t *label;              /* n */
    data_prep prep;
    buf names; size_t *name_at;  /* n offsets into names */

    int h, w, c;                 /* of every image in pixel */
    uint8_t *pixel;              /* n·h·w·c, or NULL */
    bool (*produce)(const data_set *s, int64_t source, data_image *out, err *e);
    bool (*look)(const data_set *s, int64_t source, set_view *v, err *e);
    void *source; void (*source_free)(void *source);
    _Atomic(set_frame *) *memo;  /* n, or NULL */
    atomic_llong *memo_left;     /* bytes */

    int32_t *map;                /* image number → source number; NULL: the same */
    int64_t n_source;            /* n before the limit */
    atomic_uchar *bad;           /* n_source */
    bool fail_on_bad, sized;
};

/* Each source says whether the spec is its own. ABSENT: it is, but has no such split; as with FAILED, e says
 * what is missing. */
typedef enum { SOURCE_NOT_MINE, SOURCE_OPENED, SOURCE_ABSENT, SOURCE_FAILED } source_answer;
typedef source_answer source_open(data_set *s, const char *spec, const char *split, err *e);
source_open folder_open, cifar_open, mnist_open, shapes_open, pack_open;

bool set_count(data_set *s, int64_t n, err *e);                           /* labels */
bool set_alloc(data_set *s, int64_t n, int classes, err *e);              /* and class names */
bool set_name_class(data_set *s, int label, const char *name, err *e);
bool set_number_classes(data_set *s, err *e);                             /* "0", "1", … */
void set_add_name(data_set *s, int64_t i, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
bool set_join(char out[4096], const char *dir, const char *name, err *e); /* dir/name */

bool set_look(const data_set *s, int64_t i, set_view *v, err *e);

/* The permutation behind data_pick and the limit, entries from … from+n-1. */
bool balanced_order(const int32_t *label, int64_t count, int classes, uint64_t seed, int64_t from,
                    int64_t n, int32_t *out, err *e);

/* ---- operations on pixels --------------------------------------------------------------------- */

/* An image that operations change in place or by way of `spare`, of the same size; c is 1 or 3. */
typedef struct { int h, w, c; uint8_t *x, *spare; uint8_t fill[3]; } canvas;
/* What the number of an operation means: degrees, x per y, part of the side, bits kept, first value
 * inverted, value added below 128, 1 leaves the image. */
typedef enum {
    PIXEL_NOTHING, PIXEL_DEGREES, PIXEL_SHEAR, PIXEL_SHIFT, PIXEL_BITS, PIXEL_THRESHOLD, PIXEL_ADD,
    PIXEL_FACTOR,
} pixel_number;
typedef struct {
    const char *name;
    void (*run)(canvas *k, double number);
    pixel_number number;
} pixel_op;
extern const pixel_op pixel_ops[];
extern const int pixel_op_count;
/* Brightness, contrast and saturation by factors of 1 ± strength, in random order (torchvision). */
void pixel_jitter(canvas *k, rng *r, double strength);
/* One of RandAugment's operations and its number; NULL: none this time. */
const pixel_op *randaug_draw(const data_randaug *a, rng *r, double *number);
void randaug(canvas *k, const data_randaug *a, rng *r);

/* ---- from pixels to floats ------------------------------------------------------------------- */

/* value: (v/255 - mean)/std. by_product: the divisions come out the same by one over 255 and one over std,
 * and a correction (see normalise_avx2); for that the channels' numbers, again and again for eight pixels. */
typedef struct {
    data_prep prep;
    float value[3][256], back, mean[24], std[24], back_std[24];
    bool by_product;
} prep_table;
void prep_table_init(prep_table *t, const data_prep *p);
/* The first pixels (3 channels) of a row, as many as AVX2 does in whole steps; returns how many. Only for
 * by_product. out: of the first pixel; the others go behind it or, mirrored, in front. */
int normalise_avx2(const prep_table *t, const uint8_t *p, int pixels, bool mirror, float *out);
/* One image into out (H,W,C of prep). a NULL or all zero: evaluation. r: the image's generator. */
bool prep_image(const prep_table *t, const data_augment *a, rng *r, const set_view *v, float *out,
                err *e);
double beta_sample(rng *r, double a);                                     /* Beta(a,a) */
/* Mix each image with its mirror in the batch: x[i] = lam*x[i] + (1-lam)*x[n-1-i]. */
void mixup_batch(float *x, int n, int64_t floats, float lam);
/* Exchange a box of about 1-lam of the area, cut at the border, between each image and its mirror in
 * the batch; returns the share that stayed. */
float cutmix_batch(float *x, int n, const data_prep *p, double lam, rng *r);

#endif
