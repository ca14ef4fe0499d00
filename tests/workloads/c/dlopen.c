/* Works in before_loading; at SIGUSR1 it loads the library in its second argument, says "loaded",
 * and works in the library until SIGUSR2, when it closes it, says "closed", and works as before. */
#include <dlfcn.h>

#include "workload.h"

static volatile sig_atomic_t must_load, must_close;
static void *library;

static void on_load(int signal) {
    if (signal == SIGUSR1)
        must_load = 1;
    else
        must_close = 1;
}

NOINLINE void before_loading(uint64_t rounds) { burn(rounds); }

typedef void entry_function(uint64_t rounds);

static entry_function *load(const char *path) {
    library = dlopen(path, RTLD_NOW);
    entry_function *entry = library ? (entry_function *)dlsym(library, "plugin_entry") : NULL;
    if (!entry) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    puts("loaded");
    fflush(stdout);
    return entry;
}

static entry_function *close_library(void) {
    dlclose(library);
    puts("closed");
    fflush(stdout);
    must_load = must_close = 0;
    return NULL;
}

int main(int argc, char **argv) {
    uint64_t before_ns = 0, plugin_ns = 0;
    entry_function *entry = NULL;
    signal(SIGUSR1, on_load);
    signal(SIGUSR2, on_load);
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        if (entry)
            entry(rounds_of_ms(20));
        else
            before_loading(rounds_of_ms(20));
        *(entry ? &plugin_ns : &before_ns) += thread_cpu_ns() - start;
        if (must_load && !entry) entry = load(argv[2]);
        if (must_close && entry) entry = close_library();
    }
    printf("{\"cpu_ns\": {\"before_loading\": %lu, \"plugin_work\": %lu}}\n", before_ns, plugin_ns);
    return 0;
}
