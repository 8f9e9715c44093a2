// Ends connections: every one exactly once, with one reason.

extension Worker {
    /// Closes both sockets, counts, and tells the log.
    ///
    /// After a success the FINs go out behind the last byte; anything else is a reset, so that
    /// neither peer takes a part for the whole.
    func end(_ connection: Connection, _ reason: CloseReason) {
        timers.clear(connection.key.index)
        if connection.hasCopies {
            sever(connection, inOrder: reason.isSuccess)
        } else if !reason.isSuccess {
            resetOnClose(connection)
        }
        release(&connection.toTarget)
        release(&connection.toClient)
        let wasRelaying = connection.isRelaying
        connection.target = nil
        connections.remove(connection)  // closes the client once nobody is at work on it

        connection.route.admission.leave()
        shared.admission.leave()
        shared.descriptors.giveBack(2)
        count(connection, reason, wasRelaying: wasRelaying)
        if connection.route.log.includes(reason) { log(connection, reason) }
        shared.connectionEnded(at: now)
        // Whoever waits for the last connection: a drain, or a process that was given only one.
        if (isDraining || listeners.isEmpty) && connections.count == 0 { shared.notice.signal() }
    }

    private func count(_ connection: Connection, _ reason: CloseReason, wasRelaying: Bool) {
        let counters = connection.counters
        counters.active.subtract(1)
        if wasRelaying { counters.activeOutbound.subtract(1) }
        counters.closed.add(reason.rawValue)
        counters.duration.observe(nanoseconds: now.nanoseconds(since: connection.acceptedAt))
    }

    private func log(_ connection: Connection, _ reason: CloseReason) {
        let record = ConnectionRecord(
            id: connection.id, route: connection.route, client: connection.clientAddress,
            listen: connection.listenAddress, target: connection.targetAddress,
            bytesIn: connection.toTarget.half.bytes,
            bytesOut: connection.toClient.half.bytes,
            duration: now.nanoseconds(since: connection.acceptedAt),
            connectDuration: connection.connectedAt?.nanoseconds(
                since: connection.connectStartedAt),
            reason: reason)
        log(record)
    }

    func log(_ record: ConnectionRecord) {
        if !shared.log.push(record, from: queue) { counters.worker.recordsDropped.add(1) }
    }

    /// Makes the closes that follow resets, both ways.
    func resetOnClose(_ connection: Connection) {
        Socket.resetOnClose(connection.client.rawValue)
        if connection.target != nil { Socket.resetOnClose(connection.targetDescriptor) }
    }

    private func release(_ flow: inout Flow) {
        guard let pipe = flow.pipe else { return }
        flow.pipe = nil
        if flow.half.inPipe == 0 { pipes.giveBack(pipe) } else { pipes.discard(pipe) }
    }
}

extension LogConnections {
    func includes(_ reason: CloseReason) -> Bool {
        switch self {
        case .all: true
        case .failures: !reason.isSuccess
        case .none: false
        }
    }
}
