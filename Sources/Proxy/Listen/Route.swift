// A route: where a listener's connections lead, and under which limits.

/// One route as it is in force. A reload replaces it whole; connections keep the one that they
/// began with.
final class Route: Sendable {
    let name: String
    /// The row of its counters, the same in each of its forms.
    let index: Int
    let targets: [Target]
    let connectTimeout: Duration?
    let idleTimeout: Duration?
    /// Shared by a route's successive forms, unless the limit itself changed.
    let admission: AdmissionLimit
    let log: LogConnections
    /// True exactly when a target that refuses may still be starting: under socket activation.
    let patient: Bool

    init(
        name: String, index: Int, targets: [Endpoint], connectTimeout: Duration?,
        idleTimeout: Duration?, admission: AdmissionLimit, log: LogConnections, patient: Bool
    ) {
        self.name = name
        self.index = index
        self.targets = targets.map(Target.init)
        self.connectTimeout = connectTimeout
        self.idleTimeout = idleTimeout
        self.admission = admission
        self.log = log
        self.patient = patient
    }
}
