import Testing

@testable import Proxy

@Suite struct ScrapeRequestTests {
    @Test(arguments: [
        ("GET", "/metrics", ScrapeReply.page(.prometheusText)),
        ("HEAD", "/metrics", .page(.prometheusText)),
        ("GET", "/metrics?name=x", .page(.prometheusText)),
        ("GET", "http://host:3002/metrics", .page(.prometheusText)),
        ("GET", "HTTP://host/metrics?x", .page(.prometheusText)),
        ("GET", "http://host", .index),
        ("GET", "/", .index),
        ("GET", "/?", .index),
        ("GET", "/-/healthy", .healthy),
        ("GET", "/metrics/", .notFound),
        ("GET", "/Metrics", .notFound),
        ("GET", "//metrics", .notFound),
        ("GET", "metrics", .notFound),
        ("GET", "", .notFound),
        ("GET", "*", .notFound),
        ("POST", "/metrics", .methodNotAllowed),
        ("OPTIONS", "*", .methodNotAllowed),
        ("get", "/metrics", .methodNotAllowed),
    ])
    func routes(method: String, target: String, expected: ScrapeReply) {
        #expect(ScrapeReply.to(method: method, target: target, accept: []) == expected)
    }

    @Test(
        arguments: [
            ("", .prometheusText),
            ("*/*", .prometheusText),
            ("text/html,application/xhtml+xml,*/*;q=0.8", .prometheusText),
            ("application/openmetrics-text", .openMetrics),
            ("Application/OpenMetrics-Text", .openMetrics),
            ("application/openmetrics-text; version=1.0.0", .openMetrics),
            ("application/openmetrics-text ; Version=\"1.0.0\"", .openMetrics),
            ("application/openmetrics-text;version=0.0.1", .prometheusText),
            ("application/openmetrics-text;version=2.0.0", .prometheusText),
            ("application/openmetrics-text;q=0", .prometheusText),
            ("application/openmetrics-text;q=0.5,text/plain", .prometheusText),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.5", .openMetrics),
            ("application/openmetrics-text;q=0.499,text/plain;q=0.5", .prometheusText),
            // The more specific range counts, whatever the order and the weights.
            ("application/openmetrics-text;q=0.4,*/*;q=0.9,text/plain;q=0.1", .openMetrics),
            ("application/openmetrics-text;q=0.4,text/*;q=0.5", .prometheusText),
            (
                "text/plain,application/openmetrics-text;q=0.5,text/plain;version=0.0.4;q=0",
                .openMetrics
            ),
            ("application/openmetrics-text;q=0.5,text/plain;version=1.0.0", .openMetrics),
            // What cannot be read is as good as not there.
            ("application/openmetrics-text;q=high", .prometheusText),
            ("application/openmetrics-text;q=1.5", .prometheusText),
            ("application/openmetrics-text;q=0.1234", .prometheusText),
            ("application/openmetrics-text;q=", .prometheusText),
            ("application/openmetrics-text;q=1.000;x", .openMetrics),
            (";;,,;q=,=,\"", .prometheusText),
            ("x/y;z=\"a,application/openmetrics-text\"", .prometheusText),
            ("x/y;z=\"a\\\",b\" , application/openmetrics-text", .openMetrics),
            (prometheus2, .openMetrics), (prometheus3, .openMetrics),
        ] as [(String, ExpositionFormat)])
    func formatIsNegotiated(accept: String, expected: ExpositionFormat) {
        #expect(ExpositionFormat.negotiated([accept]) == expected)
    }

    @Test func severalAcceptHeadersAreOneList() {
        let open = "application/openmetrics-text;q=0.4"
        #expect(ExpositionFormat.negotiated([]) == .prometheusText)
        #expect(ExpositionFormat.negotiated(["text/plain;q=0.3", open]) == .openMetrics)
        #expect(ExpositionFormat.negotiated([open, "text/plain;q=0.5"]) == .prometheusText)
    }

    /// Neither header may trap, whatever a client writes into it. Same seed, same inputs.
    @Test func noAcceptHeaderOrTargetTraps() {
        let pieces = [
            ",", ";", "=", "\"", "\\", " ", "\t", "q", "q=", "0.", "1", "0.999", ".", "-", "*/*",
            "text/plain", "application/openmetrics-text", "version=", "1.0.0", "\u{301}", "é", "/",
            "?", "http://", "\0",
        ]
        var random = SplitMix64(state: 42)
        for _ in 0..<20_000 {
            let text = (0..<Int.random(in: 0...12, using: &random))
                .map { _ in pieces.randomElement(using: &random) ?? "" }.joined()
            _ = ExpositionFormat.negotiated([text])
            _ = ScrapeReply.to(method: "GET", target: text, accept: [])
        }
    }

    @Test(arguments: [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"), (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT"),
    ])
    func datesAreThoseOfHTTP(time: Int, expected: String) {
        #expect(httpDate(time) == expected)
    }
}

/// As Prometheus 2 and 3 ask.
private let prometheus2 =
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    + "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
private let prometheus3 =
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    + "application/openmetrics-text;version=0.0.1;q=0.4,"
    + "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    + "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"

/// A small generator with a seed.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
