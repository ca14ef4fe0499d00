/* Starts one process after the other, each of which runs this program anew for 100 ms of CPU time
 * in brief_work. The time is what the kernel tells the parent about its dead children. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "workload.h"

NOINLINE void brief_work(uint64_t budget_ns) {
    while (thread_cpu_ns() < budget_ns) burn(100000);
}

NOINLINE void brief(void) {
    brief_work(100 * MS);
    KEEP_FRAME();
}

static uint64_t ns(struct timeval t) { return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_usec * 1000; }

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        brief();
        return 0;
    }
    uint64_t work_ns = 0, children = 0;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", argv[0], "child", (char *)NULL);
            _exit(127);
        }
        int status;
        struct rusage usage;
        while (wait4(child, &status, 0, &usage) < 0) {}
        if (status != 0) return 1;
        work_ns += ns(usage.ru_utime) + ns(usage.ru_stime);
        children++;
    }
    printf("{\"cpu_ns\": {\"brief_work\": %lu}, \"children\": %lu}\n", work_ns, children);
    return 0;
}
