// Whether there is room for one more connection: the administrator's limit, and descriptors.

import Glibc
import Synchronization

/// A count shared by the workers that never goes over its limit.
final class AdmissionLimit: Sendable {
    private let most: Atomic<Int>
    private let open = Atomic<Int>(0)

    /// - Parameter limit: at least 0; nil for none.
    init(limit: Int?) { most = Atomic(limit ?? .max) }

    /// `Int.max` for none. A lower one cuts nobody off; it is kept once enough have left.
    var limit: Int {
        get { most.load(ordering: .relaxed) }
        set { most.store(newValue, ordering: .relaxed) }
    }

    var count: Int { open.load(ordering: .relaxed) }

    /// Takes a place. Exact: of two workers at the last place one gets it.
    func enter() -> Bool {
        open.increment(by: 1, upTo: limit)
    }

    /// Takes a place for who is there already, whether there is one or not.
    func charge() { open.wrappingAdd(1, ordering: .relaxed) }

    func leave() { open.wrappingSubtract(1, ordering: .relaxed) }
}

/// How many descriptors the relay may hold, so that the others (metrics, log, resolver) always
/// find one: accepting pauses before the process runs out, not after.
final class DescriptorBudget: Sendable {
    /// All that the relay may use, from RLIMIT_NOFILE.
    let total: Int
    /// The part that only pipes may use, so that connections never run without any.
    private let forPipes: Int
    private let used = Atomic<Int>(0)

    /// - Parameter limit: the soft RLIMIT_NOFILE; `inUse`: descriptors open already.
    init(limit: Int, inUse: Int) {
        let reserve = Self.reserve(limit: limit)
        total = max(limit - inUse - reserve, 2)
        forPipes = min(64, total / 8)
    }

    /// What others may need: 64 scrapes, the resolver's sockets, the journal. A small limit
    /// leaves less.
    static func reserve(limit: Int) -> Int { min(96, limit / 4) }

    /// Takes descriptors for a pipe. False if they would not fit.
    func take(_ count: Int) -> Bool { take(count, of: total) }

    /// Takes the two descriptors of a connection.
    func takeForConnection() -> Bool { take(2, of: total - forPipes) }

    /// True exactly when there is room again for some connections at once, not just for one.
    var hasRoom: Bool {
        let wanted = total < 64 ? 2 : max(16, total / 10)
        return used.load(ordering: .relaxed) + wanted <= total - forPipes
    }

    /// How many more fit.
    var room: Int { max(total - used.load(ordering: .relaxed), 0) }

    /// Counts descriptors that are there already, whether they fit or not.
    func charge(_ count: Int) { used.wrappingAdd(count, ordering: .relaxed) }

    func giveBack(_ count: Int) { used.wrappingSubtract(count, ordering: .relaxed) }

    private func take(_ count: Int, of share: Int) -> Bool {
        used.increment(by: count, upTo: share)
    }

    /// True exactly when the kernel gives a handful of descriptors at this moment.
    static func kernelHasRoom() -> Bool {
        var probes: [CInt] = []
        while probes.count < 8 {
            let probe = dup(STDERR_FILENO)
            if probe == -1 { break }
            probes.append(probe)
        }
        for probe in probes { _ = Glibc.close(probe) }
        return probes.count == 8
    }

    /// Makes the kernel's table of descriptors large enough now, while the process has one thread.
    ///
    /// Later, with threads that share it, each doubling waits until every CPU has let go of the old
    /// one (synchronize_rcu in fs/file.c): some 20 ms in which no worker accepts. An entry takes
    /// eight bytes.
    static func growTable(limit: Int) {
        let highest = CInt(clamping: min(limit, mostGrown) - 1)
        let probe = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, highest)
        if probe >= 0 { _ = Glibc.close(probe) }
    }

    private static let mostGrown = 65_536

    /// The soft RLIMIT_NOFILE, raised to the hard one.
    static func raiseLimit() -> Int {
        var limit = rlimit()
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
            return 1024
        }
        if limit.rlim_cur < limit.rlim_max {
            var raised = limit
            raised.rlim_cur = raised.rlim_max
            if unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &raised) == 0 {
                limit = raised
            }
        }
        return Int(clamping: limit.rlim_cur)
    }
}

extension Atomic where Value == Int {
    /// Adds, unless the sum would go over a bound; nobody else sees a sum that does.
    func increment(by count: Int, upTo bound: Int) -> Bool {
        var value = load(ordering: .relaxed)
        while value + count <= bound {
            let (done, original) = weakCompareExchange(
                expected: value, desired: value + count, ordering: .relaxed)
            if done { return true }
            value = original
        }
        return false
    }
}
