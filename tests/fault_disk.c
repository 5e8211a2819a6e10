/* Preloaded into a process under test: counts what it does to files below one folder, and at the n-th such operation
 * kills it (a write is carried out by half first) or lets the disk be full. Everything goes through the C library's
 * names, so that SQLite, numpy and other compiled code are seen as Python is. See fault_helpers.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FULL, ONCE };
static char root[PATH_MAX], spent[PATH_MAX];
static size_t root_length;
static atomic_long happened;
static long moment;
static int mode = OFF, trace = -1;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

void fault_arm(const char *folder, int how, long at, const char *trace_file, const char *mark) {
  int (*open_)(const char *, int, ...) = next("open64");
  snprintf(root, sizeof root, "%s", folder);
  snprintf(spent, sizeof spent, "%s", mark);
  root_length = strlen(root);
  trace = trace_file[0] ? open_(trace_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  moment = at;
  happened = 0;
  mode = how;
}

long fault_count(void) { return happened; }

/* Child processes (a pool's workers) are armed by their environment, if their command line has the words asked for. */
__attribute__((constructor)) static void arm_by_environment(void) {
  const char *folder = getenv("FAULT_ROOT"), *who = getenv("FAULT_WHO");
  char line[4096] = {0};
  if (!folder || !who) return;
  FILE *file = fopen("/proc/self/cmdline", "r");
  if (!file) return;
  size_t length = fread(line, 1, sizeof line - 1, file);
  fclose(file);
  for (size_t i = 0; i < length; i++)
    if (!line[i]) line[i] = ' ';
  const char *mark = getenv("FAULT_SPENT");
  if (!strstr(line, who) || (mark && access(mark, F_OK) == 0)) return;
  fault_arm(folder, atoi(getenv("FAULT_MODE")), atol(getenv("FAULT_AT")), "", mark ? mark : "");
}

