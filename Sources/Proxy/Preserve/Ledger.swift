// A ledger: copies of connections' sockets in a queue that systemd keeps, and the table that tells
// of them. What is in it outlives the process.

import CLinux
import Glibc

/// One queue with its table. Used by one worker alone.
///
/// The queue is a pair of AF_UNIX datagram sockets: what is sent into the one waits in the kernel,
/// with the descriptors beside it, until it is received from the other. It is never received but
/// to be dropped; whoever comes after peeks.
final class Ledger {
    /// Under which systemd keeps the three descriptors.
    let name: String
    let table: LedgerTable
    private let writer: FileDescriptor
    private let reader: FileDescriptor
    /// Bytes of kernel memory that may wait in the queue.
    private let capacity: Int
    /// By slot; nil where it is free. The worker owns them, and has them forgotten at their end.
    private var tenants: [Borrowed<Connection>?]
    private var freeSlots: [Int]
    private var pipes: [UInt64: Borrowed<Pipe>] = [:]
    /// Routes that the table names.
    private var routes: Set<String>
    /// Datagrams in the queue, those of the dead included.
    private var queued: Int
    private var dead = 0
    /// Of the dead those that keep a pipe's memory, of which a user has little: pipe(7).
    private var deadPipes = 0
    /// While not all the living are known, nobody can be told for dead.
    private var isAdopting: Bool
    /// Where the descriptors in the queue are counted; nil where they are not to last.
    private let store: DescriptorStore?
    private var buffer = [UInt8](repeating: 0, count: LedgerEntry.mostBytes)

    /// What came of entering something.
    enum Outcome: Equatable {
        case entered
        /// There is no room in this ledger.
        case full
        /// ETOOMANYREFS, most often: too many descriptors of this user are under way, unix(7).
        case refused(CInt)
    }

    /// How many connections are in it.
    var count: Int { LedgerTable.slotCount - freeSlots.count }

    var isEmpty: Bool { count == 0 && pipes.isEmpty }

    // MARK: Making

    /// A new ledger that systemd keeps; nil if it does not.
    static func make(in store: DescriptorStore, worker: Int) throws(SystemError) -> Ledger? {
        let file = try LedgerTable.makeFile()
        let table = try LedgerTable.make(in: file, worker: worker)
        var ends: (CInt, CInt) = (-1, -1)
        _ = try retrying("socketpair") {
            unsafe withUnsafeMutableBytes(of: &ends) { bytes in
                unsafe linux_datagram_pair(bytes.assumingMemoryBound(to: CInt.self).baseAddress)
            }
        }
        let writer = FileDescriptor(owning: ends.0)
        let reader = FileDescriptor(owning: ends.1)
        // What is asked for is cut down to net.core.wmem_max.
        try? Socket.set(writer.rawValue, SOL_SOCKET, SO_SNDBUF, wantedBuffer)
        let name = store.nextName()
        guard try store.put([writer.rawValue, reader.rawValue, file.rawValue], name: name) else {
            return nil
        }
        return Ledger(
            name: name, table: table, writer: writer, reader: reader, store: store)
    }

    /// Descriptors of one ledger in systemd's store.
    static let descriptorCount = 3
    /// Of those, open in this process as long as the ledger is.
    static let openDescriptors = 2

    /// Room for all slots and as many pipes: an entry takes 768 bytes, one with unix paths 1,280.
    private static let wantedBuffer: CInt = 1024 * 1024

    /// - Parameter adopting: datagrams in the queue, those of an earlier life, whose owners are to
    ///   be adopted; nil for a new ledger.
    init(
        name: String, table: LedgerTable, writer: consuming FileDescriptor,
        reader: consuming FileDescriptor, store: DescriptorStore?, adopting: Int? = nil
    ) {
        self.name = name
        self.store = store
        queued = adopting ?? 0
        isAdopting = adopting != nil
        self.table = table
        capacity = Int((try? Socket.get(writer.rawValue, SOL_SOCKET, SO_SNDBUF)) ?? 0)
        self.writer = writer
        self.reader = reader
        routes = Set(table.routes)
        tenants = Array(repeating: nil, count: LedgerTable.slotCount)
        freeSlots = Array((0..<LedgerTable.slotCount).reversed())
    }

    // MARK: Entering

    /// Enters a connection with the sockets that it has, and hands it its slot.
    func enter(_ connection: Connection) -> Outcome {
        guard hasRoom, knows(connection.route.name), let index = freeSlots.popLast() else {
            return .full
        }
        let slot = table.slot(index)
        slot.take(serial: Self.newNumber())
        // All that the entry's reader needs has to be there when it is.
        slot.setBytesIn(connection.toTarget.half.bytes)
        slot.setBytesOut(connection.toClient.half.bytes)
        slot.firstToFinish = connection.firstToFinish
        slot.broken = connection.brokenBy?.ledgerForm
        note(connection.toTarget.pipe, in: slot, from: .client)
        note(connection.toClient.pipe, in: slot, from: .target)
        seat(connection, at: index)
        let outcome = send(entry(of: connection), descriptors(of: connection))
        if outcome != .entered { unseat(connection) }
        return outcome
    }

