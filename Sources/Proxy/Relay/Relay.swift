// Moves a connection's bytes: the one place that runs the actions of HalfStream.

import CLinux
import Glibc

/// What the loop does with a connection after a stage has worked on it.
enum Step {
    /// Wait for its next event or its timer.
    case stay
    /// Its turn is over though it could go on; come back after the others.
    case again
    /// The target is connected.
    case relay
    case end(CloseReason)
}

extension Worker {
    /// The target is connected: from here on bytes may flow.
    func beginRelay(_ connection: Connection) -> Step {
        enterRelay(connection)
        setNextLook(connection)
        return relay(connection)
    }

    func enterRelay(_ connection: Connection) {
        connection.phase = .young
        connection.dial = nil
        connection.connectedAt = now
        connection.lastMovedAt = now
        connection.counters.connectDuration.observe(
            nanoseconds: now.nanoseconds(since: connection.connectStartedAt))
        connection.counters.activeOutbound.add(1)
        connection.counters.connectedOutbound.add(1)
        if connection.ledger == nil {
            preserveIfDue(connection)
        } else {
            preserveTarget(connection)
        }
    }

    /// Goes on after an event.
    func relay(_ connection: Connection, after readiness: Readiness, of side: Side) -> Step {
        let fromHere = side == .client ? connection.toTarget.half : connection.toClient.half
        if fromHere.isBlocked {
            mute(connection, side)
        }
        if readiness.contains(.writable) { unmute(connection, side.other) }
        return relay(connection)
    }

    /// Moves what can be moved, both ways, within one turn.
    func relay(_ connection: Connection) -> Step {
        let client = connection.client.rawValue
        let target = connection.targetDescriptor

        let there =
            connection.toTarget.half.next() == .wait
            ? .waiting
            : pump(&connection.toTarget, of: connection, from: client, to: target, source: .client)
        if case .failed(let side, let code) = there { return failed(connection, side, code) }
        let back =
            connection.toClient.half.next() == .wait
            ? .waiting
            : pump(&connection.toClient, of: connection, from: target, to: client, source: .target)
        if case .failed(let side, let code) = back { return failed(connection, side, code) }

        if connection.toTarget.half.isOver && connection.toClient.half.isOver {
            return .end(ending(of: connection))
        }
        return there == .budgetSpent || back == .budgetSpent ? .again : .stay
    }

    /// Bytes per direction and turn: some 200 µs, after which others have theirs. Measured: with
    /// a quarter of it, bulk on four connections costs up to 40 % more CPU in wake-ups.
    private static let turnBudget = 1024 * 1024

    private func ending(of connection: Connection) -> CloseReason {
        connection.brokenBy
            ?? (connection.firstToFinish == .client ? .clientClosed : .targetClosed)
    }

    /// A socket failed. What the failed side had sent before may still be on its way.
    private func failed(_ connection: Connection, _ side: Side, _ code: CInt) -> Step {
        .end(connection.brokenBy ?? .failure(of: side, code: code))
    }

    private enum PumpOutcome: Equatable {
        case waiting, budgetSpent
        case failed(Side, CInt)
    }

    private func pump(
        _ flow: inout Flow, of connection: Connection, from source: CInt, to sink: CInt,
        source side: Side
    ) -> PumpOutcome {
        var moved = 0
        defer {
            if moved > 0 {
                connection.lastMovedAt = now
                if let slot = connection.slot {
                    if side == .client {
                        slot.setBytesIn(flow.half.bytes)
                    } else {
                        slot.setBytesOut(flow.half.bytes)
                    }
                }
                flow.half.turnEnded(moved: moved, worthSplicing: Self.scratchSize)
            }
        }
        while moved < Self.turnBudget || flow.half.inPipe > 0 {
            let result: Transfer
            switch flow.half.next() {
            case .wait: return .waiting
            case .finish:
                finish(&flow, of: connection, sink: sink, source: side)
                return .waiting
            case .receive where !pipes.prepare(now: now):
                result = peekAndSend(&flow, of: connection, from: source, to: sink)
            case .receive:
                result = receiveAndSend(&flow, of: connection, from: source, to: sink, side)
            case .splice:
                guard flow.pipe != nil || takePipe(&flow, of: connection, side) else {
                    result = peekAndSend(&flow, of: connection, from: source, to: sink)
                    break
                }
                result = fillPipe(&flow, of: connection, from: source, side)
            case .drain:
                if let code = drainPipe(&flow, of: connection, to: sink, side) {
                    if breakSink(&flow, of: connection, sink: side.other, code: code) {
                        return .failed(side.other, code)
                    }
                    return .waiting
                }
                connection.lastMovedAt = now
                if !flow.half.sinkWritable { reportWritable(connection, side.other) }
                continue
            }
            switch result {
            case .bytes(let count):
                moved += count
                if side == .client {
                    connection.counters.bytesIn.add(UInt64(count))
                } else {
                    connection.counters.bytesOut.add(UInt64(count))
                }
            case .wouldBlock, .endOfStream: break
            case .failed(let code): return .failed(side, code)
            }
            if let code = sinkError {
                sinkError = nil
                if breakSink(&flow, of: connection, sink: side.other, code: code) {
                    return .failed(side.other, code)
                }
                return .waiting
            }
            if !flow.half.sinkWritable { reportWritable(connection, side.other) }
        }
        return .budgetSpent
    }

