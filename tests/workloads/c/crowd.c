/* Starts as many processes as it is told, which do nothing until it ends. */
#include "workload.h"

#include <sys/prctl.h>

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            pause();
            _exit(0);
        }
    }
    workload_ready();
    pause();
    return 0;
}
