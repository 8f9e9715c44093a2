// Goes on with the connections that an earlier life of the process left in its ledgers.

import CLinux
import CSystemd
import Glibc

/// A connection as a ledger has it: facts, and copies of its sockets, which close with it.
private final class Orphan {
    let facts: ConnectionFacts
    var target: TargetOfEntry?
    var clientSocket: FileDescriptor?
    var targetSocket: FileDescriptor?
    /// True exactly when the target has a datagram of its own.
    var targetIsApart = false

    /// - Parameter descriptors: one, or two if the facts tell of a target.
    init(_ facts: ConnectionFacts, _ descriptors: [CInt]) {
        self.facts = facts
        target = facts.target
        clientSocket = descriptors.first.map { FileDescriptor(owning: $0) }
        targetSocket = descriptors.dropFirst().first.map { FileDescriptor(owning: $0) }
    }

    var clientDescriptor: CInt { clientSocket?.rawValue ?? -1 }
    var targetDescriptor: CInt { targetSocket?.rawValue ?? -1 }
}

/// What a ledger's queue holds.
private struct Contents {
    /// An entry that is there twice counts once.
    var orphans: [LedgerPlace: Orphan] = [:]
    var pipes: [Pipe] = []
    /// What cannot go on for its datagram cannot be used; its sockets were reset.
    var lost: [LostReason] = []

    init(of remains: borrowing LedgerRemains, datagrams: inout Int) {
        var orphans: [LedgerPlace: Orphan] = [:]
        var pipes: [Pipe] = []
        var lost: [LostReason] = []
        var targets: [(facts: TargetFacts, descriptor: CInt)] = []
        datagrams = remains.walk { entry, descriptors in
            let entry = Self.usable(entry, with: descriptors)
            guard case .success(let entry) = entry else {
                if case .failure(let reason) = entry, Self.abandon(descriptors, reason) {
                    lost.append(reason)
                }
                return
            }
            switch entry {
            case .connection(let facts): orphans[facts.place] = Orphan(facts, descriptors)
            case .target(let facts): targets.append((facts, descriptors[0]))
            case .pipe(let number):
                pipes.append(
                    Pipe(
                        number: number, readEnd: FileDescriptor(owning: descriptors[0]),
                        writeEnd: FileDescriptor(owning: descriptors[1])))
            }
        }
        for (facts, descriptor) in targets {
            guard let orphan = orphans[facts.place] else {
                // Its connection has ended, or cannot be read.
                _ = Self.abandon([descriptor], .damaged)
                continue
            }
            let socket = FileDescriptor(owning: descriptor)
            if orphan.target != nil { continue }
            orphan.target = facts.target
            orphan.targetSocket = consume socket
            orphan.targetIsApart = true
        }
        self.orphans = orphans
        self.pipes = pipes
        self.lost = lost
    }

    /// The entry, if it can be read and its descriptors are what it says.
    private static func usable(
        _ entry: Result<LedgerEntry, EntryDamage>, with descriptors: [CInt]
    ) -> Result<LedgerEntry, LostReason> {
        switch entry {
        case .failure(.unknownLayout): return .failure(.unknownLayout)
        case .failure(.damaged): return .failure(.damaged)
        case .success(let entry):
            // Fewer than were sent: there were no numbers for more, EMFILE.
            guard descriptors.count >= entry.descriptorCount else {
                return .failure(descriptors.isEmpty ? .damaged : .noDescriptors)
            }
            let isUsable =
                if case .pipe = entry {
                    descriptors.allSatisfy { sd_is_fifo($0, nil) > 0 }
                } else {
                    descriptors.allSatisfy { sd_is_socket($0, AF_UNSPEC, linux_SOCK_STREAM, 0) > 0 }
                }
            return isUsable && descriptors.count == entry.descriptorCount
                ? .success(entry) : .failure(.damaged)
        }
    }

    /// Closes the descriptors; resets those of a connection that is still open.
    ///
    /// - Returns: true if there was one. A lone socket is half of one: its other half is an entry
    ///   of its own, and counted there.
    private static func abandon(_ descriptors: [CInt], _ reason: LostReason) -> Bool {
        var wasOpen = reason == .noDescriptors
        for descriptor in descriptors {
            if sd_is_socket(descriptor, AF_UNSPEC, linux_SOCK_STREAM, 0) > 0,
                StreamCounts.of(descriptor, isOpener: false)?.hasEnded != true
            {
                Socket.reset(descriptor)
                wasOpen = true
            }
            _ = Glibc.close(descriptor)
        }
        return wasOpen && descriptors.count != 1
    }
}

