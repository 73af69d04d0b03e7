/* LD_PRELOAD library of the fault sweep: makes one system call on a file of a root fail.
 *
 * `fault_watch` starts it in the calling process only. The plan and the results are in shared
 * memory (`struct plan`, laid out again in tests/e2e/fault_runner.py), so that the runner sets the
 * plan while the daemon runs. A point is the NUMBERth call of one kind on one class of paths: the
 * path below the root, each id and number replaced by "*". */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define POINT 192
#define MOST 8000
enum { OFF, COUNT, FAIL };                     /* plan.state */
enum { TOLD, KILL_CLIENT, KILL_DAEMON };       /* plan.mode */
enum { ONCE, LASTING, NO_ROOM };               /* plan.lasting */
enum { SHORT = 0, INSTEAD = -1, AFTER = -2 };  /* plan.error; a positive number is an errno */

struct plan {
    atomic_int state;
    int number, error, lasting, mode, client, reads;
    char point[POINT]; /* "CALL CLASS" */
    atomic_int matched, fired, doomed, counted;
    char seen[MOST][POINT];
};

static struct plan *plan;
static char root[4096];
static size_t root_length;

void fault_watch(struct plan *shared, const char *folder) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    plan = shared;
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int is_hex(char c) { return isdigit(c) || (c >= 'a' && c <= 'f'); }

/* Write "CALL CLASS" of a path to `point`. Return 0 if the path is not in the root. */
static int classify(const char *call, const char *path, char *point) {
    if (strncmp(path, root, root_length)) return 0;
    size_t to = snprintf(point, POINT, "%s ", call);
    for (const char *from = path + root_length; *from && to < POINT - 2;) {
        size_t length = 0, digits = 0;
        while (is_hex(from[length])) digits += isdigit(from[length++]) != 0;
        int whole = (from[-1] == '/') && (from[length] == '/' || !from[length]);
        if (length >= 8 || (length && digits == length) || (length == 2 && whole)) {
            point[to++] = '*';
            from += length;
        } else
            do point[to++] = *from++;
            while (--length && length < POINT && to < POINT - 2);
    }
    point[to] = 0;
    return 1;
}

