// Why a connection ended: one reason each, counted once and logged once.

import Glibc

/// A closed set of names, each a row in a table of counters and the value of a label.
protocol LabelledCase: CaseIterable, RawRepresentable<Int>, Sendable {}

extension LabelledCase {
    /// The case's name as metrics, logs and the journal write it: `clientClosed` is
    /// `client-closed`.
    var label: String {
        var text = ""
        for character in "\(self)" {
            if character.isUppercase { text += "-" }
            text += character.lowercased()
        }
        return text
    }
}

/// Who ended a connection, and in which phase of its life.
enum CloseReason: Int, LabelledCase {
    // Both directions ended with a FIN; the name says who sent the first.
    case clientClosed
    case targetClosed
    // While relaying.
    case clientReset
    case targetReset
    case clientTimeout  // the transport gave up on the peer
    case targetTimeout
    case idleTimeout
    // While dialling.
    case clientLeft
    case targetRefused
    case targetUnreachable
    case targetConnectTimeout
    case targetUnresolved
    case targetConnectFailed
    // The proxy's own doing.
    case drainTimeout
    case stopped
    case noDescriptors
    case noMemory
    case internalError
    // The predecessor's: not continued after a crash, for bytes were lost in it or nobody could
    // tell. Counted by cause in `tcp_proxy_connections_lost_total`.
    case lost

    /// True exactly when the connection did what it was made for.
    var isSuccess: Bool { self == .clientClosed || self == .targetClosed }

    /// The side and an errno of which `failure` makes this reason; nil if it does of none.
    var ledgerForm: (side: Side, code: CInt)? {
        switch self {
        case .clientReset: (.client, ECONNRESET)
        case .targetReset: (.target, ECONNRESET)
        case .clientTimeout: (.client, ETIMEDOUT)
        case .targetTimeout: (.target, ETIMEDOUT)
        default: nil
        }
    }

    /// The reason for an error that a socket of that side gave while relaying.
    static func failure(of side: Side, code: CInt) -> CloseReason {
        switch code {
        case ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ENETDOWN, EHOSTDOWN:
            side == .client ? .clientTimeout : .targetTimeout
        case ENOMEM, ENOBUFS: .noMemory
        case EMFILE, ENFILE: .noDescriptors
        case ECONNRESET, EPIPE, ECONNABORTED, ECONNREFUSED, ENOTCONN, EPROTO:
            side == .client ? .clientReset : .targetReset
        default: .internalError
        }
    }
}

/// The two ends of a relayed connection.
enum Side: Sendable {
    case client, target

    var other: Side { self == .client ? .target : .client }
}

/// Why a client was turned away before it was a connection. The label `reason` of
/// `tcp_proxy_connections_rejected_total`.
enum RejectReason: Int, LabelledCase {
    case limit
    case noTarget  // the route is refused: its settings are wrong
}

/// How one attempt to connect failed: the label `error` of
/// `tcp_proxy_target_connect_failures_total`.
enum ConnectFailure: Int, LabelledCase {
    case refused, unreachable, timeout, unresolved, noDescriptors, noMemory, noPorts, other

    init(code: CInt) {
        self =
            switch code {
            case ECONNREFUSED, ENOENT: .refused
            case EHOSTUNREACH, ENETUNREACH, ENETDOWN, EHOSTDOWN: .unreachable
            case ETIMEDOUT: .timeout
            case EMFILE, ENFILE: .noDescriptors
            case ENOMEM, ENOBUFS, ENOSPC: .noMemory
            case EADDRNOTAVAIL: .noPorts
            default: .other
            }
    }

    /// What the connection's end is called when no attempt succeeds.
    var closeReason: CloseReason {
        switch self {
        case .refused: .targetRefused
        case .unreachable: .targetUnreachable
        case .timeout: .targetConnectTimeout
        case .unresolved: .targetUnresolved
        case .noDescriptors: .noDescriptors
        case .noMemory: .noMemory
        case .other, .noPorts: .targetConnectFailed
        }
    }
}

/// Errors of accept(2) that pass by themselves: the label `error` of
/// `tcp_proxy_accept_errors_total`.
enum AcceptError: Int, LabelledCase {
    case descriptors  // EMFILE
    case systemDescriptors  // ENFILE
    case memory
    case aborted  // the client left while it waited
    case network  // EPROTO, ENETDOWN and the others that accept(2) hands on from the network
    case other

    init(code: CInt) {
        self =
            switch code {
            case EMFILE: .descriptors
            case ENFILE: .systemDescriptors
            case ENOMEM, ENOBUFS: .memory
            case ECONNABORTED: .aborted
            case EPROTO, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP,
                ENETUNREACH, EPERM:
                .network
            default: .other
            }
    }

    /// True exactly when trying again at once would fail again.
    var needsPause: Bool { self != .aborted && self != .network }
}
