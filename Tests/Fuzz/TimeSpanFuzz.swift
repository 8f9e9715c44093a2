// fuzz-sources: Sources/Proxy/Options
// A time span, and a size in bytes: the two kinds of numbers with units.

func fuzz(_ bytes: [UInt8]) {
    let text = String(decoding: bytes, as: UTF8.self)
    do throws(OptionError) {
        let span = try TimeSpan.parse(text)
        if let span { require(span >= .zero && span <= TimeSpan.longest, "\(span)") }
        let written = TimeSpan.format(span)
        let again = try TimeSpan.parse(written)
        require(again == span, "\(text) is written as \(written), which is another span")
    } catch {
        requireOneLine(error.description)
    }
    do throws(OptionError) {
        requireOneLine(ByteCount.format(try ByteCount.parse(text)))
    } catch {
        requireOneLine(error.description)
    }
    // Any span can be formatted, not only those that can be read.
    if bytes.count >= 8 {
        let bits = bytes.prefix(8).reduce(Int64(0)) { $0 << 8 | Int64($1) }
        requireOneLine(TimeSpan.format(.seconds(bits)))
        requireOneLine(TimeSpan.format(.nanoseconds(bits)))
        requireOneLine(ByteCount.format(UInt64(bitPattern: bits)))
    }
}
