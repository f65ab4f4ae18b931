/* data: images to batches. Knows no networks.
 *
 * A data_set is an opened `--data` value: numbered images with labels, whatever they come from. A
 * data_prep says how an image becomes the network's input and travels inside the model file. A
 * data_loader turns a list of image numbers into batches with threads of its own, ahead of time;
 * the pixels of (seed, epoch, image) never depend on threads, batch size or order. */
#ifndef LM_DATA_H
#define LM_DATA_H

#include "core/core.h"

/* ---- images ----------------------------------------------------------------------------------- */

typedef struct { int h, w, c; uint8_t *x; } data_image;  /* H,W,C; c is 1 or 3; x freed with mem_free */
/* JPEG or PNG in memory. JPEGs are walked first: Huffman counts above 256, a missing end of image,
 * more than 16384 pixels a side are refused by name; CMYK is converted; c = 1 or 3 as stored unless
 * want_c is 1 or 3. `name` is for the error sentence. EXIF orientation is applied. */
bool image_decode(const void *bytes, size_t size, const char *name, int want_c, data_image *out, err *e);
void image_free(data_image *im);
bool image_write_png(const char *path, const data_image *im, err *e);
/* Resize with antialias exactly as PIL's BILINEAR (triangle filter, support scaled when shrinking,
 * fixed-point coefficients), the box (x,y,w,h) of src to oh×ow. */
bool image_resize(const data_image *src, double x, double y, double w, double h, int oh, int ow,
                  data_image *out, err *e);

/* ---- preprocessing: a property of the model ---------------------------------------------------- */

/* Evaluation: shorter side to `resize` (0: leave), centre crop to the input size (an image of other
 * size without resize is resized to the input size), x/255, minus mean, divided by std. Grey images
 * are repeated for c = 3; colour becomes luma for c = 1. */
typedef struct { int h, w, c; int resize; float mean[3], std[3]; } data_prep;
void data_prep_print(const data_prep *p, char out[256]);   /* "size=32,32,3 resize=0 mean=… std=…" */
bool data_prep_parse(data_prep *p, const char *text, err *e);
/* The same for inputs of h×w: `resize` keeps its proportion to the crop's longer side. */
data_prep data_prep_at(data_prep p, int h, int w);

/* ---- sets ---------------------------------------------------------------------------------------- */

typedef struct data_set data_set;
typedef struct {
    int64_t limit;               /* class-balanced subset of this many images; 0: all */
    bool fail_on_bad;            /* --on-bad-image fail; default: listed and skipped */
    uint64_t seed;
    bool forget;                 /* do not keep decoded images in memory */
    bool *absent;                /* set to: the set is there, the split is not; NULL: nobody asks */
    int h, w;                    /* --size: side of the images a network gets; 0: the source's own */
} data_options;
/* "96" or "96,128" (height, width) into h and w; NULL: not asked for. */
bool data_size_parse(data_options *o, const char *text, err *e);
/* spec: a folder (class folders, CIFAR-10 binary, IDX, a pack) or "builtin:shapes[,classes=,size=,train=,val=,seed=]".
 * split: "train" or "val". An empty class folder, a missing split, a short file: error. */
data_set   *data_open(const char *spec, const char *split, const data_options *o, err *e);
void        data_free(data_set *s);
int64_t     data_count(const data_set *s);
int64_t     data_number(const data_set *s, int64_t i);     /* of image i in the split, before the limit */
int         data_classes(const data_set *s);
const char *data_class_name(const data_set *s, int label);
int         data_label(const data_set *s, int64_t i);
/* Class c becomes to[c] of `classes` (to[] in [0,classes)); a class that nothing becomes has no name. */
bool        data_relabel(data_set *s, const int32_t *to, int classes, err *e);
const char *data_name(const data_set *s, int64_t i);       /* file name, or "test_batch.bin:17" */
/* The preprocessing the source suggests: the size asked for or its own (class folders: 224), channels,
 * and mean and std (ImageNet's for class folders and CIFAR-10, 0.2860/0.3530 for Fashion-MNIST, 0.5/0.25 for shapes). */
data_prep   data_default_prep(const data_set *s);
bool        data_sized(const data_set *s);                 /* a size was asked for */
bool        data_decode(const data_set *s, int64_t i, data_image *out, err *e);   /* thread-safe */
/* Numbers of images that failed to decode so far, ascending. Returns how many; up to max are written. */
int64_t     data_bad(const data_set *s, int64_t *index, int64_t max);
/* The same for people, appended to out: "2 of 50 images could not be decoded and were left out: cat/1.jpg
 * dog/7.jpg". Nothing when all could; false then. */
