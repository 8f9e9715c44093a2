import Testing

@testable import Proxy

@Suite("A second worker is started by need")
struct LoadWindowTests {
    @Test("only two busy windows in a row are a need")
    func busy() {
        let window = LoadWindow.length
        var load = LoadWindow(startedAt: Instant(nanoseconds: 0))
        #expect(!load.isOver(at: Instant(nanoseconds: window - 1)))
        #expect(load.isOver(at: Instant(nanoseconds: window)))
        var cpu = window
        var busy = load.isBusy(at: Instant(nanoseconds: window), cpu: cpu)
        #expect(!busy)
        cpu += window / 2
        busy = load.isBusy(at: Instant(nanoseconds: 2 * window), cpu: cpu)
        #expect(!busy)
        cpu += window
        busy = load.isBusy(at: Instant(nanoseconds: 3 * window), cpu: cpu)
        #expect(!busy)
        cpu += window
        busy = load.isBusy(at: Instant(nanoseconds: 4 * window), cpu: cpu)
        #expect(busy)
    }

    @Test(
        "a CPU quota is read from cpu.max",
        arguments: [
            ("max 100000\n", nil), ("150000 100000\n", 1.5), ("50000 100000", 0.5), ("", nil),
            ("x y", nil), ("1", nil), ("-1 100000", nil), ("5 0", nil),
        ] as [(String, Double?)])
    func quota(text: String, expected: Double?) {
        #expect(Processors.parseQuota(text) == expected)
    }
}
