// The floor: the least that a relay of TCP connections costs, as a yardstick for the proxy.
//
// One thread, epoll edge-triggered. A direction copies (recv and send through one scratch buffer)
// until a read fills the scratch; then it splices through a pooled pipe, and begins its next turn
// so, until a turn moves little. Bytes that the other side does not take wait in the pipe. It
// relays correctly, half-close and reset included, but it is no product: one target that is near
// (a FIN must not overtake the handshake), no out-of-band data, no timeouts, no limits, no
// metrics, and it ends when the descriptors do.
//
// usage: floor LISTEN_PORT TARGET_PORT        (both on 127.0.0.1)

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    scratch_size = 64 << 10,
    pipe_size = 256 << 10,
    turn_budget = 1 << 20,  // bytes that one direction may move before others get their turn
    accept_batch = 16,
    batch_size = 256,
};

// A pipe is held only while it carries bytes.
struct pipe {
    int read_end, write_end;
    struct pipe *next;
};

// One socket of a connection, and the direction that reads from it and writes to its peer.
struct side {
    int fd;
    unsigned in_pipe;     // bytes read from here that the peer has not taken yet
    struct pipe *pipe;    // holds them; null when there are none
    bool readable;        // no read has said "drained" since the last EPOLLIN
    bool fin_seen;        // EPOLLRDHUP: once drained, the stream is at its end
    bool ended;           // every byte up to the FIN has been read
    bool finished;        // ... and written, and the FIN passed on
    bool bulk;            // the last turn filled the scratch: splice from the start
    bool peer_blocked;    // the peer's send buffer is full: wait for its EPOLLOUT
    bool muted;           // this socket's interest lacks EPOLLIN
    bool watches_output;  // this socket's interest has EPOLLOUT
};

struct connection {
    struct side side[2];  // client, target
    struct connection *next;
    bool closed;
    bool queued;
};

static int epoll_fd, listen_fd;
static struct sockaddr_in target_address;
static char scratch[scratch_size];
static struct pipe *free_pipes;
static struct connection *free_connections;
static struct connection *closed_connections;  // until the batch ends: its events may name them
static struct connection *run_queue;           // had more to do than their turn allowed

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct pipe *take_pipe(void) {
    struct pipe *pipe = free_pipes;
    if (pipe) {
        free_pipes = pipe->next;
        return pipe;
    }
    int ends[2];
    if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) die("pipe2");
    if (fcntl(ends[0], F_SETPIPE_SZ, pipe_size) < 0) die("F_SETPIPE_SZ");
    if (!(pipe = malloc(sizeof *pipe))) die("malloc");
    *pipe = (struct pipe){.read_end = ends[0], .write_end = ends[1]};
    return pipe;
}

static void release_pipe(struct side *side) {
    side->pipe->next = free_pipes;
    free_pipes = side->pipe;
    side->pipe = NULL;
}

static void close_connection(struct connection *connection, bool reset) {
    for (int i = 0; i < 2; i++) {
        struct side *side = &connection->side[i];
        if (reset) {
            struct linger linger = {.l_onoff = 1, .l_linger = 0};
            setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        }
        close(side->fd);
        if (side->pipe) {  // still carries bytes, so it is of no use to another connection
            close(side->pipe->read_end);
            close(side->pipe->write_end);
            free(side->pipe);
        }
    }
    connection->closed = true;
    if (!connection->queued) {
        connection->next = closed_connections;
        closed_connections = connection;
    }
}

static void watch(struct connection *connection, int side_index, int operation) {
    struct side *side = &connection->side[side_index];
    struct epoll_event event = {
        .events = EPOLLRDHUP | EPOLLET | (side->muted ? 0 : EPOLLIN) |
                  (side->watches_output ? EPOLLOUT : 0),
        .data.u64 = (uintptr_t)connection | (unsigned)side_index,
    };
    if (epoll_ctl(epoll_fd, operation, side->fd, &event) < 0) die("epoll_ctl");
}

// EPOLLOUT is asked for at the first full send buffer and left on: most sockets never need it,
// and those that do will again.
static void wait_for_output(struct connection *connection, int from) {
    connection->side[from].peer_blocked = true;
    if (connection->side[!from].watches_output) return;
    connection->side[!from].watches_output = true;
    watch(connection, !from, EPOLL_CTL_MOD);
}

// While the peer is blocked, each segment that arrives would wake us for nothing: in bulk that
// was a wake-up for nearly every segment, and a fifth to a third of all CPU.
static void mute(struct connection *connection, int from, bool muted) {
    if (connection->side[from].muted == muted) return;
    connection->side[from].muted = muted;
    watch(connection, from, EPOLL_CTL_MOD);
}

enum outcome { more, waiting, failed };

static enum outcome send_scratch(struct connection *connection, int from, size_t length) {
    struct side *side = &connection->side[from];
    ssize_t sent = send(connection->side[!from].fd, scratch, length, MSG_NOSIGNAL);
    if (sent == (ssize_t)length) return more;
    if (sent < 0) {
        if (errno != EAGAIN) return failed;
        sent = 0;
    }
    side->pipe = take_pipe();
    side->in_pipe = length - sent;
    if (write(side->pipe->write_end, scratch + sent, side->in_pipe) != side->in_pipe) die("write");
    wait_for_output(connection, from);
    return waiting;
}

