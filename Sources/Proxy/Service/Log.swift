// The log: entries in the journal or lines on stderr, written by a thread of its own so that no
// worker waits for it.

import Glibc
import Synchronization

/// One worker's way to the log. Bounded: what does not fit is dropped, and counted by the worker.
final class RecordQueue: Sendable {
    fileprivate let records = Locked<[ConnectionRecord]>([])
    static let capacity = 4096
}

final class Log: Sendable {
    private struct Entry: Sendable {
        let priority: Priority
        let event: LogEvent
        let text: String
        let fields: [(name: String, value: String)]
    }

    private struct Kind: Hashable {
        let event: LogEvent
        let route: String?
    }

    private struct State {
        var entries: [Entry] = []
        var queues: [RecordQueue] = []
        var lastSaid: [Kind: Instant] = [:]
        var isClosed = false
    }

    private let state = Locked(State())
    private let wakeUp: EventCounter
    private let finished: EventCounter
    /// True exactly when the log's thread waits and somebody has to wake it.
    private let isAsleep = Atomic<Bool>(false)
    private let descriptor: CInt
    /// True exactly when the journal is where entries go, most often because stderr is its: entries then have fields, and a line that goes
    /// to stderr all the same has its priority in front, sd-daemon(3).
    private let hasJournal: Bool
    private let droppedCount = Atomic<UInt64>(0)
    private let summarisedCount = Atomic<UInt64>(0)

    /// Entries come in bursts: after each look the thread rests this long, so that a busy worker
    /// need not wake it for each.
    private static let rest: CInt = 20  // milliseconds
    private static let mostEntries = 1024

    /// - Parameter usingJournal: write to the journal even if stderr leads elsewhere.
    init(
        descriptor: CInt = STDERR_FILENO, usingJournal: Bool = false
    ) throws(SystemError) {
        self.descriptor = descriptor
        hasJournal = usingJournal || Journal.isStream(descriptor)
        wakeUp = try EventCounter()
        finished = try EventCounter()
    }

    func start() throws(SystemError) { try startThread("log") { self.work() } }

    /// Entries other than connections' that were dropped, for the queue was full.
    var dropped: UInt64 { droppedCount.load(ordering: .relaxed) }

    /// Connections that are in a summary instead of their own entry.
    var summarised: UInt64 { summarisedCount.load(ordering: .relaxed) }

    // MARK: Writing

    /// - Parameter fields: of the journal's entry, beside the text.
    func line(
        _ priority: Priority, _ event: LogEvent, _ text: String,
        fields: [(name: String, value: String)] = []
    ) {
        state.withLock { state in
            if state.entries.count < Self.mostEntries {
                state.entries.append(
                    Entry(priority: priority, event: event, text: text, fields: fields))
            } else {
                droppedCount.wrappingAdd(1, ordering: .relaxed)
            }
        }
        wake()
    }

    /// Like `line`, but says nothing if the same event of the same route was told of within the
    /// last second.
    func atMostEverySecond(
        _ priority: Priority, _ event: LogEvent, _ text: @autoclosure () -> String,
        route: String? = nil
    ) {
        atMostEvery(.seconds(1), priority, event, text(), route: route)
    }

