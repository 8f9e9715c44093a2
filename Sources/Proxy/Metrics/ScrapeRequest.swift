// What a request to the metrics endpoint asks for, decided from its head alone. Pure.

/// The answer that a request gets. One small value per request, so that pipelined requests wait as
/// decisions and not as pages.
enum ScrapeReply: Equatable, Sendable {
    case page(ExpositionFormat)
    case index
    case healthy
    case badRequest
    case notFound
    case methodNotAllowed
    case requestTimeout
    case bodyTooLarge
    case headTooLarge

    /// - Parameters:
    ///   - method: as sent, case-sensitive (RFC 9110, section 9.1).
    ///   - target: the request target as sent: `/path?query` or, as a proxy would send it, a URL.
    ///   - accept: the value of each `Accept` header.
    static func to(method: String, target: String, accept: [String]) -> ScrapeReply {
        guard method == "GET" || method == "HEAD" else { return .methodNotAllowed }
        switch path(of: target) {
        case "/metrics": return .page(.negotiated(accept))
        case "/": return .index
        case "/-/healthy": return .healthy
        default: return .notFound
        }
    }

    private static func path(of target: String) -> Substring {
        var rest = target[...]
        let scheme = "http://"
        if rest.prefix(scheme.count).lowercased() == scheme {  // absolute-form, RFC 9112 3.2.2
            rest = rest.dropFirst(scheme.count)
            guard let slash = rest.utf8.firstIndex(of: UInt8(ascii: "/")) else { return "/" }
            rest = rest[slash...]
        }
        let query = rest.utf8.firstIndex(of: UInt8(ascii: "?")) ?? rest.endIndex
        return rest[..<query]
    }
}

extension ExpositionFormat {
    /// Chooses by the `Accept` headers (RFC 9110, section 12.5.1). OpenMetrics is sent only to a
    /// client that names it, with at least the weight that it gives to plain text; whatever else
    /// it says, it gets plain text, which every scraper and every person can read.
    static func negotiated(_ accept: [String]) -> ExpositionFormat {
        var openMetrics = 0
        var text = Preference()
        for header in accept {
            for element in header.splitOutsideQuotes(at: ",") {
                guard let range = MediaRange(element) else { continue }
                switch range.type {
                case "application/openmetrics-text" where range.version ?? "1.0.0" == "1.0.0":
                    openMetrics = max(openMetrics, range.weight)
                case "text/plain" where range.version == "0.0.4": text.take(4, range.weight)
                case "text/plain" where range.version == nil: text.take(3, range.weight)
                case "text/*": text.take(2, range.weight)
                case "*/*": text.take(1, range.weight)
                default: break
                }
            }
        }
        return openMetrics > 0 && openMetrics >= text.weight ? .openMetrics : .prometheusText
    }
}

/// The weight that the most specific of several matching ranges gives.
private struct Preference {
    private var rank = 0
    private(set) var weight = 0

    mutating func take(_ rank: Int, _ weight: Int) {
        if rank > self.rank { (self.rank, self.weight) = (rank, weight) }
    }
}

/// One element of an `Accept` header.
private struct MediaRange {
    let type: String  // in lower case
    private(set) var version: String?
    private(set) var weight = 1000  // thousandths, 0...1000

    /// Nil if the weight cannot be read: the element is then as good as not there.
    init?(_ element: Substring) {
        let parts = element.splitOutsideQuotes(at: ";")
        type = parts[0].trimmed.lowercased()
        for parameter in parts.dropFirst() {
            guard let equals = parameter.firstIndex(of: "=") else { continue }
            let value = parameter[parameter.index(after: equals)...].trimmed.unquoted
            switch parameter[..<equals].trimmed.lowercased() {
            case "version": version = String(value)
            case "q":
                guard let thousandths = Self.thousandths(value) else { return nil }
                weight = thousandths
            default: break
            }
        }
    }

    /// `0`, `1`, or either with up to three decimals, at most 1.
    private static func thousandths(_ text: Substring) -> Int? {
        let parts = text.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts[0] == "0" || parts[0] == "1" else { return nil }
        var decimals = parts.count == 2 ? Array(parts[1].utf8) : []
        guard decimals.count <= 3 else { return nil }
        while decimals.count < 3 { decimals.append(UInt8(ascii: "0")) }
        var value = parts[0] == "1" ? 1 : 0
        for digit in decimals {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(digit) else { return nil }
            value = value * 10 + Int(digit - UInt8(ascii: "0"))
        }
        return value <= 1000 ? value : nil
    }
}

extension StringProtocol where SubSequence == Substring {
    /// The pieces between separators, of which those inside a quoted string do not count; at
    /// least one.
    fileprivate func splitOutsideQuotes(at separator: Character) -> [Substring] {
        var quoted = false
        var escaped = false
        return split(omittingEmptySubsequences: false) { character in
            if escaped {
                escaped = false
            } else if quoted && character == "\\" {
                escaped = true
            } else if character == "\"" {
                quoted.toggle()
            }
            return character == separator && !quoted
        }
    }
}

extension Substring {
    fileprivate var trimmed: Substring {
        var rest = drop { $0 == " " || $0 == "\t" }
        while rest.last == " " || rest.last == "\t" { rest.removeLast() }
        return rest
    }

    fileprivate var unquoted: Substring {
        count >= 2 && first == "\"" && last == "\"" ? dropFirst().dropLast() : self
    }
}
