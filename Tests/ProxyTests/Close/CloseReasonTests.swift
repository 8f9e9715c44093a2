import Glibc
import Testing

@testable import Proxy

@Suite("Every connection's end has one name")
struct CloseReasonTests {
    @Test("names are written in kebab case, each once")
    func labels() {
        #expect(CloseReason.clientClosed.label == "client-closed")
        #expect(CloseReason.targetConnectTimeout.label == "target-connect-timeout")
        #expect(CloseReason.stopped.label == "stopped")
        #expect(CloseReason.lost.label == "lost")
        #expect(AcceptError.systemDescriptors.label == "system-descriptors")
        #expect(Set(CloseReason.allCases.map(\.label)).count == CloseReason.allCases.count)
    }

    @Test("rows are the cases' own order, as tables of counters need it")
    func rows() {
        #expect(CloseReason.allCases.map(\.rawValue) == Array(0..<CloseReason.allCases.count))
        #expect(ConnectFailure.allCases.map(\.rawValue) == Array(0..<ConnectFailure.allCases.count))
    }

    @Test("success is a clean end, and nothing else")
    func successes() {
        #expect(CloseReason.allCases.filter(\.isSuccess) == [.clientClosed, .targetClosed])
    }

    @Test(
        "an error while relaying is told by the side that gave it",
        arguments: [
            (Side.client, ECONNRESET, CloseReason.clientReset),
            (.target, EPIPE, .targetReset),
            (.target, ETIMEDOUT, .targetTimeout),
            (.client, EHOSTUNREACH, .clientTimeout),
            (.client, ENOBUFS, .noMemory),
            (.client, EBADF, .internalError),
        ])
    func failures(side: Side, code: CInt, expected: CloseReason) {
        #expect(CloseReason.failure(of: side, code: code) == expected)
    }

    @Test(
        "an error while dialling is told by its cause",
        arguments: [
            (ECONNREFUSED, ConnectFailure.refused, CloseReason.targetRefused),
            (ENOENT, .refused, .targetRefused),
            (ENETUNREACH, .unreachable, .targetUnreachable),
            (ETIMEDOUT, .timeout, .targetConnectTimeout),
            (EMFILE, .noDescriptors, .noDescriptors),
            (EADDRNOTAVAIL, .noPorts, .targetConnectFailed),
            (EACCES, .other, .targetConnectFailed),
        ])
    func dialFailures(code: CInt, failure: ConnectFailure, reason: CloseReason) {
        #expect(ConnectFailure(code: code) == failure)
        #expect(failure.closeReason == reason)
    }

    @Test("a log line has everything a person greps for")
    func line() {
        let route = Route(
            name: "web", index: 0, settings: nil, isActivated: false)
        let record = ConnectionRecord(
            id: 7, route: route, client: .ipv4(0x7f00_0001, port: 40000),
            listen: .ipv4(0x7f00_0001, port: 80),
            target: .ipv6(high: 0, low: 1, port: 80, scope: 0), bytesIn: 1, bytesOut: 2,
            duration: 61_005_000_000, connectDuration: nil, reason: .idleTimeout)
        #expect(
            record.line == "connection 7 ended: route=web client=127.0.0.1:40000 "
                + "target=[::1]:80 in=1 out=2 duration=61.005s reason=idle-timeout")
    }
}
