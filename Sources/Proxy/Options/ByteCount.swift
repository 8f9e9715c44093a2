// Amounts of data, as people write and read them.

/// Reads and writes numbers of bytes. All units are powers of 1024.
public enum ByteCount {
    /// Writes a count for a person, with one decimal from 1 KiB on: "312 B", "1.2 GiB".
    public static func format(_ bytes: UInt64) -> String {
        if bytes < 1024 { return "\(bytes) B" }
        var shift: UInt64 = 10
        for unit in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            // Rounded half up in integers; a Double has too few digits for exact bytes.
            let size: UInt64 = 1 << shift
            let (whole, rest) = bytes.quotientAndRemainder(dividingBy: size)
            let tenths = whole * 10 + (rest / (size >> 10) * 10 + 512) / 1024
            // 1023.95 KiB and more is 1.0 MiB.
            if tenths < 10240 || unit == "EiB" { return "\(tenths / 10).\(tenths % 10) \(unit)" }
            shift += 10
        }
        return "\(bytes) B"
    }

    /// Reads a size as systemd does: a number, possibly with a fraction, and one of K, M, G, T, P,
    /// E or B; none is bytes.
    public static func parse(_ text: String) throws(OptionError) -> UInt64 {
        func failure(_ expected: String) -> OptionError {
            OptionError(value: text, expected: expected)
        }
        let notASize = "expected a number of bytes, as in 4096, 64K or 1.5G"
        var rest = Array(text.utf8)[...]
        rest = rest.drop(while: isSpace)
        while let last = rest.last, isSpace(last) { rest.removeLast() }

        let whole = rest.prefix(while: isDigit)
        rest = rest.dropFirst(whole.count)
        var fraction = rest[rest.startIndex..<rest.startIndex]
        if rest.first == UInt8(ascii: ".") {
            fraction = rest.dropFirst().prefix(while: isDigit)
            if fraction.isEmpty { throw failure(notASize) }
            rest = rest.dropFirst(1 + fraction.count)
        }
        rest = rest.drop(while: isSpace)
        let shift: UInt64
        switch rest.count {
        case 0: shift = 0
        case 1:
            guard let power = Array("BKMGTPE".utf8).firstIndex(of: rest[rest.startIndex])
            else { throw failure(notASize) }
            shift = UInt64(power) * 10
        default: throw failure(notASize)
        }
        guard !whole.isEmpty, whole.count <= 20,
            let number = UInt64(String(decoding: whole, as: UTF8.self))
        else { throw failure(notASize) }

        let unit: UInt64 = 1 << shift
        let (product, overflow) = number.multipliedReportingOverflow(by: unit)
        // Digits after the ninth are below a byte in nearly every unit, and would overflow.
        var numerator: UInt64 = 0
        var denominator: UInt64 = 1
        for digit in fraction.prefix(9) {
            numerator = numerator * 10 + UInt64(digit - 0x30)
            denominator *= 10
        }
        let part = unit.multipliedFullWidth(by: numerator)
        let (sum, carried) = product.addingReportingOverflow(
            denominator.dividingFullWidth(part).quotient)
        if overflow || carried { throw failure("a size is at most 16E - 1 bytes") }
        return sum
    }
}
