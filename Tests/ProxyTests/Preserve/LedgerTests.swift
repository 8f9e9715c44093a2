import CLinux
import Glibc
import Testing

@testable import Proxy

/// Numbers that look random and are the same in each run: SplitMix64.
private struct FixedNumbers: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}

@Suite("A ledger holds exactly the living, whoever looks")
struct LedgerTests {
    /// The same datagrams, in any order: compaction turns the queue.
    private func expect(
        _ kept: KeptLedger, holds expected: [Found],
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let contents = try kept.contents()
        #expect(contents.count == expected.count, sourceLocation: sourceLocation)
        let strangers = contents.filter { !expected.contains($0) }
        let missing = expected.filter { !contents.contains($0) }
        #expect(strangers == [], sourceLocation: sourceLocation)
        #expect(missing == [], sourceLocation: sourceLocation)
    }

    // MARK: Entering

    @Test("a connection is entered with its facts, its sockets and a slot of the table")
    func entersConnection() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        let connection = try makeConnection(1)
        connection.toTarget.half.received(10, of: 100)
        connection.toClient.half.received(20, of: 100)
        connection.firstToFinish = .target
        connection.brokenBy = .clientReset
        #expect(ledger.isEmpty)
        #expect(ledger.enter(connection) == .entered)
        #expect(connection.ledger === ledger)
        #expect(ledger.count == 1 && !ledger.isEmpty)

        let table = try LedgerTable.adopt(kept.file.rawValue)
        let place = try #require(connection.ledgerPlace)
        let slot = table.slot(Int(place.slot))
        #expect(slot.serial == place.serial && place.serial != 0)
        #expect(slot.bytes == (10, 20))
        #expect(slot.firstToFinish == .target)
        #expect(slot.broken?.side == .client && slot.broken?.code == ECONNRESET)
        try expect(kept, holds: [connection.found()])
        try expect(kept, holds: [connection.found()])  // to look takes nothing out

