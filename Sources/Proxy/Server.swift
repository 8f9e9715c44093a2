// Assembles the parts, starts them in order, watches over them, and ends them. The table of
// contents: a connection's life is Listen/Accepting, Dial/Dialling, Relay/Relay, Close/Closing;
// the end of the service is Close/Draining.

import Glibc

/// One run of the proxy, from its start to the end of its drain. Its thread is the supervisor's:
/// it waits for signals and speaks to the service manager.
public final class Server {
    let options: Options
    let shared: Shared
    private let signals: Signals
    private let startup: Startup
    private(set) var routes: [Route]
    var listeners: [Listener]
    private let metrics: MetricsEndpoint
    private(set) var workers: [Worker] = []
    let mostWorkers: Int
    let ledgers: [InheritedLedger]
    private var newestWorkerAt = Instant.now()
    var notifier = Notifier()
    private var watchdog: Watchdog?
    private var nextStatusAt = Instant.now()

    /// Descriptors that the proxy has open at start, and those that it will open for itself: an
    /// epoll and an event counter for each worker and for the metrics' loop.
    private static func ownDescriptors(workers: Int) -> Int {
        Folder.names("/proc/self/fd").count + 8 + 2 * workers
    }

    /// To be called first of all: a restart that is asked for during the start waits.
    public static func prepare() { Signals.holdRestart() }

    /// Takes over or opens the listening sockets and makes everything ready; nothing is accepted
    /// yet.
    ///
    /// To be called before the process has a second thread, for it blocks signals.
    public init(_ options: Options) throws(StartError) {
        self.options = options
        mostWorkers = options.workers ?? Processors.available()
        var startup = try Startup(options)
        ledgers = startup.ledgers
        startup.addFormerRoutes(ledgers.flatMap { LedgerSummary(of: $0).routes })
        routes = startup.routes
        listeners = startup.listeners
        startup.listeners = []  // one owner: with it the port closes
        self.startup = startup
        let shared: Shared
        do throws(SystemError) {
            signals = try Signals()
            let limit = DescriptorBudget.raiseLimit()
            DescriptorBudget.growTable(limit: limit)
            shared = try Shared(
                log: try Log(usingJournal: startup.hasNoStandardError), resolver: try Resolver(),
                descriptors: DescriptorBudget(
                    limit: limit, inUse: Self.ownDescriptors(workers: mostWorkers)),
                admission: AdmissionLimit(limit: options.connectionsMax),
                store: Self.store(options, holding: startup.ledgers, openLimit: limit))
        } catch {
            throw StartError(description: "cannot start: \(error)", code: error.code)
        }
        self.shared = shared
        metrics = Self.makeMetrics(startup.metrics, shared, routeNames: routes.map(\.name))
        watchdog = Notifier.watchdogInterval().map { Watchdog(limit: $0, now: .now()) }
    }

    private static func makeMetrics(
        _ descriptors: [CInt], _ shared: Shared, routeNames: [String]
    ) -> MetricsEndpoint {
        let scrapes = ScrapeCounts()
        let page = MetricsPage(
            shared: shared, routeNames: routeNames, process: ProcessMetrics(), scrapes: scrapes,
            id: UUID.random())
        let log = shared.log
        return MetricsEndpoint(
            listeningOn: descriptors, scrapes: scrapes,
            reportAcceptError: { code in
                let error = SystemError(call: "accept", code: code)
                log.line(.warning, .metricsFailed, "metrics: \(error)")
            },
            page: { page.write($0) })
    }

    // MARK: Run

    /// Serves until a signal ends it, and returns the exit status: 0 after a drain, 1 if
    /// connections were cut.
    public func run() throws(StartError) -> Int32 {
        do throws(SystemError) {
            try shared.log.start()
        } catch {
            throw StartError(description: "cannot start: \(error)", code: error.code)
        }
        try startWorker()
        try resume(ledgers)
        // The first scrape finds the connections of an earlier life already there.
        let metricsAddress = startup.metrics.first.flatMap { try? Socket.localAddress($0) }
        if metricsAddress != nil {
            do {
                try checkThreadCanStart()  // NIO traps where it cannot
                try metrics.start()
            } catch {
                throw StartError(description: "cannot serve metrics: \(error)")
            }
        }
        for worker in workers { worker.mailbox.post(.listen(listeners)) }
        if startup.clientHasLeft && listeners.isEmpty && startup.connection == nil {
            shared.log.line(.info, .clientRefused, "the client left before it could be served")
            return finish(0)
        }
        if let connection = startup.connection {
            workers[0].mailbox.post(.adopt(connection, routeIndex: routes.count - 1))
        }
        sayStarted(metricsAddress)
        sayResumed()
        warnOfUnresolved()
        notifier.ready()
        return finish(serve())
    }

