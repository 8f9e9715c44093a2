import Testing

@testable import Proxy

@Suite("The journal's limit is kept")
struct LogRateTests {
    private let start = Instant(nanoseconds: 1_000_000_000)
    /// journald.conf(5): RateLimitBurst= and RateLimitIntervalSec= by default.
    private static let journaldBurst = 10_000

    @Test("two windows of ours fit into one of journald's")
    func fits() {
        #expect(2 * (LogRate.mostSuccesses + LogRate.mostFailures) < Self.journaldBurst)
        #expect(LogRate.window == .seconds(30))
    }

    @Test("a window admits so many, failures more than successes, and a new one begins afresh")
    func window() {
        var rate = LogRate(now: start)
        func admitted(_ rate: inout LogRate, success: Bool, at now: Instant) -> Int {
            var count = 0
            for _ in 0..<10_000 where rate.admits(success: success, now: now) { count += 1 }
            return count
        }
        var count = admitted(&rate, success: true, at: start)
        #expect(count == LogRate.mostSuccesses)
        count = admitted(&rate, success: false, at: start)
        #expect(count == LogRate.mostFailures, "successes leave failures their share")
        count = admitted(&rate, success: true, at: start.advanced(by: .seconds(29)))
        #expect(count == 0)
        count = admitted(&rate, success: true, at: start.advanced(by: .seconds(30)))
        #expect(count == LogRate.mostSuccesses)
    }

    @Test("a summary counts each connection once, by reason")
    func summary() {
        let route = Route(name: "web", index: 0, settings: nil, isActivated: false)
        var summary = LogSummary(route: "web")
        for reason in [CloseReason.clientClosed, .clientClosed, .targetRefused] {
            summary.add(
                ConnectionRecord(
                    id: 1, route: route, client: .unnamed, listen: .unnamed, target: .unnamed,
                    bytesIn: 10, bytesOut: 1, duration: 0, connectDuration: nil, reason: reason))
        }
        #expect(summary.count == 3)
        #expect(
            summary.line == "3 more connections of route web ended: 2 client-closed, "
                + "1 target-refused; in=30 out=3")
    }
}
