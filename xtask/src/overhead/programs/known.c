/* Programs whose every stack is known. Usage: known MODE
 *
 *   calls   main → first → second → third → leaf
 *   deep    main → descend, 60 times → leaf
 *   read    main → first → second → third → read(2), which is nearly always inside the kernel
 *
 * Each function calls the next one again and again, so that samples hit calls, returns and what
 * compilers put around them, too. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Neither inlined nor cloned: the stack is what the source says. */
#define NOINLINE __attribute__((noipa))

#define DEPTH 60

static char buffer[64 << 10];
static int zeros;

/* Calls nothing: compilers give it no frame. */
static NOINLINE uint64_t leaf(uint64_t x) {
    for (int i = 0; i < 1000; i++) x = x * 6364136223846793005ull + 1442695040888963407ull;
    return x;
}

static NOINLINE uint64_t third(uint64_t x, int reads) {
    for (int i = 0; i < 3; i++) {
        if (reads)
            x ^= (uint64_t)read(zeros, buffer, sizeof buffer);
        else
            x ^= leaf(x);
    }
    return x;
}

static NOINLINE uint64_t second(uint64_t x, int reads) {
    char room[200];
    memset(room, (int)x, sizeof room);
    for (int i = 0; i < 3; i++) x += third(x, reads) + (uint64_t)room[x % sizeof room];
    return x;
}

static NOINLINE uint64_t first(uint64_t x, int reads) {
    for (int i = 0; i < 3; i++) x += second(x + (uint64_t)i, reads);
    return x;
}

static NOINLINE uint64_t descend(uint64_t x, int left) {
    uint64_t y = left > 1 ? descend(x + 1, left - 1) : leaf(leaf(x));
    __asm__ volatile("" : "+r"(y)); /* Keeps the recursion from becoming a loop. */
    return y * 3 + x;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int is_deep = strcmp(argv[1], "deep") == 0;
    int reads = strcmp(argv[1], "read") == 0;
    zeros = open("/dev/zero", O_RDONLY);
    puts("ready");
    fflush(stdout);
    for (uint64_t x = (uint64_t)argc;;) x = is_deep ? descend(x, DEPTH) : first(x, reads);
}
