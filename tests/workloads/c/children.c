/* Children of every kind, one after the other, each of which works in child_work for 100 ms. The
 * second argument says how they are made: "fork"; "vfork", where the child works in its parent's
 * memory and on its stack; "clone", on a stack of its own; "spawn", "vfork-exec" and "exec" run this
 * program anew, "exec" in the same process. */
#define _GNU_SOURCE
#include <sched.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "workload.h"

extern char **environ;

NOINLINE void child_work(uint64_t budget_ns) {
    uint64_t end = thread_cpu_ns() + budget_ns;
    while (thread_cpu_ns() < end) burn(100000);
}

NOINLINE void child(void) {
    child_work(100 * MS);
    KEEP_FRAME();
}

NOINLINE pid_t by_fork(void) {
    pid_t pid = fork();
    if (pid == 0) {
        child();
        _exit(0);
    }
    return pid;
}

NOINLINE pid_t by_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        child();
        _exit(0);
    }
    return pid;
}

NOINLINE int clone_entry(void *unused) {
    (void)unused;
    child();
    return 0;
}

NOINLINE pid_t by_clone(void) {
    static char *stack;
    if (!stack) stack = malloc(1 << 18);
    pid_t pid = clone(clone_entry, stack + (1 << 18), SIGCHLD, NULL);
    KEEP_FRAME();
    return pid;
}

NOINLINE pid_t by_spawn(char **argv) {
    pid_t pid;
    char *arguments[] = {argv[0], "child", NULL};
    return posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ) == 0 ? pid : -1;
}

NOINLINE pid_t by_vfork_exec(char **argv) {
    pid_t pid = vfork();
    if (pid == 0) {
        execl("/proc/self/exe", argv[0], "child", (char *)NULL);
        _exit(127);
    }
    return pid;
}

static uint64_t used_ns(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return ((uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec) * 1000000000ull +
           ((uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec) * 1000;
}

/* Runs this program anew in the same process until SIGTERM, which waits while that happens. Each
 * says that it is ready. */
NOINLINE int generations(char **argv) {
    sigset_t terminate, pending;
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    sigprocmask(SIG_BLOCK, &terminate, NULL);
    workload_ready();
    child();
    sigpending(&pending);
    if (sigismember(&pending, SIGTERM)) {
        printf("{\"cpu_ns\": {\"child_work\": %lu}}\n", used_ns(RUSAGE_SELF));
        return 0;
    }
    execl("/proc/self/exe", argv[0], argv[1], argv[2], (char *)NULL);
    return 1;
}

int main(int argc, char **argv) {
    const char *how = argc > 2 ? argv[2] : "fork";
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        child();
        return 0;
    }
    workload_prepare(argc, argv);
    if (strcmp(how, "exec") == 0) {
        int status = generations(argv);
        KEEP_FRAME();
        return status;
    }
    workload_ready();
    while (workload_goes_on()) {
        pid_t pid = strcmp(how, "vfork") == 0        ? by_vfork()
                    : strcmp(how, "clone") == 0      ? by_clone()
                    : strcmp(how, "spawn") == 0      ? by_spawn(argv)
                    : strcmp(how, "vfork-exec") == 0 ? by_vfork_exec(argv)
                                                     : by_fork();
        int status;
        if (pid < 0) return 1;
        while (waitpid(pid, &status, 0) < 0) {}
        if (status != 0) return 1;
    }
    printf("{\"cpu_ns\": {\"child_work\": %lu}}\n", used_ns(RUSAGE_CHILDREN));
    return 0;
}
