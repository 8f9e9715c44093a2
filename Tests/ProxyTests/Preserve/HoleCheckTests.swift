import Glibc
import Testing

@testable import Proxy

@Suite("Whether a direction that a process left behind is whole")
struct HoleCheckTests {
    // States of tcp(7) as TCP_INFO has them.
    private static let (established, finWait1, finWait2, closed) = (1, 4, 5, 7)
    private static let (closeWait, lastAck, closing) = (8, 9, 11)

    private static func counts(
        _ state: Int, acked: UInt64 = 0, received: UInt64 = 0, unread: UInt64 = 0,
        unsent: UInt64 = 0, opener: Bool = false
    ) -> StreamCounts {
        StreamCounts(
            state: state, acked: acked, received: received, unread: unread, unsent: unsent,
            isOpener: opener)
    }

    // MARK: Counts

    private static let takenRows: [(StreamCounts, UInt64)] = [
        (counts(established, received: 100), 100),
        (counts(established, received: 100, unread: 30), 70),
        (counts(established, received: 100, unread: 100), 0),
        (counts(finWait1, received: 100, unread: 30), 70),
        (counts(finWait2, received: 100, unread: 30), 70),
        (counts(closeWait, received: 101, unread: 30), 70),
        (counts(closeWait, received: 1), 0),
        (counts(lastAck, received: 101, unread: 100), 0),
        (counts(closing, received: 101), 100),
        (counts(closed, received: 101, unread: 30), 71),  // a FIN or a byte: not to be told
        (counts(closed, received: 100), 100),
    ]

