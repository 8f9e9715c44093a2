// Connects to a route's target: runs the actions of DialAttempt.

import Glibc

extension Worker {
    /// Begins to connect.
    func dial(_ connection: Connection) -> Step {
        connection.dial = DialAttempt(
            targets: connection.route.targets,
            deadline: now.advanced(byNanoseconds: connection.route.connectTimeout),
            patient: connection.route.patient)
        return redial(connection)
    }

    /// Begins with the first target, at once or after a pause.
    func redial(_ connection: Connection) -> Step {
        advance(connection, connection.dial?.start(now: now))
    }

    /// The resolver has answered.
    func resolved(
        _ connection: Connection, target index: Int, _ addresses: [SocketAddress]
    ) -> Step {
        // An answer may come after its time, when another target is tried.
        guard connection.phase == .resolving, connection.dial?.targetIndex == index else {
            return .stay
        }
        return advance(connection, connection.dial?.resolved(addresses, now: now))
    }

    /// epoll says something of a target that is being connected.
    func dialProgressed(_ connection: Connection, _ readiness: Readiness) -> Step {
        if !readiness.isDisjoint(with: [.error, .hangup]) {
            let code = Socket.takeError(connection.targetDescriptor)
            if code == ECONNRESET || code == EPIPE {
                // A refusal is ECONNREFUSED: this one was connected, and what the target sent
                // before it reset is still to be delivered.
                connection.brokenBy = .targetReset
                connection.toTarget.half.sinkFailed()
                return .relay
            }
            return attemptFailed(connection, code: code == 0 ? ECONNREFUSED : code)
        }
        return readiness.contains(.writable) ? .relay : .stay
    }

    /// The time for what the dial waits for is over.
    func dialTimerFired(_ connection: Connection) -> Step {
        if now < connection.dialLimit {
            preserveIfDue(connection)
            setDialTimer(connection, at: connection.dialLimit)
            return .stay
        }
        switch connection.phase {
        case .waitingToRedial: return redial(connection)
        case .dialling: return attemptFailed(connection, code: ETIMEDOUT)
        default: return advance(connection, connection.dial?.resolved([], now: now))
        }
    }

    /// Comes back at that moment, or before if the connection is to be entered in a ledger.
    private func setDialTimer(_ connection: Connection, at limit: Instant) {
        connection.dialLimit = limit
        timers.set(connection.key.index, at: min(limit, preserveAt(connection) ?? limit))
    }

    private func attemptFailed(_ connection: Connection, code: CInt) -> Step {
        let failure = ConnectFailure(code: code)
        connection.counters.connectFailures.add(failure.rawValue)
        dropTarget(connection)
        let full = code == EAGAIN && connection.targetAddress.isUnix
        return advance(connection, connection.dial?.failed(failure, full: full, now: now))
    }

    /// Carries out what the attempt asks for, until it has to wait.
    private func advance(_ connection: Connection, _ first: DialAttempt.Action?) -> Step {
        preserveIfDue(connection)
        var action = first
        while true {
            switch action {
            case nil: return .stay  // no dial is under way
            case .resolve(let index, let limit):
                lookUp(connection, index, by: limit)
                return .stay
            case .wait(let until):
                connection.phase = .waitingToRedial
                setDialTimer(connection, at: until)
                return .stay
            case .fail(let failure):
                if failure == .unresolved {
                    connection.counters.connectFailures.add(failure.rawValue)
                }
                return .end(failure.closeReason)
            case .connect(let address, let limit):
                let code = connect(connection, to: address)
                if code == 0 { return .relay }
                if code == EINPROGRESS {
                    connection.phase = .dialling
                    setDialTimer(connection, at: limit)
                    return .stay
                }
                let failure = ConnectFailure(code: code)
                connection.counters.connectFailures.add(failure.rawValue)
                dropTarget(connection)
                action = connection.dial?.failed(
                    failure, full: code == EAGAIN && address.isUnix, now: now)
            }
        }
    }

    /// Starts one connect. Returns 0 when it is done, else an errno.
    private func connect(_ connection: Connection, to address: SocketAddress) -> CInt {
        connection.counters.connectAttempts.add(1)
        connection.targetAddress = address
        connection.connectStartedAt = now
        connection.toClient.half = HalfStream(isUnix: address.isUnix)
        do throws(SystemError) {
            let socket = try Socket.make(family: address.family)
            if !address.isUnix { Socket.prepareForRelay(socket.rawValue) }
            let code = Socket.connect(socket.rawValue, to: address)
            guard code == 0 || code == EINPROGRESS else { return code }
            try epoll.add(
                socket.rawValue, Self.interest.union(.writable),
                token: connection.key.token(.target))
            connection[.target].reportsWritable = true
            connection.target = consume socket
            return code
        } catch {
            return error.code
        }
    }

    private func dropTarget(_ connection: Connection) {
        connection.target = nil
        connection[.target] = .init()
    }

    private func lookUp(_ connection: Connection, _ index: Int, by limit: Instant) {
        guard case .host(let host, let port) = connection.route.targets[index].endpoint else {
            return
        }
        connection.phase = .resolving
        connection.connectStartedAt = now
        setDialTimer(connection, at: limit)
        let key = connection.key
        let mailbox = self.mailbox
        shared.resolver.lookUp(host: host, port: port) { addresses in
            mailbox.post(.resolved(key, target: index, addresses))
        }
    }
}
