/* 400 calls of descend inside one another, or as many as the second argument says; all the work is
 * at_the_bottom. */
#include "workload.h"

NOINLINE void at_the_bottom(uint64_t rounds) { burn(rounds); }

NOINLINE void descend(int left, uint64_t rounds) {
    if (left > 1)
        descend(left - 1, rounds);
    else
        at_the_bottom(rounds);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    uint64_t work_ns = 0;
    int depth = argc > 2 ? atoi(argv[2]) : 400;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        descend(depth, rounds_of_ms(50));
        work_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"at_the_bottom\": %lu}}\n", work_ns);
    return 0;
}