static int below(const char *path) {
  return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static int watched_fd(int fd, char *path) {
  char link[64];
  if (mode == OFF || fd < 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, PATH_MAX - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return below(path);
}

static int watched_path(int dirfd, const char *given, char *path) {
  char folder[PATH_MAX];
  if (mode == OFF || !given) return 0;
  if (given[0] == '/') {
    snprintf(path, PATH_MAX, "%s", given);
  } else {
    if (dirfd == AT_FDCWD) {
      if (!getcwd(folder, sizeof folder)) return 0;
    } else if (!watched_fd(dirfd, folder)) {
      return 0;
    }
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", folder, given);
  }
  return below(path);
}

static void die(void) {
  int (*open_)(const char *, int, ...) = next("open64");
  if (spent[0]) open_(spent, O_WRONLY | O_CREAT, 0644);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Counts one operation. 1: it shall fail for lack of space; 2: it shall be the last, half done. */
static int happens(const char *what, const char *path, int needs_space) {
  ssize_t (*write_)(int, const void *, size_t) = next("write");
  long n = atomic_fetch_add(&happened, 1) + 1;
  if (trace >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", n, what, path);
    if (write_(trace, line, length) < 0) abort();
  }
  if (mode == KILL && n == moment) return 2;
  if (mode == FULL && n >= moment && needs_space) return 1;
  if (mode == ONCE && n == moment && needs_space) return 1;
  return 0;
}

/* For operations that are done or not: die before them, or fail. */
static int refused(const char *what, const char *path, int needs_space) {
  int fate = happens(what, path, needs_space);
  if (fate == 2) die();
  if (fate == 1) errno = ENOSPC;
  return fate;
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

static int makes(int dirfd, const char *path, int flags) {
  return (flags & O_CREAT) && faccessat(dirfd, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
}

#define OPENING(NAME, DIRFD, PATH, CALL)                                                       \
  char seen[PATH_MAX];                                                                         \
  mode_t bits = 0;                                                                             \
  if (flags & (O_CREAT | __O_TMPFILE)) {                                                       \
    va_list more;                                                                              \
    va_start(more, flags);                                                                     \
    bits = va_arg(more, mode_t);                                                               \
    va_end(more);                                                                              \
  }                                                                                            \
  if (writes(flags) && watched_path(DIRFD, PATH, seen) &&                                      \
      refused("open", seen, makes(DIRFD, PATH, flags)))                                        \
    return -1;                                                                                 \
  return CALL;

typedef int (*opener)(const char *, int, ...);
typedef int (*opener_at)(int, const char *, int, ...);
int open(const char *path, int flags, ...) {
  OPENING("open", AT_FDCWD, path, ((opener)next("open"))(path, flags, bits))
}
int open64(const char *path, int flags, ...) {
  OPENING("open", AT_FDCWD, path, ((opener)next("open64"))(path, flags, bits))
}
int openat(int dirfd, const char *path, int flags, ...) {
  OPENING("open", dirfd, path, ((opener_at)next("openat"))(dirfd, path, flags, bits))
}
int openat64(int dirfd, const char *path, int flags, ...) {
  OPENING("open", dirfd, path, ((opener_at)next("openat64"))(dirfd, path, flags, bits))
}

/* A write that is struck is done by half: torn for who is killed, short for who goes on and finds the disk full. */
#define WRITING(CALL_ALL, CALL_HALF)                                                           \
  char seen[PATH_MAX];                                                                         \
  if (size && watched_fd(fd, seen)) {                                                          \
    int fate = happens("write", seen, 1);                                                      \
    if (fate == 2) {                                                                           \
      if (size > 1 && (CALL_HALF) < 0) abort();                                                \
      die();                                                                                   \
    }                                                                                          \
    if (fate == 1) {                                                                           \
      if (size > 1 && happened == moment) return CALL_HALF;                                    \
      errno = ENOSPC;                                                                          \
      return -1;                                                                               \
    }                                                                                          \
  }                                                                                            \
  return CALL_ALL;

ssize_t write(int fd, const void *data, size_t size) {
  ssize_t (*call)(int, const void *, size_t) = next("write");
  WRITING(call(fd, data, size), call(fd, data, size / 2))
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  ssize_t (*call)(int, const void *, size_t, off_t) = next("pwrite");
  WRITING(call(fd, data, size, at), call(fd, data, size / 2, at))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  ssize_t (*call)(int, const void *, size_t, off64_t) = next("pwrite64");
  WRITING(call(fd, data, size, at), call(fd, data, size / 2, at))
}
ssize_t writev(int fd, const struct iovec *parts, int size) {
  ssize_t (*call)(int, const struct iovec *, int) = next("writev");
  WRITING(call(fd, parts, size), call(fd, parts, 1))
}
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
  ssize_t (*call)(int, int, off64_t *, size_t) = next("sendfile64");
  WRITING(call(fd, from, at, size), call(fd, from, at, size / 2))
}
ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags) {
  ssize_t (*call)(int, off64_t *, int, off64_t *, size_t, unsigned) = next("copy_file_range");
  WRITING(call(from, at, fd, to, size, flags), call(from, at, fd, to, size / 2, flags))
}

#define ON_FD(WHAT, SPACE, CALL)                                                               \
  char seen[PATH_MAX];                                                                         \
  if (watched_fd(fd, seen) && refused(WHAT, seen, SPACE)) return -1;                           \
  return CALL;
int fsync(int fd) { ON_FD("fsync", 1, ((int (*)(int))next("fsync"))(fd)) }
int fdatasync(int fd) { ON_FD("fsync", 1, ((int (*)(int))next("fdatasync"))(fd)) }
int ftruncate64(int fd, off64_t n) { ON_FD("truncate", 0, ((int (*)(int, off64_t))next("ftruncate64"))(fd, n)) }
int ftruncate(int fd, off_t n) { ON_FD("truncate", 0, ((int (*)(int, off_t))next("ftruncate"))(fd, n)) }

#define ON_PATH(WHAT, DIRFD, PATH, SPACE, CALL)                                                \
  char seen[PATH_MAX];                                                                         \
  if (watched_path(DIRFD, PATH, seen) && refused(WHAT, seen, SPACE)) return -1;                \
  return CALL;
int rename(const char *from, const char *to) {
  ON_PATH("rename", AT_FDCWD, to, 0, ((int (*)(const char *, const char *))next("rename"))(from, to))
}
int renameat(int a, const char *from, int b, const char *to) {
  ON_PATH("rename", b, to, 0, ((int (*)(int, const char *, int, const char *))next("renameat"))(a, from, b, to))
}
int link(const char *from, const char *to) {
  ON_PATH("link", AT_FDCWD, to, 1, ((int (*)(const char *, const char *))next("link"))(from, to))
}
int symlink(const char *from, const char *to) {
  ON_PATH("symlink", AT_FDCWD, to, 1, ((int (*)(const char *, const char *))next("symlink"))(from, to))
}
int unlink(const char *path) { ON_PATH("unlink", AT_FDCWD, path, 0, ((int (*)(const char *))next("unlink"))(path)) }
int unlinkat(int fd, const char *path, int flags) {
  ON_PATH("unlink", fd, path, 0, ((int (*)(int, const char *, int))next("unlinkat"))(fd, path, flags))
}
int rmdir(const char *path) { ON_PATH("rmdir", AT_FDCWD, path, 0, ((int (*)(const char *))next("rmdir"))(path)) }
int mkdir(const char *path, mode_t bits) {
  ON_PATH("mkdir", AT_FDCWD, path, 1, ((int (*)(const char *, mode_t))next("mkdir"))(path, bits))
}