    /// Watches until it is time to end, drains, and returns the exit status.
    private func serve() -> Int32 {
        while true {
            let received = wait(until: idleDeadline())
            if received.contains(SIGUSR2) && shared.store != nil { return handOver() }
            let ends = received.filter(Signals.ending.contains)
            if !ends.isEmpty { return drain(isUrgent: ends.count > 1) }
            if received.contains(SIGHUP) { reload() }
            if hasServedItsPurpose() { return drain(isUrgent: false) }
        }
    }

    private func finish(_ status: Int32) -> Int32 {
        metrics.close()
        shared.log.close()
        return status
    }

    private func sayStarted(_ metricsAddress: SocketAddress?) {
        for problem in startup.problems {
            log(problem, problem.isError ? .routeRefused : .routeDoubtful)
        }
        let places = listeners.map { listener in
            let route = routes[listener.routeIndex]
            let targets = route.targets.map(\.endpoint.description)
            let target = route.isRefused ? "nowhere" : targets.joined(separator: ", ")
            return startup.isActivated
                ? "\(listener.address) (\(route.name) to \(target))"
                : "\(listener.address), target \(target)"
        }
        let metrics = metricsAddress.map { address in
            address.isUnix ? "metrics on \(address)" : "metrics on http://\(address)/metrics"
        }
        let what = places.isEmpty ? "relaying one connection" : "listening on "
        shared.log.line(
            .notice, .started,
            "tcp-metrics-proxy \(proxyVersion) \(what)\(places.joined(separator: "; ")), "
                + (metrics ?? "no metrics"))
    }

    private func log(_ problem: RouteProblem, _ event: LogEvent, prefix: String = "") {
        shared.log.line(
            problem.isError ? .error : .warning, event, prefix + problem.text,
            fields: [(name: "PROXY_ROUTE", value: problem.route)])
    }

    /// A name that is not known yet may be later: each connection asks again.
    private func warnOfUnresolved() {
        for (route, target) in routes.flatMap({ route in route.targets.map { (route.name, $0) } })
        where target.fixed == nil {
            guard case .host(let host, let port) = target.endpoint else { continue }
            let log = shared.log
            shared.resolver.lookUp(host: host, port: port) { addresses in
                if !addresses.isEmpty { return }
                log.line(
                    .warning, .targetUnresolved,
                    "target \(quoted(target.endpoint.description)) does not resolve now: "
                        + "it is looked up again for each connection",
                    fields: [(name: "PROXY_ROUTE", value: route)])
            }
        }
    }

    // MARK: Workers

    func startWorker() throws(StartError) {
        do throws(SystemError) {
            let worker = try Worker(
                number: workers.count, of: mostWorkers, shared: shared, routes: routes)
            try worker.start()
            shared.add(worker.counters)
            workers.append(worker)
        } catch {
            throw StartError(description: "cannot start a worker: \(error)", code: error.code)
        }
    }

