/* Files: read whole, mapped, appended by the line, and written whole or not at all. */
#include "core/core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool file_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The folder part of a path, with its slash; "" when there is none. */
static int folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (int)(slash - path) + 1 : 0;
}

static bool stat_folder(const char *path, struct stat *st) {
    char folder[4096];
    int n = folder_length(path);
    int len = snprintf(folder, sizeof folder, "%.*s", n ? n : 1, n ? path : ".");
    return len < (int)sizeof folder && !stat(folder, st);
}

bool file_same(const char *a, const char *b) {
    struct stat x, y;
    if (!a || !b) return false;
    if (!strcmp(a, b)) return true;
    bool have_a = !stat(a, &x), have_b = !stat(b, &y);
    if (have_a != have_b) return false;
    if (!have_a && (strcmp(a + folder_length(a), b + folder_length(b)) || !stat_folder(a, &x)
                    || !stat_folder(b, &y)))
        return false;
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool file_differ(const char *flag_a, const char *a, const char *flag_b, const char *b, err *e) {
    return !file_same(a, b)
        || err_set(e, ERR_USAGE, "%s %s and %s %s are to be different files", flag_a, a, flag_b, b);
}

bool file_make_dirs(const char *path, err *e) {
    char *p = mem_text(path, e);
    if (!p) return false;
    bool ok = true;
    for (char *s = p + (*p == '/'); ok; s++) {
        if (*s && *s != '/') continue;
        bool last = !*s;
        *s = '\0';
        int cause = *p && mkdir(p, 0777) ? errno : 0;
        if (cause && !file_is_dir(p))
            ok = err_set(e, ERR_IO, "cannot make folder %s: %s", p, strerror(cause == EEXIST ? ENOTDIR : cause));
        if (last) break;
        *s = '/';
    }
    mem_free(p);
    return ok;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int open_input(const char *path, struct stat *st, err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, st)) {
        err_set(e, ERR_NOINPUT, "cannot open %s: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    if (S_ISDIR(st->st_mode)) {
        err_set(e, ERR_NOINPUT, "%s is a folder, a file was wanted", path);
        close(fd);
        return -1;
    }
    return fd;
}

static bool read_all(int fd, const char *path, buf *out, err *e) {
    enum { CHUNK = 1 << 16 };
    char *chunk = mem_new(CHUNK, 1, e);
    if (!chunk) return false;
    bool ok = true;
    for (;;) {
        ssize_t n = read(fd, chunk, CHUNK);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) ok = err_set(e, ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n <= 0) break;
        buf_put(out, chunk, (size_t)n);
    }
    if (ok && out->failed) ok = err_set(e, ERR_NOMEM, "out of memory reading %s", path);
    mem_free(chunk);
    return ok;
}

bool file_read(const char *path, buf *out, err *e) {
    struct stat st;
    int fd = open_input(path, &st, e);
    if (fd < 0) return false;
    buf_put(out, "", 0);                      /* an empty file is the empty text, not NULL */
    bool ok = read_all(fd, path, out, e);
    close(fd);
    return ok;
}

/* Pipes and the files of /proc cannot be mapped: their bytes are copied into memory that can. */
static bool map_copy(file_map *m, int fd, const char *path, err *e) {
    buf b = {0};
    bool ok = read_all(fd, path, &b, e);
    if (ok && b.len) {
        void *p = mmap(NULL, b.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) ok = err_set(e, ERR_NOMEM, "out of memory reading %s", path);
        else *m = (file_map){ memcpy(p, b.data, b.len), b.len };
    }
    buf_free(&b);
    return ok;
}

bool file_map_open(file_map *m, const char *path, err *e) {
    *m = (file_map){ "", 0 };
    struct stat st;
    int fd = open_input(path, &st, e);
    if (fd < 0) return false;
    bool ok = true;
    if (!S_ISREG(st.st_mode) || st.st_size == 0) ok = map_copy(m, fd, path, e);
    else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) ok = err_set(e, ERR_IO, "cannot map %s: %s", path, strerror(errno));
        else *m = (file_map){ p, (size_t)st.st_size };
    }
    close(fd);
    return ok;
}

void file_map_close(file_map *m) {
    if (m->size) munmap((void *)(uintptr_t)m->data, m->size);
    *m = (file_map){ "", 0 };
}

/* ---- writing --------------------------------------------------------------------------------- */

