// systemd's store of descriptors: what is put there outlives the process, sd_notify(3).

import CLinux
import CSystemd
import Glibc
import Synchronization

/// The places that systemd keeps for this service's descriptors. Safe to use from any thread.
final class DescriptorStore: Sendable {
    /// How many descriptors systemd keeps: `FileDescriptorStoreMax=`.
    let limit: Int
    private let used: Atomic<Int>
    private let lastNumber: Atomic<UInt64>
    /// Copies of descriptors that are under way in queues.
    private let copies = Atomic<Int>(0)
    private let mostCopies: Int

    /// Stored descriptors have this before a number.
    static let namePrefix = "proxy-ledger-"

    /// - Parameter names: of the descriptors that are stored already.
    /// - Parameter openLimit: RLIMIT_NOFILE; as many copies the kernel allows a user to have under
    ///   way, unix(7).
    init(limit: Int, names: [String], openLimit: Int = .max) {
        self.limit = limit
        mostCopies = openLimit
        used = Atomic(names.count)
        lastNumber = Atomic(names.compactMap(Self.number).max() ?? 0)
    }

    private static func number(_ name: String) -> UInt64? {
        UInt64(name.dropFirst(namePrefix.count))
    }

    /// A name that no stored descriptor has.
    func nextName() -> String {
        "\(Self.namePrefix)\(lastNumber.wrappingAdd(1, ordering: .relaxed).newValue)"
    }

    /// Stores descriptors under a name. They stay open here.
    ///
    /// FDPOLL=0, for a hangup would remove them.
    ///
    /// - Returns: false if there is no place for them.
    /// - Throws: ETOOMANYREFS where too many descriptors of this user are under way, EAGAIN where
    ///   the manager is slow to read.
    func put(_ descriptors: [CInt], name: String) throws(SystemError) -> Bool {
        guard used.increment(by: descriptors.count, upTo: limit) else { return false }
        do throws(SystemError) {
            try Self.send("FDSTORE=1\nFDNAME=\(name)\nFDPOLL=0", descriptors)
            return true
        } catch {
            used.wrappingSubtract(descriptors.count, ordering: .relaxed)
            throw error
        }
    }

    /// Has systemd close what it keeps under a name. False if it could not be told.
    @discardableResult
    static func remove(_ name: String) -> Bool {
        do throws(SystemError) {
            try send("FDSTOREREMOVE=1\nFDNAME=\(name)", [])
            return true
        } catch {
            return false
        }
    }

    /// The same, with so many descriptors, whose places are free then.
    func remove(_ name: String, count: Int) {
        if Self.remove(name) { used.wrappingSubtract(count, ordering: .relaxed) }
    }

    // MARK: Copies

    /// Counts copies that are put into a queue. An entry that takes its turn is there twice for a
    /// moment, and room is kept for that.
    func takeCopies(_ count: Int, isTurn: Bool) -> Bool {
        let limit = isTurn ? mostCopies : mostCopies - Self.keptForTurns
        return copies.increment(by: count, upTo: limit)
    }

    /// Copies that were there before.
    func chargeCopies(_ count: Int) { copies.wrappingAdd(count, ordering: .relaxed) }

    func giveBackCopies(_ count: Int) { copies.wrappingSubtract(count, ordering: .relaxed) }

    /// Two for each of a few workers at once.
    private static let keptForTurns = 16

    /// Not by sd_pid_notify_with_fds(3), which waits while the manager's queue is full: this is
    /// called by workers.
    private static func send(_ message: String, _ descriptors: [CInt]) throws(SystemError) {
        guard let path = unsafe getenv("NOTIFY_SOCKET").map({ unsafe String(cString: $0) }) else {
            throw SystemError(call: "connect", code: ENOENT)
        }
        let sender = FileDescriptor(owning: try retrying("socket") { linux_datagram_socket() })
        let manager: SocketAddress =
            path.hasPrefix("@") ? .abstract(String(path.utf8.dropFirst()) ?? "") : .path(path)
        let code = Socket.connect(sender.rawValue, to: manager)
        if code != 0 { throw SystemError(call: "connect", code: code) }
        let bytes = Array(message.utf8)
        _ = try retrying("sendmsg") {
            unsafe linux_send_descriptors(
                sender.rawValue, bytes, bytes.count, descriptors, CInt(descriptors.count))
        }
    }

    /// Waits until systemd has taken everything that was sent to it so far.
    func settle() { _ = sd_notify_barrier(0, 5_000_000) }

    // MARK: Whether there is one

    /// How many descriptors systemd stores for this process; 0 if none.
    static func places() -> Int {
        guard Notifier().isActive else { return 0 }
        if let text = unsafe getenv("FDSTORE") {
            return unsafe Int(String(cString: text)).map { max($0, 0) } ?? 0
        }
        // Before systemd 254 only the unit's own files tell.
        guard let own = ProcessUnit.ofThisProcess(),
            let unit = UnitSearch.ofManager(isUser: own.isUser).unit(own.name),
            let text = unit.value("Service", "FileDescriptorStoreMax")?.value,
            let limit = Int(text)
        else { return 0 }
        return max(limit, 0)
    }
}
