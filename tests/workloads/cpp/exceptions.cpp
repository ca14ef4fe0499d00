// Throws and catches across frames, some of which have something to destroy: most of the time goes
// to the runtime that looks for the handler.
#include <stdexcept>

#include "../c/workload.h"

namespace {

struct Guard {
    uint64_t *count;
    NOINLINE ~Guard() { ++*count; }
};

NOINLINE void thrower(uint64_t x) {
    throw x;
}

NOINLINE void inner(uint64_t x, uint64_t *count) {
    Guard guard{count};
    thrower(x);
    KEEP_FRAME();
}

NOINLINE void outer(uint64_t x, uint64_t *count) {
    char room[200];
    asm volatile("" : : "r"(room) : "memory");
    inner(x, count);
    KEEP_FRAME();
}

NOINLINE uint64_t catcher(uint64_t x, uint64_t *count) {
    try {
        outer(x, count);
    } catch (uint64_t caught) {
        return caught + 1;
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    uint64_t catch_ns = 0, x = 1, count = 0;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        for (int i = 0; i < 2000; i++) x = catcher(x, &count);
        catch_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"catcher\": %lu}, \"thrown\": %lu, \"x\": %lu}\n", catch_ns, count, x);
    return 0;
}
