/* A library whose functions take no longer than the way to them, through the procedure linkage
 * table. */
#include "workload.h"

NOINLINE uint64_t cheap_a(uint64_t x) { return x + 1; }
NOINLINE uint64_t cheap_b(uint64_t x) { return x * 3; }
NOINLINE uint64_t cheap_c(uint64_t x) { return x ^ 5; }
NOINLINE uint64_t cheap_d(uint64_t x) { return x - 7; }
