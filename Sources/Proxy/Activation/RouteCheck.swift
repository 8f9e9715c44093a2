// `tcp-metrics-proxy check`: everything that is wrong with the routes, in one go.

import Glibc

/// Checks .socket units as the service would read them, and says what to do about each problem.
public struct RouteCheck {
    private let search: UnitSearch
    private let manager: ManagerQuery?
    /// The service whose routes are checked.
    static let service = "tcp-metrics-proxy.service"

    /// - Parameter folders: where to look for units; nil for the system manager's search path,
    ///   and then the manager itself is asked as well what it has loaded.
    public init(folders: [String]? = nil) {
        search = folders.map(UnitSearch.init(folders:)) ?? .ofManager(isUser: false)
        manager = folders == nil ? ManagerQuery() : nil
    }

    /// What came of a check.
    public struct Report {
        /// Units that were looked at.
        public var units: [String] = []
        /// All that is wrong, in the order of the units.
        public var diagnostics: [Diagnostic] = []
    }

    /// Checks the units of those names or paths; all routes of the service if there is none.
    public func run(_ names: [String]) -> Report {
        var report = Report()
        let chosen = names.isEmpty ? routeNames() : names
        for name in chosen {
            report.units.append(name)
            report.diagnostics += name.contains("/") ? checkFile(name) : checkUnit(name)
        }
        report.diagnostics += clashes(chosen.filter { !$0.contains("/") })
        return report
    }

    /// The .socket units that lead to the service, the metrics' included.
    private func routeNames() -> [String] {
        search.socketNames().filter { name in
            guard let unit = search.unit(name) else { return false }
            let service = SocketSettings(unit).service?.value
            return (service ?? RouteTable.defaultService(of: name)) == Self.service
                || unit.hasSection(RouteSettings.section)
        }
    }

    private func checkFile(_ path: String) -> [Diagnostic] {
        guard let text = TextFile.read(path) else {
            return [
                Diagnostic(
                    .error, file: path, line: nil,
                    "cannot be read: expected the path of a .socket unit, or a unit's name")
            ]
        }
        let name = path.split(separator: "/").last.map(String.init) ?? path
        let unit = MergedUnit([(path: path, contents: Array(text.utf8))])
        return check(unit, name: name, file: path)
    }

    private func checkUnit(_ given: String) -> [Diagnostic] {
        let name = given.hasSuffix(".socket") ? given : given + ".socket"
        guard let file = search.fragment(of: name), let unit = search.unit(name) else {
            return [
                Diagnostic(
                    .error, file: name, line: nil,
                    "no such unit, or it is masked: 'systemctl list-unit-files \"*.socket\"' "
                        + "shows all that there are")
            ]
        }
        var found = check(unit, name: name, file: file)
        if manager?.needsReload(name) == true {
            found.append(
                Diagnostic(
                    .warning, file: file, line: nil,
                    "systemd has loaded an older form of \(name): run 'systemctl daemon-reload'"))
        }
        return found
    }

    // MARK: One unit

    private func check(_ unit: MergedUnit, name: String, file: String) -> [Diagnostic] {
        let found = problems(unit, name: name, file: file)
        // As one reads: file by file, each from its top; what concerns a whole file is last.
        let files = [file] + found.map(\.file)
        func rank(_ entry: (offset: Int, element: Diagnostic)) -> (Int, Int, Int) {
            (
                files.firstIndex(of: entry.element.file) ?? 0, entry.element.line ?? .max,
                entry.offset
            )
        }
        return found.enumerated().sorted { rank($0) < rank($1) }.map(\.element)
    }

    private func problems(_ unit: MergedUnit, name: String, file: String) -> [Diagnostic] {
        let socket = SocketSettings(unit)
        var found = unit.diagnostics + checkListens(socket, file: file)
        found += checkService(socket, name: name, file: file)
        found += checkTraps(socket, file: file)
        if socket.fileDescriptorName?.value == Options.metricsSocketName {
            if unit.hasSection(RouteSettings.section) {
                found.append(
                    Diagnostic(
                        .warning, file: file, line: nil,
                        "[\(RouteSettings.section)] is not used: this socket serves metrics"))
            }
            return found
        }
        let (settings, problems) = RouteSettings.read(unit)
        found += problems
        if settings.targets.isEmpty && !problems.contains(where: { $0.severity == .error }) {
            found.append(
                Diagnostic(
                    .warning, file: file, line: nil,
                    "no Target= in [\(RouteSettings.section)]: the route needs --route or "
                        + "--target in the service's ExecStart="))
        }
        for target in settings.targets { found += checkTarget(target, unit, file: file) }
        return found
    }

    private func checkListens(_ socket: SocketSettings, file: String) -> [Diagnostic] {
        var found: [Diagnostic] = []
        for listen in socket.listeners where listen.key != "ListenStream" {
            found.append(
                Diagnostic(
                    .error, file: listen.file, line: listen.line,
                    "\(listen.key)= cannot be relayed: expected ListenStream="))
        }
        if socket.listenStream.isEmpty {
            found.append(
                Diagnostic(.error, file: file, line: nil, "no ListenStream= in [Socket]"))
        }
        return found
    }

