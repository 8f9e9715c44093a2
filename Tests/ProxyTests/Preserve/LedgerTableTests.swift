import CLinux
import Glibc
import Testing

@testable import Proxy

@Suite("A ledger's table outlives the one who wrote it")
struct LedgerTableTests {
    private func newFile() throws -> FileDescriptor {
        let file = try LedgerTable.makeFile()
        _ = try LedgerTable.make(in: file, worker: 5)
        return file
    }

    private func write(_ bytes: [UInt8], at offset: off_t, _ file: CInt) {
        let written = unsafe pwrite(file, bytes, bytes.count, offset)
        #expect(written == bytes.count)
    }

    /// Memory of a table's size, sealed as asked for, which Swift's Glibc has no call for.
    private func memory(seals: CInt) throws -> FileDescriptor {
        typealias Call = @convention(c) (UnsafePointer<CChar>, CUnsignedInt) -> CInt
        let symbol = try unsafe #require(unsafe dlsym(nil, "memfd_create"))
        let create = unsafe unsafeBitCast(symbol, to: Call.self)
        let file = FileDescriptor(
            owning: try retrying("memfd_create") { unsafe create("test", 2) })  // MFD_ALLOW_SEALING
        let fd = file.rawValue
        try #require(ftruncate(fd, off_t(LedgerTable.size)) == 0)
        write(try firstPage(), at: 0, fd)
        try #require(fcntl(fd, 1033, seals) == 0)  // F_ADD_SEALS
        return file
    }

    /// Of a good table.
    private func firstPage() throws -> [UInt8] {
        let file = try newFile()
        var page = [UInt8](repeating: 0, count: 4096)
        let count = unsafe pread(file.rawValue, &page, page.count, 0)
        #expect(count == page.count)
        return page
    }

    private func refusal(_ file: CInt) -> LedgerTable.Refusal? {
        do throws(LedgerTable.Refusal) {
            _ = try LedgerTable.adopt(file)
            return nil
        } catch {
            return error
        }
    }

    // MARK: Adopting

    @Test("a table is adopted, and its descriptor may be closed afterwards")
    func adopts() throws {
        let file = try newFile()
        let table = try LedgerTable.adopt(file.rawValue)
        _ = consume file
        #expect(table.worker == 5)
        #expect(table.attempts == 0)
        #expect(table.handedOverAt == nil)
        #expect((0..<LedgerTable.slotCount).allSatisfy { table.slot($0).serial == 0 })
    }

    @Test("a new table was signed at once: a crash in the next moment has its time")
    func isSigned() throws {
        let before = Instant.now()
        let file = try newFile()
        let sign = try LedgerTable.adopt(file.rawValue).lastSign
        #expect(sign >= before && sign <= Instant.now())
    }

    @Test("a table's file can neither grow nor shrink, and nobody can unseal it")
    func isSealed() throws {
        let file = try newFile()
        #expect(ftruncate(file.rawValue, off_t(LedgerTable.size - 1)) == -1)
        #expect(ftruncate(file.rawValue, off_t(LedgerTable.size + 1)) == -1)
        #expect(fcntl(file.rawValue, 1033, 8) == -1, "a seal against writing would break it")
        let flags = fcntl(file.rawValue, F_GETFD)
        #expect(flags & FD_CLOEXEC != 0)
    }

    @Test("memory of another size is refused", arguments: [nil, -4096, -1, 1, 4096])
    func size(difference: Int?) throws {
        let size = difference.map { LedgerTable.size + $0 } ?? 0
        let file = FileDescriptor(
            owning: try retrying("memfd_create") { unsafe linux_memfd("test", size) })
        if size >= 4096 { write(try firstPage(), at: 0, file.rawValue) }
        let refused = refusal(file.rawValue)
        #expect(refused == .damaged)
    }

    @Test("memory that could still shrink is refused: to read behind its end would be SIGBUS")
    func unsealed() throws {
        let (shrink, grow): (CInt, CInt) = (2, 4)
        for seals in [0, shrink, grow] {
            let file = try memory(seals: seals)
            #expect(refusal(file.rawValue) == .damaged, "seals \(seals)")
        }
        let file = try memory(seals: shrink | grow)
        #expect(refusal(file.rawValue) == nil, "the same memory, sealed")
    }

