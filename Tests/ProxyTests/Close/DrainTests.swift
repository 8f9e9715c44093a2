import Testing

@testable import Proxy

@Suite("A drain waits, reports and ends")
struct DrainTests {
    private let start = Instant(nanoseconds: 5_000_000_000)

    private func after(_ milliseconds: Int) -> Instant {
        start.advanced(by: .milliseconds(milliseconds))
    }

    @Test("it ends with the last connection")
    func finishes() {
        var drain = Drain(startedAt: start, timeout: nil)
        var action = drain.next(now: start, open: 1)
        #expect(action == .report(next: after(5000)))
        action = drain.next(now: after(10), open: 1)
        #expect(action == .wait(after(5000)))
        action = drain.next(now: after(20), open: 0)
        #expect(action == .finished)
    }

    @Test("it reports every five seconds, for ever without a timeout")
    func reports() {
        var drain = Drain(startedAt: start, timeout: nil)
        var action: Drain.Action
        _ = drain.next(now: start, open: 3)
        action = drain.next(now: after(5000), open: 3)
        #expect(action == .report(next: after(10_000)))
        action = drain.next(now: after(3_600_000), open: 3)
        #expect(action == .report(next: after(3_605_000)))
    }

    @Test("it cuts what is left when its time is over, not before")
    func cuts() {
        var drain = Drain(startedAt: start, timeout: .seconds(2))
        var action = drain.next(now: start, open: 1)
        #expect(action == .report(next: after(2000)))
        action = drain.next(now: after(1999), open: 1)
        #expect(action == .wait(after(2000)))
        action = drain.next(now: after(2000), open: 1)
        #expect(action == .cut)
    }

    @Test("without time it cuts at once, without connections it is finished at once")
    func atOnce() {
        var drain = Drain(startedAt: start, timeout: .zero)
        var action = drain.next(now: start, open: 1)
        #expect(action == .cut)
        action = drain.next(now: start, open: 0)
        #expect(action == .finished)
    }
}
