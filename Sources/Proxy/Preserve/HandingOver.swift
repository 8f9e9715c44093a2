// The two ends of a planned restart: this life of the process hands its connections over, and the
// next goes on with them.

import Glibc

extension Server {
    /// systemd's store, if connections are to be preserved and it has places.
    static func store(_ options: Options, holding ledgers: [InheritedLedger]) -> DescriptorStore? {
        guard options.preserve else { return nil }
        let places = DescriptorStore.places()
        guard places > 0 else { return nil }
        return DescriptorStore(
            limit: places,
            names: ledgers.flatMap { ledger in ledger.descriptors.map { _ in ledger.name } })
    }

    // MARK: Resuming

    /// Shares the ledgers out, those of one former worker together, and waits until every
    /// connection in them goes on.
    func resume(_ ledgers: [InheritedLedger]) throws(StartError) {
        if ledgers.isEmpty { return }
        var shares: [UInt64: [InheritedLedger]] = [:]
        for ledger in ledgers { shares[ledger.worker, default: []].append(ledger) }
        while workers.count < min(shares.count, mostWorkers) {
            do throws(StartError) { try startWorker() } catch { break }
        }
        // Pipes and connections of one share know each other by their numbers.
        var loads = [[InheritedLedger]](repeating: [], count: workers.count)
        for (index, share) in shares.sorted(by: { $0.key < $1.key }).enumerated() {
            loads[index % loads.count] += share.value
        }
        for (worker, load) in zip(workers, loads) where !load.isEmpty { worker.resume(load) }
        while workers.contains(where: { !$0.hasResumed }) {
            shared.notice.wait(milliseconds: 100)
        }
        shared.resumption.withLock { $0.ready(at: .now()) }
    }

    /// Says what came of an earlier life's connections, and whether those of this life have one
    /// after it.
    func sayResumed() {
        let resumption = shared.resumption.withLock { $0 }
        for name in resumption.strays {
            shared.log.line(
                .warning, .connectionsResumed, "what systemd kept as \(quoted(name)) is no ledger")
        }
        if resumption.cause != nil {
            shared.log.line(
                resumption.lostInAll == 0 ? .notice : .warning, .connectionsResumed,
                resumption.sentence,
                fields: [
                    (name: "PROXY_CAUSE", value: resumption.cause?.label ?? ""),
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
        let open = shared.admission.count
        notifier.handingOver(open)
        for worker in workers { worker.mailbox.post(.handOver) }
        // What a worker that is stuck has entered before is kept all the same.
        let limit = Instant.now().advanced(by: .seconds(1))
        while workers.contains(where: { !$0.hasHandedOver }) && Instant.now() < limit {
            shared.notice.wait(milliseconds: 10)
        }
        shared.log.line(
            .notice, .handoverBegan,
            "handing over \(Status.count(open, "connection")) to the next start")
        shared.store?.settle()
        return 0
    }
}
