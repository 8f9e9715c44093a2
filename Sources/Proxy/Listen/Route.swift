// A route: where a listener's connections lead, and under which limits.

/// One route as it is in force. A reload replaces it whole; connections keep the one that they
/// began with.
final class Route: Sendable {
    let name: String
    /// The row of its counters, the same in each of its forms.
    let index: Int
    let targets: [Target]
    /// Nanoseconds; `UInt64.max` for no limit.
    let connectTimeout: UInt64
    let idleTimeout: Duration?
    /// Shared by a route's successive forms: the connections that are open count on.
    let admission: AdmissionLimit
    let log: LogConnections
    /// True exactly when a target that refuses may still be starting: under socket activation.
    let patient: Bool

    /// - Parameter settings: nil for a route that is refused: its clients are turned away.
    /// - Parameter old: the form that this one replaces.
    init(
        name: String, index: Int, settings: RouteSettings?, isActivated: Bool,
        replacing old: Route? = nil
    ) {
        self.name = name
        self.index = index
        targets = (settings?.targets ?? []).map(Target.init)
        connectTimeout = settings?.connectTimeout?.nanoseconds ?? .max
        idleTimeout = settings?.idleTimeout
        admission = old?.admission ?? AdmissionLimit(limit: settings?.connectionsMax)
        log = settings?.logConnections ?? Options.defaultLogConnections
        patient = isActivated
    }

    /// True exactly when the route leads nowhere, for its settings are wrong.
    var isRefused: Bool { targets.isEmpty }
}
