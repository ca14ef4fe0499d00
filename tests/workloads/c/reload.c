/* Loads one library after the other, works in it for 100 ms, and unloads it: the next one takes its
 * place. The libraries follow the first two arguments; all are made from plugin.c. */
#include <dlfcn.h>

#include "workload.h"

typedef void entry_function(uint64_t rounds);

NOINLINE void visit(const char *path, uint64_t rounds, uint64_t *place) {
    void *library = dlopen(path, RTLD_NOW);
    entry_function *entry = library ? (entry_function *)dlsym(library, "plugin_entry") : NULL;
    if (!entry) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    entry(rounds);
    *place = (uint64_t)entry;
    dlclose(library);
    KEEP_FRAME();
}

int main(int argc, char **argv) {
    uint64_t work_ns = 0, visits = 0, places[2] = {0, 0}, again = 0;
    workload_prepare(argc, argv);
    workload_ready();
    while (workload_goes_on()) {
        uint64_t start = thread_cpu_ns();
        visit(argv[2 + visits % (argc - 2)], rounds_of_ms(100), &places[visits % 2]);
        work_ns += thread_cpu_ns() - start;
        again += places[0] >> 12 == places[1] >> 12;
        visits++;
    }
    printf("{\"cpu_ns\": {\"plugin_work\": %lu}, \"visits\": %lu, \"same_place\": %lu}\n", work_ns, visits, again);
    return 0;
}
