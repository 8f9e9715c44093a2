// Goes on with the connections that an earlier life of the process left in its ledgers.

import Glibc

extension Worker {
    /// Adopts the ledgers, and goes on with every connection in them that is whole.
    ///
    /// Nothing is taken out of them on the way, so that the process may end at any moment.
    func resumeConnections(_ inherited: [InheritedLedger]) {
        var held = 0
        var adopted: [(ledger: Ledger, orphans: [Orphan], isCrash: Bool)] = []
        var pipes: [UInt64: (pipe: Pipe, ledger: Ledger)] = [:]
        for inherited in inherited {
            guard let remains = LedgerRemains(inherited) else {
                throwAway(inherited.name)
                shared.resumption.withLock { $0.foundNothing(in: inherited.name) }
                continue
            }
            var datagrams = 0
            let contents = LedgerContents(
                of: remains, room: shared.descriptors.room - held, datagrams: &datagrams)
            held += contents.descriptorCount
            shared.resumption.withLock { for reason in contents.lost { $0.countLost(reason) } }
            guard let table = remains.table, table.attempts < Self.mostAttempts else {
                giveUp(remains, contents)
                continue
            }
            shared.resumption.withLock {
                $0.found(handedOverAt: table.handedOverAt, lastSign: table.lastSign)
            }
            table.attempts += 1
            let isCrash = table.handedOverAt == nil
            table.handedOverAt = nil  // if this life ends on the way, it was no hand-over
            shared.store?.chargeCopies(contents.copies)
            let ledger = Ledger(
                remains, table: table, store: shared.store, queued: datagrams)
            for pipe in contents.pipes { pipes[pipe.number] = (pipe, ledger) }
            adopted.append((ledger, Array(contents.orphans.values), isCrash))
        }
        var leftOver: [Orphan] = []
        var serials: Set<UInt64> = []
        for (ledger, orphans, isCrash) in adopted {
            for orphan in orphans {
                guard serials.insert(orphan.facts.place.serial).inserted,
                    resume(orphan, of: ledger, isCrash: isCrash, &pipes)
                else {
                    leftOver.append(orphan)
                    continue
                }
            }
        }
        closeLeftOver(leftOver)
        // All at once: what belongs together must not be torn apart by an end in between.
        for (ledger, _, _) in adopted { ledger.table.worker = UInt64(number) }
        for (ledger, _, _) in adopted {
            ledger.finishAdoption()
            ledger.table.lastSign = now
            ledger.table.attempts = 0
            if ledgers.isActive {
                ledgers.add(ledger)
            } else {
                throwAway(ledger.name)
            }
        }
        ledgers.tidy()
    }

    /// A ledger with which the process does not come to its feet is given up at some point.
    private static let mostAttempts = 20

    /// Goes on with one connection, or ends it.
    ///
    /// - Returns: false if the table knows nothing of it: it had ended, or the table is damaged.
    private func resume(
        _ orphan: Orphan, of ledger: Ledger, isCrash: Bool,
        _ pipes: inout [UInt64: (pipe: Pipe, ledger: Ledger)]
    ) -> Bool {
        let place = orphan.facts.place
        guard ledger.table.has(place) else { return false }
        let slot = ledger.table.slot(Int(place.slot))
        shared.reserveConnectionID(orphan.facts.id)
        guard let route = routes.first(where: { $0.name == orphan.facts.route }) else {
            lose(orphan, .damaged)  // every name was made a route before
            return true
        }
        if countCrash(slot, isCrash: isCrash) >= Self.mostCrashes {
            lose(orphan, .crashes, bytes: slot.bytes)
            return true
        }
        slot.setHandled(true)
        defer { slot.setHandled(false) }
        if orphan.target == nil {
            // If there were bytes, there was a target, and its entry is damaged.
            guard !hasMoved(orphan, slot) else {
                lose(orphan, orphan.whyNoTarget, bytes: slot.bytes)
                return true
            }
            return redial(orphan, route, of: ledger)
        }
        return goOn(orphan, route, of: ledger, slot, &pipes)
    }

    private static let mostCrashes = 3

    private func hasMoved(_ orphan: Orphan, _ slot: LedgerSlot) -> Bool {
        if slot.bytes != (0, 0) { return true }
        guard let counts = StreamCounts.of(orphan.clientDescriptor, isOpener: false) else {
            return false
        }
        return !counts.isClosed && (counts.taken != 0 || counts.written != 0)
    }

    /// Counts a crash against the connection that was handled when it came.
    ///
    /// - Returns: how many have come in a row, without a byte that was moved in between.
    private func countCrash(_ slot: LedgerSlot, isCrash: Bool) -> Int {
        let moved = slot.bytes.in &+ slot.bytes.out
        if !isCrash || !slot.isHandled {
            slot.crashes = 0
        } else {
            slot.crashes = moved == slot.bytesAtResumption ? slot.crashes + 1 : 1
        }
        slot.bytesAtResumption = moved
        return slot.crashes
    }