    @Test("what is no memory at all is refused")
    func noMemory() throws {
        #expect(refusal(-1) == .damaged)
        let null = FileDescriptor(owning: unsafe open("/dev/null", O_RDWR))
        #expect(refusal(null.rawValue) == .damaged)
        let pair = try SocketPair(linux_SOCK_DGRAM)
        #expect(refusal(pair.first.rawValue) == .damaged)
        let pipe = try Pipe()
        #expect(refusal(pipe.readEnd.rawValue) == .damaged)
    }

    @Test("memory with foreign contents is refused, byte for byte of what marks a table")
    func foreign() throws {
        let blank = try LedgerTable.makeFile()
        #expect(refusal(blank.rawValue) == .damaged)
        // Magic, then the layout, then a slot's size and their count, 32 bits each.
        for offset in 0..<20 {
            let file = try newFile()
            var byte: UInt8 = 0
            try #require(unsafe pread(file.rawValue, &byte, 1, off_t(offset)) == 1)
            write([byte ^ 0x80], at: off_t(offset), file.rawValue)
            let expected: LedgerTable.Refusal =
                (8..<12).contains(offset) ? .unknownLayout : .damaged
            #expect(refusal(file.rawValue) == expected, "byte \(offset)")
            write([byte], at: off_t(offset), file.rawValue)
            #expect(refusal(file.rawValue) == nil)
        }
    }

    // MARK: Fields

    @Test("what one life writes into the header, the next reads")
    func header() throws {
        let file = try newFile()
        let (first, second) = (
            try LedgerTable.adopt(file.rawValue), try LedgerTable.adopt(file.rawValue)
        )
        first.worker = 0xFFFF_FFFF_FFFF
        first.lastSign = Instant(nanoseconds: 12)
        first.handedOverAt = Instant(nanoseconds: 34)
        first.attempts = 56
        #expect(second.worker == 0xFFFF_FFFF_FFFF)
        #expect(second.lastSign == Instant(nanoseconds: 12))
        #expect(second.handedOverAt == Instant(nanoseconds: 34))
        #expect(second.attempts == 56)
        first.handedOverAt = nil
        #expect(second.handedOverAt == nil)
    }

    @Test("the routes of its connections are kept for the next life")
    func routes() throws {
        let file = try newFile()
        let longest = String(repeating: "r", count: 255)
        let names = ["web", "Straße", longest, "x"]
        do {
            let table = try LedgerTable.adopt(file.rawValue)
            #expect(table.routes == [])
            #expect(!table.hasPipes)
            for name in names {
                let isAdded = table.addRoute(name)
                #expect(isAdded)
            }
            let isAdded = table.addRoute(longest + "r")
            #expect(!isAdded)
            table.hasPipes = true
        }
        let table = try LedgerTable.adopt(file.rawValue)
        #expect(table.routes == names)
        #expect(table.hasPipes)
        #expect(table.worker == 5 && table.slot(0).serial == 0, "nothing else was touched")
    }

    @Test("routes fill their room and no more: the slots behind it stay as they are")
    func manyRoutes() throws {
        let file = try newFile()
        let table = try LedgerTable.adopt(file.rawValue)
        table.slot(0).take(serial: 77)
        var names: [String] = []
        while names.count < 1000, table.addRoute("route number \(names.count)") {
            names.append("route number \(names.count)")
        }
        #expect(names.count > 200 && names.count < 300)
        while table.addRoute("x") { names.append("x") }
        #expect(table.routes == names)
        #expect(table.slot(0).serial == 77)
    }

