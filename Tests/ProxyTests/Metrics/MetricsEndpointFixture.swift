import Glibc
import NIOCore
import Testing

@testable import Proxy

/// A listening loopback socket.
///
/// - Parameter port: 0 for one that the kernel chooses.
func listenOnLoopback(port: UInt16 = 0) throws -> (descriptor: CInt, port: UInt16) {
    let descriptor = socket(AF_INET, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    try #require(descriptor >= 0)
    var address = loopback(port)
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
            unsafe bind(descriptor, pointer, length) | getsockname(descriptor, pointer, &length)
        }
    }
    try #require(result == 0)
    try #require(listen(descriptor, 128) == 0)
    return (descriptor, UInt16(bigEndian: address.sin_port))
}

private func loopback(_ port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    address.sin_port = port.bigEndian
    return address
}

func unixAddress(_ path: String) -> sockaddr_un {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    return address
}

/// Calls `body` with a running endpoint, whose page is `page`, and stops it.
func withEndpoint(
    _ limits: MetricsEndpoint.Limits = MetricsEndpoint.Limits(),
    page: @escaping @Sendable (ExpositionFormat) -> String = { _ in "up 1\n" },
    _ body: (_ port: UInt16, _ scrapes: ScrapeCounts) throws -> Void
) throws {
    let (descriptor, port) = try listenOnLoopback()
    let scrapes = ScrapeCounts()
    let endpoint = MetricsEndpoint(
        listeningOn: [descriptor], limits: limits, scrapes: scrapes, page: page)
    try endpoint.start()
    defer { endpoint.stop() }
    try body(port, scrapes)
}

extension MetricsEndpoint.Limits {
    /// Long limits, so that a slow machine does not hit one that the test is not about.
    static func patient(_ change: (inout Self) -> Void = { _ in }) -> Self {
        var limits = Self()
        limits.requestTimeout = .seconds(30)
        limits.idleTimeout = .seconds(30)
        limits.answerTimeout = .seconds(30)
        change(&limits)
        return limits
    }
}

/// Waits until `condition` holds, for at most ten seconds.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    let deadline = NIODeadline.now() + .seconds(10)
    while NIODeadline.now() < deadline {
        if try condition() { return true }
        usleep(2000)
    }
    return false
}

/// A client that blocks, for at most ten seconds per call.
final class HTTPTestClient {
    struct Failure: Error {
        let call: String
        let code: CInt
        /// What had come before.
        var received = ""
    }

    struct Response: Equatable {
        var status: Int
        var headers: [String: String]  // names in lower case
        var body: String
    }

    let descriptor: CInt
    private var buffered: [UInt8] = []

    convenience init(_ port: UInt16, receiveBuffer: CInt? = nil) throws {
        try self.init(family: AF_INET, receiveBuffer: receiveBuffer)
        try connect(to: port)
    }

    convenience init(path: String) throws {
        try self.init(family: AF_UNIX)
        try connect(to: unixAddress(path))
    }

    /// Not connected yet.
    init(family: CInt = AF_INET, receiveBuffer: CInt? = nil) throws {
        descriptor = socket(family, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Failure(call: "socket", code: errno) }
        var patience = timeval(tv_sec: 10, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, size)
        _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &patience, size)
        if var receiveBuffer {
            _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &receiveBuffer, 4)
        }
    }

    func connect(to port: UInt16) throws { try connect(to: loopback(port)) }

    private func connect<Address>(to address: Address) throws {
        var address = address
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<Address>.size))
            }
        }
        guard result == 0 else { throw Failure(call: "connect", code: errno) }
    }

    deinit { Glibc.close(descriptor) }

    func send(_ text: String) throws { try send(Array(text.utf8)) }

    func send(_ bytes: [UInt8]) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = unsafe rest.withUnsafeBytes {
                unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL))
            }
            guard sent > 0 else { throw Failure(call: "send", code: errno) }
            rest = rest.dropFirst(sent)
        }
    }

    func sendFIN() { shutdown(descriptor, CInt(SHUT_WR)) }

    /// Makes the close at the end of this object's life a reset.
    func resetOnClose() {
        var option = linger(l_onoff: 1, l_linger: 0)
        let size = socklen_t(MemoryLayout<linger>.size)
        _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &option, size)
    }

    func get(_ target: String, headers: String = "", method: String = "GET") throws -> Response {
        try send("\(method) \(target) HTTP/1.1\r\nHost: test\r\n\(headers)\r\n")
        return try response(hasBody: method != "HEAD")
    }

    /// The next response, with the body that its `content-length` announces.
    func response(hasBody: Bool = true) throws -> Response {
        var lines: [String] = []
        repeat { lines.append(try line()) } while lines.last != ""
        let status = try #require(Int(lines[0].split(separator: " ")[1]))
        var headers: [String: String] = [:]
        for line in lines.dropFirst().dropLast() {
            let parts = line.split(separator: ":", maxSplits: 1)
            headers[parts[0].lowercased()] = String(parts[1].drop { $0 == " " })
        }
        let length = hasBody ? Int(headers["content-length"] ?? "") ?? 0 : 0
        while buffered.count < length { try receiveMore() }
        let body = String(decoding: buffered.prefix(length), as: UTF8.self)
        buffered.removeFirst(length)
        return Response(status: status, headers: headers, body: body)
    }

    /// Whatever comes until the FIN. Throws at a reset.
    func rest() throws -> String {
        while try receive() {}
        defer { buffered.removeAll() }
        return String(decoding: buffered, as: UTF8.self)
    }

    /// True exactly when nothing comes for `milliseconds`, neither bytes nor an end.
    func staysQuiet(milliseconds: CInt) -> Bool {
        var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return unsafe buffered.isEmpty && poll(&poller, 1, milliseconds) == 0
    }

    private func line() throws -> String {
        while true {
            if let end = buffered.firstIndex(of: UInt8(ascii: "\n")) {
                defer { buffered.removeFirst(end + 1) }
                return String(decoding: buffered[..<max(0, end - 1)], as: UTF8.self)
            }
            try receiveMore()
        }
    }

    private func receiveMore() throws {
        if try !receive() {
            throw Failure(call: "FIN", code: 0, received: String(decoding: buffered, as: UTF8.self))
        }
    }

    /// False at the FIN.
    private func receive() throws -> Bool {
        var chunk = [UInt8](repeating: 0, count: 65_536)
        let count = unsafe chunk.withUnsafeMutableBytes {
            unsafe recv(descriptor, $0.baseAddress, $0.count, 0)
        }
        guard count >= 0 else {
            let code = errno
            let received = String(decoding: buffered, as: UTF8.self)
            throw Failure(call: "recv", code: code, received: received)
        }
        buffered += chunk.prefix(count)
        return count > 0
    }
}
