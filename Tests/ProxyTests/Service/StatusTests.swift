import Testing

@testable import Proxy

@Suite("What systemctl status shows")
struct StatusTests {
    @Test("one sentence, with words in the right number")
    func serving() {
        #expect(
            Status.serving(
                open: 12, served: 48_210, routes: 3, refused: 0, bytesIn: 0, bytesOut: 0
            )
            .hasPrefix("12 open, 48 210 served, 3 routes; "))
        #expect(
            Status.serving(open: 0, served: 1, routes: 1, refused: 2, bytesIn: 1, bytesOut: 1)
                .hasPrefix("0 open, 1 served, 1 route (2 refused); "))
    }

    @Test("a drain says how many are left and how old the oldest is")
    func draining() {
        #expect(Status.draining(left: 17, oldest: 42) == "Draining: 17 left, the oldest for 42 s")
        #expect(Status.draining(left: 1, oldest: nil) == "Draining: 1 left")
    }

    @Test(
        "digits are grouped in threes",
        arguments: [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")])
    func grouped(number: UInt64, text: String) {
        #expect(Status.grouped(number) == text)
    }
}
