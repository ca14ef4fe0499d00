/* Works in work; and has so many functions with unwind information beside that its table takes more
 * than a mebibyte. */
#include "workload.h"

__asm__(".pushsection .text\n"
        ".rept 150000\n"
        ".cfi_startproc\n"
        "push %rbx\n"
        ".cfi_def_cfa_offset 16\n"
        ".cfi_offset %rbx, -16\n"
        "pop %rbx\n"
        ".cfi_def_cfa_offset 8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".endr\n"
        ".popsection\n");

NOINLINE void work(uint64_t rounds) { burn(rounds); }

NOINLINE void worker(uint64_t rounds) {
    work(rounds);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    uint64_t work_ns = 0;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        worker(rounds_of_ms(20));
        work_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"work\": %lu}}\n", work_ns);
    return 0;
}
