/* The inner loops, written once over simd.h and compiled once per instruction set. The file that
 * includes this defines KERN_NAME, the function that fills the table. */
#include "core/kern/kern.h"
#include "core/kern/simd.h"

#include "core/kern/body_conv.h"
#include "core/kern/body_dw.h"
#include "core/kern/body_full.h"
#include "core/kern/body_norm.h"
#include "core/kern/body_pool.h"
#include "core/kern/body_strip.h"
#include "core/kern/body_wgrad.h"
#include "core/kern/body_wino.h"

void KERN_NAME(kern_table *k)
{
    k->lanes = LANES;
    fill_conv(k);
    fill_dw(k);
    fill_full(k);
    fill_norm(k);
    fill_pool(k);
    fill_strip(k);
    fill_wgrad(k);
    fill_wino(k);
}
