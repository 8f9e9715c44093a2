// Ends what an earlier life of the process left and this one cannot go on with. A cut is honest, a
// hole in a stream is not.

import Glibc

extension Worker {
    /// Resets both sides and says so.
    func lose(
        _ orphan: Orphan, _ reason: LostReason, bytes: (in: UInt64, out: UInt64) = (0, 0)
    ) {
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
            target: orphan.target?.address ?? .unnamed, bytesIn: bytes.in, bytesOut: bytes.out,
            duration: now.nanoseconds(since: facts.acceptedAt),
            connectDuration: orphan.target?.connectDuration, reason: .lost)
        log(record)
    }

    /// Entries of which the table knows nothing. Most had ended; what is open still is either
    /// entered a second time, or its line of the table is damaged.
    func closeLeftOver(_ orphans: [Orphan]) {
        let open = orphans.filter { orphan in
            !StreamCounts.hasEnded(orphan.clientDescriptor)
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
    func giveUp(_ remains: borrowing LedgerRemains, _ contents: LedgerContents) {
        let reason: LostReason =
            switch remains.refusal {
            case nil: .crashes
            case .unknownLayout: .unknownLayout
            case .damaged: .damaged
            }
        if reason == .damaged { shared.resumption.withLock { $0.foundDamaged() } }
        var count = 0
        for orphan in contents.orphans.values {
            if !StreamCounts.hasEnded(orphan.clientDescriptor) {
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
        throwAway(remains.name)
    }

    /// Has systemd close a ledger.
    func throwAway(_ name: String) {
        if let store = shared.store {
            store.remove(name, count: Ledger.descriptorCount)
        } else {
            DescriptorStore.remove(name)
        }
    }
}