    /// One more worker, if there may be one: those that run have more to do than they can.
    private func addWorker() {
        let now = Instant.now()
        guard workers.count < mostWorkers, !shared.isDraining,
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

    /// Waits for a signal or a moment, and meanwhile does what is to be done in between: answers
    /// the watchdog, refreshes the status, starts workers.
    ///
    /// - Returns: the signals that have come, possibly none.
    func wait(until deadline: Instant?) -> [CInt] {
        let now = Instant.now()
        var until = deadline ?? Instant(nanoseconds: .max)
        if let watchdog { until = min(until, watchdog.nextAt) }
        if shared.isOutOfDescriptors { until = min(until, now.advanced(by: .milliseconds(250))) }
        if notifier.isActive && !shared.isDraining {
            if shared.admission.count > 0 || !isStatusFresh {
                until = min(until, nextStatusAt)
            } else {
                shared.supervisorSleeps()
                // A client that came before the line above has woken nobody.
                if shared.admission.count > 0 { until = min(until, nextStatusAt) }
            }
        }
        let span = until.nanoseconds(since: now)
        let milliseconds = until.nanoseconds == .max ? -1 : CInt(clamping: span / 1_000_000 + 1)
        let received = signals.wait(
            orFor: shared.notice, milliseconds: until <= now ? 0 : milliseconds)
        if shared.takeBusy() { addWorker() }
        watchDescriptors()
        feedWatchdog()
        if !shared.isDraining { refreshStatus() }
        return received
    }

    private var isStatusFresh: Bool { Instant.now() < nextStatusAt }

    private func refreshStatus() {
        let now = Instant.now()
        guard notifier.isActive, now >= nextStatusAt else { return }
        nextStatusAt = now.advanced(by: .seconds(1))
        for worker in workers where shared.store != nil { worker.mailbox.post(.sign) }
        let sets = shared.counterSets
        let current = routes.filter { !$0.isFormer }
        let refused = current.filter(\.isRefused).count
        let open = shared.admission.count
        let resumption = shared.resumption.withLock { $0 }
        let begun = sets.total { $0.accepted.value } + UInt64(resumption.resumed)
        notifier.status(
            (resumption.status(at: now).map { $0 + "; " } ?? "")
                + Status.serving(
                    open: open, served: begun - min(UInt64(clamping: open), begun),
                    routes: current.count - refused, refused: refused,
                    bytesIn: sets.total { $0.bytesIn.value },
                    bytesOut: sets.total { $0.bytesOut.value }))
    }

    private func feedWatchdog() {
        let allAnswered = workers.allSatisfy(\.hasAnswered)
        switch watchdog?.next(now: .now(), allAnswered: allAnswered) {
        case .tellAndPing:
            notifier.watchdog()
            for worker in workers { worker.ping() }
        case .ping: for worker in workers { worker.ping() }
        case .keepSilent, nil: break
        }
    }

    private func watchDescriptors() {
        guard shared.isOutOfDescriptors, shared.shortageIsOver(at: .now()),
            shared.descriptors.hasRoom
        else { return }
        if DescriptorBudget.kernelHasRoom() { shared.descriptorsCameBack() }
    }

    /// When --exit-idle-time= is over at the earliest; it counts only where systemd can start the
    /// proxy again.
    private func idleDeadline() -> Instant? {
        guard let idleTime = options.exitIdleTime, startup.isActivated else { return nil }
        let since = shared.admission.count > 0 ? Instant.now() : shared.lastConnectionEnd
        return since.advanced(by: max(idleTime, firstGrace))
    }

    /// The client that started the proxy waits to be accepted: it is not to find it gone.
    private var firstGrace: Duration {
        shared.counterSets.contains(where: \.hasEndedAny) ? .zero : .seconds(1)
    }

    /// True exactly when nothing more is to come: the one connection that was passed has ended,
    /// or there was none for --exit-idle-time=.
    private func hasServedItsPurpose() -> Bool {
        guard startup.isActivated, shared.admission.count == 0 else { return false }
        if listeners.isEmpty { return shared.counterSets.contains(where: \.hasEndedAny) }
        return idleDeadline().map { Instant.now() >= $0 } ?? false
    }

    // MARK: Reload

    /// Reads the routes again. What is wrong keeps its last good form.
    private func reload() {
        notifier.reloading()
        defer { notifier.ready() }
        guard let table = startup.table else {
            shared.log.line(
                .notice, .routesReloaded,
                "nothing to reload: the route comes from the command line")
            return shared.countReload(succeeded: true)
        }
        let passed = zip(startup.descriptorNames, listeners).map {
            (name: $0, address: $1.address)
        }
        let (definitions, problems) = table.routes(for: passed)
        for (listener, definition) in zip(listeners, definitions) {
            let old = routes[listener.routeIndex]
            guard let settings = definition.settings, definition.name == old.name else { continue }
            let new = Route(
                name: old.name, index: old.index, settings: settings, isActivated: true,
                replacing: old)
            routes[old.index] = new
            new.admission.limit = settings.connectionsMax ?? .max
            for worker in workers { worker.mailbox.post(.replace(new)) }
        }
        let errors = problems.filter(\.isError)
        for problem in problems {
            let failure = "reload failed, route \(quoted(problem.route)) stays as it was: "
            log(
                problem, problem.isError ? .reloadFailed : .routeDoubtful,
                prefix: problem.isError ? failure : "")
        }
        shared.countReload(succeeded: errors.isEmpty)
        nextStatusAt = .now()
        if errors.isEmpty {
            shared.log.line(
                .notice, .routesReloaded,
                "reloaded: new connections take \(Status.count(routes.count, "route")) as on disk")
        }
        warnOfUnresolved()
    }
}
