/* At SIGUSR1, maps each file that is named after the first argument as code, says "mapped", and from
 * then on runs those that have some: at their second page, where a function counts its argument down.
 * In place of a file, "anonymous" is such a function in memory of no file, "memfd:FILE" a copy of a
 * file in memory, and "many:N:FILE" maps one page of a file N times. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "workload.h"

enum { PAGE = 4096, MOST = 256 };

typedef void counting(uint64_t rounds);

#if defined(__x86_64__)
/* test rdi, rdi; je end; again: dec rdi; jne again; end: ret */
static const unsigned char code[] = {0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3};
#else
/* cbz x0, end; again: subs x0, x0, #1; b.ne again; end: ret */
static const uint32_t code[] = {0xb4000060, 0xf1000400, 0x54ffffe1, 0xd65f03c0};
#endif

static volatile sig_atomic_t must_map;
static counting *functions[MOST];
static int function_count;

static void take(void *start, size_t bytes) {
    char *second = (char *)start + PAGE;
    if (function_count < MOST && bytes >= PAGE + sizeof code && memcmp(second, code, sizeof code) == 0)
        functions[function_count++] = (counting *)(void *)second;
}

static int map_file(int file) {
    struct stat info;
    if (fstat(file, &info) != 0) return 0;
    /* No more than the code: the rest of the file may be cut off. */
    size_t bytes = info.st_size < 2 * PAGE ? (size_t)info.st_size : 2 * PAGE;
    void *start = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (start == MAP_FAILED) return 0;
    take(start, bytes);
    return 1;
}

static int map_anonymous(void) {
    char *start = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return 0;
    memcpy(start + PAGE, code, sizeof code);
    __builtin___clear_cache(start, start + 2 * PAGE);
    take(start, 2 * PAGE);
    return 1;
}

static int map_copy(const char *path) {
    char buffer[65536];
    ssize_t got;
    int from = open(path, O_RDONLY), to = memfd_create("hidden", 0);
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, (size_t)got) != got) return 0;
    return map_file(to);
}

/* Maps are side by side, so that each page stays a mapping of its own: no two follow one another in
 * the file. */
static int map_many(const char *text) {
    char *path;
    long count = strtol(text, &path, 10);
    int file = open(path + 1, O_RDONLY);
    for (long i = 0; i < count; i++)
        if (mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, PAGE) == MAP_FAILED) return 0;
    return 1;
}

static int map(const char *what) {
    if (strcmp(what, "anonymous") == 0) return map_anonymous();
    if (strncmp(what, "memfd:", 6) == 0) return map_copy(what + 6);
    if (strncmp(what, "many:", 5) == 0) return map_many(what + 5);
    int file = open(what, O_RDONLY | O_NONBLOCK);
    int is_mapped = file >= 0 && map_file(file);
    if (file >= 0) close(file);
    return is_mapped;
}

static void on_map(int signal) {
    (void)signal;
    must_map = 1;
}

static void map_all(int count, char **what) {
    int failed = 0;
    for (int i = 0; i < count; i++) {
        if (map(what[i])) continue;
        fprintf(stderr, "cannot map %s\n", what[i]);
        failed = 1;
    }
    puts(failed ? "failed" : "mapped");
    fflush(stdout);
}

NOINLINE void visit(counting *function, uint64_t rounds) {
    function(rounds);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    uint64_t visit_ns = 0;
    signal(SIGUSR1, on_map);
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        if (must_map) {
            must_map = 0;
            map_all(argc - 2, argv + 2);
        }
        uint64_t start = thread_cpu_ns();
        for (int i = 0; i < function_count; i++) visit(functions[i], rounds_of_ms(2));
        visit_ns += thread_cpu_ns() - start;
        if (function_count == 0) usleep(1000);
    }
    printf("{\"cpu_ns\": {\"visit\": %lu}}\n", visit_ns);
    return 0;
}
