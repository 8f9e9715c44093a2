// Stream sockets: every call that the proxy makes on one.

import CLinux
import Glibc

enum Socket {
    // MARK: Making

    /// A listening socket, bound by ourselves.
    ///
    /// A unix path that nobody listens on any more is taken over; one that answers is EADDRINUSE.
    static func listen(
        on address: SocketAddress, backlog: CInt = 4096
    ) throws(SystemError) -> FileDescriptor {
        let socket = try make(family: address.family)
        switch address {
        case .ipv4, .ipv6: try set(socket.rawValue, SOL_SOCKET, SO_REUSEADDR, 1)
        case .path(let path): removeStale(path)
        default: break
        }
        if case .ipv6(let high, let low, _, _) = address {
            // [::] means every address of the host, as it does to systemd and to Go.
            try set(socket.rawValue, CInt(IPPROTO_IPV6), IPV6_V6ONLY, high | low == 0 ? 0 : 1)
        }
        _ = try retrying("bind") {
            unsafe address.withSockaddr { unsafe Glibc.bind(socket.rawValue, $0, $1) }
        }
        _ = try retrying("listen") { Glibc.listen(socket.rawValue, backlog) }
        return socket
    }

    /// A non-blocking stream socket of that family.
    static func make(family: CInt) throws(SystemError) -> FileDescriptor {
        FileDescriptor(owning: try retrying("socket") { linux_stream_socket(family) })
    }

    /// Unlinks the path of a unix socket on which nobody listens.
    private static func removeStale(_ path: String) {
        var status = stat()
        guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK,
            let probe = try? make(family: AF_UNIX)
        else { return }
        if connect(probe.rawValue, to: .path(path)) == ECONNREFUSED { unlinkFile(path) }
    }

    // MARK: Accepting and connecting

