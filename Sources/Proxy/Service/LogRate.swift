// Keeps under journald's limit, by default 10,000 entries of a service in 30 s: what comes too
// fast is summarised. Pure.

/// How many entries of single connections may still be written in this window.
struct LogRate {
    private var startedAt: Instant
    private var successes = 0
    private var failures = 0

    /// journald's window may begin in the middle of ours, so two of ours have to fit into its
    /// limit; summaries and the service's own entries come on top.
    static let window = Duration.seconds(30)
    static let mostSuccesses = 1500
    static let mostFailures = 3000

    init(now: Instant) { startedAt = now }

    /// Whether one more connection gets an entry of its own.
    mutating func admits(success: Bool, now: Instant) -> Bool {
        if now >= startedAt.advanced(by: Self.window) { self = LogRate(now: now) }
        if success {
            successes += 1
            return successes <= Self.mostSuccesses
        }
        failures += 1
        return failures <= Self.mostFailures
    }
}

/// Connections of one route that got no entry of their own.
struct LogSummary {
    let route: String
    private(set) var count = 0
    private(set) var bytesIn: UInt64 = 0
    private(set) var bytesOut: UInt64 = 0
    private var byReason = [Int](repeating: 0, count: CloseReason.allCases.count)

    init(route: String) { self.route = route }

    mutating func add(_ record: ConnectionRecord) {
        count += 1
        bytesIn &+= record.bytesIn
        bytesOut &+= record.bytesOut
        byReason[record.reason.rawValue] += 1
    }

    /// "412 more connections of route web ended: 400 client-closed, 12 target-refused; …"
    var line: String {
        let reasons = CloseReason.allCases.filter { byReason[$0.rawValue] > 0 }
            .map { "\(byReason[$0.rawValue]) \($0.label)" }
        return "\(Status.count(count, "more connection")) of route \(route) ended: "
            + "\(reasons.joined(separator: ", ")); in=\(bytesIn) out=\(bytesOut)"
    }
}
