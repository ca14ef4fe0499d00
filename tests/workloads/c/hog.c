/* Wants more memory than its cgroup may have. */
#include "workload.h"

int main(void) {
    workload_ready();
    raise(SIGSTOP);
    for (int i = 0; i < 256; i++) {
        char *block = malloc(1 << 20);
        if (!block) return 1;
        memset(block, i + 1, 1 << 20);
    }
    return 0;
}
