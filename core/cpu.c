/* What this machine is: instruction sets, cores, a name. */
#include "core/machine.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *const isa_names[ISA_COUNT] = { "scalar", "avx2", "avx512" };

/* __builtin_cpu_supports asks the system too: registers it does not save are not offered. */
isa_level cpu_best_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_SCALAR;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return ISA_AVX512;
    return ISA_AVX2;
#else
    return ISA_SCALAR;
#endif
}

/* A container's share of CPU time, in cores rounded up; 0 when there is no limit. */
static int quota_cpus(void) {
    double quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");          /* "max 100000" or "150000 100000" */
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) != 2) quota = 0;
        fclose(f);
    } else {
        f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");   /* -1: no limit */
        if (f && fscanf(f, "%lf", &quota) != 1) quota = 0;
        if (f) fclose(f);
        f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (f && fscanf(f, "%lf", &period) != 1) period = 0;
        if (f) fclose(f);
    }
    if (!(quota > 0) || !(period > 0) || quota / period > 4096) return 0;
    int whole = (int)(quota / period);
    return whole + (whole * period < quota);
}

int core_cpus(void) {
    int n = par_allowed_cpus(), quota = quota_cpus();
    if (!n) n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (quota && quota < n) n = quota;
    return n > 0 ? n : 1;
}

size_t core_l2_bytes(void) {
    long bytes = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return bytes > 0 ? (size_t)bytes : 1 << 20;
}

void cpu_model(char *out, size_t size) {
    snprintf(out, size, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    char line[512];
    while (fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, size, "%s", colon + 1 + (colon[1] == ' '));
        break;
    }
    fclose(f);
}