static bool write_all(int fd, const char *data, size_t len) {
    while (len) {
        ssize_t n = write(fd, data, len < 1u << 30 ? len : 1u << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

/* A new file beside `path`; its name, to be freed, in *name. */
static int open_temporary(const char *path, mode_t mode, char **name, err *e) {
    static _Atomic unsigned serial;
    size_t room = strlen(path) + 64;
    if (!(*name = mem_new(room, 1, e))) return -1;
    int fd = -1;
    for (int tries = 0; tries < 1000 && fd < 0; tries++) {
        snprintf(*name, room, "%.*s.tmp-%ld-%u", folder_length(path), path, (long)getpid(),
                 atomic_fetch_add(&serial, 1));
        fd = open(*name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0) err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(errno));
    else if (mode && fchmod(fd, mode)) { /* the permissions of the file replaced are a courtesy */ }
    return fd;
}

/* A rename is on disk once its folder is. Some file systems cannot do this; the file is whole anyway. */
static void sync_folder(const char *path, char *scratch) {
    int n = folder_length(path);
    snprintf(scratch, (size_t)n + 2, "%.*s", n ? n : 1, n ? path : ".");
    int fd = open(scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static bool replace(const char *path, mode_t mode, const void *data, size_t len, err *e) {
    char *name = NULL;
    int fd = open_temporary(path, mode, &name, e);
    if (fd < 0) { mem_free(name); return false; }
    bool ok = write_all(fd, data, len) && fsync(fd) == 0;
    int cause = errno;
    if (close(fd) && ok) { ok = false; cause = errno; }
    if (ok && rename(name, path)) { ok = false; cause = errno; }
    if (ok) sync_folder(path, name);
    else {
        unlink(name);
        err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(cause));
    }
    mem_free(name);
    return ok;
}

/* /dev/stdout, a pipe: nothing to replace. */
static bool write_through(const char *path, const void *data, size_t len, err *e) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write_all(fd, data, len);
    if (!ok) err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) && ok)
        ok = err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return ok;
}

bool file_write(const char *path, const void *data, size_t len, err *e) {
    struct stat st;
    if (stat(path, &st)) return replace(path, 0, data, len, e);
    if (S_ISDIR(st.st_mode)) return err_set(e, ERR_IO, "cannot write %s: it is a folder", path);
    if (!S_ISREG(st.st_mode)) return write_through(path, data, len, e);
    char *target = realpath(path, NULL);      /* a link keeps pointing where it did */
    bool ok = replace(target ? target : path, st.st_mode & 07777, data, len, e);
    free(target);
    return ok;
}

bool file_may_write(const char *path, err *e) {
    if (file_is_dir(path)) return err_set(e, ERR_IO, "cannot write %s: it is a folder", path);
    char *name = mem_text(path, e);
    if (!name) return false;
    int n = folder_length(path);
    name[n] = '\0';
    bool ok = !access(n ? name : ".", W_OK | X_OK);
    int cause = errno;                        /* why nothing may be made there, if it comes to that */
    ok = ok || !access(path, W_OK) || err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(cause));
    mem_free(name);
    return ok;
}

bool file_hold_room(const char *path, int64_t bytes, int *fd, err *e) {
    struct stat st;
    char *name = NULL;
    *fd = -1;
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) return true;
    int held = open_temporary(path, 0, &name, e);
    if (held >= 0) unlink(name);
    mem_free(name);
    if (held < 0) return false;
    int cause = posix_fallocate(held, 0, (off_t)bytes);
    if (!cause) *fd = held;
    else close(held);
    if (cause != ENOSPC && cause != EFBIG) return true;
    return err_set(e, ERR_IO, "cannot write %s: no room for %lld bytes: %s", path, (long long)bytes, strerror(cause));
}

bool file_append_line(const char *path, const char *line, err *e) {
    buf b = {0};
    buf_puts(&b, line);
    buf_put(&b, "\n", 1);
    if (b.failed) { buf_free(&b); return err_set(e, ERR_NOMEM, "out of memory writing %s", path); }
    struct stat st;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && fstat(fd, &st) == 0;
    if (ok && !write_all(fd, b.data, b.len)) {
        int cause = errno;
        if (S_ISREG(st.st_mode) && ftruncate(fd, st.st_size)) { /* half a line stays behind */ }
        errno = cause;
        ok = false;
    }
    if (!ok) err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) && ok)
        ok = err_set(e, ERR_IO, "cannot write %s: %s", path, strerror(errno));
    buf_free(&b);
    return ok;
}
