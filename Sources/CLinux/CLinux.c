#include "CLinux.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

// As Readiness of System/Epoll.swift has them.
_Static_assert(EPOLLIN == 0x001 && EPOLLPRI == 0x002 && EPOLLOUT == 0x004 && EPOLLERR == 0x008 &&
                   EPOLLHUP == 0x010 && EPOLLRDHUP == 0x2000 && EPOLLEXCLUSIVE == 1u << 28 &&
                   EPOLLET == 1u << 31,
               "the bits of epoll(7)");

const int linux_SOCK_STREAM = SOCK_STREAM, linux_SOCK_DGRAM = SOCK_DGRAM,
          linux_SOCK_SEQPACKET = SOCK_SEQPACKET;

int linux_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

int linux_epoll_add(int epoll, int fd, uint32_t events, uint64_t token) {
    struct epoll_event event = {.events = events, .data.u64 = token};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int linux_epoll_modify(int epoll, int fd, uint32_t events, uint64_t token) {
    struct epoll_event event = {.events = events, .data.u64 = token};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

int linux_epoll_delete(int epoll, int fd) { return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

int linux_epoll_wait(int epoll, struct epoll_event *events, int capacity, int timeout_ms) {
    return epoll_wait(epoll, events, capacity, timeout_ms);
}

ssize_t linux_recv(int fd, void *buffer, size_t limit, int flags) {
    return syscall(SYS_recvfrom, fd, buffer, limit, flags, NULL, NULL);
}

ssize_t linux_send(int fd, const void *buffer, size_t count) {
    return syscall(SYS_sendto, fd, buffer, count, MSG_NOSIGNAL, NULL, 0);
}

int linux_connect(int fd, const struct sockaddr *address, socklen_t length) {
    return (int)syscall(SYS_connect, fd, address, length);
}

int linux_close(int fd) { return (int)syscall(SYS_close, fd); }

int linux_accept4(int fd, struct sockaddr *address, socklen_t *length) {
    return (int)syscall(SYS_accept4, fd, address, length, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

int linux_stream_socket(int family) {
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

int linux_pipe(int ends[2]) { return pipe2(ends, O_NONBLOCK | O_CLOEXEC); }

int linux_set_pipe_size(int fd, int bytes) { return fcntl(fd, F_SETPIPE_SZ, bytes); }

int linux_get_pipe_size(int fd) { return fcntl(fd, F_GETPIPE_SZ); }

ssize_t linux_splice(int from, int to, size_t limit) {
    return syscall(SYS_splice, from, NULL, to, NULL, limit, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
}

int linux_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

static sigset_t signal_set(const int *signals, int count) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < count; i++) sigaddset(&set, signals[i]);
    return set;
}

int linux_signalfd(const int *signals, int count) {
    sigset_t set = signal_set(signals, count);
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

int linux_block_signals(const int *signals, int count) {
    sigset_t set = signal_set(signals, count);
    return pthread_sigmask(SIG_BLOCK, &set, NULL);
}

int linux_unsent(int fd) {
    int bytes;
    return ioctl(fd, SIOCOUTQ, &bytes) == -1 ? -1 : bytes;
}

int linux_set_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags == -1 ? -1 : flags & O_NONBLOCK ? 0 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

int linux_set_cloexec(int fd) { return fcntl(fd, F_SETFD, FD_CLOEXEC); }

int linux_cpus_allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == -1 ? -1 : CPU_COUNT(&set);
}

void linux_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }
