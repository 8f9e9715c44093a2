import Glibc
import Testing

@testable import Proxy

@Suite("Datagrams of a ledger")
struct LedgerEntryTests {
    private static let longestName = String(repeating: "n", count: 255)
    private static let longestPath = "/" + String(repeating: "p", count: 106)

    private static let addresses: [SocketAddress] = [
        .unnamed,
        .ipv4(0x7f00_0001, port: 80), .ipv4(.max, port: .max), .ipv4(0, port: 0),
        .ipv6(high: 0x2001_0db8_0000_0000, low: 1, port: 443, scope: 0),
        .ipv6(high: .max, low: .max, port: .max, scope: .max),
        .path("/run/x.sock"), .path("/run/Ünïcode \u{301}e"), .path(longestPath), .path(""),
        .abstract("name"), .abstract("with\0NUL"), .abstract(longestPath), .abstract(""),
    ]

    private static let place = LedgerPlace(slot: 3, serial: 0x0807_0605_0403_0201)

    private static func facts(
        route: String = "web", client: SocketAddress = .unnamed,
        listen: SocketAddress = .unnamed, target: SocketAddress? = nil
    ) -> LedgerEntry {
        .connection(
            ConnectionFacts(
                place: place, id: 7, acceptedAt: Instant(nanoseconds: 9), route: route,
                client: client, listen: listen,
                target: target.map { TargetOfEntry(address: $0, connectDuration: 11) }))
    }

    /// Every kind with every kind of address in every position.
    private static let entries: [LedgerEntry] = {
        var entries: [LedgerEntry] = [
            .pipe(0), .pipe(1), .pipe(.max), facts(), facts(route: ""),
            facts(route: "Straße \u{1F3E0}"), longest,
            .connection(
                ConnectionFacts(
                    place: LedgerPlace(slot: .max, serial: .max), id: .max,
                    acceptedAt: Instant(nanoseconds: .max), route: "r", client: .unnamed,
                    listen: .unnamed,
                    target: TargetOfEntry(address: .unnamed, connectDuration: .max))),
        ]
        for address in addresses {
            entries += [
                facts(client: address), facts(listen: address), facts(target: address),
                .target(
                    TargetFacts(
                        place: place, target: TargetOfEntry(address: address, connectDuration: 5))),
            ]
        }
        return entries
    }()

    private static let longest = facts(
        route: longestName, client: .path(longestPath), listen: .abstract(longestPath),
        target: .path(longestPath))

    /// One of each kind, for what is tried at every byte.
    private static let oneOfEach: [LedgerEntry] = [
        facts(
            client: .ipv4(1, port: 2), listen: .path("/l"),
            target: .ipv6(high: 1, low: 2, port: 3, scope: 4)),
        facts(client: .unnamed, listen: .abstract("l")),
        .target(
            TargetFacts(
                place: place, target: TargetOfEntry(address: .path("/t"), connectDuration: 5))),
        .pipe(0x0102_0304_0506_0708),
        longest,
    ]

    private func decode(_ bytes: [UInt8]) throws(EntryDamage) -> LedgerEntry {
        try LedgerEntry(bytes[...])
    }

    // MARK: There and back

    @Test("become bytes and are read as what they were")
    func roundTrip() throws {
        for entry in Self.entries {
            #expect(try decode(entry.bytes) == entry)
        }
    }

    @Test("are read from the middle of a buffer too: a slice need not begin at 0")
    func slice() throws {
        for entry in Self.oneOfEach {
            let bytes = entry.bytes
            let buffer = [0xEE, 0xEE, 0xEE] + bytes + [0xEE]
            #expect(try LedgerEntry(buffer[3..<3 + bytes.count]) == entry)
        }
    }

    @Test("fit the buffer of whoever reads them, whatever the names")
    func fit() throws {
        #expect(Self.longest.bytes.count <= LedgerEntry.mostBytes)
        // A client may bind to bytes that are no text: each becomes three in UTF-8.
        var storage = sockaddr_storage()
        unsafe withUnsafeMutableBytes(of: &storage) { bytes in
            unsafe bytes.storeBytes(of: sa_family_t(AF_UNIX), as: sa_family_t.self)
            for index in 2..<110 { unsafe bytes[index] = 0xFF }
        }
        let client = SocketAddress(&storage, length: 110)
        let entry = Self.facts(
            route: Self.longestName, client: client, listen: .path(Self.longestPath),
            target: .path(Self.longestPath))
        #expect(entry.bytes.count <= LedgerEntry.mostBytes)
        #expect(try decode(entry.bytes) == entry)
    }

