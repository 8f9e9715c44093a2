// Where a worker keeps its connections: numbered places, used again.

/// A place in a slab, and which of its successive tenants is meant.
struct SlabKey: Equatable, Sendable {
    let index: Int
    let generation: UInt32

    /// As epoll carries it: generation, place, kind.
    func token(_ kind: Token.Kind) -> UInt64 {
        UInt64(generation) << 32 | UInt64(UInt32(truncatingIfNeeded: index)) << 2
            | UInt64(kind.rawValue)
    }
}

/// What an event of epoll is about.
struct Token {
    enum Kind: UInt8 {
        case client = 0
        case target = 1
        case listener = 2
        case mailbox = 3
    }

    let kind: Kind
    let key: SlabKey

    init(_ rawValue: UInt64) {
        kind = Kind(rawValue: UInt8(rawValue & 3)) ?? .client
        key = SlabKey(
            index: Int(rawValue >> 2 & 0x3fff_ffff),
            generation: UInt32(truncatingIfNeeded: rawValue >> 32))
    }
}

/// Connections by number. A stale event, for a tenant that has left, finds nobody.
struct Slab {
    private var tenants: [Connection?] = []
    private var generations: [UInt32] = []
    private var free: [Int] = []
    private(set) var count = 0

    mutating func insert(_ connection: Connection) {
        let index: Int
        if let reused = free.popLast() {
            index = reused
        } else {
            index = tenants.count
            tenants.append(nil)
            generations.append(0)
        }
        tenants[index] = connection
        connection.key = SlabKey(index: index, generation: generations[index])
        count += 1
    }

    mutating func remove(_ connection: Connection) {
        let index = connection.key.index
        guard self[connection.key] != nil else { return }
        tenants[index] = nil
        generations[index] &+= 1
        free.append(index)
        count -= 1
    }

    subscript(key: SlabKey) -> Connection? {
        guard key.index < tenants.count, generations[key.index] == key.generation else {
            return nil
        }
        return tenants[key.index]
    }

    /// The tenant of a place, whoever it is.
    subscript(index: Int) -> Connection? { index < tenants.count ? tenants[index] : nil }

    var all: [Connection] { tenants.compactMap { $0 } }
}
