// What is done to a connection for its age: little for a young one, for most of them end young.

import Glibc

extension Worker {
    /// How long a connection is young, in nanoseconds.
    private static let youth: UInt64 = 1_000_000_000

    /// Has the timer come back when there is something to do for the connection's age or idleness.
    func setNextLook(_ connection: Connection) {
        var at = Instant(nanoseconds: .max)
        if connection.phase == .young { at = maturesAt(connection) }
        if let entry = preserveAt(connection) { at = min(at, entry) }
        if let limit = connection.route.idleTimeout {
            at = min(at, connection.lastMovedAt.advanced(by: limit))
        }
        timers.set(connection.key.index, at: at)
    }

    private func maturesAt(_ connection: Connection) -> Instant {
        (connection.connectedAt ?? now).advanced(byNanoseconds: Self.youth)
    }

    /// The connection's timer has fired.
    func growOlder(_ connection: Connection) {
        if connection.phase == .young && now >= maturesAt(connection) { mature(connection) }
        preserveIfDue(connection)
    }

    /// The connection has lived a second: from now on it is worth asking whether its peers are.
    private func mature(_ connection: Connection) {
        connection.phase = .mature
        if !connection.clientAddress.isUnix { Socket.keepAlive(connection.client.rawValue) }
        if !connection.targetAddress.isUnix { Socket.keepAlive(connection.targetDescriptor) }
        if connection.firstToFinish != nil { boundHalfClosed(connection) }
    }

    func boundHalfClosed(_ connection: Connection) {
        if !connection.clientAddress.isUnix {
            Socket.boundUnacknowledged(connection.client.rawValue)
        }
        if !connection.targetAddress.isUnix {
            Socket.boundUnacknowledged(connection.targetDescriptor)
        }
    }
}
