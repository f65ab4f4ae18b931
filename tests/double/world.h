/* The runtime of nn compiled in double (double.h), behind the few functions a test needs.
 * Everything else in it is hidden, so that it links beside the ordinary library. */
#ifndef LM_DOUBLE_WORLD_H
#define LM_DOUBLE_WORLD_H

#include "core/core.h"

typedef struct double_world double_world;
/* A TRAIN plan, with input gradients, of a graph given as text. */
double_world *double_open(const char *graph_text, int batch, err *e);
void    double_close(double_world *d);
double *double_param(double_world *d, int param);
double *double_input(double_world *d, int which);
double  double_loss(double_world *d);                    /* forward */
void    double_backward(double_world *d);
double *double_param_grad(double_world *d, int param);   /* NULL: not trained */
double *double_input_grad(double_world *d, int which);   /* NULL: no gradient reaches it */

#endif
