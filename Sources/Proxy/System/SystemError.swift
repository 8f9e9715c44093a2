// How a failed system call is told: the call's name and its errno, as one value.

import Glibc

/// A system call that failed.
public struct SystemError: Error, Equatable, Sendable, CustomStringConvertible {
    let call: StaticString
    let code: CInt

    /// "connect: Connection refused"
    public var description: String { "\(call): \(message)" }

    /// What strerror(3) says of the code, without the call.
    var message: String { unsafe String(cString: strerror(code)) }

    /// The errno's symbolic name where the proxy meets it often, else its number.
    var name: String { Self.names[code] ?? "errno-\(code)" }

    /// By the error alone: which call met it does not matter.
    public static func == (left: SystemError, right: SystemError) -> Bool {
        left.code == right.code
    }

    private static let names: [CInt: String] = [
        EMFILE: "EMFILE", ENFILE: "ENFILE", ENOMEM: "ENOMEM", ENOBUFS: "ENOBUFS",
        ECONNABORTED: "ECONNABORTED", EPROTO: "EPROTO", EPERM: "EPERM", EACCES: "EACCES",
        ECONNREFUSED: "ECONNREFUSED", ECONNRESET: "ECONNRESET", ETIMEDOUT: "ETIMEDOUT",
        EHOSTUNREACH: "EHOSTUNREACH", ENETUNREACH: "ENETUNREACH", ENETDOWN: "ENETDOWN",
        EADDRNOTAVAIL: "EADDRNOTAVAIL", EADDRINUSE: "EADDRINUSE", ENOENT: "ENOENT",
        EAGAIN: "EAGAIN", EPIPE: "EPIPE", EINVAL: "EINVAL", ENOTSOCK: "ENOTSOCK",
    ]
}

/// Repeats a call while a signal interrupts it.
///
/// Returns what the call returned; throws its errno otherwise.
@inline(__always)  // nothing, not even a release, may run between the call and errno
func retrying<R: FixedWidthInteger>(
    _ call: StaticString, _ body: () -> R
) throws(SystemError) -> R {
    while true {
        let result = body()
        if result != -1 { return result }
        let code = errno
        if code != EINTR { throw SystemError(call: call, code: code) }
    }
}

/// What one transfer of bytes came to. On the data plane a full or an empty socket is no error
/// and costs no throw.
enum Transfer: Equatable {
    case bytes(Int)  // at least 1
    case endOfStream
    case wouldBlock
    case failed(CInt)  // any errno but EAGAIN and EINTR

    @inline(__always)
    static func of(_ body: () -> Int) -> Transfer {
        while true {
            let result = body()
            if result > 0 { return .bytes(result) }
            if result == 0 { return .endOfStream }
            let code = errno
            if code == EAGAIN { return .wouldBlock }
            if code != EINTR { return .failed(code) }
        }
    }
}
