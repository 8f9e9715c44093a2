import Testing

@testable import Proxy

@Suite("One direction of a connection decides what to do next")
struct HalfStreamTests {
    /// A direction whose source has something to read and whose sink takes bytes.
    private func ready(isUnix: Bool = false) -> HalfStream {
        var half = HalfStream(isUnix: isUnix)
        half.sourceBecame(.readable)
        return half
    }

    @Test("it waits until the source is readable")
    func waits() {
        #expect(HalfStream().next() == .wait)
        #expect(ready().next() == .receive)
    }

    @Test("a short read means an empty socket: no second read")
    func shortRead() {
        var half = ready()
        half.received(10, of: 100)
        #expect(half.next() == .wait)
        #expect(half.bytes == 10)
    }

    @Test("a read that filled the scratch goes on by splicing")
    func splices() {
        var half = ready()
        half.received(100, of: 100)
        #expect(half.next() == .splice)
        half.spliced(400)
        #expect(half.next() == .drain)
        half.drained(300)
        #expect(half.next() == .drain)
        half.drained(100)
        #expect(half.next() == .splice)
        half.receivedNothing()
        #expect(half.next() == .wait)
        #expect(half.bytes == 500)
    }

    @Test(
        "the next turn begins with a splice if this one was worth it, else with a copy",
        arguments: [
            (moved: 100, next: HalfStream.Action.splice), (99, .receive),
            (0, .splice),  // nothing was read: nothing was learnt
        ])
    func nextTurn(moved: Int, next: HalfStream.Action) {
        var half = ready()
        half.received(100, of: 100)
        half.receivedNothing()
        half.turnEnded(moved: moved, worthSplicing: 100)
        half.sourceBecame(.readable)
        #expect(half.next() == next)
    }

    @Test("a direction is blocked while its sink is full and could still go on")
    func blocked() {
        var half = ready()
        #expect(!half.isBlocked)
        half.sinkBlocked()
        #expect(half.isBlocked)
        half.sinkBecameWritable()
        #expect(!half.isBlocked)
        half.sinkBlocked()
        half.sinkFailed()
        #expect(!half.isBlocked, "there is nothing to wait for")
    }

    @Test("a short read together with the FIN does not lose the end of stream")
    func finWithBytes() {
        var half = HalfStream()
        half.sourceBecame([.readable, .peerFinished])
        half.received(10, of: 100)
        #expect(half.next() == .finish)
        half.finished()
        #expect(half.next() == .wait)
        #expect(half.isOver)
    }

    @Test("a full read together with the FIN reads on before it ends")
    func finWithManyBytes() {
        var half = HalfStream()
        half.sourceBecame([.readable, .peerFinished])
        half.received(100, of: 100)
        #expect(half.next() == .splice)
        half.splicedEnd()
        #expect(half.next() == .receive, "a splice's end is not believed without a read")
        half.receivedEnd()
        #expect(half.next() == .finish)
    }

    @Test("bytes in the pipe are delivered before the FIN")
    func pipeBeforeFin() {
        var half = HalfStream()
        half.sourceBecame([.readable, .peerFinished])
        half.received(50, of: 100)
        half.stored(20)
        #expect(half.next() == .wait, "the sink is full")
        half.sinkBecameWritable()
        #expect(half.next() == .drain)
        half.drained(20)
        #expect(half.next() == .finish)
    }

    @Test("nothing is read while the sink is full: back-pressure is the kernel's")
    func backPressure() {
        var half = ready()
        half.received(100, of: 100)
        half.stored(1)
        half.sourceBecame(.readable)
        #expect(half.next() == .wait)
        half.sinkBecameWritable()
        half.drained(1)
        #expect(half.next() == .splice)
        half.sinkBlocked()
        #expect(half.next() == .wait)
    }

    @Test(
        "where a short read proves nothing, reading goes on",
        arguments: [
            Readiness.error, .hangup, .urgent,
        ])
    func readsToEnd(_ readiness: Readiness) {
        var half = ready()
        half.sourceBecame(readiness)
        half.received(10, of: 100)
        #expect(half.next() == .receive)
    }

    @Test("a unix source is read until it is empty")
    func unixSource() {
        var half = ready(isUnix: true)
        half.received(10, of: 100)
        #expect(half.next() == .receive)
        half.receivedNothing()
        #expect(half.next() == .wait)
    }

    @Test("after an urgent byte nothing is spliced: splice(2) stops there")
    func urgent() {
        var half = ready()
        half.sourceBecame(.urgent)
        half.received(100, of: 100)
        #expect(half.next() == .receive)
    }

    @Test("a short read is not the end where an urgent byte may have come while it was muted")
    func urgentWhileMuted() {
        var half = ready()
        half.sinkBlocked()
        half.sourceMuted()
        half.sourceBecame(.peerFinished)
        half.sinkBecameWritable()
        half.received(10, of: 100)
        #expect(half.next() == .receive)
        half.receivedEnd()
        #expect(half.next() == .finish)
    }

    @Test("a broken sink takes nothing more, and the direction is over")
    func brokenSink() {
        var half = ready()
        half.stored(10)
        half.sinkFailed()
        half.sinkBecameWritable()
        #expect(half.next() == .wait)
        #expect(half.isOver)
    }
}
