import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix

/// One listening socket of the metrics endpoint. Lives on the endpoint's loop.
///
/// NIO 2.101 needs help with errors of accept(2). After EMFILE, ENFILE, ENOBUFS and ENOMEM it goes
/// on polling the socket, which stays readable, and so takes a whole CPU; its AcceptBackoffHandler
/// holds back reads that are not asked for again, and changes nothing. After any other error but
/// ECONNABORTED it closes the listener for good, although accept(2) says of most that they concern
/// one connection only. So the socket is unregistered for a pause after the first kind, and NIO
/// gets only a duplicate of the descriptor, to be replaced after the second.
final class MetricsListener {
    private let descriptor: CInt  // owned
    private let service: MetricsService
    private let loop: any EventLoop
    private var channel: (any Channel)?
    private var stopped = false
    fileprivate var pause: TimeAmount

    init(adopting descriptor: CInt, service: MetricsService, loop: any EventLoop) {
        self.descriptor = descriptor
        self.service = service
        self.loop = loop
        pause = service.limits.acceptPauseMin
    }

    /// Accepts no more and closes the descriptor; the socket itself stays as it is, for others
    /// may hold it too.
    func stop() {
        stopped = true
        channel?.close(promise: nil)
        _ = Glibc.close(descriptor)
    }

    /// Begins to accept.
    func open() -> EventLoopFuture<Void> {
        let duplicate = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        guard duplicate >= 0 else {
            let code = errno
            return loop.makeFailedFuture(IOError(errnoCode: code, reason: "fcntl"))
        }
        let this = NIOLoopBound(self, eventLoop: loop)
        return bootstrap().withBoundSocket(duplicate).map { channel in
            let listener = this.value
            listener.channel = channel
            channel.closeFuture.whenComplete { _ in this.value.reopenLater() }
            if listener.stopped { channel.close(promise: nil) }
        }
    }

    private func reopenLater() {
        channel = nil
        guard !stopped else { return }
        loop.assumeIsolated().scheduleTask(in: nextPause()) {
            guard !self.stopped else { return }
            self.open().assumeIsolated().whenFailure { error in
                let code = (error as? IOError)?.errnoCode ?? EIO
                self.service.acceptFailed(code)
                if code == EMFILE { _ = self.service.freeDescriptor() }
                self.reopenLater()
            }
        }
    }

    /// Each pause in a row is twice as long, up to a maximum.
    fileprivate func nextPause() -> TimeAmount {
        defer { pause = min(pause * 2, service.limits.acceptPauseMax) }
        return pause
    }

    fileprivate func accepted() {
        pause = service.limits.acceptPauseMin
    }

    fileprivate func failed(_ code: CInt, _ context: ChannelHandlerContext) {
        service.acceptFailed(code)
        switch code {
        case EMFILE where service.freeDescriptor(): break  // and the next try is at once
        case EMFILE, ENFILE, ENOBUFS, ENOMEM: rest(context.channel)
        default: break  // ECONNABORTED: the next one; any other: NIO closes, we reopen
        }
    }

    private func rest(_ channel: any Channel) {
        let options = channel.syncOptions
        try? options?.setOption(.autoRead, value: false)
        loop.assumeIsolated().scheduleTask(in: nextPause()) {
            guard channel.isActive else { return }
            try? channel.syncOptions?.setOption(.autoRead, value: true)
        }
    }

    private func bootstrap() -> ServerBootstrap {
        let this = NIOLoopBound(self, eventLoop: loop)
        let limits = service.limits
        return ServerBootstrap(group: loop)
            // accept(2) reports EMFILE before it looks whether anybody waits: ask only once for
            // each time that somebody does.
            .serverChannelOption(.maxMessagesPerRead, value: 1)
            .serverChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(AcceptErrors(this.value))
                }
            }
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try this.value.prepare(channel) }
            }
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelOption(
                .recvAllocator,
                value: AdaptiveRecvByteBufferAllocator(
                    minimum: 512, initial: 1024, maximum: limits.readBytes)
            )
            .childChannelOption(.socketOption(.so_rcvbuf), value: limits.receiveBuffer)
    }

    private func prepare(_ channel: any Channel) throws {
        var limits = NIOHTTPDecoderLimitConfiguration()
        limits.maxHeaderFieldSize = service.limits.headBytes
        limits.maxHeaderListSize = service.limits.headBytes
        limits.maxHeaderFieldCount = service.limits.headerFields
        let connection = MetricsConnection(service)
        let pipeline = channel.pipeline.syncOperations
        try pipeline.addHandler(ReadMeter(connection))
        try pipeline.addHandler(HTTPResponseEncoder())
        try pipeline.addHandler(
            ByteToMessageHandler(HTTPRequestDecoder(limitConfiguration: limits)))
        try pipeline.addHandler(connection)
    }
}

/// Stands before NIO's own accept handler and tells the listener how its accepts went.
private final class AcceptErrors: ChannelInboundHandler {
    typealias InboundIn = any Channel

    private let listener: MetricsListener

    init(_ listener: MetricsListener) {
        self.listener = listener
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        listener.accepted()
        context.fireChannelRead(data)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if let error = error as? IOError { listener.failed(error.errnoCode, context) }
    }
}
