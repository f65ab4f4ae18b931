/* Plan of one gather on the register tile, shared by conv_tile_plan.c and conv_tile.c.
 *
 * Work is cut into units: some images, or some rows of one image, or (1×1 convolutions, whose
 * pixels form one long row) some pixels of a row. The pixels of a unit are sorted into classes that
 * find the same taps inside the image, a rectangle each, and every class is cut into tiles of
 * about equal height, over all images of the unit. So no zero is multiplied and nothing copied: a
 * tile knows its live taps as stretches of memory, at fixed distances from where a pixel starts.
 *
 * Where that leaves too few pixels to a tile (large kernels on small maps of few images) the unit
 * is first copied, with its border of zeros, into scratch that stays in the cache; then columns,
 * or rows and columns, need not be told apart.
 *
 * Where taps are neighbours, tiles may be strips: neighbours in a line, with the taps of a row in chunks that
 * know which of their pixels are inside the image. Then each strip of a line is a class.
 *
 * The pixels of 1×1 convolutions stand in a row, and so do their tiles: those of one height are a series, of which
 * a call does several. So it does of other short sums, a stem's, whose pixels it is told one by one, a list.
 * One vector of out-channels would load a pixel for every multiply-add. In a series it loads two channels of a pixel at
 * once, twins, whose weights are interleaved: even and odd channels have sums of their own, for half of the out-channels
 * in each of two vectors, and are added up at the end.
 *
 * Where a panel of weights is too long to stay in the cache while the tiles of a unit pass over it,
 * the sum is cut into blocks, parts of one row of taps each. All tiles pass over one block while the
 * next is fetched; their accumulators rest in scratch meanwhile. The order of each sum is the same. */
#ifndef LM_CONV_TILE_H
#define LM_CONV_TILE_H

#include "core/kern/conv.h"

typedef struct { int first, end, t0, t1; } tap_class;   /* outputs [first,end) find taps [t0,t1) inside */
typedef struct { tap_class *c; int n; } classes;        /* of one axis, ascending */

typedef struct {
    int32_t pixel;               /* index into ox, oy */
    int32_t run;                 /* index into run[nv-1] */
    int32_t len, runs, height;
    int32_t series;              /* tiles of this height from here on, at equal distances; 0: it has no series */
} tile_piece;

typedef struct { tile_piece *piece; int n; } tile_list; /* all tiles of a kind of unit */

typedef struct { int n0, imgs, r0, rows, q0, cols; } unit;

struct tile_plan {
    gather g;
    conv_shape s;
    bool flat;                   /* one row of pixels */
    int imgs, rows, cols;        /* of a unit, at most */
    int units_n, units_h, units_w;
    int units_per_task, panels, panels_per_task;         /* panels of all groups */
    int64_t units, stretches, slices, tasks;             /* stretches of units times slices of panels are tasks */
    bool by_panel;               /* tasks go through all units of some panels before the next panels */
    bool copy;
    classes down, across;
    bool pairs;                  /* two panels of two vectors may be computed at once */
    bool merge;                  /* neighbouring taps of a row are one stretch */
    bool strips;                 /* tiles are strips, and then … */
    int chunks;                  /* … the taps of a row so many stretches; 1 where they are not */
    int src_w, src_h;            /* what the tile reads: the copy of a unit, or an image */
    conv_run *run[2];            /* [NV-1][class down × class across][runs_max] */
    int runs_max;
    int kinds_h, kinds_w;        /* kinds of units: [2][kinds_h][kinds_w], see kind_of */
    tile_list *list[3];          /* [NV/2][kind] */
    tile_piece *pieces;          /* of all lists */
    int32_t *ox, *oy;            /* of all lists */
    int workers;
    int parts;                   /* blocks of a stretch; 0: sums are not cut */
    bool sums;                   /* over the outputs of each task */
    bool inside;                 /* a task of somebody else's */
    bool prologue;               /* flat 1×1 only: a unit is prepared in the room of the copy */
    size_t copy_floats, sum_floats, packed_at;           /* copy and sums of one worker */
    int64_t input_floats;        /* that a unit reads, at most */
    bool far;                    /* the outputs */
    bool fetches;                /* kernels of one tap: while a panel is multiplied, the next one's weights are fetched */
};

/* Taps of a row that lie beside each other for every channel of the packed weights: all of tap b's chunk. */
typedef struct { int which, first, taps; } tap_chunk;
tap_chunk tile_chunk_of(const tile_plan *p, int b);
unit    tile_unit_at(const tile_plan *p, int64_t i);
int     tile_kind_of(const tile_plan *p, unit u);
/* Panels of nv vectors: two in-channels at a time, their weights interleaved. */
bool    tile_is_twin(const tile_plan *p, int nv);
/* Rows and columns of the image that `outputs` outputs of an axis reach, border counted. */
int     gather_span(int outputs, int stride, const int *offset, int taps);
/* Floats of packed weights before panel i of a group; i = panel_count: of the whole group. */
int64_t gather_panel_offset(const gather *g, int i);

#endif
