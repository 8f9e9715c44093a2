import Glibc
import NIOCore
import Synchronization
import Testing

@testable import Proxy

/// Errors of accept(2). Each test is a process of its own, for it takes all descriptors.
@Suite struct AcceptErrorTests {
    /// The page can be read while the rest of the process has not one descriptor left.
    @Test func scrapesGoOnWithoutDescriptors() async {
        await #expect(processExitsWith: .success) {
            let clients = try (0..<3).map { _ in try HTTPTestClient() }
            let reported = ScrapeCounts()
            let (endpoint, port) = try startEndpoint(MetricsEndpoint.Limits()) { _ in
                reported.begin()
            }
            let taken = takeAllDescriptors()
            for client in clients {
                try client.connect(to: port)
                let response = try client.get("/metrics")
                try #require(response.status == 200)
                // So that the reserve can be filled again.
                try #require(response.headers["connection"] == "close")
                _ = try client.rest()
            }
            try #require(reported.inFlight == 1)  // one report per outage, not one per try
            for descriptor in taken { close(descriptor) }
            let later = try HTTPTestClient(port)
            try #require(eventually { (try? later.get("/metrics").headers["connection"]) == nil })
            endpoint.stop()
        }
    }

    /// With no reserve and nobody to drop: no spinning, and back by itself.
    @Test func withoutAnyDescriptorItWaitsAndComesBack() async {
        await #expect(processExitsWith: .success) {
            var limits = MetricsEndpoint.Limits()
            limits.reservedDescriptors = 0
            let client = try HTTPTestClient()
            let (endpoint, port) = try startEndpoint(limits) { _ in }
            let taken = takeAllDescriptors()
            try client.connect(to: port)
            try client.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            let before = processorTime()
            try #require(client.staysQuiet(milliseconds: 700))
            try #require(processorTime() - before < 0.1)  // of 0.7 s
            for descriptor in taken { close(descriptor) }
            try #require(try client.response().status == 200)
            endpoint.stop()
        }
    }

    /// An idle client is dropped for a new one when only its descriptor is to be had.
    @Test func idleClientsMakeRoomWhenDescriptorsAreShort() async {
        await #expect(processExitsWith: .success) {
            var limits = MetricsEndpoint.Limits()
            limits.reservedDescriptors = 0
            let (endpoint, port) = try startEndpoint(limits) { _ in }
            let idle = try HTTPTestClient(port)
            try #require(try idle.get("/metrics").status == 200)
            let client = try HTTPTestClient()
            let taken = takeAllDescriptors()
            try client.connect(to: port)
            try #require(try client.get("/metrics").status == 200)
            try #require(try idle.rest() == "")
            for descriptor in taken { close(descriptor) }
            endpoint.stop()
        }
    }

    /// NIO gives a listener up after most errors. EINVAL, by way of shutdown(2), stands here for
    /// those that come from the network and cannot be had on loopback.
    @Test func aListenerThatNIOGaveUpIsOpenedAgain() async {
        await #expect(processExitsWith: .success) {
            // A port that is bound by its number stays bound while the socket does not listen.
            let (finder, free) = try listenOnLoopback()
            close(finder)
            let (descriptor, port) = try listenOnLoopback(port: free)
            let codes = Mutex<[CInt]>([])
            let endpoint = MetricsEndpoint(
                listeningOn: [descriptor],
                reportAcceptError: { code in codes.withLock { $0.append(code) } },
                page: { _ in "up 1\n" })
            try endpoint.start()
            try #require(try HTTPTestClient(port).get("/metrics").status == 200)
            for _ in 0..<2 {
                shutdown(descriptor, CInt(SHUT_RDWR))
                try #require(
                    eventually { (try? HTTPTestClient(port).get("/metrics").status) == 200 })
            }
            try #require(codes.withLock { $0 } == [EINVAL])
            endpoint.stop()
        }
    }
}

private func startEndpoint(
    _ limits: MetricsEndpoint.Limits, report: @escaping @Sendable (CInt) -> Void
) throws -> (MetricsEndpoint, UInt16) {
    let (descriptor, port) = try listenOnLoopback()
    let process = ProcessMetrics()
    let endpoint = MetricsEndpoint(
        listeningOn: [descriptor], limits: limits, reportAcceptError: report,
        page: { format in
            var page = Exposition(format)
            process.write(to: &page)
            let text = page.finished()
            // It must be able to say that none is left.
            precondition(text.contains("process_open_fds ") && text.contains("resident_memory"))
            return text
        })
    try endpoint.start()
    return (endpoint, port)
}

/// Lowers the limit and opens what it allows.
private func takeAllDescriptors() -> [CInt] {
    var limit = rlimit(rlim_cur: 256, rlim_max: 256)
    let lowered = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0
    precondition(lowered)
    var taken: [CInt] = []
    while true {
        let descriptor = dup(0)
        guard descriptor >= 0 else { return taken }
        taken.append(descriptor)
    }
}

/// Seconds that this process has used.
private func processorTime() -> Double {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
