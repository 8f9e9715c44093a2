// Signals, as events of the supervisor's poll: no handler runs anywhere.

import CLinux
import Glibc

struct Signals: ~Copyable {
    /// What the supervisor acts on.
    static let handled = [SIGTERM, SIGINT, SIGHUP, SIGUSR2]

    /// Those that ask the proxy to end. SIGUSR2 is for a restart.
    static let ending = [SIGTERM, SIGINT, SIGUSR2]

    private let descriptor: FileDescriptor

    /// Has a restart that comes during the start wait until the connections of the last one go on.
    /// To be called first of all.
    static func holdRestart() {
        _ = unsafe linux_block_signals([SIGUSR2], 1)
    }

    /// Blocks the signals for the thread and those that it will start, so to be called before
    /// any is started; and ignores SIGPIPE, which splice(2) to a closed socket raises.
    init() throws(SystemError) {
        _ = signal(SIGPIPE, SIG_IGN)
        _ = unsafe linux_block_signals(Self.handled, CInt(Self.handled.count))
        descriptor = FileDescriptor(
            owning: try retrying("signalfd") {
                unsafe linux_signalfd(Self.handled, CInt(Self.handled.count))
            })
    }

    /// Waits for a signal or for the notice, at most so long (negative: for ever).
    ///
    /// - Returns: the signals that came, in order.
    func wait(orFor notice: borrowing EventCounter, milliseconds: CInt) -> [CInt] {
        var entries = [
            pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0),
            pollfd(fd: notice.descriptor.rawValue, events: Int16(POLLIN), revents: 0),
        ]
        _ = unsafe poll(&entries, 2, milliseconds)
        if entries[1].revents != 0 { notice.clear() }
        var signals: [CInt] = []
        var information = signalfd_siginfo()
        while unsafe read(descriptor.rawValue, &information, MemoryLayout<signalfd_siginfo>.size)
            == MemoryLayout<signalfd_siginfo>.size
        {
            signals.append(CInt(truncatingIfNeeded: information.ssi_signo))
        }
        return signals
    }
}
