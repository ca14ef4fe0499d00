/* Makes /proc/modules an empty file for the program that it is loaded into, as it is on a kernel
 * whose modules are none: without the file lightswitch 0.7.0 throws all samples away. It cannot be
 * mounted there, because nothing can be made in procfs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int); /* Looked at by the real one only if the flags say so. */
    va_end(rest);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(strcmp(path, "/proc/modules") == 0 ? "/dev/null" : path, flags, mode);
}
