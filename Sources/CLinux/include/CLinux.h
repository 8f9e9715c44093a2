// What Swift's Glibc module lacks: epoll, splice, accept4, pipe2 and a few constants that are
// macros with casts. Every function here is the system call of the same name and nothing more.
#ifndef CLINUX_H
#define CLINUX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

// An enumeration in Glibc, which may end up in one Clang module or another.
extern const int linux_SOCK_STREAM, linux_SOCK_DGRAM, linux_SOCK_SEQPACKET;

int linux_epoll_create(void);
int linux_epoll_add(int epoll, int fd, uint32_t events, uint64_t token);
int linux_epoll_modify(int epoll, int fd, uint32_t events, uint64_t token);
int linux_epoll_delete(int epoll, int fd);
int linux_epoll_wait(int epoll, struct epoll_event *events, int capacity, int timeout_ms);

// Glibc's own are cancellation points: in a process with threads each call sets the thread's
// cancellation state twice, a tenth of all user time here. Nobody cancels a thread of ours.
ssize_t linux_recv(int fd, void *buffer, size_t limit, int flags);
ssize_t linux_send(int fd, const void *buffer, size_t count);  // MSG_NOSIGNAL
int linux_connect(int fd, const struct sockaddr *address, socklen_t length);
int linux_close(int fd);
int linux_accept4(int fd, struct sockaddr *address, socklen_t *length);  // non-blocking, CLOEXEC
int linux_stream_socket(int family);                                     // non-blocking, CLOEXEC
int linux_pipe(int ends[2]);                                             // non-blocking, CLOEXEC
int linux_set_pipe_size(int fd, int bytes);
int linux_get_pipe_size(int fd);
ssize_t linux_splice(int from, int to, size_t limit);  // SPLICE_F_MOVE | SPLICE_F_NONBLOCK

int linux_eventfd(void);  // non-blocking, CLOEXEC
int linux_signalfd(const int *signals, int count);
int linux_block_signals(const int *signals, int count);  // for the whole process: call before threads
int linux_unsent(int fd);  // SIOCOUTQ, -1 if it is not a socket
int linux_set_nonblocking(int fd);
int linux_set_cloexec(int fd);
int linux_cpus_allowed(void);  // sched_getaffinity(2)
void linux_name_thread(const char *name);

#endif
