// Whether a worker has more to do than it can: the reason to start another. Pure.

/// A worker's use of its CPU over successive quarters of a second.
struct LoadWindow {
    private var startedAt: Instant
    private var startCPU: UInt64
    private var busyWindows = 0

    static let length: UInt64 = 250_000_000
    /// One worker does a given job with less CPU than two, so a second one has to be needed: the
    /// first uses this share of a CPU, for half a second.
    static let busyShare = 0.95

    init(startedAt: Instant, cpu: UInt64 = 0) {
        self.startedAt = startedAt
        startCPU = cpu
    }

    func isOver(at now: Instant) -> Bool { now.nanoseconds(since: startedAt) >= Self.length }

    /// Closes the window and begins the next.
    ///
    /// - Parameter cpu: nanoseconds that the thread has used so far.
    /// - Returns: true exactly when this window and the one before it were busy.
    mutating func isBusy(at now: Instant, cpu: UInt64) -> Bool {
        let wall = now.nanoseconds(since: startedAt)
        let used = cpu > startCPU ? cpu - startCPU : 0
        startedAt = now
        startCPU = cpu
        busyWindows = Double(used) > Double(wall) * Self.busyShare ? busyWindows + 1 : 0
        return busyWindows >= 2
    }
}
