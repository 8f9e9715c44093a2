// Load and target of the benchmark: what stands on both sides of the relay that is measured.
//
// load target ECHO_PORT SINK_PORT SOURCE_PORT
//     serves until it is killed; prints "ready" when it listens
// load request-response|connect PORT CONNECTIONS WARMUP_SECONDS SECONDS [PID...]
//     64-byte exchanges over CONNECTIONS connections; "connect" opens a new one for each
// load bulk-to|bulk-from PORT CONNECTIONS BYTES [PID...]
//     BYTES in all, a share on each connection, to the target or from it
// load idle PORT CONNECTIONS [PID...]
//     opens them all, one exchange on each; reports; waits for a line on stdin; one more exchange
//     on each, reports again
// load start PORT RUNS COMMAND...
//     starts COMMAND, waits until PORT accepts, kills it; reports milliseconds since fork
//
// A report is one JSON object on a line of stdout. Every byte that arrives is compared with what
// must arrive; anything else, and any error or 20 s without progress, ends with a line on stderr
// and status 1. PIDs are processes whose CPU time is read at both ends of what is measured
// (process clocks: in nanoseconds, and ended threads count): the relay's, and with a minus sign
// the target's, which is added to that of the load itself.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    message_words = 8,
    message_size = message_words * 8,
    chunk_size = 256 << 10,
    batch_size = 256,
    stall_ms = 20000,
    // A prime, so that no block of the stream that a relay may lose, double or swap has a length
    // that the comparison cannot see.
    period = 1048573,
};

struct bulk_header {
    uint64_t length;  // bytes to come
    uint64_t offset;  // where in the pattern they begin
};

enum service { echo, sink, source, listener_count };

struct peer {
    int fd;
    enum service service;
    bool is_listener, is_open, watches_output;
    unsigned filled;  // bytes of `in` that have arrived
    uint64_t in[message_words], out[message_words];
    uint64_t left;      // bulk: bytes still to be moved
    uint64_t position;  // bulk: where in the pattern
    uint64_t began;     // ns
    uint64_t sequence;
};

static int epoll_fd;
static uint16_t target_port;
static unsigned char pattern[period + chunk_size];
static unsigned char chunk[chunk_size];
static struct epoll_event events[batch_size];

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    int code = errno;
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, " (errno: %s)\n", strerror(code));
    exit(1);
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec time;
    if (clock_gettime(clock, &time) < 0) fail("clock %d: is the process gone?", clock);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t now(void) { return clock_ns(CLOCK_MONOTONIC); }

