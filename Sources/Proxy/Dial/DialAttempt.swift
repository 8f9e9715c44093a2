// How a connection finds its target: which address next, for how long, and when to give up.
// Pure: the worker carries its actions out.

/// One connection's way to a target. It ends when an address connects, which the owner sees
/// first, or with `.fail`.
struct DialAttempt {
    enum Action: Equatable {
        /// Look up the target of that number, then call `resolved`; by that time at the latest,
        /// with no addresses.
        case resolve(Int, by: Instant)
        /// Connect, and call `failed` if that fails or is not done by then.
        case connect(SocketAddress, by: Instant)
        /// Do nothing until then, and call `start` again.
        case wait(Instant)
        /// Give up.
        case fail(ConnectFailure)
    }

    private let targets: [Target]
    let deadline: Instant
    /// True exactly when a refusal may mean that the target is still starting.
    private let patient: Bool
    private(set) var targetIndex = 0
    private var addresses: [SocketAddress] = []
    private var addressIndex = 0
    private var pause = Self.firstPause
    private var lastFailure = ConnectFailure.unresolved
    /// True exactly when this round met a refusal that time may heal.
    private var mayHeal = false

    init(targets: [Target], deadline: Instant, patient: Bool) {
        self.targets = targets
        self.deadline = deadline
        self.patient = patient
    }

    private static let firstPause = Duration.milliseconds(20)
    private static let longestPause = Duration.milliseconds(640)

    /// Begins with the first target, or begins again after `.wait`.
    mutating func start(now: Instant) -> Action {
        targetIndex = 0
        mayHeal = false
        return beginTarget(now: now)
    }

    /// The addresses of the target that was to be resolved; none if the look-up failed.
    mutating func resolved(_ addresses: [SocketAddress], now: Instant) -> Action {
        self.addresses = addresses
        addressIndex = 0
        if addresses.isEmpty { lastFailure = .unresolved }
        return next(now: now)
    }

    /// The address that was being connected failed.
    ///
    /// - Parameter full: true exactly when a unix target's backlog had no room, which passes.
    mutating func failed(_ failure: ConnectFailure, full: Bool = false, now: Instant) -> Action {
        lastFailure = failure
        if full || (patient && failure == .refused) { mayHeal = true }
        addressIndex += 1
        return next(now: now)
    }

    private mutating func beginTarget(now: Instant) -> Action {
        guard targetIndex < targets.count else { return .fail(lastFailure) }
        addresses = targets[targetIndex].fixed ?? []
        addressIndex = 0
        if targets[targetIndex].fixed == nil {
            return .resolve(targetIndex, by: attemptDeadline(now: now))
        }
        return next(now: now)
    }

    private mutating func next(now: Instant) -> Action {
        // What the last try met says more than that the time is over.
        if now >= deadline { return .fail(lastFailure) }
        if addressIndex < addresses.count {
            return .connect(addresses[addressIndex], by: attemptDeadline(now: now))
        }
        if targetIndex + 1 < targets.count {
            targetIndex += 1
            return beginTarget(now: now)
        }
        guard mayHeal else { return .fail(lastFailure) }
        let wakeUp = min(now.advanced(by: pause), deadline)
        pause = min(pause * 2, Self.longestPause)
        return .wait(wakeUp)
    }

    /// Shares the time that is left among what is still to be tried, at least two seconds each,
    /// so that one address that answers nothing does not use up the others' time.
    private func attemptDeadline(now: Instant) -> Instant {
        guard deadline.nanoseconds != .max else {
            return isLast ? deadline : now.advanced(by: .seconds(10))
        }
        let left = deadline.nanoseconds(since: now)
        let tries = UInt64(max(addresses.count - addressIndex, 1) + targets.count - 1 - targetIndex)
        let share = max(left / max(tries, 1), min(left, 2_000_000_000))
        return Instant(nanoseconds: now.nanoseconds + share)
    }

    private var isLast: Bool {
        addressIndex + 1 == addresses.count && targetIndex + 1 == targets.count
    }
}