    /// Nothing has been relayed yet: the target is dialled from the beginning.
    private func redial(_ orphan: Orphan, _ route: Route, of ledger: Ledger) -> Bool {
        guard !route.isRefused else {
            lose(orphan, .noRoute)
            return true
        }
        guard let connection = admit(orphan, route) else { return true }
        keep(connection, in: ledger, orphan)
        if watch(connection) { take(dial(connection), connection) }
        return true
    }

    /// Goes on with an established connection, if no byte is missing.
    private func goOn(
        _ orphan: Orphan, _ route: Route, of ledger: Ledger, _ slot: LedgerSlot,
        _ pipes: inout [UInt64: (pipe: Pipe, ledger: Ledger)]
    ) -> Bool {
        let toTarget = filledPipe(slot, from: .client, pipes)
        let toClient = filledPipe(slot, from: .target, pipes)
        let isDoubled = toTarget != nil && toTarget === toClient
        guard !isDoubled && isBelievable(slot.broken, orphan) else {
            lose(orphan, .damaged, bytes: slot.bytes)
            return true
        }
        let missesPipe = [Side.client, .target].contains { side in
            slot.pipe(from: side) != 0 && pipes[slot.pipe(from: side)] == nil
        }
        guard let survey = survey(orphan, slot, toTarget, toClient, missesPipe: missesPipe) else {
            lose(orphan, .bytesLost, bytes: slot.bytes)
            return true
        }
        guard let connection = admit(orphan, route) else { return true }
        beginAgain(connection, orphan)
        connection.toTarget = flow(
            toTarget, isUnix: connection.clientAddress.isUnix,
            bytes: survey.there.bytes ?? slot.bytes.in)
        connection.toClient = flow(
            toClient, isUnix: connection.targetAddress.isUnix,
            bytes: survey.back.bytes ?? slot.bytes.out)
        for pipe in [toTarget, toClient].compactMap({ $0 }) {
            if let stored = pipes.removeValue(forKey: pipe.number), ledgers.isActive {
                stored.ledger.adopt(pipe)
            }
            self.pipes.adopt(pipe)
        }
        keep(connection, in: ledger, orphan)
        update(slot, to: connection)
        tellWhatHappened(to: connection, survey, slot)
        if watch(connection) {
            setNextLook(connection)
            requeue(connection)
        }
        return true
    }

    /// What beginRelay does for a new connection.
    private func beginAgain(_ connection: Connection, _ orphan: Orphan) {
        connection.target = orphan.targetSocket.take()
        connection.targetAddress = orphan.target?.address ?? .unnamed
        connection.connectedAt = connection.connectStartedAt.advanced(
            byNanoseconds: orphan.target?.connectDuration ?? 0)
        connection.phase = isMature(connection) ? .mature : .young
        connection.counters.activeOutbound.add(1)
    }

    private func flow(_ pipe: Pipe?, isUnix: Bool, bytes: UInt64) -> Flow {
        Flow(
            half: HalfStream(isUnix: isUnix, resumedAt: bytes, inPipe: pipe?.unread ?? 0),
            pipe: pipe)
    }

    /// Puts the table right, which may be behind by what was under way at a crash.
    private func update(_ slot: LedgerSlot, to connection: Connection) {
        let bytes = (connection.toTarget.half.bytes, connection.toClient.half.bytes)
        if connection.toTarget.pipe == nil { slot.setPipe(from: .client, 0) }
        if connection.toClient.pipe == nil { slot.setPipe(from: .target, 0) }
        slot.setCopying(false)
        slot.setBytesIn(bytes.0)
        slot.setBytesOut(bytes.1)
        slot.bytesAtResumption = bytes.0 &+ bytes.1
        connection.firstToFinish = slot.firstToFinish
    }

    /// What epoll would not tell, or not right.
    private func tellWhatHappened(
        to connection: Connection, _ survey: Survey, _ slot: LedgerSlot
    ) {
        if let broken = slot.broken { self.broken(connection, broken.side, code: broken.code) }
        if survey.clientIsClosed {
            failedMeanwhile(connection, .client, wasReset: survey.there.isReset)
        }
        if survey.targetIsClosed {
            failedMeanwhile(connection, .target, wasReset: survey.back.isReset)
        }
    }

    /// A side that the table calls broken has to be: bytes for it would be swallowed without a word.
    private func isBelievable(_ broken: (side: Side, code: CInt)?, _ orphan: Orphan) -> Bool {
        guard let (side, code) = broken else { return true }
        let fd = side == .client ? orphan.clientDescriptor : orphan.targetDescriptor
        return code != 0 && Socket.isHungUp(fd)
    }

    /// What the kernel's counts say of both directions.
    private struct Survey {
        let there: HoleCheck.Verdict
        let back: HoleCheck.Verdict
        let clientIsClosed: Bool
        let targetIsClosed: Bool
    }

