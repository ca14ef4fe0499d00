/* Asks for the time again and again: nearly all of it is in code that the kernel maps. */
#include "workload.h"

NOINLINE uint64_t ask(int times) {
    struct timespec t;
    uint64_t sum = 0;
    for (int i = 0; i < times; i++) {
        clock_gettime(CLOCK_MONOTONIC, &t);
        sum += (uint64_t)t.tv_nsec;
    }
    return sum;
}

int main(int argc, char **argv) {
    uint64_t ask_ns = 0, sum = 0;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        sum += ask(200000);
        ask_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"ask\": %lu}, \"sum\": %lu}\n", ask_ns, sum);
    return 0;
}
