/* 90 % of the time in read_zeros, nearly all of it inside the kernel, and 10 % in compute. */
#include <fcntl.h>

#include "workload.h"

static char buffer[1 << 20];

/* The system call itself: C libraries are built without frame pointers, and frame pointers lose the
 * caller of a function that has none. */
static inline __attribute__((always_inline)) long read_file(int file, void *into, size_t size) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(0L), "D"((long)file), "S"(into), "d"(size)
                     : "rcx", "r11", "memory");
    return result;
#else
    return read(file, into, size);
#endif
}

/* Reads until it has used `budget_ns`. */
NOINLINE void read_zeros(int file, uint64_t budget_ns) {
    HAVE_FRAME();
    uint64_t end = thread_cpu_ns() + budget_ns;
    while (thread_cpu_ns() < end) {
        if (read_file(file, buffer, sizeof buffer) < 0) abort();
    }
}

NOINLINE void compute(uint64_t rounds) { burn(rounds); }

int main(int argc, char **argv) {
    uint64_t read_ns = 0, compute_ns = 0;
    int file = open("/dev/zero", O_RDONLY);
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        read_zeros(file, 90 * MS);
        uint64_t middle = thread_cpu_ns();
        compute(rounds_of_ms(10));
        read_ns += middle - start;
        compute_ns += thread_cpu_ns() - middle;
    }
    printf("{\"cpu_ns\": {\"read_zeros\": %lu, \"compute\": %lu}}\n", read_ns, compute_ns);
    return 0;
}
