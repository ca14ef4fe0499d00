/* 70 % of the time in heavy, called by heavy_caller, and 30 % in light, called by light_caller. */
#include "workload.h"

NOINLINE void heavy(uint64_t rounds) { burn(rounds); }
NOINLINE void light(uint64_t rounds) { burn(rounds); }

NOINLINE void heavy_caller(uint64_t rounds) {
    heavy(rounds);
    KEEP_FRAME();
}

NOINLINE void light_caller(uint64_t rounds) {
    light(rounds);
    KEEP_FRAME();
}

NOINLINE void run(uint64_t *heavy_ns, uint64_t *light_ns) {
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        heavy_caller(rounds_of_ms(70));
        uint64_t middle = thread_cpu_ns();
        light_caller(rounds_of_ms(30));
        *heavy_ns += middle - start;
        *light_ns += thread_cpu_ns() - middle;
    }
}

int main(int argc, char **argv) {
    uint64_t heavy_ns = 0, light_ns = 0;
    workload_prepare(argc, argv);
    workload_ready();
    run(&heavy_ns, &light_ns);
    printf("{\"cpu_ns\": {\"heavy\": %lu, \"light\": %lu}}\n", heavy_ns, light_ns);
    return 0;
}
