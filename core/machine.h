/* What core_init needs from cpu.c, par.c and gemm.c. Private to core. */
#ifndef LM_MACHINE_H
#define LM_MACHINE_H

#include "core/core.h"

isa_level cpu_best_isa(void);                 /* what CPU and system support */
void      cpu_model(char *out, size_t size);  /* "AMD EPYC 9B45" */

bool par_start(int threads, err *e);
void par_stop(void);
int  par_allowed_cpus(void);                  /* of the process, before its threads were pinned; 0: unknown */

int  gemm_thread_limit(void);                 /* threads that may call gemm at once */

#endif
