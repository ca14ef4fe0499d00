/* Calls getppid and an unknown system call as often as it says, in a process for each CPU. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1000;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (long cpu = 0; cpu < 2 * cpus; cpu++) {
        if (fork() == 0) {
            for (long i = 0; i < count; i++) {
                syscall(SYS_getppid);
                if (i % 10 == 0) syscall(SYS_close, -1);
            }
            _exit(0);
        }
    }
    while (wait(NULL) > 0) {
    }
    printf("%ld\n", 2 * cpus * count);
    return 0;
}
