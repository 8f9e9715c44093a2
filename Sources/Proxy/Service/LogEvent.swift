// The kinds of log entries. In the journal each has its MESSAGE_ID, by which `journalctl` finds it
// and the catalog (packaging/systemd/tcp-metrics-proxy.catalog) explains it.

/// How urgent an entry is, as syslog(3) numbers it.
enum Priority: Int, Sendable {
    case error = 3
    case warning = 4
    case notice = 5
    case info = 6
}

/// What an entry is about.
enum LogEvent: CaseIterable, Sendable {
    case started, workerStarted, metricsFailed
    case connectionEnded, connectionFailed, connectionsSummarised
    case clientRefused, acceptFailed, descriptorsExhausted, descriptorsRecovered
    case targetUnresolved, routeRefused, routeDoubtful, routesReloaded, reloadFailed
    case drainBegan, drainProgress, drainEnded
    case connectionsResumed, ledgerRefused, handoverBegan, preservationOff, preservationLimited

    /// Random, and fixed for ever.
    var messageID: String {
        switch self {
        case .started: "c6c8ae5ab1d4483aaec289bbdeb07f85"
        case .connectionEnded: "d7e120e381d944349ab72610ed1d3b31"
        case .connectionFailed: "144d2b525e194792ab71c692ed7ab3cd"
        case .connectionsSummarised: "cf03da8ad1e544a0a556640619558a9c"
        case .descriptorsExhausted: "cea029b5c5264e1aa78e13b18d5db8de"
        case .descriptorsRecovered: "191cfb070bf74814a4ff91760ff32eca"
        case .routeRefused: "d4cb17f6e0c64a9790e74e64a1f88897"
        case .clientRefused: "ed7bfd4dddf341659893589dc519d425"
        case .routeDoubtful: "7dca51b6941c4affafbde703d11218e4"
        case .routesReloaded: "23cd20b960a1422aa51777930f186d21"
        case .reloadFailed: "edf8914f53114281a31ce22b011119e9"
        case .drainBegan: "27a6fcff101040a1b384f10bf8055a22"
        case .drainProgress: "1ee69c10bebe46cfbafb1bda60fd9491"
        case .drainEnded: "fcb6990f3fa845d5bb8e2fc863825d09"
        case .workerStarted: "542aeda7a4a54c839d0aa43b0b25b27d"
        case .metricsFailed: "97c1e1f57ecc4a05acb268c397e8944c"
        case .acceptFailed: "595f430b89b74e6b8446f35d531f82ac"
        case .targetUnresolved: "d62355a2d841427fa3c83b86f194bad6"
        case .connectionsResumed: "d44d31b725984ce1b65f11fda4613e3f"
        case .ledgerRefused: "46927d271e1d46a78dfa8279c11b4b0b"
        case .handoverBegan: "f08fe5291dfe485185c43d5e39c0f16e"
        case .preservationOff: "e0911f6487a84539b9b11f6b6a7e7b7c"
        case .preservationLimited: "8a740af22455465e8e30624fe8aac01f"
        }
    }
}
