/* layermerge: run networks that the program of the same name has trained, imported or merged.
 *
 *     lm_model *m = lm_load("merged.safetensors");
 *     if (!m || lm_plan(m, 1, 0) || lm_image(m, "dog.jpg", x) || lm_run(m, 1, x, y))
 *         puts(lm_error());
 *
 * with x and y of as many floats as lm_input and lm_output say; lm_free ends it. A whole program is
 * examples/classify.c. Link with -llayermerge (pkg-config layermerge; --static for the archive).
 *
 * Threads: models may be loaded, planned and run by any thread, a model by one at a time. All models
 * share one pool of threads, so runs of several models take turns; the work is shared among the pool
 * when the thread that made it calls (the first lm_plan does), otherwise the caller computes alone.
 * Results are the same bits either way. */
#ifndef LAYERMERGE_H
#define LAYERMERGE_H

#include <stddef.h>

#if defined(__GNUC__)
#define LM_API __attribute__((visibility("default")))
#else
#define LM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lm_model lm_model;
/* Of one image: c*h*w floats. A row of classes has h = w = 1. */
typedef struct { int c, h, w; } lm_shape;

/* A model file (not a .pth: `layermerge import` makes one of it). NULL: see lm_error. */
LM_API lm_model *lm_load(const char *path);
LM_API void      lm_free(lm_model *m);         /* NULL is fine */
LM_API lm_shape  lm_input(const lm_model *m);
LM_API lm_shape  lm_output(const lm_model *m);
/* The name of a class in the training data, NULL if the file does not say. Lives as long as m. */
LM_API const char *lm_label(const lm_model *m, int which);

/* The functions below return 0, or the program's exit code for such an error (65 bad content of a
 * file, 66 missing file, 71 out of memory, 78 values that do not fit together). */

/* Ready the model for running `batch` images at a time, and all memory with it; again for another
 * batch size. threads 0: the cores there are, or what other models of this process have. Another
 * number than theirs is refused. */
LM_API int lm_plan(lm_model *m, int batch, int threads);
/* n images x (n,C,H,W), already normalised, to y (n,C,H,W) of the output; n may be any number. */
LM_API int lm_run(lm_model *m, int n, const float *x, float *y);
/* A JPEG or PNG, resized, cropped and normalised as the model file says: x (C,H,W). From a file, or
 * from size bytes in memory. */
LM_API int lm_image(const lm_model *m, const char *path, float *x);
LM_API int lm_image_bytes(const lm_model *m, const void *bytes, size_t size, float *x);

/* One sentence about the last failure on this thread; "" before the first. */
LM_API const char *lm_error(void);
LM_API const char *lm_version(void);           /* "0.1.0" */

#ifdef __cplusplus
}
#endif
#endif
