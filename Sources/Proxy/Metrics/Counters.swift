// Counters of the data plane. Each has one writer, the worker that owns it, and any number of
// readers; a scrape adds the workers up.

import Synchronization

/// A number that one thread changes and any thread may read.
struct Counter: ~Copyable, Sendable {
    private let storage = Atomic<UInt64>(0)

    var value: UInt64 { storage.load(ordering: .relaxed) }

    /// Only for the owning thread: a load and a store, not a locked instruction.
    @inline(__always)
    func add(_ amount: UInt64) {
        storage.store(storage.load(ordering: .relaxed) &+ amount, ordering: .relaxed)
    }

    @inline(__always)
    func subtract(_ amount: UInt64) { add(0 &- amount) }
}

/// What one worker counts of one route.
final class RouteCounters: Sendable {
    let accepted = Counter()
    let active = Counter()
    /// Connections whose target is connected now.
    let activeOutbound = Counter()
    let connectedOutbound = Counter()
    let bytesIn = Counter()  // read from clients
    let bytesOut = Counter()  // read from targets
    let bytesSpliced = Counter()
    let connectAttempts = Counter()
    let closed = CounterTable(CloseReason.allCases.count)
    let rejected = CounterTable(RejectReason.allCases.count)
    let connectFailures = CounterTable(ConnectFailure.allCases.count)
    let acceptErrors = CounterTable(AcceptError.allCases.count)
    let duration = Histogram(bounds: Histogram.connectionDuration)
    let connectDuration = Histogram(bounds: Histogram.connectDuration)
}

/// What one worker counts of itself.
final class WorkerCounters: Sendable {
    let pipes = Counter()
    let pipesRefused = Counter()
    /// Bytes relayed by peeking, for want of a pipe.
    let bytesWithoutPipe = Counter()
    let recordsDropped = Counter()
    /// Connections in ledgers.
    let ledgerEntries = Counter()
    /// Memory of the ledgers' tables.
    let ledgerBytes = Counter()
}

/// A fixed row of counters, indexed by the cases of an enumeration.
@safe struct CounterTable: ~Copyable, @unchecked Sendable {
    // Never resized and freed only with the table; the elements are atomic.
    private let cells: UnsafeMutableBufferPointer<Counter>

    init(_ count: Int) {
        unsafe cells = .allocate(capacity: count)
        for index in 0..<count {
            unsafe cells.initializeElement(at: index, to: Counter())
        }
    }

    deinit {
        unsafe cells.deinitialize()
        unsafe cells.deallocate()
    }

    var count: Int { unsafe cells.count }

    @inline(__always)
    func add(_ index: Int, _ amount: UInt64 = 1) { unsafe cells[index].add(amount) }

    func value(_ index: Int) -> UInt64 { unsafe cells[index].value }

    var total: UInt64 { (0..<count).reduce(0) { $0 &+ value($1) } }
}
