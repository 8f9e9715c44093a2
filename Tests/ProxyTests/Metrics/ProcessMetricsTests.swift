import Glibc
import Testing

@testable import Proxy

@Suite struct ProcessMetricsTests {
    /// The name of the process may hold what looks like the end of the name.
    @Test func statusLineIsParsed() {
        let line =
            "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 1250 1048576 512 184 1"
        let status = ProcessStatus(parsing: Array(line.utf8), ticksPerSecond: 100, pageSize: 4096)
        #expect(status?.threads == 3)
        #expect(status?.startedAfterBoot == 12.5)
        #expect(status?.virtualBytes == 1_048_576)
        #expect(status?.residentBytes == 512 * 4096)
    }

    @Test(arguments: [
        "", "42 (a", "42 (a) S 1 2", "42 (a)", "42 (a) S" + String(repeating: " x", count: 30),
    ])
    func otherTextIsNoStatus(line: String) {
        #expect(
            ProcessStatus(parsing: Array(line.utf8), ticksPerSecond: 100, pageSize: 4096) == nil)
    }

    @Test func theProcessDescribesItself() throws {
        var page = Exposition(.prometheusText)
        ProcessMetrics().write(to: &page)
        let values = samples(in: page.finished())
        #expect(try #require(values["process_cpu_seconds_total"]) > 0)
        #expect(try #require(values["process_open_fds"]) >= 5)
        #expect(try #require(values["process_max_fds"]) >= 64)
        let resident = try #require(values["process_resident_memory_bytes"])
        #expect(resident > 1_048_576)
        #expect(try #require(values["process_virtual_memory_bytes"]) > resident)
        #expect(try #require(values["process_threads"]) >= 1)
        #expect(values["process_virtual_memory_max_bytes"] != nil)
        let age = Double(time(nil)) - (try #require(values["process_start_time_seconds"]))
        #expect(age > -2 && age < 24 * 3600)
    }

    @Test func openDescriptorsAreCounted() async {
        // In a process of its own, where nobody else opens and closes.
        await #expect(processExitsWith: .success) {
            let metrics = ProcessMetrics()
            let before = openDescriptors(metrics)
            let extra = (0..<7).map { _ in dup(0) }
            precondition(openDescriptors(metrics) == before + 7)
            for descriptor in extra { close(descriptor) }
            precondition(openDescriptors(metrics) == before)
        }
    }
}

private func openDescriptors(_ metrics: ProcessMetrics) -> Double {
    var page = Exposition(.prometheusText)
    metrics.write(to: &page)
    return samples(in: page.finished())["process_open_fds"] ?? .nan
}

/// The series of a page, of those without labels.
func samples(in page: String) -> [String: Double] {
    var values: [String: Double] = [:]
    for line in page.split(separator: "\n") where !line.hasPrefix("#") {
        let parts = line.split(separator: " ")
        if parts.count == 2 { values[String(parts[0])] = Double(parts[1]) }
    }
    return values
}
