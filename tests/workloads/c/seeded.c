/* See seeded.h; the shapes are those of C. */
#include <alloca.h>

#include "seeded.h"

typedef uint64_t shape(const struct chain *chain, int at, uint64_t rounds);
static shape *const shapes[FUNCTIONS];

NOINLINE uint64_t leaf(uint64_t rounds) {
    burn(rounds);
    return rounds;
}

static inline __attribute__((always_inline)) uint64_t go_on(const struct chain *chain, int at, uint64_t rounds) {
    return at < chain->length ? shapes[chain->functions[at]](chain, at + 1, rounds) : leaf(rounds);
}

/* Nothing but the call. */
NOINLINE uint64_t bare(const struct chain *chain, int at, uint64_t rounds) {
    uint64_t result = go_on(chain, at, rounds);
    KEEP_FRAME();
    return result;
}

/* A frame of some kilobytes. */
NOINLINE uint64_t roomy(const struct chain *chain, int at, uint64_t rounds) {
    volatile char room[3000];
    room[at] = 1;
    return go_on(chain, at, rounds) + (uint64_t)room[at];
}

/* A frame whose size is known only when it runs: found by the frame pointer. */
NOINLINE uint64_t flexible(const struct chain *chain, int at, uint64_t rounds) {
    volatile char *room = alloca(16 + 40 * (size_t)at);
    room[at] = 1;
    return go_on(chain, at, rounds) + (uint64_t)room[at];
}

/* Every register that a callee saves is in use. */
NOINLINE uint64_t saving(const struct chain *chain, int at, uint64_t rounds) {
    uint64_t a = rounds * 3, b = rounds * 5, c = rounds * 7, d = rounds * 11, e = rounds * 13, f = rounds * 17;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    uint64_t result = go_on(chain, at, rounds);
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    return result + a + b + c + d + e + f;
}

/* A frame aligned beyond what the ABI asks for. */
NOINLINE uint64_t aligned(const struct chain *chain, int at, uint64_t rounds) {
    volatile char room[128] __attribute__((aligned(64)));
    room[at] = 1;
    return go_on(chain, at, rounds) + (uint64_t)room[at];
}

/* More arguments than there are registers for. */
NOINLINE uint64_t eighth(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, const struct chain *chain,
                         int at, uint64_t rounds) {
    return go_on(chain, at, rounds) + a + b + c + d + e;
}
NOINLINE uint64_t pushing(const struct chain *chain, int at, uint64_t rounds) {
    uint64_t result = eighth(1, 2, 3, 4, 5, chain, at, rounds);
    KEEP_FRAME();
    return result;
}

/* A call in a loop, between others. */
NOINLINE uint64_t looping(const struct chain *chain, int at, uint64_t rounds) {
    uint64_t sum = 0;
    for (int i = 0; i < 2; i++) {
        sum += go_on(chain, at, rounds / 2);
        KEEP_FRAME();
    }
    return sum;
}

/* Several ways out, each with its own end of the frame. */
NOINLINE uint64_t branching(const struct chain *chain, int at, uint64_t rounds) {
    if (rounds == 0) return 0;
    uint64_t result = go_on(chain, at, rounds);
    if (result & 1) return result * 3;
    KEEP_FRAME();
    return result + 1;
}

static shape *const shapes[FUNCTIONS] = {bare, roomy, flexible, saving, aligned, pushing, looping, branching};

NOINLINE void run(const struct chain *chain, uint64_t rounds) {
    go_on(chain, 0, rounds);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    static const char *const names[] = {"bare",    "roomy",            "flexible", "saving",
                                        "aligned", "pushing > eighth", "looping",  "branching"};
    struct chain chains[CHAINS];
    uint64_t leaf_ns = 0;
    workload_prepare(argc, argv);
    seeded_make(chains, argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    seeded_print(chains, names, "leaf");
    workload_ready();
    for (int i = 0; workload_goes_on(); i++) {
        uint64_t start = thread_cpu_ns();
        run(&chains[i % CHAINS], rounds_of_ms(20));
        leaf_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"leaf\": %lu}}\n", leaf_ns);
    return 0;
}
