/* A disk that fails: preloaded, it lets writes below the folder EIO_UNDER end with EIO while a file EIO_WHILE exists, and
   what brings them to the disk while EIO_WHILE-sync does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd, const char *kind) {
    const char *flag = getenv("EIO_WHILE"), *under = getenv("EIO_UNDER");
    char name[4096], link[64];
    if (!flag || !under)
        return 0;
    snprintf(name, sizeof name, "%s%s", flag, kind);
    if (access(name, F_OK))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return 0;
    name[length] = 0;
    if (strncmp(name, under, strlen(under)))
        return 0;
    errno = EIO;
    return 1;
}

#define WRITES(name, kind, given, passed) \
    ssize_t name given { \
        static ssize_t(*real) given; \
        if (!real) \
            *(void **)&real = dlsym(RTLD_NEXT, #name); \
        return fails(fd, kind) ? -1 : real passed; \
    }

#define SYNCS(name) \
    int name(int fd) { \
        static int (*real)(int); \
        if (!real) \
            *(void **)&real = dlsym(RTLD_NEXT, #name); \
        return fails(fd, "-sync") ? -1 : real(fd); \
    }

WRITES(write, "", (int fd, const void *data, size_t count), (fd, data, count))
WRITES(pwrite, "", (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
WRITES(pwrite64, "", (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))
SYNCS(fsync)
SYNCS(fdatasync)