    // MARK: Actions

    /// A small read: through the worker's scratch buffer. What the sink does not take goes into
    /// a pipe at once.
    @inline(__always)
    private func receiveAndSend(
        _ flow: inout Flow, of connection: Connection, from source: CInt, to sink: CInt,
        _ side: Side
    ) -> Transfer {
        FaultInjection.lookAhead(source)
        connection.slot?.setCopying(true)
        defer { connection.slot?.setCopying(false) }
        let result = unsafe Socket.receive(source, into: scratch, limit: Self.scratchSize)
        switch result {
        case .bytes(let count):
            unsafe FaultInjection.holding(scratch, count)
            flow.half.received(count, of: Self.scratchSize)
            switch unsafe Socket.send(sink, from: scratch, count: count) {
            case .bytes(let sent) where sent == count: break
            case .bytes(let sent):
                store(&flow, of: connection, from: sent, count: count - sent, side)
            case .wouldBlock, .endOfStream:
                store(&flow, of: connection, from: 0, count: count, side)
            case .failed(let code): sinkError = code
            }
        case .wouldBlock: flow.half.receivedNothing()
        case .endOfStream: flow.half.receivedEnd()
        case .failed: break
        }
        return result
    }

    /// Without a pipe: sends a copy of what the socket holds and takes from it only what was
    /// sent, so that even now the kernel holds every byte.
    private func peekAndSend(
        _ flow: inout Flow, of connection: Connection, from source: CInt, to sink: CInt
    ) -> Transfer {
        connection.slot?.setCopying(true)
        defer { connection.slot?.setCopying(false) }
        let peeked = unsafe Socket.receive(
            source, into: scratch, limit: Self.scratchSize, flags: linux_MSG_PEEK)
        switch peeked {
        case .bytes(let count):
            switch unsafe Socket.send(sink, from: scratch, count: count) {
            case .bytes(let sent):
                // Reads again what was peeked: it is there, and it is all that is asked for.
                let taken = unsafe Socket.receive(source, into: scratch, limit: sent)
                guard taken == .bytes(sent) else { return .failed(EPROTO) }
                counters.worker.bytesWithoutPipe.add(UInt64(sent))
                if sent < count {
                    flow.half.received(sent, of: sent)
                    flow.half.sinkBlocked()
                } else {
                    flow.half.received(sent, of: Self.scratchSize)
                }
                return taken
            case .wouldBlock, .endOfStream:
                flow.half.sinkBlocked()
                return .wouldBlock
            case .failed(let code):
                sinkError = code
                return .wouldBlock
            }
        case .wouldBlock: flow.half.receivedNothing()
        case .endOfStream: flow.half.receivedEnd()
        case .failed: break
        }
        return peeked
    }

    private func takePipe(
        _ flow: inout Flow, of connection: Connection, _ side: Side
    ) -> Bool {
        guard pipes.prepare(now: now), let pipe = pipes.borrow() else { return false }
        map(pipe, of: connection, from: side)
        flow.pipe = pipe
        return true
    }

    private func fillPipe(
        _ flow: inout Flow, of connection: Connection, from source: CInt, _ side: Side
    ) -> Transfer {
        guard let pipe = flow.pipe else { return .wouldBlock }
        let result = pipe.fill(from: source, limit: Pipe.wantedCapacity)
        switch result {
        case .bytes(let count):
            flow.half.spliced(count)
            connection.counters.bytesSpliced.add(UInt64(count))
            return result
        case .wouldBlock: flow.half.receivedNothing()
        case .endOfStream: flow.half.splicedEnd()
        case .failed: break
        }
        givePipeBack(&flow, of: connection, side)
        return result
    }

