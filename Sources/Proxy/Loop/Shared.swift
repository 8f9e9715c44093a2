// The little that workers share with each other and with the supervisor.

import Synchronization

final class Shared: Sendable {
    let log: Log
    let resolver: Resolver
    let descriptors: DescriptorBudget
    /// The limit over all routes.
    let admission: AdmissionLimit
    /// Wakes the supervisor.
    let notice: EventCounter
    /// systemd's store of descriptors; nil where there is none, or nothing is to be preserved.
    let store: DescriptorStore?
    /// What has become of an earlier life's connections.
    let resumption = Locked(Resumption())
    private let lastID = Atomic<UInt64>(0)
    private let busy = Atomic<Bool>(false)
    private let sleeps = Atomic<Bool>(false)
    private let lastShortage = Atomic<UInt64>(0)
    private let exhausted = Atomic<Bool>(false)
    private let draining = Atomic<Bool>(false)
    private let goodReloads = Atomic<UInt64>(0)
    private let badReloads = Atomic<UInt64>(0)
    private let sets = Locked<[CounterSet]>([])
    private let lastEnd = Atomic<UInt64>(Instant.now().nanoseconds)

    init(
        log: Log, resolver: Resolver, descriptors: DescriptorBudget, admission: AdmissionLimit,
        store: DescriptorStore?
    ) throws(SystemError) {
        self.log = log
        self.resolver = resolver
        self.descriptors = descriptors
        self.admission = admission
        self.store = store
        notice = try EventCounter()
    }

    func nextConnectionID() -> UInt64 { lastID.wrappingAdd(1, ordering: .relaxed).newValue }

    /// Numbers of new connections are above those of an earlier life's.
    func reserveConnectionID(_ id: UInt64) { _ = lastID.max(id, ordering: .relaxed) }

    // MARK: For scrapes

    /// The counters of every worker that was ever started.
    var counterSets: [CounterSet] { sets.withLock { $0 } }

    func add(_ set: CounterSet) { sets.withLock { $0.append(set) } }

    var isDraining: Bool { draining.load(ordering: .relaxed) }

    func beginDraining() { draining.store(true, ordering: .relaxed) }

    /// How often the routes were read again, and what came of it.
    var reloads: (succeeded: UInt64, failed: UInt64) {
        (goodReloads.load(ordering: .relaxed), badReloads.load(ordering: .relaxed))
    }

    func countReload(succeeded: Bool) {
        if succeeded {
            goodReloads.wrappingAdd(1, ordering: .relaxed)
        } else {
            badReloads.wrappingAdd(1, ordering: .relaxed)
        }
    }

    // MARK: Load

    /// A worker has more to do than it can.
    func workerIsBusy() {
        if !busy.exchange(true, ordering: .relaxed) { notice.signal() }
    }

    /// True if a worker was busy since the last call.
    func takeBusy() -> Bool { busy.exchange(false, ordering: .relaxed) }

    // MARK: Idleness

    /// Wakes the supervisor if it sleeps: there is something new to tell the manager.
    @inline(__always)
    func activity() {
        if sleeps.load(ordering: .sequentiallyConsistent),
            sleeps.exchange(false, ordering: .relaxed)
        {
            notice.signal()
        }
    }

    /// The supervisor has nothing to look at until a client comes.
    ///
    /// Sequentially consistent, like the look at the count that follows: one of the two sides sees
    /// the other.
    func supervisorSleeps() { sleeps.store(true, ordering: .sequentiallyConsistent) }

    func connectionEnded(at now: Instant) { lastEnd.store(now.nanoseconds, ordering: .relaxed) }

    /// When the last connection ended; the start of the process if there was none.
    var lastConnectionEnd: Instant { Instant(nanoseconds: lastEnd.load(ordering: .relaxed)) }

    // MARK: Descriptors

    /// Says once that there are no more descriptors, until there are again.
    ///
    /// - Parameter error: what accept said; nil if the proxy kept within its own budget.
    func descriptorsRanOut(_ error: SystemError?) {
        lastShortage.store(Instant.now().nanoseconds, ordering: .relaxed)
        if exhausted.exchange(true, ordering: .relaxed) { return }
        let cause = error.map { " (\($0))" } ?? ""
        log.line(
            .warning, .descriptorsExhausted,
            "out of descriptors\(cause) with \(Status.count(admission.count, "connection")) open: "
                + "new clients wait; raise LimitNOFILE= to serve more at once")
        notice.signal()
    }

    var isOutOfDescriptors: Bool { exhausted.load(ordering: .relaxed) }

    /// True exactly when nobody has met the shortage for a second. While clients wait it is met
    /// at each try, many times a second.
    func shortageIsOver(at now: Instant) -> Bool {
        let last = Instant(nanoseconds: lastShortage.load(ordering: .relaxed))
        return now.nanoseconds(since: last) > 1_000_000_000
    }

    /// Says that there are descriptors again.
    func descriptorsCameBack() {
        if !exhausted.exchange(false, ordering: .relaxed) { return }
        log.line(.notice, .descriptorsRecovered, "descriptors are back: accepting clients again")
    }
}
