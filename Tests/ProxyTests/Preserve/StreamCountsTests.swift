import CLinux
import Glibc
import Testing

@testable import Proxy

/// A connection over loopback, both ends here: the one that connected, and the one that accepted.
private final class Loopback {
    /// nil once closed.
    var opener: FileDescriptor?
    var acceptor: FileDescriptor?
    private var scratch = [UInt8](repeating: 0x78, count: 65_536)

    init() throws {
        let listener = try Socket.listen(on: .ipv4(0x7f00_0001, port: 0))
        let client = try Socket.make(family: AF_INET)
        // Small, so that both are soon full.
        for fd in [listener.rawValue, client.rawValue] {
            try Socket.set(fd, SOL_SOCKET, SO_SNDBUF, 16_384)
            try Socket.set(fd, SOL_SOCKET, SO_RCVBUF, 16_384)
        }
        let code = Socket.connect(
            client.rawValue, to: try Socket.localAddress(listener.rawValue))
        try #require(code == EINPROGRESS || code == 0)
        var entry = pollfd(fd: listener.rawValue, events: Int16(POLLIN), revents: 0)
        try #require(unsafe poll(&entry, 1, 10_000) == 1)
        acceptor = FileDescriptor(owning: try Socket.accept(listener.rawValue).0)
        opener = consume client
        try #require(eventually { self.counts.0?.state == StreamCounts.established })
    }

    var descriptors: (CInt, CInt) { (opener?.rawValue ?? -1, acceptor?.rawValue ?? -1) }

    /// Of the opener and of the acceptor.
    var counts: (StreamCounts?, StreamCounts?) {
        (
            StreamCounts.of(descriptors.0, isOpener: true),
            StreamCounts.of(descriptors.1, isOpener: false)
        )
    }

    func send(_ count: Int, to fd: CInt) throws {
        let transfer = unsafe Socket.send(fd, from: &scratch, count: count)
        try #require(transfer == .bytes(count))
    }

    /// Sends until nothing more is taken, for good.
    func fill(_ fd: CInt) -> UInt64 {
        var sum: UInt64 = 0
        var failures = 0
        while failures < 5 {
            if case .bytes(let count) = unsafe Socket.send(fd, from: &scratch, count: 4096) {
                sum += UInt64(count)
                failures = 0
            } else {
                failures += 1
                usleep(2000)
            }
        }
        return sum
    }

    /// Reads as much as that, waiting for it.
    func read(_ count: Int, from fd: CInt) throws {
        var left = count
        let done = eventually {
            if case .bytes(let count) = unsafe Socket.receive(
                fd, into: &self.scratch, limit: min(left, self.scratch.count))
            {
                left -= count
            }
            return left == 0
        }
        try #require(done, "\(left) of \(count) bytes did not come")
    }

    func readEnd(from fd: CInt) throws {
        try #require(
            eventually {
                unsafe Socket.receive(fd, into: &self.scratch, limit: 1) == .endOfStream
            })
    }
}

private func eventually(_ condition: () -> Bool) -> Bool {
    let limit = Instant.now().advanced(by: .seconds(10))
    while !condition() {
        if Instant.now() > limit { return false }
        usleep(500)
    }
    return true
}

@Suite("The kernel's counts say what was really read and written, in every state of a socket")
struct StreamCountsTests {
    /// What was really done on one end: nil where the count is not looked at.
    private struct Done: Equatable {
        var state: Int
        var taken: UInt64
        var written: UInt64?
    }

    /// Waits until both ends are in those states, and compares.
    private func expect(
        _ loopback: Loopback, opener: Done, acceptor: Done,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let settled = eventually {
            loopback.counts.0?.state == opener.state && loopback.counts.1?.state == acceptor.state
        }
        #expect(settled, "\(loopback.counts)", sourceLocation: sourceLocation)
        for (counts, done) in [(loopback.counts.0, opener), (loopback.counts.1, acceptor)] {
            let counts = try #require(counts, sourceLocation: sourceLocation)
            #expect(counts.taken == done.taken, "\(counts)", sourceLocation: sourceLocation)
            if let written = done.written {
                #expect(counts.written == written, "\(counts)", sourceLocation: sourceLocation)
            }
        }
    }

    private static let established = 1
    private static let (finWait1, finWait2, closed) = (4, 5, 7)
    private static let (closeWait, lastAck, closing) = (8, 9, 11)

