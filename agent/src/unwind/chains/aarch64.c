/* Frames of every kind that compilers make on arm64, without a C library. How this becomes `aarch64.elf`, and
 * what runs in it `aarch64.steps`, is in `record_aarch64.py`. */

typedef unsigned long word;

static word system_call(word number, word a, word b, word c, word d) {
    register word x8 __asm__("x8") = number;
    register word x0 __asm__("x0") = a;
    register word x1 __asm__("x1") = b;
    register word x2 __asm__("x2") = c;
    register word x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

volatile word sum;

__attribute__((noinline)) static word leaf(word x) { return x * 3 + 1; }

/* A leaf with a frame: the return address stays in its register. */
__attribute__((noinline)) static word leaf_with_frame(word x) {
    volatile word local[6];
    for (int i = 0; i < 2; i++) local[i] = x + i;
    return local[0] + local[1];
}

__attribute__((noinline)) static word usual(word x) { return leaf(x) + leaf_with_frame(x + 1); }

__attribute__((noinline)) static word many_saved(word a, word b, word c, word d) {
    word e = usual(a), f = usual(b);
    return usual(a + b) + usual(c + d) * e + f + a + b + c + d;
}

__attribute__((noinline)) static word large(word x) {
    volatile char buffer[20000];
    buffer[x] = (char)x;
    return usual(buffer[x]);
}

__attribute__((noinline)) static word variable(word x) {
    volatile char *buffer = __builtin_alloca(x * 16);
    buffer[0] = (char)x;
    return usual(buffer[0]) + leaf(x);
}

__attribute__((noinline, optimize("omit-frame-pointer"))) static word without_record(word x) {
    return usual(x) + leaf(x) + x;
}

__attribute__((noinline, optimize("omit-frame-pointer"))) static word without_record_many(word a, word b, word c) {
    word d = without_record(a), e = usual(b);
    return a + b * c + d * e + leaf(c);
}

__attribute__((noinline, target("branch-protection=pac-ret+leaf"))) static word signed_leaf(word x) {
    return x ^ 5;
}

__attribute__((noinline, target("branch-protection=pac-ret"))) static word signed_caller(word x) {
    return signed_leaf(x) + usual(x) + 1;
}

__attribute__((noinline)) static word tail(word x) { return many_saved(x, 2, 3, 4); }

__attribute__((noinline)) static word descend(word depth) {
    return depth == 0 ? usual(1) : descend(depth - 1) + 1;
}

/* As the kernel's vDSO has it: nothing tells of its frame. */
__asm__(".pushsection .text\n nop\nrestore:\n mov x8, #139\n svc #0\n.popsection");
extern char restore[];

static void on_signal(int number) { sum += signed_caller(number); }

struct action {
    void (*handler)(int);
    word flags;
    char *restorer;
    word mask;
};

__attribute__((noinline)) static word interrupted(word x) {
    word pid = system_call(172, 0, 0, 0, 0);
    system_call(129, pid, 10, 0, 0); /* kill */
    return x + 1;
}

__attribute__((noinline)) static int run(void) {
    struct action action = {on_signal, 0x04000000 /* SA_RESTORER */, restore, 0};
    system_call(134, 10, (word)&action, 0, 8); /* rt_sigaction */
    sum += many_saved(1, 2, 3, 4) + large(5) + variable(6) + without_record_many(7, 8, 9);
    sum += signed_caller(10) + tail(11) + descend(5) + interrupted(12);
    return 0;
}

void start_in_c(void) {
    run();
    system_call(94, 0, 0, 0, 0); /* exit_group */
    __builtin_unreachable();
}

__asm__(
    ".pushsection .text\n.global _start\n_start:\n mov x29, #0\n mov x30, #0\n bl start_in_c\n.popsection");