    @Test("name as many descriptors as they have sockets or ends")
    func descriptors() {
        #expect(Self.facts().descriptorCount == 1)
        #expect(Self.facts(target: .unnamed).descriptorCount == 2)
        #expect(LedgerEntry.pipe(1).descriptorCount == 2)
        let target = TargetOfEntry(address: .unnamed, connectDuration: 0)
        let entry = LedgerEntry.target(TargetFacts(place: Self.place, target: target))
        #expect(entry.descriptorCount == 1)
    }

    @Test("have the bytes of layout 1 for good: the next version of the proxy reads them")
    func layout() {
        #expect(
            LedgerEntry.pipe(0x0807_0605_0403_0201).bytes == [1, 3, 1, 2, 3, 4, 5, 6, 7, 8])
        let place: [UInt8] = [3, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
        let target: [UInt8] = [1, 2, 0, 0x2F, 0x74, 5, 0, 0, 0, 0, 0, 0, 0]
        #expect(Self.oneOfEach[2].bytes == [1, 2] + place + target)
        let id: [UInt8] = [7, 0, 0, 0, 0, 0, 0, 0]
        let acceptedAt: [UInt8] = [9, 0, 0, 0, 0, 0, 0, 0]
        let route: [UInt8] = [3, 0, 0x77, 0x65, 0x62]
        let client: [UInt8] = [4, 1, 0, 0, 0, 2, 0]
        let listen: [UInt8] = [1, 2, 0, 0x2F, 0x6C]
        let address: [UInt8] = [
            6, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0,
        ]
        let connected: [UInt8] = [1] + address + [11, 0, 0, 0, 0, 0, 0, 0]
        #expect(
            Self.oneOfEach[0].bytes
                == [1, 1] + place + id + acceptedAt + route + client + listen + connected)
    }

    // MARK: Refused

    @Test("are refused if they end anywhere before their end")
    func truncated() {
        for entry in Self.oneOfEach {
            let bytes = entry.bytes
            for count in bytes.indices {
                #expect(throws: EntryDamage.damaged, "\(count) of \(bytes.count) bytes") {
                    try LedgerEntry(bytes.prefix(count))
                }
            }
        }
    }

    @Test("are refused if anything follows, whatever the byte")
    func trailing() {
        for entry in Self.oneOfEach {
            for byte in UInt8.min ... .max {
                #expect(throws: EntryDamage.damaged, "\(byte) after \(entry)") {
                    try decode(entry.bytes + [byte])
                }
            }
        }
    }

    @Test("of another layout are told from damaged ones, whatever follows")
    func otherLayout() {
        for layout in UInt8.min ... .max where layout != LedgerEntry.layout {
            for rest in [[], [0], Array(LedgerEntry.pipe(1).bytes.dropFirst())] as [[UInt8]] {
                #expect(throws: EntryDamage.unknownLayout(layout)) { try decode([layout] + rest) }
            }
        }
    }

    @Test("of an unknown kind, or with an address of one, are refused")
    func otherKinds() {
        for kind in UInt8.min ... .max where !(1...3).contains(kind) {
            var bytes = LedgerEntry.pipe(1).bytes
            bytes[1] = kind
            #expect(throws: EntryDamage.damaged) { try decode(bytes) }
        }
        for kind in UInt8.min ... .max where ![0, 1, 2, 4, 6].contains(kind) {
            let bytes = [1, 2] + [UInt8](repeating: 1, count: 12) + [kind]
            for length in 0..<64 {
                #expect(throws: EntryDamage.damaged) {
                    try decode(bytes + [UInt8](repeating: 0, count: length))
                }
            }
        }
    }

    @Test("are refused if a text is longer than they are, or is none")
    func texts() {
        let head = [1, 2] + [UInt8](repeating: 1, count: 12) + [1]
        let duration = [UInt8](repeating: 0, count: 8)
        let texts: [[UInt8]] = [
            [0xFF, 0xFF, 0x2F], [11, 0, 0x2F], [1, 0, 0xFF], [2, 0, 0xC3, 0x28], [1, 0, 0xC3],
            [3, 0, 0xED, 0xA0, 0x80], [2, 0, 0xC0, 0x80],
        ]
        for text in texts {
            #expect(throws: EntryDamage.damaged, "\(text)") { try decode(head + text + duration) }
        }
        #expect(throws: Never.self, "the same with a text") {
            try decode(head + [1, 0, 0x2F] + duration)
        }
    }

    @Test("whatever is in a byte, what can be read has no other form: nothing goes unchecked")
    func oneForm() {
        var otherForms: [String] = []
        for entry in Self.oneOfEach where entry != Self.longest {
            let original = entry.bytes
            for index in original.indices {
                var bytes = original
                for byte in UInt8.min ... .max {
                    bytes[index] = byte
                    if let read = try? decode(bytes), read.bytes != bytes {
                        otherForms.append("byte \(index) as \(byte) in \(entry)")
                    }
                }
            }
        }
        #expect(otherForms.isEmpty, "\(otherForms.count), such as \(otherForms.prefix(1))")
    }
}
