import Testing

@testable import Proxy

@Suite("The watchdog")
struct WatchdogTests {
    private let start = Instant(nanoseconds: 1_000_000_000)

    private func after(_ milliseconds: Int) -> Instant {
        start.advanced(by: .milliseconds(milliseconds))
    }

    @Test("asks first, and tells the manager at half its interval when all have answered")
    func alive() {
        var watchdog = Watchdog(limit: .seconds(2), now: start)
        let first = watchdog.next(now: start, allAnswered: true)
        #expect(first == .ping)
        let early = watchdog.next(now: after(999), allAnswered: true)
        #expect(early == nil)
        let second = watchdog.next(now: after(1000), allAnswered: true)
        #expect(second == .tellAndPing)
    }

    @Test("says nothing while a worker is silent, and looks again before the time is over")
    func stuck() {
        var watchdog = Watchdog(limit: .seconds(2), now: start)
        _ = watchdog.next(now: start, allAnswered: true)
        let silent = watchdog.next(now: after(1000), allAnswered: false)
        #expect(silent == .keepSilent)
        #expect(watchdog.nextAt == after(1125))
        let still = watchdog.next(now: after(1125), allAnswered: false)
        #expect(still == .keepSilent)
        let back = watchdog.next(now: after(1250), allAnswered: true)
        #expect(back == .tellAndPing)
    }
}
