import Glibc
import Testing

@testable import Proxy

/// Prometheus' own judgement of what the writer writes.
@Suite(.enabled(if: isInstalled("promtool"), "promtool is in the Debian package prometheus"))
struct PromtoolTests {
    @Test func aPageWithEveryKindOfFamilyPasses() {
        var page = Exposition(.prometheusText)
        ScrapeCounts().write(to: &page)
        ProcessMetrics().write(to: &page)
        page.gauge("tcp_proxy_connections_active", help: "A \\ \"quoted\"\nhelp.") {
            $0.sample(["route": "a \"b\" \\ \n ü"], 1)
            $0.sample(["route": ""], -0.5)
        }
        page.counter("tcp_proxy_bytes_total", help: "Bytes.") { _ in }
        page.histogram("tcp_proxy_connection_duration_seconds", help: "Time.") {
            $0.sample(["route": "a"], bounds: [1e-6, 0.25, 1], counts: [1, 0, 2, 9], sum: 1e9)
        }
        #expect(promtoolAccepts(page.finished()))
    }

    /// So that the test above can fail.
    @Test(arguments: ["up{route=\"a\"b\"} 1\n", "x_total 1\n", "# TYPE x gauge\nx +inf+\n"])
    func promtoolRefusesWhatIsWrong(page: String) {
        #expect(!promtoolAccepts(page))
    }
}

private func isInstalled(_ command: String) -> Bool {
    let status = unsafe system("command -v \(command) >/dev/null 2>&1")
    return status == 0
}

private func promtoolAccepts(_ page: String) -> Bool {
    guard let pipe = unsafe popen("promtool check metrics >/dev/null 2>&1", "w") else {
        return false
    }
    _ = unsafe fputs(page, pipe)
    let status = unsafe pclose(pipe)
    return status == 0
}
