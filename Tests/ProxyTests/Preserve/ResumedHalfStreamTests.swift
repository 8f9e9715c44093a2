import Testing

@testable import Proxy

@Suite("One direction of a connection goes on where an earlier life of the process left it")
struct ResumedHalfStreamTests {
    private func resumed(inPipe: Int, isUnix: Bool = false) -> HalfStream {
        HalfStream(isUnix: isUnix, resumedAt: 1000, inPipe: inPipe)
    }

    @Test("it knows what was read so far, and waits until epoll tells of its source")
    func waits() {
        let half = resumed(inPipe: 0)
        #expect(half.bytes == 1000)
        #expect(half.inPipe == 0)
        #expect(half.next() == .wait)
        #expect(!half.isOver)
    }

    @Test("what is in its pipe goes out first, and is not counted a second time")
    func drains() {
        var half = resumed(inPipe: 30)
        half.sourceBecame(.readable)
        #expect(half.next() == .drain)
        half.drained(20)
        #expect(half.next() == .drain)
        half.drained(10)
        #expect(half.bytes == 1000)
        #expect(half.next() == .receive)
        half.received(5, of: 100)
        #expect(half.bytes == 1005)
        #expect(half.next() == .wait)
    }

    @Test("a sink that is full is waited for")
    func sinkIsFull() {
        var half = resumed(inPipe: 30)
        half.sinkBlocked()
        half.sourceBecame(.readable)
        #expect(half.next() == .wait)
        #expect(half.isBlocked)
        half.sinkBecameWritable()
        #expect(half.next() == .drain)
    }

    @Test("a FIN that came before, or was passed on before, goes out after the pipe's bytes")
    func finIsPassedOn() {
        var half = resumed(inPipe: 30)
        half.sourceBecame([.readable, .peerFinished])
        #expect(half.next() == .drain)
        half.drained(30)
        #expect(half.next() == .receive, "only a read can tell whether bytes are before the FIN")
        half.receivedEnd()
        #expect(half.next() == .finish)
        half.finished()
        #expect(half.isOver)
        #expect(half.bytes == 1000)
    }

    @Test("it begins with a copy even if it was in bulk, and is in bulk again after a full one")
    func bulk() {
        var half = resumed(inPipe: 0)
        half.sourceBecame(.readable)
        #expect(half.next() == .receive)
        half.received(100, of: 100)
        #expect(half.next() == .splice)
    }

    @Test("a unix source is read until it is empty, as one from its beginning")
    func unixSource() {
        var half = resumed(inPipe: 0, isUnix: true)
        half.sourceBecame(.readable)
        half.received(10, of: 100)
        #expect(half.next() == .receive)
    }

    @Test("a sink that broke takes nothing, whatever the pipe holds")
    func brokenSink() {
        var half = resumed(inPipe: 30)
        half.sinkFailed()
        #expect(half.next() == .wait)
        #expect(half.isOver)
    }
}
