/* Two threads that hand a byte to each other through pipes, on one CPU: prints the nanoseconds from one
 * switch between them to the next. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int there[2], back[2];
static long count;

static void *answer(void *nothing) {
    char byte;
    for (long i = 0; i < count; i++)
        if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1) exit(1);
    return nothing;
}

int main(int argc, char **argv) {
    struct timespec start, end;
    pthread_t thread;
    char byte = 0;
    count = argc > 1 ? atol(argv[1]) : 100000;
    if (pipe(there) || pipe(back) || pthread_create(&thread, NULL, answer, NULL)) return 1;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < count; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
    printf("%.2f\n", ns / count / 2);
    return 0;
}
