// Proof of life: the manager gets its sign only if every worker has answered. Pure.

/// Asks the workers at half of the manager's interval, and counts their answers.
struct Watchdog {
    enum Action: Equatable {
        /// Ask every worker.
        case ping
        /// All have answered: tell the manager, and ask again.
        case tellAndPing
        /// Somebody has not answered yet: say nothing.
        case keepSilent
    }

    private let interval: Duration
    private(set) var nextAt: Instant
    private var isFirst = true

    /// - Parameter limit: after this long without a sign the manager restarts the service.
    init(limit: Duration, now: Instant) {
        interval = limit / 2
        nextAt = now
    }

    /// What to do, if it is time.
    ///
    /// - Parameter allAnswered: true exactly when every worker has answered the last ping.
    mutating func next(now: Instant, allAnswered: Bool) -> Action? {
        guard now >= nextAt else { return nil }
        if !isFirst && !allAnswered {
            // Look again soon: an answer that is merely late must still count in time.
            nextAt = now.advanced(by: interval / 8)
            return .keepSilent
        }
        nextAt = now.advanced(by: interval)
        defer { isFirst = false }
        return isFirst ? .ping : .tellAndPing
    }
}
