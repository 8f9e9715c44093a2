// Sorts what waits in a ledger's queue: connections, their targets, pipes. Believes nothing.

import CLinux
import CSystemd
import Glibc

/// A connection as a ledger has it: facts, and copies of its sockets, which close with it.
final class Orphan {
    let facts: ConnectionFacts
    var target: TargetOfEntry?
    var clientSocket: FileDescriptor?
    var targetSocket: FileDescriptor?
    /// True exactly when the target has a datagram of its own.
    var targetIsApart = false
    /// What a connection that has moved bytes and has no target is lost to.
    var whyNoTarget = LostReason.damaged

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

/// What a ledger's queue holds, sorted.
struct LedgerContents {
    /// An entry that is there twice counts once.
    var orphans: [LedgerPlace: Orphan] = [:]
    var pipes: [Pipe] = []
    /// Descriptors that are in the queue.
    var copies = 0
    /// What cannot go on for its datagram cannot be used; its sockets were reset.
    var lost: [LostReason] = []

    /// - Parameter room: how many descriptors may be open at the same time for it; the process needs
    ///   others for itself.
    init(of remains: borrowing LedgerRemains, room: Int, datagrams: inout Int) {
        var orphans: [LedgerPlace: Orphan] = [:]
        var pipes: [Pipe] = []
        var lost: [LostReason] = []
        var opened = 0
        var copies = 0
        var targets: [(facts: TargetFacts, descriptor: CInt)] = []
        datagrams = remains.walk { read, descriptors in
            opened += descriptors.count
            copies += descriptors.count
            let usable =
                opened > room
                ? .failure(.noDescriptors) : Self.usable(read, with: descriptors)
            let entry: LedgerEntry
            switch usable {
            case .success(let found): entry = found
            case .failure(let reason):
                opened -= descriptors.count
                if case .success(.target(let facts)) = read {
                    orphans[facts.place]?.whyNoTarget = reason
                }
                if Self.abandon(descriptors, read, of: remains.table) { lost.append(reason) }
                return
            }
            switch entry {
            case .connection(let facts):
                let orphan = Orphan(facts, descriptors)
                // Most of what the table no longer knows has ended, and needs no descriptors.
                if remains.table?.has(facts.place) == false,
                    StreamCounts.hasEnded(orphan.clientDescriptor)
                {
                    opened -= descriptors.count
                } else {
                    orphans[facts.place] = orphan
                }
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
                _ = Self.abandon([descriptor], .failure(.damaged), of: nil)
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
        self.copies = copies
    }

    /// Open for it.
    var descriptorCount: Int {
        pipes.count * 2
            + orphans.values.reduce(0) { $0 + ($1.targetSocket == nil ? 1 : 2) }
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
                return .failure(.noDescriptors)
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
    /// - Returns: true if it was one. Half of one, a lone target, is counted with the other half.
    private static func abandon(
        _ descriptors: [CInt], _ entry: Result<LedgerEntry, EntryDamage>, of table: LedgerTable?
    ) -> Bool {
        var wasOpen = false
        for descriptor in descriptors {
            if sd_is_socket(descriptor, AF_UNSPEC, linux_SOCK_STREAM, 0) > 0,
                !StreamCounts.hasEnded(descriptor)
            {
                Socket.reset(descriptor)
                wasOpen = true
            }
            _ = Glibc.close(descriptor)
        }
        if case .success(.connection(let facts)) = entry {
            return table?.has(facts.place) ?? wasOpen
        }
        return wasOpen && descriptors.count == 2
    }
}
