// What the service manager is told: sd_notify(3). Only the supervisor's thread speaks; what is to
// be stored goes another way, see DescriptorStore.

import CSystemd
import Glibc

/// Speaks to the service manager, and is silent where there is none.
struct Notifier {
    /// True exactly when somebody listens: $NOTIFY_SOCKET is set, be it a path or abstract.
    let isActive: Bool
    private var lastStatus = ""

    init() { isActive = unsafe getenv("NOTIFY_SOCKET") != nil }

    /// Every listener accepts.
    func ready() { send("READY=1") }

    /// New routes are being read; `ready` is to follow.
    func reloading() {
        send("RELOADING=1\nMONOTONIC_USEC=\(Instant.now().nanoseconds / 1000)")
    }

    func stopping() { send("STOPPING=1") }

    /// The process ends, and its connections wait for the next.
    mutating func handingOver(_ count: Int) {
        stopping()
        status("Handing over \(Status.count(count, "connection")) to the next start")
    }

    /// A sentence for `systemctl status`; repeated only when it changes.
    mutating func status(_ text: String) {
        guard isActive, text != lastStatus else { return }
        lastStatus = text
        send("STATUS=\(text)")
    }

    /// The drain goes on: the manager is not to lose patience before that time is over.
    func extendTimeout(_ span: Duration) {
        send("EXTEND_TIMEOUT_USEC=\(span.nanoseconds / 1000)")
    }

    /// Every worker is alive.
    func watchdog() { send("WATCHDOG=1") }

    /// The start failed for that reason, and the process is to end with that status.
    func failed(_ message: String, code: CInt, exitStatus: Int32) {
        send(
            "STATUS=\(oneLine(message))\nEXIT_STATUS=\(exitStatus)"
                + (code == 0 ? "" : "\nERRNO=\(code)"))
    }

    private func send(_ message: String) {
        if isActive { _ = unsafe sd_notify(0, message) }
    }

    /// How often the manager wants a sign of life, $WATCHDOG_USEC; nil if it wants none.
    static func watchdogInterval() -> Duration? {
        var microseconds: UInt64 = 0
        guard unsafe sd_watchdog_enabled(0, &microseconds) > 0 else { return nil }
        return .microseconds(Int64(clamping: microseconds))
    }
}

/// What follows a start that failed. To be made before anything else: what systemd passes is
/// told by the environment, once.
public struct StartFailure: Sendable {
    /// True exactly when systemd holds connections of an earlier life of the process.
    private let holdsConnections: Bool

    /// sysexits(3): a failure that somebody may mend. The service's RestartPreventExitStatus= does
    /// not have it.
    private static let temporaryFailure: Int32 = 75

    /// Looks at $LISTEN_FDNAMES, sd_listen_fds(3).
    public init() {
        let names = unsafe getenv("LISTEN_FDNAMES").map { unsafe String(cString: $0) } ?? ""
        holdsConnections = names.split(separator: ":").contains {
            $0.hasPrefix(DescriptorStore.namePrefix)
        }
    }

    /// Tells the service manager why. Where one would start the proxy again at once, waits a
    /// second first: a mistake that stays must not keep a CPU busy.
    ///
    /// - Returns: the status to exit with: the given one, or that of a temporary failure where
    ///   connections wait for a process. They go on once a start succeeds.
    public func tellManager(_ error: StartError, exitStatus: Int32) -> Int32 {
        let notifier = Notifier()
        guard notifier.isActive else { return exitStatus }
        let status = holdsConnections ? Self.temporaryFailure : exitStatus
        notifier.failed(error.description, code: error.code, exitStatus: status)
        sleep(1)
        return status
    }
}
