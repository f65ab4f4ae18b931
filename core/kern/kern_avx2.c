/* The inner loops for AVX2 and FMA. Empty where the compiler was not asked for them. */
#if defined(__AVX2__) && defined(__FMA__)
#define KERN_NAME kern_avx2
#include "core/kern/kern_body.h"
#else
typedef int kern_avx2_is_not_for_this_machine;
#endif
