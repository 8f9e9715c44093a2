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
    /// What cannot go on for its datagram cannot be used; its sockets were reset.
    var lost: [LostReason] = []

    /// - Parameter room: how many descriptors may be open at the same time for it; the process needs
    ///   others for itself.
    init(of remains: borrowing LedgerRemains, room: Int, datagrams: inout Int) {
        var orphans: [LedgerPlace: Orphan] = [:]
        var pipes: [Pipe] = []
        var lost: [LostReason] = []
        var opened = 0
        var targets: [(facts: TargetFacts, descriptor: CInt)] = []
        datagrams = remains.walk { entry, descriptors in
            opened += descriptors.count
            let entry =
                opened > room
                ? .failure(.noDescriptors) : Self.usable(entry, with: descriptors)
            guard case .success(let entry) = entry else {
                if case .failure(let reason) = entry, Self.abandon(descriptors, reason) {
                    lost.append(reason)
                }
                opened -= descriptors.count
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
        var wasOpen = descriptors.isEmpty && reason == .noDescriptors
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
