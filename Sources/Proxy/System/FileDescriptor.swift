// Ownership of descriptors: one owner each, closed when the owner goes.

import CLinux
import Glibc

/// Sole owner of one descriptor: leaving scope closes it, and nothing else calls close(2).
struct FileDescriptor: ~Copyable, Sendable {
    let rawValue: CInt  // at least 0; borrow it for one call, never store it

    init(owning rawValue: CInt) {
        precondition(rawValue >= 0)
        self.rawValue = rawValue
    }

    deinit {  // never retried: on Linux EINTR has already freed the number
        if linux_close(rawValue) == -1 { assert(errno != EBADF, "closed \(rawValue) twice") }
    }

    /// Gives up ownership without closing.
    consuming func release() -> CInt {
        let value = rawValue
        discard self
        return value
    }
}

/// A counter that wakes a poller: eventfd(2).
struct EventCounter: ~Copyable, Sendable {
    let descriptor: FileDescriptor

    init() throws(SystemError) {
        descriptor = FileDescriptor(owning: try retrying("eventfd") { linux_eventfd() })
    }

    func signal() { _ = eventfd_write(descriptor.rawValue, 1) }

    func clear() {
        var value: eventfd_t = 0
        _ = unsafe eventfd_read(descriptor.rawValue, &value)
    }

    /// Sleeps until signalled, at most so long. A negative number means for ever.
    func wait(milliseconds: CInt) {
        var entry = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
        _ = unsafe poll(&entry, 1, milliseconds)
        clear()
    }
}
