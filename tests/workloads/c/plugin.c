/* A library that dlopen.c loads: its work is in plugin_work, called by plugin_entry. */
#include "workload.h"

NOINLINE void plugin_work(uint64_t rounds) { burn(rounds); }

void plugin_entry(uint64_t rounds) {
    plugin_work(rounds);
    KEEP_FRAME();
}
