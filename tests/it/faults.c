// Faults of a disk, for one folder of one process: preloaded, it stands before the C library's calls. What goes wrong is said by files in
// the folder named GROUPER_FAULTS: `fsync` makes every fsync fail, `quota` holds the bytes that all files of GROUPER_FAULTY_DIR may take.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int on(const char *name, char *path) {
    const char *faults = getenv("GROUPER_FAULTS");
    if (!faults) return 0;
    snprintf(path, 4096, "%s/%s", faults, name);
    return access(path, F_OK) == 0;
}

static int is_ours(int fd) {
    const char *dir = getenv("GROUPER_FAULTY_DIR");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (!dir || n <= 0) return 0;
    path[n] = 0;
    return strncmp(path, dir, strlen(dir)) == 0;
}

// Whether a file may grow to `end` bytes.
static int is_full(int fd, off_t end) {
    char path[4096];
    struct stat now;
    if (!on("quota", path) || !is_ours(fd) || fstat(fd, &now) != 0 || end <= now.st_size) return 0;
    FILE *file = fopen(path, "r");
    long long quota = 0, sum = end - now.st_size;
    if (!file || fscanf(file, "%lld", &quota) != 1) quota = 0;
    if (file) fclose(file);
    DIR *folder = opendir(getenv("GROUPER_FAULTY_DIR"));
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct stat each;
        if (fstatat(dirfd(folder), entry->d_name, &each, 0) == 0 && S_ISREG(each.st_mode)) sum += each.st_size;
    }
    if (folder) closedir(folder);
    return sum > quota;
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)

typedef int (*sync_call)(int);
typedef ssize_t (*write_call)(int, const void *, size_t);
typedef ssize_t (*pwrite_call)(int, const void *, size_t, off_t);

static int failing_sync(int fd, sync_call real) {
    char path[4096];
    if (on("fsync", path) && is_ours(fd)) { errno = EIO; return -1; }
    return real(fd);
}

int fsync(int fd) { REAL("fsync", sync_call); return failing_sync(fd, real); }
int fdatasync(int fd) { REAL("fdatasync", sync_call); return failing_sync(fd, real); }

static ssize_t full_pwrite(int fd, const void *from, size_t n, off_t at, pwrite_call real) {
    if (is_full(fd, at + (off_t)n)) { errno = ENOSPC; return -1; }
    return real(fd, from, n, at);
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { REAL("pwrite", pwrite_call); return full_pwrite(fd, from, n, at, real); }
ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) { REAL("pwrite64", pwrite_call); return full_pwrite(fd, from, n, at, real); }

ssize_t write(int fd, const void *from, size_t n) {
    REAL("write", write_call);
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at >= 0 && is_full(fd, at + (off_t)n)) { errno = ENOSPC; return -1; }
    return real(fd, from, n);
}
