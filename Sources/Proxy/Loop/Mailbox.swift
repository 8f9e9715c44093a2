// How other threads speak to a worker.

/// What a worker can be told.
enum Command: Sendable {
    /// Begin or go on accepting from these listeners.
    case listen([Listener])
    /// Accept from none any more, and tell the supervisor when no connection is left.
    case drain
    /// Cut every connection.
    case cut(CloseReason)
    /// The answer to a look-up.
    case resolved(SlabKey, target: Int, [SocketAddress])
    /// A route's new form, for new connections.
    case replace(Route)
    /// Relay a client that systemd has accepted, on that route.
    case adopt(CInt, routeIndex: Int)
    /// Go on with the connections in these ledgers of an earlier life.
    case resume([InheritedLedger])
    /// Enter every connection in a ledger, and stop.
    case handOver
    /// Note in the ledgers that the process is alive.
    case sign
    /// Show that the loop is alive, and how old its oldest connection is.
    case ping
}

/// A queue of commands that wakes its reader.
final class Mailbox: Sendable {
    private let commands = Locked<[Command]>([])
    private let wakeUp: EventCounter

    init() throws(SystemError) { wakeUp = try EventCounter() }

    /// What the reader's epoll watches.
    var descriptor: CInt { wakeUp.descriptor.rawValue }

    func post(_ command: Command) {
        let wasEmpty = commands.withLock { commands in
            commands.append(command)
            return commands.count == 1
        }
        if wasEmpty { wakeUp.signal() }
    }

    func take() -> [Command] {
        wakeUp.clear()
        return commands.withLock { commands in
            let taken = commands
            commands.removeAll()
            return taken
        }
    }
}