    /// Like `line`, but says nothing if the same event of the same route was told of that recently.
    func atMostEvery(
        _ span: Duration, _ priority: Priority, _ event: LogEvent,
        _ text: @autoclosure () -> String, route: String? = nil
    ) {
        let now = Instant.now()
        let kind = Kind(event: event, route: route)
        let isNew = state.withLock { state in
            if let last = state.lastSaid[kind], now.nanoseconds(since: last) < span.nanoseconds {
                return false
            }
            state.lastSaid[kind] = now
            return true
        }
        if isNew {
            line(
                priority, event, text(),
                fields: route.map { [(name: "PROXY_ROUTE", value: $0)] } ?? [])
        }
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

    /// What the log's thread alone knows.
    private struct Writer {
        var text: [UInt8] = []
        var rate = LogRate(now: .now())
        var summaries: [LogSummary] = []
        var summariseAt = Instant.now()
        var journalIsThere = false
    }

    private func work() {
        var writer = Writer()
        while true {
            let (wrote, isClosed) = writeQueued(&writer)
            if isClosed && !wrote { break }
            if wrote {
                if !isClosed { wakeUp.wait(milliseconds: Self.rest) }
                continue
            }
            isAsleep.store(true, ordering: .sequentiallyConsistent)
            // Whoever pushed before the store has not woken us: look once more.
            if isEmpty { wakeUp.wait(milliseconds: writer.summaries.isEmpty ? -1 : 1000) }
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
    private func writeQueued(_ writer: inout Writer) -> (wrote: Bool, isClosed: Bool) {
        let (entries, queues, isClosed) = state.withLock { state in
            let entries = state.entries
            state.entries.removeAll()
            return (entries, state.queues, state.isClosed)
        }
        var wrote = !entries.isEmpty
        writer.journalIsThere = hasJournal && Journal.isThere
        for entry in entries {
            write(entry.priority, entry.event, entry.text, entry.fields, &writer)
        }
        for queue in queues {
            let records = queue.records.withLock { records in
                let taken = records
                records.removeAll()
                return taken
            }
            wrote = wrote || !records.isEmpty
            for record in records { write(record, &writer) }
        }
        writeSummaries(&writer, now: isClosed)
        flush(&writer.text)
        return (wrote, isClosed)
    }

    private func write(_ record: ConnectionRecord, _ writer: inout Writer) {
        let isSuccess = record.reason.isSuccess
        guard !hasJournal || writer.rate.admits(success: isSuccess, now: .now()) else {
            return summarise(record, &writer)
        }
        write(
            isSuccess ? .info : .warning, isSuccess ? .connectionEnded : .connectionFailed,
            record.line, hasJournal ? Journal.fields(of: record) : [], &writer)
    }

    private func write(
        _ priority: Priority, _ event: LogEvent, _ line: String,
        _ fields: [(name: String, value: String)], _ writer: inout Writer
    ) {
        if writer.journalIsThere {
            let head = [
                (name: "MESSAGE", value: line), ("PRIORITY", "\(priority.rawValue)"),
                ("MESSAGE_ID", event.messageID),
            ]
            if Journal.send(head + fields) { return }
        }
        if hasJournal { writer.text += "<\(priority.rawValue)>".utf8 }
        writer.text += line.utf8
        writer.text.append(UInt8(ascii: "\n"))
        if writer.text.count > 1 << 16 { flush(&writer.text) }
    }

    private func summarise(_ record: ConnectionRecord, _ writer: inout Writer) {
        summarisedCount.wrappingAdd(1, ordering: .relaxed)
        if writer.summaries.isEmpty { writer.summariseAt = Instant.now().advanced(by: .seconds(1)) }
        let name = record.route.name
        let index = writer.summaries.firstIndex { $0.route == name } ?? writer.summaries.count
        if index == writer.summaries.count { writer.summaries.append(LogSummary(route: name)) }
        writer.summaries[index].add(record)
    }

    private func writeSummaries(_ writer: inout Writer, now isLast: Bool) {
        guard !writer.summaries.isEmpty, isLast || Instant.now() >= writer.summariseAt else {
            return
        }
        for summary in writer.summaries {
            write(
                .notice, .connectionsSummarised, summary.line,
                [
                    (name: "PROXY_ROUTE", value: summary.route),
                    ("PROXY_CONNECTIONS", "\(summary.count)"),
                    ("PROXY_BYTES_IN", "\(summary.bytesIn)"),
                    ("PROXY_BYTES_OUT", "\(summary.bytesOut)"),
                ], &writer)
        }
        writer.summaries.removeAll()
    }

    private func flush(_ text: inout [UInt8]) {
        var rest = text[...]
        while !rest.isEmpty {
            let written = unsafe rest.withUnsafeBytes { bytes in
                unsafe Glibc.write(descriptor, bytes.baseAddress, bytes.count)
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
}
