import CLinux
import Glibc
import Testing

@testable import Proxy

/// What systemd would be: takes messages with descriptors, and keeps them.
private final class StandIn {
    struct Message: Equatable {
        var text: String
        var inodes: [UInt64?]
    }

    private let socket: FileDescriptor

    /// Sets $NOTIFY_SOCKET, so only for a process of a test's own.
    init() throws {
        socket = FileDescriptor(
            owning: try retrying("socket") { Glibc.socket(AF_UNIX, linux_SOCK_DGRAM, 0) })
        let name = "store-test-\(getpid())"
        let (fd, address) = (socket.rawValue, SocketAddress.abstract(name))
        _ = try retrying("bind") {
            unsafe address.withSockaddr { unsafe Glibc.bind(fd, $0, $1) }
        }
        unsafe setenv("NOTIFY_SOCKET", "@" + name, 1)
    }

    /// What has come since the last time.
    func messages() -> [Message] {
        var messages: [Message] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        var descriptors: [CInt] = [-1, -1, -1, -1]
        while true {
            var count: CInt = 0
            let length = unsafe linux_receive_descriptors(
                socket.rawValue, &buffer, buffer.count, &descriptors, 4, &count, 0)
            if length < 0 { return messages }
            let received = descriptors.prefix(Int(count))
            messages.append(
                Message(
                    text: String(decoding: buffer.prefix(length), as: UTF8.self),
                    inodes: received.map(inode)))
            for descriptor in received { close(descriptor) }
        }
    }
}

/// Each test that has a manager is a process of its own, for $NOTIFY_SOCKET is one for all.
@Suite("systemd's store has so many places")
struct DescriptorStoreTests {
    @Test("names go on after the highest that is stored, whatever else is there")
    func names() {
        for (stored, next) in [
            ([], "proxy-ledger-1"),
            (["proxy-ledger-4", "proxy-ledger-4", "proxy-ledger-4"], "proxy-ledger-5"),
            (["proxy-ledger-9", "proxy-ledger-10", "proxy-ledger-2"], "proxy-ledger-11"),
            (["proxy-ledger-", "proxy-ledger-x", "proxy-ledger--3", "web", ""], "proxy-ledger-1"),
        ] as [([String], String)] {
            let store = DescriptorStore(limit: 100, names: stored)
            #expect(store.nextName() == next)
            #expect(store.nextName() != next)
        }
    }

