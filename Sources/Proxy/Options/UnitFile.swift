// One unit file in the syntax of systemd.syntax(7), as far as that is general: sections,
// assignments, comments, continued lines. What values mean, quotes among them, is their readers'.

/// A `Key=value` of a unit file.
public struct Assignment: Sendable, Equatable {
    /// The section's name, without brackets.
    public var section: String
    /// What stands before the `=`.
    public var key: String
    /// Without space around it; continued lines are joined. Empty where the key is reset.
    public var value: String
    /// Path of the file, as it was opened.
    public var file: String
    /// The line on which the key stands, from 1 on.
    public var line: Int

    /// An assignment at a place.
    public init(section: String, key: String, value: String, file: String, line: Int) {
        self.section = section
        self.key = key
        self.value = value
        self.file = file
        self.line = line
    }
}

/// The contents of one unit file. Any bytes can be read; what makes no sense is diagnosed and left
/// out.
public struct UnitFile: Sendable {
    /// In the order of the file, resets (empty values) among them.
    public private(set) var assignments: [Assignment] = []
    /// Each section header with its line, in the order of the file.
    public private(set) var sections: [(name: String, line: Int)] = []
    /// What could not be understood, at most ``mostDiagnostics`` and one that says so.
    public private(set) var diagnostics: [Diagnostic] = []
    /// Path of the file, as it was opened.
    public let path: String

    /// Bytes. systemd's own limit, LONG_LINE_MAX, is for a line.
    public static let largestFile = 1 << 20

    /// Garbage is not worth more lines of a log.
    public static let mostDiagnostics = 50

    private var section: String?
    /// True from an unusable header to the next header: its assignments are not reported singly.
    private var isSkipping = false

    /// Reads the contents of the file at this path; does not open it.
    public init(path: String, contents: [UInt8]) {
        self.path = path
        guard contents.count <= UnitFile.largestFile else {
            report(.error, nil, "larger than \(ByteCount.format(UInt64(UnitFile.largestFile)))")
            return
        }
        if contents.contains(0) {
            // systemd's read_line() ends a line there, and so does `Lines`.
            report(.warning, nil, "holds NUL bytes, which end a line")
        }
        var lines = Lines(contents)
        var joined: [UInt8] = []  // what continued lines have brought so far
        var start: Int?  // the line on which the joined one began
        while let (line, number) = lines.next() {
            // A comment between continued lines does not end them.
            if let first = line.first(where: { !isBlank($0) }), "#;".utf8.contains(first) {
                continue
            }
            joined += line
            start = start ?? number
            // An even number of backslashes is so many escaped ones.
            if line.reversed().prefix(while: { $0 == UInt8(ascii: "\\") }).count % 2 == 1 {
                joined[joined.count - 1] = UInt8(ascii: " ")
                continue
            }
            take(joined[...], line: start ?? number)
            joined.removeAll(keepingCapacity: true)
            start = nil
        }
        if let start { take(joined[...], line: start) }
    }

    /// Takes one logical line.
    private mutating func take(_ bytes: ArraySlice<UInt8>, line: Int) {
        let bytes = trimmed(bytes)
        if bytes.isEmpty { return }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            report(.warning, line, "not valid UTF-8, line ignored")
            return
        }
        if bytes.first == UInt8(ascii: "[") {
            takeHeader(bytes, text, line)
            return
        }
        guard let equals = bytes.firstIndex(of: UInt8(ascii: "=")) else {
            report(.warning, line, "\(quoted(text)): expected Key=value, line ignored")
            return
        }
        let key = trimmed(bytes[..<equals])
        if key.isEmpty {
            report(.warning, line, "\(quoted(text)): expected a key before '=', line ignored")
            return
        }
        guard let section else {
            if !isSkipping {
                report(.warning, line, "\(quoted(text)): outside of a section, line ignored")
            }
            return
        }
        assignments.append(
            Assignment(
                section: section,
                key: String(decoding: key, as: UTF8.self),
                value: String(decoding: trimmed(bytes[(equals + 1)...]), as: UTF8.self),
                file: path, line: line))
    }

    private mutating func takeHeader(_ bytes: ArraySlice<UInt8>, _ text: String, _ line: Int) {
        let name = bytes.dropFirst().dropLast()
        guard bytes.count >= 2, bytes.last == UInt8(ascii: "]"),
            !name.contains(where: { $0 < 0x20 || $0 == 0x7F || "\\\"'".utf8.contains($0) })
        else {
            // systemd gives up the whole rest of the file; to go on finds more for its author.
            report(.error, line, "\(quoted(text)): expected a section as in [Socket]")
            section = nil
            isSkipping = true
            return
        }
        let header = String(decoding: name, as: UTF8.self)
        sections.append((header, line))
        section = header
        isSkipping = false
    }

    private mutating func report(_ severity: Diagnostic.Severity, _ line: Int?, _ message: String) {
        if diagnostics.count > UnitFile.mostDiagnostics { return }
        let isLast = diagnostics.count == UnitFile.mostDiagnostics
        diagnostics.append(
            Diagnostic(
                severity, file: path, line: line,
                isLast ? "further problems from here on are not listed" : message))
    }
}

// MARK: - Lines

/// Cuts bytes into physical lines, as systemd's read_line() does: at LF, CR or NUL, of which
/// different ones in a row (CR LF) are one end.
private struct Lines {
    private let bytes: [UInt8]
    private var position = 0
    private var number = 0

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        // A byte order mark is no part of the first line.
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { position = 3 }
    }

    mutating func next() -> (line: ArraySlice<UInt8>, number: Int)? {
        if position == bytes.count { return nil }
        let start = position
        while position < bytes.count, !Lines.isEnd(bytes[position]) { position += 1 }
        let line = bytes[start..<position]
        let end = position
        while position < bytes.count, Lines.isEnd(bytes[position]),
            !bytes[end..<position].contains(bytes[position])
        { position += 1 }
        number += 1
        return (line, number)
    }

    private static func isEnd(_ byte: UInt8) -> Bool {
        byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r") || byte == 0
    }
}

/// As systemd's WHITESPACE, without the ends of lines.
private func isBlank(_ byte: UInt8) -> Bool {
    byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t")
}

private func trimmed(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
    var result = bytes.drop(while: isBlank)
    while let last = result.last, isBlank(last) { result.removeLast() }
    return result
}
