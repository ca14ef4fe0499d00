/* A program whose library functions are bound when they are first called, from stacks of several depths. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b) { return strcmp(a, b); }

static __attribute__((noinline)) double descend(int depth, char *text) {
    if (depth == 0) return strtod(text, NULL);
    char copy[64];
    snprintf(copy, sizeof copy, "%d%s", depth, text);
    return descend(depth - 1, copy) + depth;
}

static __attribute__((noinline)) size_t variable(size_t size) {
    char *space = __builtin_alloca(size);
    memset(space, 'x', size);
    space[size - 1] = 0;
    return strlen(space);
}

/* Touches each page of its frame before it goes on. */
static __attribute__((noinline)) int large(int at) {
    volatile char space[40000];
    space[at] = 1;
    return space[at];
}

/* Knows its arguments by a register until the stack is aligned. */
static __attribute__((noinline)) double aligned(int size, double sum) {
    _Alignas(64) volatile double parts[8] = {sum};
    volatile char *space = __builtin_alloca(size);
    space[size - 1] = 1;
    return parts[0] + space[size - 1];
}

int main(void) {
    __asm__ volatile("int3");
    char words[4][8] = {"delta", "alpha", "gamma", "beta"};
    qsort(words, 4, sizeof words[0], compare);
    double sum = descend(5, ".5") + cos(1.5) + (double)variable(333);
    sum += large(20000) + aligned(100, sum);
    char *heap = malloc(100000);
    heap = realloc(heap, 300000);
    time_t now = 1;
    struct tm parts;
    gmtime_r(&now, &parts);
    strftime(heap, 100, "%c", &parts);
    if (fork() == 0) _exit(0);
    wait(NULL);
    FILE *null = fopen("/dev/null", "w");
    fprintf(null, "%s %f %s\n", words[0], sum, heap);
    fclose(null);
    free(heap);
    return 0;
}
