// A std::thread → first → Grid<float, 4>::second → Worker::third (virtual) → leaf; main waits. Each
// calls the next one again and again.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>

#define NOINLINE __attribute__((noipa))

namespace known {

NOINLINE uint64_t leaf(uint64_t x) {
    for (int i = 0; i < 1000; i++) x = x * 6364136223846793005ull + 1442695040888963407ull;
    return x;
}

struct Task {
    virtual ~Task() = default;
    virtual uint64_t third(uint64_t x) = 0;
};

struct Worker : Task {
    NOINLINE uint64_t third(uint64_t x) override {
        for (int i = 0; i < 3; i++) x ^= leaf(x);
        return x;
    }
};

template <typename Number, int Size>
class Grid {
public:
    explicit Grid(std::unique_ptr<Task> task) : task(std::move(task)) {}
    NOINLINE uint64_t second(uint64_t x) {
        for (int i = 0; i < 3; i++) {
            cells[x % Size] = static_cast<Number>(task->third(x));
            x += static_cast<uint64_t>(cells[i]) + 1;
        }
        return x;
    }

private:
    std::unique_ptr<Task> task;
    Number cells[Size] = {};
};

NOINLINE uint64_t first(uint64_t x) {
    Grid<float, 4> grid(std::make_unique<Worker>());
    for (int i = 0; i < 3; i++) x += grid.second(x + static_cast<uint64_t>(i));
    return x;
}

}  // namespace known

int main() {
    std::thread thread([] {
        std::puts("ready");
        std::fflush(stdout);
        for (uint64_t x = 1;;) x = known::first(x);
    });
    thread.join();
}
