/* Threads with names: alpha and beta work, beta with a pause after each phase; idle only sleeps. */
#define _GNU_SOURCE
#include <pthread.h>

#include "workload.h"

NOINLINE void spin_alpha(uint64_t rounds) { burn(rounds); }
NOINLINE void spin_beta(uint64_t rounds) { burn(rounds); }

static void rest_ms(long ms) {
    struct timespec pause = {0, ms * 1000000};
    nanosleep(&pause, NULL);
}

static void *alpha(void *used_ns) {
    pthread_setname_np(pthread_self(), "alpha");
    while (workload_goes_on()) spin_alpha(rounds_of_ms(20));
    *(uint64_t *)used_ns = thread_cpu_ns();
    return NULL;
}

static void *beta(void *used_ns) {
    pthread_setname_np(pthread_self(), "beta");
    while (workload_goes_on()) {
        spin_beta(rounds_of_ms(40));
        rest_ms(40);
    }
    *(uint64_t *)used_ns = thread_cpu_ns();
    return NULL;
}

static void *idle(void *unused) {
    pthread_setname_np(pthread_self(), "idle");
    while (workload_goes_on()) rest_ms(100);
    return unused;
}

int main(int argc, char **argv) {
    uint64_t alpha_ns = 0, beta_ns = 0;
    pthread_t threads[3];
    workload_prepare(argc, argv);
    pthread_create(&threads[0], NULL, alpha, &alpha_ns);
    pthread_create(&threads[1], NULL, beta, &beta_ns);
    pthread_create(&threads[2], NULL, idle, NULL);
    workload_ready();
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    printf("{\"cpu_ns\": {\"spin_alpha\": %lu, \"spin_beta\": %lu}}\n", alpha_ns, beta_ns);
    return 0;
}
