#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

// As Readiness of System/Epoll.swift has them.
_Static_assert(EPOLLIN == 0x001 && EPOLLPRI == 0x002 && EPOLLOUT == 0x004 && EPOLLERR == 0x008 &&
                   EPOLLHUP == 0x010 && EPOLLRDHUP == 0x2000 && EPOLLEXCLUSIVE == 1u << 28 &&
                   EPOLLET == 1u << 31,
               "the bits of epoll(7)");

_Static_assert(sizeof(struct linux_ledger_slot) == 64, "a cache line");
_Static_assert(sizeof(struct linux_ledger_header) == 64, "the routes begin behind it");

const int linux_SOCK_STREAM = SOCK_STREAM, linux_SOCK_DGRAM = SOCK_DGRAM,
          linux_SOCK_SEQPACKET = SOCK_SEQPACKET, linux_MSG_PEEK = MSG_PEEK,
          linux_MSG_TRUNC = MSG_TRUNC;

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

int linux_unread(int fd) {
    int bytes;
    return ioctl(fd, FIONREAD, &bytes) == -1 ? -1 : bytes;
}

int linux_disconnect(int fd) {
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    return connect(fd, &nowhere, sizeof nowhere);
}

int linux_tcp_counts(int fd, struct linux_tcp_counts *counts) {
    struct tcp_info info;
    memset(&info, 0, sizeof info);
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == -1) return -1;
    counts->state = info.tcpi_state;
    counts->bytes_acked = info.tcpi_bytes_acked;
    counts->bytes_received = info.tcpi_bytes_received;
    return 0;
}

const int linux_needed_seals = F_SEAL_SHRINK | F_SEAL_GROW;

int linux_seals(int fd) { return fcntl(fd, F_GET_SEALS); }

int linux_memfd(const char *name, size_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd == -1) return -1;
    if (ftruncate(fd, (off_t)size) == -1 ||
        fcntl(fd, F_ADD_SEALS, linux_needed_seals | F_SEAL_SEAL) == -1) {
        int code = errno;
        close(fd);
        errno = code;
        return -1;
    }
    return fd;
}

int linux_datagram_socket(void) { return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); }

int linux_datagram_pair(int ends[2]) {
    return socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends);
}

enum { most_descriptors = 4 };  // of one message of ours

ssize_t linux_send_descriptors(int fd, const void *bytes, size_t count, const int *descriptors,
                               int descriptor_count) {
    if (descriptor_count < 0 || descriptor_count > most_descriptors) {
        errno = EINVAL;
        return -1;
    }
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(most_descriptors * sizeof(int))];
    } control = {0};
    struct iovec vector = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (descriptor_count > 0) {
        size_t size = (size_t)descriptor_count * sizeof(int);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(size);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(header), descriptors, size);
    }
    return syscall(SYS_sendmsg, fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t linux_receive_descriptors(int fd, void *bytes, size_t limit, int *descriptors,
                                  int capacity, int *descriptor_count, int flags) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(most_descriptors * sizeof(int))];
    } control;
    struct iovec vector = {.iov_base = bytes, .iov_len = limit};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    *descriptor_count = 0;
    if (capacity > 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
    }
    ssize_t count = syscall(SYS_recvmsg, fd, &message, flags | MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (count == -1 || capacity <= 0) return count;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t received = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < received; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
            if (*descriptor_count < capacity) {
                descriptors[(*descriptor_count)++] = descriptor;
            } else {
                close(descriptor);
            }
        }
    }
    return count;
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
