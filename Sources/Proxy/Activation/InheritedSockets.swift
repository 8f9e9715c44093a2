// The sockets that systemd (or inetd) passes to the process.

import CLinux
import CSystemd
import Glibc

/// Descriptors taken over at start, sorted by what they are.
struct InheritedSockets: ~Copyable {
    /// One descriptor with the name under which it was passed: by default its unit's name,
    /// systemd.socket(5).
    struct Passed: Sendable {
        let descriptor: CInt  // owned by whoever takes the list
        let name: String
    }

    /// Listening stream sockets for routes.
    private(set) var listeners: [Passed] = []
    /// Listening stream sockets for scrapes: those with the reserved name.
    private(set) var metrics: [Passed] = []
    /// A connected socket: `Accept=yes`, or standard input of an inetd-style service.
    private(set) var connection: Passed?
    /// What an earlier life of the process has left in systemd's store, by name.
    private(set) var ledgers: [InheritedLedger] = []
    /// One sentence for each descriptor that cannot be used, with the route that it would be.
    private(set) var refused: [(name: String, text: String)] = []
    /// True exactly when standard error was the connection, too, and leads nowhere now.
    private(set) var tookStandardError = false
    /// True exactly when anything was passed, usable or not.
    private(set) var isActivated = false

    /// True exactly when a client was passed that has left already.
    private(set) var clientHasLeft = false

    /// Takes the descriptors, and unsets the variables so that no child takes them again.
    ///
    /// - Parameter mayTakeStandardInput: false where the user has said where to listen: a parent
    ///   may have its own reasons for a socket there.
    init(mayTakeStandardInput: Bool) throws(StartError) {
        var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = nil
        let count = unsafe sd_listen_fds_with_names(1, &names)
        for index in 0..<max(count, 0) {
            let descriptor = SD_LISTEN_FDS_START + index
            var name = "unknown"
            if let text = unsafe names?[Int(index)] {
                name = unsafe String(cString: text)
                unsafe free(text)
            }
            take(Passed(descriptor: descriptor, name: name))
        }
        unsafe free(names)
        if count < 0 {
            let error = SystemError(call: "sd_listen_fds", code: -count)
            throw StartError(
                description: "the sockets that $LISTEN_FDS announces cannot be taken over: "
                    + error.message, code: error.code)
        }
        if listeners.count + metrics.count + refused.count > 0 || connection != nil
            || clientHasLeft
        {
            isActivated = true
        } else if mayTakeStandardInput, Self.isConnectedStream(STDIN_FILENO),
            let local = try? Socket.localAddress(STDIN_FILENO), local != .unnamed  // no socketpair
        {
            isActivated = true
            connection = takeStandardStreams().map { Passed(descriptor: $0, name: "stdin") }
        }
    }

    private mutating func take(_ passed: Passed) {
        let fd = passed.descriptor
        _ = linux_set_cloexec(fd)
        if passed.name.hasPrefix(DescriptorStore.namePrefix), takeStored(passed) { return }
        if sd_is_socket(fd, AF_UNSPEC, linux_SOCK_STREAM, 1) > 0 {
            if passed.name == Options.metricsSocketName {
                metrics.append(passed)
            } else {
                listeners.append(passed)
            }
        } else if Self.isConnectedStream(fd), connection == nil {
            connection = passed
        } else if Self.isDisconnectedStream(fd) {
            clientHasLeft = true
            _ = Glibc.close(fd)
        } else {
            let text =
                "socket \(quoted(passed.name)) is \(Self.kind(fd)): "
                + "expected a listening stream socket (ListenStream=); it is not used"
            refused.append((name: RouteTable.routeName(passed.name), text: text))
            _ = Glibc.close(fd)
        }
    }

    /// False for a socket that was only given such a name.
    private mutating func takeStored(_ passed: Passed) -> Bool {
        if sd_is_socket(passed.descriptor, AF_UNSPEC, linux_SOCK_STREAM, -1) > 0 { return false }
        if let index = ledgers.firstIndex(where: { $0.name == passed.name }) {
            ledgers[index].descriptors.append(passed.descriptor)
        } else {
            ledgers.append(InheritedLedger(name: passed.name, descriptors: [passed.descriptor]))
        }
        return true
    }

    /// Takes the connection that inetd puts in the place of the standard streams, and puts
    /// /dev/null in its: another copy would keep the connection open, and carry our log to the
    /// client.
    private mutating func takeStandardStreams() -> CInt? {
        let null = unsafe open("/dev/null", O_RDWR | O_CLOEXEC)
        let own = dup(STDIN_FILENO)
        guard null >= 0, own >= 0, let client = Self.inode(own) else { return nil }
        _ = linux_set_cloexec(own)
        for stream in [STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO]
        where Self.inode(stream) == client {
            dup2(null, stream)
            if stream == STDERR_FILENO { tookStandardError = true }
        }
        _ = Glibc.close(null)
        return own
    }

    private static func inode(_ fd: CInt) -> ino_t? {
        var status = stat()
        return unsafe fstat(fd, &status) == 0 ? status.st_ino : nil
    }

    private static func isConnectedStream(_ fd: CInt) -> Bool {
        sd_is_socket(fd, AF_UNSPEC, linux_SOCK_STREAM, 0) > 0
            && (try? Socket.peerAddress(fd)) != nil
    }

    /// True exactly when the socket was a client's that has reset it since.
    private static func isDisconnectedStream(_ fd: CInt) -> Bool {
        guard sd_is_socket(fd, AF_UNSPEC, linux_SOCK_STREAM, 0) > 0 else { return false }
        do throws(SystemError) {
            _ = try Socket.peerAddress(fd)
            return false
        } catch {
            // One that never was connected has no port of its own.
            return error.code == ENOTCONN && ((try? Socket.localAddress(fd))?.port ?? 0) != 0
        }
    }

    /// What a descriptor is, for a person.
    private static func kind(_ fd: CInt) -> String {
        if sd_is_fifo(fd, nil) > 0 { return "a FIFO" }
        if sd_is_mq(fd, nil) > 0 { return "a message queue" }
        if sd_is_socket(fd, AF_UNSPEC, linux_SOCK_DGRAM, -1) > 0 {
            return "a datagram socket"
        }
        if sd_is_socket(fd, AF_UNSPEC, linux_SOCK_SEQPACKET, -1) > 0 {
            return "a sequential-packet socket"
        }
        if sd_is_socket(fd, AF_UNSPEC, 0, -1) > 0 { return "a socket that does not listen" }
        return "not a socket"
    }
}
