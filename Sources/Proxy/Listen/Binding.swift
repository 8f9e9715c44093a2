// Opens listening sockets of our own, where systemd passes none.

import Glibc

/// Why the proxy could not start: one line for its user.
public struct StartError: Error, CustomStringConvertible {
    /// The line.
    public let description: String
    /// The errno behind it; 0 if there is none.
    public let code: CInt

    /// A reason in one line.
    public init(description: String, code: CInt = 0) {
        self.description = description
        self.code = code
    }
}

enum Binding {
    /// Binds and listens on every address that an endpoint stands for, and hands each socket on.
    ///
    /// - Parameter option: named in the error.
    static func open(
        _ endpoint: Endpoint, option: String,
        _ use: (consuming FileDescriptor) throws(StartError) -> Void
    ) throws(StartError) {
        var bound = 0
        var port: UInt16 = 0
        var refusal: SystemError?
        var sockets: [CInt] = []
        for var address in try addresses(of: endpoint, option: option) {
            // With port 0 the kernel chooses once, and the other addresses follow.
            if address.port == 0 { address = address.withPort(port) }
            do throws(SystemError) {
                let socket = try listen(on: address)
                port = try Socket.localAddress(socket.rawValue).port
                bound += 1
                sockets.append(socket.release())
            } catch {
                if refusal == nil || error.code != EADDRNOTAVAIL { refusal = error }
                // A host without IPv6 still has its IPv4 addresses; anything else is an error.
                if error.code != EADDRNOTAVAIL && error.code != EAFNOSUPPORT { break }
            }
        }
        defer { for socket in sockets { _ = Glibc.close(socket) } }
        if bound == 0 || (refusal?.code == EADDRINUSE), let refusal {
            throw StartError(
                description: "\(option) \(quoted(endpoint.description)): cannot listen: "
                    + refusal.message + advice(refusal.code),
                code: refusal.code)
        }
        while let socket = sockets.popLast() { try use(FileDescriptor(owning: socket)) }
    }

    private static func addresses(
        of endpoint: Endpoint, option: String
    ) throws(StartError) -> [SocketAddress] {
        if let fixed = endpoint.fixedListenAddresses { return fixed }
        guard case .host(let host, let port) = endpoint else { return [] }
        do throws(Resolver.LookUpError) {
            return try Resolver.addresses(host: host, port: port)
        } catch {
            throw StartError(
                description: "\(option) \(quoted(endpoint.description)): "
                    + "cannot find the host's address: \(error.description)")
        }
    }

    /// `[::]` listens on IPv4 as well; without IPv6 in the kernel, 0.0.0.0 does.
    private static func listen(on address: SocketAddress) throws(SystemError) -> FileDescriptor {
        do throws(SystemError) {
            return try Socket.listen(on: address)
        } catch {
            guard case .ipv6(0, 0, let port, _) = address,
                error.code == EAFNOSUPPORT || error.code == EADDRNOTAVAIL
            else { throw error }
            return try Socket.listen(on: .ipv4(0, port: port))
        }
    }

    private static func advice(_ code: CInt) -> String {
        switch code {
        case EADDRINUSE: "; another program listens there"
        case EACCES: "; ports below 1024 and other people's folders need the privilege"
        case EADDRNOTAVAIL: "; this host has no such address"
        default: ""
        }
    }
}

extension SocketAddress {
    func withPort(_ port: UInt16) -> SocketAddress {
        switch self {
        case .ipv4(let address, _): .ipv4(address, port: port)
        case .ipv6(let high, let low, _, let scope):
            .ipv6(high: high, low: low, port: port, scope: scope)
        default: self
        }
    }
}
