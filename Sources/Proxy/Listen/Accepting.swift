// Accepts clients: in small batches, and only while there is room for them.

import Glibc

/// A listener as one worker sees it.
struct WatchedListener {
    let listener: Listener
    /// True exactly when this worker's epoll reports the listener.
    var isWatched = false
    /// How many to accept in one turn: grows while clients wait, falls when none does.
    var batch = 1
}

extension Worker {
    /// Takes a few clients from a listener's backlog.
    func accept(_ index: Int) {
        guard index < listeners.count, listeners[index].isWatched else { return }
        let listener = listeners[index].listener
        for _ in 0..<listeners[index].batch {
            guard shared.descriptors.takeForConnection() else { return holdForDescriptors() }
            let accepted: (CInt, SocketAddress)
            do throws(SystemError) {
                accepted = try Socket.accept(listener.socket.rawValue)
            } catch {
                shared.descriptors.giveBack(2)
                listeners[index].batch = max(listeners[index].batch / 2, 1)
                if error.code != EAGAIN { acceptFailed(listener, error) }
                return
            }
            admit(
                FileDescriptor(owning: accepted.0), from: accepted.1, at: listener.address,
                routeIndex: listener.routeIndex)
        }
        listeners[index].batch = min(listeners[index].batch * 2, Self.largestBatch)
    }

    /// Clients accepted in one turn; the connections that are open have theirs after it.
    private static let largestBatch = 16

    /// Lets a client in, or turns it away at the route's or the process's limit.
    func admit(
        _ client: consuming FileDescriptor, from address: SocketAddress,
        at listen: SocketAddress, routeIndex: Int
    ) {
        let route = routes[routeIndex]
        let counters = self.counters.routes[routeIndex]
        if route.isRefused {
            return reject(
                client, route, .noTarget,
                "route \(quoted(route.name)) was refused, as told before: its clients are turned away"
            )
        }
        guard shared.admission.enter() else {
            return reject(
                client, route, .limit, "the proxy is \(Self.atLimit(shared.admission.limit))")
        }
        guard route.admission.enter() else {
            shared.admission.leave()
            return reject(
                client, route, .limit,
                "route \(quoted(route.name)) is \(Self.atLimit(route.admission.limit))")
        }
        let connection = Connection(
            id: shared.nextConnectionID(), route: route, counters: counters, client: client,
            address: address, listen: listen, now: now)
        connections.insert(connection)
        counters.accepted.add(1)
        counters.active.add(1)
        shared.activity()
        do throws(SystemError) {
            try epoll.add(
                connection.client.rawValue, Self.interest, token: connection.key.token(.client))
        } catch {
            return take(.end(.noMemory), connection)
        }
        take(dial(connection), connection)
    }

    private func reject(
        _ client: consuming FileDescriptor, _ route: Route, _ reason: RejectReason,
        _ message: @autoclosure () -> String
    ) {
        Socket.resetOnClose(client.rawValue)
        counters.routes[route.index].rejected.add(reason.rawValue)
        shared.descriptors.giveBack(2)
        shared.log.atMostEverySecond(.warning, .clientRefused, message(), route: route.name)
        if listeners.isEmpty { shared.notice.signal() }  // it was the only one
    }

    private static func atLimit(_ limit: Int) -> String {
        "at its limit, \(Status.count(limit, "open connection")): "
            + "clients are turned away until one ends"
    }

    // MARK: No room

    private func acceptFailed(_ listener: Listener, _ error: SystemError) {
        let kind = AcceptError(code: error.code)
        counters.routes[listener.routeIndex].acceptErrors.add(kind.rawValue)
        guard kind.needsPause else { return }
        pauseAccepting()
        switch kind {
        case .descriptors, .systemDescriptors: shared.descriptorsRanOut(error)
        default:
            shared.log.atMostEverySecond(
                .warning, .acceptFailed, "cannot accept on \(listener.address): \(error.message)")
        }
    }

    private func holdForDescriptors() {
        shared.descriptorsRanOut(nil)
        pipes.trim()
        pauseAccepting()
    }

    /// Stops listening for a moment. Clients wait in the backlog; nothing spins on it.
    private func pauseAccepting() {
        for index in listeners.indices where listeners[index].isWatched {
            epoll.remove(listeners[index].listener.socket.rawValue)
            listeners[index].isWatched = false
        }
        acceptAgainAt = now.advanced(by: Self.pause)
    }

    private static let pause = Duration.milliseconds(50)

    /// Ends the pause when its time has come.
    func resumeAccepting() {
        guard let at = acceptAgainAt, now >= at, !isDraining else { return }
        acceptAgainAt = nil
        watchListeners()
    }

    func watchListeners() {
        for index in listeners.indices where !listeners[index].isWatched {
            do throws(SystemError) {
                try epoll.add(
                    listeners[index].listener.socket.rawValue, [.readable, .exclusive],
                    token: SlabKey(index: index, generation: 0).token(.listener))
                listeners[index].isWatched = true
            } catch {
                acceptAgainAt = now.advanced(by: Self.pause)
            }
        }
    }

    /// Accepts no more, from this moment on.
    func stopListening() {
        for index in listeners.indices where listeners[index].isWatched {
            epoll.remove(listeners[index].listener.socket.rawValue)
        }
        listeners.removeAll()
        acceptAgainAt = nil
    }
}
