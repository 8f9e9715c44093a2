// Ends the service: runs the actions of Drain.

import Glibc

extension Server {
    /// Stops accepting, waits for what is open, and returns the exit status.
    func drain(isUrgent: Bool) -> Int32 {
        shared.beginDraining()
        notifier.stopping()
        for worker in workers { worker.mailbox.post(.drain) }
        closeListeners()
        if isUrgent { return cut(.stopped) }
        var drain = Drain(startedAt: .now(), timeout: options.drainTimeout)
        while true {
            let now = Instant.now()
            let open = shared.admission.count
            let until: Instant
            switch drain.next(now: now, open: open) {
            case .finished:
                notifier.status("Drained: every connection has ended")
                shared.log.line(.notice, .drainEnded, "drained: every connection has ended")
                return 0
            case .cut: return cut(.drainTimeout)
            case .report(let next):
                logProgress(open, seconds: now.nanoseconds(since: drain.startedAt) / 1_000_000_000)
                until = next
            case .wait(let next): until = next
            }
            tellProgress(open, now)
            let received = wait(until: notifier.isActive ? min(until, nextTold(now)) : until)
            if received.contains(where: Signals.ending.contains) { return cut(.stopped) }
        }
    }

    private func nextTold(_ now: Instant) -> Instant { now.advanced(by: .seconds(1)) }

    private func logProgress(_ open: Int, seconds: UInt64) {
        shared.log.line(
            .notice, seconds == 0 ? .drainBegan : .drainProgress,
            "draining: \(Status.count(open, "connection")) left"
                + (seconds == 0 ? "" : " after \(seconds) s"))
    }

    /// Shows the manager how far the drain is, and keeps it patient until the next time.
    private func tellProgress(_ open: Int, _ now: Instant) {
        guard notifier.isActive else { return }
        for worker in workers { worker.ping() }
        let oldest = workers.compactMap(\.oldestConnection).min()
        notifier.status(
            Status.draining(
                left: open, oldest: oldest.map { now.nanoseconds(since: $0) / 1_000_000_000 }))
        notifier.extendTimeout(.seconds(10))
    }

    /// Ends what is left, and returns the exit status.
    private func cut(_ reason: CloseReason) -> Int32 {
        let open = shared.admission.count
        for worker in workers { worker.mailbox.post(.cut(reason)) }
        let limit = Instant.now().advanced(by: .seconds(1))  // a worker may be stuck
        while shared.admission.count > 0 && Instant.now() < limit {
            _ = wait(until: Instant.now().advanced(by: .milliseconds(50)))
        }
        notifier.status("Ended: cut \(Status.count(open, "connection"))")
        let why = reason == .drainTimeout ? "the drain timeout is over" : "a second signal came"
        shared.log.line(
            .warning, .drainEnded, "\(why): cut \(Status.count(open, "connection"))")
        return open == 0 ? 0 : 1
    }

    /// Lets go of the listeners once no worker uses them: the port of our own then refuses, and
    /// clients of systemd's wait for the next start.
    private func closeListeners() {
        let limit = Instant.now().advanced(by: .seconds(1))
        while workers.contains(where: { !$0.hasStoppedListening }) && Instant.now() < limit {
            shared.notice.wait(milliseconds: 10)
        }
        for listener in listeners { listener.unlinkPath() }
        listeners.removeAll()
    }
}
