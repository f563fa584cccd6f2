/* A file layer that counts what changes files below one folder, and kills the process or reports a full disk at one of
   these points. It is loaded with LD_PRELOAD, so that it sees the calls of Python, C++ and Rust alike.

   A point is a call that creates, renames, removes or cuts a file, makes or removes a folder, flushes a file to disk, or
   writes to a file. Writes to one file that directly follow each other are one point, since a kill
   between two of them leaves what a kill in the middle of one leaves: part of the file. At a point, before the call:

     count   note it in the log
     kill    at point n: write half of what is to be written, then SIGKILL
     full    from point n on: write half of what is to be written, then nothing: ENOSPC, as for new files and folders */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FULL };
static int mode = OFF, log_fd = -1, last_written = -1, armed_pid;
static int is_full; /* after the write that filled the disk */
static long count, target;
static char root[4096];
static __thread int inside; /* our own calls are not counted */

void arm_faults(int new_mode, long point, const char *folder, int log) {
    snprintf(root, sizeof root, "%s", folder);
    count = 0, target = point, log_fd = log, last_written = -1, armed_pid = getpid();
    mode = new_mode;
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Whether a path is below the folder. Relative ones are below it, or the test has changed directory. */
static int is_below(const char *path) {
    return path && (path[0] != '/' || !strncmp(path, root, strlen(root)));
}

static int is_file_below(int fd) {
    char link[64], path[4096];
    struct stat about;
    if (mode == OFF || fd == log_fd || fstat(fd, &about) || !S_ISREG(about.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return !strncmp(path, root, strlen(root));
}

/* Count a point. Return 1 if it fails: in mode KILL, the caller then kills. written: the file, if this is a write. */
static int is_point(const char *what, const char *path, int written) {
    if (mode == OFF || inside || getpid() != armed_pid) return 0;
    if (written >= 0 && written == last_written) return mode == FULL && count >= target;
    last_written = written;
    count++;
    if (mode == COUNT) {
        char line[4300];
        int n = snprintf(line, sizeof line, "%s %s\n", what, path);
        inside = 1;
        if (write(log_fd, line, n) < 0) {}
        inside = 0;
    }
    return mode == KILL ? count == target : mode == FULL && count >= target;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define FAIL(value) do { if (mode == KILL) die(); errno = ENOSPC; return value; } while (0)

static int exists(int folder, const char *path) {
    struct stat about;
    int before = errno, found = !fstatat(folder, path, &about, AT_SYMLINK_NOFOLLOW);
    errno = before;
    return found;
}

static int has_contents(int folder, const char *path) {
    struct stat about;
    int before = errno, found = !fstatat(folder, path, &about, 0) && about.st_size;
    errno = before;
    return found;
}

/* Changes that a full disk allows; none, if there is nothing at that path. */
#define ALLOWED(what, folder, path) do { \
        if (mode != OFF && is_below(path) && exists(folder, path) && is_point(what, path, -1) && mode == KILL) die(); \
    } while (0)
/* Changes that need room; none, if there is something at that path. */
#define NEEDS_ROOM(what, folder, path, value) do { \
        if (mode != OFF && is_below(path) && !exists(folder, path) && is_point(what, path, -1)) FAIL(value); \
    } while (0)

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, 4095);
    path[n < 0 ? 0 : n] = 0;
    return path;
}

static int changes_files(int flags) {
    return flags & (O_CREAT | O_TRUNC) && (flags & O_TMPFILE) != O_TMPFILE;
}

#define OPEN(name, DIR, before, args) \
    int name before { \
        NEXT(name); \
        mode_t bits = 0; \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
            va_list more; \
            va_start(more, flags); \
            bits = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (changes_files(flags)) { \
            if (flags & O_CREAT) NEEDS_ROOM("create", DIR, path, -1); \
            if (flags & O_TRUNC && has_contents(DIR, path)) ALLOWED("cut", DIR, path); \
        } \
        return next args; \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, bits))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, bits))
OPEN(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, bits))
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, bits))

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        NEXT(name); \
        if (strpbrk(how, "wa")) NEEDS_ROOM("create", AT_FDCWD, path, NULL); \
        if (strchr(how, 'w') && has_contents(AT_FDCWD, path)) ALLOWED("cut", AT_FDCWD, path); \
        return next(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define HALF_WRITTEN(call) do { \
        char path[4096]; \
        if (is_file_below(fd) && is_point("write", path_of(fd, path), fd)) { \
            ssize_t written = is_full ? -1 : call; \
            if (mode == KILL) die(); \
            is_full = 1; \
            if (written > 0) return written; \
            errno = ENOSPC; \
            return -1; \
        } \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    HALF_WRITTEN(next(fd, data, size / 2));
    return next(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    NEXT(pwrite);
    HALF_WRITTEN(next(fd, data, size / 2, place));
    return next(fd, data, size, place);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    NEXT(pwrite64);
    HALF_WRITTEN(next(fd, data, size / 2, place));
    return next(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    NEXT(writev);
    HALF_WRITTEN(next(fd, parts, n / 2));
    return next(fd, parts, n);
}

#define ONE_PATH(name, what, DIR, arguments, values) \
    int name arguments { \
        NEXT(name); \
        ALLOWED(what, DIR, path); \
        return next values; \
    }
ONE_PATH(unlink, "remove", AT_FDCWD, (const char *path), (path))
ONE_PATH(remove, "remove", AT_FDCWD, (const char *path), (path))
ONE_PATH(rmdir, "remove folder", AT_FDCWD, (const char *path), (path))
ONE_PATH(unlinkat, "remove", folder, (int folder, const char *path, int flags), (folder, path, flags))
ONE_PATH(truncate, "cut", AT_FDCWD, (const char *path, off_t size), (path, size))
ONE_PATH(truncate64, "cut", AT_FDCWD, (const char *path, off64_t size), (path, size))
ONE_PATH(rename, "rename", AT_FDCWD, (const char *path, const char *to), (path, to))
ONE_PATH(renameat, "rename", a, (int a, const char *path, int b, const char *to), (a, path, b, to))

#define NEW_PATH(name, what, DIR, arguments, values) \
    int name arguments { \
        NEXT(name); \
        NEEDS_ROOM(what, DIR, path, -1); \
        return next values; \
    }
NEW_PATH(mkdir, "make folder", AT_FDCWD, (const char *path, mode_t bits), (path, bits))
NEW_PATH(mkdirat, "make folder", folder, (int folder, const char *path, mode_t bits), (folder, path, bits))
NEW_PATH(link, "link", AT_FDCWD, (const char *from, const char *path), (from, path))
NEW_PATH(symlink, "link", AT_FDCWD, (const char *from, const char *path), (from, path))

#define ONE_FILE(name, what, arguments, values) \
    int name arguments { \
        NEXT(name); \
        char path[4096]; \
        if (is_file_below(fd) && is_point(what, path_of(fd, path), -1)) FAIL(-1); \
        return next values; \
    }
ONE_FILE(fsync, "flush", (int fd), (fd))
ONE_FILE(ftruncate, "cut", (int fd, off_t size), (fd, size))
ONE_FILE(ftruncate64, "cut", (int fd, off64_t size), (fd, size))
