// A worker: one thread, one epoll, its connections. Nothing in it is shared but its mailbox and
// its counters. What it does at each stage of a connection is in that stage's folder:
// Listen/Accepting, Dial/Dialling, Relay/Relay, Close/Closing; what outlives the process is in
// Preserve.

import CLinux
import Glibc
import Synchronization

/// What one worker counts, readable from any thread.
struct CounterSet: Sendable {
    let worker = WorkerCounters()
    let routes: [RouteCounters]

    /// True exactly when a connection has ended, or was refused.
    var hasEndedAny: Bool {
        routes.contains { $0.closed.total > 0 || $0.rejected.total > 0 }
    }
}

extension [CounterSet] {
    /// The sum over all workers and routes.
    func total(_ value: (RouteCounters) -> UInt64) -> UInt64 {
        reduce(0) { sum, set in set.routes.reduce(sum) { $0 &+ value($1) } }
    }
}

@safe final class Worker: @unchecked Sendable {
    // Safe to use from any thread.
    let number: Int
    let shared: Shared
    let mailbox: Mailbox
    let counters: CounterSet
    private let stoppedListening = Atomic<Bool>(false)
    private let resumed = Atomic<Bool>(true)
    private let handedOver = Atomic<Bool>(false)
    private let answered = Atomic<Bool>(true)
    private let oldest = Atomic<UInt64>(.max)

    // Only on the worker's own thread, which is started once, by `start`.
    let epoll: Epoll
    let queue: RecordQueue
    var now: Instant
    var routes: [Route]
    var listeners: [WatchedListener] = []
    var acceptAgainAt: Instant?
    var connections = Slab()
    var timers: Timers
    var pipes: PipePool
    var ledgers: LedgerBook
    var isDraining = false
    /// Set by an action on the relay whose sink failed, taken by the pump that ran it.
    var sinkError: CInt?
    /// Shared by all connections: no byte stays in it between two events.
    let scratch: UnsafeMutableRawPointer
    private var queued: [Connection] = []
    private var load: LoadWindow

    static let scratchSize = 64 * 1024
    private static let eventsPerWait = 256

    init(
        number: Int, of mostWorkers: Int, shared: Shared, routes: [Route]
    ) throws(SystemError) {
        let now = Instant.now()
        let counters = CounterSet(routes: routes.map { _ in RouteCounters() })
        self.number = number
        self.shared = shared
        self.routes = routes
        self.now = now
        self.counters = counters
        epoll = try Epoll()
        mailbox = try Mailbox()
        queue = shared.log.makeQueue()
        timers = Timers(now: now)
        pipes = PipePool(
            budget: shared.descriptors, workers: mostWorkers, counters: counters.worker)
        ledgers = LedgerBook(worker: number, shared: shared, counters: counters.worker)
        load = LoadWindow(startedAt: now)
        unsafe scratch = .allocate(byteCount: Self.scratchSize, alignment: 4096)
        try epoll.add(
            mailbox.descriptor, [.readable],
            token: SlabKey(index: 0, generation: 0).token(.mailbox))
    }

    deinit { unsafe scratch.deallocate() }

    /// True exactly when the worker has taken note of `.drain`: it accepts no more.
    var hasStoppedListening: Bool { stoppedListening.load(ordering: .acquiring) }

    /// True exactly when no connections of an earlier life are waiting to go on.
    var hasResumed: Bool { resumed.load(ordering: .acquiring) }

    /// Has the worker go on with an earlier life's connections; `hasResumed` tells when it does.
    func resume(_ inherited: [InheritedLedger]) {
        resumed.store(false, ordering: .relaxed)
        mailbox.post(.resume(inherited))
    }

    /// True exactly when every connection is in a ledger and the worker has stopped.
    var hasHandedOver: Bool { handedOver.load(ordering: .acquiring) }

    func finishedHandOver() {
        handedOver.store(true, ordering: .releasing)
        shared.notice.signal()
    }

    /// Asks for a sign of life; `hasAnswered` tells when it has come.
    func ping() {
        answered.store(false, ordering: .relaxed)
        mailbox.post(.ping)
    }

