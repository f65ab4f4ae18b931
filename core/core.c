/* Starting and stopping, and saying on what. */
#include "core/core.h"
#include "core/io.h"
#include "core/kern/kern.h"
#include "core/machine.h"

#include <signal.h>
#include <string.h>

/* The Makefile knows. */
#ifndef BUILD_FLAGS
#define BUILD_FLAGS "unknown"
#endif
#ifndef BUILD_JPEG
#define BUILD_JPEG "unknown"
#endif
#ifndef BUILD_COMMIT
#define BUILD_COMMIT "unknown"
#endif

enum { MAX_THREADS = 1024 };

static struct { bool on; isa_level isa; } chosen;

static bool choose_isa(const char *name, isa_level *isa, err *e) {
    isa_level best = cpu_best_isa();
    *isa = best;
    if (!name) return true;
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(name, isa_names[i])) continue;
        *isa = (isa_level)i;
        return i <= (int)best
            || err_set(e, ERR_CONFIG, "this CPU lacks %s, the best it has is %s", name, isa_names[best]);
    }
    return err_set(e, ERR_CONFIG, "unknown instruction set %s: scalar, avx2 and avx512 are known", name);
}

bool core_init(const core_options *o, err *e) {
    if (chosen.on) return err_set(e, ERR_INTERNAL, "core_init called twice without core_stop");
    int threads = o->threads ? o->threads : core_cpus(), limit = gemm_thread_limit();
    if (threads < 1 || threads > MAX_THREADS)
        return err_set(e, ERR_CONFIG, "%d threads wanted, 1 to %d are possible", threads, MAX_THREADS);
    if (threads > limit) threads = limit;

    /* A full disk and a closed pipe are errors with a sentence, not deaths. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (!choose_isa(o->isa, &chosen.isa, e) || !conv_road_select(o->conv, o->exact, e)) return false;
    kern_select(chosen.isa);
    if (!par_start(threads, e)) return false;
    if (!gemm_init(e)) { par_stop(); return false; }
    return chosen.on = true;
}

void core_stop(void) {
    if (chosen.on) par_stop();
    chosen.on = false;
}

isa_level   core_isa(void) { return chosen.isa; }
const char *core_conv_road(void) { return conv_road(); }
bool        core_exact(void) { return conv_exact(); }

void core_describe(buf *out) {
    char cpu[128];
    cpu_model(cpu, sizeof cpu);
    json_writer w = json_writer_on(out, false);
    json_begin(&w, NULL, '{');
#ifdef __clang__
    json_text(&w, "compiler", "clang " __clang_version__);
#else
    json_text(&w, "compiler", "gcc " __VERSION__);
#endif
    json_text(&w, "flags", BUILD_FLAGS);
    json_text(&w, "commit", BUILD_COMMIT);
    json_text(&w, "cpu", cpu);
    json_int(&w, "cpus", core_cpus());
    json_text(&w, "isa", isa_names[chosen.isa]);
    json_text(&w, "conv", conv_road());
    json_bool(&w, "exact", conv_exact());
    json_text(&w, "blas", gemm_name());
    json_text(&w, "jpeg", BUILD_JPEG);
    json_int(&w, "threads", par_threads());
    json_end(&w, '}');
}
