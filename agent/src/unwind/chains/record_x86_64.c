/* Runs a program instruction by instruction, and prints what is true of its stack.
 *
 *     record_x86_64 EVERY PROGRAM [ARGUMENT...]
 *
 * It starts where the program traps (`int3`), so as not to watch the dynamic linker at its start. One line for
 * every EVERY-th instruction that is reached for the first time: rip, rsp, rbp, rdi, rbx, r10 and r11; the
 * words of the stack from rsp - 128 on; the addresses that the functions which are active will return to,
 * innermost first, for which each call was watched. Before them the executable
 * mappings that are new, as `/proc/PID/maps` has them, behind an `m`. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_CALLS 4096
#define MAX_WORDS 8192
#define BITS (1 << 22)

static pid_t child;
/* Where each return address lies, and what it is. */
static uint64_t slots[MAX_CALLS], callers[MAX_CALLS];
static int depth;
static unsigned char seen[BITS];

static uint64_t peek(uint64_t addr) {
    uint64_t word = 0;
    struct iovec here = {&word, 8}, there = {(void *)addr, 8};
    if (process_vm_readv(child, &here, 1, &there, 1, 0) != 8) return 0;
    return word;
}

static void print_mappings(void) {
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/maps", child);
    FILE *maps = fopen(path, "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "r-xp")) printf("m %s", line);
    if (maps) fclose(maps);
}

static void print_step(const struct user_regs_struct *regs) {
    static uint64_t words[MAX_WORDS];
    uint64_t start = regs->rsp - 128 & ~7ull;
    uint64_t end = (depth ? slots[0] : regs->rsp) + 32;
    size_t bytes = end - start < sizeof words ? end - start : sizeof words;
    struct iovec here = {words, bytes}, there = {(void *)start, bytes};
    ssize_t got = process_vm_readv(child, &here, 1, &there, 1, 0);
    if (got < 0) got = 0;
    printf("%llx %llx %llx %llx %llx %llx %llx;%llx", regs->rip, regs->rsp, regs->rbp, regs->rdi,
           regs->rbx, regs->r10, regs->r11, (unsigned long long)start);
    for (int i = 0; i < got / 8; i++) printf(" %lx", words[i]);
    printf(";");
    for (int i = depth - 1; i >= 0; i--) printf("%lx%s", callers[i], i ? " " : "");
    printf("\n");
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    unsigned every = atoi(argv[1]), count = 0;
    child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        personality(ADDR_NO_RANDOMIZE);
        execv(argv[2], argv + 2);
        _exit(127);
    }
    int status;
    uint64_t mapped = 0;
    struct user_regs_struct before = {0}, regs;
    /* The first stop is that of exec, the second the trap. */
    if (waitpid(child, &status, 0) != child || ptrace(PTRACE_CONT, child, 0, 0)) return 1;
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        if (ptrace(PTRACE_GETREGS, child, 0, &regs)) return 1;
        while (depth && slots[depth - 1] < regs.rsp) depth--;
        if (before.rsp - regs.rsp == 8) {
            /* A call is the only one that pushes the address behind itself. */
            uint64_t pushed = peek(regs.rsp);
            uint64_t length = pushed - before.rip;
            if (length >= 2 && length <= 8 && regs.rip - before.rip > 8 && depth < MAX_CALLS) {
                slots[depth] = regs.rsp;
                callers[depth++] = pushed;
            }
        }
        unsigned char *byte = &seen[(regs.rip ^ regs.rip >> 20) % BITS];
        if (!*byte) {
            *byte = 1;
            if (regs.rip >> 12 != mapped) {
                print_mappings();
                mapped = regs.rip >> 12;
            }
            if (count++ % every == 0) print_step(&regs);
        }
        before = regs;
        int signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        if (ptrace(PTRACE_SINGLESTEP, child, 0, signal)) return 1;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
