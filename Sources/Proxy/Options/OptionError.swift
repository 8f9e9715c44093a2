// One value that a person wrote and we do not understand, wherever it was written: on the command
// line or in a unit file.

/// A wrong value, told in one line: the offending value and what was expected in its place.
public struct OptionError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The option or key that the value was given for, as its user writes it; nil where the reader
    /// can tell.
    public var option: String?
    /// What was written.
    public var value: String
    /// What would have been right, as the end of a sentence.
    public var expected: String

    /// An error about a value.
    public init(option: String? = nil, value: String, expected: String) {
        self.option = option
        self.value = value
        self.expected = expected
    }

    /// One line.
    public var description: String {
        let prefix = option.map { $0 + " " } ?? ""
        return "\(prefix)\(quoted(value)): \(expected)"
    }

    /// The same error, with the option's name in front.
    public func naming(_ option: String) -> OptionError {
        OptionError(option: option, value: value, expected: expected)
    }
}

/// More of a value than this would bury the message; in characters.
private let longestQuotation = 120

/// Text from outside in quotes, fit for one line of a log; long values are cut.
public func quoted(_ text: some StringProtocol) -> String {
    // Counts scalars: one Character may hold a megabyte of combining marks.
    var start = String.UnicodeScalarView()
    for scalar in text.unicodeScalars.prefix(longestQuotation) { start.append(scalar) }
    let isCut = text.unicodeScalars.dropFirst(longestQuotation).isEmpty == false
    return "'\(oneLine(String(start)))\(isCut ? "…" : "")'"
}

/// Text in which everything that a terminal or a log would act on is escaped: line ends, control
/// characters, changes of direction.
public func oneLine(_ text: String) -> String {
    var result = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator:
            result.append(contentsOf: scalar.escaped(asASCII: true).unicodeScalars)
        default:
            result.append(scalar)
        }
    }
    return String(result)
}
