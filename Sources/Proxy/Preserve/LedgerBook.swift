// The ledgers of one worker: finds room, makes one more where there is none, lets empty ones go.

import Glibc

struct LedgerBook {
    private(set) var ledgers: [Ledger] = []
    private let store: DescriptorStore?
    private let worker: Int
    private let shared: Shared
    private let counters: WorkerCounters
    /// Where there was room the last time.
    private var current = 0
    /// After a refusal, when to try again.
    private(set) var retryAt = Instant(nanoseconds: 0)

    init(worker: Int, shared: Shared, counters: WorkerCounters) {
        store = shared.store
        self.worker = worker
        self.shared = shared
        self.counters = counters
    }

    /// True exactly when connections can be entered.
    var isActive: Bool { store != nil }

    // MARK: Adopting

    /// Adds a ledger, a new one or one of an earlier life.
    mutating func add(_ ledger: Ledger) {
        ledgers.append(ledger)
        shared.descriptors.charge(Ledger.openDescriptors)
        counters.ledgerBytes.add(UInt64(LedgerTable.size))
    }

    /// A connection of an earlier life goes on under its entry.
    func adopt(
        _ connection: Connection, in ledger: Ledger, at place: LedgerPlace, targetIsApart: Bool
    ) {
        ledger.adopt(connection, at: place, targetIsApart: targetIsApart)
        counters.ledgerEntries.add(1)
    }

    // MARK: Entering

    mutating func enter(_ connection: Connection, now: Instant) -> Bool {
        guard place(now: now, { $0.enter(connection) }) else { return false }
        counters.ledgerEntries.add(1)
        return true
    }

    mutating func enter(_ pipe: Pipe, now: Instant) -> Bool {
        place(now: now) { $0.enter(pipe) }
    }

    /// The connection has ended, or is to be entered anew.
    func forget(_ connection: Connection) {
        guard let ledger = connection.ledger else { return }
        ledger.forget(connection)
        counters.ledgerEntries.subtract(1)
    }

    /// Tries the ledgers in turn, then a new one.
    private mutating func place(now: Instant, _ attempt: (Ledger) -> Ledger.Outcome) -> Bool {
        guard let store, now >= retryAt else { return false }
        for step in ledgers.indices {
            let index = (current + step) % ledgers.count
            switch attempt(ledgers[index]) {
            case .entered:
                current = index
                return true
            case .full: continue
            case .refused(let code): return refused(code, now, attempt)
            }
        }
        do throws(SystemError) {
            guard let ledger = try Ledger.make(in: store, worker: worker) else {
                giveUp(
                    now,
                    "systemd's store has no place for more than \(store.limit) descriptors, "
                        + "\(Ledger.descriptorCount) for some 500 connections: "
                        + "raise FileDescriptorStoreMax=")
                return false
            }
            add(ledger)
        } catch {
            giveUp(now, error)
            return false
        }
        current = ledgers.count - 1
        switch attempt(ledgers[current]) {
        case .entered: return true
        case .full:
            drop(ledgers[current], from: store)
            giveUp(now, "an entry does not fit into a queue, see net.core.wmem_max")
            return false
        case .refused(let code): return refused(code, now, attempt)
        }
    }

    /// The dead count against the limit, too: without them there may be room.
    private mutating func refused(
        _ code: CInt, _ now: Instant, _ attempt: (Ledger) -> Ledger.Outcome
    ) -> Bool {
        for ledger in ledgers { ledger.compact() }
        if attempt(ledgers[current]) == .entered { return true }
        giveUp(now, SystemError(call: "sendmsg", code: code))
        return false
    }

    private mutating func giveUp(_ now: Instant, _ error: SystemError) {
        let advice =
            error.code == ETOOMANYREFS
            ? ": copies of sockets count like open ones; raise LimitNOFILE=" : ""
        giveUp(now, error.description + advice)
    }

    private mutating func giveUp(_ now: Instant, _ why: String) {
        retryAt = now.advanced(by: Self.pause)
        shared.log.atMostEvery(
            .seconds(60), .warning, .preservationLimited,
            "not every connection will survive this process: \(why)")
    }

    private static let pause = Duration.seconds(1)

    /// The next is tried whatever came of the last.
    mutating func tryAgain() { retryAt = Instant(nanoseconds: 0) }

    // MARK: Upkeep

    /// Drops what is dead, and ledgers that nothing is in any more.
    mutating func tidy() {
        for ledger in ledgers { ledger.compact() }
        dropEmpty()
    }

    /// Gives ledgers back that nothing is in; the last one stays for the next connection.
    mutating func dropEmpty() {
        guard let store, ledgers.count > 1 else { return }
        let empty = ledgers.filter(\.isEmpty)
        for ledger in empty.dropFirst(empty.count == ledgers.count ? 1 : 0) {
            drop(ledger, from: store)
        }
    }

    private mutating func drop(_ ledger: Ledger, from store: DescriptorStore) {
        store.remove(ledger.name, count: Ledger.descriptorCount)
        ledgers.removeAll { $0 === ledger }
        current = 0
        shared.descriptors.giveBack(Ledger.openDescriptors)
        counters.ledgerBytes.subtract(UInt64(LedgerTable.size))
    }

    /// Notes that everything is in order for whoever comes next.
    func close(_ now: Instant) {
        for ledger in ledgers {
            ledger.table.lastSign = now
            ledger.table.handedOverAt = now
        }
    }
}
