/* What every workload in C and C++ does: be ready, work in phases, stop, report. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#else
/* Nor cloned: the name on the stack is the one in the source. */
#define NOINLINE __attribute__((noipa))
#endif
#define MS 1000000ull

/* GCC leaves the frame pointer out of functions that call nothing, whatever its options say; then
 * the caller is not on the stack that frame pointers make. Asking for the frame brings it back. */
#ifdef WITH_FRAME_POINTERS
#define HAVE_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))
#else
#define HAVE_FRAME() ((void)0)
#endif

/* Keeps a call from becoming a jump, so that the caller stays on the stack. */
#define KEEP_FRAME() __asm__ volatile("" ::: "memory")

static volatile sig_atomic_t workload_stopped;
static uint64_t workload_end_ns;
static uint64_t workload_per_ms = 1;

static inline uint64_t workload_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline uint64_t thread_cpu_ns(void) { return workload_clock(CLOCK_THREAD_CPUTIME_ID); }

/* Work that no compiler removes, in the function that says it. */
static inline __attribute__((always_inline)) void burn(uint64_t rounds) {
    HAVE_FRAME();
    uint64_t x = rounds | 1;
    for (uint64_t i = 0; i < rounds; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        __asm__ volatile("" : "+r"(x));
    }
}

static inline uint64_t rounds_of_ms(double ms) { return (uint64_t)(ms * (double)workload_per_ms); }

static void workload_stop(int signal) {
    (void)signal;
    workload_stopped = 1;
}

/* Measures how long `burn` takes, so that phases last as long on any machine. */
static NOINLINE void workload_calibrate(void) {
    const uint64_t rounds = 2000000;
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = thread_cpu_ns();
        burn(rounds);
        uint64_t used = thread_cpu_ns() - start;
        if (used && used < best) best = used;
    }
    workload_per_ms = rounds * MS / best;
}

static inline void workload_prepare(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 120.0;
    workload_end_ns = workload_clock(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = workload_stop;
    sigaction(SIGTERM, &action, NULL);
    workload_calibrate();
}

static inline void workload_ready(void) {
    puts("ready");
    fflush(stdout);
}

static inline int workload_goes_on(void) {
    return !workload_stopped && workload_clock(CLOCK_MONOTONIC) < workload_end_ns;
}

#endif
