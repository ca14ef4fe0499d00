/* Calls the functions of cheap.c in turn. With RESOLVE defined, it forgets between the calls where
 * they are, so that the dynamic linker has to find them again each time; that needs a program at a
 * fixed address, with lazy binding and without RELRO. */
#include "workload.h"

uint64_t cheap_a(uint64_t), cheap_b(uint64_t), cheap_c(uint64_t), cheap_d(uint64_t);

#ifdef RESOLVE
#include <link.h>

static uint64_t *slots, unresolved[64];
static size_t slot_count;

/* The linker writes the address of each stub's second instruction, which the dynamic linker
 * replaces at the first call. This is called before any such call. */
static void remember_unresolved(void) {
    for (ElfW(Dyn) *entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_PLTGOT) slots = (uint64_t *)entry->d_un.d_ptr + 3;
        if (entry->d_tag == DT_PLTRELSZ) slot_count = entry->d_un.d_val / sizeof(ElfW(Rela));
    }
    for (size_t i = 0; i < slot_count && i < 64; i++) unresolved[i] = slots[i];
}

static inline __attribute__((always_inline)) void forget(void) {
    for (size_t i = 0; i < slot_count && i < 64; i++) ((volatile uint64_t *)slots)[i] = unresolved[i];
}
#else
static void remember_unresolved(void) {}
static inline __attribute__((always_inline)) void forget(void) {}
#endif

NOINLINE uint64_t call_many(uint64_t x, int times) {
    for (int i = 0; i < times; i++) {
        forget();
        x = cheap_d(cheap_c(cheap_b(cheap_a(x))));
    }
    return x;
}

int main(int argc, char **argv) {
    remember_unresolved();
    uint64_t call_ns = 0, x = 1;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        x = call_many(x, 20000);
        call_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"call_many\": %lu}, \"x\": %lu}\n", call_ns, x);
    return 0;
}
