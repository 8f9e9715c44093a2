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
    /// True exactly when its connections outlive the process.
    let preserves: Bool
    /// The age, in nanoseconds, from which they outlive a crash; `UInt64.max` for no age.
    let preserveAfter: UInt64
    /// Shared by a route's successive forms: the connections that are open count on.
    let admission: AdmissionLimit
    let log: LogConnections
    /// True exactly when a target that refuses may still be starting: under socket activation.
    let patient: Bool
    /// True exactly when only connections of an earlier life have it: its socket is gone.
    let isFormer: Bool

    /// - Parameter settings: nil for a route that is refused: its clients are turned away.
    /// - Parameter old: the form that this one replaces.
    init(
        name: String, index: Int, settings: RouteSettings?, isActivated: Bool,
        replacing old: Route? = nil, isFormer: Bool = false
    ) {
        self.name = name
        self.index = index
        targets = (settings?.targets ?? []).map(Target.init)
        connectTimeout = settings?.connectTimeout?.nanoseconds ?? .max
        idleTimeout = settings?.idleTimeout
        preserves = settings?.preserve ?? true
        preserveAfter =
            settings.map { $0.preserveAfter?.nanoseconds ?? .max }
            ?? Options.defaultPreserveAfter.nanoseconds
        self.isFormer = isFormer
        admission = old?.admission ?? AdmissionLimit(limit: settings?.connectionsMax)
        log = settings?.logConnections ?? Options.defaultLogConnections
        patient = isActivated
    }

    /// True exactly when the route leads nowhere, for its settings are wrong.
    var isRefused: Bool { targets.isEmpty }
}
