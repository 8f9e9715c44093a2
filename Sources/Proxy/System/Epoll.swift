// epoll(7): which descriptors are ready.

import CLinux
import Glibc

/// What epoll reports, and what one asks it for. CLinux.c holds the bits to the kernel's.
struct Readiness: OptionSet, Sendable {
    let rawValue: UInt32

    static let readable = Readiness(rawValue: 0x001)  // EPOLLIN
    static let urgent = Readiness(rawValue: 0x002)  // EPOLLPRI: out-of-band data
    static let writable = Readiness(rawValue: 0x004)  // EPOLLOUT
    static let error = Readiness(rawValue: 0x008)  // EPOLLERR
    static let hangup = Readiness(rawValue: 0x010)  // EPOLLHUP: both directions are shut
    static let peerFinished = Readiness(rawValue: 0x2000)  // EPOLLRDHUP: a FIN has come
    static let exclusive = Readiness(rawValue: 1 << 28)  // EPOLLEXCLUSIVE: wake one poller
    static let edge = Readiness(rawValue: 1 << 31)  // EPOLLET
}

/// One epoll instance.
struct Epoll: ~Copyable, Sendable {
    private let descriptor: FileDescriptor

    init() throws(SystemError) {
        descriptor = FileDescriptor(owning: try retrying("epoll_create") { linux_epoll_create() })
    }

    func add(_ fd: CInt, _ interest: Readiness, token: UInt64) throws(SystemError) {
        _ = try retrying("epoll_ctl") {
            linux_epoll_add(descriptor.rawValue, fd, interest.rawValue, token)
        }
    }

    /// Errors other than ENOMEM mean a descriptor that is not registered: a mistake of ours.
    func modify(_ fd: CInt, _ interest: Readiness, token: UInt64) throws(SystemError) {
        _ = try retrying("epoll_ctl") {
            linux_epoll_modify(descriptor.rawValue, fd, interest.rawValue, token)
        }
    }

    func remove(_ fd: CInt) { _ = linux_epoll_delete(descriptor.rawValue, fd) }

    /// Waits for events.
    ///
    /// - Parameter milliseconds: at most so long; negative: for ever.
    /// - Returns: how many entries of the buffer were filled; 0 after a signal or the time.
    func wait(into events: UnsafeMutableBufferPointer<epoll_event>, milliseconds: CInt) -> Int {
        let count = unsafe linux_epoll_wait(
            descriptor.rawValue, events.baseAddress, CInt(events.count), milliseconds)
        return Int(max(count, 0))
    }
}
