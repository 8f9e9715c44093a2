// A listening socket, shared by the workers.

import CLinux

/// A socket that accepts connections for one route.
final class Listener: Sendable {
    let socket: FileDescriptor
    let address: SocketAddress
    /// The row of the route whose connections come in here.
    let routeIndex: Int
    /// True exactly when the socket is systemd's: it outlives the process, and so must its path.
    let isInherited: Bool

    init(
        _ socket: consuming FileDescriptor, routeIndex: Int, isInherited: Bool
    ) throws(SystemError) {
        let address = try Socket.localAddress(socket.rawValue)
        let fd = socket.rawValue
        _ = try retrying("fcntl") { linux_set_nonblocking(fd) }
        if !address.isUnix { Socket.prepareForRelay(fd) }
        self.socket = socket
        self.address = address
        self.routeIndex = routeIndex
        self.isInherited = isInherited
    }

    /// Removes the path of a unix socket that is ours.
    func unlinkPath() {
        if !isInherited, case .path(let path) = address { unlinkFile(path) }
    }
}