    @Test("established: nothing, something, and bytes that wait to be read")
    func established() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        try expect(
            loopback, opener: Done(state: 1, taken: 0, written: 0),
            acceptor: Done(state: 1, taken: 0, written: 0))
        try loopback.send(1000, to: opener)
        try loopback.send(1, to: acceptor)
        try expect(
            loopback, opener: Done(state: 1, taken: 0, written: 1000),
            acceptor: Done(state: 1, taken: 0, written: 1))
        try loopback.read(400, from: acceptor)
        try loopback.read(1, from: opener)
        try expect(
            loopback, opener: Done(state: 1, taken: 1, written: 1000),
            acceptor: Done(state: 1, taken: 400, written: 1))
        #expect(eventually { loopback.counts.1?.unread == 600 })
    }

    @Test("bytes that nobody acknowledges yet, and that do not even leave, are written")
    func unsent() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        let there = loopback.fill(opener)
        let back = loopback.fill(acceptor)
        #expect((loopback.counts.0?.unsent ?? 0) > 0)
        #expect((loopback.counts.1?.unsent ?? 0) > 0)
        try expect(
            loopback, opener: Done(state: 1, taken: 0, written: there),
            acceptor: Done(state: 1, taken: 0, written: back))
        // The FIN stands behind them all.
        Socket.finish(opener)
        try expect(
            loopback, opener: Done(state: Self.finWait1, taken: 0, written: there),
            acceptor: Done(state: 1, taken: 0, written: back))
        // Then from both sides at once; the opener reads all there is, with the FIN.
        Socket.finish(acceptor)
        try loopback.read(Int(back), from: opener)
        try expect(
            loopback, opener: Done(state: Self.closing, taken: back, written: there),
            acceptor: Done(state: Self.finWait2, taken: 0, written: back))
        try loopback.readEnd(from: opener)
        try expect(
            loopback, opener: Done(state: Self.closing, taken: back, written: there),
            acceptor: Done(state: Self.finWait2, taken: 0, written: back))
    }

    @Test("half-closed by the opener", arguments: [0, 500])
    func openerFinished(bytes: Int) throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        let sent = UInt64(bytes)
        if bytes > 0 { try loopback.send(bytes, to: opener) }
        Socket.finish(opener)
        let here = Done(state: Self.finWait2, taken: 0, written: sent)
        try expect(
            loopback, opener: here, acceptor: Done(state: Self.closeWait, taken: 0, written: 0))
        try loopback.read(bytes, from: acceptor)
        let there = Done(state: Self.closeWait, taken: sent, written: 0)
        try expect(loopback, opener: here, acceptor: there)
        try loopback.readEnd(from: acceptor)
        try expect(loopback, opener: here, acceptor: there)
        try loopback.send(7, to: acceptor)
        try loopback.read(3, from: opener)
        try expect(
            loopback, opener: Done(state: Self.finWait2, taken: 3, written: sent),
            acceptor: Done(state: Self.closeWait, taken: sent, written: 7))
    }

    @Test("half-closed by the acceptor", arguments: [0, 500])
    func acceptorFinished(bytes: Int) throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        let sent = UInt64(bytes)
        if bytes > 0 { try loopback.send(bytes, to: acceptor) }
        Socket.finish(acceptor)
        try expect(
            loopback, opener: Done(state: Self.closeWait, taken: 0, written: 0),
            acceptor: Done(state: Self.finWait2, taken: 0, written: sent))
        try loopback.read(bytes, from: opener)
        try loopback.readEnd(from: opener)
        try loopback.send(7, to: opener)
        try expect(
            loopback, opener: Done(state: Self.closeWait, taken: sent, written: 7),
            acceptor: Done(state: Self.finWait2, taken: 0, written: sent))
    }

    @Test("the second FIN is on its way behind bytes that do not leave")
    func lastAck() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        try loopback.send(10, to: opener)
        Socket.finish(opener)
        let back = loopback.fill(acceptor)
        Socket.finish(acceptor)
        try loopback.read(10, from: acceptor)
        try expect(
            loopback, opener: Done(state: Self.finWait2, taken: 0, written: 10),
            acceptor: Done(state: Self.lastAck, taken: 10, written: back))
        #expect(loopback.counts.1?.hasEnded == true)
    }

    @Test("closed both ways: a FIN is one more in what was read", arguments: [0, 500])
    func bothFinished(bytes: Int) throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        let sent = UInt64(bytes)
        if bytes > 0 { for fd in [opener, acceptor] { try loopback.send(bytes, to: fd) } }
        Socket.finish(opener)
        #expect(eventually { loopback.counts.1?.state == Self.closeWait })
        Socket.finish(acceptor)
        // Nothing was read yet.
        try expect(
            loopback, opener: Done(state: Self.closed, taken: 1),
            acceptor: Done(state: Self.closed, taken: 1))
        for fd in [opener, acceptor] {
            try loopback.read(bytes, from: fd)
            try loopback.readEnd(from: fd)
        }
        try expect(
            loopback, opener: Done(state: Self.closed, taken: sent + 1),
            acceptor: Done(state: Self.closed, taken: sent + 1))
    }

    @Test("reset by the peer: nothing is added to what was read", arguments: [0, 500])
    func reset(bytes: Int) throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        if bytes > 0 {
            try loopback.send(bytes, to: acceptor)
            try loopback.read(bytes - 100, from: opener)
        }
        Socket.resetOnClose(acceptor)
        loopback.acceptor = nil
        #expect(eventually { loopback.counts.0?.isClosed == true })
        let counts = try #require(loopback.counts.0)
        #expect(counts.taken == UInt64(max(bytes - 100, 0)))
        #expect(counts.unread == (bytes > 0 ? 100 : 0), "what came before can be read still")
        #expect(Socket.takeError(opener) == ECONNRESET)
    }

    @Test("reset by the peer after its FIN: as closed by the FIN, but for the error that waits")
    func resetAfterFin() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        try loopback.send(500, to: acceptor)
        Socket.finish(acceptor)
        try loopback.read(500, from: opener)
        #expect(eventually { loopback.counts.0?.state == Self.closeWait })
        Socket.resetOnClose(acceptor)
        loopback.acceptor = nil
        #expect(eventually { loopback.counts.0?.isClosed == true })
        #expect(loopback.counts.0?.taken == 501)
        #expect(Socket.takeError(opener) == EPIPE)
    }

    @Test("reset by ourselves: closed, whoever holds copies")
    func resetHere() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        let kept = try copy(of: opener)
        try loopback.send(500, to: opener)
        Socket.reset(opener)
        #expect(StreamCounts.of(kept.rawValue, isOpener: true)?.hasEnded == true)
        #expect(eventually { loopback.counts.1?.isClosed == true })
        #expect(Socket.takeError(acceptor) == ECONNRESET)
    }

    @Test("an urgent byte in the stream is a byte like another")
    func urgent() throws {
        let loopback = try Loopback()
        let (opener, acceptor) = loopback.descriptors
        for fd in [opener, acceptor] { Socket.prepareForRelay(fd) }
        try loopback.send(10, to: opener)
        var byte: UInt8 = 0x21
        let sent = unsafe Glibc.send(opener, &byte, 1, CInt(MSG_OOB))
        #expect(sent == 1)
        try loopback.send(10, to: opener)
        try expect(
            loopback, opener: Done(state: 1, taken: 0, written: 21),
            acceptor: Done(state: 1, taken: 0, written: 0))
        try loopback.read(15, from: acceptor)
        try expect(
            loopback, opener: Done(state: 1, taken: 0, written: 21),
            acceptor: Done(state: 1, taken: 15, written: 0))
    }

    @Test("what is spliced through a pipe is counted as what is read and sent")
    func spliced() throws {
        let (client, target) = (try Loopback(), try Loopback())
        let pipe = try Pipe()
        try client.send(8000, to: client.descriptors.0)
        #expect(eventually { client.counts.1?.unread == 8000 })
        var filled = 0
        while filled < 6000,
            case .bytes(let count) = pipe.fill(
                from: client.descriptors.1, limit: 6000 - filled)
        {
            filled += count
        }
        #expect(pipe.drain(to: target.descriptors.0, limit: 2000) == .bytes(2000))
        #expect(pipe.unread == 4000)
        let check = HoleCheck(
            source: client.counts.1, sink: target.counts.0, inPipe: UInt64(pipe.unread),
            bytesOfTable: 0, isCopying: false)
        #expect(check.verdict == .whole(bytes: 6000))
        var missing = check
        missing.inPipe -= 1
        #expect(missing.verdict == .bytesLost)
    }

    @Test("a byte that was received and never sent is found missing, whatever else is said")
    func hole() throws {
        let (client, target) = (try Loopback(), try Loopback())
        try client.send(500, to: client.descriptors.0)
        try client.read(100, from: client.descriptors.1)
        try target.send(100, to: target.descriptors.0)
        func verdict(isCopying: Bool) -> HoleCheck.Verdict {
            HoleCheck(
                source: client.counts.1, sink: target.counts.0, inPipe: 0, bytesOfTable: 100,
                isCopying: isCopying
            ).verdict
        }
        #expect(verdict(isCopying: true) == .whole(bytes: 100))
        try client.read(1, from: client.descriptors.1)
        #expect(verdict(isCopying: false) == .bytesLost)
        try target.send(1, to: target.descriptors.0)
        #expect(verdict(isCopying: false) == .whole(bytes: 101))
        try target.send(1, to: target.descriptors.0)
        #expect(verdict(isCopying: false) == .bytesLost, "doubled")
    }

    @Test("what is no TCP socket has no counts")
    func others() throws {
        let unix = try SocketPair(linux_SOCK_STREAM)
        let pipe = try Pipe()
        let udp = FileDescriptor(
            owning: try retrying("socket") { socket(AF_INET, linux_SOCK_DGRAM, 0) })
        for fd in [unix.first.rawValue, pipe.readEnd.rawValue, udp.rawValue, -1] {
            #expect(StreamCounts.of(fd, isOpener: true) == nil)
        }
        // Multipath TCP, where the kernel has it: its counts are those of one path.
        let multipath = socket(AF_INET, linux_SOCK_STREAM, 262)
        if multipath >= 0 {
            #expect(StreamCounts.of(multipath, isOpener: true) == nil)
            close(multipath)
        }
    }
}