static int path_of(int fd, char *path) {
    char link[64];
    struct stat status;
    if (((int (*)(int, struct stat *))real("fstat"))(fd, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0) return 0;
    path[length] = 0;
    char *gone = strstr(path, " (deleted)");
    if (gone) *gone = 0;
    return 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Kill the client, wait until it is dead, and let the daemon see its connection end. */
static void kill_client(void) {
    char name[64], text[256];
    kill(plan->client, SIGKILL);
    snprintf(name, sizeof name, "/proc/%d/stat", plan->client);
    for (int turn = 0; turn < 200; turn++, usleep(1000)) {
        int fd = REAL(open)(name, O_RDONLY | O_CLOEXEC);
        ssize_t length = fd < 0 ? 0 : REAL(read)(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        text[length > 0 ? length : 0] = 0;
        char *end = strrchr(text, ')');
        if (!end || end[2] == 'Z' || end[2] == 'X') break;
    }
    usleep(2000);
}

static int is_reading(const char *call) {
    return !strncmp(call, "open-read", 9) || !strncmp(call, "stat", 4) || !strncmp(call, "fstat", 5) || !strncmp(call, "read", 4);
}

/* Return whether this failure, once it lasts, also affects `call`: a full disk still removes and
 * truncates, and too many open files only prevent opening. With NO_ROOM a sync does not fail: no
 * written bytes are lost. */
static int affects(const char *call) {
    if (is_reading(call)) return 0;
    if (plan->lasting == NO_ROOM)
        return !strcmp(call, "open-create") || strstr(call, "pwrite") || !strcmp(call, "write") || !strcmp(call, "writev") || !strcmp(call, "fallocate") ||
               !strcmp(call, "link") || !strcmp(call, "mkdir");
    if (plan->error == EMFILE) return !strncmp(call, "open", 4);
    if (plan->error == ENOSPC) return strcmp(call, "unlink") && strcmp(call, "rmdir") && strcmp(call, "ftruncate");
    return 1;
}

enum { PASS, FAULT, CUT, KILL_AFTER };

static int decide_at(const char *call, const char *path) {
    char point[POINT];
    if (!plan->reads && is_reading(call)) return PASS;
    if (!classify(call, path, point)) return PASS;
    if (plan->state == COUNT) {
        int index = atomic_fetch_add(&plan->counted, 1);
        if (index < MOST) strcpy(plan->seen[index], point);
        return PASS;
    }
    if (plan->doomed) die();
    if (strcmp(point, plan->point)) {
        if (!(plan->lasting && plan->fired && affects(call))) return PASS;
    } else {
        int number = atomic_fetch_add(&plan->matched, 1) + 1;
        if (number != plan->number && !(plan->lasting && plan->fired)) return PASS;
    }
    int first = atomic_fetch_add(&plan->fired, 1) == 0;
    if (plan->error == INSTEAD) die();
    if (plan->error == AFTER) return KILL_AFTER;
    if (first && plan->mode == KILL_CLIENT) kill_client();
    if (plan->error == SHORT) return CUT;
    /* The daemon is killed at its next call: while it handles the failure. */
    if (plan->mode == KILL_DAEMON) plan->doomed = 1;
    errno = plan->error;
    return FAULT;
}

static int decide(const char *call, const char *path) {
    int before = errno, decision = PASS;
    if (plan && plan->state != OFF && path) {
        char target[4096];
        int fd;
        if (sscanf(path, "/proc/self/fd/%d", &fd) == 1)
            path = path_of(fd, target) ? target : "";
        decision = decide_at(call, path);
    }
    if (decision != FAULT) errno = before;
    return decision;
}

static int decide_fd(const char *call, int fd) {
    int before = errno, decision = PASS;
    char path[4096];
    if (plan && plan->state != OFF && path_of(fd, path)) decision = decide_at(call, path);
    if (decision != FAULT) errno = before;
    return decision;
}

#define AROUND(decision, type, expression)          \
    do {                                            \
        int chosen = (decision);                    \
        if (chosen == FAULT) return -1;             \
        type result = (expression);                 \
        if (chosen == KILL_AFTER) die();            \
        return result;                              \
    } while (0)

/* A short write takes half; the daemon, if it is to be killed, is killed right after. */
#define WRITES(decision, type, whole, cut)         \
    do {                                            \
        int chosen = (decision);                    \
        if (chosen == FAULT) return -1;             \
        type result = chosen == CUT ? (cut) : (whole); \
        if (chosen == KILL_AFTER || (chosen == CUT && plan->mode == KILL_DAEMON)) die(); \
        return result;                              \
    } while (0)

/* Direct I/O writes whole pages. */
static size_t half(size_t length) { return length >= 8192 ? length / 8192 * 4096 : (length + 1) / 2; }

ssize_t write(int fd, const void *data, size_t length) {
    WRITES(decide_fd("write", fd), ssize_t, REAL(write)(fd, data, length), REAL(write)(fd, data, half(length)));
}
#define PWRITE(name, offset_type)                                                       \
    ssize_t name(int fd, const void *data, size_t length, offset_type at) {             \
        WRITES(decide_fd("pwrite", fd), ssize_t, REAL(name)(fd, data, length, at), \
               REAL(name)(fd, data, half(length), at));                                 \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    AROUND(decide_fd("writev", fd), ssize_t, REAL(writev)(fd, parts, count));
}

int fsync(int fd) { AROUND(decide_fd("fsync", fd), int, REAL(fsync)(fd)); }
int fdatasync(int fd) { AROUND(decide_fd("fdatasync", fd), int, REAL(fdatasync)(fd)); }
int syncfs(int fd) { AROUND(decide_fd("syncfs", fd), int, REAL(syncfs)(fd)); }
int ftruncate(int fd, off_t size) { AROUND(decide_fd("ftruncate", fd), int, REAL(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { AROUND(decide_fd("ftruncate", fd), int, REAL(ftruncate64)(fd, size)); }
int fallocate(int fd, int mode, off_t at, off_t length) { AROUND(decide_fd("fallocate", fd), int, REAL(fallocate)(fd, mode, at, length)); }
int fallocate64(int fd, int mode, off64_t at, off64_t length) { AROUND(decide_fd("fallocate", fd), int, REAL(fallocate64)(fd, mode, at, length)); }

/* posix_fallocate returns the error. */
#define POSIX_FALLOCATE(name, offset_type)                   \
    int name(int fd, offset_type at, offset_type length) {   \
        int chosen = decide_fd("fallocate", fd);             \
        if (chosen == FAULT) return errno;                   \
        int result = REAL(name)(fd, at, length);             \
        if (chosen == KILL_AFTER) die();                     \
        return result;                                       \
    }
POSIX_FALLOCATE(posix_fallocate, off_t)
POSIX_FALLOCATE(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) { AROUND(decide("rename", to), int, REAL(rename)(from, to)); }
int renameat(int from_fd, const char *from, int to_fd, const char *to) { AROUND(decide("rename", to), int, REAL(renameat)(from_fd, from, to_fd, to)); }
int link(const char *from, const char *to) { AROUND(decide("link", to), int, REAL(link)(from, to)); }
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) { AROUND(decide("link", to), int, REAL(linkat)(from_fd, from, to_fd, to, flags)); }
int unlink(const char *path) { AROUND(decide("unlink", path), int, REAL(unlink)(path)); }
int unlinkat(int fd, const char *path, int flags) { AROUND(decide("unlink", path), int, REAL(unlinkat)(fd, path, flags)); }
int rmdir(const char *path) { AROUND(decide("rmdir", path), int, REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { AROUND(decide("mkdir", path), int, REAL(mkdir)(path, mode)); }
int mkdirat(int fd, const char *path, mode_t mode) { AROUND(decide("mkdir", path), int, REAL(mkdirat)(fd, path, mode)); }

/* Opening a folder counts too: it comes before the sync of its names. */
static int decide_open(const char *path, int flags) {
    if (flags & O_CREAT) return decide("open-create", path);
    if ((flags & O_ACCMODE) != O_RDONLY) return decide("open-write", path);
    if (flags & O_DIRECTORY) return decide("open-folder", path);
    return decide("open-read", path);
}
#define MODE(flags)                                    \
    mode_t mode = 0;                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {               \
        va_list arguments;                             \
        va_start(arguments, flags);                    \
        mode = va_arg(arguments, mode_t);              \
        va_end(arguments);                             \
    }
#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        MODE(flags)                                                                       \
        AROUND(decide_open(path, flags), int, REAL(name)(path, flags, mode));             \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                      \
    int name(int fd, const char *path, int flags, ...) {                                  \
        MODE(flags)                                                                       \
        AROUND(decide_open(path, flags), int, REAL(name)(fd, path, flags, mode));         \
    }
OPENAT(openat)
OPENAT(openat64)

/* Examining and reading files, if plan.reads. */
int stat(const char *path, struct stat *status) { AROUND(decide("stat", path), int, REAL(stat)(path, status)); }
int stat64(const char *path, struct stat64 *status) { AROUND(decide("stat", path), int, REAL(stat64)(path, status)); }
int lstat(const char *path, struct stat *status) { AROUND(decide("stat", path), int, REAL(lstat)(path, status)); }
int lstat64(const char *path, struct stat64 *status) { AROUND(decide("stat", path), int, REAL(lstat64)(path, status)); }
int fstatat(int fd, const char *path, struct stat *status, int flags) { AROUND(decide("stat", path), int, REAL(fstatat)(fd, path, status, flags)); }
int fstatat64(int fd, const char *path, struct stat64 *status, int flags) { AROUND(decide("stat", path), int, REAL(fstatat64)(fd, path, status, flags)); }
int fstat64(int fd, struct stat64 *status) { AROUND(decide_fd("fstat", fd), int, REAL(fstat64)(fd, status)); }
ssize_t read(int fd, void *data, size_t length) { AROUND(decide_fd("read", fd), ssize_t, REAL(read)(fd, data, length)); }
ssize_t pread64(int fd, void *data, size_t length, off64_t at) { AROUND(decide_fd("read", fd), ssize_t, REAL(pread64)(fd, data, length, at)); }
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) { AROUND(decide_fd("read", fd), ssize_t, REAL(preadv64)(fd, parts, count, at)); }
