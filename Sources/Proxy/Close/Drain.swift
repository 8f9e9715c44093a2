// The end of the service: wait for what is open, report, and at some point cut it. Pure.

/// A drain in progress.
struct Drain {
    enum Action: Equatable {
        /// Every connection has ended.
        case finished
        /// Its time is over: cut what is left.
        case cut
        /// Say how far it is, then ask again at that moment at the latest.
        case report(next: Instant)
        /// Ask again at that moment at the latest.
        case wait(Instant)
    }

    let startedAt: Instant
    private let deadline: Instant?
    private var nextReport: Instant

    static let reportInterval = Duration.seconds(5)

    /// - Parameter timeout: nil to wait for ever.
    init(startedAt: Instant, timeout: Duration?) {
        self.startedAt = startedAt
        deadline = timeout.map { startedAt.advanced(by: $0) }
        nextReport = startedAt
    }

    mutating func next(now: Instant, open: Int) -> Action {
        if open == 0 { return .finished }
        if let deadline, now >= deadline { return .cut }
        let isDue = now >= nextReport
        if isDue { nextReport = now.advanced(by: Self.reportInterval) }
        let until = deadline.map { min($0, nextReport) } ?? nextReport
        return isDue ? .report(next: until) : .wait(until)
    }
}
