// Whether a connection that a process left behind is whole: the kernel's own counts tell. Pure.

import CLinux
import Glibc

/// What the kernel counts of one end of a connection, tcp(7).
struct StreamCounts: Equatable, Sendable {
    /// `tcpi_state`: TCP_ESTABLISHED and so on.
    var state: Int
    var acked: UInt64  // tcpi_bytes_acked
    var received: UInt64  // tcpi_bytes_received
    /// Bytes that can be read: FIONREAD, without a FIN.
    var unread: UInt64
    /// Bytes and a FIN that the peer has not acknowledged: SIOCOUTQ.
    var unsent: UInt64
    /// True exactly when we connected, and our SYN is among what was acknowledged.
    var isOpener: Bool

    static let established = 1
    static let closed = 7
    private static let finSent: Set<Int> = [4, 5, 9, 11]  // FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING
    private static let finReceived: Set<Int> = [8, 9, 11]  // CLOSE_WAIT, LAST_ACK, CLOSING

    /// True exactly when both FINs are through, or there was a reset: the state does not say which.
    var isClosed: Bool { state == Self.closed }

    /// True exactly when nothing is to be sent on it any more but what is on its way.
    var hasEnded: Bool { [Self.closed, 9, 11].contains(state) }

    /// True exactly when a socket of an ended connection, or of none, is meant.
    static func hasEnded(_ fd: CInt) -> Bool {
        StreamCounts.of(fd, isOpener: false)?.hasEnded ?? Socket.isHungUp(fd)
    }

    /// Bytes read from the socket, and one more for a FIN if the socket is closed after one.
    var taken: UInt64 {
        received &- unread &- (Self.finReceived.contains(state) ? 1 : 0)
    }

    /// Bytes written to the socket. Not known once it is closed.
    var written: UInt64 {
        acked &+ unsent &- (isOpener ? 1 : 0) &- (Self.finSent.contains(state) ? 1 : 0)
    }

    /// The counts of a TCP socket; nil for any other (a unix socket has none, and those of
    /// Multipath TCP are one subflow's).
    static func of(_ fd: CInt, isOpener: Bool) -> StreamCounts? {
        guard (try? Socket.get(fd, SOL_SOCKET, SO_PROTOCOL)) == CInt(IPPROTO_TCP),
            var before = info(fd)
        else { return nil }
        // The peer goes on meanwhile: what arrives between the looks would seem a hole, or fill
        // one. When nothing has, they are one look.
        while true {
            let unread = linux_unread(fd)
            let unsent = linux_unsent(fd)
            guard let after = info(fd), unread >= 0, unsent >= 0 else { return nil }
            if after.state == before.state && after.bytes_acked == before.bytes_acked
                && after.bytes_received == before.bytes_received
            {
                return StreamCounts(
                    state: Int(after.state), acked: after.bytes_acked,
                    received: after.bytes_received, unread: UInt64(unread),
                    unsent: UInt64(unsent), isOpener: isOpener)
            }
            before = after  // it comes to rest: nobody reads the one side, or writes the other
        }
    }

    private static func info(_ fd: CInt) -> linux_tcp_counts? {
        var counts = linux_tcp_counts()
        return unsafe linux_tcp_counts(fd, &counts) == 0 ? counts : nil
    }
}

/// One direction of a connection that a process left behind.
struct HoleCheck {
    /// nil for what the kernel does not count, such as a unix socket.
    var source: StreamCounts?
    var sink: StreamCounts?
    /// Bytes in the direction's pipe.
    var inPipe: UInt64
    /// What the table says was read; the kernel's word counts for more.
    var bytesOfTable: UInt64
    /// True exactly when the process was between taking bytes from the source and having given
    /// them on.
    var isCopying: Bool

    enum Verdict: Equatable {
        /// Every byte is in a socket or in the pipe; so many were read.
        case whole(bytes: UInt64)
        /// The same, and the source was reset by its peer.
        case sourceWasReset(bytes: UInt64)
        /// Bytes that were read were never written, or were written twice.
        case bytesLost
    }

    /// Read, less written, less what is in the pipe, must be nothing.
    var verdict: Verdict {
        guard let source else {
            if isCopying { return .bytesLost }
            if let sink, !sink.isClosed { return .whole(bytes: sink.written &+ inPipe) }
            return .whole(bytes: bytesOfTable)
        }
        if sink == nil && isCopying { return .bytesLost }
        guard let sink, !sink.isClosed else {
            // Nothing to compare with. A closed sink takes nothing more, so nothing is lost on it.
            if !source.isClosed { return .whole(bytes: source.taken) }
            return source.taken == bytesOfTable &+ 1
                ? .whole(bytes: bytesOfTable) : .sourceWasReset(bytes: bytesOfTable)
        }
        let accounted = sink.written &+ inPipe
        switch source.taken &- accounted {
        case 0:
            return source.isClosed ? .sourceWasReset(bytes: accounted) : .whole(bytes: accounted)
        // In a closed socket's count a FIN looks like a byte; with one byte under way it may be that.
        case 1 where source.isClosed && !isCopying: return .whole(bytes: accounted)
        default: return .bytesLost
        }
    }
}
