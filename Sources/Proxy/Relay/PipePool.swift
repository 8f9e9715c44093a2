// The pipes of one worker: made when they are needed, kept when they are empty.

import Glibc

struct PipePool {
    private var idle: [Pipe] = []
    private let budget: DescriptorBudget
    private let counters: WorkerCounters
    /// After the kernel has refused a good pipe, when to ask it again.
    private var retryAt = Instant(nanoseconds: 0)

    /// How many empty pipes are kept; making one anew costs some 3 µs.
    private let keptIdle: Int

    /// - Parameter workers: how many share the budget at most.
    init(budget: DescriptorBudget, workers: Int, counters: WorkerCounters) {
        self.budget = budget
        keptIdle = max(1, min(32, budget.total / (16 * workers)))
        self.counters = counters
    }

    /// Sees to it that the next `borrow` finds a pipe.
    ///
    /// - Returns: false where the kernel gives none that is worth having: no descriptors are
    ///   left, or this user's share of pipe memory is spent.
    mutating func prepare(now: Instant) -> Bool {
        if !idle.isEmpty { return true }
        if now < retryAt { return false }
        if let pipe = make() {
            idle.append(pipe)
            return true
        }
        retryAt = now.advanced(by: .milliseconds(250))
        return false
    }

    /// A pipe for one direction; nil unless `prepare` has just said yes.
    mutating func borrow() -> Pipe? { idle.popLast() }

    /// Takes an empty pipe back. Those beyond what a calm worker needs are closed.
    mutating func giveBack(_ pipe: Pipe) {
        if idle.count < keptIdle {
            idle.append(pipe)
        } else {
            discard(pipe)
        }
    }

    /// Gives up the pipes that are not in use: connections need the descriptors more.
    mutating func trim() {
        while let pipe = idle.popLast() { discard(pipe) }
    }

    /// Takes a pipe back that still holds bytes, of a connection that was cut: nobody may read
    /// them now, so the pipe goes.
    mutating func discard(_ pipe: Pipe) {
        pipe.ledger?.forget(pipe)
        budget.giveBack(2)
        counters.pipes.subtract(1)
    }

    /// Counts a pipe of an earlier life of the process, whether there is room for it or not.
    mutating func adopt(_ pipe: Pipe) {
        budget.charge(2)
        counters.pipes.add(1)
    }

    private func make() -> Pipe? {
        guard budget.take(2) else { return nil }
        guard let pipe = try? Pipe(), pipe.capacity >= Pipe.usefulCapacity else {
            budget.giveBack(2)
            counters.pipesRefused.add(1)
            return nil
        }
        counters.pipes.add(1)
        return pipe
    }
}
