/* At SIGUSR1, runs the program in the second argument as often as the third says, one after the
 * other, and says "done". */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "workload.h"

static volatile sig_atomic_t must_run;

static void on_run(int signal) {
    (void)signal;
    must_run = 1;
}

NOINLINE int run_once(const char *program) {
    int status;
    pid_t pid = vfork();
    if (pid == 0) {
        execl(program, program, (char *)NULL);
        _exit(127);
    }
    while (waitpid(pid, &status, 0) < 0) {}
    return status == 0;
}

int main(int argc, char **argv) {
    uint64_t run_ns = 0;
    long count = argc > 3 ? atol(argv[3]) : 1;
    signal(SIGUSR1, on_run);
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        if (must_run) {
            must_run = 0;
            for (long i = 0; i < count; i++)
                if (!run_once(argv[2])) return 1;
            puts("done");
            fflush(stdout);
        }
        run_ns += thread_cpu_ns() - start;
        usleep(1000);
    }
    printf("{\"cpu_ns\": {\"run_once\": %lu}}\n", run_ns);
    return 0;
}