    @Test(
        "reading is counted without a FIN, which is in the count of bytes received",
        arguments: takenRows)
    func taken(counts: StreamCounts, expected: UInt64) { #expect(counts.taken == expected) }

    private static let writtenRows: [(StreamCounts, UInt64)] = [
        (counts(established, acked: 100), 100),
        (counts(established, acked: 60, unsent: 40), 100),
        (counts(established, acked: 1, opener: true), 0),
        (counts(established, acked: 61, unsent: 40, opener: true), 100),
        (counts(closeWait, acked: 61, unsent: 40, opener: true), 100),
        (counts(closeWait, acked: 100), 100),
        (counts(finWait1, acked: 60, unsent: 41), 100),
        (counts(finWait1, acked: 61, unsent: 41, opener: true), 100),
        (counts(finWait2, acked: 101), 100),
        (counts(finWait2, acked: 102, opener: true), 100),
        (counts(lastAck, acked: 60, unsent: 41), 100),
        (counts(closing, acked: 61, unsent: 41, opener: true), 100),
        (counts(finWait1, unsent: 1), 0),
    ]

    @Test(
        "writing is counted without a FIN and without the opener's SYN, acknowledged or not",
        arguments: writtenRows)
    func written(counts: StreamCounts, expected: UInt64) { #expect(counts.written == expected) }

    @Test("a socket is closed in one state alone, and has ended once its last bytes are on the way")
    func ended() {
        for state in 1...12 {
            let counts = Self.counts(state)
            #expect(counts.isClosed == (state == 7))
            #expect(counts.hasEnded == [7, 9, 11].contains(state))
        }
    }

    // MARK: Verdicts

    /// One line of the table: a source from which so many bytes were taken, a sink to which so
    /// many were written.
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        var source: StreamCounts?
        var sink: StreamCounts?
        var inPipe: UInt64 = 0
        var table: UInt64 = 100
        var copying = false
        let expected: HoleCheck.Verdict

        var testDescription: String { name }
        var check: HoleCheck {
            HoleCheck(
                source: source, sink: sink, inPipe: inPipe, bytesOfTable: table, isCopying: copying)
        }
    }

    /// A source of which `count` bytes were taken, 7 more waiting, in each state that is not closed.
    private static func sources(taken count: UInt64) -> [StreamCounts] {
        [false, true].flatMap { opener in
            [established, finWait1, finWait2].map {
                counts($0, acked: 5, received: count + 7, unread: 7, opener: opener)
            }
                + [closeWait, lastAck, closing].map {
                    counts($0, acked: 5, received: count + 8, unread: 7, opener: opener)
                }
        }
    }

    /// A sink to which `count` bytes were written, 3 of them unacknowledged, in each state that is
    /// not closed.
    private static func sinks(written count: UInt64) -> [StreamCounts] {
        [false, true].flatMap { opener in
            let syn: UInt64 = opener ? 1 : 0
            return [established, closeWait].map {
                counts($0, acked: count - 3 + syn, received: 9, unsent: 3, opener: opener)
            }
                + [finWait1, lastAck, closing].map {
                    counts($0, acked: count - 3 + syn, received: 9, unsent: 4, opener: opener)
                } + [counts(finWait2, acked: count + 1 + syn, received: 9, opener: opener)]
        }
    }

    @Test(
        "in every state of both sockets: whole exactly if no byte is missing or doubled",
        arguments: [
            (100, 100, 0, true),
            (100, 90, 10, true),
            (100, 90, 0, false),  // ten were in the process alone
            (100, 99, 0, false),
            (100, 89, 10, false),
            (100, 90, 9, false),
            (100, 101, 0, false),  // doubled
            (100, 100, 1, false),
            (100, 190, 10, false),
            (0x1_0000_0063, 0x1_0000_0000, 0x63, true),  // beyond 32 bits
            (0x1_0000_0063, 0x63, 0, false),
        ] as [(UInt64, UInt64, UInt64, Bool)])
    func bothOpen(taken: UInt64, written: UInt64, inPipe: UInt64, isWhole: Bool) {
        var wrong: [HoleCheck] = []
        for source in Self.sources(taken: taken) {
            for sink in Self.sinks(written: written) {
                // The kernel's word counts for more than the table's and the flag's.
                for (table, copying) in [(taken, false), (0, false), (taken, true), (7, true)] {
                    let check = HoleCheck(
                        source: source, sink: sink, inPipe: inPipe, bytesOfTable: table,
                        isCopying: copying)
                    let expected: HoleCheck.Verdict =
                        isWhole ? .whole(bytes: taken) : .bytesLost
                    if check.verdict != expected { wrong.append(check) }
                }
            }
        }
        #expect(wrong.isEmpty, "\(wrong.count), such as \(wrong.prefix(1))")
    }

    private static let sink = counts(established, acked: 100)
    private static let fullSink = counts(established, acked: 60, unsent: 40)
    private static let source = counts(established, received: 107, unread: 7)
    private static let closedSink = counts(closed, acked: 50)

    private static func gone(_ received: UInt64, unread: UInt64 = 0) -> StreamCounts {
        counts(closed, received: received, unread: unread)
    }

    private static let cases: [Case] = [
        // The source is closed: by FINs both ways its count has one more, by a reset it has not.
        Case(
            name: "closed by FIN, all delivered", source: gone(101), sink: sink,
            expected: .whole(bytes: 100)),
        Case(
            name: "closed by FIN, some in the pipe", source: gone(101),
            sink: counts(established, acked: 80), inPipe: 20, expected: .whole(bytes: 100)),
        Case(
            name: "closed by FIN, some not read yet", source: gone(108, unread: 7), sink: sink,
            expected: .whole(bytes: 100)),
        Case(
            name: "closed by FIN, no byte ever", source: gone(1),
            sink: counts(established, acked: 1, opener: true), table: 0,
            expected: .whole(bytes: 0)),
        Case(
            name: "closed by FIN, a byte lost", source: gone(102), sink: sink,
            expected: .bytesLost),
        Case(
            name: "closed, one too many while copying: may be a byte", source: gone(101),
            sink: sink, copying: true, expected: .bytesLost),
        Case(
            name: "reset, all delivered", source: gone(100), sink: fullSink,
            expected: .sourceWasReset(bytes: 100)),
        Case(
            name: "reset, all delivered, copying", source: gone(100), sink: sink, copying: true,
            expected: .sourceWasReset(bytes: 100)),
        Case(
            name: "reset, no byte ever", source: gone(0), sink: counts(established), table: 0,
            expected: .sourceWasReset(bytes: 0)),
        Case(
            name: "reset, two lost", source: gone(102), sink: sink, copying: true,
            expected: .bytesLost),
        Case(
            name: "reset, doubled", source: gone(99), sink: sink, expected: .bytesLost),
        // The sink is closed: what was written is not known, and nothing more can be.
        Case(
            name: "sink closed, source open", source: source, sink: closedSink,
            expected: .whole(bytes: 100)),
        Case(
            name: "sink closed, source open, copying, bytes in the pipe", source: source,
            sink: closedSink, inPipe: 20, table: 80, copying: true, expected: .whole(bytes: 100)),
        Case(
            name: "sink closed, source finished", source: counts(closeWait, received: 101),
            sink: closedSink, expected: .whole(bytes: 100)),
        Case(
            name: "both closed, source by FIN", source: gone(101), sink: closedSink,
            expected: .whole(bytes: 100)),
        Case(
            name: "both closed, source by reset", source: gone(100), sink: closedSink,
            expected: .sourceWasReset(bytes: 100)),
        // A unix socket is not counted: the flag alone tells whether bytes were under way.
        Case(name: "unix to unix", expected: .whole(bytes: 100)),
        Case(name: "unix to unix, in the pipe", inPipe: 20, expected: .whole(bytes: 100)),
        Case(name: "unix to unix, copying", copying: true, expected: .bytesLost),
        Case(
            name: "unix to TCP: what was read is what was written and waits", sink: fullSink,
            inPipe: 20, table: 7, expected: .whole(bytes: 120)),
        Case(
            name: "unix to TCP, finished", sink: counts(finWait2, acked: 102, opener: true),
            expected: .whole(bytes: 100)),
        Case(
            name: "unix to TCP, copying", sink: sink, copying: true, expected: .bytesLost),
        Case(name: "unix to closed TCP", sink: closedSink, expected: .whole(bytes: 100)),
        Case(name: "TCP to unix", source: source, table: 7, expected: .whole(bytes: 100)),
        Case(
            name: "TCP to unix, in the pipe", source: source, inPipe: 20,
            expected: .whole(bytes: 100)),
        Case(name: "TCP to unix, copying", source: source, copying: true, expected: .bytesLost),
        Case(
            name: "TCP to unix, finished", source: counts(closeWait, received: 101),
            expected: .whole(bytes: 100)),
        Case(name: "closed TCP to unix, by FIN", source: gone(101), expected: .whole(bytes: 100)),
        Case(
            name: "closed TCP to unix, by reset", source: gone(100),
            expected: .sourceWasReset(bytes: 100)),
        Case(
            name: "closed TCP to unix, copying", source: gone(101), copying: true,
            expected: .bytesLost),
    ]

    @Test("one end closed, or not counted by the kernel", arguments: cases)
    func verdicts(_ line: Case) { #expect(line.check.verdict == line.expected) }
}