    private func checkService(
        _ socket: SocketSettings, name: String, file: String
    ) -> [Diagnostic] {
        let service = socket.service?.value ?? RouteTable.defaultService(of: name)
        guard service != Self.service, !Self.runsProxy(search, service) else { return [] }
        let place = socket.service
        return [
            Diagnostic(
                .error, file: place?.file ?? file, line: place?.line,
                "clients would start \(service): expected Service=\(Self.service)")
        ]
    }

    /// True exactly when a service of another name runs this program.
    private static func runsProxy(_ search: UnitSearch, _ service: String) -> Bool {
        guard let unit = search.unit(service) else { return false }
        return unit.list("Service", "ExecStart").contains {
            $0.value.contains("tcp-metrics-proxy")
        }
    }

    private func checkTraps(_ socket: SocketSettings, file: String) -> [Diagnostic] {
        var found: [Diagnostic] = []
        if let accept = socket.accept, ["yes", "true", "on", "1", "y", "t"].contains(accept.value),
            socket.service?.value == Self.service
                || (socket.service?.value ?? "").contains("@") == false
        {
            found.append(
                Diagnostic(
                    .error, file: accept.file, line: accept.line,
                    "Accept=\(accept.value) starts a process for each client, and Service= has no "
                        + "effect then: expected Accept=no"))
        }
        let limit = socket.triggerLimitInterval?.value
        if limit.flatMap({ try? TimeSpan.parse($0) }) != .zero {
            found.append(
                Diagnostic(
                    .warning, file: socket.triggerLimitInterval?.file ?? file,
                    line: socket.triggerLimitInterval?.line,
                    "some 20 starts within two seconds would fail the socket for good: "
                        + "set TriggerLimitIntervalSec=0"))
        }
        return found
    }

    private func checkTarget(
        _ target: Endpoint, _ unit: MergedUnit, file: String
    ) -> [Diagnostic] {
        let place = unit.list(RouteSettings.section, RouteSettings.Key.target.rawValue)
            .first { $0.value.contains(target.description) }
        func warning(_ message: String) -> [Diagnostic] {
            [Diagnostic(.warning, file: place?.file ?? file, line: place?.line, message)]
        }
        switch target {
        case .host(let host, let port) where target.fixedAddresses == nil:
            do throws(Resolver.LookUpError) {
                _ = try Resolver.addresses(host: host, port: port)
                return []
            } catch {
                return warning(
                    "Target= \(quoted(target.description)) does not resolve now: "
                        + "\(error.description); clients wait and are reset until it does")
            }
        case .path(let path) where !Folder.exists(path):
            return warning(
                "Target= \(quoted(path)) does not exist now: start what listens there")
        default: return []
        }
    }

    // MARK: All units together

    /// Two sockets on one address: systemd can start only one.
    private func clashes(_ names: [String]) -> [Diagnostic] {
        var earlier: [(unit: String, value: String)] = []
        var found: [Diagnostic] = []
        for given in names {
            let name = given.hasSuffix(".socket") ? given : given + ".socket"
            guard let unit = search.unit(name) else { continue }
            for listen in SocketSettings(unit).listenStream {
                let other = earlier.first {
                    $0.unit != name && Self.overlap($0.value, listen.value)
                }
                if let other {
                    let place = other.value == listen.value ? "" : " at \(other.value)"
                    found.append(
                        Diagnostic(
                            .error, file: listen.file, line: listen.line,
                            "ListenStream=\(listen.value): \(other.unit) listens there as well"
                                + "\(place); only one of them can start"))
                }
                earlier.append((unit: name, value: listen.value))
            }
        }
        return found
    }

    /// True exactly when two values of ListenStream= take the same place: the same words, or one
    /// port on all addresses and on one.
    static func overlap(_ one: String, _ other: String) -> Bool {
        if one == other { return true }
        guard let (host, port) = hostAndPort(one), let (otherHost, otherPort) = hostAndPort(other)
        else { return false }
        guard port == otherPort else { return false }
        if host == otherHost || host.isEmpty || otherHost.isEmpty { return true }
        // A wildcard takes the addresses of its own family, and "::" those of IPv4 as well.
        return [(host, otherHost), (otherHost, host)].contains { wildcard, address in
            wildcard == "::" || (wildcard == "0.0.0.0" && !address.contains(":"))
        }
    }

    /// A port alone is on all addresses, IPv4 and IPv6: the host is then empty.
    private static func hostAndPort(_ listen: String) -> (host: String, port: UInt16)? {
        if let port = UInt16(listen) { return (host: "", port: port) }
        guard case .host(let host, let port) = try? Endpoint(parsing: listen, as: .listener) else {
            return nil
        }
        return (host: host, port: port)
    }
}
