// What a run begins with: its listeners and the routes that they serve, from systemd or our own.

import Glibc

/// Listeners, routes and metrics sockets, ready to be served.
struct Startup {
    var routes: [Route] = []
    var listeners: [Listener] = []
    /// The name under which systemd passed each listener, in their order.
    var descriptorNames: [String] = []
    /// Listening sockets for scrapes; owned by whoever takes them.
    var metrics: [CInt] = []
    /// A client that systemd has accepted for us.
    var connection: CInt?
    /// What an earlier life of the process has left.
    var ledgers: [InheritedLedger] = []
    /// True exactly when standard error was the client's connection, as inetd has it: what is
    /// written there would reach the client.
    var hasNoStandardError = false
    /// What is wrong, and did not keep the others from serving.
    var problems: [RouteProblem] = []
    /// Reads the routes again; nil where they come from the command line alone.
    var table: RouteTable?
    /// True exactly when systemd passed the sockets.
    var isActivated = false
    /// True exactly when the client that systemd has accepted for us has left already.
    var clientHasLeft = false

    /// Takes over what systemd passes; opens sockets of our own where it passes nothing.
    init(_ options: Options) throws(StartError) {
        let inherited = try InheritedSockets(mayTakeStandardInput: !options.isListenExplicit)
        isActivated = inherited.isActivated
        ledgers = inherited.ledgers
        if isActivated {
            try adopt(inherited, options)
        } else if Notifier().isActive && !options.isListenExplicit && !options.isTargetExplicit {
            // A service of systemd whose sockets are all off: to open the default's port in their
            // place would only hide it.
            throw StartError(
                description: "systemd passed no socket: enable the .socket unit of a route, as in "
                    + "'systemctl enable --now tcp-metrics-proxy.socket', or give --listen")
        } else {
            try open(options)
        }
        if metrics.isEmpty, let endpoint = options.metrics,
            !isActivated || options.isMetricsExplicit
        {
            var opened: [CInt] = []
            try Binding.open(endpoint, option: "--metrics") { socket throws(StartError) in
                opened.append(socket.release())
            }
            metrics = opened
        }
    }

    private mutating func open(_ options: Options) throws(StartError) {
        var settings = RouteSettings(defaults: options)
        settings.targets = [options.target]
        routes = [Route(name: "default", index: 0, settings: settings, isActivated: false)]
        var opened: [Listener] = []
        try Binding.open(options.listen, option: "--listen") { socket throws(StartError) in
            do throws(SystemError) {
                opened.append(try Listener(socket, routeIndex: 0, isInherited: false))
            } catch {
                throw StartError(description: "cannot listen: \(error)", code: error.code)
            }
        }
        listeners = opened
    }

    private mutating func adopt(
        _ inherited: borrowing InheritedSockets, _ options: Options
    ) throws(StartError) {
        problems = inherited.refused.map {
            RouteProblem(route: $0.name, isError: true, text: $0.text)
        }
        metrics = inherited.metrics.map(\.descriptor)
        connection = inherited.connection?.descriptor
        hasNoStandardError = inherited.tookStandardError
        let own = ProcessUnit.ofThisProcess()
        let table = RouteTable(
            search: .ofManager(isUser: own?.isUser ?? false), ownUnit: own?.name, options: options)
        self.table = table

        var passed = inherited.listeners.map { socket in
            (
                name: socket.name,
                address: (try? Socket.localAddress(socket.descriptor)) ?? .unnamed
            )
        }
        if let connection {
            passed.append(
                (
                    name: own.map { Self.socketOfInstance($0.name) } ?? "default",
                    address: (try? Socket.localAddress(connection)) ?? .unnamed
                ))
        }
        let (definitions, found) = table.routes(for: passed)
        problems += found
        var indices: [Int] = []
        for definition in definitions { indices.append(index(of: definition)) }
        for (number, socket) in inherited.listeners.enumerated() {
            do throws(SystemError) {
                listeners.append(
                    try Listener(
                        FileDescriptor(owning: socket.descriptor), routeIndex: indices[number],
                        isInherited: true))
                descriptorNames.append(socket.name)
            } catch {
                problems.append(
                    RouteProblem(
                        route: RouteTable.routeName(socket.name), isError: true,
                        text: "socket \(quoted(socket.name)) cannot be used: \(error)"))
            }
        }
        clientHasLeft = inherited.clientHasLeft
        if listeners.isEmpty && connection == nil && !clientHasLeft {
            throw StartError(
                description: "systemd passed no socket that can be relayed"
                    + (problems.first.map { ": \($0.text)" } ?? ""))
        }
    }

    /// Makes routes for connections of an earlier life whose own are gone: they go on all the same.
    mutating func addFormerRoutes(_ names: [String]) {
        for name in names where !routes.contains(where: { $0.name == name }) {
            routes.append(
                Route(
                    name: name, index: routes.count, settings: nil, isActivated: isActivated,
                    isFormer: true))
        }
    }

    /// The route of that name, made if it is new.
    private mutating func index(of definition: RouteDefinition) -> Int {
        if let known = routes.firstIndex(where: { $0.name == definition.name }) { return known }
        routes.append(
            Route(
                name: definition.name, index: routes.count, settings: definition.settings,
                isActivated: true))
        return routes.count - 1
    }

    /// "db.socket" of "db@5-10.0.0.1:5432-10.0.0.2:40000.service", as Accept=yes names services.
    static func socketOfInstance(_ service: String) -> String {
        let end = service.firstIndex(of: "@") ?? service.lastIndex(of: ".") ?? service.endIndex
        return service[..<end] + ".socket"
    }
}