    var hasAnswered: Bool { answered.load(ordering: .acquiring) }

    /// When the oldest connection was accepted, as of the last ping; nil if there was none.
    var oldestConnection: Instant? {
        let nanoseconds = oldest.load(ordering: .relaxed)
        return nanoseconds == .max ? nil : Instant(nanoseconds: nanoseconds)
    }

    /// Starts the worker's thread. It ends with the process.
    func start() throws(SystemError) { try startThread("worker-\(number)") { self.run() } }

    private func run() -> Never {
        let events = UnsafeMutableBufferPointer<epoll_event>.allocate(capacity: Self.eventsPerWait)
        load = LoadWindow(startedAt: now, cpu: Instant.threadCPU())
        while true {
            let count = unsafe epoll.wait(into: events, milliseconds: timeout())
            now = Instant.now()
            ledgers.ledgers.first?.table.lastSign = now
            for index in 0..<count {
                let event = unsafe events[index]
                dispatch(Token(unsafe event.data.u64), Readiness(rawValue: unsafe event.events))
            }
            runQueued()
            fireTimers()
            resumeAccepting()
            if load.isOver(at: now), load.isBusy(at: now, cpu: Instant.threadCPU()) {
                shared.workerIsBusy()
            }
        }
    }

    /// Relays a client that systemd has accepted.
    private func adopt(_ client: consuming FileDescriptor, routeIndex: Int) {
        _ = linux_set_nonblocking(client.rawValue)
        let address = (try? Socket.peerAddress(client.rawValue)) ?? .unnamed
        if !address.isUnix { Socket.prepareForRelay(client.rawValue) }
        shared.descriptors.charge(2)
        let listen = (try? Socket.localAddress(client.rawValue)) ?? .unnamed
        admit(client, from: address, at: listen, routeIndex: routeIndex)
    }

    private func timeout() -> CInt {
        if !queued.isEmpty { return 0 }
        let timer = timers.milliseconds(from: now)
        guard let at = acceptAgainAt else { return timer }
        let pause = CInt(clamping: at.nanoseconds(since: now) / 1_000_000 + 1)
        return timer < 0 ? pause : min(timer, pause)
    }

    // MARK: Events

    private func dispatch(_ token: Token, _ readiness: Readiness) {
        switch token.kind {
        case .client:
            if let connection = connections[token.key] {
                handle(connection) { clientEvent(connection, readiness) }
            }
        case .target:
            if let connection = connections[token.key] {
                handle(connection) { targetEvent(connection, readiness) }
            }
        case .listener: accept(token.key.index)
        case .mailbox: for command in mailbox.take() { obey(command) }
        }
    }

    private func clientEvent(_ connection: Connection, _ readiness: Readiness) -> Step {
        note(&connection.toTarget, &connection.toClient, readiness)
        if connection.isRelaying {
            if isCutShort(connection.toTarget.half, readiness) {
                return abort(connection, .client)
            }
            return relay(connection, after: readiness, of: .client)
        }
        // A client that has only finished sending still waits for its answer.
        return readiness.contains(.error) ? .end(.clientLeft) : .stay
    }

    private func targetEvent(_ connection: Connection, _ readiness: Readiness) -> Step {
        guard connection.target != nil else { return .stay }
        if connection.isRelaying {
            note(&connection.toClient, &connection.toTarget, readiness)
            if isCutShort(connection.toClient.half, readiness) {
                return abort(connection, .target)
            }
            return relay(connection, after: readiness, of: .target)
        }
        let step = dialProgressed(connection, readiness)
        if case .relay = step { note(&connection.toClient, &connection.toTarget, readiness) }
        return step
    }

    /// Tells the two directions at a socket what is ready there.
    private func note(_ fromHere: inout Flow, _ toHere: inout Flow, _ readiness: Readiness) {
        if !readiness.isDisjoint(with: [.readable, .peerFinished, .urgent, .error, .hangup]) {
            fromHere.half.sourceBecame(readiness)
        }
        if !readiness.isDisjoint(with: [.writable, .error, .hangup]) {
            toHere.half.sinkBecameWritable()
        }
    }

