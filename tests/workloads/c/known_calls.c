/* Makes system calls in every way there is, as often as it says, and ends with status 3: from threads,
 * children and vfork's child, with errors, interrupted by signals, and a program that is replaced by a
 * thread which is not the main one. With an argument it only does what the last program of that is. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, CALLS = 1000, CHILDREN = 3 };

static pthread_barrier_t all_started;

static void *call_parent(void *unused) {
    /* A thread that ends early would leave its stack to a later one. */
    pthread_barrier_wait(&all_started);
    for (int i = 0; i < CALLS; i++) syscall(SYS_getppid);
    return unused;
}

static void on_alarm(int signal) { (void)signal; }

/* A sleep that a signal cuts off, and one that is taken up again. */
static void be_interrupted(void) {
    struct itimerval soon = {{0, 0}, {0, 20000}};
    struct timespec sleep = {0, 60000000};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    nanosleep(&sleep, NULL);
    int ends[2];
    char byte = 0;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, NULL);
    if (pipe(ends) != 0) return;
    pid_t child = fork();
    if (child == 0) {
        struct timespec later = {0, 80000000};
        nanosleep(&later, NULL);
        if (write(ends[1], &byte, 1) != 1) _exit(1);
        _exit(0);
    }
    setitimer(ITIMER_REAL, &soon, NULL);
    if (read(ends[0], &byte, 1) != 1) _exit(1);
    waitpid(child, NULL, 0);
}

static void *replace(void *program) {
    /* Until the main thread has nothing left to do but wait. */
    struct timespec later = {0, 20000000};
    nanosleep(&later, NULL);
    execl(program, program, "last", (char *)NULL);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1) {
        for (int i = 0; i < 5; i++) syscall(SYS_getpgid, 0);
        return 3;
    }
    for (int i = 0; i < 100; i++) open("/does/not/exist", O_RDONLY);
    for (int i = 0; i < 50; i++) close(-1);
    for (int i = 0; i < 20; i++) syscall(100000);
    pthread_t threads[THREADS];
    pthread_barrier_init(&all_started, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, call_parent, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        if (child == 0) {
            for (int j = 0; j < 7; j++) syscall(SYS_getuid);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    pid_t child = vfork();
    if (child == 0) {
        execl("/does/not/exist", "true", (char *)NULL);
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    waitpid(child, NULL, 0);
    be_interrupted();
    pthread_create(&threads[0], NULL, replace, argv[0]);
    pthread_join(threads[0], NULL);
    return 1;
}