    /// Writes down which pipe carries the direction, to be called before bytes are in it.
    func note(_ pipe: Pipe?, in slot: LedgerSlot, from side: Side) {
        guard let pipe else { return slot.setPipe(from: side, 0) }
        table.hasPipes = true
        if FaultInjection.mapsNoPipes { return }
        slot.setPipe(from: side, pipe.ledger == nil ? Self.unknownPipe : pipe.number)
    }

    /// The number of a pipe that is in no ledger, and takes its bytes along when the process ends.
    static let unknownPipe = UInt64.max

    /// The target of a connection that was entered without one.
    func enterTarget(of connection: Connection) -> Outcome {
        guard hasRoom else { return .full }
        guard let place = connection.ledgerPlace, let target = connection.targetOfEntry else {
            return .entered
        }
        let outcome = send(
            .target(TargetFacts(place: place, target: target)), [connection.targetDescriptor])
        if outcome == .entered { connection.targetIsApart = true }
        return outcome
    }

    /// Enters both ends of a pipe, once in its life.
    func enter(_ pipe: Pipe) -> Outcome {
        guard hasRoom else { return .full }
        if pipe.number == 0 { pipe.number = Self.newNumber() }
        table.hasPipes = true
        let outcome = send(
            .pipe(pipe.number), [pipe.readEnd.rawValue, pipe.writeEnd.rawValue])
        guard outcome == .entered else { return outcome }
        hold(pipe)
        return .entered
    }

    /// Whoever comes next has to know the routes before it begins.
    private func knows(_ route: String) -> Bool {
        if routes.contains(route) { return true }
        guard table.addRoute(route) else { return false }
        routes.insert(route)
        return true
    }

    /// Numbers are random, so that no life of the process need know those of another.
    private static func newNumber() -> UInt64 { UInt64.random(in: 1 ... .max) }

    // MARK: Adopting

    /// A connection of an earlier life goes on under its entry.
    func adopt(_ connection: Connection, at place: LedgerPlace, targetIsApart: Bool) {
        seat(connection, at: Int(place.slot))
        connection.targetIsApart = targetIsApart
    }

    /// A pipe of an earlier life is in use again.
    func adopt(_ pipe: Pipe) { hold(pipe) }

    /// Everything was adopted that is to be: the other slots are free, and what is in the queue
    /// beside is dead.
    func finishAdoption() {
        freeSlots = (0..<LedgerTable.slotCount).reversed().filter { tenants[$0] == nil }
        for index in freeSlots { table.slot(index).free() }
        dead = max(queued - living, 0)
        isAdopting = false
        compactIfWorthIt()
    }

    private func seat(_ connection: Connection, at index: Int) {
        tenants[index] = Borrowed(connection)
        connection.ledger = self
        connection.slot = table.slot(index)
        connection.slotIndex = index
        connection.hasCopies = true
    }

    private func unseat(_ connection: Connection) {
        connection.slot?.free()
        connection.slot = nil
        connection.ledger = nil
        tenants[connection.slotIndex] = nil
        freeSlots.append(connection.slotIndex)
    }

    private func hold(_ pipe: Pipe) {
        pipes[pipe.number] = Borrowed(pipe)
        pipe.ledger = self
    }

    // MARK: Leaving

    /// The connection has ended: its sockets are shut down, and its entry is dead.
    func forget(_ connection: Connection) {
        unseat(connection)
        dead += connection.targetIsApart ? 2 : 1
        connection.targetIsApart = false
        compactIfWorthIt()
    }

    /// The pipe is about to be closed.
    func forget(_ pipe: Pipe) {
        pipe.ledger = nil
        pipes[pipe.number] = nil
        dead += 1
        deadPipes += 1
        compactIfWorthIt()
    }

    /// Drops the dead once they are as many as the living: each death costs a constant, then.
    private func compactIfWorthIt() {
        if (dead >= 32 && dead * 2 >= queued) || deadPipes >= Self.mostDeadPipes { compact() }
    }

    /// A quarter of what a user's pipes may take without privileges, at 64 pages each.
    private static let mostDeadPipes = 64