static enum outcome empty_pipe(struct connection *connection, int from) {
    struct side *side = &connection->side[from];
    while (side->in_pipe > 0) {
        ssize_t moved = splice(side->pipe->read_end, NULL, connection->side[!from].fd, NULL,
                               side->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (moved <= 0) {
            if (moved == 0 || errno != EAGAIN) return failed;
            wait_for_output(connection, from);
            return waiting;
        }
        side->in_pipe -= moved;
    }
    return more;
}

// Moves what side `from` has to its peer until one of them would block, the stream ends or the
// turn is over (then it returns `more`).
static enum outcome pump(struct connection *connection, int from) {
    struct side *side = &connection->side[from];
    if (side->pipe) {
        enum outcome outcome = empty_pipe(connection, from);
        if (outcome != more) return outcome;
        release_pipe(side);
    }
    bool splicing = side->bulk;
    size_t moved = 0;
    enum outcome outcome = more;
    while (side->readable && !side->ended && outcome == more && moved < turn_budget) {
        ssize_t got;
        if (splicing) {
            if (!side->pipe) side->pipe = take_pipe();
            got = splice(side->fd, NULL, side->pipe->write_end, NULL, pipe_size,
                         SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        } else {
            got = recv(side->fd, scratch, scratch_size, 0);
        }
        if (got < 0) {
            if (errno != EAGAIN) return failed;
            side->readable = false;  // the pipe is empty here, so it is the socket that is
        } else if (got == 0) {
            side->ended = true;
        } else if (splicing) {
            moved += got;
            side->in_pipe = got;
            outcome = empty_pipe(connection, from);
        } else {
            moved += got;
            splicing = got == scratch_size;
            if (!splicing) {
                // A short read has drained the socket, and saves the read that would say so.
                side->readable = false;
                side->ended = side->fin_seen;
            }
            outcome = send_scratch(connection, from, got);
        }
    }
    side->bulk = moved >= scratch_size;
    if (side->pipe && side->in_pipe == 0) release_pipe(side);
    if (outcome == more && (!side->readable || side->ended)) return waiting;
    return outcome;
}

static void finish(struct connection *connection, int from) {
    struct side *side = &connection->side[from];
    if (!side->ended || side->pipe || side->finished) return;
    side->finished = true;
    if (connection->side[!from].finished) {
        close_connection(connection, false);  // close sends the second FIN
    } else if (shutdown(connection->side[!from].fd, SHUT_WR) < 0) {
        close_connection(connection, true);
    }
}

static void enqueue(struct connection *connection) {
    if (connection->queued) return;
    connection->queued = true;
    connection->next = run_queue;
    run_queue = connection;
}

static void run_direction(struct connection *connection, int from) {
    if (connection->closed) return;
    switch (pump(connection, from)) {
    case failed: close_connection(connection, true); return;
    case more: enqueue(connection); return;
    case waiting: finish(connection, from);
    }
}

static void handle(struct connection *connection, int side_index, uint32_t events) {
    if (connection->closed) return;
    struct side *side = &connection->side[side_index];
    struct side *other = &connection->side[!side_index];
    if (events & EPOLLERR) {
        close_connection(connection, true);  // a reset, or the target refused
        return;
    }
    if (events & EPOLLRDHUP) side->fin_seen = true;
    if (events & EPOLLIN) {
        side->readable = true;
        if (side->peer_blocked) mute(connection, side_index, true);
        else run_direction(connection, side_index);
    }
    if (events & EPOLLOUT && other->peer_blocked) {
        other->peer_blocked = false;
        mute(connection, !side_index, false);
        run_direction(connection, !side_index);
    }
}

// There is no state "connecting": a send to a socket that is not connected yet says EAGAIN, so
// early bytes wait in a pipe, and a refused connection shows as EPOLLERR.
static void accept_connections(void) {
    for (int i = 0; i < accept_batch; i++) {
        int client = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return;
            die("accept4");
        }
        int target = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (target < 0) die("socket");
        int on = 1;
        setsockopt(target, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(target, (struct sockaddr *)&target_address, sizeof target_address) < 0 &&
            errno != EINPROGRESS)
            die("connect");
        struct connection *connection = free_connections;
        if (connection) free_connections = connection->next;
        else if (!(connection = malloc(sizeof *connection))) die("malloc");
        *connection = (struct connection){.side = {{.fd = client}, {.fd = target}}};
        watch(connection, 0, EPOLL_CTL_ADD);
        watch(connection, 1, EPOLL_CTL_ADD);
    }
}

static void listen_on(uint16_t port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int on = 1;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listen_fd < 0) die("socket");
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // accepted ones inherit it
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listen_fd, 4096) < 0) die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event) < 0) die("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: floor LISTEN_PORT TARGET_PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);  // splice has no MSG_NOSIGNAL
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    target_address.sin_family = AF_INET;
    target_address.sin_port = htons(atoi(argv[2]));
    target_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    listen_on(atoi(argv[1]));

    static struct epoll_event events[batch_size];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, batch_size, run_queue ? 0 : -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            uintptr_t data = events[i].data.u64;
            if (data == 0) accept_connections();
            else handle((struct connection *)(data & ~(uintptr_t)1), data & 1, events[i].events);
        }
        struct connection *queue = run_queue;
        run_queue = NULL;
        while (queue) {
            struct connection *connection = queue;
            queue = connection->next;
            connection->queued = false;
            if (connection->closed) {
                connection->next = closed_connections;
                closed_connections = connection;
            }
            for (int from = 0; from < 2; from++)
                if (!connection->side[from].peer_blocked) run_direction(connection, from);
        }
        while (closed_connections) {
            struct connection *connection = closed_connections;
            closed_connections = connection->next;
            connection->next = free_connections;
            free_connections = connection;
        }
    }
}