    /// - Parameter missesPipe: true if the table names a pipe that is in no ledger.
    /// - Returns: nil where bytes are missing.
    private func survey(
        _ orphan: Orphan, _ slot: LedgerSlot, _ toTarget: Pipe?, _ toClient: Pipe?,
        missesPipe: Bool
    ) -> Survey? {
        let client = StreamCounts.of(orphan.clientDescriptor, isOpener: false)
        let target = StreamCounts.of(orphan.targetDescriptor, isOpener: true)
        let there = HoleCheck(
            source: client, sink: target, inPipe: UInt64(toTarget?.unread ?? 0),
            bytesOfTable: slot.bytes.in, isCopying: slot.isCopying
        ).verdict
        let back = HoleCheck(
            source: target, sink: client, inPipe: UInt64(toClient?.unread ?? 0),
            bytesOfTable: slot.bytes.out, isCopying: slot.isCopying
        ).verdict
        // Without counts nobody can tell what was in a pipe that is gone.
        if missesPipe && (client == nil || target == nil) { return nil }
        // What a broken side was sent is lost anyway.
        guard there != .bytesLost || slot.broken?.side == .target,
            back != .bytesLost || slot.broken?.side == .client
        else { return nil }
        return Survey(
            there: there, back: back, clientIsClosed: client?.isClosed ?? false,
            targetIsClosed: target?.isClosed ?? false)
    }

    /// True exactly when the options of a connection of some age are set: they stay with the socket.
    private func isMature(_ connection: Connection) -> Bool {
        let fd =
            connection.clientAddress.isUnix
            ? connection.targetDescriptor : connection.client.rawValue
        return (try? Socket.get(fd, SOL_SOCKET, SO_KEEPALIVE)) == 1
    }

    /// The pipe that carries the direction, if there are bytes in it.
    private func filledPipe(
        _ slot: LedgerSlot, from side: Side, _ pipes: [UInt64: (pipe: Pipe, ledger: Ledger)]
    ) -> Pipe? {
        guard let pipe = pipes[slot.pipe(from: side)]?.pipe, pipe.unread > 0 else { return nil }
        return pipe
    }

    /// A side whose socket is closed: after a FIN each way, or by an error, which is told once.
    private func failedMeanwhile(_ connection: Connection, _ side: Side, wasReset: Bool) {
        let fd = connection.descriptor(of: side)
        let code = Socket.takeError(fd)
        if code != 0 || wasReset {
            broken(connection, side, code: code == 0 ? ECONNRESET : code)
        }
    }

    /// Nothing more can be sent to that side. What it had sent is still to be delivered.
    private func broken(_ connection: Connection, _ side: Side, code: CInt) {
        if connection.brokenBy == nil {
            connection.brokenBy = .failure(of: side, code: code)
            connection.slot?.broken = (side, code)
        }
        if side == .client {
            connection.toClient.half.sinkFailed()
            connection.toTarget.half.sourceBecame([.error, .hangup])
        } else {
            connection.toTarget.half.sinkFailed()
            connection.toClient.half.sourceBecame([.error, .hangup])
        }
    }

    // MARK: Steps

    /// Counts a connection in. There is no limit for those that are there already.
    private func admit(_ orphan: Orphan, _ route: Route) -> Connection? {
        guard let client = orphan.clientSocket.take() else { return nil }
        let facts = orphan.facts
        let counters = self.counters.routes[route.index]
        let connection = Connection(
            id: facts.id, route: route, counters: counters, client: client,
            address: facts.client, listen: facts.listen, now: facts.acceptedAt)
        connection.lastMovedAt = now
        connection.hasCopies = true
        shared.admission.charge()
        route.admission.charge()
        shared.descriptors.charge(2)
        connections.insert(connection)
        counters.active.add(1)
        shared.resumption.withLock { $0.countResumed() }
        return connection
    }

    private func keep(_ connection: Connection, in ledger: Ledger, _ orphan: Orphan) {
        guard ledgers.isActive else { return }
        ledgers.adopt(
            connection, in: ledger, at: orphan.facts.place, targetIsApart: orphan.targetIsApart)
    }

    /// Has epoll report both sides, and first of all what they are at now.
    private func watch(_ connection: Connection) -> Bool {
        do throws(SystemError) {
            for side in [Side.client, .target] {
                let fd = connection.descriptor(of: side)
                if fd < 0 { continue }
                let toHere = side == .client ? connection.toClient.half : connection.toTarget.half
                let waits = toHere.inPipe > 0
                connection[side].reportsWritable = waits
                try epoll.add(
                    fd, waits ? Self.interest.union(.writable) : Self.interest,
                    token: connection.key.token(side == .client ? .client : .target))
            }
            return true
        } catch {
            end(connection, .noMemory)
            return false
        }
    }
}

extension HoleCheck.Verdict {
    /// Read so far; nil if it is not known.
    fileprivate var bytes: UInt64? {
        switch self {
        case .whole(let bytes), .sourceWasReset(let bytes): bytes
        case .bytesLost: nil
        }
    }

    fileprivate var isReset: Bool {
        if case .sourceWasReset = self { true } else { false }
    }
}
