// The two ends of a planned restart: this life of the process hands its connections over, and the
// next goes on with them.

import Glibc

extension Server {
    /// systemd's store, if connections are to be preserved and it has places.
    static func store(
        _ options: Options, holding ledgers: [InheritedLedger], openLimit: Int
    ) -> DescriptorStore? {
        guard options.preserve else { return nil }
        let places = DescriptorStore.places()
        guard places > 0 else { return nil }
        return DescriptorStore(
            limit: places,
            names: ledgers.flatMap { ledger in ledger.descriptors.map { _ in ledger.name } },
            openLimit: openLimit)
    }

    // MARK: Resuming

    /// Shares the ledgers out, and waits until every connection in them goes on.
    func resume(_ ledgers: [InheritedLedger]) throws(StartError) {
        if ledgers.isEmpty { return }
        // A pipe may carry the bytes of a connection in another ledger of its worker.
        var shares: [[InheritedLedger]] = []
        var withPipes: [UInt64: [InheritedLedger]] = [:]
        var formerWorkers: Set<UInt64> = []
        for ledger in ledgers {
            let summary = LedgerSummary(of: ledger)
            formerWorkers.insert(summary.worker)
            if summary.hasPipes {
                withPipes[summary.worker, default: []].append(ledger)
            } else {
                shares.append([ledger])
            }
        }
        shares += withPipes.values
        let wanted = max(formerWorkers.count, shares.count / Self.sharesPerWorker)
        while workers.count < min(wanted, shares.count, mostWorkers) {
            do throws(StartError) { try startWorker() } catch { break }
        }
        var loads = [[InheritedLedger]](repeating: [], count: workers.count)
        for (index, share) in shares.sorted(by: { $0.count > $1.count }).enumerated() {
            loads[index % loads.count] += share
        }
        for (worker, load) in zip(workers, loads) where !load.isEmpty { worker.resume(load) }
        while workers.contains(where: { !$0.hasResumed }) {
            shared.notice.wait(milliseconds: 100)
        }
        shared.resumption.withLock { $0.ready(at: .now()) }
    }

    /// So many ledgers are a thousand connections or more, and worth a thread.
    private static let sharesPerWorker = 2

    /// Says what came of an earlier life's connections, and whether those of this life have one
    /// after it.
    func sayResumed() {
        let resumption = shared.resumption.withLock { $0 }
        for name in resumption.strays {
            shared.log.line(
                .warning, .ledgerRefused, "what systemd kept as \(quoted(name)) is no ledger")
        }
        if !ledgers.isEmpty {
            shared.log.line(
                resumption.lostInAll == 0 ? .notice : .warning, .connectionsResumed,
                resumption.sentence,
                fields: [
                    (name: "PROXY_CAUSE", value: resumption.cause.label),
                    (name: "PROXY_RESUMED", value: "\(resumption.resumed)"),
                    (name: "PROXY_LOST", value: "\(resumption.lostInAll)"),
                    (name: "PROXY_GAP_USEC", value: "\(resumption.gap / 1000)"),
                ])
        }
        // With Accept=yes each process has one connection, and would say it for each.
        if shared.store == nil && options.preserve && !listeners.isEmpty {
            shared.log.line(
                .info, .preservationOff,
                "connections end with this process: systemd stores no descriptors for it; "
                    + "see FileDescriptorStoreMax= in systemd.service(5)")
        }
    }

    // MARK: Handing over

    /// Has every connection entered in a ledger, and ends: the next start goes on with them.
    ///
    /// - Returns: the exit status.
    func handOver() -> Int32 {
        notifier.handingOver(shared.admission.count)
        for worker in workers { worker.mailbox.post(.handOver) }
        // What a worker that is stuck has entered before is kept all the same.
        let limit = Instant.now().advanced(by: .seconds(1))
        while workers.contains(where: { !$0.hasHandedOver }) && Instant.now() < limit {
            shared.notice.wait(milliseconds: 10)
        }
        let left = Status.count(shared.admission.count, "connection")
        shared.log.line(.notice, .handoverBegan, "handing over \(left) to the next start")
        shared.store?.settle()
        return 0
    }
}
