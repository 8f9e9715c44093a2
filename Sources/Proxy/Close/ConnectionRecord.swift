// What is remembered of a connection that has ended, for the log and the journal.

/// One connection's summary. Workers push it into the log's queue; everything that costs time,
/// such as formatting, happens on the log's thread.
struct ConnectionRecord: Sendable {
    let id: UInt64
    let route: Route
    let client: SocketAddress
    /// Where the client came in.
    let listen: SocketAddress
    /// `.unnamed` if no address was tried.
    let target: SocketAddress
    let bytesIn: UInt64  // read from the client
    let bytesOut: UInt64  // read from the target
    /// Nanoseconds from accept to close.
    let duration: UInt64
    /// Nanoseconds that the target took to connect; nil if none did.
    let connectDuration: UInt64?
    let reason: CloseReason

    /// One line that a person can read and grep.
    var line: String {
        let target = self.target == .unnamed ? "-" : self.target.description
        let seconds = Decimal.seconds(nanoseconds: duration)
        return "connection \(id) ended: route=\(route.name) client=\(client) target=\(target) "
            + "in=\(bytesIn) out=\(bytesOut) duration=\(seconds)s reason=\(reason.label)"
    }
}

/// Decimal fractions without Foundation.
enum Decimal {
    /// "1.204": seconds with milliseconds.
    static func seconds(nanoseconds: UInt64) -> String {
        let milliseconds = nanoseconds / 1_000_000
        let fraction = String(milliseconds % 1000)
        let zeros = String(repeating: "0", count: 3 - fraction.count)
        return "\(milliseconds / 1000).\(zeros)\(fraction)"
    }
}
