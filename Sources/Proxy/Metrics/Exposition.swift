// Writes a page of metrics as text. Pure: counters go in, bytes come out; the endpoint serves them.
//
// Both formats come from the same calls. They differ in the escapes of HELP, in how the family of a
// counter is named, in the spelling of bucket bounds, and in the closing line. Specifications:
// https://prometheus.io/docs/instrumenting/exposition_formats/ (text 0.0.4) and
// https://prometheus.io/docs/specs/om/open_metrics_spec/ (OpenMetrics 1.0).

/// The two text formats that a scraper may ask for.
enum ExpositionFormat: Sendable, Equatable, CaseIterable {
    case prometheusText  // 0.0.4
    case openMetrics  // 1.0.0

    var contentType: String {
        switch self {
        case .prometheusText: "text/plain; version=0.0.4; charset=utf-8"
        case .openMetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
    }
}

/// The labels of one series, rendered and escaped once, so that a scrape only copies bytes.
struct Labels: Sendable, Equatable, ExpressibleByDictionaryLiteral {
    /// `name="value",name="value"`, without the braces; empty for a series without labels.
    fileprivate private(set) var rendered: [UInt8] = []

    static let none = Labels()

    init() {}

    /// - Parameter elements: in the order in which they are to be written; no name twice.
    init(dictionaryLiteral elements: (String, String)...) {
        for (name, value) in elements { append(name, value) }
    }

    /// These labels and one more at the end.
    func adding(_ name: String, _ value: String) -> Labels {
        var labels = self
        labels.append(name, value)
        return labels
    }

    private mutating func append(_ name: String, _ value: String) {
        assert(isMetricName(name) && !name.contains(":"), "not a label name: \(name)")
        if !rendered.isEmpty { rendered.append(UInt8(ascii: ",")) }
        rendered.append(contentsOf: name.utf8)
        rendered.append(contentsOf: "=\"".utf8)
        rendered.appendEscaped(value, quotes: true)
        rendered.append(UInt8(ascii: "\""))
    }
}

/// One page. Families are written in the order of the calls; each name is to be used once.
///
///     var page = Exposition(.prometheusText)
///     page.gauge("tcp_proxy_connections_active", help: "Open client connections.") {
///         $0.sample(["route": "default"], 12)
///     }
///     let text = page.finished()
struct Exposition {
    let format: ExpositionFormat
    private var bytes: [UInt8] = []

    /// - Parameter capacity: bytes to reserve; the size of the last page is a good guess.
    init(_ format: ExpositionFormat, capacity: Int = 16 * 1024) {
        self.format = format
        bytes.reserveCapacity(capacity)
    }

    /// A family of values that only grow while the process lives.
    ///
    /// - Parameter name: the full name of its series. OpenMetrics knows counters only with the
    ///   suffix `_total`; any other name is kept there as it is, with the type `unknown`.
    mutating func counter(_ name: String, help: String, _ body: (inout Samples) -> Void) {
        let suffix = "_total"
        switch format {
        case .prometheusText:
            describe(name, type: "counter", help: help)
        case .openMetrics where name.hasSuffix(suffix):
            describe(String(name.dropLast(suffix.count)), type: "counter", help: help)
        case .openMetrics:
            describe(name, type: "unknown", help: help)
        }
        write(name, body)
    }

    /// A family of values that go up and down.
    mutating func gauge(_ name: String, help: String, _ body: (inout Samples) -> Void) {
        describe(name, type: "gauge", help: help)
        write(name, body)
    }

    /// A family of histograms.
    ///
    /// - Parameter name: without `_bucket`, `_sum` and `_count`, which are added to its series.
    mutating func histogram(
        _ name: String, help: String, _ body: (inout HistogramSamples) -> Void
    ) {
        describe(name, type: "histogram", help: help)
        var samples = HistogramSamples(name: name, format: format, bytes: [])
        swap(&bytes, &samples.bytes)  // moved, not copied
        body(&samples)
        swap(&bytes, &samples.bytes)
    }

    /// The whole page. To be called once, at the end.
    consuming func finished() -> String {
        if format == .openMetrics { bytes.append(contentsOf: "# EOF\n".utf8) }
        return String(decoding: bytes, as: UTF8.self)
    }

    private mutating func describe(_ family: String, type: String, help: String) {
        assert(isMetricName(family), "not a metric name: \(family)")
        bytes.append(contentsOf: "# HELP ".utf8)
        bytes.append(contentsOf: family.utf8)
        bytes.append(UInt8(ascii: " "))
        bytes.appendEscaped(help, quotes: format == .openMetrics)
        bytes.append(contentsOf: "\n# TYPE ".utf8)
        bytes.append(contentsOf: family.utf8)
        bytes.append(UInt8(ascii: " "))
        bytes.append(contentsOf: type.utf8)
        bytes.append(UInt8(ascii: "\n"))
    }

    private mutating func write(_ name: String, _ body: (inout Samples) -> Void) {
        var samples = Samples(name: name, bytes: [])
        swap(&bytes, &samples.bytes)
        body(&samples)
        swap(&bytes, &samples.bytes)
    }
}

extension Exposition {
    /// Takes the series of one counter or gauge family.
    struct Samples {
        fileprivate let name: String
        fileprivate var bytes: [UInt8]

