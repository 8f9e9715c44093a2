import Testing

@testable import Proxy

@Suite struct ExpositionTests {
    @Test func gaugesWithoutAndWithLabels() {
        var page = Exposition(.prometheusText)
        page.gauge("connections", help: "Open.") {
            $0.sample(3)
            $0.sample(["route": "a", "reason": "b"], -1)
        }
        #expect(
            page.finished() == """
                # HELP connections Open.
                # TYPE connections gauge
                connections 3
                connections{route="a",reason="b"} -1

                """)
    }

    /// OpenMetrics names the family of a counter without the suffix that its series have, and has
    /// no counters without that suffix.
    @Test(arguments: [
        (ExpositionFormat.prometheusText, "bytes_total", "bytes_total", "counter"),
        (.prometheusText, "inbound_bytes_count", "inbound_bytes_count", "counter"),
        (.openMetrics, "bytes_total", "bytes", "counter"),
        (.openMetrics, "inbound_bytes_count", "inbound_bytes_count", "unknown"),
    ])
    func counterNames(format: ExpositionFormat, name: String, family: String, type: String) {
        var page = Exposition(format)
        page.counter(name, help: "Bytes.") { $0.sample(7) }
        let end = format == .openMetrics ? "# EOF\n" : ""
        #expect(
            page.finished()
                == "# HELP \(family) Bytes.\n# TYPE \(family) \(type)\n\(name) 7\n" + end)
    }

    @Test(arguments: [
        (ExpositionFormat.prometheusText, #"a "b" \\ \n"#), (.openMetrics, #"a \"b\" \\ \n"#),
    ])
    func helpEscapes(format: ExpositionFormat, expected: String) {
        var page = Exposition(format)
        page.gauge("x", help: "a \"b\" \\ \n") { _ in }
        #expect(page.finished().hasPrefix("# HELP x \(expected)\n# TYPE x gauge\n"))
    }

    @Test(arguments: [
        ("plain", "plain"), ("a\"b", #"a\"b"#), ("a\\b", #"a\\b"#), ("a\nb", #"a\nb"#),
        ("\\n", #"\\n"#), ("Zürich 🚲", "Zürich 🚲"), ("", ""),
    ])
    func labelEscapes(value: String, expected: String) {
        var page = Exposition(.prometheusText)
        page.gauge("x", help: "X.") { $0.sample(["route": value], 1) }
        #expect(page.finished().hasSuffix("x{route=\"\(expected)\"} 1\n"))
    }

    @Test func labelsAreAddedAtTheEnd() {
        let labels: Labels = ["route": "default"]
        #expect(labels.adding("reason", "r") == ["route": "default", "reason": "r"])
        #expect(Labels.none.adding("a", "b") == ["a": "b"])
    }

    @Test(arguments: [
        (0.0, "0"), (-0.0, "-0"), (1, "1"), (-2.5, "-2.5"), (0.1, "0.1"), (1e-5, "1e-05"),
        (.leastNonzeroMagnitude, "5e-324"), (123_456_789, "123456789"), (1e16, "1e+16"),
        (1.0 / 3, "0.3333333333333333"),
        (Double.greatestFiniteMagnitude, "1.7976931348623157e+308"), (.infinity, "+Inf"),
        (-.infinity, "-Inf"), (.nan, "NaN"),
    ])
    func doubles(value: Double, expected: String) {
        #expect(text(of: value) == expected)
        if value.isFinite { #expect(Double(expected) == value) }
    }

    @Test func integersToTheirLimits() {
        #expect(text(of: 0) == "0")
        #expect(text(of: UInt64.max) == "18446744073709551615")
        #expect(text(of: Int64.min) == "-9223372036854775808")
        #expect(text(of: Int8.min) == "-128")
        #expect(text(of: UInt8.max) == "255")
        #expect(text(of: 1_000_000_000_000) == "1000000000000")
    }

    @Test(arguments: [
        (ExpositionFormat.prometheusText, ["0.5", "1", "1e-05"]),
        (.openMetrics, ["0.5", "1.0", "1e-05"]),
    ])
    func histogramsAreCumulative(format: ExpositionFormat, le: [String]) {
        var page = Exposition(format)
        page.histogram("took_seconds", help: "Time.") {
            $0.sample(["route": "a"], bounds: [0.5, 1], counts: [1, 0, 2], sum: 9.25)
            $0.sample(.none, bounds: [1e-5], counts: [0, 0], sum: 0)
        }
        let end = format == .openMetrics ? "# EOF\n" : ""
        #expect(
            page.finished() == """
                # HELP took_seconds Time.
                # TYPE took_seconds histogram
                took_seconds_bucket{route="a",le="\(le[0])"} 1
                took_seconds_bucket{route="a",le="\(le[1])"} 1
                took_seconds_bucket{route="a",le="+Inf"} 3
                took_seconds_sum{route="a"} 9.25
                took_seconds_count{route="a"} 3
                took_seconds_bucket{le="\(le[2])"} 0
                took_seconds_bucket{le="+Inf"} 0
                took_seconds_sum 0
                took_seconds_count 0

                """ + end)
    }

    @Test func anEmptyPageIsStillAPage() {
        #expect(Exposition(.prometheusText).finished() == "")
        #expect(Exposition(.openMetrics).finished() == "# EOF\n")
    }

    @Test func contentTypesNameTheirVersions() {
        #expect(
            ExpositionFormat.prometheusText.contentType
                == "text/plain; version=0.0.4; charset=utf-8")
        #expect(
            ExpositionFormat.openMetrics.contentType
                == "application/openmetrics-text; version=1.0.0; charset=utf-8")
    }

    private func text(of value: Double) -> String {
        var page = Exposition(.prometheusText)
        page.gauge("x", help: "") { $0.sample(value) }
        return String(page.finished().split(separator: "\n")[2].dropFirst(2))
    }

    private func text(of value: some FixedWidthInteger) -> String {
        var page = Exposition(.prometheusText)
        page.gauge("x", help: "") { $0.sample(value) }
        return String(page.finished().split(separator: "\n")[2].dropFirst(2))
    }
}
