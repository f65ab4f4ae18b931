/* The two choices made once per process: instruction set and road of the convolution. */
#include <string.h>

#include "core/kern/kern.h"

kern_table kern;
static const char *road = "direct";
static bool exact;

void kern_select(isa_level isa)
{
    kern_portable(&kern);
#if defined(__x86_64__)
    if (isa >= ISA_AVX2) kern_avx2(&kern);
    if (isa >= ISA_AVX512) kern_avx512(&kern);
#else
    (void)isa;
#endif
}

bool conv_road_select(const char *name, bool no_winograd, err *e)
{
    static const char *const known[] = { "direct", "im2col", "reference", "winograd2", "winograd4" };
    exact = no_winograd;
    if (!name) name = "direct";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i])) { road = known[i]; return true; }
    return err_set(e, ERR_USAGE, "unknown convolution road \"%s\": want direct or im2col", name);
}

const char *conv_road(void) { return road; }
bool conv_exact(void) { return exact; }
