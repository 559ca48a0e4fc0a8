/* A disk that fails when it is told to, between a program and its system. Preloaded into the binary by faults.rs.
 *
 * DRIFTWOOD_FAULT is KIND:N. The N-th call of that kind on a file below DRIFTWOOD_STATE (from 1) is met by
 *   sync   fsync and fdatasync: EIO, once
 *   full   write and pwrite: half of the bytes are taken; from then on all that writes, makes a folder or a link gets ENOSPC
 *   rename EIO, once
 *   short  from then on writes take at most a thousand bytes at a time, which is no fault
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int calls;
static atomic_int full;

/* Whether a path is in the state folder. */
static int is_ours(const char *path) {
    const char *state = getenv("DRIFTWOOD_STATE");
    return state != NULL && strncmp(path, state, strlen(state)) == 0;
}

static int is_our_file(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return is_ours(path);
}

/* Which call of this kind this is, compared with the one that is to fail: below, at or above 0. Without order for other kinds. */
static int place(const char *kind) {
    const char *fault = getenv("DRIFTWOOD_FAULT");
    size_t length = strlen(kind);
    if (fault == NULL || strncmp(fault, kind, length) != 0 || fault[length] != ':') return -1;
    return atomic_fetch_add(&calls, 1) + 1 - atoi(fault + length + 1);
}

static int refused(int error) {
    dprintf(2, "[a fault was met]\n");
    errno = error;
    return -1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int file) { return is_our_file(file) && place("sync") == 0 ? refused(EIO) : NEXT(fsync)(file); }
int fdatasync(int file) { return is_our_file(file) && place("sync") == 0 ? refused(EIO) : NEXT(fdatasync)(file); }
int rename(const char *from, const char *to) { return is_ours(to) && place("rename") == 0 ? refused(EIO) : NEXT(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return full && is_ours(path) ? refused(ENOSPC) : NEXT(mkdir)(path, mode); }
int symlink(const char *to, const char *path) { return full && is_ours(path) ? refused(ENOSPC) : NEXT(symlink)(to, path); }

/* How many of the bytes the disk takes; -1 for none. */
static ssize_t taken(int file, size_t length) {
    if (!is_our_file(file)) return (ssize_t)length;
    if (place("short") >= 0 && length > 1000) return 1000;
    if (full) return refused(ENOSPC);
    if (place("full") != 0) return (ssize_t)length;
    full = 1;
    dprintf(2, "[a fault was met]\n");
    return length < 2 ? refused(ENOSPC) : (ssize_t)(length / 2);
}

ssize_t write(int file, const void *bytes, size_t length) {
    ssize_t some = taken(file, length);
    return some < 0 ? some : NEXT(write)(file, bytes, (size_t)some);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    ssize_t some = taken(file, length);
    return some < 0 ? some : NEXT(pwrite64)(file, bytes, (size_t)some, at);
}
