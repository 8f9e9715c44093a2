/// How many scrapes are being answered and have been answered, by status code. The endpoint writes
/// it, the page reads it; any thread may do either.
final class ScrapeCounts: Sendable {
    /// The codes that always have a series, at 0 if need be.
    enum Code: Int, Sendable, CaseIterable {
        case ok = 200
        case internalServerError = 500
        case serviceUnavailable = 503
    }

    private struct State {
        var inFlight = 0
        var answered: [Code: UInt64] = [:]
    }
    private let state = Locked(State())

    /// Scrapes whose page is being written; 1 in the page of a lone scraper, for that is its own.
    var inFlight: Int { state.withLock { $0.inFlight } }

    /// Scrapes answered with `code` since the start. A page does not count itself.
    func answered(_ code: Code) -> UInt64 { state.withLock { $0.answered[code, default: 0] } }

    func begin() { state.withLock { $0.inFlight += 1 } }

    func end(_ code: Code) {
        state.withLock {
            $0.inFlight -= 1
            $0.answered[code, default: 0] += 1
        }
    }

    /// Writes both families, named and described as Prometheus' Go client does, so that
    /// dashboards made for it find them.
    func write(to page: inout Exposition) {
        let snapshot = state.withLock { $0 }
        page.gauge(
            "promhttp_metric_handler_requests_in_flight",
            help: "Current number of scrapes being served."
        ) {
            $0.sample(snapshot.inFlight)
        }
        page.counter(
            "promhttp_metric_handler_requests_total",
            help: "Total number of scrapes by HTTP status code."
        ) {
            for code in Code.allCases {
                $0.sample(["code": "\(code.rawValue)"], snapshot.answered[code, default: 0])
            }
        }
    }
}
