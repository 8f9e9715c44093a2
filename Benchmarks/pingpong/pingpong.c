// Clients that never stop asking, and the target that answers: for gaps in a connection's service.
//
// pingpong target PORT
//     sends back what it receives; prints "ready" when it listens; serves until it is killed
// pingpong clients PORT COUNT PAUSE_MS
//     opens COUNT connections and has one exchange on each; prints "ready"; then every client
//     sends its number and a sequence number, waits until both have come back, pauses, and so on.
//     Lines on stdin: "mark" forgets the waits so far and prints "marked"; "report" prints one
//     JSON object about the time since.
//
// A wait is the time from a message to its whole answer. One that lasts counts with what it has
// lasted. An error (reset, end of stream, another answer than the right one) ends that client and
// is counted, the others go on: what a proxy does to one must not hide what it does to the rest.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { batch_size = 256, connect_seconds = 20 };

struct message {
    uint64_t client, sequence;
};

struct client {
    int fd;
    bool is_open, is_waiting;
    unsigned filled;  // bytes of `in` that have arrived
    struct message in, out;
    uint64_t sent, due;               // ns
    uint64_t longest, longest_began;  // ns; of the waits since the mark
};

static int epoll_fd;
static struct epoll_event events[batch_size];

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    int code = errno;
    va_list arguments;
    va_start(arguments, format);
    fputs("pingpong: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, " (errno: %s)\n", strerror(code));
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void watch(int fd, void *data) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

// ---- the target -------------------------------------------------------------------------------

static void serve(int fd) {
    static char bytes[4096];
    ssize_t got = recv(fd, bytes, sizeof bytes, 0);
    if (got < 0 && errno == EAGAIN) return;
    // A client has one small message under way, so the answer always fits.
    if (got <= 0 || send(fd, bytes, got, MSG_NOSIGNAL) != got) close(fd);
}

static void run_target(uint16_t port) {
    struct sockaddr_in address = loopback(port);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (listener < 0) fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    // Accepted sockets have it, too.
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(listener, 4096) < 0) fail("listen");
    watch(listener, (void *)(intptr_t)listener);
    say("ready");
    for (;;) {
        int count = epoll_wait(epoll_fd, events, batch_size, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = (intptr_t)events[i].data.ptr;
            if (fd != listener) {
                serve(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                watch(fd, (void *)(intptr_t)fd);
            if (errno != EAGAIN && errno != ECONNABORTED) fail("accept4");
        }
    }
}

// ---- the clients ------------------------------------------------------------------------------

static struct client *clients;
static int client_count;

// Those that pause, in the order in which they are due: all pauses are equally long.
static struct client **pausing;
static uint64_t pausing_first, pausing_end;

static uint64_t pause_ns, marked, exchanges, errors;
static char first_error[200];

static void start_pause(struct client *client, uint64_t due) {
    client->is_waiting = false;
    client->due = due;
    pausing[pausing_end++ % client_count] = client;
}

__attribute__((format(printf, 2, 3)))
static void end_client(struct client *client, const char *format, ...) {
    if (errors++ == 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(first_error, sizeof first_error, format, arguments);
        va_end(arguments);
    }
    close(client->fd);
    client->is_open = false;
}

static bool ask(struct client *client) {
    client->out.sequence++;
    client->filled = 0;
    client->is_waiting = true;
    client->sent = now();
    ssize_t sent = send(client->fd, &client->out, sizeof client->out, MSG_NOSIGNAL);
    return sent == (ssize_t)sizeof client->out;
}

static void note_wait(struct client *client, uint64_t end) {
    // A wait that began before the mark counts from the mark on.
    uint64_t began = client->sent > marked ? client->sent : marked;
    if (end <= began || end - began <= client->longest) return;
    client->longest = end - began;
    client->longest_began = began;
}

static void hear(struct client *client) {
    ssize_t got = recv(client->fd, (char *)&client->in + client->filled,
                       sizeof client->in - client->filled, 0);
    if (got < 0 && errno == EAGAIN) return;
    uint64_t time = now();
    double seconds = (time - marked) / 1e9;
    if (got < 0) {
        end_client(client, "%s %.3f s after the mark", strerror(errno), seconds);
        return;
    }
    if (got == 0) {
        end_client(client, "end of stream %.3f s after the mark", seconds);
        return;
    }
    client->filled += got;
    if (client->filled < sizeof client->in) return;
    if (!client->is_waiting || memcmp(&client->in, &client->out, sizeof client->in) != 0) {
        end_client(client, "client %lu has sequence %lu of client %lu instead of %lu",
                   client->out.client, client->in.sequence, client->in.client,
                   client->out.sequence);
        return;
    }
    note_wait(client, time);
    exchanges++;
    start_pause(client, time + pause_ns);
}

// One after another, each with a first exchange, so that no backlog is flooded.
static void open_clients(uint16_t port) {
    struct sockaddr_in address = loopback(port);
    struct timeval limit = {.tv_sec = connect_seconds};
    int on = 1;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        *client = (struct client){.is_open = true, .out.client = i};
        client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (client->fd < 0) fail("socket");
        setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (connect(client->fd, (struct sockaddr *)&address, sizeof address) < 0)
            fail("connect, client %d", i);
        if (!ask(client)) fail("send, client %d", i);
        ssize_t got = recv(client->fd, &client->in, sizeof client->in, MSG_WAITALL);
        if (got != sizeof client->in || memcmp(&client->in, &client->out, got) != 0)
            fail("client %d has no answer, %zd", i, got);
        if (fcntl(client->fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
        watch(client->fd, client);
    }
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void mark(void) {
    marked = now();
    exchanges = 0;
    for (int i = 0; i < client_count; i++) clients[i].longest = 0;
    say("marked");
}

static void report(void) {
    uint64_t time = now();
    struct client *worst = NULL;
    int open = 0, hit = 0;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (!client->is_open) continue;
        open++;
        if (client->is_waiting) note_wait(client, time);
        if (!worst || client->longest > worst->longest) worst = client;
    }
    // Of the others only those count that sent while the one with the longest wait waited: the
    // rest were in their pause and noticed nothing.
    uint64_t *waits = calloc(client_count, sizeof *waits);
    if (!waits) fail("calloc");
    for (int i = 0; worst && i < client_count; i++) {
        struct client *client = &clients[i];
        uint64_t after = client->longest_began - worst->longest_began;  // wraps if before
        if (client->is_open && client->longest > 0 && after < worst->longest)
            waits[hit++] = client->longest;
    }
    qsort(waits, hit, sizeof *waits, by_value);
    printf("{\"open\": %d, \"errors\": %lu, \"first_error\": \"%s\", \"exchanges\": %lu, "
           "\"wall_ms\": %.3f, \"longest_ms\": %.3f, \"hit\": %d, \"hit_p50_ms\": %.3f}\n",
           open, errors, first_error, exchanges, (time - marked) / 1e6,
           worst ? worst->longest / 1e6 : 0, hit, hit ? waits[hit / 2] / 1e6 : 0);
    fflush(stdout);
    free(waits);
}

// Reads what there is of stdin; a line is short and comes in one piece.
static void obey(void) {
    char line[64];
    ssize_t got = read(STDIN_FILENO, line, sizeof line);
    if (got <= 0) exit(0);
    if (got >= 4 && memcmp(line, "mark", 4) == 0) mark();
    else if (got >= 6 && memcmp(line, "report", 6) == 0) report();
    else fail("no such command");
}

static void ask_those_due(void) {
    uint64_t time = now();
    while (pausing_first != pausing_end) {
        struct client *client = pausing[pausing_first % client_count];
        if (client->is_open && client->due > time) break;
        pausing_first++;
        if (client->is_open && !ask(client)) end_client(client, "send: %s", strerror(errno));
    }
}

static void run_clients(uint16_t port) {
    open_clients(port);
    // Spread over one pause, lest they all ask at once for ever.
    for (int i = 0; i < client_count; i++)
        start_pause(&clients[i], now() + pause_ns * i / client_count);
    watch(STDIN_FILENO, NULL);
    say("ready");
    mark();
    for (;;) {
        ask_those_due();
        struct timespec timeout = {.tv_sec = 1};
        if (pausing_first != pausing_end) {
            uint64_t due = pausing[pausing_first % client_count]->due, time = now();
            uint64_t left = due > time ? due - time : 0;
            timeout = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
        }
        int count = epoll_pwait2(epoll_fd, events, batch_size, &timeout, NULL);
        if (count < 0 && errno != EINTR) fail("epoll_pwait2");
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client) hear(client);
            else obey();
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    if (argc == 3 && strcmp(argv[1], "target") == 0) {
        run_target(atoi(argv[2]));
    } else if (argc == 5 && strcmp(argv[1], "clients") == 0 && atoi(argv[3]) > 0) {
        client_count = atoi(argv[3]);
        pause_ns = atof(argv[4]) * 1e6;
        clients = calloc(client_count, sizeof *clients);
        pausing = calloc(client_count, sizeof *pausing);
        if (!clients || !pausing) fail("calloc");
        run_clients(atoi(argv[2]));
    }
    fputs("usage: see the head of pingpong.c\n", stderr);
    return 2;
}
