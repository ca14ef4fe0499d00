/* Calls getppid as often as the argument says, and prints the nanoseconds that one call took. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1000000;
    struct timespec start, end;
    for (long i = 0; i < count / 10; i++) syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < count; i++) syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
    printf("%.2f\n", ns / count);
    return 0;
}
