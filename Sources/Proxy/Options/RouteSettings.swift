// What a .socket unit says to the proxy, in its section [X-Proxy].

/// How the connections of one route are served.
public struct RouteSettings: Sendable, Equatable {
    /// In the order of preference: the first that connects is used. Empty if the unit names none.
    public var targets: [Endpoint] = []
    /// How long the targets may take to answer, all together. nil: as long as they like.
    public var connectTimeout: Duration?
    /// How long a connection may carry no byte in either direction. nil: for ever.
    public var idleTimeout: Duration?
    /// Open connections of this route at a time; at least 1, nil for no limit.
    public var connectionsMax: Int?
    /// True exactly when connections of this route outlive the process.
    public var preserve: Bool
    /// The age from which a connection outlives a crash; may be zero. nil: it outlives planned
    /// restarts alone.
    public var preserveAfter: Duration?
    /// Which ended connections get a line in the log.
    public var logConnections: LogConnections

    /// The section that systemd leaves alone, as all that begin with `X-`.
    public static let section = "X-Proxy"

    /// More addresses than anybody tries in turn within one connect timeout.
    public static let mostTargets = 64

    /// The section's keys.
    public enum Key: String, CaseIterable, Sendable {
        /// An address; may come several times.
        case target = "Target"
        /// A time span.
        case connectTimeout = "ConnectTimeoutSec"
        /// A time span.
        case idleTimeout = "IdleTimeoutSec"
        /// A number.
        case connectionsMax = "ConnectionsMax"
        /// A boolean.
        case preserve = "Preserve"
        /// A time span.
        case preserveAfter = "PreserveAfterSec"
        /// all, failures or none.
        case logConnections = "LogConnections"
    }

    /// A route without targets, otherwise as the command line has it.
    ///
    /// The limit on connections is not inherited: the command line's is for all routes together.
    public init(defaults: Options = Options()) {
        connectTimeout = defaults.connectTimeout
        idleTimeout = defaults.idleTimeout
        preserve = defaults.preserve
        preserveAfter = defaults.preserveAfter
        logConnections = defaults.logConnections
    }

    /// Reads the section of a unit. What the unit does not set is taken from the command line.
    ///
    /// - Returns: the settings, and all that is wrong with the section. With an error among it, the
    ///   settings are not to be used.
    public static func read(
        _ unit: MergedUnit, defaults: Options = Options()
    ) -> (settings: RouteSettings, diagnostics: [Diagnostic]) {
        var settings = RouteSettings(defaults: defaults)
        var diagnostics = misplaced(unit)

        for assignment in unit.list(section, Key.target.rawValue) {
            if settings.targets.count == mostTargets {
                diagnostics.append(
                    Diagnostic(
                        .error, file: assignment.file, line: assignment.line,
                        "expected at most \(mostTargets) targets"))
                break
            }
            var isDouble = false
            diagnostics += attempt(assignment) { text throws(OptionError) in
                let target = try oneAddress(text)
                isDouble = settings.targets.contains(target)
                if !isDouble { settings.targets.append(target) }
            }
            if isDouble {
                diagnostics.append(
                    Diagnostic(
                        .warning, file: assignment.file, line: assignment.line,
                        "Target= \(quoted(assignment.value)): is listed already, ignored"))
            }
        }
        func read(_ key: Key, _ take: (String) throws(OptionError) -> Void) {
            guard let assignment = unit.value(section, key.rawValue) else { return }
            diagnostics += attempt(assignment, take)
        }
        read(.connectTimeout) { text throws(OptionError) in
            settings.connectTimeout = try Options.parseTimeout(text)
        }
        read(.idleTimeout) { text throws(OptionError) in
            settings.idleTimeout = try Options.parseTimeout(text)
        }
        read(.connectionsMax) { text throws(OptionError) in
            settings.connectionsMax = try Options.parseConnectionsMax(text)
        }
        read(.preserve) { text throws(OptionError) in
            // --no-preserve wins: there is nowhere to keep anything then.
            settings.preserve = try Options.parseBoolean(text) && defaults.preserve
        }
        read(.preserveAfter) { text throws(OptionError) in
            settings.preserveAfter = try TimeSpan.parse(text)
        }
        read(.logConnections) { text throws(OptionError) in
            settings.logConnections = try Options.parseLogConnections(text)
        }
        return (settings, diagnostics)
    }

    /// At most one diagnostic.
    private static func attempt(
        _ assignment: Assignment, _ take: (String) throws(OptionError) -> Void
    ) -> [Diagnostic] {
        do throws(OptionError) {
            try take(assignment.value)
            return []
        } catch {
            let message = error.naming(assignment.key + "=").description
            return [
                Diagnostic(.error, file: assignment.file, line: assignment.line, message)
            ]
        }
    }

    private static func oneAddress(_ text: String) throws(OptionError) -> Endpoint {
        // Only whole lines are comments in unit files.
        if text.contains(" #") || text.contains(" ;") {
            throw OptionError(
                value: text, expected: "expected one address; a comment has a line of its own")
        }
        return try Endpoint(parsing: text, as: .target)
    }
}

// MARK: - Keys and sections that are not known

extension RouteSettings {
    /// What was meant for the proxy, but will not reach it.
    private static func misplaced(_ unit: MergedUnit) -> [Diagnostic] {
        var result: [Diagnostic] = []
        for header in unit.sections where header.name != section {
            if nearest(to: header.name, among: [section, "Proxy"]) != nil {
                result.append(
                    Diagnostic(
                        .warning, file: header.file, line: header.line,
                        "section [\(header.name)] is ignored; did you mean [\(section)]?"))
            }
        }
        for assignment in unit.assignments where result.count < UnitFile.mostDiagnostics {
            let isKnown = Key(rawValue: assignment.key) != nil
            let message: String
            if assignment.section == section, !isKnown {
                message =
                    "unknown key \(quoted(assignment.key)) in [\(section)], ignored"
                    + suggestion(for: assignment.key)
            } else if assignment.section != section, isKnown, !assignment.section.hasPrefix("X-") {
                message =
                    "\(assignment.key)= in [\(assignment.section)] is ignored; "
                    + "it belongs to [\(section)]"
            } else {
                continue
            }
            result.append(
                Diagnostic(.warning, file: assignment.file, line: assignment.line, message))
        }
        return result
    }

    private static func suggestion(for key: String) -> String {
        // systemd's name for the same, in [Socket] with Accept=yes.
        let meant =
            key == "MaxConnections"
            ? Key.connectionsMax.rawValue : nearest(to: key, among: Key.allCases.map(\.rawValue))
        if let meant { return "; did you mean \(meant)=?" }
        return "; expected \(oneOf(Key.allCases.map { $0.rawValue + "=" }))"
    }
}
