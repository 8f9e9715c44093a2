// One direction of a connection: what to do next. Pure; Relay.swift runs its actions.

/// The bytes from one side, the source, to the other, the sink.
///
/// Every byte is in the source's socket, in a pipe, or in the sink's socket when `next()` says
/// `.wait`: nothing stays in the process.
struct HalfStream {
    enum Action: Equatable {
        /// Read into the scratch buffer and send from there.
        case receive
        /// Move bytes from the source into a pipe.
        case splice
        /// Move the pipe's bytes to the sink.
        case drain
        /// All bytes are through: pass the FIN on.
        case finish
        /// Nothing can be done before the next event.
        case wait
    }

    /// True exactly when a read might find something: set by an event, cleared by a read that
    /// emptied the socket.
    private(set) var sourceReadable = false
    /// True exactly when a write might succeed.
    private(set) var sinkWritable = true
    /// True exactly when the source's FIN is known to be behind the bytes that can be read now.
    private var finPending = false
    /// True exactly when a short read does not mean an empty socket: unix sockets stop at
    /// ancillary data, TCP stops at an urgent byte, and an error comes after the last byte.
    private var readsToEnd = false
    /// True exactly when an urgent byte may have come unreported, while the source was muted.
    private var mayMissUrgent = false
    /// True exactly when splicing would stop for ever at an urgent byte.
    private var copiesOnly = false
    /// True exactly when the stream is in bulk: then reading begins with a splice.
    private var splicing = false
    private(set) var sourceEnded = false
    private(set) var sinkFinished = false
    /// True exactly when the sink takes no more bytes, ever.
    private(set) var sinkBroken = false
    /// Bytes read from the source and not yet taken by the sink.
    private(set) var inPipe = 0
    /// Bytes read from the source so far.
    private(set) var bytes: UInt64 = 0

    /// - Parameter isUnix: true for a source that is a unix socket.
    init(isUnix: Bool = false) { readsToEnd = isUnix }

    /// A direction of an earlier life of the process. What its sockets are at is for epoll to
    /// tell, as it does of every socket that it gets to know.
    ///
    /// - Parameter bytes: read so far; `inPipe` of them are in the pipe.
    init(isUnix: Bool, resumedAt bytes: UInt64, inPipe: Int) {
        self.init(isUnix: isUnix)
        self.bytes = bytes
        self.inPipe = inPipe
    }

    /// What to do now.
    @inline(__always)
    func next() -> Action {
        if sinkBroken { return .wait }
        if inPipe > 0 { return sinkWritable ? .drain : .wait }
        if sourceEnded { return sinkFinished ? .wait : .finish }
        guard sourceReadable && sinkWritable else { return .wait }
        return splicing ? .splice : .receive
    }

    /// True exactly when news of the source would be of no use before the sink takes bytes.
    var isBlocked: Bool { !sinkWritable && !isOver }

    /// True exactly when this direction will never move a byte again.
    var isOver: Bool { sinkFinished || sinkBroken }

    // MARK: Events

    mutating func sourceBecame(_ readiness: Readiness) {
        sourceReadable = true
        if !readiness.isDisjoint(with: [.peerFinished, .hangup]) { finPending = true }
        if !readiness.isDisjoint(with: [.urgent, .error, .hangup]) { readsToEnd = true }
        if readiness.contains(.urgent) {
            copiesOnly = true
            splicing = false
        }
    }

    /// News of the source's bytes, urgent ones included, are switched off.
    mutating func sourceMuted() { mayMissUrgent = true }

    mutating func sinkBecameWritable() { sinkWritable = true }

    // MARK: What came of an action

    /// A read brought that many bytes, of at most `limit`.
    @inline(__always)
    mutating func received(_ count: Int, of limit: Int) {
        bytes &+= UInt64(count)
        if count >= limit {
            splicing = !copiesOnly
        } else if !readsToEnd {
            // A short read means an empty socket (epoll(7)); a FIN seen before it was the end.
            // Unless that read stopped at an urgent byte that nobody has told of.
            sourceReadable = finPending && mayMissUrgent
            sourceEnded = finPending && !mayMissUrgent
        }
    }

    /// The socket was empty.
    mutating func receivedNothing() { sourceReadable = false }

    /// A turn is over in which that many bytes were read.
    ///
    /// Splicing goes on in the next turn if it was worth it in this one. Under congestion control
    /// that paces, a turn brings little, and each splice then costs more than a copy.
    @inline(__always)
    mutating func turnEnded(moved count: Int, worthSplicing: Int) {
        if splicing && count > 0 && count < worthSplicing { splicing = false }
    }

    /// The read after the last byte.
    mutating func receivedEnd() {
        sourceReadable = false
        sourceEnded = true
    }

    /// A splice reported an end of stream. It does so at an urgent byte too: a read must tell.
    mutating func splicedEnd() {
        splicing = false
        copiesOnly = true
    }

    /// Bytes went from the source into the pipe.
    mutating func spliced(_ count: Int) {
        bytes &+= UInt64(count)
        inPipe += count
    }

    /// The sink did not take the last bytes of what was received: they are in the pipe now.
    mutating func stored(_ count: Int) {
        inPipe = count
        sinkWritable = false
    }

    /// The sink took bytes from the pipe.
    mutating func drained(_ count: Int) { inPipe = max(inPipe - count, 0) }

    mutating func sinkBlocked() { sinkWritable = false }

    mutating func finished() { sinkFinished = true }

    /// The sink refused bytes with an error; those that are left have nowhere to go.
    mutating func sinkFailed() { sinkBroken = true }
}
