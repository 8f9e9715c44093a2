// What is wrong with a configuration, with the place to look at.

/// One problem found in a file.
public struct Diagnostic: Sendable, Equatable, CustomStringConvertible {
    /// How much a problem matters.
    public enum Severity: String, Sendable {
        /// The route that the file describes is refused.
        case error
        /// Something is ignored that its author meant to have an effect.
        case warning
    }

    /// How much it matters.
    public var severity: Severity
    /// Path of the file, as it was opened.
    public var file: String
    /// From 1 on; nil for the file as a whole.
    public var line: Int?
    /// What is wrong and what was expected, without a full stop.
    public var message: String

    /// A problem at a place.
    public init(_ severity: Severity, file: String, line: Int?, _ message: String) {
        self.severity = severity
        self.file = file
        self.line = line
        self.message = message
    }

    /// As compilers write it, so that editors can jump there: "file:line: error: message".
    public var description: String {
        let place = line.map { "\(file):\($0)" } ?? file
        return oneLine("\(place): \(severity.rawValue): \(message)")
    }
}
