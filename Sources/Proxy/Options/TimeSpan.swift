// Time spans as systemd.time(7) writes them: "90s", "5min 20s", "1h30min", "1.5s", "infinity".

/// Reads and writes spans of time. nil stands for "infinity".
public enum TimeSpan {
    /// The longest finite span that is taken. Nothing here waits longer, and so a span in
    /// nanoseconds always fits an `Int64` (which ends at 292 years).
    public static let longest = Duration.seconds(100 * 31_557_600 as Int64)

    /// Reads a span; a number without unit is in seconds. Grammar and accuracy (microseconds,
    /// further digits are cut off) are those of systemd's parse_sec().
    public static func parse(_ text: String) throws(OptionError) -> Duration? {
        func failure(_ expected: String) -> OptionError {
            OptionError(value: text, expected: expected)
        }
        let notASpan = "expected a time span, as in 90s, 5min 20s or infinity"
        var rest = Array(text.utf8)[...]
        trim(&rest)
        if rest.elementsEqual("infinity".utf8) { return nil }
        if rest.isEmpty { throw failure(notASpan) }
        if rest.first == UInt8(ascii: "-") { throw failure("a time span is not negative") }

        var total: UInt64 = 0  // microseconds
        while !rest.isEmpty {
            guard let part = takePart(&rest) else { throw failure(notASpan) }
            guard let microseconds = part.microseconds else { throw failure(tooLong) }
            let (sum, overflow) = total.addingReportingOverflow(microseconds)
            if overflow { throw failure(tooLong) }
            total = sum
            trim(&rest)
        }
        // Both conversions are exact: a UInt64 of microseconds is less than 2^45 seconds.
        let span =
            Duration.seconds(Int64(total / 1_000_000))
            + .microseconds(Int64(total % 1_000_000))
        if span > longest { throw failure(tooLong) }
        return span
    }

    /// Writes a span as systemd does, largest unit first: "1h 30min", "1s 500ms", "0", "infinity".
    ///
    /// Microseconds are the smallest unit; what is below is cut off.
    public static func format(_ span: Duration?) -> String {
        guard let span else { return "infinity" }
        let (seconds, attoseconds) = span.components
        // Beyond what 64 bits of microseconds hold nobody wants months.
        if seconds.magnitude > 10_000_000_000_000 { return "\(seconds)s" }
        if seconds < 0 || attoseconds < 0 { return "-" + format(.zero - span) }
        var left = UInt64(seconds) * 1_000_000 + UInt64(attoseconds / 1_000_000_000_000)
        var parts: [String] = []
        for (unit, length) in displayed where left >= length {
            parts.append("\(left / length)\(unit)")
            left %= length
        }
        return parts.isEmpty ? "0" : parts.joined(separator: " ")
    }
}

// MARK: - Units

extension TimeSpan {
    private static let tooLong = "a time span is at most 100 years; write infinity for no limit"

    private static let displayed: [(unit: String, microseconds: UInt64)] = [
        ("y", 31_557_600_000_000), ("month", 2_629_800_000_000), ("w", 604_800_000_000),
        ("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000),
        ("ms", 1_000), ("us", 1),
    ]

    /// Microseconds of a unit, nil if there is none of that name. A month is a twelfth of a year
    /// of 365.25 days; `M` is a month and `m` a minute.
    private static func length(ofUnit name: ArraySlice<UInt8>) -> UInt64? {
        switch String(decoding: name, as: UTF8.self) {
        case "usec", "us", "\u{B5}s", "\u{3BC}s": 1  // micro sign, Greek mu
        case "msec", "ms": 1_000
        case "", "seconds", "second", "sec", "s": 1_000_000
        case "minutes", "minute", "min", "m": 60_000_000
        case "hours", "hour", "hr", "h": 3_600_000_000
        case "days", "day", "d": 86_400_000_000
        case "weeks", "week", "w": 604_800_000_000
        case "months", "month", "M": 2_629_800_000_000
        case "years", "year", "y": 31_557_600_000_000
        default: nil
        }
    }

    private static func trim(_ bytes: inout ArraySlice<UInt8>) {
        bytes = bytes.drop(while: isSpace)
        while let last = bytes.last, isSpace(last) { bytes.removeLast() }
    }

    /// A number with its unit, as in "1.5h".
    private struct Part {
        var whole: ArraySlice<UInt8>
        var fraction: ArraySlice<UInt8>
        var unit: UInt64  // microseconds

        /// nil on overflow.
        var microseconds: UInt64? {
            var number: UInt64 = 0
            for digit in whole {
                let (tens, overflow) = number.multipliedReportingOverflow(by: 10)
                let (sum, carried) = tens.addingReportingOverflow(UInt64(digit - 0x30))
                if overflow || carried { return nil }
                number = sum
            }
            let (product, overflow) = number.multipliedReportingOverflow(by: unit)
            if overflow { return nil }
            var result = product
            var scale = unit / 10
            for digit in fraction where scale > 0 {
                let (sum, overflow) = result.addingReportingOverflow(UInt64(digit - 0x30) * scale)
                if overflow { return nil }
                result = sum
                scale /= 10
            }
            return result
        }
    }

    /// Takes one number and its unit off the front; nil if there is none.
    private static func takePart(_ rest: inout ArraySlice<UInt8>) -> Part? {
        let whole = rest.prefix(while: isDigit)
        rest = rest.dropFirst(whole.count)
        var fraction = rest[rest.startIndex..<rest.startIndex]
        let hasPoint = rest.first == UInt8(ascii: ".")
        if hasPoint {
            fraction = rest.dropFirst().prefix(while: isDigit)
            rest = rest.dropFirst(1 + fraction.count)
        }
        // A point needs digits after it, and digits are needed somewhere.
        if fraction.isEmpty, hasPoint || whole.isEmpty { return nil }
        let afterNumber = rest
        rest = rest.drop(while: isSpace)
        let name = rest.prefix { !isDigit($0) && !isSpace($0) && $0 != UInt8(ascii: ".") }
        // "1.2.3" is a slip, "1.2 .3" two numbers.
        if name.isEmpty, afterNumber.first == UInt8(ascii: ".") { return nil }
        guard let unit = length(ofUnit: name) else { return nil }
        rest = rest.dropFirst(name.count)
        return Part(whole: whole, fraction: fraction, unit: unit)
    }
}