static uint64_t mixed(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// ---- what is measured -------------------------------------------------------------------------

// Log-linear: 64 steps to each doubling, so a figure is off by at most 1.6 percent.
static uint32_t histogram[64 * 64];
enum party { relay, others, party_count };
static struct { enum party party; clockid_t clock; } processes[65];
static int process_count;
static struct { uint64_t operations, bytes, began, cpu[party_count]; } measured;

static unsigned bucket(uint64_t ns) {
    if (ns < 64) return ns;
    unsigned doubling = 63 - __builtin_clzll(ns) - 6;
    return (doubling + 1) * 64 + (ns >> doubling) - 64;
}

static double percentile_us(double part) {
    uint64_t total = 0, seen = 0;
    for (unsigned i = 0; i < sizeof histogram / sizeof *histogram; i++) total += histogram[i];
    for (unsigned i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (total > 0 && seen >= part * total)
            return (i < 64 ? i : (i % 64 + 64.5) * (1ull << (i / 64 - 1))) / 1e3;
    }
    return 0;
}

static void take_processes(int count, char **pids) {
    processes[process_count].party = others;
    processes[process_count++].clock = CLOCK_PROCESS_CPUTIME_ID;
    for (int i = 0; i < count && i < 64; i++) {
        int pid = atoi(pids[i]);
        processes[process_count].party = pid < 0 ? others : relay;
        if (clock_getcpuclockid(abs(pid), &processes[process_count++].clock) != 0)
            fail("no process %d", abs(pid));
    }
}

static uint64_t cpu_of(enum party party) {
    uint64_t sum = 0;
    for (int i = 0; i < process_count; i++)
        if (processes[i].party == party) sum += clock_ns(processes[i].clock);
    return sum;
}

static void begin_measurement(void) {
    memset(histogram, 0, sizeof histogram);
    measured.operations = measured.bytes = 0;
    for (int party = 0; party < party_count; party++) measured.cpu[party] = cpu_of(party);
    measured.began = now();
}

static void report(void) {
    uint64_t wall = now() - measured.began, cpu[party_count];
    for (int party = 0; party < party_count; party++)
        cpu[party] = cpu_of(party) - measured.cpu[party];
    printf("{\"operations\": %lu, \"bytes\": %lu, \"wall_ns\": %lu, \"cpu_ns\": %lu, "
           "\"others_cpu_ns\": %lu, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           measured.operations, measured.bytes, wall, cpu[relay], cpu[others],
           percentile_us(.5), percentile_us(.99));
    fflush(stdout);
}

// ---- sockets ----------------------------------------------------------------------------------

static void watch(struct peer *peer, int operation, uint32_t interest) {
    struct epoll_event event = {.events = interest, .data.ptr = peer};
    if (epoll_ctl(epoll_fd, operation, peer->fd, &event) < 0) fail("epoll_ctl");
}

static void watch_output(struct peer *peer, bool wanted) {
    if (peer->watches_output == wanted) return;
    peer->watches_output = wanted;
    watch(peer, EPOLL_CTL_MOD, wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static int wait_for_events(int timeout_ms) {
    int count;
    do count = epoll_wait(epoll_fd, events, batch_size, timeout_ms);
    while (count < 0 && errno == EINTR);
    if (count < 0) fail("epoll_wait");
    return count;
}

static int wait_for_progress(void) {
    int count = wait_for_events(stall_ms);
    if (count == 0) fail("no progress for %d s", stall_ms / 1000);
    return count;
}

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int tcp_socket(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), on = 1;
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void open_peer(struct peer *peer) {
    struct sockaddr_in address = loopback(target_port);
    // The handshake on loopback is done when connect returns, so this wait costs nothing.
    peer->fd = tcp_socket(0);
    if (connect(peer->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    if (fcntl(peer->fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
    peer->is_open = true;
    peer->watches_output = false;
    peer->filled = 0;
    watch(peer, EPOLL_CTL_ADD, EPOLLIN);
}

static void close_peer(struct peer *peer) {
    close(peer->fd);
    peer->is_open = false;
}

static void send_message(struct peer *peer, const void *message, size_t size) {
    ssize_t sent = send(peer->fd, message, size, MSG_NOSIGNAL);
    if (sent != (ssize_t)size) fail("send of %zu bytes: %zd", size, sent);
}

// Returns true once `size` bytes are in peer->in.
static bool receive_message(struct peer *peer, size_t size, bool eof_allowed) {
    ssize_t got = recv(peer->fd, (char *)peer->in + peer->filled, size - peer->filled, 0);
    if (got < 0 && errno == EAGAIN) return false;
    if (got == 0 && eof_allowed && peer->filled == 0) {
        close_peer(peer);
        return false;
    }
    if (got <= 0) fail("recv after %u of %zu bytes: %zd", peer->filled, size, got);
    peer->filled += got;
    return peer->filled == size;
}

// Sends the peer's share of the pattern as far as the socket takes it; true when all is sent.
static bool send_pattern(struct peer *peer) {
    while (peer->left > 0) {
        size_t size = peer->left < chunk_size ? peer->left : chunk_size;
        ssize_t sent = send(peer->fd, pattern + peer->position, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) fail("send with %lu bytes left", peer->left);
            watch_output(peer, true);
            return false;
        }
        peer->left -= sent;
        peer->position = (peer->position + sent) % period;
        if ((size_t)sent < size) {
            watch_output(peer, true);
            return false;
        }
    }
    watch_output(peer, false);
    return true;
}

// Reads one chunk and compares it with the pattern; true when the share is complete.
static bool receive_pattern(struct peer *peer) {
    ssize_t got = recv(peer->fd, chunk, sizeof chunk, 0);
    if (got < 0 && errno == EAGAIN) return false;
    if (got <= 0) fail("recv with %lu bytes to come: %zd", peer->left, got);
    if ((uint64_t)got > peer->left) fail("%lu bytes too many", got - peer->left);
    if (memcmp(chunk, pattern + peer->position, got) != 0)
        fail("wrong bytes with %lu to come", peer->left);
    peer->left -= got;
    peer->position = (peer->position + got) % period;
    return peer->left == 0;
}

// ---- the target -------------------------------------------------------------------------------

static struct peer *free_peers[65536];
static int free_peer_count;

static void serve(struct peer *peer, uint32_t happened) {
    switch (peer->service) {
    case echo:
        if (!receive_message(peer, message_size, true)) break;
        peer->filled = 0;
        for (int i = 0; i < message_words; i++) peer->out[i] = ~peer->in[i];
        send_message(peer, peer->out, message_size);
        break;
    case sink:
        if (peer->left == 0) {
            if (!receive_message(peer, sizeof(struct bulk_header), true)) break;
            struct bulk_header *header = (struct bulk_header *)peer->in;
            peer->left = header->length;
            peer->position = header->offset % period;
            peer->filled = 0;
        }
        if (receive_pattern(peer)) send_message(peer, peer->in, sizeof(struct bulk_header));
        break;
    default:
        if (happened & EPOLLOUT) send_pattern(peer);
        if (happened & EPOLLIN && receive_message(peer, sizeof(struct bulk_header), true)) {
            struct bulk_header *header = (struct bulk_header *)peer->in;
            peer->left = header->length;
            peer->position = header->offset % period;
            peer->filled = 0;
            send_pattern(peer);
        }
    }
    if (!peer->is_open) free_peers[free_peer_count++] = peer;
}

static void accept_peers(struct peer *listener) {
    int fd, on = 1;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *peer = free_peer_count ? free_peers[--free_peer_count] : malloc(sizeof *peer);
        if (!peer) fail("malloc");
        *peer = (struct peer){.fd = fd, .service = listener->service, .is_open = true};
        watch(peer, EPOLL_CTL_ADD, EPOLLIN);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) fail("accept4");
}

static void run_target(char **ports) {
    static struct peer listeners[listener_count];
    for (int i = 0; i < listener_count; i++) {
        struct sockaddr_in address = loopback(atoi(ports[i]));
        int on = 1;
        listeners[i] = (struct peer){.fd = tcp_socket(SOCK_NONBLOCK), .is_listener = true};
        listeners[i].service = i;
        setsockopt(listeners[i].fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(listeners[i].fd, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
        if (listen(listeners[i].fd, 4096) < 0) fail("listen");
        watch(&listeners[i], EPOLL_CTL_ADD, EPOLLIN);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = wait_for_events(-1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (peer->is_listener) {
                accept_peers(peer);
                continue;
            }
            // A connection may end as it likes (a relay is killed after each run): what it
            // carried is checked, and counted, by the side that asked for it.
            int error = 0;
            socklen_t size = sizeof error;
            if (events[i].events & EPOLLERR) {
                getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                close_peer(peer);
                free_peers[free_peer_count++] = peer;
            } else {
                serve(peer, events[i].events);
            }
        }
    }
}

// ---- the workloads ----------------------------------------------------------------------------

static void ask(struct peer *peer) {
    peer->sequence++;
    for (int i = 0; i < message_words; i++)
        peer->out[i] = mixed((uintptr_t)peer ^ peer->sequence << 8 ^ i);
    peer->filled = 0;
    send_message(peer, peer->out, message_size);
}

// Returns true when the whole reply has come.
static bool answered(struct peer *peer) {
    if (!receive_message(peer, message_size, false)) return false;
    for (int i = 0; i < message_words; i++)
        if (peer->in[i] != ~peer->out[i]) fail("wrong reply");
    histogram[bucket(now() - peer->began)]++;
    measured.operations++;
    measured.bytes += message_size;
    return true;
}

static struct peer *new_peers(int count) {
    struct peer *peers = calloc(count, sizeof *peers);
    if (!peers) fail("calloc");
    return peers;
}

static void run_exchanges(bool connect_each, int connections, double warmup, double seconds) {
    struct peer *peers = new_peers(connections);
    for (int i = 0; i < connections; i++) {
        peers[i].began = now();
        open_peer(&peers[i]);
        ask(&peers[i]);
    }
    uint64_t start = now() + warmup * 1e9, end = start + seconds * 1e9;
    bool warm = false;
    for (;;) {
        int count = wait_for_progress();
        uint64_t time = now();
        if (!warm && time >= start) {
            warm = true;
            begin_measurement();
        }
        if (time >= end) break;
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!answered(peer)) continue;
            if (connect_each) {
                close_peer(peer);
                peer->began = now();
                open_peer(peer);
            } else {
                peer->began = now();
            }
            ask(peer);
        }
    }
    report();
}

static void run_bulk(bool to_target, int connections, uint64_t bytes) {
    struct peer *peers = new_peers(connections);
    begin_measurement();
    for (int i = 0; i < connections; i++) {
        open_peer(&peers[i]);
        peers[i].left = bytes / connections;
        peers[i].position = mixed(i) % period;
        struct bulk_header header = {peers[i].left, peers[i].position};
        memcpy(peers[i].out, &header, sizeof header);
        send_message(&peers[i], &header, sizeof header);
        if (to_target) send_pattern(&peers[i]);
    }
    for (int left = connections; left > 0;) {
        int count = wait_for_progress();
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            bool done;
            if (to_target) {
                if (events[i].events & EPOLLOUT) send_pattern(peer);
                done = events[i].events & EPOLLIN &&
                       receive_message(peer, sizeof(struct bulk_header), false);
                if (done && (peer->left > 0 || memcmp(peer->in, peer->out, peer->filled) != 0))
                    fail("the target confirms what was not sent");
            } else {
                done = receive_pattern(peer);
            }
            if (done) {
                measured.operations++;
                measured.bytes += bytes / connections;
                close_peer(peer);
                left--;
            }
        }
    }
    report();
}

// At most 64 exchanges at once, as a flood would measure the backlog.
static void exchange_once(struct peer *peers, int connections) {
    int asked = 0, replies = 0;
    begin_measurement();
    while (replies < connections) {
        for (; asked < connections && asked < replies + 64; asked++) {
            peers[asked].began = now();
            if (!peers[asked].is_open) open_peer(&peers[asked]);
            ask(&peers[asked]);
        }
        int count = wait_for_progress();
        for (int i = 0; i < count; i++) replies += answered(events[i].data.ptr);
    }
    report();
}

static void run_idle(int connections) {
    struct peer *peers = new_peers(connections);
    exchange_once(peers, connections);
    // What the connections cost while nothing happens: CPU until the line on stdin.
    begin_measurement();
    char line;
    if (read(STDIN_FILENO, &line, 1) < 0) fail("stdin");
    report();
    exchange_once(peers, connections);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_start(int runs, char **command) {
    double times[1000];
    if (runs < 1 || runs > 1000) fail("runs: 1 to 1000");
    for (int i = 0; i < runs; i++) {
        uint64_t began = now();
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            setpgid(0, 0);
            execvp(command[0], command);
            fail("%s", command[0]);
        }
        struct sockaddr_in address = loopback(target_port);
        for (;;) {
            int fd = tcp_socket(0);
            int result = connect(fd, (struct sockaddr *)&address, sizeof address);
            uint64_t time = now() - began;
            close(fd);
            if (result == 0) {
                times[i] = time / 1e6;
                break;
            }
            if (time > stall_ms * 1000000ull) fail("%s does not listen", command[0]);
            if (waitpid(pid, NULL, WNOHANG) == pid) fail("%s has ended", command[0]);
            usleep(100);
        }
        kill(-pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    qsort(times, runs, sizeof *times, by_value);
    printf("{\"median_ms\": %.2f, \"min_ms\": %.2f}\n", times[runs / 2], times[0]);
}

static void usage(void) {
    fputs("usage: see the head of load.c\n", stderr);
    exit(2);
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    for (size_t i = 0; i < period; i++) pattern[i] = mixed(i / 8) >> i % 8 * 8;
    memcpy(pattern + period, pattern, chunk_size);

    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "target") == 0) {
        if (argc != 5) usage();
        run_target(argv + 2);
    }
    if (argc < 4) usage();
    target_port = atoi(argv[2]);
    int connections = atoi(argv[3]);
    if (connections < 1) usage();
    if (strcmp(mode, "idle") == 0) {
        take_processes(argc - 4, argv + 4);
        run_idle(connections);
    } else if (strcmp(mode, "start") == 0) {
        if (argc < 5) usage();
        run_start(connections, argv + 4);
    } else if (strncmp(mode, "bulk-", 5) == 0) {
        if (argc < 5) usage();
        take_processes(argc - 5, argv + 5);
        run_bulk(strcmp(mode, "bulk-to") == 0, connections, strtoull(argv[4], NULL, 10));
    } else {
        if (argc < 6) usage();
        take_processes(argc - 6, argv + 6);
        run_exchanges(strcmp(mode, "connect") == 0, connections, atof(argv[4]), atof(argv[5]));
    }
    return 0;
}
