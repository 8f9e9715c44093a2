// A ledger's table: what changes in the lives of its connections, in memory that outlives the
// process (memfd_create(2), kept by systemd). A store into it is all that an update costs.

import CLinux
import Glibc

/// The mapped table: a page of header, then a slot of 64 bytes for each connection.
@safe final class LedgerTable {
    private let memory: UnsafeMutableRawPointer
    private let header: UnsafeMutablePointer<linux_ledger_header>

    /// "TMPLEDGR" as bytes.
    static let magic: UInt64 = 0x5247_4445_4c50_4d54
    static let slotCount = 512
    private static let headerSize = 4096
    static let size = headerSize + slotCount * MemoryLayout<linux_ledger_slot>.size

    /// Why a stored table cannot be used.
    enum Refusal: Error, Equatable {
        case unknownLayout
        case damaged
    }

    /// Memory for a table, which lasts as long as anybody keeps the descriptor.
    static func makeFile() throws(SystemError) -> FileDescriptor {
        FileDescriptor(
            owning: try retrying("memfd_create") { unsafe linux_memfd("proxy-ledger", size) })
    }

    /// A new, empty table in such memory.
    static func make(
        in file: borrowing FileDescriptor, worker: Int
    ) throws(SystemError) -> LedgerTable {
        guard let table = LedgerTable(mapping: file.rawValue) else {
            throw SystemError(call: "mmap", code: ENOMEM)
        }
        unsafe table.header.pointee.magic = magic
        unsafe table.header.pointee.layout = UInt32(LedgerEntry.layout)
        unsafe table.header.pointee.slot_size = UInt32(MemoryLayout<linux_ledger_slot>.size)
        unsafe table.header.pointee.slot_count = UInt32(slotCount)
        unsafe table.header.pointee.worker = UInt64(worker)
        table.lastSign = .now()
        return table
    }

    /// The table of an earlier life. The descriptor may be closed afterwards.
    static func adopt(_ file: CInt) throws(Refusal) -> LedgerTable {
        var status = stat()
        // Reading behind a file's end would be a SIGBUS; ours are sealed, so the size stays.
        let seals = linux_seals(file)
        guard unsafe fstat(file, &status) == 0, status.st_size == size,
            seals >= 0, seals & linux_needed_seals == linux_needed_seals,
            let table = LedgerTable(mapping: file)
        else { throw .damaged }
        let header = unsafe table.header.pointee
        guard header.magic == magic else { throw .damaged }
        guard header.layout == UInt32(LedgerEntry.layout) else { throw .unknownLayout }
        guard header.slot_size == UInt32(MemoryLayout<linux_ledger_slot>.size),
            header.slot_count == UInt32(slotCount)
        else { throw .damaged }
        return table
    }

    private init?(mapping file: CInt) {
        let address = unsafe mmap(
            nil, Self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        guard let memory = unsafe address, unsafe memory != MAP_FAILED else { return nil }
        unsafe self.memory = memory
        unsafe header = memory.assumingMemoryBound(to: linux_ledger_header.self)
    }

    deinit { unsafe munmap(memory, Self.size) }

    /// - Parameter index: 0 ..< `slotCount`.
    func slot(_ index: Int) -> LedgerSlot {
        precondition(index >= 0 && index < Self.slotCount)
        return unsafe LedgerSlot(
            (memory + Self.headerSize).assumingMemoryBound(to: linux_ledger_slot.self) + index)
    }

    /// True exactly when the place is taken by the entry that names it.
    func has(_ place: LedgerPlace) -> Bool {
        place.slot < Self.slotCount && slot(Int(place.slot)).serial == place.serial
    }

    // MARK: Header

    /// Which of the process's workers the ledger belongs to.
    var worker: UInt64 {
        get { unsafe header.pointee.worker }
        set { unsafe header.pointee.worker = newValue }
    }

    /// When the process was last known to be alive.
    var lastSign: Instant {
        get { unsafe Instant(nanoseconds: header.pointee.last_sign) }
        set { unsafe header.pointee.last_sign = newValue.nanoseconds }
    }

    /// When the process handed its connections over in order; nil while it runs and after a crash.
    var handedOverAt: Instant? {
        get {
            let nanoseconds = unsafe header.pointee.handed_over_at
            return nanoseconds == 0 ? nil : Instant(nanoseconds: nanoseconds)
        }
        set { unsafe header.pointee.handed_over_at = newValue?.nanoseconds ?? 0 }
    }

    /// True once a pipe was entered: its ledger and those whose connections it may carry belong
    /// together.
    var hasPipes: Bool {
        get { unsafe header.pointee.has_pipes != 0 }
        set { unsafe header.pointee.has_pipes = newValue ? 1 : 0 }
    }

    /// The rest of the header's page.
    private var routeBytes: UnsafeMutableRawBufferPointer {
        let start = MemoryLayout<linux_ledger_header>.size
        return unsafe UnsafeMutableRawBufferPointer(
            start: memory + start, count: Self.headerSize - start)
    }

    /// The routes of the connections that are or were in it, as far as they can be read.
    var routes: [String] {
        var names: [String] = []
        var rest = unsafe routeBytes.prefix(Int(header.pointee.routes_size))[...]
        while let length = unsafe rest.popFirst(), length > 0, unsafe rest.count >= Int(length),
            let name = unsafe String(validating: rest.prefix(Int(length)), as: UTF8.self)
        {
            names.append(name)
            unsafe rest = rest.dropFirst(Int(length))
        }
        return names
    }

    /// Adds a name of at most 255 bytes. False if there is no room.
    func addRoute(_ name: String) -> Bool {
        let start = unsafe Int(header.pointee.routes_size)
        let bytes = [UInt8(clamping: name.utf8.count)] + Array(name.utf8)
        guard bytes.count <= 256, unsafe start + bytes.count <= routeBytes.count else {
            return false
        }
        for (offset, byte) in bytes.enumerated() { unsafe routeBytes[start + offset] = byte }
        unsafe header.pointee.routes_size = UInt32(start + bytes.count)
        return true
    }

    /// How often in a row a process has begun to resume from this ledger and not come to an end.
    var attempts: UInt32 {
        get { unsafe header.pointee.attempts }
        set { unsafe header.pointee.attempts = newValue }
    }
}

/// One connection's line in the table.
@safe struct LedgerSlot {
    private let pointer: UnsafeMutablePointer<linux_ledger_slot>

