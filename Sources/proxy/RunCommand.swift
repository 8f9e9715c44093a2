import ArgumentParser
import Proxy

/// The command of a line without a command: relays until it is told to stop.
///
/// All words are read as text and understood by `Options`, so that every error is of one form.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: programName,
        abstract: "Relays TCP connections; reports to systemd and Prometheus.",
        usage: """
            \(programName) [options] [target]
            \(programName) check [unit ...]
            """,
        discussion: """
            Listen on port 3000, relay to a database, serve metrics on port 3002:
              \(programName) -listen=:3000 -target=db.internal:5432 -metrics=:3002

            In a socket-activated service, in place of systemd-socket-proxyd:
              \(programName) --exit-idle-time=5min /run/app.sock

            SIGTERM drains: no new connections, exit when the last one has ended.
            A second SIGTERM ends at once.
            Connections survive a restart and a crash of the systemd service.

            An address is HOST:PORT, [IPV6]:PORT, :PORT, /PATH or @NAME (unix sockets).
            A time is 90s, 5min 20s, 1h or infinity: see systemd.time(7).
            Long options take one dash or two, and their value after '=' or a space.
            """,
        version: "tcp-metrics-proxy \(proxyVersion)",
        subcommands: [CheckCommand.self])

    @Argument(help: "Where to connect: the same as --target.")
    var target: String?

    @OptionGroup(title: "Addresses") var addresses: AddressArguments
    @OptionGroup(title: "Limits") var limits: LimitArguments
    @OptionGroup(title: "Timeouts") var timeouts: TimeoutArguments
    @OptionGroup(title: "Restarts") var restarts: RestartArguments
    @OptionGroup(title: "Logging") var logging: LoggingArguments

    var words: Options.Words {
        var words = Options.Words()
        words.positional = target
        words.listen = addresses.listen
        words.target = addresses.target
        words.metrics = addresses.metrics
        words.routes = addresses.route
        words.connectionsMax = limits.connectionsMax
        words.workers = limits.workers
        words.connectTimeout = timeouts.connectTimeout
        words.idleTimeout = timeouts.idleTimeout
        words.drainTimeout = timeouts.drainTimeout
        words.exitIdleTime = timeouts.exitIdleTime
        words.noPreserve = restarts.noPreserve
        words.preserveAfter = restarts.preserveAfter
        words.logConnections = logging.logConnections
        return words
    }
}

struct AddressArguments: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Accept clients here; unused with systemd's sockets. (default: \(Options.defaultListen))",
            valueName: "address"))
    var listen: String?

    @Option(
        help: ArgumentHelp(
            "Connect each client to this. (default: \(Options.defaultTarget))",
            valueName: "address"))
    var target: String?

    @Option(
        help: ArgumentHelp(
            "Serve metrics over HTTP here, or none. (default: \(Options.defaultMetrics); none with systemd's sockets)",
            valueName: "address"))
    var metrics: String?

    @Option(
        help: ArgumentHelp(
            "The target of the socket that systemd passes by this name. May be repeated.",
            valueName: "name=target"))
    var route: [String] = []
}

struct LimitArguments: ParsableArguments {
    @Option(
        name: [.customShort("c", allowingJoined: true), .long],
        help: ArgumentHelp(
            "Open connections at a time. (default: infinity)",
            valueName: "n"))
    var connectionsMax: String?

    @Option(
        help: ArgumentHelp(
            "Threads that relay. (default: auto, as the load needs)", valueName: "n"))
    var workers: String?
}

struct TimeoutArguments: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "How long to try to reach the target. (default: \(TimeSpan.format(Options.defaultConnectTimeout)))",
            valueName: "time"))
    var connectTimeout: String?

    @Option(
        help: ArgumentHelp(
            "End a connection that carries nothing for this long. (default: infinity)",
            valueName: "time"))
    var idleTimeout: String?

    @Option(
        help: ArgumentHelp(
            "Cut what is open this long after SIGTERM. (default: infinity)",
            valueName: "time"))
    var drainTimeout: String?

    @Option(
        help: ArgumentHelp(
            "With systemd's sockets, exit when there was no connection for this long. (default: infinity)",
            valueName: "time"))
    var exitIdleTime: String?
}

struct RestartArguments: ParsableArguments {
    @Flag(help: "End every connection with the process, whatever its route says.")
    var noPreserve = false

    @Option(
        help: ArgumentHelp(
            "Age from which a connection survives a crash. (default: \(TimeSpan.format(Options.defaultPreserveAfter)))",
            valueName: "time"))
    var preserveAfter: String?
}

struct LoggingArguments: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Log a line when a connection ends: all, failures or none. (default: \(Options.defaultLogConnections.rawValue))",
            valueName: "which"),
        completion: .list(LogConnections.allCases.map(\.rawValue)))
    var logConnections: String?
}
