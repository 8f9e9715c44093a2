// What /metrics says: adds the workers' counters up and names them.

/// One page of metrics. Runs on the endpoint's thread and only reads.
struct MetricsPage: Sendable {
    let shared: Shared
    let routeNames: [String]
    let process: ProcessMetrics
    let scrapes: ScrapeCounts
    /// A UUID made at start: the label `id` of the seed's metrics.
    let id: String

    func write(_ format: ExpositionFormat) -> String {
        var page = Exposition(format)
        let sets = shared.counterSets
        writeSeeds(sets, to: &page)
        scrapes.write(to: &page)
        writeConnections(sets, to: &page)
        writeDials(sets, to: &page)
        writePreservation(sets, to: &page)
        writeSelf(sets, to: &page)
        process.write(to: &page)
        return page.finished()
    }

    // MARK: Sums

    private func total(
        _ sets: [CounterSet], route: Int, _ value: (RouteCounters) -> UInt64
    ) -> UInt64 {
        sets.reduce(0) { $0 &+ value($1.routes[route]) }
    }

    /// One series per route.
    private func byRoute(
        _ sets: [CounterSet], _ samples: inout Exposition.Samples,
        _ value: (RouteCounters) -> UInt64
    ) {
        for (index, name) in routeNames.enumerated() {
            samples.sample(["route": name], total(sets, route: index, value))
        }
    }

    /// One series per route and case of a closed set, all there from the first scrape on.
    private func byRoute<Row: LabelledCase>(
        _ sets: [CounterSet], _ samples: inout Exposition.Samples, _ label: String,
        _ rows: Row.Type, _ table: (RouteCounters, Int) -> UInt64
    ) {
        for (index, name) in routeNames.enumerated() {
            for row in Row.allCases {
                samples.sample(
                    ["route": name, label: row.label],
                    total(sets, route: index) { table($0, row.rawValue) })
            }
        }
    }

    private func histogram(
        _ sets: [CounterSet], _ name: String, _ help: String, _ bounds: [Double],
        _ read: (RouteCounters) -> (counts: [UInt64], nanoseconds: UInt64),
        to page: inout Exposition
    ) {
        page.histogram(name, help: help) { samples in
            for (index, route) in routeNames.enumerated() {
                var counts = [UInt64](repeating: 0, count: bounds.count + 1)
                var nanoseconds: UInt64 = 0
                for set in sets {
                    let part = read(set.routes[index])
                    for (bucket, count) in part.counts.enumerated() { counts[bucket] &+= count }
                    nanoseconds &+= part.nanoseconds
                }
                samples.sample(
                    ["route": route], bounds: bounds, counts: counts,
                    sum: Double(nanoseconds) / 1e9)
            }
        }
    }

    // MARK: Families

    /// go-tcp-metrics-proxy's own, so that its dashboards go on working.
    private func writeSeeds(_ sets: [CounterSet], to page: inout Exposition) {
        let labels: Labels = ["id": id]
        page.gauge(
            "active_inbound_connections",
            help: "The number of currently active inbound connections"
        ) { $0.sample(labels, sets.total { $0.active.value }) }
        page.gauge(
            "active_outbound_connections",
            help: "The number of currently active outbound connections"
        ) { $0.sample(labels, sets.total { $0.activeOutbound.value }) }
        page.counter(
            "inbound_bytes_count",
            help: "The total number of bytes sent and received on inbound connections"
        ) { $0.sample(labels, sets.total { $0.bytesIn.value }) }
        page.counter(
            "outbound_bytes_count",
            help: "The total number of bytes sent and received on outbound connections"
        ) { $0.sample(labels, sets.total { $0.bytesOut.value }) }
        page.counter(
            "inbound_connection_count",
            help: "The total number of inbound connections established"
        ) { $0.sample(labels, sets.total { $0.accepted.value }) }
        page.counter(
            "outbound_connection_count",
            help: "The total number of outbound connections established"
        ) { $0.sample(labels, sets.total { $0.connectedOutbound.value }) }
    }

    private func writeConnections(_ sets: [CounterSet], to page: inout Exposition) {
        page.counter(
            "tcp_proxy_connections_accepted_total", help: "Client connections accepted."
        ) { byRoute(sets, &$0) { $0.accepted.value } }
        page.gauge(
            "tcp_proxy_connections_active", help: "Client connections open now."
        ) { byRoute(sets, &$0) { $0.active.value } }
        page.counter(
            "tcp_proxy_connections_closed_total",
            help: "Connections ended, by who ended them and in which phase."
        ) { byRoute(sets, &$0, "reason", CloseReason.self) { $0.closed.value($1) } }
        page.counter(
            "tcp_proxy_connections_rejected_total",
            help: "Clients turned away before they were relayed."
        ) { byRoute(sets, &$0, "reason", RejectReason.self) { $0.rejected.value($1) } }
        page.counter(
            "tcp_proxy_bytes_total",
            help: "Bytes read from clients (in) and from targets (out)."
        ) { samples in
            for (index, route) in routeNames.enumerated() {
                samples.sample(
                    ["route": route, "direction": "in"],
                    total(sets, route: index) { $0.bytesIn.value })
                samples.sample(
                    ["route": route, "direction": "out"],
                    total(sets, route: index) { $0.bytesOut.value })
            }
        }
        page.counter(
            "tcp_proxy_spliced_bytes_total",
            help: "Bytes moved without copying them to user space, both directions."
        ) { byRoute(sets, &$0) { $0.bytesSpliced.value } }
        histogram(
            sets, "tcp_proxy_connection_duration_seconds", "Time from accept to close.",
            Histogram.connectionDuration,
            { ($0.duration.counts, $0.duration.sumNanoseconds) }, to: &page)
        page.counter(
            "tcp_proxy_accept_errors_total", help: "Failed calls of accept(2), by error."
        ) { byRoute(sets, &$0, "error", AcceptError.self) { $0.acceptErrors.value($1) } }
    }