    /// Drops the dead: takes the queue's head off, again and again, having put it at its end if it
    /// lives. Between the two it is there twice, which does no harm.
    func compact() {
        if isAdopting { return }
        var seen: Set<LedgerEntry.Name> = []
        for _ in 0..<queued where dead > 0 {
            let head = peek()
            if head == .none { break }
            // A process that ended between the two has left an entry that is there twice.
            if case .entry(let entry) = head, let (renewed, descriptors) = renewed(entry),
                seen.insert(entry.name).inserted
            {
                guard send(renewed, descriptors, isTurn: true) == .entered else { break }
                noteTarget(renewed)
            } else {
                dead -= 1
            }
            if case .entry(let entry) = head { drop(entry.descriptorCount) } else { drop(0) }
        }
        dead = max(queued - living, 0)
        deadPipes = 0
    }

    /// A connection's entry has its target now: the datagram that told of it is of no more use.
    private func noteTarget(_ entry: LedgerEntry) {
        guard case .connection(let facts) = entry, facts.target != nil,
            let connection = tenant(of: facts.place), connection.targetIsApart
        else { return }
        connection.targetIsApart = false
        dead += 1
    }

    /// Datagrams that have to be there.
    private var living: Int {
        tenants.reduce(pipes.count) { count, tenant in
            guard let tenant else { return count }
            return count + (tenant.object.targetIsApart ? 2 : 1)
        }
    }

    /// The entry as it is to be now, and its descriptors; nil if it is dead.
    private func renewed(_ entry: LedgerEntry) -> (LedgerEntry, [CInt])? {
        switch entry {
        case .connection(let facts):
            guard let connection = tenant(of: facts.place) else { return nil }
            return (self.entry(of: connection), descriptors(of: connection))
        case .target(let facts):
            guard let connection = tenant(of: facts.place), connection.targetIsApart else {
                return nil
            }
            return (entry, [connection.targetDescriptor])
        case .pipe(let number):
            guard let pipe = pipes[number]?.object else { return nil }
            return (entry, [pipe.readEnd.rawValue, pipe.writeEnd.rawValue])
        }
    }

    private func tenant(of place: LedgerPlace) -> Connection? {
        table.has(place) ? tenants[Int(place.slot)]?.object : nil
    }

    // MARK: The queue

    /// True exactly when one more entry, and one that is re-entered, will fit for certain.
    private var hasRoom: Bool {
        Int(linux_unsent(writer.rawValue)) + Self.reserve < capacity
    }

    /// Kernel memory of two entries of the largest kind.
    private static let reserve = 2 * 2304

    private func entry(of connection: Connection) -> LedgerEntry {
        .connection(
            ConnectionFacts(
                place: LedgerPlace(
                    slot: UInt32(connection.slotIndex),
                    serial: table.slot(connection.slotIndex).serial),
                id: connection.id, acceptedAt: connection.acceptedAt, route: connection.route.name,
                client: connection.clientAddress, listen: connection.listenAddress,
                target: connection.targetOfEntry))
    }

    private func descriptors(of connection: Connection) -> [CInt] {
        connection.targetOfEntry == nil
            ? [connection.client.rawValue]
            : [connection.client.rawValue, connection.targetDescriptor]
    }

    /// - Parameter isTurn: true for an entry that goes from the queue's head to its end.
    private func send(
        _ entry: LedgerEntry, _ descriptors: [CInt], isTurn: Bool = false
    ) -> Outcome {
        if let store, !store.takeCopies(descriptors.count, isTurn: isTurn) {
            return .refused(ETOOMANYREFS)
        }
        let bytes = entry.bytes
        do throws(SystemError) {
            _ = try retrying("sendmsg") {
                unsafe linux_send_descriptors(
                    writer.rawValue, bytes, bytes.count, descriptors, CInt(descriptors.count))
            }
        } catch {
            store?.giveBackCopies(descriptors.count)
            return error.code == EAGAIN ? .full : .refused(error.code)
        }
        queued += 1
        return .entered
    }

    private enum Datagram: Equatable {
        /// The queue is empty.
        case none
        case foreign
        case entry(LedgerEntry)
    }

    /// What is at the queue's head, without its descriptors.
    private func peek() -> Datagram {
        var none: CInt = 0
        let count = unsafe linux_receive_descriptors(
            reader.rawValue, &buffer, buffer.count, nil, 0, &none, linux_MSG_PEEK)
        guard count >= 0 else { return .none }
        do throws(EntryDamage) {
            return .entry(try LedgerEntry(buffer[..<count]))
        } catch {
            return .foreign
        }
    }

    /// Takes the head off. Its descriptors, which nobody asks for, are closed.
    private func drop(_ descriptors: Int) {
        var none: CInt = 0
        if unsafe linux_receive_descriptors(reader.rawValue, &buffer, 1, nil, 0, &none, 0) >= 0 {
            queued -= 1
            store?.giveBackCopies(descriptors)
        }
    }
}

/// A reference that keeps nothing alive.
private struct Borrowed<Object: AnyObject> {
    unowned let object: Object

    init(_ object: Object) { self.object = object }
}
