import Testing

@testable import Proxy

@Suite("A dial tries address after address, within its time")
struct DialAttemptTests {
    private let a = SocketAddress.ipv4(1, port: 1)
    private let b = SocketAddress.ipv4(2, port: 1)
    private let start = Instant(nanoseconds: 1_000_000_000)
    private let named = Target(.host("name.invalid", port: 1))

    private func fixed(_ last: Int) -> Target { Target(.host("127.0.0.\(last)", port: 1)) }

    private func attempt(
        _ targets: [Target], seconds: Int = 10, patient: Bool = false
    ) -> DialAttempt {
        DialAttempt(
            targets: targets, deadline: start.advanced(by: .seconds(seconds)), patient: patient)
    }

    private func after(_ milliseconds: Int) -> Instant {
        start.advanced(by: .milliseconds(milliseconds))
    }

    @Test("a numeric target is connected at once, with all the time there is")
    func numeric() {
        var dial = attempt([fixed(1)])
        let action = dial.start(now: start)
        #expect(action == .connect(.ipv4(0x7f00_0001, port: 1), by: after(10_000)))
    }

    @Test("a name is resolved first; without addresses the dial fails as unresolved")
    func unresolved() {
        var dial = attempt([named])
        var action = dial.start(now: start)
        #expect(action == .resolve(0, by: after(10_000)))
        action = dial.resolved([], now: start)
        #expect(action == .fail(.unresolved))
    }

    @Test("the addresses of a name are tried in turn and share the time")
    func inTurn() {
        var dial = attempt([named])
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        action = dial.resolved([a, b], now: start)
        #expect(action == .connect(a, by: after(5000)))
        action = dial.failed(.timeout, now: after(5000))
        #expect(action == .connect(b, by: after(10_000)))
        action = dial.failed(.refused, now: after(6000))
        #expect(action == .fail(.refused))
    }

    @Test("the next target is tried when the first one's addresses have failed")
    func nextTarget() {
        var dial = attempt([fixed(1), fixed(2)])
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        action = dial.failed(.refused, now: start)
        #expect(action == .connect(.ipv4(0x7f00_0002, port: 1), by: after(10_000)))
        #expect(dial.targetIndex == 1)
    }

    @Test("a name server that does not answer leaves the next target its share of the time")
    func hangingLookUp() {
        var dial = attempt([named, fixed(2)])
        var action = dial.start(now: start)
        #expect(action == .resolve(0, by: after(5000)))
        action = dial.resolved([], now: after(5000))
        #expect(action == .connect(.ipv4(0x7f00_0002, port: 1), by: after(10_000)))
    }

    @Test("when the time is over the dial fails with a timeout")
    func deadline() {
        var dial = attempt([named])
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        _ = dial.resolved([a, b], now: start)
        action = dial.failed(.timeout, now: after(10_000))
        #expect(action == .fail(.timeout))
    }

    @Test("a refusal ends an impatient dial at once")
    func impatient() {
        var dial = attempt([fixed(1)])
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        action = dial.failed(.refused, now: start)
        #expect(action == .fail(.refused))
    }

    @Test("a patient dial waits longer each time and gives up at the deadline")
    func patient() {
        var dial = attempt([fixed(1)], seconds: 1, patient: true)
        var now = start
        var pauses: [UInt64] = []
        var action = dial.start(now: now)
        while true {
            switch action {
            case .connect: action = dial.failed(.refused, now: now)
            case .wait(let until):
                pauses.append(until.nanoseconds(since: now) / 1_000_000)
                now = until
                action = dial.start(now: now)
            case .fail(let failure):
                #expect(failure == .refused)
                #expect(pauses == [20, 40, 80, 160, 320, 380])
                return
            case .resolve: Issue.record("nothing to resolve")
            }
        }
    }

    @Test("a patient dial does not wait for what time does not heal")
    func unreachable() {
        var dial = attempt([fixed(1)], patient: true)
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        action = dial.failed(.unreachable, now: start)
        #expect(action == .fail(.unreachable))
    }

    @Test("a unix target whose backlog is full is asked again by any dial")
    func fullBacklog() {
        var dial = attempt([Target(.path("/run/x"))])
        var action: DialAttempt.Action
        _ = dial.start(now: start)
        action = dial.failed(.other, full: true, now: start)
        #expect(action == .wait(after(20)))
    }

    @Test("the families of RFC 8305 are interleaved")
    func interleaved() {
        let six = SocketAddress.ipv6(high: 0, low: 1, port: 1, scope: 0)
        let seven = SocketAddress.ipv6(high: 0, low: 2, port: 1, scope: 0)
        #expect(Resolver.interleaved([six, seven, a, b]) == [six, a, seven, b])
        #expect(Resolver.interleaved([a, six, seven]) == [a, six, seven])
        #expect(Resolver.interleaved([]) == [])
    }
}