    private func writeDials(_ sets: [CounterSet], to page: inout Exposition) {
        page.counter(
            "tcp_proxy_target_connect_attempts_total",
            help: "Attempts to connect to an address of a target."
        ) { byRoute(sets, &$0) { $0.connectAttempts.value } }
        page.counter(
            "tcp_proxy_target_connect_failures_total",
            help: "Failed attempts to connect to a target, by error."
        ) { byRoute(sets, &$0, "error", ConnectFailure.self) { $0.connectFailures.value($1) } }
        histogram(
            sets, "tcp_proxy_target_connect_duration_seconds",
            "Time that a target took to accept a connection.", Histogram.connectDuration,
            { ($0.connectDuration.counts, $0.connectDuration.sumNanoseconds) }, to: &page)
    }

    private func writePreservation(_ sets: [CounterSet], to page: inout Exposition) {
        let resumption = shared.resumption.withLock { $0 }
        page.counter(
            "tcp_proxy_connections_resumed_total",
            help: "Connections of an earlier life of the process that went on in this one."
        ) { samples in
            for cause in ResumptionCause.allCases {
                samples.sample(
                    ["cause": cause.label],
                    resumption.cause == cause ? resumption.resumed : 0)
            }
        }
        page.counter(
            "tcp_proxy_connections_lost_total",
            help: "Connections of an earlier life of the process that did not go on."
        ) { samples in
            for reason in LostReason.allCases {
                samples.sample(
                    ["reason": reason.label], resumption.lost[reason.rawValue])
            }
        }
        page.gauge(
            "tcp_proxy_handover_duration_seconds",
            help: "For how long nothing was relayed at the last restart or crash; 0 without one."
        ) { $0.sample([:], Double(resumption.gap) / 1e9) }
        page.gauge(
            "tcp_proxy_ledger_entries", help: "Connections that would survive a crash now."
        ) { samples in
            samples.sample(sets.reduce(UInt64(0)) { $0 &+ $1.worker.ledgerEntries.value })
        }
        page.gauge(
            "tcp_proxy_ledger_bytes", help: "Memory of the tables that tell of them."
        ) { samples in
            samples.sample(sets.reduce(UInt64(0)) { $0 &+ $1.worker.ledgerBytes.value })
        }
    }

    private func writeSelf(_ sets: [CounterSet], to page: inout Exposition) {
        func sum(_ value: (WorkerCounters) -> UInt64) -> UInt64 {
            sets.reduce(0) { $0 &+ value($1.worker) }
        }
        page.gauge("tcp_proxy_workers", help: "Threads that relay.") { $0.sample(sets.count) }
        page.gauge("tcp_proxy_pipes", help: "Pipes open, in use or kept for the next use.") {
            $0.sample(sum { $0.pipes.value })
        }
        page.counter(
            "tcp_proxy_pipes_refused_total",
            help: "Pipes that the kernel refused or made too small to be of use."
        ) { $0.sample(sum { $0.pipesRefused.value }) }
        page.counter(
            "tcp_proxy_copied_without_pipe_bytes_total",
            help: "Bytes relayed in the slower way that needs no pipe."
        ) { $0.sample(sum { $0.bytesWithoutPipe.value }) }
        page.counter(
            "tcp_proxy_log_records_dropped_total",
            help: "Log records of connections dropped because the log could not keep up."
        ) { $0.sample(sum { $0.recordsDropped.value } + shared.log.dropped) }
        page.counter(
            "tcp_proxy_log_records_summarised_total",
            help: "Log records of connections that are in a summary instead of their own entry."
        ) { $0.sample(shared.log.summarised) }
        page.counter(
            "tcp_proxy_config_reloads_total", help: "Times that the routes were read again."
        ) { samples in
            samples.sample(["result": "success"], shared.reloads.succeeded)
            samples.sample(["result": "failure"], shared.reloads.failed)
        }
        page.gauge(
            "tcp_proxy_descriptors_exhausted",
            help: "1 while new clients have to wait for want of descriptors, else 0."
        ) { $0.sample(shared.isOutOfDescriptors ? 1 : 0) }
        page.gauge("tcp_proxy_draining", help: "1 while the proxy ends, else 0.") {
            $0.sample(shared.isDraining ? 1 : 0)
        }
        page.gauge("tcp_proxy_build_info", help: "Always 1; the version is in the label.") {
            $0.sample(["version": proxyVersion], 1)
        }
    }
}
