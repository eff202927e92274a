/* Sees, counts and breaks what a process asks of its disk: the shim of tests/preload.py (LD_PRELOAD).
 *
 *   PRELOAD_ROOT    only paths below it are looked at
 *   PRELOAD_LOG     one line an operation, in the order in which they ended: "op <TAB> path <TAB> facts..."
 *   PRELOAD_SHADOW  a directory: what each fsync made durable, copied before it was sent (later bytes may be lost)
 *   PRELOAD_RULES   lines "op <TAB> part of the path <TAB> errno", read before each operation; errno 0 = pretend
 *
 * A file's copy is named in the log together with its inode and birth; a directory's "copy" is its list of names. From
 * these a test can make what a power cut would have left at any moment.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static __thread int inside;
static atomic_int copies;

static void say(const char *format, ...) {
    const char *log = getenv("PRELOAD_LOG");
    char line[2 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int fd = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0 && size > 0) {
        if (syscall(SYS_write, fd, line, size) != size) abort(); /* a log with holes would prove nothing */
        syscall(SYS_close, fd);
    }
}

/* The path below the root, or NULL where it is none of ours. */
static const char *ours(const char *path) {
    const char *root = getenv("PRELOAD_ROOT");
    size_t size = root ? strlen(root) : 0;
    return size && !strncmp(path, root, size) && (path[size] == '/' || !path[size]) ? path + size : NULL;
}

static const char *path_of(int fd, char *into) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, into, PATH_MAX - 1);
    if (size <= 0) return NULL;
    into[size] = 0;
    return ours(into);
}

static const char *path_at(int directory, const char *path, char *into) {
    if (path[0] == '/') return ours(strncpy(into, path, PATH_MAX - 1));
    char base[PATH_MAX] = "";
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return NULL;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size <= 0) return NULL;
        base[size] = 0;
    }
    if (snprintf(into, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return NULL;
    return ours(into);
}

/* What a rule wants of an operation: -1 nothing, 0 to pretend, else the errno to fail with. */
static int ruled(const char *op, const char *path) {
    const char *rules = getenv("PRELOAD_RULES");
    int fd = rules ? syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (fd < 0) return -1;
    char text[4096];
    ssize_t size = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    text[size > 0 ? size : 0] = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char wanted[32], part[PATH_MAX];
        int what;
        if (sscanf(line, "%31[^\t]\t%4095[^\t]\t%d", wanted, part, &what) == 3 && !strcmp(wanted, op) &&
            strstr(path, part))
            return what;
    }
    return -1;
}

static void name_copy(char *into, size_t size, int number) {
    snprintf(into, size, "%s/%d-%d", getenv("PRELOAD_SHADOW"), getpid(), number);
}

static void identify(int fd, const char *name, char *into, size_t size) {
    struct statx found;
    int flags = name ? AT_SYMLINK_NOFOLLOW : AT_EMPTY_PATH;
    if (syscall(SYS_statx, fd, name ? name : "", flags, STATX_BASIC_STATS | STATX_BTIME, &found)) memset(&found, 0, sizeof found);
    snprintf(into, size, "%llu.%lld.%u", (unsigned long long)found.stx_ino, (long long)found.stx_btime.tv_sec,
             found.stx_btime.tv_nsec);
}