extension Worker {
    /// Adopts the ledgers, and goes on with every connection in them that is whole.
    ///
    /// Nothing is taken out of them on the way, so that the process may end at any moment.
    func resumeConnections(_ inherited: [InheritedLedger]) {
        var adopted: [(ledger: Ledger, orphans: [Orphan])] = []
        var pipes: [UInt64: (pipe: Pipe, ledger: Ledger)] = [:]
        for inherited in inherited {
            guard let remains = LedgerRemains(inherited) else {
                DescriptorStore.remove(inherited.name)
                shared.resumption.withLock { $0.foundNothing(in: inherited.name) }
                continue
            }
            var datagrams = 0
            let contents = Contents(of: remains, datagrams: &datagrams)
            shared.resumption.withLock { for reason in contents.lost { $0.countLost(reason) } }
            guard let table = remains.table, table.attempts < Self.mostAttempts else {
                giveUp(remains, contents)
                continue
            }
            shared.resumption.withLock {
                $0.found(handedOverAt: table.handedOverAt, lastSign: table.lastSign)
            }
            table.attempts += 1
            let ledger = Ledger(remains, table: table, queued: datagrams)
            for pipe in contents.pipes { pipes[pipe.number] = (pipe, ledger) }
            adopted.append((ledger, Array(contents.orphans.values)))
        }
        var leftOver: [Orphan] = []
        var serials: Set<UInt64> = []
        for (ledger, orphans) in adopted {
            for orphan in orphans {
                guard serials.insert(orphan.facts.place.serial).inserted,
                    resume(orphan, of: ledger, &pipes)
                else {
                    leftOver.append(orphan)
                    continue
                }
            }
        }
        closeLeftOver(leftOver)
        for (ledger, _) in adopted {
            ledger.finishAdoption()
            ledger.table.worker = UInt64(number)
            ledger.table.lastSign = now
            ledger.table.handedOverAt = nil
            ledger.table.attempts = 0
            if ledgers.isActive {
                ledgers.add(ledger)
            } else {
                DescriptorStore.remove(ledger.name)
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
        _ orphan: Orphan, of ledger: Ledger,
        _ pipes: inout [UInt64: (pipe: Pipe, ledger: Ledger)]
    ) -> Bool {
        let place = orphan.facts.place
        guard place.slot < LedgerTable.slotCount,
            ledger.table.slot(Int(place.slot)).serial == place.serial
        else { return false }
        let slot = ledger.table.slot(Int(place.slot))
        shared.reserveConnectionID(orphan.facts.id)
        guard let route = routes.first(where: { $0.name == orphan.facts.route }) else {
            lose(orphan, .damaged)  // every name was made a route before
            return true
        }
        if countCrash(slot, isCrash: ledger.table.handedOverAt == nil) >= Self.mostCrashes {
            lose(orphan, .crashes)
            return true
        }
        slot.setHandled(true)
        defer { slot.setHandled(false) }
        if orphan.target == nil {
            // If there were bytes, there was a target, and its entry is damaged.
            guard !hasMoved(orphan, slot) else {
                lose(orphan, .damaged)
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
        let client = StreamCounts.of(orphan.clientDescriptor, isOpener: false)
        let target = StreamCounts.of(orphan.targetDescriptor, isOpener: true)
        let toTarget = filledPipe(slot, from: .client, pipes)
        let toClient = filledPipe(slot, from: .target, pipes)
        let there = HoleCheck(
            source: client, sink: target, inPipe: UInt64(toTarget?.unread ?? 0),
            bytesOfTable: slot.bytes.in, isCopying: slot.isCopying
        ).verdict
        let back = HoleCheck(
            source: target, sink: client, inPipe: UInt64(toClient?.unread ?? 0),
            bytesOfTable: slot.bytes.out, isCopying: slot.isCopying
        ).verdict
        let broken = slot.broken
        // What a broken side was sent is lost anyway.
        guard there != .bytesLost || broken?.side == .target,
            back != .bytesLost || broken?.side == .client
        else {
            lose(orphan, .bytesLost)
            return true
        }
        guard let connection = admit(orphan, route) else { return true }
        connection.target = orphan.targetSocket.take()
        connection.targetAddress = orphan.target?.address ?? .unnamed
        connection.connectedAt = connection.connectStartedAt.advanced(
            byNanoseconds: orphan.target?.connectDuration ?? 0)
        connection.phase = .young
        connection.counters.activeOutbound.add(1)
        connection.toTarget = Flow(
            half: HalfStream(
                isUnix: connection.clientAddress.isUnix,
                resumedAt: there.bytes ?? slot.bytes.in, inPipe: toTarget?.unread ?? 0),
            pipe: toTarget)
        connection.toClient = Flow(
            half: HalfStream(
                isUnix: connection.targetAddress.isUnix,
                resumedAt: back.bytes ?? slot.bytes.out, inPipe: toClient?.unread ?? 0),
            pipe: toClient)
        connection.firstToFinish = slot.firstToFinish
        for pipe in [toTarget, toClient].compactMap({ $0 }) {
            if let stored = pipes.removeValue(forKey: pipe.number), ledgers.isActive {
                stored.ledger.adopt(pipe)
            }
            self.pipes.adopt(pipe)
        }
        keep(connection, in: ledger, orphan)
        if toTarget == nil { slot.setPipe(from: .client, 0) }
        if toClient == nil { slot.setPipe(from: .target, 0) }
        slot.setCopying(false)
        slot.setBytesIn(connection.toTarget.half.bytes)
        slot.setBytesOut(connection.toClient.half.bytes)
        slot.bytesAtResumption = connection.toTarget.half.bytes &+ connection.toClient.half.bytes

        if let broken { self.broken(connection, broken.side, code: broken.code) }
        if let client, client.isClosed {
            failedMeanwhile(connection, .client, wasReset: there.isReset)
        }
        if let target, target.isClosed {
            failedMeanwhile(connection, .target, wasReset: back.isReset)
        }
        if watch(connection) {
            setNextLook(connection)
            requeue(connection)
        }
        return true
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
        let fd = side == .client ? connection.client.rawValue : connection.targetDescriptor
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
                let fd = side == .client ? connection.client.rawValue : connection.targetDescriptor
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

    // MARK: What cannot go on

    /// Resets both sides and says so.
    private func lose(_ orphan: Orphan, _ reason: LostReason) {
        for fd in [orphan.clientDescriptor, orphan.targetDescriptor] where fd >= 0 {
            Socket.reset(fd)
        }
        shared.resumption.withLock { $0.countLost(reason) }
        let facts = orphan.facts
        guard let route = routes.first(where: { $0.name == facts.route }),
            route.log.includes(.lost)
        else { return }
        let record = ConnectionRecord(
            id: facts.id, route: route, client: facts.client, listen: facts.listen,
            target: orphan.target?.address ?? .unnamed, bytesIn: 0, bytesOut: 0,
            duration: now.nanoseconds(since: facts.acceptedAt),
            connectDuration: orphan.target?.connectDuration, reason: .lost)
        if !shared.log.push(record, from: queue) { counters.worker.recordsDropped.add(1) }
    }

    /// Entries of which the table knows nothing. Most had ended; what is open still is either
    /// entered a second time, or its line of the table is damaged.
    private func closeLeftOver(_ orphans: [Orphan]) {
        let open = orphans.filter { orphan in
            guard let counts = StreamCounts.of(orphan.clientDescriptor, isOpener: false) else {
                return false
            }
            return !counts.hasEnded
        }
        if open.isEmpty { return }
        let known = Set(connections.all.compactMap { Socket.cookie($0.client.rawValue) })
        for orphan in open {
            if let cookie = Socket.cookie(orphan.clientDescriptor), known.contains(cookie) {
                continue
            }
            lose(orphan, .damaged)
        }
    }

    /// A ledger without a table that can be read: what is in it is ended, and it is thrown away.
    private func giveUp(_ remains: borrowing LedgerRemains, _ contents: Contents) {
        let reason: LostReason =
            switch remains.refusal {
            case nil: .crashes
            case .unknownLayout: .unknownLayout
            case .damaged: .damaged
            }
        var count = 0
        for orphan in contents.orphans.values {
            let counts = StreamCounts.of(orphan.clientDescriptor, isOpener: false)
            if counts?.hasEnded != true {
                lose(orphan, reason)
                count += 1
            }
        }
        let why =
            switch reason {
            case .crashes: "the process did not come to its feet with it"
            case .unknownLayout: "another version wrote it, in a layout unknown to this one"
            default: "its table is damaged"
            }
        shared.log.line(
            .error, .ledgerRefused,
            "\(remains.name) is given up, \(Status.count(count, "connection")) "
                + "in it: \(why)")
        DescriptorStore.remove(remains.name)
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
