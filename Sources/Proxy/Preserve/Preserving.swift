// Keeps the ledgers up with the connections: what is in them outlives the process.

import CLinux
import Glibc

extension Worker {
    // MARK: Entering

    /// When the connection is to be entered; nil if it never is or has been.
    func preserveAt(_ connection: Connection) -> Instant? {
        guard ledgers.isActive, connection.ledger == nil, connection.route.preserves,
            connection.route.preserveAfter != .max
        else { return nil }
        let at = connection.acceptedAt.advanced(byNanoseconds: connection.route.preserveAfter)
        return max(at, ledgers.retryAt)
    }

    /// Enters the connection if it is old enough.
    func preserveIfDue(_ connection: Connection) {
        if let at = preserveAt(connection), now >= at { preserve(connection) }
    }

    /// Enters the connection, and the pipes that hold bytes of it.
    @discardableResult
    func preserve(_ connection: Connection) -> Bool {
        for pipe in [connection.toTarget.pipe, connection.toClient.pipe].compactMap({ $0 })
        where pipe.ledger == nil { _ = ledgers.enter(pipe, now: now) }
        return ledgers.enter(connection, now: now)
    }

    /// The target of a connection that was entered while it was being dialled is connected.
    func preserveTarget(_ connection: Connection) {
        guard let ledger = connection.ledger else { return }
        if ledger.enterTarget(of: connection) == .entered {
            connection.slot?.broken = connection.brokenBy?.ledgerForm
            return
        }
        // No room there: another ledger takes both.
        ledgers.forget(connection)
        preserve(connection)
    }

    /// Writes down which pipe carries the direction, before bytes are in it.
    func map(_ pipe: Pipe, of connection: Connection, from side: Side) {
        guard let ledger = connection.ledger, let slot = connection.slot else { return }
        if pipe.ledger == nil { _ = ledgers.enter(pipe, now: now) }
        ledger.note(pipe, in: slot, from: side)
    }

    /// Tries again what could not be entered before.
    private func mapAgain(_ connection: Connection) {
        if let pipe = connection.toTarget.pipe { map(pipe, of: connection, from: .client) }
        if let pipe = connection.toClient.pipe { map(pipe, of: connection, from: .target) }
    }

    // MARK: Ending

    /// Ends the sockets of a connection of which there may be copies, and forgets it. While there is
    /// one, a close sends nothing and epoll goes on reporting.
    func sever(_ connection: Connection, inOrder: Bool) {
        for fd in [connection.client.rawValue, connection.targetDescriptor] where fd >= 0 {
            epoll.remove(fd)
            if inOrder { Socket.finish(fd) } else { Socket.reset(fd) }
        }
        ledgers.forget(connection)
        if connections.count == 1 { ledgers.tidy() }  // it was the last
    }

    // MARK: Handing over

    /// True exactly when the target has accepted, and epoll has not come to tell.
    private func isConnectedUnseen(_ connection: Connection) -> Bool {
        connection.phase == .dialling
            && StreamCounts.of(connection.targetDescriptor, isOpener: true)?.state
                == StreamCounts.established
    }

    /// Enters everything that is not yet, ends what is not to be preserved, and stops for good:
    /// from here on the next life of the process has the connections.
    func handOver() -> Never {
        isDraining = true
        stopListening()
        ledgers.tryAgain()
        pipes.trim()  // a ledger takes descriptors, too
        for connection in connections.all {
            if isConnectedUnseen(connection) { enterRelay(connection) }
            if !connection.route.preserves {
                end(connection, .stopped)
            } else if connection.ledger != nil {
                mapAgain(connection)
            } else if !preserve(connection) {
                // It ends with the process; a FIN would make a part of the stream look like all.
                resetOnClose(connection)
            }
        }
        ledgers.close(now)
        finishedHandOver()
        while true { pause() }
    }
}