bool        data_bad_text(const data_set *s, buf *out);

/* Packs: the decoded images of a split as shards DIR/train-00000.pack …, RGB bytes, mapped when read;
 * data_open takes DIR like any other source. resize: shorter side; 0: as the images are. Images that
 * cannot be decoded are left out, or end it when fail_on_bad; *packed counts the others. A pack that
 * is there is not written over (ERR_USAGE). */
typedef struct {
    int resize;
    size_t shard_bytes;          /* of pixels per file, about; an image is never cut */
    void (*tick)(void *ctx, int64_t done); void *ctx;   /* may be NULL */
} pack_options;
bool data_pack(const data_set *s, const char *split, const char *dir, const pack_options *o,
               int64_t *packed, err *e);
bool data_pack_may_write(const char *split, const char *dir, err *e);
/* Takes the split's shards away: of a pack that could not be finished, so that the same command starts over. */
void data_pack_discard(const char *split, const char *dir);

/* One class-balanced permutation of the set, a function of the seed: shuffled inside each class, then
 * dealt round-robin. A subset is a range [from, from+n) of it, so disjoint ranges are disjoint subsets
 * and each is balanced to within one image per class. A class with fewer than two images: error. */
bool data_pick(const data_set *s, uint64_t seed, int64_t from, int64_t n, int32_t *index, err *e);

/* ---- batches -------------------------------------------------------------------------------------- */

/* RandAugment as timm has it: n operations per image, each with probability p, of magnitude m (0 … 10)
 * spread by mstd (normal; above 100 uniform from 0 to m) and cut at mmax. inc 1: all grow with m. */
typedef struct { double n, m, mstd, mmax, inc, p; } data_randaug;      /* n 0: off */
bool data_randaug_parse(data_randaug *a, const char *text, err *e);    /* "rand-m9-n2-mstd0.5", "none" */
void data_randaug_print(const data_randaug *a, char out[128]);

typedef struct {                 /* training-time augmentation; all zero: evaluation */
    int    pad;                  /* zero-pad by this and crop back at random */
    double rrc_min;              /* random resized crop: least area fraction; 0: off (ratio 3/4…4/3) */
    double hflip;                /* probability */
    data_randaug aa;
    double jitter;               /* brightness, contrast, saturation by 1 ± this, in random order; 0: off */
    double mixup;                /* Beta(a,a) per batch; 0: off */
    double cutmix;               /* the same, exchanging a box; with both, either by chance */
    double erase;                /* random erasing probability, per-pixel noise */
} data_augment;

typedef struct {
    const data_set *set;
    const int32_t *index; int64_t n;   /* which images; borrowed; NULL: all n = data_count */
    int batch;
    bool shuffle, drop_last;
    data_prep prep;
    data_augment augment;
    uint64_t seed;
    int workers;                 /* loader threads; 0: one */
} loader_options;

typedef struct {
    int n;                       /* images in this batch; 0: the epoch is over */
    const float *x;              /* n,H,W,C, normalised; valid until the next call */
    const int32_t *label, *label2;   /* with mixup: x = lam*first + (1-lam)*second; with cutmix a share
                                      * of lam of the pixels is the first's */
    const int32_t *index;        /* image numbers in the set */
    float lam;                   /* 1 without mixup and cutmix */
} data_batch;

typedef struct data_loader data_loader;
data_loader *loader_new(const loader_options *o, err *e);
void         loader_free(data_loader *l);
int64_t      loader_batches(const data_loader *l);          /* per epoch */
/* Start (or jump to) batch `step` of `epoch`; prefetch begins. */
void         loader_seek(data_loader *l, int64_t epoch, int64_t step);
/* The next batch; after the last one of an epoch b->n = 0 once, then the next epoch follows. Bad
 * images are replaced by the next good one in the list; fails when fail_on_bad or all are bad. */
bool         loader_next(data_loader *l, data_batch *b, err *e);
/* One image for prediction: decoded and preprocessed into x (H,W,C of prep). name is for errors. */
bool         data_load_bytes(const void *bytes, size_t size, const char *name, const data_prep *prep,
                             float *x, err *e);
bool         data_load_file(const char *path, const data_prep *prep, float *x, err *e);

#endif
