// What the command line asks for, understood and checked. The defaults are here and nowhere else.

/// Which ended connections get a line in the log.
public enum LogConnections: String, Sendable, CaseIterable {
    case all, failures, none
}

/// The settings of one run of the proxy.
public struct Options: Sendable, Equatable {
    /// A target for one of the sockets that systemd passes.
    public struct Route: Sendable, Equatable {
        /// The socket's name: its `FileDescriptorName=`, by default the unit's own name.
        public var name: String
        /// Where its connections lead.
        public var target: Endpoint

        /// A route from the socket of this name.
        public init(name: String, target: Endpoint) {
            self.name = name
            self.target = target
        }
    }

    /// Where clients connect. Without effect under socket activation.
    public var listen = defaultListen
    /// Where each client's connection leads, if no route says otherwise.
    public var target = defaultTarget
    /// Where Prometheus scrapes; nil for nowhere.
    public var metrics: Endpoint? = defaultMetrics
    /// True exactly when the user gave the address, even if it is the default's.
    public var isListenExplicit = false
    /// True exactly when the user gave the target, by name or by position.
    public var isTargetExplicit = false
    /// True exactly when the user said where metrics go, be it "none".
    public var isMetricsExplicit = false

    /// In the order given. A name that comes twice has two targets.
    public var routes: [Route] = []

    /// Open connections at a time; at least 1, nil for no limit.
    public var connectionsMax: Int?
    /// Threads that relay; at least 1, nil for as many as the load needs.
    public var workers: Int?

    /// How long a target may take to answer, over all its addresses. nil: as long as it likes.
    public var connectTimeout: Duration? = defaultConnectTimeout
    /// How long a connection may carry no byte in either direction. nil: for ever.
    public var idleTimeout: Duration?
    /// How long open connections may last after SIGTERM; zero cuts them at once. nil: until their
    /// ends.
    public var drainTimeout: Duration?
    /// How long a socket-activated proxy stays without a connection; may be zero. nil: for ever.
    public var exitIdleTime: Duration?

    /// False exactly when no connection is to outlive the process, whatever its route says.
    public var preserve = true
    /// The age from which a connection outlives a crash; may be zero. nil: it outlives planned
    /// restarts alone.
    public var preserveAfter: Duration? = defaultPreserveAfter

    /// Which ended connections get a line in the log.
    public var logConnections = defaultLogConnections

    /// The defaults: what a command line without arguments asks for.
    public init() {}

    /// As go-tcp-metrics-proxy has it, like the next two.
    public static let defaultListen = Endpoint.host("127.0.0.1", port: 3000)
    /// Where a connection leads that nothing else was said about.
    public static let defaultTarget = Endpoint.host("127.0.0.1", port: 3001)
    /// Where Prometheus scrapes. Not used under socket activation.
    public static let defaultMetrics = Endpoint.host("127.0.0.1", port: 3002)
    /// Four SYNs (at 0, 1, 3 and 7 s); a client that still waits has mostly given up.
    public static let defaultConnectTimeout = Duration.seconds(10)
    /// Most connections are shorter, and it is not worth the work for them.
    public static let defaultPreserveAfter = Duration.seconds(1)
    /// Every connection: what a fresh installation shows when its user looks.
    public static let defaultLogConnections = LogConnections.all

    /// The port of a positional HOST without one, as systemd-socket-proxyd takes it.
    static let positionalPort: UInt16 = 80

    /// More threads than any machine has processors; a slip of the keyboard, not a wish.
    public static let mostWorkers = 1024

    /// The name under which systemd passes the metrics' own socket.
    public static let metricsSocketName = "metrics"
}

// MARK: - From words to values

extension Options {
    /// The command line's words as they were written, nil where nothing was.
    public struct Words: Sendable {
        /// `--listen`
        public var listen: String?
        /// `--target`
        public var target: String?
        /// The argument without a name: a target as well.
        public var positional: String?
        /// `--metrics`: an address or "none".
        public var metrics: String?
        /// `--route`: each `NAME=TARGET`.
        public var routes: [String] = []
        /// `--connections-max`
        public var connectionsMax: String?
        /// `--workers`
        public var workers: String?
        /// `--connect-timeout`
        public var connectTimeout: String?
        /// `--idle-timeout`
        public var idleTimeout: String?
        /// `--drain-timeout`
        public var drainTimeout: String?
        /// `--exit-idle-time`
        public var exitIdleTime: String?
        /// `--no-preserve`: true exactly when it was given.
        public var noPreserve = false
        /// `--preserve-after`
        public var preserveAfter: String?
        /// `--log-connections`
        public var logConnections: String?

        /// An empty command line.
        public init() {}
    }

