import CLinux
import Glibc
import NIOCore
import NIOPosix

/// The HTTP server that answers `GET /metrics`, on a thread of its own.
///
/// It stands on the open side of nobody's trust, so everything that a client can take has a limit:
/// time, bytes, and its place among the others. Whatever a client does, the relay's threads do not
/// wait for it: they share nothing with it but counters.
final class MetricsEndpoint: Sendable {
    /// Bounds on what clients can take. The defaults are for a host that anybody can reach.
    struct Limits: Sendable {
        /// Clients at once; one more, and the one that has been idle for longest is dropped.
        var connectionsMax = 64
        /// From a request's first byte (or the connect) to the end of its head, and again to the
        /// end of its body.
        var requestTimeout = TimeAmount.seconds(10)
        /// Between two requests. Above Prometheus' default scrape interval, so that it can keep
        /// its connection.
        var idleTimeout = TimeAmount.seconds(120)
        /// From the beginning of an answer until the kernel has taken all of it.
        var answerTimeout = TimeAmount.seconds(10)
        /// For the client's FIN after ours.
        var lingerTimeout = TimeAmount.seconds(1)
        /// Bytes of a head: target, names and values. Prometheus sends less than 1 KiB.
        var headBytes = 16 * 1024
        var headerFields = 100
        /// Bytes of a body; nothing here has a use for one.
        var bodyBytes = 64 * 1024
        /// Bytes of one read. All requests in it are answered before anybody else is heard.
        var readBytes = 4 * 1024
        /// Requests of one client that wait for their answers; after that many it is sent away.
        var queuedRequests = 1024
        /// Bytes that the kernel holds of each client's input.
        var receiveBuffer = 32 * 1024
        /// Descriptors kept for clients that come when the process has run out of them.
        var reservedDescriptors = 4
        /// After an error of accept(2) that time may heal; doubles from the first to the second.
        var acceptPauseMin = TimeAmount.milliseconds(50)
        var acceptPauseMax = TimeAmount.seconds(1)
        /// An accept error is reported again only after this long without one.
        var acceptOutage = TimeAmount.seconds(10)

        /// A request with all its framing, counted in whole reads.
        var rawRequestBytes: Int { 2 * (headBytes + bodyBytes) }
        /// Input dropped while waiting for the client's FIN.
        var lingerBytes: Int { rawRequestBytes }

        init() {}
    }

    enum Failure: Error, Equatable {
        /// No listening stream socket.
        case notListening(CInt)
        case alreadyStarted
    }

    private struct Running {
        let group: MultiThreadedEventLoopGroup
        let loopBound: NIOLoopBound<Server>
    }

    /// The part that lives on the loop.
    private final class Server {
        let service: MetricsService
        let listeners: [MetricsListener]

        init(service: MetricsService, listeners: [MetricsListener]) {
            self.service = service
            self.listeners = listeners
        }

        func stop() {
            for listener in listeners { listener.stop() }
            service.stop()
        }
    }

    private let descriptors: [CInt]
    private let limits: Limits
    private let scrapes: ScrapeCounts
    private let page: @Sendable (ExpositionFormat) -> String
    private let reportAcceptError: @Sendable (CInt) -> Void
    private let running = Locked<Running?>(nil)

    /// - Parameters:
    ///   - descriptors: bound and listening stream sockets, TCP or unix. They belong to the
    ///     endpoint from its start, and its stop closes them; the sockets are neither shut down
    ///     nor unlinked.
    ///   - scrapes: counts that the page may show.
    ///   - page: makes the page; called on the endpoint's thread, once per scrape.
    ///   - reportAcceptError: told the errno that begins an outage; called on that thread.
    init(
        listeningOn descriptors: [CInt], limits: Limits = Limits(),
        scrapes: ScrapeCounts = ScrapeCounts(),
        reportAcceptError: @escaping @Sendable (_ code: CInt) -> Void = { _ in },
        page: @escaping @Sendable (ExpositionFormat) -> String
    ) {
        self.descriptors = descriptors
        self.limits = limits
        self.scrapes = scrapes
        self.reportAcceptError = reportAcceptError
        self.page = page
    }

    /// Starts the thread and begins to accept; does nothing if there is nothing to listen on. The
    /// thread has the caller's signal mask.
    func start() throws {
        guard !descriptors.isEmpty else { return }
        try running.withLock { running in
            guard running == nil else { throw Failure.alreadyStarted }
            for descriptor in descriptors where !isListening(descriptor) {
                throw Failure.notListening(descriptor)
            }
            let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
            let loop = group.next()
            let server = try loop.submit { self.makeServer(on: loop) }.wait()
            running = Running(group: group, loopBound: server)
            try loop.flatSubmit {
                EventLoopFuture.andAllSucceed(
                    server.value.listeners.map { $0.open() }, on: loop)
            }.wait()
        }
    }

    /// Closes every connection and listener and ends the thread; returns when that is done. An
    /// endpoint that is not running is left alone.
    func stop() {
        close()
        guard let running = running.withLock({ $0.take() }) else { return }
        try? running.group.syncShutdownGracefully()
    }

    /// Closes every connection and listener and leaves the thread to the end of the process: NIO
    /// ends it by way of Dispatch, which complains on stderr where a sandbox denies it to set its
    /// threads' priorities.
    func close() {
        guard let running = running.withLock({ $0 }) else { return }
        try? running.group.next().submit { running.loopBound.value.stop() }.wait()
    }

    private func makeServer(on loop: any EventLoop) -> NIOLoopBound<Server> {
        let service = MetricsService(
            limits: limits, scrapes: scrapes, descriptor: descriptors[0], page: page,
            reportAcceptError: reportAcceptError)
        let listeners = descriptors.map {
            MetricsListener(adopting: $0, service: service, loop: loop)
        }
        return NIOLoopBound(Server(service: service, listeners: listeners), eventLoop: loop)
    }
}

/// True exactly when `descriptor` is a stream socket that listens.
private func isListening(_ descriptor: CInt) -> Bool {
    func option(_ name: CInt) -> CInt? {
        var value: CInt = 0
        var length = socklen_t(MemoryLayout<CInt>.size)
        let result = unsafe getsockopt(descriptor, SOL_SOCKET, name, &value, &length)
        return result == 0 ? value : nil
    }
    return option(SO_ACCEPTCONN) == 1 && option(SO_TYPE) == linux_SOCK_STREAM
}
