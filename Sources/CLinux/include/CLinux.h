// What Swift's Glibc module lacks: epoll, splice, accept4, pipe2 and a few constants that are
// macros with casts. Most functions here are the system call of the same name; the others put one
// call's arguments together.
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

// Enumerations in Glibc, which may end up in one Clang module or another.
extern const int linux_SOCK_STREAM, linux_SOCK_DGRAM, linux_SOCK_SEQPACKET,
    linux_MSG_PEEK, linux_MSG_TRUNC;

// What the kernel counts of a TCP stream: RFC 4898's HCThruOctets. Both include a SYN or FIN.
struct linux_tcp_counts {
    uint8_t state;  // TCP_ESTABLISHED and so on, 1 to 12
    uint64_t bytes_acked, bytes_received;
};

// A connection's place in a ledger's table (Preserve/LedgerTable.swift): one cache line in memory
// that outlives the process. Only ever extended by a new layout number.
struct linux_ledger_slot {
    uint64_t serial;  // of the entry that the slot belongs to; 0 if it is free
    uint64_t bytes_in, bytes_out;
    uint64_t pipe_to_target, pipe_to_client;  // the pipe's number; 0 for none
    uint64_t bytes_at_resumption;             // in + out
    uint16_t broken_by;                       // errno of the side that broke; 0 if none did
    uint8_t broken_side, first_to_finish;     // 0 for none, 1 client, 2 target
    uint8_t is_copying;  // 1 while bytes may be in the process alone
    uint8_t is_handled;  // 1 while the worker is at work on the connection
    uint8_t crashes;     // in a row, each while it was handled
    uint8_t reserved[9];
};

// The first page of a ledger's table.
struct linux_ledger_header {
    uint64_t magic;
    uint32_t layout, slot_size, slot_count;
    uint32_t attempts;        // resumptions begun since one was completed
    uint64_t worker;          // which of the process's workers it belongs to
    uint64_t last_sign;       // of life, CLOCK_MONOTONIC in nanoseconds
    uint64_t handed_over_at;  // the same clock; 0 while the process runs and after a crash
    uint32_t has_pipes;       // 1 once a pipe was entered, or mapped
    uint32_t routes_size;     // bytes behind the header: its connections' routes, each name after a
                              // byte with its length
    uint64_t reserved;
};

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
int linux_unread(int fd);  // FIONREAD, -1 if it has none
int linux_disconnect(int fd);  // connect(2) to AF_UNSPEC: TCP sends a reset, whoever holds copies
int linux_tcp_counts(int fd, struct linux_tcp_counts *counts);  // TCP_INFO, tcp(7)
int linux_memfd(const char *name, size_t size);  // CLOEXEC, sealed against growing and shrinking
extern const int linux_needed_seals;             // those of linux_memfd
int linux_seals(int fd);                         // F_GET_SEALS, -1 if it is no memfd
int linux_datagram_socket(void);                 // AF_UNIX, CLOEXEC
int linux_datagram_pair(int ends[2]);            // AF_UNIX, non-blocking, CLOEXEC
// sendmsg(2) with SCM_RIGHTS, unix(7).
ssize_t linux_send_descriptors(int fd, const void *bytes, size_t count, const int *descriptors,
                               int descriptor_count);
// recvmsg(2) with MSG_CMSG_CLOEXEC and the flags. Descriptors beyond the capacity are closed.
ssize_t linux_receive_descriptors(int fd, void *bytes, size_t limit, int *descriptors,
                                  int capacity, int *descriptor_count, int flags);
int linux_set_nonblocking(int fd);
int linux_set_cloexec(int fd);
int linux_cpus_allowed(void);  // sched_getaffinity(2)
void linux_name_thread(const char *name);

#endif
