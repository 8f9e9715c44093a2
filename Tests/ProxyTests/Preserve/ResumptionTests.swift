import Testing

@testable import Proxy

@Suite("What came of an earlier life's connections")
struct ResumptionTests {
    private func at(_ milliseconds: UInt64) -> Instant {
        Instant(nanoseconds: milliseconds * 1_000_000)
    }

    private func afterRestart(resumed: Int = 0, lost: [(LostReason, Int)] = []) -> Resumption {
        var resumption = Resumption()
        resumption.found(handedOverAt: at(1000), lastSign: at(900))
        for _ in 0..<resumed { resumption.countResumed() }
        for (reason, count) in lost { resumption.countLost(reason, count) }
        resumption.ready(at: at(1087))
        return resumption
    }

    // MARK: Causes

    @Test("it was a restart if every ledger was handed over, a crash if one was not")
    func causes() {
        let handed: Instant? = at(1000)
        let cases: [([Instant?], ResumptionCause)] = [
            ([handed], .restart), ([nil], .crash), ([handed, handed], .restart),
            ([handed, nil], .crash), ([nil, handed], .crash), ([nil, handed, handed], .crash),
        ]
        for (ledgers, cause) in cases {
            var resumption = Resumption()
            for handedOverAt in ledgers {
                resumption.found(handedOverAt: handedOverAt, lastSign: at(900))
            }
            #expect(resumption.cause == cause, "\(ledgers)")
        }
    }

    @Test("what was kept and is no ledger has its name told, and is no earlier life")
    func strays() {
        var resumption = Resumption()
        resumption.foundNothing(in: "a")
        resumption.foundNothing(in: "b")
        #expect(resumption.strays == ["a", "b"])
        #expect(resumption.gap == 0)
        #expect(resumption.resumed == 0 && resumption.lostInAll == 0)
    }

    // MARK: Gap

    @Test("the gap is from the last ledger's end to the moment when all goes on")
    func gap() {
        let cases: [(ledgers: [(handedOverAt: UInt64?, lastSign: UInt64)], gap: UInt64)] = [
            ([(1000, 900)], 87), ([(nil, 900)], 187), ([(1000, 900), (1050, 1)], 37),
            ([(1050, 1), (1000, 900)], 37), ([(nil, 900), (nil, 1080)], 7),
            ([(nil, 2000)], 0),  // the clock cannot run backwards, but a table can be wrong
            ([], 0),
        ]
        for (ledgers, gap) in cases {
            var resumption = Resumption()
            for ledger in ledgers {
                resumption.found(
                    handedOverAt: ledger.handedOverAt.map(at), lastSign: at(ledger.lastSign))
            }
            resumption.ready(at: at(1087))
            #expect(resumption.gap == gap * 1_000_000, "\(ledgers)")
        }
    }

    // MARK: Sentences

    @Test("the sentence counts what goes on, and by reason what does not")
    func sentences() {
        #expect(
            afterRestart(resumed: 214).sentence
                == "resumed 214 connections after a restart, gap 87 ms")
        #expect(
            afterRestart(resumed: 1).sentence == "resumed 1 connection after a restart, gap 87 ms")
        #expect(
            afterRestart(lost: [(.damaged, 4)]).sentence
                == "resumed 0 connections after a restart, gap 87 ms; lost 4 (damaged 4)")
        var crash = Resumption()
        crash.found(handedOverAt: nil, lastSign: at(1))
        for _ in 0..<199 { crash.countResumed() }
        crash.countLost(.bytesLost)
        crash.ready(at: at(92))
        #expect(
            crash.sentence
                == "resumed 199 connections after a crash, gap 91 ms; lost 1 (bytes-lost 1)")
    }

    @Test("the reasons come in one order, whatever came first; one that never was does not come")
    func reasons() {
        let resumption = afterRestart(
            resumed: 2,
            lost: [
                (.noDescriptors, 1), (.noRoute, 2), (.unknownLayout, 3), (.damaged, 4),
                (.crashes, 5), (.bytesLost, 6), (.bytesLost, 1), (.noRoute, 0),
            ])
        #expect(resumption.lostInAll == 22)
        #expect(
            resumption.sentence
                == "resumed 2 connections after a restart, gap 87 ms; lost 22 (bytes-lost 7, "
                + "crashes 5, damaged 4, unknown-layout 3, no-route 2, no-descriptors 1)")
        #expect(
            resumption.lost.count == LostReason.allCases.count, "one line of the metrics for each")
    }

    @Test("where no ledger tells when the earlier life ended, no gap is made up")
    func unknownGap() {
        var resumption = Resumption()
        resumption.countLost(.damaged, 3)
        resumption.ready(at: at(1087))
        #expect(resumption.gap == 0)
        #expect(
            resumption.sentence == "resumed 0 connections after a restart; lost 3 (damaged 3)")
        #expect(
            resumption.status(at: at(1087))
                == "Resumed 0 connections after a restart, lost 3")
    }

    // MARK: Status

    @Test("the status line tells of it for a minute, from the moment when all goes on")
    func status() {
        var resumption = Resumption()
        resumption.found(handedOverAt: at(1000), lastSign: at(900))
        resumption.countResumed()
        #expect(resumption.status(at: at(1050)) == nil, "not yet")
        resumption.ready(at: at(1087))
        let text = "Resumed 1 connection after a restart"
        #expect(resumption.status(at: at(1087)) == text)
        #expect(resumption.status(at: at(61_086)) == text)
        #expect(resumption.status(at: at(61_087)) == nil)
        #expect(
            afterRestart(resumed: 214, lost: [(.crashes, 2)]).status(at: at(1087))
                == "Resumed 214 connections after a restart, lost 2")
    }

    @Test("after a start from nothing there is nothing to tell")
    func fresh() {
        let resumption = Resumption()
        #expect(resumption.readyAt == nil)
        #expect(resumption.gap == 0)
        #expect(resumption.status(at: at(1087)) == nil)
    }
}
