// Pipes: where bytes wait when the far side does not take them, and the way they are spliced.

import CLinux
import Glibc

/// One pipe of a worker's pool. It belongs to one direction of one connection while it carries
/// bytes, and to the pool otherwise.
final class Pipe {
    let readEnd: FileDescriptor
    let writeEnd: FileDescriptor
    /// Bytes that the kernel granted; splicing may put more into it, for a slot holds a whole
    /// fragment of a packet.
    let capacity: Int
    /// Under which a ledger knows it; 0 while none does.
    var number: UInt64 = 0
    /// Where copies of its ends are kept; nil while there are none.
    var ledger: Ledger?

    /// Takes over a pipe of an earlier life of the process.
    init(
        number: UInt64, readEnd: consuming FileDescriptor, writeEnd: consuming FileDescriptor
    ) {
        self.number = number
        capacity = Int(max(linux_get_pipe_size(writeEnd.rawValue), 0))
        self.readEnd = readEnd
        self.writeEnd = writeEnd
    }

    /// Bytes that can be read from it.
    var unread: Int { Int(max(linux_unread(readEnd.rawValue), 0)) }

    /// - Throws: EMFILE or ENFILE when descriptors have run out.
    init() throws(SystemError) {
        var ends: (CInt, CInt) = (-1, -1)
        _ = try retrying("pipe") {
            unsafe withUnsafeMutableBytes(of: &ends) { bytes in
                unsafe linux_pipe(bytes.assumingMemoryBound(to: CInt.self).baseAddress)
            }
        }
        readEnd = FileDescriptor(owning: ends.0)
        writeEnd = FileDescriptor(owning: ends.1)
        // Refused to an unprivileged user whose pipes have used up pipe-user-pages-soft, pipe(7);
        // the true size decides.
        _ = linux_set_pipe_size(ends.1, CInt(Self.wantedCapacity))
        capacity = Int(max(linux_get_pipe_size(ends.1), 0))
    }

    /// Measured: 1 MiB gains nothing over this.
    static let wantedCapacity = 256 * 1024
    /// Splicing through a smaller pipe costs more than copying.
    static let usefulCapacity = 64 * 1024

    /// Moves bytes from a socket into the pipe.
    ///
    /// - Returns: `.wouldBlock` if the socket is empty *or the pipe has no free slot*.
    @inline(__always)
    func fill(from socket: CInt, limit: Int) -> Transfer {
        Transfer.of { linux_splice(socket, writeEnd.rawValue, limit) }
    }

    /// Moves bytes from the pipe to a socket.
    @inline(__always)
    func drain(to socket: CInt, limit: Int) -> Transfer {
        Transfer.of { linux_splice(readEnd.rawValue, socket, limit) }
    }

    /// Copies bytes into the pipe, which must be empty and at least that large.
    func store(_ bytes: UnsafeMutableRawPointer, count: Int) -> Transfer {
        Transfer.of { unsafe write(writeEnd.rawValue, bytes, count) }
    }
}
