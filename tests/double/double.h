/* Included before everything else when the runtime of nn is compiled a second time in double
 * precision: central differences can then be trusted to ten digits. The system's headers come
 * first, because they must keep their floats. */
#ifndef LM_DOUBLE_H
#define LM_DOUBLE_H

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define float double
#define expf exp
#define fabsf fabs
#define fmaxf fmax
#define fminf fmin
#define sqrtf sqrt

#endif