    /// True exactly when a side is in error and reading will not find out: its stream has ended
    /// already, or the bytes before the error have nowhere to go.
    private func isCutShort(_ fromHere: HalfStream, _ readiness: Readiness) -> Bool {
        readiness.contains(.error)
            && (fromHere.sourceEnded || fromHere.inPipe > 0 || !fromHere.sinkWritable
                || fromHere.sinkBroken)
    }

    private func abort(_ connection: Connection, _ side: Side) -> Step {
        let fd = connection.descriptor(of: side)
        let code = Socket.takeError(fd)
        return .end(connection.brokenBy ?? .failure(of: side, code: code == 0 ? ECONNRESET : code))
    }

    /// Has a stage work on a connection. The table says so meanwhile, for whoever comes after a
    /// crash.
    @inline(__always)
    private func handle(_ connection: Connection, _ stage: () -> Step) {
        connection.slot?.setHandled(true)
        take(stage(), connection)
        connection.slot?.setHandled(false)
    }

    /// Does what a stage asked for.
    func take(_ step: Step, _ connection: Connection) {
        switch step {
        case .stay: break
        case .again: requeue(connection)
        case .relay: take(beginRelay(connection), connection)
        case .end(let reason): end(connection, reason)
        }
    }

    // MARK: Turns

    /// Has the connection go on when the others have had their turn.
    func requeue(_ connection: Connection) {
        if connection.isQueued { return }
        connection.isQueued = true
        queued.append(connection)
    }

    private func runQueued() {
        guard !queued.isEmpty else { return }
        let turn = queued
        queued.removeAll(keepingCapacity: true)
        for connection in turn {
            connection.isQueued = false
            // It may have ended since, at an event of its own.
            if connections[connection.key] === connection, connection.isRelaying {
                handle(connection) { relay(connection) }
            }
        }
    }

    private func fireTimers() {
        for index in timers.advance(to: now) {
            guard let connection = connections[index] else { continue }
            handle(connection) { timerFired(connection) }
        }
    }

    private func timerFired(_ connection: Connection) -> Step {
        guard connection.isRelaying else { return dialTimerFired(connection) }
        growOlder(connection)
        if let limit = connection.route.idleTimeout,
            now >= connection.lastMovedAt.advanced(by: limit)
        {
            // Nothing was read, but what was sent before may still be on its way out.
            let unsent =
                Socket.unsent(connection.client.rawValue)
                &+ Socket.unsent(connection.targetDescriptor)
            if unsent == connection.unsentAtLastLook { return .end(.idleTimeout) }
            connection.unsentAtLastLook = unsent
            connection.lastMovedAt = now
        }
        setNextLook(connection)
        return .stay
    }

    // MARK: Commands

    private func obey(_ command: Command) {
        switch command {
        case .listen(let added):
            listeners += added.map { WatchedListener(listener: $0) }
            watchListeners()
        case .drain:
            isDraining = true
            stopListening()
            stoppedListening.store(true, ordering: .releasing)
            shared.notice.signal()
        case .cut(let reason):
            for connection in connections.all { end(connection, reason) }
            shared.notice.signal()
        case .resolved(let key, let index, let addresses):
            if let connection = connections[key] {
                handle(connection) { resolved(connection, target: index, addresses) }
            }
        case .replace(let route): routes[route.index] = route
        case .adopt(let descriptor, let routeIndex):
            adopt(FileDescriptor(owning: descriptor), routeIndex: routeIndex)
        case .resume(let inherited):
            resumeConnections(inherited)
            resumed.store(true, ordering: .releasing)
            shared.notice.signal()
        case .handOver: handOver()
        case .sign: ledgers.dropEmpty()  // the sign of life itself is given after each wait
        case .ping:
            ledgers.tidy()
            oldest.store(
                connections.all.map(\.acceptedAt.nanoseconds).min() ?? .max, ordering: .relaxed)
            answered.store(true, ordering: .releasing)
        }
    }
}