    @Test("routes of a damaged table are read as far as they can be, and never behind their room")
    func damagedRoutes() throws {
        let header = MemoryLayout<linux_ledger_header>.size
        for (bytes, names) in [
            ([3, 0x77, 0x65, 0x62, 9, 0x78], ["web"]), ([0, 3, 0x77, 0x65, 0x62], []),
            ([1, 0xFF, 1, 0x78], []), ([255, 1], []),
            ([1, 0x78, 1, 0x79, 0, 1, 0x7A], ["x", "y"]),
        ] as [([UInt8], [String])] {
            let file = try newFile()
            let table = try LedgerTable.adopt(file.rawValue)
            _ = table.addRoute(String(repeating: "r", count: bytes.count - 1))
            write(bytes, at: off_t(header), file.rawValue)
            #expect(table.routes == names)
        }
        // Whatever the header says of their size.
        let file = try newFile()
        let table = try LedgerTable.adopt(file.rawValue)
        for word in 0..<(header / 4) where word * 4 >= 20 {
            write([0xFF, 0xFF, 0xFF, 0xFF], at: off_t(word * 4), file.rawValue)
        }
        #expect(table.routes == [])
        let isAdded = table.addRoute("x")
        #expect(!isAdded)
        write([UInt8](repeating: 1, count: 4096 - header), at: off_t(header), file.rawValue)
        #expect(table.routes.count == (4096 - header) / 2)
    }

    @Test("what one life writes into a slot, the next reads, in that slot alone")
    func slots() throws {
        let file = try newFile()
        do {
            let table = try LedgerTable.adopt(file.rawValue)
            for index in 0..<LedgerTable.slotCount {
                let (slot, number) = (table.slot(index), UInt64(index))
                slot.take(serial: number + 1)
                slot.setBytesIn(number + 2)
                slot.setBytesOut(.max - number)
                slot.setPipe(from: .client, number + 3)
                slot.setPipe(from: .target, number + 4)
                slot.bytesAtResumption = number + 5
                slot.crashes = index % 256
                slot.setCopying(index % 2 == 0)
                slot.setHandled(index % 3 == 0)
                slot.firstToFinish = [nil, .client, .target][index % 3]
                slot.broken = [nil, (.client, ECONNRESET), (.target, ETIMEDOUT)][index % 3]
            }
        }
        let table = try LedgerTable.adopt(file.rawValue)
        for index in 0..<LedgerTable.slotCount {
            let (slot, number) = (table.slot(index), UInt64(index))
            #expect(slot.serial == number + 1)
            #expect(slot.bytes == (number + 2, .max - number))
            #expect(slot.pipe(from: .client) == number + 3)
            #expect(slot.pipe(from: .target) == number + 4)
            #expect(slot.bytesAtResumption == number + 5)
            #expect(slot.crashes == index % 256)
            #expect(slot.isCopying == (index % 2 == 0))
            #expect(slot.isHandled == (index % 3 == 0))
            #expect(slot.firstToFinish == [nil, .client, .target][index % 3])
            #expect(slot.broken?.side == [nil, .client, .target][index % 3])
            #expect(slot.broken?.code == [nil, ECONNRESET, ETIMEDOUT][index % 3])
        }
    }

    @Test("a slot that is taken anew has nothing of its last tenant; one that is freed is free")
    func tenants() throws {
        let file = try newFile()
        // Any bytes: what a table holds may be damaged.
        write([UInt8](repeating: 0xFF, count: 64), at: 4096 + 64, file.rawValue)
        let table = try LedgerTable.adopt(file.rawValue)
        #expect(table.slot(1).serial == .max)
        #expect(table.slot(1).isCopying && table.slot(1).isHandled)
        #expect(table.slot(1).firstToFinish == nil && table.slot(1).broken == nil, "no side")
        #expect(table.slot(0).serial == 0 && table.slot(2).serial == 0)

        table.slot(1).take(serial: 9)
        var bytes = [UInt8](repeating: 1, count: 64)
        try #require(unsafe pread(file.rawValue, &bytes, 64, 4096 + 64) == 64)
        #expect(bytes == [9] + [UInt8](repeating: 0, count: 63))
        table.slot(1).free()
        #expect(table.slot(1).serial == 0)
    }

    @Test("crashes are counted up to what fits, not around", arguments: [(300, 255), (-1, 0)])
    func manyCrashes(set: Int, read: Int) throws {
        let file = try newFile()
        let table = try LedgerTable.adopt(file.rawValue)
        table.slot(0).crashes = set
        #expect(table.slot(0).crashes == read)
    }
}
