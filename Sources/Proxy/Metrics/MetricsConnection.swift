import NIOCore
import NIOHTTP1

/// One client of the metrics endpoint, from its connect to its close. Lives on the endpoint's loop.
///
/// Requests become small decisions that wait in `queue`. One answer at a time is written, and the
/// next page is made only when the kernel has taken the last one. While answers wait nothing more
/// is read, so what a client can make us hold is bounded, however much it sends.
final class MetricsConnection: ChannelDuplexHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundIn = Never
    typealias OutboundOut = HTTPServerResponsePart

    /// Each phase but the last has a deadline; `timedOut` says what happens then. The order is
    /// the one in which clients make room for new ones.
    enum Phase: Int {
        case lingering  // our FIN is out; input is dropped until the client's FIN
        case idle  // nothing of the next request has come
        case reading  // part of a request is here
        case answering  // an answer is on its way into the kernel
        case closed
    }

    /// A decision that waits for its turn.
    private struct Request {
        var reply: ScrapeReply
        var withBody = true
        var version = HTTPVersion.http1_1
        var keepAlive = false
    }

    private(set) var phase = Phase.idle
    private(set) var phaseBegan = NIODeadline.now()

    private let service: MetricsService
    private var context: ChannelHandlerContext?
    private var timer: Scheduled<Void>?
    private var queue = CircularBuffer<Request>()
    /// The request whose head has come and whose end has not.
    private var current: Request?
    private var bodyBytes = 0
    /// Bytes since the last request ended, chunk headers included, or since the linger began.
    private var rawBytes = 0
    /// True exactly when the last read may hold the beginning of another request at its end.
    private var mayHoldMore = false
    /// True exactly when nothing that still comes in will be answered.
    private var ignoresInput = false
    /// True exactly when the client's FIN has come.
    private var inputEnded = false
    /// True exactly when the pipeline's wish to read waits for the answers.
    private var readHeld = false

    init(_ service: MetricsService) {
        self.service = service
    }

    // MARK: Coming and going

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        enter(.idle, for: service.limits.requestTimeout)  // who connects has something to ask
        service.opened(self)
        context.fireChannelActive()
    }

    func channelInactive(context: ChannelHandlerContext) {
        phase = .closed
        timer?.cancel()
        self.context = nil
        service.closed(self)
        context.fireChannelInactive()
    }

    /// Ends the connection now.
    func close() {
        context?.close(promise: nil)
    }

    private func enter(_ phase: Phase, for limit: TimeAmount) {
        guard self.phase != .closed, let context else { return }
        self.phase = phase
        phaseBegan = .now()
        timer?.cancel()
        timer = context.eventLoop.assumeIsolated().scheduleTask(in: limit) { self.timedOut() }
    }

    private func timedOut() {
        if phase == .reading { refuse(.requestTimeout) } else { close() }
    }

    // MARK: Requests

    /// Called with each read before the decoder sees it.
    func received(_ bytes: ByteBuffer) {
        rawBytes += bytes.readableBytes
        mayHoldMore = !bytes.endsWithEmptyLine
        switch phase {
        case .idle: enter(.reading, for: service.limits.requestTimeout)
        case .lingering where rawBytes > service.limits.lingerBytes: close()
        case .reading where rawBytes > service.limits.rawRequestBytes: close()
        case .reading, .answering, .lingering, .closed: break
        }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !ignoresInput else { return }
        switch Self.unwrapInboundIn(data) {
        case .head(let head):
            bodyBytes = 0
            current = decide(head)
            if let current, head.headers.contains(name: "expect") {
                accept(current)  // the client waits for a word before it sends the body
            } else if phase == .reading {
                // The head has come in time; so must the body.
                enter(.reading, for: service.limits.requestTimeout)
            }
        case .body(let buffer):
            bodyBytes += buffer.readableBytes
            if bodyBytes > service.limits.bodyBytes { refuse(.bodyTooLarge) }
        case .end:
            rawBytes = 0
            if let current { accept(current) }
        }
    }

    private func decide(_ head: HTTPRequestHead) -> Request {
        var request = Request(
            reply: .to(
                method: head.method.rawValue, target: head.uri, accept: head.headers["accept"]),
            withBody: head.method != .HEAD, version: head.version, keepAlive: head.isKeepAlive)
        let hosts = head.headers["host"].count
        if hosts > 1 || (hosts == 0 && head.version == .http1_1) {  // RFC 9112, section 3.2
            request.reply = .badRequest
            request.keepAlive = false
        }
        // After these the decoder takes what follows for another protocol's, or a body may or may
        // not follow.
        if head.method == .CONNECT || head.headers.contains(name: "upgrade")
            || head.headers.contains(name: "expect")
        {
            request.keepAlive = false
        }
        return request
    }

    private func accept(_ request: Request) {
        var request = request
        current = nil
        if queue.count >= service.limits.queuedRequests { request.keepAlive = false }
        if !request.keepAlive { ignoresInput = true }
        queue.append(request)
        if phase != .answering { answerSoon() }
    }

    /// Answers what was asked before, then `reply`, and closes.
    private func refuse(_ reply: ScrapeReply) {
        guard !ignoresInput, phase != .closed else { return }
        accept(Request(reply: reply, withBody: current?.withBody ?? true))
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        switch error {
        case HTTPParserError.headerOverflow: refuse(.headTooLarge)
        case is HTTPParserError: refuse(.badRequest)
        case is ByteToMessageDecoderError: break  // more bytes after a refusal
        default: context.close(promise: nil)  // the socket's error: the client is gone
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if event as? ChannelEvent == .inputClosed {
            inputEnded = true
            ignoresInput = true
            // Who sends its requests and then a FIN still wants the answers.
            if phase != .answering { context.close(promise: nil) }
        }
        context.fireUserInboundEventTriggered(event)
    }

    func read(context: ChannelHandlerContext) {
        if phase == .answering { readHeld = true } else { context.read() }
    }

    // MARK: Answers

    /// Not at once, so that clients with many requests take turns.
    private func answerSoon() {
        enter(.answering, for: service.limits.answerTimeout)
        context?.eventLoop.assumeIsolated().execute { self.answerNext() }
    }

    private func answerNext() {
        guard phase == .answering, let context, let request = queue.popFirst() else { return }
        let isPage = if case .page = request.reply { true } else { false }
        if isPage { service.scrapes.begin() }

        let keepAlive = request.keepAlive && !service.isShortOfDescriptors
        let (head, body) = service.answer(
            to: request.reply, version: request.version, keepAlive: keepAlive)
        context.write(Self.wrapOutboundOut(.head(head)), promise: nil)
        if request.withBody {
            let buffer = context.channel.allocator.buffer(string: body)
            context.write(Self.wrapOutboundOut(.body(.byteBuffer(buffer))), promise: nil)
        }
        let written = context.eventLoop.makePromise(of: Void.self)
        written.futureResult.assumeIsolated().whenComplete { result in
            if isPage { self.service.scrapes.end(.ok) }
            if case .success = result { self.answered(keepAlive: keepAlive) }
        }
        context.writeAndFlush(Self.wrapOutboundOut(.end(nil)), promise: written)
    }

    /// The kernel has the whole answer.
    private func answered(keepAlive: Bool) {
        guard phase == .answering, let context else { return }
        if !keepAlive || (inputEnded && queue.isEmpty) {
            end(context)
        } else if !queue.isEmpty {
            answerSoon()
        } else if current != nil || mayHoldMore {
            enter(.reading, for: service.limits.requestTimeout)
            releaseRead(context)
        } else {
            enter(.idle, for: service.limits.idleTimeout)
            releaseRead(context)
        }
    }

    /// Sends a FIN and waits a moment for the client's: a close with unread input would be a
    /// reset, and a reset can overtake the answer (RFC 9112, section 9.6).
    private func end(_ context: ChannelHandlerContext) {
        queue.removeAll()
        ignoresInput = true
        guard !inputEnded else { return context.close(promise: nil) }
        rawBytes = 0
        enter(.lingering, for: service.limits.lingerTimeout)
        context.close(mode: .output, promise: nil)
        releaseRead(context)
    }

    private func releaseRead(_ context: ChannelHandlerContext) {
        guard readHeld, phase != .closed else { return }
        readHeld = false
        context.read()
    }
}

/// Shows each read to the connection, as it came and before it is decoded.
final class ReadMeter: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let connection: MetricsConnection

    init(_ connection: MetricsConnection) {
        self.connection = connection
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        connection.received(Self.unwrapInboundIn(data))
        context.fireChannelRead(data)
    }
}

extension ByteBuffer {
    /// True exactly when the readable bytes are at the end of a head, as far as they show it.
    fileprivate var endsWithEmptyLine: Bool {
        var lineFeeds = 0
        for byte in readableBytesView.reversed() {
            switch byte {
            case UInt8(ascii: "\n"): lineFeeds += 1
            case UInt8(ascii: "\r"): break
            default: return lineFeeds > 1
            }
            if lineFeeds > 1 { return true }
        }
        return true  // the rest of a line's end, and nothing else
    }
}
