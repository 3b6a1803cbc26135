/* Preloaded into a job: reads of files whose path holds CHAOS_EIO fail with EIO while the file CHAOS_EIO_WHEN exists,
   in each process at most CHAOS_EIO_TIMES times (0: always). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int failures;

static int fails(int fd)
{
    const char *part = getenv("CHAOS_EIO"), *when = getenv("CHAOS_EIO_WHEN"), *times = getenv("CHAOS_EIO_TIMES");
    char name[64], path[4096];
    if (!part || !when || access(when, F_OK))
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, part))
        return 0;
    int most = times ? atoi(times) : 0;
    if (most && __sync_fetch_and_add(&failures, 1) >= most)
        return 0;
    errno = EIO;
    return 1;
}

ssize_t read(int fd, void *to, size_t count)
{
    static ssize_t (*honest)(int, void *, size_t);
    if (!honest)
        honest = dlsym(RTLD_NEXT, "read");
    return fails(fd) ? -1 : honest(fd, to, count);
}

ssize_t pread(int fd, void *to, size_t count, off_t from)
{
    static ssize_t (*honest)(int, void *, size_t, off_t);
    if (!honest)
        honest = dlsym(RTLD_NEXT, "pread");
    return fails(fd) ? -1 : honest(fd, to, count, from);
}

ssize_t pread64(int fd, void *to, size_t count, off64_t from)
{
    static ssize_t (*honest)(int, void *, size_t, off64_t);
    if (!honest)
        honest = dlsym(RTLD_NEXT, "pread64");
    return fails(fd) ? -1 : honest(fd, to, count, from);
}
