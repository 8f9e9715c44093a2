import Glibc
import NIOCore
import NIOHTTP1

/// What the clients of the metrics endpoint share: the page, the limits, and the room for them.
/// Lives on the endpoint's loop.
final class MetricsService {
    let limits: MetricsEndpoint.Limits
    let scrapes: ScrapeCounts
    private let page: @Sendable (ExpositionFormat) -> String
    private let reportAcceptError: @Sendable (_ code: CInt) -> Void
    private var connections: [MetricsConnection] = []
    private var reserve: DescriptorReserve
    private var lastAcceptError: NIODeadline?

    /// - Parameter descriptor: what the reserve duplicates; it stays open longer than the service.
    init(
        limits: MetricsEndpoint.Limits, scrapes: ScrapeCounts, descriptor: CInt,
        page: @escaping @Sendable (ExpositionFormat) -> String,
        reportAcceptError: @escaping @Sendable (_ code: CInt) -> Void
    ) {
        self.limits = limits
        self.scrapes = scrapes
        self.page = page
        self.reportAcceptError = reportAcceptError
        reserve = DescriptorReserve(of: limits.reservedDescriptors, duplicating: descriptor)
    }

    func stop() {
        for connection in connections { connection.close() }
        reserve.giveUp()
    }

    // MARK: Room

    func opened(_ connection: MetricsConnection) {
        if connections.count >= limits.connectionsMax { next(upTo: .answering)?.close() }
        connections.append(connection)
    }

    func closed(_ connection: MetricsConnection) {
        if let index = connections.firstIndex(where: { $0 === connection }) {
            connections.swapAt(index, connections.count - 1)
            connections.removeLast()
        }
        reserve.refill()
    }

    /// The client that makes room for another: of those least in the midst of something, the one
    /// that has been so for longest.
    private func next(upTo last: MetricsConnection.Phase) -> MetricsConnection? {
        connections.filter { $0.phase.rawValue <= last.rawValue }.min {
            ($0.phase.rawValue, $0.phaseBegan) < ($1.phase.rawValue, $1.phaseBegan)
        }
    }

    // MARK: Descriptors

    /// True exactly while answers should end their connections, so that descriptors come back.
    var isShortOfDescriptors: Bool { !reserve.isFull }

    /// Makes one descriptor free for the next accept: one of the reserve, else that of an idle
    /// client.
    ///
    /// - Returns: false if there is none to be freed.
    func freeDescriptor() -> Bool {
        if reserve.release() { return true }
        guard let connection = next(upTo: .idle) else { return false }
        connection.close()
        return true
    }

    /// Reports the first error of an outage, not one per attempt.
    func acceptFailed(_ code: CInt) {
        let now = NIODeadline.now()
        if lastAcceptError.map({ now - $0 > limits.acceptOutage }) ?? true {
            reportAcceptError(code)
        }
        lastAcceptError = now
    }

    // MARK: Answers

    func answer(
        to reply: ScrapeReply, version: HTTPVersion, keepAlive: Bool
    ) -> (head: HTTPResponseHead, body: String) {
        let body =
            switch reply {
            case .page(let format): page(format)
            default: reply.fixedBody
            }
        var headers = HTTPHeaders()
        headers.add(name: "content-type", value: reply.contentType)
        headers.add(name: "content-length", value: "\(body.utf8.count)")
        headers.add(name: "date", value: httpDate(time(nil)))
        if case .page = reply { headers.add(name: "vary", value: "accept") }
        if reply == .methodNotAllowed { headers.add(name: "allow", value: "GET, HEAD") }
        if !keepAlive {
            headers.add(name: "connection", value: "close")
        } else if version == .http1_0 {
            headers.add(name: "connection", value: "keep-alive")
        }
        return (HTTPResponseHead(version: .http1_1, status: reply.status, headers: headers), body)
    }
}

extension ScrapeReply {
    fileprivate var status: HTTPResponseStatus {
        switch self {
        case .page, .index, .healthy: .ok
        case .badRequest: .badRequest
        case .notFound: .notFound
        case .methodNotAllowed: .methodNotAllowed
        case .requestTimeout: .requestTimeout
        case .bodyTooLarge: .payloadTooLarge
        case .headTooLarge: .requestHeaderFieldsTooLarge
        }
    }

    fileprivate var contentType: String {
        switch self {
        case .page(let format): format.contentType
        case .index: "text/html; charset=utf-8"
        default: "text/plain; charset=utf-8"
        }
    }

    fileprivate var fixedBody: String {
        switch self {
        case .page: ""
        case .index:
            """
            <!DOCTYPE html>
            <html lang="en"><title>tcp-metrics-proxy</title>
            <h1>tcp-metrics-proxy</h1>
            <p><a href="/metrics">Metrics</a></p>
            </html>

            """
        case .healthy: "ok\n"
        default: "\(status.code) \(status.reasonPhrase)\n"
        }
    }
}

/// RFC 9110, section 5.6.7.
///
/// - Parameter time: seconds since the epoch.
func httpDate(_ time: time_t) -> String {
    var time = time
    var date = unsafe tm()
    guard unsafe gmtime_r(&time, &date) != nil else { return "Thu, 01 Jan 1970 00:00:00 GMT" }
    let text = unsafe [UInt8](unsafeUninitializedCapacity: 40) { buffer, count in
        count = unsafe buffer.withMemoryRebound(to: CChar.self) {
            // Month and day names are English ones: nothing here sets a locale.
            unsafe strftime($0.baseAddress, $0.count, "%a, %d %b %Y %H:%M:%S GMT", &date)
        }
    }
    return String(decoding: text, as: UTF8.self)
}

/// Descriptors held for no use but to be given up when the process has no other left, so that
/// `/metrics` can be read just then.
struct DescriptorReserve {
    private let size: Int
    private let original: CInt
    private var held: [CInt] = []

    init(of size: Int, duplicating original: CInt) {
        self.size = size
        self.original = original
        refill()
    }

    var isFull: Bool { held.count == size }

    /// Frees one.
    ///
    /// - Returns: false if none was left.
    mutating func release() -> Bool {
        guard let descriptor = held.popLast() else { return false }
        _ = Glibc.close(descriptor)
        return true
    }

    /// Takes as many as there is room for.
    mutating func refill() {
        while held.count < size {
            let descriptor = fcntl(original, F_DUPFD_CLOEXEC, 0)
            guard descriptor >= 0 else { return }
            held.append(descriptor)
        }
    }

    /// Frees all, for good.
    mutating func giveUp() {
        while release() {}
    }
}