        ledger.forget(connection)
        #expect(connection.ledger == nil && connection.slot == nil)
        #expect(slot.serial == 0)
        #expect(ledger.isEmpty)
        ledger.compact()
        try expect(kept, holds: [])
    }

    @Test("a target that is connected later has an entry of its own, until its client's is renewed")
    func entersTarget() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        let connection = try makeConnection(1, isConnected: false)
        #expect(ledger.enter(connection) == .entered)
        let whileDialling = try connection.found()
        #expect(whileDialling.inodes.count == 1)
        try expect(kept, holds: [whileDialling])

        try connect(connection)
        #expect(ledger.enterTarget(of: connection) == .entered)
        let target = Found(
            entry: .target(
                TargetFacts(
                    place: try #require(connection.ledgerPlace),
                    target: try #require(connection.targetOfEntry))),
            inodes: [inode(connection.targetDescriptor)])
        try expect(kept, holds: [whileDialling, target])

        let other = try makeConnection(2)
        #expect(ledger.enter(other) == .entered)
        ledger.forget(other)
        ledger.compact()
        #expect(!connection.targetIsApart)
        try expect(kept, holds: [connection.found()])
        ledger.forget(connection)
        ledger.compact()
        try expect(kept, holds: [])
    }

    @Test("a pipe is entered with both ends under a number of its own")
    func entersPipe() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        let pipes = [try Pipe(), try Pipe()]
        for pipe in pipes { #expect(ledger.enter(pipe) == .entered) }
        #expect(pipes[0].number != 0 && pipes[0].number != pipes[1].number)
        #expect(pipes[0].ledger === ledger)
        #expect(!ledger.isEmpty && ledger.count == 0)
        try expect(kept, holds: pipes.map(\.found))
        let number = pipes[0].number
        ledger.forget(pipes[0])
        ledger.compact()
        try expect(kept, holds: [pipes[1].found])
        #expect(ledger.enter(pipes[0]) == .entered, "again, under its number")
        #expect(pipes[0].number == number)
        try expect(kept, holds: pipes.map(\.found))
    }

    // MARK: Compaction

    @Test(
        "under many births and deaths no more is queued than twice the living and a few",
        arguments: [1, 2, 3] as [UInt64])
    func churn(seed: UInt64) throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        var numbers = FixedNumbers(state: seed)
        var connections: [Connection] = []
        var pipes: [Pipe] = []
        for step in 0..<1500 {
            // Grows for a third of the time, holds for a third, shrinks.
            let births = step < 500 ? 7 : step < 1000 ? 5 : 3
            switch (Int.random(in: 0..<10, using: &numbers) < births, Bool.random(using: &numbers))
            {
            case (true, true):
                let connection = try makeConnection(
                    UInt64(step), isConnected: Bool.random(using: &numbers))
                try #require(ledger.enter(connection) == .entered)
                connections.append(connection)
            case (true, false) where Bool.random(using: &numbers):
                // A dial succeeds.
                guard
                    let connection = connections.filter({ !$0.isRelaying })
                        .randomElement(using: &numbers)
                else { break }
                try connect(connection)
                try #require(ledger.enterTarget(of: connection) == .entered)
            case (true, false):
                let pipe = try Pipe()
                try #require(ledger.enter(pipe) == .entered)
                pipes.append(pipe)
            case (false, let isConnection):
                if isConnection, let index = connections.indices.randomElement(using: &numbers) {
                    ledger.forget(connections.remove(at: index))
                } else if let index = pipes.indices.randomElement(using: &numbers) {
                    ledger.forget(pipes.remove(at: index))
                }
            }
            #expect(ledger.count == connections.count)
            guard step % 50 == 49 else { continue }
            let contents = try kept.contents()
            let living = connections.count + connections.count(where: \.targetIsApart) + pipes.count
            #expect(contents.count >= living)
            #expect(contents.count <= max(living + 32, living * 2), "step \(step)")
            for connection in connections {
                let found = try connection.found()
                #expect(contents.contains { $0.entry?.place == found.entry?.place })
            }
            if step % 250 == 249 {
                ledger.compact()
                try checkSame(kept, connections, pipes)
            }
        }
        for connection in connections { ledger.forget(connection) }
        for pipe in pipes { ledger.forget(pipe) }
        #expect(ledger.isEmpty)
        ledger.compact()
        try expect(kept, holds: [])
    }

    /// Each connection and each pipe once, its target with it or apart.
    private func checkSame(
        _ kept: KeptLedger, _ connections: [Connection], _ pipes: [Pipe]
    ) throws {
        let contents = try kept.contents()
        var expected = pipes.map(\.found)
        for connection in connections {
            guard connection.targetIsApart else {
                expected.append(try connection.found())
                continue
            }
            let place = connection.ledgerPlace
            let parts = contents.filter { $0.entry?.place == place }
            #expect(parts.count == 2)
            #expect(
                Set(parts.flatMap(\.inodes)) == [
                    inode(connection.client.rawValue), inode(connection.targetDescriptor),
                ])
            expected += parts
        }
        #expect(contents.count == expected.count)
        for found in expected { #expect(contents.contains(found)) }
    }

    @Test("a compaction with nobody dead leaves the queue as it is")
    func nobodyDead() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        var connections: [Connection] = []
        for id in 1...5 as ClosedRange<UInt64> {
            let connection = try makeConnection(id)
            #expect(ledger.enter(connection) == .entered)
            connections.append(connection)
        }
        let before = try kept.contents()
        ledger.compact()
        #expect(try kept.contents() == before)
        withExtendedLifetime(connections) {}
    }

    @Test("copies in the queue are closed when the dead are dropped")
    func closesCopies() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        let pair = try SocketPair(linux_SOCK_STREAM)
        let here = pair.first.rawValue
        let there = try copy(of: pair.second.rawValue)
        do {
            let connection = Connection(
                id: 1, route: Route(name: "web", index: 0, settings: nil, isActivated: false),
                counters: RouteCounters(), client: try copy(of: here), address: .unnamed,
                listen: .unnamed, now: .now())
            #expect(ledger.enter(connection) == .entered)
            ledger.forget(connection)
        }
        func isOpen(_ peer: CInt) -> Bool {
            var entry = pollfd(fd: peer, events: 0, revents: 0)
            return unsafe poll(&entry, 1, 0) == 0
        }
        _ = consume pair
        #expect(isOpen(there.rawValue), "the queue's copy keeps it")
        ledger.compact()
        #expect(!isOpen(there.rawValue))
    }

    @Test("what is in the queue and is no entry is dropped with the dead")
    func foreignDatagrams() throws {
        let kept = try KeptLedger()
        let null = FileDescriptor(owning: unsafe open("/dev/null", O_RDWR))
        try kept.send([])
        try kept.send([0xFF, 1, 2])
        let first = try kept.begin()
        let connection = try makeConnection(1)
        #expect(first.enter(connection) == .entered)
        try kept.send([1], [null.rawValue, null.rawValue, null.rawValue])
        try kept.send([UInt8](repeating: 1, count: LedgerEntry.mostBytes * 3), [null.rawValue])
        try kept.send([], [null.rawValue])
        let contents = try kept.contents()
        #expect(contents.count(where: { $0.entry != nil }) == 1)
        #expect(contents.count == 6, "each datagram once, however long it is")

        let second = try Ledger(resuming: kept.remains(), queued: contents.count)
        second.adopt(connection, at: try #require(connection.ledgerPlace), targetIsApart: false)
        second.finishAdoption()
        second.compact()
        try expect(kept, holds: [connection.found()])
    }

    // MARK: Limits

    @Test("a full queue takes no more, loses nothing, and has room again once some are gone")
    func fullQueue() throws {
        let kept = try KeptLedger(buffer: 16 * 1024)
        let ledger = try kept.begin()
        var connections: [Connection] = []
        var outcome = Ledger.Outcome.entered
        while outcome == .entered && connections.count < 600 {
            let connection = try makeConnection(UInt64(connections.count))
            outcome = ledger.enter(connection)
            if outcome == .entered { connections.append(connection) }
        }
        #expect(outcome == .full)
        #expect(connections.count > 4 && connections.count < 100)
        #expect(ledger.count == connections.count, "the slot was given back")
        let pipe = try Pipe()
        #expect(ledger.enter(pipe) == .full)
        #expect(pipe.ledger == nil)
        try expect(kept, holds: connections.map { try $0.found() })

        // Even a full queue can be turned.
        ledger.forget(connections.removeLast())
        ledger.compact()
        try expect(kept, holds: connections.map { try $0.found() })
        for _ in 0..<3 { ledger.forget(connections.removeFirst()) }
        ledger.compact()
        #expect(ledger.enter(pipe) == .entered)
        try expect(kept, holds: connections.map { try $0.found() } + [pipe.found])
    }

    @Test("a target that does not fit leaves its connection as it was")
    func noRoomForTarget() throws {
        let kept = try KeptLedger(buffer: 16 * 1024)
        let ledger = try kept.begin()
        let first = try makeConnection(0, isConnected: false)
        #expect(ledger.enter(first) == .entered)
        let before = try first.found()
        var others: [Connection] = []
        while others.count < 600 {
            let other = try makeConnection(1)
            guard ledger.enter(other) == .entered else { break }
            others.append(other)
        }
        try connect(first)
        #expect(ledger.enterTarget(of: first) == .full)
        #expect(!first.targetIsApart)
        #expect(try kept.contents().first == before)
        // Once its entry is renewed, the target is in it.
        ledger.forget(others.removeLast())
        ledger.compact()
        try expect(kept, holds: try ([first] + others).map { try $0.found() })
    }

    @Test("no more connections than slots, whatever the queue would take")
    func slots() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        var connections: [Connection] = []
        while connections.count <= LedgerTable.slotCount {
            let connection = try makeConnection(UInt64(connections.count))
            guard ledger.enter(connection) == .entered else { break }
            connections.append(connection)
        }
        #expect(connections.count <= LedgerTable.slotCount)
        #expect(connections.count > LedgerTable.slotCount / 4)
        let places = Set(connections.compactMap(\.ledgerPlace))
        #expect(places.count == connections.count)
        #expect(Set(places.map(\.slot)).count == connections.count)
        #expect(try kept.contents().count == connections.count)
    }

    @Test("a refusal by the kernel is told, and nothing is entered")
    func refused() throws {
        let kept = try KeptLedger()
        let queue = try SocketPair(linux_SOCK_DGRAM)
        let writer = try copy(of: queue.first.rawValue)
        _ = consume queue  // nobody can receive any more
        let ledger = Ledger(
            name: "proxy-ledger-1", table: try LedgerTable.adopt(kept.file.rawValue),
            writer: writer, reader: try copy(of: kept.reader.rawValue), store: nil)
        let connection = try makeConnection(1)
        #expect(ledger.enter(connection) == .refused(ECONNREFUSED))
        #expect(connection.ledger == nil && connection.slot == nil)
        #expect(ledger.isEmpty)
        // A socket that has lost its peer has none from then on.
        #expect(ledger.enter(try Pipe()) == .refused(ENOTCONN))
        #expect(ledger.isEmpty)
        let table = try LedgerTable.adopt(kept.file.rawValue)
        #expect((0..<LedgerTable.slotCount).allSatisfy { table.slot($0).serial == 0 })
    }

    // MARK: The next life

    @Test(
        "the next life finds all that the last one entered, with its table",
        arguments: [false, true])
    func nextLife(isTurned: Bool) throws {
        let kept = try KeptLedger()
        let connection = try makeConnection(1)
        let pipe = try Pipe()
        do {
            let ledger = try kept.begin()
            #expect(ledger.enter(connection) == .entered)
            #expect(ledger.enter(pipe) == .entered)
        }
        let summary = LedgerSummary(of: InheritedLedger(name: "x", descriptors: kept.descriptors))
        #expect(summary.worker == 5)
        #expect(summary.routes == ["web"])
        #expect(summary.hasPipes)
        let remains = try kept.remains(isTurned: isTurned)
        let (name, refusal) = (remains.name, remains.refusal)
        #expect(name == "proxy-ledger-1")
        #expect(refusal == nil)
        let (reader, writer) = (remains.reader.rawValue, remains.writer.rawValue)
        #expect(inode(reader) == inode(kept.reader.rawValue))
        #expect(inode(writer) == inode(kept.writer.rawValue))
        let expected = [try connection.found(), pipe.found]
        for _ in 0..<2 {
            let everything = remains.everything()
            #expect(everything == expected)
        }
        let table = try LedgerTable.adopt(kept.file.rawValue)
        #expect(table.slot(connection.slotIndex).serial == connection.ledgerPlace?.serial)
    }

    @Test("what is adopted stays, what is not is dead, and slots of the dead are free")
    func adopts() throws {
        let kept = try KeptLedger()
        var connections: [Connection] = []
        var pipes: [Pipe] = []
        do {
            let ledger = try kept.begin()
            for id in 1...100 as ClosedRange<UInt64> {
                let connection = try makeConnection(id, isConnected: id % 3 != 0)
                try #require(ledger.enter(connection) == .entered)
                connections.append(connection)
                if id % 3 == 0 {
                    try connect(connection)
                    try #require(ledger.enterTarget(of: connection) == .entered)
                }
                if id % 4 == 0 {
                    let pipe = try Pipe()
                    try #require(ledger.enter(pipe) == .entered)
                    pipes.append(pipe)
                }
            }
        }
        let ledger = try Ledger(resuming: kept.remains(), queued: kept.contents().count)
        let survivors = connections.enumerated().filter { $0.offset % 2 == 0 }.map(\.element)
        for connection in survivors {
            ledger.adopt(
                connection, at: try #require(connection.ledgerPlace),
                targetIsApart: connection.targetIsApart)
        }
        for pipe in pipes.prefix(10) { ledger.adopt(pipe) }
        ledger.finishAdoption()
        #expect(ledger.count == survivors.count)
        let table = try LedgerTable.adopt(kept.file.rawValue)
        let taken = (0..<LedgerTable.slotCount).filter { table.slot($0).serial != 0 }
        #expect(Set(taken) == Set(survivors.map(\.slotIndex)))
        ledger.compact()
        try checkSame(kept, survivors, Array(pipes.prefix(10)))

        let newcomer = try makeConnection(1000)
        #expect(ledger.enter(newcomer) == .entered)
        #expect(!survivors.map(\.slotIndex).contains(newcomer.slotIndex))
        for connection in survivors { ledger.forget(connection) }
        for pipe in pipes.prefix(10) { ledger.forget(pipe) }
        ledger.compact()
        try expect(kept, holds: [newcomer.found()])
    }

    @Test(
        "an entry that is there twice, from a crash while the queue was turned, is there once again"
    )
    func doubled() throws {
        let kept = try KeptLedger()
        let connection = try makeConnection(1)
        let pipe = try Pipe()
        do {
            let ledger = try kept.begin()
            #expect(ledger.enter(connection) == .entered)
            #expect(ledger.enter(pipe) == .entered)
        }
        // As `compact` does between putting the entry at the end and taking the head off.
        let entries = [try connection.found(), pipe.found]
        try kept.send(
            try #require(entries[0].entry).bytes,
            [connection.client.rawValue, connection.targetDescriptor])
        try kept.send(
            try #require(entries[1].entry).bytes,
            [pipe.readEnd.rawValue, pipe.writeEnd.rawValue])
        let ledger = try Ledger(resuming: kept.remains(), queued: 4)
        ledger.adopt(connection, at: try #require(connection.ledgerPlace), targetIsApart: false)
        ledger.adopt(pipe)
        ledger.finishAdoption()
        #expect(try kept.contents().count >= 2)
        ledger.compact()
        try expect(kept, holds: entries)
        ledger.forget(connection)
        ledger.forget(pipe)
        ledger.compact()
        try expect(kept, holds: [])
    }

    @Test("an entry whose slot has another tenant by now is dead")
    func otherTenant() throws {
        let kept = try KeptLedger()
        let ledger = try kept.begin()
        let first = try makeConnection(1)
        #expect(ledger.enter(first) == .entered)
        let place = try #require(first.ledgerPlace)
        ledger.forget(first)
        let second = try makeConnection(2)
        #expect(ledger.enter(second) == .entered)
        let other = try #require(second.ledgerPlace)
        #expect(other.slot == place.slot && other.serial != place.serial)
        ledger.compact()
        try expect(kept, holds: [second.found()])
    }

    // MARK: What is no ledger

    @Test("without two sockets there is no queue, and what came is closed")
    func noQueue() throws {
        let kept = try KeptLedger()
        let pair = try SocketPair(linux_SOCK_STREAM)
        let sets: [[FileDescriptorSource]] = [
            [], [.file], [.socket], [.socket, .file], [.stream, .stream, .file], [.null, .socket],
        ]
        for set in sets {
            let descriptors = try set.map { source in
                switch source {
                case .file: try copy(of: kept.file.rawValue).release()
                case .socket: try copy(of: kept.writer.rawValue).release()
                case .stream: try copy(of: pair.first.rawValue).release()
                case .null: unsafe open("/dev/null", O_RDWR)
                }
            }
            let remains = LedgerRemains(InheritedLedger(name: "x", descriptors: descriptors))
            let isLedger = remains != nil
            #expect(!isLedger, "\(set)")
        }
    }

    private enum FileDescriptorSource { case file, socket, stream, null }

    @Test("a queue without its table, or with a wrong one, is told of")
    func noTable() throws {
        let kept = try KeptLedger()
        let queue = [
            try copy(of: kept.writer.rawValue).release(),
            try copy(of: kept.reader.rawValue).release(),
        ]
        let summary = LedgerSummary(of: InheritedLedger(name: "x", descriptors: queue))
        #expect(summary.worker == 0 && summary.routes == [] && summary.hasPipes)
        var refused = refusal(LedgerRemains(InheritedLedger(name: "x", descriptors: queue)))
        #expect(refused == .damaged)
        let layout: [UInt8] = [2, 0, 0, 0]
        let written = unsafe pwrite(kept.file.rawValue, layout, 4, 8)
        #expect(written == 4)
        refused = refusal(try kept.remains())
        #expect(refused == .unknownLayout)
    }

    private func refusal(_ remains: consuming LedgerRemains?) -> LedgerTable.Refusal? {
        remains?.refusal
    }
}

extension LedgerEntry {
    fileprivate var place: LedgerPlace? {
        switch self {
        case .connection(let facts): facts.place
        case .target(let facts): facts.place
        case .pipe: nil
        }
    }
}

extension Ledger {
    /// The next life's ledger.
    fileprivate convenience init(
        resuming remains: borrowing LedgerRemains, queued: Int
    ) throws {
        guard let table = remains.table else { throw LedgerTable.Refusal.damaged }
        self.init(
            name: remains.name, table: table, writer: try copy(of: remains.writer.rawValue),
            reader: try copy(of: remains.reader.rawValue), store: nil, adopting: queued)
    }
}
