// Names that must be demangled: 60 % in a member of a class template, 40 % in a lambda.
#include <functional>

#include "../c/workload.h"

namespace geometry {

template <typename Number, int Size>
class Grid {
public:
    NOINLINE void relax(uint64_t rounds) { burn(rounds); }
};

NOINLINE void relax_all(Grid<double, 4> &grid, uint64_t rounds) {
    grid.relax(rounds);
    KEEP_FRAME();
}

namespace {
NOINLINE void integrate(uint64_t rounds) {
    auto step = [](uint64_t count) NOINLINE { burn(count); };
    step(rounds);
    KEEP_FRAME();
}
}  // namespace

struct Clocks {
    uint64_t relax = 0, integrate = 0;
};

NOINLINE Clocks run() {
    Grid<double, 4> grid;
    Clocks clocks;
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        relax_all(grid, rounds_of_ms(60));
        uint64_t middle = thread_cpu_ns();
        integrate(rounds_of_ms(40));
        clocks.relax += middle - start;
        clocks.integrate += thread_cpu_ns() - middle;
    }
    return clocks;
}

}  // namespace geometry

int main(int argc, char **argv) {
    workload_prepare(argc, argv);
    workload_ready();
    geometry::Clocks clocks = geometry::run();
    printf("{\"cpu_ns\": {\"relax\": %lu, \"integrate\": %lu}}\n", clocks.relax, clocks.integrate);
    return 0;
}
