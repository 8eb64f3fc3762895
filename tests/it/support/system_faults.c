/* Makes functions of the C library fail in a process that preloads it. Each fault is there as long as the file that
 * names it exists in the directory $SYSTEM_FAULTS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static void fault_path(char *path, size_t size, const char *name) {
    const char *directory = getenv("SYSTEM_FAULTS");
    snprintf(path, size, "%s/%s", directory ? directory : "/nonexistent", name);
}

static int has_fault(const char *name) {
    char path[512];
    int saved = errno;
    fault_path(path, sizeof path, name);
    int exists = access(path, F_OK) == 0;
    errno = saved;
    return exists;
}

static void wait_while(const char *name) {
    while (has_fault(name))
        usleep(10 * 1000);
}

/* "no-threads": no thread can be started. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    return has_fault("no-threads") ? EAGAIN : next(thread, attributes, run, argument);
}

/* "silent-resolver": names are not resolved, and there is no error either. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    wait_while("silent-resolver");
    return next(node, service, hints, result);
}

/* "hanging-fsync": the disk does not answer. */
int fsync(int descriptor) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fsync");
    wait_while("hanging-fsync");
    return next(descriptor);
}

/* "clock-ahead": the system clock is an hour ahead. The monotonic clock goes on. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next)
        next = dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && has_fault("clock-ahead"))
        time->tv_sec += 3600;
    return result;
}

/* "panic-THREAD": makes tokio panic once on the thread with this name, when it next waits for I/O. */
int epoll_wait(int epoll, struct epoll_event *events, int max_events, int timeout) {
    int (*next)(int, struct epoll_event *, int, int) = dlsym(RTLD_NEXT, "epoll_wait");
    char thread[16] = "", name[32], path[512];
    prctl(PR_GET_NAME, thread);
    snprintf(name, sizeof name, "panic-%s", thread);
    fault_path(path, sizeof path, name);
    int saved = errno;
    if (unlink(path) == 0) {
        errno = EBADF;
        return -1;
    }
    errno = saved;
    return next(epoll, events, max_events, timeout);
}
