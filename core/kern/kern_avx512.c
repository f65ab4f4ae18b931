/* The inner loops for AVX-512 F, BW, DQ, VL. Empty where the compiler was not asked for them. */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define KERN_NAME kern_avx512
#include "core/kern/kern_body.h"
#else
typedef int kern_avx512_is_not_for_this_machine;
#endif
