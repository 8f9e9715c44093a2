import Testing

@testable import Proxy

@Suite("The timer wheel")
struct TimersTests {
    private let start = Instant(nanoseconds: 100 * Timers.tick)

    private func after(_ milliseconds: Int) -> Instant {
        start.advanced(by: .milliseconds(milliseconds))
    }

    @Test("a timer fires once, at its deadline or up to a tick later, never before")
    func fires() {
        var timers = Timers(now: start)
        var due: [Int]
        timers.set(3, at: after(100))
        due = timers.advance(to: after(99))
        #expect(due == [])
        due = timers.advance(to: after(100 + 17))
        #expect(due == [3])
        due = timers.advance(to: after(10_000))
        #expect(due == [])
        #expect(timers.count == 0)
    }

    @Test("a moved timer fires at its new time only, a cleared one never")
    func moves() {
        var timers = Timers(now: start)
        var due: [Int]
        timers.set(0, at: after(50))
        timers.set(1, at: after(50))
        timers.set(0, at: after(500))
        timers.clear(1)
        timers.clear(1)
        due = timers.advance(to: after(400))
        #expect(due == [])
        due = timers.advance(to: after(600))
        #expect(due == [0])
    }

    @Test("timers of one slot are all kept apart")
    func oneSlot() {
        var timers = Timers(now: start)
        var due: [Int]
        for index in 0..<10 { timers.set(index, at: after(32)) }
        timers.clear(9)
        timers.clear(0)
        timers.clear(5)
        due = timers.advance(to: after(100)).sorted()
        #expect(due == [1, 2, 3, 4, 6, 7, 8])
    }

    @Test("deadlines more than a turn of the wheel away wait their turns", arguments: [70, 3600])
    func farAway(seconds: Int) {
        var timers = Timers(now: start)
        var due: [Int]
        timers.set(0, at: after(seconds * 1000))
        var now = start
        while now < after(seconds * 1000) {
            due = timers.advance(to: now)
            #expect(due == [])
            let wait = timers.milliseconds(from: now)
            #expect(wait >= 0)
            now = now.advanced(by: .milliseconds(Int(max(wait, 1))))
        }
        due = timers.advance(to: after(seconds * 1000 + 17))
        #expect(due == [0])
    }

    @Test("after a long sleep every due timer fires")
    func longSleep() {
        var timers = Timers(now: start)
        var due: [Int]
        for index in 0..<100 { timers.set(index, at: after(index * 1000)) }
        due = timers.advance(to: after(200_000)).sorted()
        #expect(due == Array(0..<100))
    }

    @Test("the wait ends when a timer is due, and is endless without timers")
    func waits() {
        var timers = Timers(now: start)
        #expect(timers.milliseconds(from: start) == -1)
        timers.set(0, at: after(1000))
        let wait = timers.milliseconds(from: start)
        #expect((1000...1017).contains(wait))
        timers.set(0, at: Instant(nanoseconds: .max))
        #expect(timers.milliseconds(from: start) == -1, "for ever is no timer")
    }
}
