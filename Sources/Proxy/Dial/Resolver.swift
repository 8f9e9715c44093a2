// Name look-ups, on threads of their own: getaddrinfo(3) may block for seconds.

import CLinux
import Glibc

/// Looks host names up. One look-up serves all who ask for the same name meanwhile, and its
/// answer serves those who ask within the next seconds.
final class Resolver: Sendable {
    typealias Reply = @Sendable ([SocketAddress]) -> Void

    private struct Name: Hashable {
        let host: String
        let port: UInt16
    }

    private struct State {
        var queue: [Name] = []
        var waiting: [Name: [Reply]] = [:]
        var answers: [Name: (addresses: [SocketAddress], until: Instant)] = [:]
        var threads = 0
        var idleThreads = 0
    }

    private let state = Locked(State())
    private let wakeUp: EventCounter

    init() throws(SystemError) { wakeUp = try EventCounter() }

    /// How long an answer is used again: long enough for a burst of connections, short enough to
    /// follow a fail-over by DNS.
    private static let answerLifetime = Duration.seconds(5)
    /// A name server that does not answer keeps one thread busy, not all look-ups.
    private static let mostThreads = 4

    /// Calls `reply` once, on another thread unless the answer is at hand; with no addresses if
    /// the name is not known.
    func lookUp(host: String, port: UInt16, reply: @escaping Reply) {
        let name = Name(host: host, port: port)
        let now = Instant.now()
        enum Next { case answer([SocketAddress]), wake, startThread, nothing }
        let next: Next = state.withLock { state in
            if let answer = state.answers[name], now < answer.until {
                return .answer(answer.addresses)
            }
            state.waiting[name, default: []].append(reply)
            guard state.waiting[name]?.count == 1 else { return .nothing }
            state.queue.append(name)
            if state.idleThreads >= state.queue.count { return .wake }
            if state.threads == Self.mostThreads { return .nothing }
            state.threads += 1
            return .startThread
        }
        switch next {
        case .answer(let addresses): reply(addresses)
        case .wake: wakeUp.signal()
        case .startThread: addThread()
        case .nothing: break
        }
    }

    /// One more thread for the queue. At a limit on threads those that there are go on; without
    /// any, nobody can be answered.
    private func addThread() {
        do throws(SystemError) {
            try startThread("resolver") { self.work() }
        } catch {
            let unanswered = state.withLock { state in
                state.threads -= 1
                guard state.threads == 0 else { return [Reply]() }
                defer {
                    state.queue.removeAll()
                    state.waiting.removeAll()
                }
                return state.waiting.values.flatMap { $0 }
            }
            for reply in unanswered { reply([]) }
        }
    }

    private func work() {
        while true {
            var othersWait = false
            let name: Name? = state.withLock { state in
                if state.queue.isEmpty {
                    state.idleThreads += 1
                    return nil
                }
                defer { othersWait = !state.queue.isEmpty && state.idleThreads > 0 }
                return state.queue.removeFirst()
            }
            // One wake-up may stand for several names: the next thread has the next one.
            if othersWait { wakeUp.signal() }
            guard let name else {
                wakeUp.wait(milliseconds: -1)
                state.withLock { $0.idleThreads -= 1 }
                continue
            }
            let addresses = (try? Self.addresses(host: name.host, port: name.port)) ?? []
            let until = Instant.now().advanced(by: Self.answerLifetime)
            let replies = state.withLock { state in
                state.answers[name] = addresses.isEmpty ? nil : (addresses, until)
                return state.waiting.removeValue(forKey: name) ?? []
            }
            for reply in replies { reply(addresses) }
        }
    }

    /// Why a name has no addresses, in the words of gai_strerror(3).
    struct LookUpError: Error, CustomStringConvertible {
        let description: String
    }

    /// Looks a name up on the calling thread.
    ///
    /// - Returns: its addresses in the order of RFC 8305, section 4: as RFC 6724 sorts them, the
    ///   families in turn.
    static func addresses(
        host: String, port: UInt16, numeric: Bool = false, passive: Bool = false
    ) throws(LookUpError) -> [SocketAddress] {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = linux_SOCK_STREAM
        unsafe hints.ai_flags = (numeric ? AI_NUMERICHOST : 0) | (passive ? AI_PASSIVE : 0)
        var list: UnsafeMutablePointer<addrinfo>? = nil
        let code = unsafe getaddrinfo(host, String(port), &hints, &list)
        guard code == 0 else {
            throw LookUpError(description: unsafe String(cString: gai_strerror(code)))
        }
        defer { unsafe freeaddrinfo(list) }
        var found: [SocketAddress] = []
        var entry = unsafe list
        while let node = unsafe entry {
            if let raw = unsafe node.pointee.ai_addr {
                var storage = sockaddr_storage()
                let length = unsafe min(
                    Int(node.pointee.ai_addrlen), MemoryLayout<sockaddr_storage>.size)
                unsafe withUnsafeMutableBytes(of: &storage) { bytes in
                    unsafe bytes.copyMemory(
                        from: UnsafeRawBufferPointer(start: raw, count: length))
                }
                let address = SocketAddress(&storage, length: socklen_t(length))
                if !found.contains(address) { found.append(address) }
            }
            unsafe entry = node.pointee.ai_next
        }
        return interleaved(found)
    }

    /// Takes the families in turn, each in its own order, beginning with the first one's.
    static func interleaved(_ addresses: [SocketAddress]) -> [SocketAddress] {
        guard let first = addresses.first else { return [] }
        let same = addresses.filter { $0.family == first.family }
        let other = addresses.filter { $0.family != first.family }
        var result: [SocketAddress] = []
        for index in 0..<max(same.count, other.count) {
            if index < same.count { result.append(same[index]) }
            if index < other.count { result.append(other[index]) }
        }
        return result
    }
}
