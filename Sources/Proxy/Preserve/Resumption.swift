// What came of the connections that an earlier life of the process left. Pure.

/// Why a connection was not continued: the label `reason` of `tcp_proxy_connections_lost_total`.
enum LostReason: Int, LabelledCase, Error {
    case bytesLost  // the kernel's counts show a hole: it was cut, for a hole is not honest
    case crashes  // the process was at work on it when it crashed, three times in a row
    case damaged  // what the ledger tells of it makes no sense
    case unknownLayout  // its ledger is of a version that this one does not know
    case noRoute  // it had no target yet, and its route is gone
    case noDescriptors
}

/// How an earlier life ended.
enum ResumptionCause: Int, LabelledCase {
    case restart
    case crash
}

/// The sum over all ledgers.
struct Resumption: Sendable {
    /// A crash as soon as one ledger was not handed over.
    private(set) var cause = ResumptionCause.restart
    private(set) var resumed = 0
    private(set) var lost = [Int](repeating: 0, count: LostReason.allCases.count)
    /// Names under which something was kept that is no ledger.
    private(set) var strays: [String] = []
    /// When the earlier life ended, as far as it is known.
    private var endedAt: Instant?
    /// nil while there was no earlier life to go on with.
    private(set) var readyAt: Instant?

    var lostInAll: Int { lost.reduce(0, +) }

    /// Nanoseconds from the end of the earlier life to the moment at which this one was ready; 0 if
    /// it is not known.
    var gap: UInt64 {
        guard let endedAt, let readyAt else { return 0 }
        return readyAt.nanoseconds(since: endedAt)
    }

    /// A ledger was found, with what its table says of the process's end.
    mutating func found(handedOverAt: Instant?, lastSign: Instant) {
        if handedOverAt == nil { cause = .crash }
        endedAt = max(endedAt ?? lastSign, handedOverAt ?? lastSign)
    }

    /// A ledger was found whose table cannot be read: nobody has written its end.
    mutating func foundDamaged() { cause = .crash }

    /// What was kept under that name is no ledger.
    mutating func foundNothing(in name: String) { strays.append(name) }

    mutating func countResumed() { resumed += 1 }

    mutating func countLost(_ reason: LostReason, _ count: Int = 1) {
        lost[reason.rawValue] += count
    }

    mutating func ready(at now: Instant) { readyAt = now }

    /// "Resumed 214 connections after a restart", for a minute; nil before and after.
    func status(at now: Instant) -> String? {
        guard let readyAt, now.nanoseconds(since: readyAt) < 60_000_000_000 else { return nil }
        return "Resumed \(Status.count(resumed, "connection")) after a \(cause.label)"
            + (lostInAll == 0 ? "" : ", lost \(lostInAll)")
    }

    /// "resumed 214 connections after a restart, gap 87 ms; lost 2 (bytes-lost 2)"
    var sentence: String {
        let reasons = LostReason.allCases.filter { lost[$0.rawValue] > 0 }.map {
            "\($0.label) \(lost[$0.rawValue])"
        }
        return "resumed \(Status.count(resumed, "connection")) after a \(cause.label)"
            + (endedAt == nil ? "" : ", gap \(gap / 1_000_000) ms")
            + (reasons.isEmpty ? "" : "; lost \(lostInAll) (\(reasons.joined(separator: ", ")))")
    }
}
