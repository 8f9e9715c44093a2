// The log: lines on stderr, written by a thread of its own so that no worker waits for it.

import Glibc
import Synchronization

/// How urgent an entry is, as syslog(3) numbers it.
enum Priority: Int, Sendable {
    case error = 3
    case warning = 4
    case notice = 5
    case info = 6
}

/// What an entry is about. In the journal each kind has its MESSAGE_ID.
enum LogEvent: String, CaseIterable, Sendable {
    case started, connectionEnded, connectionFailed
    case drainBegan, drainProgress, drainEnded
    case routeRefused, routesReloaded, reloadFailed
    case clientRefused, acceptFailed, descriptorsExhausted, descriptorsBack
    case targetUnresolved, workerStarted, metricsFailed
}

/// One worker's way to the log. Bounded: what does not fit is dropped, and counted by the worker.
final class RecordQueue: Sendable {
    fileprivate let records = Mutex<[ConnectionRecord]>([])
    static let capacity = 4096
}

final class Log: Sendable {
    private struct Entry: Sendable {
        let priority: Priority
        let event: LogEvent
        let text: String
    }

    private struct State {
        var entries: [Entry] = []
        var queues: [RecordQueue] = []
        var lastSaid: [LogEvent: Instant] = [:]
        var isClosed = false
    }

    private let state = Mutex(State())
    private let wakeUp: EventCounter
    private let finished: EventCounter
    /// True exactly when the log's thread waits and somebody has to wake it.
    private let isAsleep = Atomic<Bool>(false)
    private let descriptor: CInt
    private let hasPriorities: Bool

    /// Entries come in bursts: after each look the thread rests this long, so that a busy worker
    /// need not wake it for each.
    private static let rest: CInt = 20  // milliseconds
    private static let mostEntries = 1024

    init(descriptor: CInt = STDERR_FILENO) throws(SystemError) {
        self.descriptor = descriptor
        hasPriorities = Self.isJournalStream(descriptor)
        wakeUp = try EventCounter()
        finished = try EventCounter()
    }

    func start() { startThread("log") { self.work() } }

    // MARK: Writing

    func line(_ priority: Priority, _ event: LogEvent, _ text: String) {
        state.withLock { state in
            if state.entries.count < Self.mostEntries {
                state.entries.append(Entry(priority: priority, event: event, text: text))
            }
        }
        wake()
    }

    /// Like `line`, but says nothing if the same event was told of within the last second.
    func atMostEverySecond(
        _ priority: Priority, _ event: LogEvent, _ text: @autoclosure () -> String
    ) {
        let now = Instant.now()
        let isNew = state.withLock { state in
            if let last = state.lastSaid[event], now.nanoseconds(since: last) < 1_000_000_000 {
                return false
            }
            state.lastSaid[event] = now
            return true
        }
        if isNew { line(priority, event, text()) }
    }

    func makeQueue() -> RecordQueue {
        let queue = RecordQueue()
        state.withLock { $0.queues.append(queue) }
        return queue
    }

    /// Called by the worker that owns the queue. False if there was no room.
    func push(_ record: ConnectionRecord, from queue: RecordQueue) -> Bool {
        let fits = queue.records.withLock { records in
            guard records.count < RecordQueue.capacity else { return false }
            records.append(record)
            return true
        }
        wake()
        return fits
    }

    /// Writes what is queued and ends the thread; gives up after a second, for nobody may be
    /// reading stderr any more.
    func close() {
        state.withLock { $0.isClosed = true }
        wakeUp.signal()
        finished.wait(milliseconds: 1000)
    }

    private func wake() {
        if isAsleep.load(ordering: .sequentiallyConsistent),
            isAsleep.exchange(false, ordering: .sequentiallyConsistent)
        {
            wakeUp.signal()
        }
    }

    // MARK: The log's thread

    private func work() {
        var text: [UInt8] = []
        while true {
            let (wrote, isClosed) = writeQueued(&text)
            if isClosed && !wrote { break }
            if wrote {
                if !isClosed { wakeUp.wait(milliseconds: Self.rest) }
                continue
            }
            isAsleep.store(true, ordering: .sequentiallyConsistent)
            // Whoever pushed before the store has not woken us: look once more.
            if isEmpty { wakeUp.wait(milliseconds: -1) }
            isAsleep.store(false, ordering: .sequentiallyConsistent)
        }
        finished.signal()
    }

    private var isEmpty: Bool {
        state.withLock { state in
            state.entries.isEmpty && !state.isClosed
                && state.queues.allSatisfy { $0.records.withLock { $0.isEmpty } }
        }
    }

    /// Writes everything that waits.
    ///
    /// - Returns: whether there was anything, and whether the log is being closed.
    private func writeQueued(_ text: inout [UInt8]) -> (wrote: Bool, isClosed: Bool) {
        let (entries, queues, isClosed) = state.withLock { state in
            let entries = state.entries
            state.entries.removeAll()
            return (entries, state.queues, state.isClosed)
        }
        var wrote = !entries.isEmpty
        for entry in entries { append(entry.priority, entry.text, to: &text) }
        for queue in queues {
            let records = queue.records.withLock { records in
                let taken = records
                records.removeAll()
                return taken
            }
            wrote = wrote || !records.isEmpty
            for record in records {
                append(record.reason.isSuccess ? .info : .warning, record.line, to: &text)
                if text.count > 1 << 16 { flush(&text) }
            }
        }
        flush(&text)
        return (wrote, isClosed)
    }

    private func append(_ priority: Priority, _ line: String, to text: inout [UInt8]) {
        if hasPriorities { text += "<\(priority.rawValue)>".utf8 }
        text += line.utf8
        text.append(UInt8(ascii: "\n"))
    }

    private func flush(_ text: inout [UInt8]) {
        var rest = text[...]
        while !rest.isEmpty {
            let written = unsafe rest.withUnsafeBytes { bytes in
                unsafe write(descriptor, bytes.baseAddress, bytes.count)
            }
            if written > 0 {
                rest = rest.dropFirst(written)
            } else if errno == EAGAIN {
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = unsafe poll(&entry, 1, 1000)
            } else if errno != EINTR {
                break  // nobody reads stderr
            }
        }
        text.removeAll(keepingCapacity: true)
    }

    /// True exactly when the descriptor is the stream that $JOURNAL_STREAM names,
    /// systemd.exec(5): then, and only then, `<N>` prefixes mean priorities.
    private static func isJournalStream(_ descriptor: CInt) -> Bool {
        guard let value = unsafe getenv("JOURNAL_STREAM") else { return false }
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else { return false }
        return unsafe String(cString: value) == "\(status.st_dev):\(status.st_ino)"
    }
}