    /// Understands the words, or says which of them it does not.
    public init(_ words: Words) throws(OptionError) {
        if let text = words.listen {
            listen = try Options.named("--listen", text) { text throws(OptionError) in
                try Endpoint(parsing: text, as: .listener)
            }
            isListenExplicit = true
        }
        if let text = words.target {
            target = try Options.named("--target", text) { text throws(OptionError) in
                try Endpoint(parsing: text, as: .target)
            }
            isTargetExplicit = true
        }
        if let text = words.positional {
            if let other = words.target {
                throw OptionError(
                    value: text,
                    expected: "expected one target, but --target \(quoted(other)) is given as well")
            }
            target = try Options.positionalTarget(text)
            isTargetExplicit = true
        }
        if let text = words.metrics {
            metrics = try Options.named("--metrics", text) { text throws(OptionError) in
                if text.isEmpty || text == "none" { return nil }
                do throws(OptionError) {
                    return try Endpoint(parsing: text, as: .listener)
                } catch {
                    throw OptionError(value: text, expected: error.expected + "; or none")
                }
            }
            isMetricsExplicit = true
        }
        for text in words.routes { routes.append(try Options.route(text)) }

        if let text = words.connectionsMax {
            connectionsMax = try Options.named(
                "--connections-max", text, Options.parseConnectionsMax)
        }
        if let text = words.workers {
            workers = try Options.named("--workers", text) { text throws(OptionError) in
                if text == "auto" { return nil }
                return try Options.number(text, 1...Options.mostWorkers, or: "auto")
            }
        }
        if let text = words.connectTimeout {
            connectTimeout = try Options.named("--connect-timeout", text, Options.parseTimeout)
        }
        if let text = words.idleTimeout {
            idleTimeout = try Options.named("--idle-timeout", text, Options.parseTimeout)
        }
        // These may be zero: end at once, and be safe at once.
        if let text = words.drainTimeout {
            drainTimeout = try Options.named("--drain-timeout", text, TimeSpan.parse)
        }
        if let text = words.exitIdleTime {
            exitIdleTime = try Options.named("--exit-idle-time", text, TimeSpan.parse)
        }
        preserve = !words.noPreserve
        if let text = words.preserveAfter {
            preserveAfter = try Options.named("--preserve-after", text, TimeSpan.parse)
        }
        if let text = words.logConnections {
            logConnections = try Options.named(
                "--log-connections", text, Options.parseLogConnections)
        }
    }

    // The four below are for the keys of [X-Proxy].

    /// A limit on connections: a number from 1 on, or "infinity" (nil).
    static func parseConnectionsMax(_ text: String) throws(OptionError) -> Int? {
        if text == "infinity" { return nil }
        return try number(text, 1...Int(Int32.max), or: "infinity")
    }

    /// A time span that is not zero, for which systemd's own settings have too many meanings.
    static func parseTimeout(_ text: String) throws(OptionError) -> Duration? {
        let span = try TimeSpan.parse(text)
        if span == .zero {
            throw OptionError(
                value: text, expected: "expected more than no time; write infinity for no limit")
        }
        return span
    }

    static func parseLogConnections(_ text: String) throws(OptionError) -> LogConnections {
        guard let value = LogConnections(rawValue: text) else {
            let names = LogConnections.allCases.map(\.rawValue)
            throw OptionError(value: text, expected: "expected \(oneOf(names))")
        }
        return value
    }

    /// As systemd's parse_boolean() takes it.
    static func parseBoolean(_ text: String) throws(OptionError) -> Bool {
        switch text.lowercased() {
        case "1", "yes", "y", "true", "t", "on": return true
        case "0", "no", "n", "false", "f", "off": return false
        default: throw OptionError(value: text, expected: "expected yes or no")
        }
    }

    private static func named<Value>(
        _ option: String, _ text: String, _ parse: (String) throws(OptionError) -> Value
    ) throws(OptionError) -> Value {
        do throws(OptionError) {
            return try parse(text)
        } catch {
            throw error.naming(option)
        }
    }

    private static func number(
        _ text: String, _ range: ClosedRange<Int>, or word: String
    ) throws(OptionError) -> Int {
        guard text.utf8.allSatisfy(isDigit), let number = Int(text), range.contains(number) else {
            throw OptionError(
                value: text,
                expected: "expected a number from \(range.lowerBound) to \(range.upperBound), "
                    + "or \(word)")
        }
        return number
    }

    private static func positionalTarget(_ text: String) throws(OptionError) -> Endpoint {
        // "chek" must not become a proxy to port 80 of a host of that name.
        if let command = nearest(to: text, among: commandNames) {
            throw OptionError(
                value: text,
                expected: "expected a target, as in HOST:PORT, or a command; "
                    + "did you mean \(quoted(command))?")
        }
        do throws(OptionError) {
            return try Endpoint(parsing: text, as: .target, defaultPort: positionalPort)
        } catch {
            throw error.naming("target")
        }
    }

    private static func route(_ text: String) throws(OptionError) -> Route {
        guard let equals = text.utf8.firstIndex(of: UInt8(ascii: "=")) else {
            throw OptionError(
                option: "--route", value: text, expected: "expected NAME=TARGET, as in web=:8080")
        }
        let name = text[..<equals]
        // What systemd takes for a FileDescriptorName= (systemd.socket(5)).
        guard (1...255).contains(name.utf8.count),
            name.utf8.allSatisfy({ (0x20..<0x7F).contains($0) && $0 != UInt8(ascii: ":") })
        else {
            throw OptionError(
                option: "--route", value: text,
                expected: "a socket's name has 1 to 255 printable ASCII characters but ':'")
        }
        if name == metricsSocketName {
            throw OptionError(
                option: "--route", value: text,
                expected: "the socket named \(metricsSocketName) serves metrics, it has no target")
        }
        let target = String(text.utf8[text.utf8.index(after: equals)...]) ?? ""
        do throws(OptionError) {
            return Route(name: String(name), target: try Endpoint(parsing: target, as: .target))
        } catch {
            throw error.naming("--route \(name)=")
        }
    }

    /// The commands of the executable, for suggestions.
    static let commandNames = ["run", "check", "help"]
}