        mutating func sample(_ value: some FixedWidthInteger) { sample(.none, value) }

        mutating func sample(_ value: Double) { sample(.none, value) }

        mutating func sample(_ labels: Labels, _ value: some FixedWidthInteger) {
            bytes.appendSeries(name, labels)
            bytes.appendDecimal(value)
            bytes.append(UInt8(ascii: "\n"))
        }

        mutating func sample(_ labels: Labels, _ value: Double) {
            bytes.appendSeries(name, labels)
            bytes.appendNumber(value)
            bytes.append(UInt8(ascii: "\n"))
        }
    }

    /// Takes the series of one histogram family.
    struct HistogramSamples {
        fileprivate let name: String
        fileprivate let format: ExpositionFormat
        fileprivate var bytes: [UInt8]

        /// - Parameters:
        ///   - bounds: upper bounds of the buckets, inclusive, ascending, finite.
        ///   - counts: observations in each bucket alone (they are summed up here), and at the end
        ///     those above the last bound: one more than there are bounds.
        ///   - sum: of all observed values.
        mutating func sample(
            _ labels: Labels = .none, bounds: [Double], counts: [UInt64], sum: Double
        ) {
            precondition(counts.count == bounds.count + 1)
            var cumulative: UInt64 = 0
            for (index, count) in counts.enumerated() {
                cumulative &+= count
                let bound = index < bounds.count ? bounds[index] : .infinity
                bytes.appendBucket(
                    name, labels, bound: bound, keepingFraction: format == .openMetrics)
                bytes.appendDecimal(cumulative)
                bytes.append(UInt8(ascii: "\n"))
            }
            bytes.appendSeries(name, suffix: "_sum", labels)
            bytes.appendNumber(sum)
            bytes.append(UInt8(ascii: "\n"))
            bytes.appendSeries(name, suffix: "_count", labels)
            bytes.appendDecimal(cumulative)
            bytes.append(UInt8(ascii: "\n"))
        }
    }
}

/// True exactly when `name` matches `[a-zA-Z_:][a-zA-Z0-9_:]*`.
private func isMetricName(_ name: String) -> Bool {
    guard let first = name.utf8.first, !isDigit(first) else { return false }
    return name.utf8.allSatisfy { byte in
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"): true
        case UInt8(ascii: "_"), UInt8(ascii: ":"): true
        default: isDigit(byte)
        }
    }
}

extension [UInt8] {
    fileprivate mutating func appendSeries(_ name: String, suffix: String = "", _ labels: Labels) {
        append(contentsOf: name.utf8)
        append(contentsOf: suffix.utf8)
        if !labels.rendered.isEmpty {
            append(UInt8(ascii: "{"))
            append(contentsOf: labels.rendered)
            append(UInt8(ascii: "}"))
        }
        append(UInt8(ascii: " "))
    }

    fileprivate mutating func appendBucket(
        _ name: String, _ labels: Labels, bound: Double, keepingFraction: Bool
    ) {
        append(contentsOf: name.utf8)
        append(contentsOf: "_bucket{".utf8)
        if !labels.rendered.isEmpty {
            append(contentsOf: labels.rendered)
            append(UInt8(ascii: ","))
        }
        append(contentsOf: "le=\"".utf8)
        appendNumber(bound, keepingFraction: keepingFraction)
        append(contentsOf: "\"} ".utf8)
    }

    fileprivate mutating func appendEscaped(_ text: String, quotes: Bool) {
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\\"): append(contentsOf: "\\\\".utf8)
            case UInt8(ascii: "\n"): append(contentsOf: "\\n".utf8)
            case UInt8(ascii: "\"") where quotes: append(contentsOf: "\\\"".utf8)
            default: append(byte)
            }
        }
    }

    fileprivate mutating func appendDecimal(_ value: some FixedWidthInteger) {
        if value < 0 { append(UInt8(ascii: "-")) }
        let first = count
        var rest = value.magnitude
        repeat {
            let (quotient, digit) = rest.quotientAndRemainder(dividingBy: 10)
            append(UInt8(ascii: "0") + UInt8(truncatingIfNeeded: digit))
            rest = quotient
        } while rest != 0
        self[first...].reverse()
    }

    /// The shortest digits that read back as the same number (what `description` gives), in the
    /// spelling of the formats.
    ///
    /// - Parameter keepingFraction: true exactly when whole numbers end in `.0`, as OpenMetrics
    ///   wants it for bucket bounds.
    fileprivate mutating func appendNumber(_ value: Double, keepingFraction: Bool = false) {
        if value.isNaN { return append(contentsOf: "NaN".utf8) }
        if value.isInfinite { return append(contentsOf: (value < 0 ? "-Inf" : "+Inf").utf8) }
        append(contentsOf: value.description.utf8)
        if !keepingFraction, suffix(2).elementsEqual(".0".utf8) { removeLast(2) }
    }
}
