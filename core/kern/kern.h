/* What the kernel files share; nobody outside core/kern and core_init includes this.
 *
 * The public functions of core/kern.h live in conv.c, norm.c, pool.c and optim.c. They cut the work
 * by shape, hand the pieces to par_for, and reach their inner loops through one table of function
 * pointers that kern_select fills once. */
#ifndef LM_KERN_INTERNAL_H
#define LM_KERN_INTERNAL_H

#include "core/kern.h"

/* Called by core_init before anything computes. */
void kern_select(isa_level isa);
bool conv_road_select(const char *road, err *e);        /* NULL: "direct" */
const char *conv_road(void);

/* The definition of a convolution, in loops: the road "reference". Weights as they come, OIHW. */
void ref_conv_forward(const conv_shape *s, const float *x, const float *w, const conv_epilogue *ep,
                      float *y);
void ref_conv_data_grad(const conv_shape *s, const float *dy, const float *w, bool accumulate,
                        float *dx);
void ref_conv_weight_grad(const conv_shape *s, const float *x, const float *dy, bool accumulate,
                          float *dw);

/* Activations as scalars. Written so that a NaN survives. */
float act_value(act_kind act, float v);
/* act'(v) where v is the input of SiLU, the output of the ReLU kinds. */
float act_slope(act_kind act, float v);

static inline int64_t kern_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t kern_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t kern_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