    @Test("where nobody listens nothing is stored, and no place is taken")
    func nobody() async {
        await #expect(processExitsWith: .success) {
            unsafe unsetenv("NOTIFY_SOCKET")
            let store = DescriptorStore(limit: 3, names: [])
            for _ in 0..<3 {
                #expect(throws: SystemError.self) {
                    try store.put([0, 1, 2], name: "proxy-ledger-1")
                }
            }
            try #require(DescriptorStore.places() == 0)
            #expect(throws: SystemError.self) { try Ledger.make(in: store, worker: 0) }
            let standIn = try StandIn()
            try #require(try store.put([0, 1, 2], name: "proxy-ledger-1"), "all three are free")
            try #require(standIn.messages().count == 1)
        }
    }

    @Test(
        "what is put there is sent with its descriptors, up to the limit, and again after a removal"
    )
    func limit() async {
        await #expect(processExitsWith: .success) {
            let standIn = try StandIn()
            let store = DescriptorStore(limit: 7, names: ["proxy-ledger-6"])
            let pair = try SocketPair(linux_SOCK_DGRAM)
            let pipe = try Pipe()
            let three = [pair.first.rawValue, pair.second.rawValue, pipe.readEnd.rawValue]
            try #require(try store.put(three, name: "proxy-ledger-7"))
            try #require(try store.put(three, name: "proxy-ledger-8"))
            try #require(!(try store.put([0], name: "proxy-ledger-9")))
            let inodes = three.map(inode)
            try #require(
                standIn.messages() == [
                    StandIn.Message(
                        text: "FDSTORE=1\nFDNAME=proxy-ledger-7\nFDPOLL=0", inodes: inodes),
                    StandIn.Message(
                        text: "FDSTORE=1\nFDNAME=proxy-ledger-8\nFDPOLL=0", inodes: inodes),
                ])
            store.remove("proxy-ledger-7", count: 3)
            try #require(
                standIn.messages() == [
                    StandIn.Message(
                        text: "FDSTOREREMOVE=1\nFDNAME=proxy-ledger-7", inodes: [])
                ])
            try #require(try store.put(three, name: "proxy-ledger-9"))
            try #require(!(try store.put([0], name: "proxy-ledger-10")))
        }
    }

    @Test("more than the limit that is stored already leaves no place")
    func loweredLimit() async {
        await #expect(processExitsWith: .success) {
            let standIn = try StandIn()
            let store = DescriptorStore(limit: 1, names: ["proxy-ledger-1", "proxy-ledger-1"])
            try #require(!(try store.put([0], name: "proxy-ledger-2")))
            store.remove("proxy-ledger-1", count: 2)
            try #require(try store.put([0], name: "proxy-ledger-2"))
            try #require(standIn.messages().count == 2)
        }
    }

    @Test("$FDSTORE says how many places there are; nonsense is none")
    func places() async {
        await #expect(processExitsWith: .success) {
            let standIn = try StandIn()
            for (text, places) in [
                ("512", 512), ("0", 0), ("-1", 0), ("", 0), ("many", 0),
                ("99999999999999999999", 0),
            ] {
                unsafe setenv("FDSTORE", text, 1)
                try #require(DescriptorStore.places() == places, "\(text)")
            }
            unsafe setenv("FDSTORE", "512", 1)
            unsafe unsetenv("NOTIFY_SOCKET")
            try #require(DescriptorStore.places() == 0)
            try #require(standIn.messages().isEmpty)
        }
    }

    // MARK: The book that fills it

    @Test("a worker's book makes ledgers as it needs them, and gives back those that are empty")
    func book() async {
        await #expect(processExitsWith: .success) {
            let standIn = try StandIn()
            let store = DescriptorStore(limit: 6, names: [])
            let (shared, counters) = (try makeShared(store: store), WorkerCounters())
            let descriptors = shared.descriptors.left
            var book = LedgerBook(worker: 3, shared: shared, counters: counters)
            try #require(book.isActive && book.ledgers.isEmpty)
            let now = Instant(nanoseconds: 5_000_000_000)
            var connections: [Connection] = []
            while book.retryAt == Instant(nanoseconds: 0) && connections.count < 1500 {
                let connection = try makeConnection(UInt64(connections.count))
                guard book.enter(connection, now: now) else { break }
                connections.append(connection)
            }
            // Two ledgers, the third has no place.
            try #require(book.ledgers.count == 2)
            try #require(connections.count > 300 && connections.count <= 1024)
            try #require(counters.ledgerEntries.value == UInt64(connections.count))
            try #require(counters.ledgerBytes.value == UInt64(2 * LedgerTable.size))
            try #require(
                shared.descriptors.left == descriptors - 2 * Ledger.openDescriptors)
            let stored = standIn.messages()
            try #require(stored.map(\.inodes.count) == [3, 3])
            try #require(stored[0].text == "FDSTORE=1\nFDNAME=proxy-ledger-1\nFDPOLL=0")

            // Not tried again at once, even if there were room.
            book.forget(connections.removeLast())
            let late = try makeConnection(2000)
            try #require(book.retryAt > now)
            var isEntered = book.enter(late, now: now)
            try #require(!isEntered)
            isEntered = book.enter(late, now: book.retryAt)
            try #require(isEntered)
            connections.append(late)

            for connection in connections { book.forget(connection) }
            try #require(counters.ledgerEntries.value == 0)
            book.tidy()
            try #require(book.ledgers.count == 1, "one is kept for what comes next")
            try #require(counters.ledgerBytes.value == UInt64(LedgerTable.size))
            try #require(shared.descriptors.left == descriptors - Ledger.openDescriptors)
            let removed = standIn.messages()
            try #require(removed.map(\.text) == ["FDSTOREREMOVE=1\nFDNAME=proxy-ledger-2"])
            isEntered = book.enter(connections[0], now: book.retryAt)
            try #require(isEntered)
        }
    }

    @Test("a book without a store enters nothing")
    func bookWithoutStore() throws {
        let counters = WorkerCounters()
        var book = LedgerBook(
            worker: 0, shared: try makeShared(store: nil), counters: counters)
        #expect(!book.isActive)
        let connection = try makeConnection(1)
        let isEntered = book.enter(connection, now: .now())
        #expect(!isEntered)
        #expect(connection.ledger == nil && book.ledgers.isEmpty)
        book.forget(connection)
        book.tidy()
        #expect(counters.ledgerEntries.value == 0 && counters.ledgerBytes.value == 0)
    }

    @Test("where even a new ledger has no room, the book does not make one after the other")
    func hopelessBook() async {
        await #expect(processExitsWith: .success) {
            let standIn = try StandIn()
            let store = DescriptorStore(limit: 300, names: [])
            var book = LedgerBook(
                worker: 0, shared: try makeShared(store: store), counters: WorkerCounters())
            // A name that no table takes.
            let route = Route(
                name: String(repeating: "r", count: 256), index: 0, settings: nil,
                isActivated: false)
            let connection = try makeConnection(1, on: route)
            for _ in 0..<5 {  // fewer than the stand-in can have waiting
                let isEntered = book.enter(connection, now: .now())
                try #require(!isEntered)
            }
            try #require(standIn.messages().count <= 2)
            try #require(book.ledgers.count <= 1)
        }
    }

    @Test("a book that is closed says in every table when")
    func signs() throws {
        let counters = WorkerCounters()
        var book = LedgerBook(
            worker: 0, shared: try makeShared(store: nil), counters: counters)
        let kept = [try KeptLedger(), try KeptLedger()]
        for kept in kept { book.add(try kept.begin()) }
        let tables = try kept.map { try LedgerTable.adopt($0.file.rawValue) }
        #expect(tables.allSatisfy { $0.handedOverAt == nil })
        book.close(Instant(nanoseconds: 9))
        #expect(tables.allSatisfy { $0.handedOverAt == Instant(nanoseconds: 9) })
        #expect(tables.map(\.lastSign.nanoseconds) == [9, 9])
    }
}
