// A connection: its two sockets, its two directions, and what is told of it at the end.

/// One direction with the pipe that it holds while bytes are in it.
struct Flow {
    var half: HalfStream
    var pipe: Pipe?
}

/// One client's connection through the proxy. It lives and dies on one worker.
final class Connection {
    /// Unique among those that are open and those that this life of the process has seen.
    let id: UInt64
    let route: Route
    let counters: RouteCounters
    let clientAddress: SocketAddress
    let listenAddress: SocketAddress
    let acceptedAt: Instant
    let client: FileDescriptor

    /// Where this connection is in the worker's slab, with the slot's generation.
    var key = SlabKey(index: 0, generation: 0)
    var phase = Phase.dialling
    /// nil before the dial has begun and between its attempts.
    var target: FileDescriptor?
    var targetAddress = SocketAddress.unnamed
    /// nil once the target is connected.
    var dial: DialAttempt?
    var connectStartedAt: Instant
    /// When what the dial waits for has to be there.
    var dialLimit = Instant(nanoseconds: .max)
    var connectedAt: Instant?
    var lastMovedAt: Instant
    /// Bytes in the two send buffers when an idle timeout last looked.
    var unsentAtLastLook: CInt = 0

    var toTarget: Flow
    var toClient: Flow
    /// The side whose FIN came first.
    var firstToFinish: Side?
    /// Set when a side has refused bytes: how the connection ends once the bytes that this side
    /// had sent are through.
    var brokenBy: CloseReason?
    private var watchedClient = Watch()
    private var watchedTarget = Watch()
    /// True exactly when the connection is in the worker's list of those to go on with.
    var isQueued = false

    /// Where a copy of the sockets is kept that outlives the process; nil while there is none.
    var ledger: Ledger?
    var slot: LedgerSlot?
    var slotIndex = 0
    /// True once there may be copies of the sockets that this process does not hold: then a close
    /// alone ends nothing.
    var hasCopies = false
    /// True exactly when the target's copy has an entry of its own.
    var targetIsApart = false

    /// What epoll reports of a side.
    struct Watch {
        var reportsWritable = false
        var isMuted = false  // reports no bytes to read
    }

    subscript(side: Side) -> Watch {
        get { side == .client ? watchedClient : watchedTarget }
        set { if side == .client { watchedClient = newValue } else { watchedTarget = newValue } }
    }

    enum Phase {
        case dialling, waitingToRedial, resolving
        /// The first second, during which most connections end: nothing is spent on them that
        /// only a long life repays.
        case young
        case mature
    }

    init(
        id: UInt64, route: Route, counters: RouteCounters, client: consuming FileDescriptor,
        address: SocketAddress, listen: SocketAddress, now: Instant
    ) {
        self.id = id
        self.route = route
        self.counters = counters
        self.client = client
        clientAddress = address
        listenAddress = listen
        acceptedAt = now
        connectStartedAt = now
        lastMovedAt = now
        toTarget = Flow(half: HalfStream(isUnix: address.isUnix))
        toClient = Flow(half: HalfStream())
    }

    var isRelaying: Bool { phase == .young || phase == .mature }

    var ledgerPlace: LedgerPlace? {
        slot.map { LedgerPlace(slot: UInt32(slotIndex), serial: $0.serial) }
    }

    /// nil while no target is connected.
    var targetOfEntry: TargetOfEntry? {
        guard isRelaying, let connectedAt else { return nil }
        return TargetOfEntry(
            address: targetAddress,
            connectDuration: connectedAt.nanoseconds(since: connectStartedAt))
    }

    /// -1 for a target while there is none.
    func descriptor(of side: Side) -> CInt {
        side == .client ? client.rawValue : targetDescriptor
    }

    /// -1 while there is no target socket.
    var targetDescriptor: CInt { target?.rawValue ?? -1 }
}
