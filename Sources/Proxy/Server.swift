// Assembles the parts, starts them in order, watches over them, and ends them. The table of
// contents: a connection's life is Listen/Accepting, Dial/Dialling, Relay/Relay, Close/Closing.

import Glibc

/// One run of the proxy, from its start to the end of its drain.
public final class Server {
    private let options: Options
    private let signals: Signals
    private let shared: Shared
    private let routes: [Route]
    private var listeners: [Listener]
    private let metrics: MetricsEndpoint
    private let metricsAddress: SocketAddress?
    private var workers: [Worker] = []
    private let mostWorkers: Int
    private var newestWorkerAt = Instant.now()

    /// Descriptors that the proxy opens for itself: standard streams, epolls and event counters,
    /// the metrics' listener and loop.
    private static let ownDescriptors = 32

    /// Opens the listening sockets and makes everything ready; nothing is accepted yet.
    ///
    /// To be called before the process has a second thread, for it blocks signals.
    public init(_ options: Options) throws(StartError) {
        self.options = options
        mostWorkers = options.workers ?? Processors.available()
        let shared: Shared
        do throws(SystemError) {
            signals = try Signals()
            shared = try Shared(
                log: try Log(), resolver: try Resolver(),
                descriptors: DescriptorBudget(
                    limit: DescriptorBudget.raiseLimit(), inUse: Self.ownDescriptors),
                admission: AdmissionLimit(limit: options.connectionsMax))
        } catch {
            throw StartError(description: "cannot start: \(error)")
        }
        self.shared = shared
        routes = [
            Route(
                name: "default", index: 0, targets: [options.target],
                connectTimeout: options.connectTimeout, idleTimeout: options.idleTimeout,
                admission: AdmissionLimit(limit: nil), log: options.logConnections,
                patient: false)
        ]
        var listeners: [Listener] = []
        try Binding.open(options.listen, option: "--listen") { socket throws(StartError) in
            do throws(SystemError) {
                listeners.append(try Listener(socket, routeIndex: 0, isInherited: false))
            } catch {
                throw StartError(description: "cannot listen: \(error)")
            }
        }
        self.listeners = listeners
        (metrics, metricsAddress) = try Self.openMetrics(
            options.metrics, shared, routeNames: routes.map(\.name))
    }

    private static func openMetrics(
        _ endpoint: Endpoint?, _ shared: Shared, routeNames: [String]
    ) throws(StartError) -> (MetricsEndpoint, SocketAddress?) {
        var descriptors: [CInt] = []
        if let endpoint {
            try Binding.open(endpoint, option: "--metrics") { socket throws(StartError) in
                descriptors.append(socket.release())
            }
        }
        let address = descriptors.first.flatMap { try? Socket.localAddress($0) }
        let scrapes = ScrapeCounts()
        let page = MetricsPage(
            shared: shared, routeNames: routeNames, process: ProcessMetrics(), scrapes: scrapes,
            id: UUID.random())
        let log = shared.log
        let metrics = MetricsEndpoint(
            listeningOn: descriptors, scrapes: scrapes,
            reportAcceptError: { code in
                let error = SystemError(call: "accept", code: code)
                log.line(.warning, .metricsFailed, "metrics: \(error)")
            },
            page: { page.write($0) })
        return (metrics, address)
    }

    // MARK: Run

    /// Serves until a signal ends it, and returns the exit status: 0 after a drain, 1 if
    /// connections were cut.
    public func run() throws(StartError) -> Int32 {
        shared.log.start()
        try startMetrics()
        try startWorker()
        for worker in workers { worker.mailbox.post(.listen(listeners)) }
        sayStarted()
        warnOfUnresolved()

        while true {
            let received = signals.wait(orFor: shared.notice, milliseconds: watchInterval())
            if received.contains(where: { $0 == SIGTERM || $0 == SIGINT }) {
                return finish(drain(isUrgent: received.filter { $0 != SIGHUP }.count > 1))
            }
            if shared.takeBusy() { addWorker() }
            watchDescriptors()
            if isIdleTooLong() { return finish(drain(isUrgent: false)) }
        }
    }

    /// Milliseconds until there is something to look at even if nothing happens.
    private func watchInterval() -> CInt {
        if shared.isOutOfDescriptors { return 250 }
        guard let idleTime = options.exitIdleTime, isActivated else { return -1 }
        let since = shared.admission.count > 0 ? Instant.now() : shared.lastConnectionEnd
        let at = since.advanced(by: idleTime)
        return CInt(clamping: at.nanoseconds(since: Instant.now()) / 1_000_000 + 1)
    }

    private func startMetrics() throws(StartError) {
        guard metricsAddress != nil else { return }
        do {
            try metrics.start()
        } catch {
            throw StartError(description: "cannot serve metrics: \(error)")
        }
    }

    private func sayStarted() {
        let places = listeners.map(\.address.description).joined(separator: ", ")
        let scrape = metricsAddress.map { address in
            address.isUnix ? "metrics on \(address)" : "metrics on http://\(address)/metrics"
        }
        shared.log.line(
            .notice, .started,
            "tcp-metrics-proxy \(proxyVersion) listening on \(places), target \(options.target), "
                + (scrape ?? "no metrics"))
    }

