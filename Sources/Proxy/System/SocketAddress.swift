// Socket addresses as values: small, comparable, printable.

import Glibc

/// Where a socket is bound or connected.
enum SocketAddress: Hashable, Sendable {
    /// Address in host byte order.
    case ipv4(UInt32, port: UInt16)
    /// The sixteen bytes as two big-endian words.
    case ipv6(high: UInt64, low: UInt64, port: UInt16, scope: UInt32)
    case path(String)
    case abstract(String)  // without the leading NUL
    case unnamed  // the client's end of a unix socket

    var family: CInt {
        switch self {
        case .ipv4: AF_INET
        case .ipv6: AF_INET6
        default: AF_UNIX
        }
    }

    var isUnix: Bool { family == AF_UNIX }

    /// 0 for a unix socket.
    var port: UInt16 {
        switch self {
        case .ipv4(_, let port): port
        case .ipv6(_, _, let port, _): port
        default: 0
        }
    }

    /// Reads what a system call left in a sockaddr_storage of that many valid bytes.
    init(_ storage: inout sockaddr_storage, length: socklen_t) {
        let length = Int(length)
        self = unsafe withUnsafeBytes(of: &storage) { bytes in
            guard length >= 2 else { return .unnamed }
            switch unsafe CInt(bytes.loadUnaligned(as: sa_family_t.self)) {
            case AF_INET where length >= MemoryLayout<sockaddr_in>.size:
                let address = unsafe bytes.loadUnaligned(as: sockaddr_in.self)
                return .ipv4(
                    UInt32(bigEndian: address.sin_addr.s_addr),
                    port: UInt16(bigEndian: address.sin_port))
            case AF_INET6 where length >= MemoryLayout<sockaddr_in6>.size:
                let port = unsafe bytes.loadUnaligned(fromByteOffset: 2, as: UInt16.self)
                let high = unsafe bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
                let low = unsafe bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
                let scope = unsafe bytes.loadUnaligned(fromByteOffset: 24, as: UInt32.self)
                return .ipv6(
                    high: UInt64(bigEndian: high), low: UInt64(bigEndian: low),
                    port: UInt16(bigEndian: port), scope: scope)
            case AF_UNIX where length > 2:
                let name = unsafe bytes[2..<min(length, bytes.count)]
                if unsafe name.first == 0 {
                    return unsafe .abstract(String(decoding: name.dropFirst(), as: UTF8.self))
                }
                return unsafe .path(String(decoding: name.prefix { $0 != 0 }, as: UTF8.self))
            default: return .unnamed
            }
        }
    }

    /// Hands the address to a system call in the kernel's form.
    func withSockaddr<R>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
        var storage = sockaddr_storage()
        var length = 2
        unsafe withUnsafeMutableBytes(of: &storage) { bytes in
            unsafe bytes.storeBytes(of: sa_family_t(family), as: sa_family_t.self)
            switch self {
            case .ipv4(let address, let port):
                unsafe bytes.storeBytes(of: port.bigEndian, toByteOffset: 2, as: UInt16.self)
                unsafe bytes.storeBytes(of: address.bigEndian, toByteOffset: 4, as: UInt32.self)
                length = MemoryLayout<sockaddr_in>.size
            case .ipv6(let high, let low, let port, let scope):
                unsafe bytes.storeBytes(of: port.bigEndian, toByteOffset: 2, as: UInt16.self)
                unsafe bytes.storeBytes(of: high.bigEndian, toByteOffset: 8, as: UInt64.self)
                unsafe bytes.storeBytes(of: low.bigEndian, toByteOffset: 16, as: UInt64.self)
                unsafe bytes.storeBytes(of: scope, toByteOffset: 24, as: UInt32.self)
                length = MemoryLayout<sockaddr_in6>.size
            case .path(let path):
                length = unsafe Self.store(path, at: 2, in: bytes) + 1
            case .abstract(let name):
                length = unsafe Self.store(name, at: 3, in: bytes)
            case .unnamed: break
            }
        }
        return unsafe withUnsafePointer(to: &storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body($0, socklen_t(length))
            }
        }
    }

    /// The longest name that fits: sun_path without its final NUL, unix(7).
    static let longestPath = 107

    private static func store(
        _ name: String, at offset: Int, in bytes: UnsafeMutableRawBufferPointer
    ) -> Int {
        var end = offset
        for byte in name.utf8.prefix(longestPath) {
            unsafe bytes[end] = byte
            end += 1
        }
        return end
    }
}

extension SocketAddress: CustomStringConvertible {
    /// What a listener for both families makes of an IPv4 address, `::ffff:192.0.2.1`, as IPv4
    /// (RFC 4291, section 2.5.5.2): people and their queries know it by that name. Others unchanged.
    private var unmapped: SocketAddress {
        guard case .ipv6(0, let low, let port, _) = self, low >> 32 == 0xFFFF else { return self }
        return .ipv4(UInt32(truncatingIfNeeded: low), port: port)
    }

    /// As it is written on the command line: `192.0.2.1:80`, `[2001:db8::1]:80`, `/run/x`, `@x`.
    var description: String {
        switch unmapped {
        case .ipv4(_, let port): "\(host):\(port)"
        case .ipv6(_, _, let port, _): "[\(host)]:\(port)"
        case .path, .abstract, .unnamed: host
        }
    }

    /// The address without its port.
    var host: String {
        switch unmapped {
        case .ipv4(let address, _):
            return "\(address >> 24).\(address >> 16 & 255).\(address >> 8 & 255).\(address & 255)"
        case .ipv6(let high, let low, _, let scope):
            var address = in6_addr()
            unsafe withUnsafeMutableBytes(of: &address) { bytes in
                unsafe bytes.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
                unsafe bytes.storeBytes(of: low.bigEndian, toByteOffset: 8, as: UInt64.self)
            }
            var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
            guard
                unsafe inet_ntop(AF_INET6, &address, &text, socklen_t(INET6_ADDRSTRLEN)) != nil
            else { return "?" }
            let host = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
            return scope == 0 ? host : "\(host)%\(scope)"
        case .path(let path): return path
        case .abstract(let name): return "@\(name)"
        case .unnamed: return "unix"
        }
    }
}
