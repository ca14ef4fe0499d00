/* Threads that begin in different ways: pthread_create and clone. Each works for half of the time. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "workload.h"

static volatile int is_done;

NOINLINE void pthread_work(uint64_t rounds) { burn(rounds); }
NOINLINE void clone_work(uint64_t rounds) { burn(rounds); }

NOINLINE void *pthread_entry(void *used_ns) {
    while (workload_goes_on()) pthread_work(rounds_of_ms(20));
    *(uint64_t *)used_ns = thread_cpu_ns();
    return NULL;
}

NOINLINE int clone_entry(void *used_ns) {
    while (workload_goes_on()) clone_work(rounds_of_ms(20));
    *(uint64_t *)used_ns = thread_cpu_ns();
    is_done = 1;
    return 0;
}

int main(int argc, char **argv) {
    uint64_t pthread_ns = 0, clone_ns = 0;
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    char *stack = malloc(1 << 18);
    pthread_t thread;
    workload_prepare(argc, argv);
    if (pthread_create(&thread, NULL, pthread_entry, &pthread_ns) != 0) return 1;
    if (clone(clone_entry, stack + (1 << 18), flags, &clone_ns) < 0) return 1;
    workload_ready();
    pthread_join(thread, NULL);
    while (!is_done) usleep(1000);
    printf("{\"cpu_ns\": {\"pthread_work\": %lu, \"clone_work\": %lu}}\n", pthread_ns, clone_ns);
    return 0;
}