    /// Takes one connection from a listener's backlog.
    ///
    /// - Throws: EAGAIN when there is none; for the others see accept(2).
    static func accept(_ listener: CInt) throws(SystemError) -> (CInt, SocketAddress) {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let fd = try retrying("accept") {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe linux_accept4(listener, $0, &length)
                }
            }
        }
        return (fd, SocketAddress(&storage, length: length))
    }

    /// Starts to connect. Returns 0, or the errno: EINPROGRESS most often.
    static func connect(_ fd: CInt, to address: SocketAddress) -> CInt {
        while true {
            let result = unsafe address.withSockaddr { unsafe linux_connect(fd, $0, $1) }
            if result == 0 { return 0 }
            let code = errno
            if code != EINTR { return code }
        }
    }

    // MARK: Moving bytes

    /// - Returns: `.bytes(1...limit)`, `.endOfStream` at FIN.
    @inline(__always)
    static func receive(
        _ fd: CInt, into buffer: UnsafeMutableRawPointer, limit: Int, flags: CInt = 0
    ) -> Transfer {
        Transfer.of { unsafe linux_recv(fd, buffer, limit, flags) }
    }

    @inline(__always)
    static func send(_ fd: CInt, from buffer: UnsafeMutableRawPointer, count: Int) -> Transfer {
        Transfer.of { unsafe linux_send(fd, buffer, count) }
    }

    // MARK: Ending

    /// Passes an end of stream on: FIN goes out after all that was sent.
    static func finish(_ fd: CInt) { _ = shutdown(fd, CInt(SHUT_WR)) }

    /// Resets at once, whoever holds copies. A unix socket knows no reset: its peer sees the end.
    static func reset(_ fd: CInt) {
        if linux_disconnect(fd) == -1 { _ = shutdown(fd, CInt(SHUT_RDWR)) }
    }

    /// Makes the close that follows send a reset, and drop what has not been sent (tcp(7)).
    static func resetOnClose(_ fd: CInt) {
        var option = linger(l_onoff: 1, l_linger: 0)
        _ = unsafe setsockopt(
            fd, SOL_SOCKET, SO_LINGER, &option, socklen_t(MemoryLayout<linger>.size))
    }

    /// Takes the error that waits on the socket; 0 if there is none.
    static func takeError(_ fd: CInt) -> CInt {
        (try? get(fd, SOL_SOCKET, SO_ERROR)) ?? 0
    }

    /// Bytes sent that the peer has not acknowledged or, on a unix socket, read: SIOCOUTQ of
    /// tcp(7) and unix(7).
    static func unsent(_ fd: CInt) -> CInt { max(linux_unsent(fd), 0) }

    /// True exactly when nothing can be sent or received any more, poll(2).
    static func isHungUp(_ fd: CInt) -> Bool {
        var entry = pollfd(fd: fd, events: 0, revents: 0)
        return unsafe poll(&entry, 1, 0) == 1 && entry.revents & Int16(POLLHUP | POLLERR) != 0
    }

    /// A number that this socket and its copies have, and no other: SO_COOKIE of socket(7).
    static func cookie(_ fd: CInt) -> UInt64? {
        var value: UInt64 = 0
        var length = socklen_t(MemoryLayout<UInt64>.size)
        return unsafe getsockopt(fd, SOL_SOCKET, SO_COOKIE, &value, &length) == 0 ? value : nil
    }

    // MARK: Options

    static func set(_ fd: CInt, _ level: CInt, _ name: CInt, _ value: CInt) throws(SystemError) {
        var value = value
        _ = try retrying("setsockopt") {
            unsafe setsockopt(fd, level, name, &value, socklen_t(MemoryLayout<CInt>.size))
        }
    }

    static func get(_ fd: CInt, _ level: CInt, _ name: CInt) throws(SystemError) -> CInt {
        var value: CInt = 0
        var length = socklen_t(MemoryLayout<CInt>.size)
        _ = try retrying("getsockopt") {
            unsafe getsockopt(fd, level, name, &value, &length)
        }
        return value
    }

    /// What every relayed TCP socket needs from its first byte on: no Nagle delay, and an urgent
    /// byte left in the stream, where a relay can pass it on (RFC 6093). Accepted sockets inherit
    /// both from their listener.
    static func prepareForRelay(_ fd: CInt) {
        try? set(fd, CInt(IPPROTO_TCP), TCP_NODELAY, 1)
        try? set(fd, SOL_SOCKET, SO_OOBINLINE, 1)
    }

    /// Finds out that an idle peer is gone: the first probe after a minute, given up after eight
    /// more at fifteen seconds each.
    static func keepAlive(_ fd: CInt) {
        try? set(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
        try? set(fd, CInt(IPPROTO_TCP), TCP_KEEPIDLE, 60)
        try? set(fd, CInt(IPPROTO_TCP), TCP_KEEPINTVL, 15)
        try? set(fd, CInt(IPPROTO_TCP), TCP_KEEPCNT, 8)
    }

    /// Bounds how long a half-closed connection waits for its last bytes to be acknowledged.
    /// Not set while both directions are open: it would also cut off a reader that merely pauses
    /// (a zero window counts as unacknowledged, tcp(7)).
    static func boundUnacknowledged(_ fd: CInt) {
        try? set(fd, CInt(IPPROTO_TCP), TCP_USER_TIMEOUT, 15 * 60 * 1000)
    }

    /// The address to which a socket is bound.
    static func localAddress(_ fd: CInt) throws(SystemError) -> SocketAddress {
        try unsafe address("getsockname") { unsafe getsockname(fd, $0, $1) }
    }

    /// The address of the peer. Throws ENOTCONN where there is none.
    static func peerAddress(_ fd: CInt) throws(SystemError) -> SocketAddress {
        try unsafe address("getpeername") { unsafe getpeername(fd, $0, $1) }
    }

    private static func address(
        _ call: StaticString,
        _ body: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt
    ) throws(SystemError) -> SocketAddress {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        _ = try retrying(call) {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe body($0, &length)
                }
            }
        }
        return SocketAddress(&storage, length: length)
    }
}