    /// Returns the sink's errno if it failed.
    private func drainPipe(
        _ flow: inout Flow, of connection: Connection, to sink: CInt, _ side: Side
    ) -> CInt? {
        guard let pipe = flow.pipe else { return EPROTO }
        switch pipe.drain(to: sink, limit: flow.half.inPipe) {
        case .bytes(let count):
            flow.half.drained(count)
            if flow.half.inPipe == 0 { givePipeBack(&flow, of: connection, side) }
        case .wouldBlock: flow.half.sinkBlocked()
        case .endOfStream: return EPROTO  // a pipe with bytes in it has no end
        case .failed(let code): return code
        }
        return nil
    }

    /// Puts received bytes that the sink did not take into a pipe.
    private func store(
        _ flow: inout Flow, of connection: Connection, from offset: Int, count: Int, _ side: Side
    ) {
        // Made ready before the bytes were received, and large enough for the whole scratch.
        guard let pipe = pipes.borrow() else {
            sinkError = EPROTO
            return
        }
        map(pipe, of: connection, from: side)
        guard case .bytes(count) = unsafe pipe.store(scratch + offset, count: count) else {
            pipes.discard(pipe)
            sinkError = EPROTO
            return
        }
        flow.pipe = pipe
        flow.half.stored(count)
    }

    private func givePipeBack(_ flow: inout Flow, of connection: Connection, _ side: Side) {
        if let pipe = flow.pipe {
            flow.pipe = nil
            connection.slot?.setPipe(from: side, 0)
            pipes.giveBack(pipe)
        }
    }

    private func finish(
        _ flow: inout Flow, of connection: Connection, sink: CInt, source side: Side
    ) {
        flow.half.finished()
        if connection.firstToFinish == nil {
            connection.firstToFinish = side
            connection.slot?.firstToFinish = side
        }
        // The second FIN is sent by the close that follows at once.
        let other = side == .client ? connection.toClient.half : connection.toTarget.half
        if other.isOver { return }
        Socket.finish(sink)
        if connection.phase == .mature { boundHalfClosed(connection) }
    }

    /// The sink refuses bytes: its peer is gone. What it had sent before is still to be
    /// delivered, so the other direction goes on until it too has ended.
    ///
    /// - Returns: true if nothing is left to deliver.
    private func breakSink(
        _ flow: inout Flow, of connection: Connection, sink: Side, code: CInt
    ) -> Bool {
        flow.half.sinkFailed()
        if connection.brokenBy == nil {
            connection.brokenBy = .failure(of: sink, code: code)
            connection.slot?.broken = (sink, code)
        }
        if sink == .client {
            if connection.toTarget.half.isOver { return true }
            connection.toTarget.half.sourceBecame([.error, .hangup])
            requeue(connection)
        } else {
            if connection.toClient.half.isOver { return true }
            connection.toClient.half.sourceBecame([.error, .hangup])
        }
        return false
    }

    // MARK: Interest

    /// Asks epoll, once in a connection's life, to report when that side takes bytes again.
    /// Edge-triggered, the interest costs nothing while the side keeps up.
    private func reportWritable(_ connection: Connection, _ side: Side) {
        if connection[side].reportsWritable { return }
        connection[side].reportsWritable = true
        watch(connection, side)
    }

    /// Stops news of more bytes from that side while they have nowhere to go. In bulk each
    /// segment would wake the worker, a fifth to a third of all its CPU.
    func mute(_ connection: Connection, _ side: Side) {
        if connection[side].isMuted { return }
        connection[side].isMuted = true
        if side == .client {
            connection.toTarget.half.sourceMuted()
        } else {
            connection.toClient.half.sourceMuted()
        }
        watch(connection, side)
    }

    func unmute(_ connection: Connection, _ side: Side) {
        guard connection[side].isMuted else { return }
        connection[side].isMuted = false
        watch(connection, side)
    }

    private func watch(_ connection: Connection, _ side: Side) {
        let watched = connection[side]
        var interest = Self.interest
        // The kernel wakes for both in one go: with the one left on nothing would be won.
        if watched.isMuted { interest.subtract([.readable, .urgent]) }
        if watched.reportsWritable { interest.insert(.writable) }
        let fd = connection.descriptor(of: side)
        let token = connection.key.token(side == .client ? .client : .target)
        do throws(SystemError) {
            try epoll.modify(fd, interest, token: token)
        } catch {
            assertionFailure("\(error)")  // for a descriptor that is registered there is no cause
        }
    }

    /// What every relayed socket is watched for.
    static let interest: Readiness = [.readable, .peerFinished, .urgent, .edge]
}