    fileprivate init(_ pointer: UnsafeMutablePointer<linux_ledger_slot>) {
        unsafe self.pointer = pointer
    }

    /// 0 if the slot is free.
    var serial: UInt64 { unsafe pointer.pointee.serial }

    /// Takes the slot for an entry; everything else in it is as at a connection's beginning.
    func take(serial: UInt64) {
        var fresh = linux_ledger_slot()
        fresh.serial = serial
        unsafe pointer.pointee = fresh
    }

    func free() { unsafe pointer.pointee.serial = 0 }

    /// Read from the client, and from the target, so far.
    var bytes: (in: UInt64, out: UInt64) {
        unsafe (pointer.pointee.bytes_in, pointer.pointee.bytes_out)
    }

    @inline(__always)
    func setBytesIn(_ count: UInt64) { unsafe pointer.pointee.bytes_in = count }
    @inline(__always)
    func setBytesOut(_ count: UInt64) { unsafe pointer.pointee.bytes_out = count }

    /// The number of the pipe that carries the direction which begins at that side; 0 for none.
    func pipe(from side: Side) -> UInt64 {
        unsafe side == .client ? pointer.pointee.pipe_to_target : pointer.pointee.pipe_to_client
    }

    /// To be called before the pipe is filled, and before it serves another connection.
    func setPipe(from side: Side, _ number: UInt64) {
        if side == .client {
            unsafe pointer.pointee.pipe_to_target = number
        } else {
            unsafe pointer.pointee.pipe_to_client = number
        }
    }

    var firstToFinish: Side? {
        get { unsafe Side(ledgerCode: pointer.pointee.first_to_finish) }
        nonmutating set { unsafe pointer.pointee.first_to_finish = newValue?.ledgerCode ?? 0 }
    }

    /// Which side refused bytes, and with which errno.
    var broken: (side: Side, code: CInt)? {
        get {
            guard let side = unsafe Side(ledgerCode: pointer.pointee.broken_side) else {
                return nil
            }
            return unsafe (side, CInt(pointer.pointee.broken_by))
        }
        nonmutating set {
            unsafe pointer.pointee.broken_by = UInt16(truncatingIfNeeded: newValue?.code ?? 0)
            unsafe pointer.pointee.broken_side = newValue?.side.ledgerCode ?? 0
        }
    }

    /// True exactly when bytes may be in the process alone: between a recv and the send.
    var isCopying: Bool { unsafe pointer.pointee.is_copying != 0 }
    @inline(__always)
    func setCopying(_ value: Bool) { unsafe pointer.pointee.is_copying = value ? 1 : 0 }

    /// True exactly when the worker was at work on the connection.
    var isHandled: Bool { unsafe pointer.pointee.is_handled != 0 }
    @inline(__always)
    func setHandled(_ value: Bool) { unsafe pointer.pointee.is_handled = value ? 1 : 0 }

    /// Crashes in a row that came while the connection was handled.
    var crashes: Int {
        get { unsafe Int(pointer.pointee.crashes) }
        nonmutating set { unsafe pointer.pointee.crashes = UInt8(clamping: newValue) }
    }

    /// In and out together when the connection was last resumed.
    var bytesAtResumption: UInt64 {
        get { unsafe pointer.pointee.bytes_at_resumption }
        nonmutating set { unsafe pointer.pointee.bytes_at_resumption = newValue }
    }
}

extension Side {
    fileprivate var ledgerCode: UInt8 { self == .client ? 1 : 2 }

    fileprivate init?(ledgerCode: UInt8) {
        switch ledgerCode {
        case 1: self = .client
        case 2: self = .target
        default: return nil
        }
    }
}
