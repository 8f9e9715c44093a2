// Histograms of times, with fixed buckets.

/// Counts of observations by upper bound, and their sum. One writer, many readers.
struct Histogram: ~Copyable, Sendable {
    /// Upper bounds in seconds, rising; one more bucket takes what is above the last.
    let bounds: [Double]
    private let nanosecondBounds: [UInt64]
    private let buckets: CounterTable
    private let sum = Counter()

    init(bounds: [Double]) {
        self.bounds = bounds
        nanosecondBounds = bounds.map { UInt64($0 * 1e9) }
        buckets = CounterTable(bounds.count + 1)
    }

    func observe(nanoseconds: UInt64) {
        var index = 0
        while index < nanosecondBounds.count && nanoseconds > nanosecondBounds[index] { index += 1 }
        buckets.add(index)
        sum.add(nanoseconds)
    }

    /// Observations in each bucket (not yet cumulative), the overflow bucket last.
    var counts: [UInt64] { (0...bounds.count).map { buckets.value($0) } }
    var sumNanoseconds: UInt64 { sum.value }

    /// A web request on loopback takes a millisecond, a database session a day.
    static let connectionDuration = [
        0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400,
    ]
    /// From a unix socket next door to a SYN that was sent three times.
    static let connectDuration = [
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3,
        10,
    ]
}
