/* Time, CPU time, and the wish to stop. */
#include "core/core.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

double clock_cpu_self(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Everything but idle and iowait; time stolen by other virtual machines counts as use. */
double clock_cpu_all(void) {
    FILE *f = fopen("/proc/stat", "re");
    if (!f) return -1;
    unsigned long long user, nice, sys, idle, wait, irq, soft, steal = 0;
    int n = fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu",
                   &user, &nice, &sys, &idle, &wait, &irq, &soft, &steal);
    fclose(f);
    long hz = sysconf(_SC_CLK_TCK);
    if (n < 7 || hz <= 0) return -1;
    return (double)(user + nice + sys + irq + soft + steal) / (double)hz;
}

static atomic_bool stop;
static _Atomic int64_t first_ns;

/* A second one kills, unless it follows at once: timeout(1) sends each signal twice, to the process and
 * to its group, and a terminal's Ctrl-C may reach us from both the shell and a script around us. */
enum { TWICE_NS = 500000000 };

static void on_signal(int sig) {
    int64_t now = clock_ns(), none = 0;
    atomic_store(&stop, true);
    if (atomic_compare_exchange_strong(&first_ns, &none, now) || now - none < TWICE_NS) return;
    signal(sig, SIG_DFL);
    raise(sig);
}

void stop_install(void) {
    struct sigaction a = { .sa_handler = on_signal };
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

bool stop_requested(void) { return atomic_load(&stop); }
void stop_request(bool on) { atomic_store(&stop, on); }
