// See seeded.h; the shapes are those of C++.
#include <stdexcept>

#include "../c/seeded.h"

namespace {

uint64_t go_on(const chain *chain, int at, uint64_t rounds);

NOINLINE uint64_t leaf(uint64_t rounds) {
    burn(rounds);
    return rounds;
}

struct Base {
    virtual ~Base() = default;
    virtual uint64_t visit(const chain *chain, int at, uint64_t rounds) const = 0;
};

struct Derived : Base {
    NOINLINE uint64_t visit(const chain *chain, int at, uint64_t rounds) const override {
        uint64_t result = go_on(chain, at, rounds);
        KEEP_FRAME();
        return result;
    }
};

template <typename Number, int Size>
NOINLINE Number fold(const chain *chain, int at, Number rounds) {
    volatile Number room[Size];
    room[at % Size] = 1;
    return go_on(chain, at, rounds) + room[at % Size];
}

struct Guard {
    uint64_t *sum;
    NOINLINE ~Guard() { ++*sum; }
};

// Has something to destroy, whatever happens.
NOINLINE uint64_t guarded(const chain *chain, int at, uint64_t rounds) {
    uint64_t sum = 0;
    {
        Guard guard{&sum};
        sum += go_on(chain, at, rounds);
    }
    return sum;
}

NOINLINE uint64_t catching(const chain *chain, int at, uint64_t rounds) {
    try {
        return go_on(chain, at, rounds) + 1;
    } catch (const std::exception &) {
        return 0;
    }
}

class Counter {
public:
    NOINLINE uint64_t operator()(const chain *chain, int at, uint64_t rounds) {
        count_ += go_on(chain, at, rounds);
        return count_;
    }

private:
    uint64_t count_ = 0;
};

NOINLINE uint64_t lambda(const chain *chain, int at, uint64_t rounds) {
    auto step = [&](uint64_t more) NOINLINE {
        uint64_t result = go_on(chain, at, rounds);
        KEEP_FRAME();
        return result + more;
    };
    return step(1) + 1;
}

NOINLINE double floating(const chain *chain, int at, double rounds) {
    return (double)go_on(chain, at, (uint64_t)rounds) * 1.5;
}

Derived derived;
const Base *volatile base = &derived;

inline __attribute__((always_inline)) uint64_t call(int which, const chain *chain, int at, uint64_t rounds) {
    Counter counter;
    switch (which) {
    case 0: return base->visit(chain, at, rounds);
    case 1: return fold<uint64_t, 7>(chain, at, rounds);
    case 2: return fold<uint64_t, 900>(chain, at, rounds);
    case 3: return guarded(chain, at, rounds);
    case 4: return catching(chain, at, rounds);
    case 5: return counter(chain, at, rounds);
    case 6: return lambda(chain, at, rounds);
    default: return (uint64_t)floating(chain, at, (double)rounds);
    }
}

inline __attribute__((always_inline)) uint64_t go_on(const chain *chain, int at, uint64_t rounds) {
    if (at == chain->length) return leaf(rounds);
    return call(chain->functions[at], chain, at + 1, rounds);
}

NOINLINE void run(const chain *chain, uint64_t rounds) {
    go_on(chain, 0, rounds);
    KEEP_FRAME();
}

#define PARAMETERS "(chain const*, int, unsigned long)"

const char *const names[] = {
    "(anonymous namespace)::Derived::visit" PARAMETERS " const",
    "unsigned long (anonymous namespace)::fold<unsigned long, 7>(chain const*, int, unsigned long)",
    "unsigned long (anonymous namespace)::fold<unsigned long, 900>(chain const*, int, unsigned long)",
    "(anonymous namespace)::guarded" PARAMETERS,
    "(anonymous namespace)::catching" PARAMETERS,
    "(anonymous namespace)::Counter::operator()" PARAMETERS,
    "(anonymous namespace)::lambda" PARAMETERS " > (anonymous namespace)::lambda" PARAMETERS
    "::{lambda(unsigned long)#1}::operator()(unsigned long) const",
    "(anonymous namespace)::floating(chain const*, int, double)",
};

}  // namespace

int main(int argc, char **argv) {
    chain chains[CHAINS];
    uint64_t leaf_ns = 0;
    workload_prepare(argc, argv);
    seeded_make(chains, argc > 2 ? strtoull(argv[2], nullptr, 10) : 1);
    seeded_print(chains, names, "(anonymous namespace)::leaf(unsigned long)");
    workload_ready();
    for (int i = 0; workload_goes_on(); i++) {
        uint64_t start = thread_cpu_ns();
        run(&chains[i % CHAINS], rounds_of_ms(20));
        leaf_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"leaf\": %lu}}\n", leaf_ns);
    return 0;
}
