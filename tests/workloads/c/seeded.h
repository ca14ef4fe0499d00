/* Chains of calls that a seed decides, in C and C++: eight functions with frames of different
 * shapes call one another in an order that is different in each of twelve chains, down to the leaf.
 * The program prints its chains before it is ready. */
#ifndef SEEDED_H
#define SEEDED_H

#include "workload.h"

enum { CHAINS = 12, LONGEST = 24, FUNCTIONS = 8 };

/* What is left of a chain: the numbers of the functions to call. */
struct chain {
    int length;
    unsigned char functions[LONGEST];
};

static uint64_t seeded_state;

/* The same generator in every language. */
static uint64_t seeded_next(uint64_t below) {
    seeded_state = seeded_state * 6364136223846793005ull + 1442695040888963407ull;
    return (seeded_state >> 33) % below;
}

static void seeded_make(struct chain *chains, uint64_t seed) {
    seeded_state = seed;
    for (int i = 0; i < CHAINS; i++) {
        chains[i].length = 3 + (int)seeded_next(LONGEST - 2);
        for (int j = 0; j < chains[i].length; j++) chains[i].functions[j] = (unsigned char)seeded_next(FUNCTIONS);
    }
}

static void seeded_print(const struct chain *chains, const char *const *names, const char *leaf) {
    for (int i = 0; i < CHAINS; i++) {
        printf("chain: ");
        for (int j = 0; j < chains[i].length; j++) printf("%s > ", names[chains[i].functions[j]]);
        printf("%s\n", leaf);
    }
}

#endif
