/* Leaves its CPU again and again, each time for another reason, and says how often. */
#define _GNU_SOURCE
#include "workload.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/futex.h>
#include <sys/wait.h>

#define TIMES 100
static const struct timespec two_ms = {0, 2 * MS};

static NOINLINE void sleeps(void) {
    nanosleep(&two_ms, NULL);
    KEEP_FRAME();
}

static NOINLINE void polls(void) {
    poll(NULL, 0, 2);
    KEEP_FRAME();
}

static void waits_for_lock(void) {
    static uint32_t word = 1;
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &two_ms, NULL, 0);
}

static void waits_for_signal(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigtimedwait(&set, NULL, &two_ms);
}

static int sockets[2];

static void receives(void) {
    char byte;
    if (recv(sockets[0], &byte, 1, 0) > 0) exit(1);
}

static int timer_pipe[2];

static void *writes_later(void *nothing) {
    (void)nothing;
    for (int i = 0; i < TIMES; i++) {
        nanosleep(&two_ms, NULL);
        if (write(timer_pipe[1], "x", 1) != 1) exit(1);
    }
    return NULL;
}

static void reads_pipe(void) {
    char byte;
    if (read(timer_pipe[0], &byte, 1) != 1) exit(1);
}

static void waits_for_child(void) {
    pid_t child = fork();
    if (child == 0) {
        nanosleep(&two_ms, NULL);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static int file;
static void *buffer;

static void reads_disk(void) {
    static off_t at;
    if (pread(file, buffer, 4096, at) != 4096) exit(1);
    at += 4096;
}

static NOINLINE void repeat(const char *name, void (*once)(void)) {
    for (int i = 0; i < TIMES; i++) once();
    printf("%s %d\n", name, TIMES);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    socketpair(AF_UNIX, SOCK_STREAM, 0, sockets);
    struct timeval limit = {0, 2000};
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (pipe(timer_pipe)) return 1;
    buffer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(buffer, 1, 4096);
    file = open(argv[1], O_RDWR | O_CREAT | O_DIRECT | O_SYNC, 0600);
    for (int i = 0; i < TIMES; i++)
        if (pwrite(file, buffer, 4096, i * 4096) != 4096) return 1;
    workload_ready();
    /* Those who count begin now, if they do not count from the start. */
    if (argc < 3) raise(SIGSTOP);
    repeat("sleep", sleeps);
    repeat("poll", polls);
    repeat("lock", waits_for_lock);
    repeat("signal", waits_for_signal);
    repeat("network", receives);
    pthread_t writer;
    pthread_create(&writer, NULL, writes_later, NULL);
    repeat("read_write", reads_pipe);
    pthread_join(writer, NULL);
    repeat("child", waits_for_child);
    repeat("disk", reads_disk);
    puts("done");
    fflush(stdout);
    if (argc < 3) raise(SIGSTOP);
    return 0;
}