    /// A name that is not known yet may be later: each connection asks again.
    private func warnOfUnresolved() {
        for target in routes.flatMap(\.targets) where target.fixed == nil {
            guard case .host(let host, let port) = target.endpoint else { continue }
            let log = shared.log
            shared.resolver.lookUp(host: host, port: port) { addresses in
                if !addresses.isEmpty { return }
                log.line(
                    .warning, .targetUnresolved,
                    "target \(quoted(target.endpoint.description)) does not resolve now: "
                        + "it is looked up again for each connection")
            }
        }
    }

    // MARK: Workers

    private func startWorker() throws(StartError) {
        do throws(SystemError) {
            let worker = try Worker(number: workers.count, shared: shared, routes: routes)
            shared.add(worker.counterSet)
            workers.append(worker)
            worker.start()
        } catch {
            throw StartError(description: "cannot start a worker: \(error)")
        }
    }

    /// One more worker, if there may be one: those that run have more to do than they can.
    private func addWorker() {
        let now = Instant.now()
        guard workers.count < mostWorkers,
            now.nanoseconds(since: newestWorkerAt) > 2 * LoadWindow.length
        else { return }
        newestWorkerAt = now
        do throws(StartError) {
            try startWorker()
        } catch {
            return  // no descriptors for it: the others go on
        }
        workers.last?.mailbox.post(.listen(listeners))
        shared.log.line(
            .info, .workerStarted, "worker \(workers.count) of at most \(mostWorkers) started")
    }

    // MARK: Watching

    private func watchDescriptors() {
        guard shared.isOutOfDescriptors, shared.descriptors.hasRoom else { return }
        if DescriptorBudget.kernelHasRoom() { shared.descriptorsCameBack() }
    }

    /// True exactly when --exit-idle-time= is over; it counts only where systemd can start the
    /// proxy again.
    private func isIdleTooLong() -> Bool {
        guard let idleTime = options.exitIdleTime, isActivated, shared.admission.count == 0
        else { return false }
        return Instant.now() >= shared.lastConnectionEnd.advanced(by: idleTime)
    }

    private var isActivated: Bool { listeners.contains(where: \.isInherited) }

    // MARK: The end

    private func finish(_ status: Int32) -> Int32 {
        metrics.stop()
        shared.log.close()
        return status
    }

    /// Stops accepting, waits for what is open, and returns the exit status.
    private func drain(isUrgent: Bool) -> Int32 {
        shared.beginDraining()
        for worker in workers { worker.mailbox.post(.drain) }
        closeListeners()
        var drain = Drain(startedAt: Instant.now(), timeout: options.drainTimeout)
        var cutBy: CloseReason? = isUrgent ? .stopped : nil
        while cutBy == nil {
            let now = Instant.now()
            let open = shared.admission.count
            var until = now
            switch drain.next(now: now, open: open) {
            case .finished:
                shared.log.line(.notice, .drainEnded, "drained: every connection has ended")
                return 0
            case .cut: cutBy = .drainTimeout
            case .report(let next):
                let seconds = now.nanoseconds(since: drain.startedAt) / 1_000_000_000
                shared.log.line(
                    .notice, seconds == 0 ? .drainBegan : .drainProgress,
                    "draining: \(open) \(open == 1 ? "connection" : "connections") left"
                        + (seconds == 0 ? "" : " after \(seconds) s"))
                until = next
            case .wait(let next): until = next
            }
            if cutBy != nil { break }
            let milliseconds = CInt(clamping: until.nanoseconds(since: now) / 1_000_000 + 1)
            let received = signals.wait(orFor: shared.notice, milliseconds: milliseconds)
            if received.contains(where: { $0 == SIGTERM || $0 == SIGINT }) { cutBy = .stopped }
        }
        return cut(cutBy ?? .stopped)
    }

    /// Ends what is left.
    private func cut(_ reason: CloseReason) -> Int32 {
        let open = shared.admission.count
        for worker in workers { worker.mailbox.post(.cut(reason)) }
        let limit = Instant.now().advanced(by: .seconds(1))  // a worker may be stuck
        while shared.admission.count > 0 && Instant.now() < limit {
            _ = signals.wait(orFor: shared.notice, milliseconds: 100)
        }
        let why = reason == .drainTimeout ? "the drain timeout is over" : "a second signal came"
        shared.log.line(
            .warning, .drainEnded,
            "\(why): cut \(open) \(open == 1 ? "connection" : "connections")")
        return open == 0 ? 0 : 1
    }

    /// Closes the sockets of our own once no worker uses them, so that the port refuses.
    private func closeListeners() {
        let limit = Instant.now().advanced(by: .seconds(1))
        while workers.contains(where: { !$0.hasStoppedListening }) && Instant.now() < limit {
            shared.notice.wait(milliseconds: 10)
        }
        for listener in listeners { listener.unlinkPath() }
        listeners.removeAll()
    }
}
