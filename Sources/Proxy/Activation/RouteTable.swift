// Which route each inherited listener serves: pairs descriptors with .socket units.

/// What a listener's route is to be, before it is in force.
struct RouteDefinition {
    /// The unit's name without ".socket", or the descriptor's name where no unit describes it.
    let name: String
    /// nil if the route is refused: its clients are turned away until a reload mends it.
    var settings: RouteSettings?
}

/// What is wrong with one route.
struct RouteProblem: Equatable {
    let route: String
    /// True exactly when the route is refused for it.
    let isError: Bool
    /// One sentence, with file and line where there is one.
    let text: String

    init(route: String, isError: Bool, text: String) {
        self.route = route
        self.isError = isError
        self.text = text
    }

    init(route: String, _ diagnostic: Diagnostic) {
        self.init(
            route: route, isError: diagnostic.severity == .error, text: diagnostic.description)
    }
}

/// Reads the routes of this service from unit files and command line.
struct RouteTable {
    let search: UnitSearch
    /// The unit that this process runs in; nil outside of systemd.
    let ownUnit: String?
    let options: Options

    /// The routes for the listeners, in their order, with all that is wrong.
    ///
    /// Listeners of one name share a route.
    func routes(
        for listeners: [(name: String, address: SocketAddress)]
    ) -> (definitions: [RouteDefinition], problems: [RouteProblem]) {
        let units = ownUnits()
        var problems: [RouteProblem] = []
        var definitions: [RouteDefinition] = []
        for listener in listeners {
            let unitName = self.unit(of: listener.name, at: listener.address, among: units)
            let (definition, found) = definition(descriptorName: listener.name, unit: unitName)
            definitions.append(definition)
            for diagnostic in found {
                let problem = RouteProblem(route: definition.name, diagnostic)
                if !problems.contains(problem) { problems.append(problem) }
            }
        }
        return (definitions, problems)
    }

    // MARK: Units

    /// A .socket unit of ours, as far as pairing needs it.
    struct OwnUnit {
        let name: String
        let descriptorName: String
        let listens: [String]
    }

    /// The .socket units that start this service.
    private func ownUnits() -> [OwnUnit] {
        guard let ownUnit else { return [] }
        var result: [OwnUnit] = []
        for name in search.socketNames() {
            guard let unit = search.unit(name) else { continue }
            let socket = SocketSettings(unit)
            let service = socket.service?.value ?? Self.defaultService(of: name)
            guard service == ownUnit else { continue }
            result.append(
                OwnUnit(
                    name: name, descriptorName: socket.fileDescriptorName?.value ?? name,
                    listens: socket.listenStream.map(\.value)))
        }
        return result
    }

    static func defaultService(of socket: String) -> String {
        socket.dropLast(".socket".count) + ".service"
    }

    /// The unit that passed a descriptor. Where several use its name, the one that listens there.
    private func unit(
        of descriptorName: String, at address: SocketAddress, among units: [OwnUnit]
    ) -> String? {
        let named = units.filter { $0.descriptorName == descriptorName }
        if named.count > 1 {
            let there = named.first { unit in
                unit.listens.contains { Self.listen($0, isAt: address) }
            }
            if let there { return there.name }
        }
        if let first = named.first { return first.name }
        // An instance of a template is on disk under the template's name only; with Accept=yes,
        // or through Sockets= of the service, a socket is ours whatever its Service= says.
        guard descriptorName.hasSuffix(".socket"), search.fragment(of: descriptorName) != nil
        else { return nil }
        return descriptorName
    }

    /// True exactly when the value of a ListenStream= may mean that address.
    static func listen(_ value: String, isAt address: SocketAddress) -> Bool {
        if let port = UInt16(value) { return address.port == port }
        guard let endpoint = try? Endpoint(parsing: value, as: .listener) else { return false }
        return endpoint.fixedListenAddresses?.contains(address) ?? false
    }

    // MARK: Definitions

    /// The route of a descriptor: from its unit, else from the command line.
    private func definition(
        descriptorName: String, unit unitName: String?
    ) -> (RouteDefinition, [Diagnostic]) {
        let name = Self.routeName(unitName ?? descriptorName)
        var settings = RouteSettings(defaults: options)
        var diagnostics: [Diagnostic] = []
        if let unitName, let unit = search.unit(unitName) {
            let (read, problems) = RouteSettings.read(unit, defaults: options)
            settings = read
            diagnostics = problems
            if problems.contains(where: { $0.severity == .error }) {
                return (RouteDefinition(name: name, settings: nil), diagnostics)
            }
        }
        if settings.targets.isEmpty { settings.targets = commandLineTargets(descriptorName, name) }
        if settings.targets.isEmpty {
            diagnostics.append(
                Diagnostic(
                    .error, file: unitName.flatMap(search.fragment(of:)) ?? descriptorName,
                    line: nil, Self.noTarget(name)))
            return (RouteDefinition(name: name, settings: nil), diagnostics)
        }
        return (RouteDefinition(name: name, settings: settings), diagnostics)
    }

    static func noTarget(_ route: String) -> String {
        "route \(quoted(route)) has no target: expected Target= in [\(RouteSettings.section)] of "
            + "its .socket unit, or --route \(route)=TARGET"
    }

    private func commandLineTargets(_ descriptorName: String, _ name: String) -> [Endpoint] {
        let named = options.routes.filter { $0.name == descriptorName || $0.name == name }
        if !named.isEmpty { return named.map(\.target) }
        return options.isTargetExplicit ? [options.target] : []
    }

    static func routeName(_ unit: String) -> String {
        unit.hasSuffix(".socket") ? String(unit.dropLast(".socket".count)) : unit
    }
}
