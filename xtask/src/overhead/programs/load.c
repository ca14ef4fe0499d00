/* What the profilers are measured on. Usage: overhead-load MODE CPU [N]
 *
 *   stack CPU N   burns in a function N frames deep, counted from main
 *   busy  CPU N   the same at ordinary priority
 *   read  CPU     reads /dev/zero: nearly all of the time is inside the kernel
 *   idle  CPU     sleeps
 *   map   CPU FILE  maps the file as a program and sleeps
 *   brief CPU N   for N seconds, starts one process after the other that burns 100 ms; then prints
 *                 the CPU time in nanoseconds of all of them and of its own
 *
 * It stays on one CPU (-1: anywhere), and dies with the process that started it. stack, idle and
 * brief have the highest ordinary priority, so that they have their CPU for themselves: a target
 * that shares it would be hit by the sampling clock more often or less often than its CPU time
 * says. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Neither inlined nor cloned: the stack is as deep as the source says. */
#define NOINLINE __attribute__((noipa))

/* A function that calls nothing gets no frame pointer from GCC, whatever its options, and then its
 * caller is missing from the stack. Asking for the frame brings it back. */
#ifdef WITH_FRAME_POINTERS
#define HAVE_FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))
#else
#define HAVE_FRAME() ((void)0)
#endif

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static NOINLINE void burn(void) {
    HAVE_FRAME();
    for (uint64_t x = 1;;) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        __asm__ volatile("" : "+r"(x));
    }
}

static NOINLINE void descend(long left) {
    if (left > 1)
        descend(left - 1);
    else
        burn();
    __asm__ volatile("" ::: "memory"); /* Keeps the call from becoming a jump. */
}

static char buffer[64 << 10];

/* The system call itself: C libraries have no frame pointers, and would cost us the caller. */
static NOINLINE void read_zeros(int file) {
    HAVE_FRAME();
    for (;;) {
#ifdef __x86_64__
        long result;
        __asm__ volatile("syscall"
                         : "=a"(result)
                         : "0"(0L), "D"((long)file), "S"(buffer), "d"(sizeof buffer)
                         : "rcx", "r11", "memory");
#else
        long result = read(file, buffer, sizeof buffer);
#endif
        if (result < 0) abort();
    }
}

static NOINLINE void brief_work(void) {
    HAVE_FRAME();
    while (clock_ns(CLOCK_PROCESS_CPUTIME_ID) < 100000000ull) {
        for (volatile int i = 0; i < 100000; i++) {}
    }
}

static uint64_t used_ns(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000ull +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000ull;
}

static int brief(char *program, double seconds) {
    uint64_t end_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(seconds * 1e9);
    while (clock_ns(CLOCK_MONOTONIC) < end_ns) {
        pid_t child = fork();
        if (child == 0) {
            /* Starts anew, as real short-lived programs do: the mappings are new too. */
            execl(program, program, "brief-child", "-1", (char *)NULL);
            _exit(127);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) return 1;
    }
    printf("%lu\n", (unsigned long)(used_ns(RUSAGE_SELF) + used_ns(RUSAGE_CHILDREN)));
    return 0;
}

/* As the loader does with a program's code. */
static int map_file(const char *path) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0) return 0;
    size_t bytes = (size_t)status.st_size;
    return mmap(NULL, bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED;
}

static void stay_on(int cpu) {
    cpu_set_t set;
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) exit(3);
}

/* The kernel may group tasks by session before it looks at their own priority. */
static void go_first(void) {
    setpriority(PRIO_PROCESS, 0, -20);
    setsid();
    int file = open("/proc/self/autogroup", O_WRONLY);
    if (file < 0) return; /* It does not group them. */
    if (write(file, "-20", 3) != 3) exit(3);
    close(file);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *mode = argv[1];
    double number = argc > 3 ? atof(argv[3]) : 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    stay_on(atoi(argv[2]));
    if (strcmp(mode, "stack") == 0 || strcmp(mode, "brief") == 0 || strcmp(mode, "idle") == 0) go_first();
    if (strcmp(mode, "brief-child") == 0) {
        brief_work();
        return 0;
    }
    if (strcmp(mode, "brief") == 0) return brief(argv[0], number);
    if (strcmp(mode, "map") == 0 && !map_file(argv[3])) return 1;
    puts("ready");
    fflush(stdout);
    if (strcmp(mode, "stack") == 0 || strcmp(mode, "busy") == 0)
        descend((long)number - 2); /* main and burn are two of them. */
    else if (strcmp(mode, "read") == 0)
        read_zeros(open("/dev/zero", O_RDONLY));
    else if (strcmp(mode, "idle") == 0 || strcmp(mode, "map") == 0)
        pause();
    return 2;
}
