/* Works in interrupted, which a timer interrupts: half of the time goes to handler_work. The second
 * argument says how: "plain" on the stack that was interrupted; "alternate" on a stack for signals;
 * "nested" with a second signal, which interrupts the handler. */
#include <sys/time.h>

#include "workload.h"

static uint64_t handler_ns;
static int is_nested;

NOINLINE void handler_work(uint64_t rounds) { burn(rounds); }
NOINLINE void second_work(uint64_t rounds) { burn(rounds); }
NOINLINE void interrupted(uint64_t rounds) { burn(rounds); }

NOINLINE void on_second(int signal) {
    (void)signal;
    second_work(rounds_of_ms(2));
    KEEP_FRAME();
}

NOINLINE void on_tick(int signal) {
    uint64_t start = thread_cpu_ns();
    (void)signal;
    handler_work(rounds_of_ms(is_nested ? 2 : 4));
    if (is_nested) raise(SIGUSR2);
    handler_ns += thread_cpu_ns() - start;
}

NOINLINE void call_interrupted(uint64_t rounds) {
    interrupted(rounds);
    KEEP_FRAME();
}

static void handle(int signal, void (*handler)(int), int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags | SA_RESTART;
    sigaction(signal, &action, NULL);
}

int main(int argc, char **argv) {
    uint64_t work_ns = 0;
    const char *how = argc > 2 ? argv[2] : "plain";
    int flags = 0;
    workload_prepare(argc, argv);
    if (strcmp(how, "alternate") == 0) {
        stack_t stack = {.ss_sp = malloc(1 << 18), .ss_size = 1 << 18};
        if (sigaltstack(&stack, NULL) != 0) return 1;
        flags = SA_ONSTACK;
    }
    is_nested = strcmp(how, "nested") == 0;
    handle(SIGPROF, on_tick, flags);
    handle(SIGUSR2, on_second, flags);
    struct itimerval every = {{0, 8000}, {0, 8000}};
    setitimer(ITIMER_PROF, &every, NULL);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        call_interrupted(rounds_of_ms(20));
        work_ns += thread_cpu_ns() - start;
    }
    printf("{\"cpu_ns\": {\"interrupted\": %lu, \"handler_work\": %lu}}\n", work_ns - handler_ns, handler_ns);
    return 0;
}
