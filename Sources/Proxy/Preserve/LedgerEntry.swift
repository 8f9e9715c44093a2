// What a ledger's queue holds: one datagram for each connection, and one for each pipe, with the
// descriptors beside it. Pure: bytes to facts and back.

/// The facts of a datagram. They never change; what does is in the ledger's table.
enum LedgerEntry: Equatable, Sendable {
    /// A client's socket and, if its target was connected, the target's.
    case connection(ConnectionFacts)
    /// The target's socket of a connection that was entered while it was being dialled.
    case target(TargetFacts)
    /// Both ends of a pipe, the one to read first, under its number.
    case pipe(UInt64)

    /// By what entries of a ledger differ.
    enum Name: Hashable {
        case connection(LedgerPlace)
        case target(LedgerPlace)
        case pipe(UInt64)
    }

    var name: Name {
        switch self {
        case .connection(let facts): .connection(facts.place)
        case .target(let facts): .target(facts.place)
        case .pipe(let number): .pipe(number)
        }
    }

    /// How many descriptors go with the datagram.
    var descriptorCount: Int {
        switch self {
        case .connection(let facts): facts.target == nil ? 1 : 2
        case .target: 1
        case .pipe: 2
        }
    }
}

/// What is known of a connection from its beginning.
struct ConnectionFacts: Equatable, Sendable {
    /// Where the table tells of the connection, and the mark by which both know each other.
    var place: LedgerPlace
    var id: UInt64
    var acceptedAt: Instant
    var route: String
    var client: SocketAddress
    var listen: SocketAddress
    /// nil while no target is connected.
    var target: TargetOfEntry?
}

/// A connected target.
struct TargetOfEntry: Equatable, Sendable {
    var address: SocketAddress
    /// Nanoseconds that it took to connect.
    var connectDuration: UInt64
}

/// The target of a connection whose entry has none.
struct TargetFacts: Equatable, Sendable {
    var place: LedgerPlace
    var target: TargetOfEntry
}

/// A slot of the table, and which of its successive tenants is meant.
struct LedgerPlace: Hashable, Sendable {
    var slot: UInt32
    var serial: UInt64  // random, never 0
}

/// Why a datagram cannot be used.
enum EntryDamage: Error, Equatable {
    /// Written by a version of the proxy that this one does not know.
    case unknownLayout(UInt8)
    case damaged
}

// MARK: - Bytes

extension LedgerEntry {
    /// The layout of datagrams and table; a newer version of the proxy reads the older ones.
    static let layout: UInt8 = 1

    /// Longer than any entry: a name of 255 bytes and three addresses.
    static let mostBytes = 1024

    private enum Kind: UInt8 {
        case connection = 1
        case target = 2
        case pipe = 3
    }

    var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.put(Self.layout)
        switch self {
        case .connection(let facts):
            writer.put(Kind.connection.rawValue)
            writer.put(facts.place)
            writer.put(facts.id)
            writer.put(facts.acceptedAt.nanoseconds)
            writer.put(facts.route)
            writer.put(facts.client)
            writer.put(facts.listen)
            writer.put(facts.target == nil ? UInt8(0) : 1)
            if let target = facts.target { writer.put(target) }
        case .target(let facts):
            writer.put(Kind.target.rawValue)
            writer.put(facts.place)
            writer.put(facts.target)
        case .pipe(let number):
            writer.put(Kind.pipe.rawValue)
            writer.put(number)
        }
        return writer.bytes
    }

    /// Reads a datagram. Every field is checked, and nothing may be left over.
    init(_ bytes: ArraySlice<UInt8>) throws(EntryDamage) {
        var reader = ByteReader(bytes)
        let layout = try reader.byte()
        guard layout == Self.layout else { throw .unknownLayout(layout) }
        switch Kind(rawValue: try reader.byte()) {
        case .connection:
            self = .connection(
                ConnectionFacts(
                    place: try reader.place(), id: try reader.word(),
                    acceptedAt: Instant(nanoseconds: try reader.word()),
                    route: try reader.text(), client: try reader.address(),
                    listen: try reader.address(),
                    target: try reader.flag() ? try reader.target() : nil))
        case .target:
            self = .target(TargetFacts(place: try reader.place(), target: try reader.target()))
        case .pipe: self = .pipe(try reader.word())
        case nil: throw .damaged
        }
        guard reader.isAtEnd else { throw .damaged }
    }
}

/// Numbers in little-endian order, texts with their length in front.
private struct ByteWriter {
    var bytes: [UInt8] = []

    mutating func put<Number: FixedWidthInteger>(_ number: Number) {
        for shift in stride(from: 0, to: Number.bitWidth, by: 8) {
            bytes.append(UInt8(truncatingIfNeeded: number >> shift))
        }
    }

    mutating func put(_ text: String) {
        let utf8 = Array(text.utf8.prefix(Int(UInt16.max)))
        put(UInt16(utf8.count))
        bytes += utf8
    }

    mutating func put(_ place: LedgerPlace) {
        put(place.slot)
        put(place.serial)
    }

    mutating func put(_ target: TargetOfEntry) {
        put(target.address)
        put(target.connectDuration)
    }

    mutating func put(_ address: SocketAddress) {
        switch address {
        case .unnamed: put(UInt8(0))
        case .ipv4(let host, let port):
            put(UInt8(4))
            put(host)
            put(port)
        case .ipv6(let high, let low, let port, let scope):
            put(UInt8(6))
            put(high)
            put(low)
            put(port)
            put(scope)
        case .path(let path):
            put(UInt8(1))
            put(path)
        case .abstract(let name):
            put(UInt8(2))
            put(name)
        }
    }
}

private struct ByteReader {
    private var rest: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    var isAtEnd: Bool { rest.isEmpty }

    mutating func byte() throws(EntryDamage) -> UInt8 {
        guard let byte = rest.popFirst() else { throw .damaged }
        return byte
    }

    mutating func flag() throws(EntryDamage) -> Bool {
        switch try byte() {
        case 0: return false
        case 1: return true
        default: throw .damaged
        }
    }

    private mutating func number<Number: FixedWidthInteger>(
        _: Number.Type
    ) throws(EntryDamage) -> Number {
        var number: Number = 0
        for shift in stride(from: 0, to: Number.bitWidth, by: 8) {
            number |= Number(truncatingIfNeeded: try byte()) << shift
        }
        return number
    }

    mutating func word() throws(EntryDamage) -> UInt64 { try number(UInt64.self) }

    mutating func text() throws(EntryDamage) -> String {
        let count = Int(try number(UInt16.self))
        guard count <= rest.count,
            let text = String(validating: rest.prefix(count), as: UTF8.self)
        else { throw .damaged }
        rest = rest.dropFirst(count)
        return text
    }

    mutating func place() throws(EntryDamage) -> LedgerPlace {
        LedgerPlace(slot: try number(UInt32.self), serial: try word())
    }

    mutating func target() throws(EntryDamage) -> TargetOfEntry {
        TargetOfEntry(address: try address(), connectDuration: try word())
    }

    mutating func address() throws(EntryDamage) -> SocketAddress {
        switch try byte() {
        case 0: return .unnamed
        case 1: return .path(try text())
        case 2: return .abstract(try text())
        case 4: return .ipv4(try number(UInt32.self), port: try number(UInt16.self))
        case 6:
            return .ipv6(
                high: try word(), low: try word(), port: try number(UInt16.self),
                scope: try number(UInt32.self))
        default: throw .damaged
        }
    }
}
