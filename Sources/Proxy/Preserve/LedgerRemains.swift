// What an earlier life of the process left in systemd's store: a queue and its table, looked at
// without taking anything out, so that this life too may end at any moment.

import CLinux
import CSystemd
import Glibc

/// The descriptors that systemd kept under one name.
struct InheritedLedger: Sendable {
    let name: String
    /// Owned by whoever takes the list.
    var descriptors: [CInt]
}

/// What a ledger's table says of the whole of it, before anything is taken over.
struct LedgerSummary {
    /// Which of the earlier life's workers it belonged to.
    var worker: UInt64 = 0
    var hasPipes = true
    var routes: [String] = []

    /// - Parameter ledger: its descriptors stay open.
    init(of ledger: InheritedLedger) {
        for descriptor in ledger.descriptors {
            guard let table = try? LedgerTable.adopt(descriptor) else { continue }
            worker = table.worker
            hasPipes = table.hasPipes
            routes = table.routes
        }
    }
}

/// What an earlier life of the process left under one name.
struct LedgerRemains: ~Copyable {
    let name: String
    let writer: FileDescriptor
    let reader: FileDescriptor
    /// nil where the memory is missing or is no table of a layout that is known.
    let table: LedgerTable?
    let refusal: LedgerTable.Refusal?

    /// Sorts out the descriptors, which it owns from here on. nil where there is no queue.
    init?(_ inherited: InheritedLedger) {
        var sockets: [CInt] = []
        var found: LedgerTable?
        var refusal = LedgerTable.Refusal.damaged
        for descriptor in inherited.descriptors {
            if sd_is_socket(descriptor, AF_UNIX, linux_SOCK_DGRAM, 0) > 0, sockets.count < 2 {
                sockets.append(descriptor)
                continue
            }
            do throws(LedgerTable.Refusal) {
                if found == nil { found = try LedgerTable.adopt(descriptor) }
            } catch {
                refusal = error
            }
            _ = Glibc.close(descriptor)
        }
        guard sockets.count == 2 else {
            for socket in sockets { _ = Glibc.close(socket) }
            return nil
        }
        // What waits in the queue is charged to the one that sent it.
        let isTurned = linux_unsent(sockets[1]) > 0
        name = inherited.name
        writer = FileDescriptor(owning: sockets[isTurned ? 1 : 0])
        reader = FileDescriptor(owning: sockets[isTurned ? 0 : 1])
        table = found
        self.refusal = found == nil ? refusal : nil
    }

    /// Shows what the queue holds, in its order, with copies of the descriptors for the
    /// visitor to own. Nothing is taken out.
    ///
    /// - Returns: how many datagrams there are.
    func walk(_ visit: (Result<LedgerEntry, EntryDamage>, [CInt]) -> Void) -> Int {
        // Each peek begins where the last has ended: SO_PEEK_OFF of socket(7).
        try? Socket.set(reader.rawValue, SOL_SOCKET, SO_PEEK_OFF, 0)
        defer { try? Socket.set(reader.rawValue, SOL_SOCKET, SO_PEEK_OFF, -1) }
        var buffer = [UInt8](repeating: 0, count: LedgerEntry.mostBytes)
        var descriptors: [CInt] = [-1, -1]
        var walked = 0
        while true {
            var received: CInt = 0
            let count = unsafe linux_receive_descriptors(
                reader.rawValue, &buffer, buffer.count, &descriptors, CInt(descriptors.count),
                &received, linux_MSG_PEEK | linux_MSG_TRUNC)
            if count < 0 { return walked }
            walked += 1
            if count > buffer.count { skip(count - buffer.count) }
            let entry = Result { () throws(EntryDamage) in
                guard count <= buffer.count else { throw .damaged }
                return try LedgerEntry(buffer[..<count])
            }
            visit(entry, Array(descriptors[..<Int(received)]))
        }
    }

    /// Has the next peek begin behind the part of a datagram that did not fit; none of ours is so
    /// long.
    private func skip(_ count: Int) {
        let offset = (try? Socket.get(reader.rawValue, SOL_SOCKET, SO_PEEK_OFF)) ?? 0
        try? Socket.set(reader.rawValue, SOL_SOCKET, SO_PEEK_OFF, offset &+ CInt(clamping: count))
    }
}

extension Ledger {
    /// Goes on with what is left of an earlier life's ledger.
    ///
    /// - Parameter queued: datagrams in its queue.
    convenience init(
        _ remains: consuming LedgerRemains, table: LedgerTable, store: DescriptorStore?, queued: Int
    ) {
        self.init(
            name: remains.name, table: table, writer: remains.writer, reader: remains.reader,
            store: store, adopting: queued)
    }
}
