/* The inner loops for any machine: vectors of 16 bytes, whatever the baseline has. */
#define KERN_NAME kern_portable
#include "core/kern/kern_body.h"