/* Copy a file, or list a directory, as it is now; returns the copy's number, 0 without a shadow. */
static int copy(int fd, int is_directory) {
    if (!getenv("PRELOAD_SHADOW")) return 0;
    int number = ++copies;
    char target[PATH_MAX], link[64], chunk[65536];
    name_copy(target, sizeof target, number);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int out = syscall(SYS_openat, AT_FDCWD, target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int in = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    if (out < 0 || in < 0) abort();
    if (is_directory) {
        DIR *entries = fdopendir(in);
        for (struct dirent *each; entries && (each = readdir(entries));) {
            if (!strcmp(each->d_name, ".") || !strcmp(each->d_name, "..")) continue;
            char identity[96];
            identify(dirfd(entries), each->d_name, identity, sizeof identity);
            int size = snprintf(chunk, sizeof chunk, "%c\t%s\t%s\n", each->d_type == DT_DIR ? 'd' : 'f', identity, each->d_name);
            if (syscall(SYS_write, out, chunk, size) != size) abort();
        }
        closedir(entries);
    } else {
        for (ssize_t size; (size = syscall(SYS_read, in, chunk, sizeof chunk)) > 0;)
            if (syscall(SYS_write, out, chunk, size) != size) abort();
        syscall(SYS_close, in);
    }
    syscall(SYS_close, out);
    return number;
}

static int synced(const char *op, int fd, int (*really)(int)) {
    char whole[PATH_MAX];
    const char *path = inside ? NULL : path_of(fd, whole);
    if (!path) return really(fd);
    inside = 1;
    struct stat found;
    int is_directory = !fstat(fd, &found) && S_ISDIR(found.st_mode);
    int what = ruled(op, path), number = what == -1 ? copy(fd, is_directory) : 0, error = 0;
    int result = what == -1 ? really(fd) : what ? -1 : 0;
    error = what > 0 ? what : errno;
    char identity[96];
    identify(fd, NULL, identity, sizeof identity);
    say("%s\t%s\t%s\t%d-%d\t%d\n", is_directory ? "syncdir" : op, *path ? path : "/", identity, getpid(),
        result ? 0 : number, what == 0 ? -1 : result ? error : 0);
    inside = 0;
    errno = error;
    return result;
}

int fsync(int fd) { return synced("fsync", fd, NEXT(fsync)); }
int fdatasync(int fd) { return synced("fdatasync", fd, NEXT(fdatasync)); }

int sync_file_range(int fd, off64_t offset, off64_t size, unsigned int flags) {
    char whole[PATH_MAX];
    const char *path = path_of(fd, whole);
    if (path) say("sync_file_range\t%s\n", path); /* no durability: it neither flushes metadata nor the device */
    return NEXT(sync_file_range)(fd, offset, size, flags);
}

int msync(void *at, size_t size, int flags) {
    say("msync\t?\n");
    return NEXT(msync)(at, size, flags);
}

/* For what changes content: log it, or fail as a rule says. */
#define CHANGE(op, find, call)                            \
    char whole[PATH_MAX];                                 \
    const char *path = inside ? NULL : find;              \
    if (!path) return call;                               \
    inside = 1;                                           \
    int what = ruled(op, path);                           \
    __typeof__(call) result = what > 0 ? -1 : call;       \
    int error = what > 0 ? what : errno;                  \
    say("%s\t%s\t%d\n", op, path, result < 0 ? error : 0); \
    inside = 0;                                           \
    errno = error;                                        \
    return result

ssize_t write(int fd, const void *from, size_t size) { CHANGE("write", path_of(fd, whole), NEXT(write)(fd, from, size)); }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    CHANGE("write", path_of(fd, whole), NEXT(pwrite)(fd, from, size, at));
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    CHANGE("write", path_of(fd, whole), NEXT(pwrite64)(fd, from, size, at));
}
ssize_t writev(int fd, const struct iovec *from, int count) {
    CHANGE("write", path_of(fd, whole), NEXT(writev)(fd, from, count));
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) {
    CHANGE("write", path_of(fd, whole), NEXT(pwritev)(fd, from, count, at));
}
int ftruncate(int fd, off_t size) { CHANGE("truncate", path_of(fd, whole), NEXT(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { CHANGE("truncate", path_of(fd, whole), NEXT(ftruncate64)(fd, size)); }
int rename(const char *from, const char *to) { CHANGE("rename", path_at(AT_FDCWD, to, whole), NEXT(rename)(from, to)); }
int renameat(int source, const char *from, int target, const char *to) {
    CHANGE("rename", path_at(target, to, whole), NEXT(renameat)(source, from, target, to));
}
int renameat2(int source, const char *from, int target, const char *to, unsigned int flags) {
    CHANGE("rename", path_at(target, to, whole), NEXT(renameat2)(source, from, target, to, flags));
}
int link(const char *from, const char *to) { CHANGE("link", path_at(AT_FDCWD, to, whole), NEXT(link)(from, to)); }
int linkat(int source, const char *from, int target, const char *to, int flags) {
    CHANGE("link", path_at(target, to, whole), NEXT(linkat)(source, from, target, to, flags));
}
int unlink(const char *path_given) { CHANGE("unlink", path_at(AT_FDCWD, path_given, whole), NEXT(unlink)(path_given)); }
int remove(const char *path_given) { CHANGE("unlink", path_at(AT_FDCWD, path_given, whole), NEXT(remove)(path_given)); }
int unlinkat(int directory, const char *path_given, int flags) {
    CHANGE("unlink", path_at(directory, path_given, whole), NEXT(unlinkat)(directory, path_given, flags));
}
