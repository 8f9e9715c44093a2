// Ledgers as systemd would keep them, but kept by the test; sockets and connections for them.

import CLinux
import Glibc
import Testing

@testable import Proxy

/// Both ends of a pair of sockets.
struct SocketPair: ~Copyable {
    let first: FileDescriptor
    let second: FileDescriptor

    /// Datagram sockets, as a ledger's queue has them, or stream sockets.
    init(_ type: CInt) throws(SystemError) {
        var ends: [CInt] = [-1, -1]
        _ = try retrying("socketpair") {
            type == linux_SOCK_DGRAM
                ? unsafe linux_datagram_pair(&ends)
                : unsafe socketpair(AF_UNIX, type, 0, &ends)
        }
        first = FileDescriptor(owning: ends[0])
        second = FileDescriptor(owning: ends[1])
    }
}

/// One more descriptor for the same thing.
func copy(of descriptor: CInt) throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try retrying("dup") { fcntl(descriptor, F_DUPFD_CLOEXEC, 0) })
}

/// What tells two descriptors of one pipe or socket from those of two.
func inode(_ descriptor: CInt) -> UInt64? {
    var status = stat()
    return unsafe fstat(descriptor, &status) == 0 ? UInt64(status.st_ino) : nil
}

/// The three descriptors of a ledger, beyond the life of whoever uses it.
final class KeptLedger {
    let writer: FileDescriptor
    let reader: FileDescriptor
    let file: FileDescriptor

    /// - Parameter buffer: bytes asked for the queue, of which the kernel makes twice as many.
    init(buffer: CInt = 1024 * 1024) throws {
        file = try LedgerTable.makeFile()
        _ = try LedgerTable.make(in: file, worker: 5)
        let queue = try SocketPair(linux_SOCK_DGRAM)
        try Socket.set(queue.first.rawValue, SOL_SOCKET, SO_SNDBUF, buffer)
        writer = try copy(of: queue.first.rawValue)
        reader = try copy(of: queue.second.rawValue)
    }

    /// The ledger of the process that made it.
    func begin() throws -> Ledger {
        Ledger(
            name: "proxy-ledger-1", table: try LedgerTable.adopt(file.rawValue),
            writer: try copy(of: writer.rawValue), reader: try copy(of: reader.rawValue),
            store: nil)
    }

    /// Only to be looked at: they stay this one's.
    var descriptors: [CInt] { [writer.rawValue, reader.rawValue, file.rawValue] }

    /// What the next life of the process makes of copies of the descriptors.
    func remains(isTurned: Bool = false) throws -> LedgerRemains {
        let descriptors = [
            try copy(of: writer.rawValue).release(), try copy(of: reader.rawValue).release(),
            try copy(of: file.rawValue).release(),
        ]
        let inherited = InheritedLedger(
            name: "proxy-ledger-1", descriptors: isTurned ? descriptors.reversed() : descriptors)
        guard let remains = LedgerRemains(inherited) else {
            throw SystemError(call: "walk", code: ENOENT)
        }
        return remains
    }

    /// What the next life of the process would find now.
    func contents() throws -> [Found] {
        let remains = try remains()
        return remains.everything()
    }

    func send(_ bytes: [UInt8], _ descriptors: [CInt] = []) throws {
        let count = unsafe linux_send_descriptors(
            writer.rawValue, bytes, bytes.count, descriptors, CInt(descriptors.count))
        try #require(count == bytes.count)
    }
}

/// A datagram of a ledger, and which sockets or pipes came with it.
struct Found: Equatable {
    var entry: LedgerEntry?
    var inodes: [UInt64?]
}

extension LedgerRemains {
    func everything() -> [Found] {
        var all: [Found] = []
        let count = walk { entry, descriptors in
            all.append(Found(entry: try? entry.get(), inodes: descriptors.map(inode)))
            for descriptor in descriptors { _ = Glibc.close(descriptor) }
        }
        #expect(count == all.count)
        return all
    }
}

let testRoute = Route(name: "web", index: 0, settings: nil, isActivated: false)

/// A connection whose far ends are gone; a ledger does not look at them.
func makeConnection(
    _ id: UInt64, isConnected: Bool = true, on route: Route = testRoute
) throws -> Connection {
    let client = try SocketPair(linux_SOCK_STREAM)
    let connection = Connection(
        id: id, route: route, counters: RouteCounters(),
        client: try copy(of: client.first.rawValue), address: .ipv4(0x7f00_0001, port: 40_000),
        listen: .ipv4(0x7f00_0001, port: 80), now: Instant(nanoseconds: 1_000_000 + id))
    if isConnected { try connect(connection) }
    return connection
}

func connect(_ connection: Connection) throws {
    let target = try SocketPair(linux_SOCK_STREAM)
    connection.target = try copy(of: target.first.rawValue)
    connection.targetAddress = .path("/run/target.sock")
    connection.connectedAt = connection.connectStartedAt.advanced(byNanoseconds: 77)
    connection.phase = .young
}

extension Connection {
    /// What a ledger has to hold of it.
    func found() throws -> Found {
        let place = try #require(ledgerPlace)
        var inodes = [inode(client.rawValue)]
        if targetOfEntry != nil { inodes.append(inode(targetDescriptor)) }
        return Found(
            entry: .connection(
                ConnectionFacts(
                    place: place, id: id, acceptedAt: acceptedAt, route: "web",
                    client: clientAddress, listen: listenAddress, target: targetOfEntry)),
            inodes: inodes)
    }
}

extension Pipe {
    var found: Found {
        Found(
            entry: .pipe(number), inodes: [inode(readEnd.rawValue), inode(writeEnd.rawValue)])
    }
}

/// What workers share, without a server.
func makeShared(store: DescriptorStore?) throws -> Shared {
    try Shared(
        log: try Log(), resolver: try Resolver(),
        descriptors: DescriptorBudget(limit: 10_000, inUse: 0),
        admission: AdmissionLimit(limit: nil), store: store)
}

extension DescriptorBudget {
    /// How many are to be had.
    var left: Int {
        var count = 0
        while take(1) { count += 1 }
        giveBack(count)
        return count
    }
}
