import Glibc
import NIOCore
import Testing

@testable import Proxy

/// Clients that send too little, too much, too slowly or nonsense, over real sockets.
@Suite struct HostileScrapeTests {
    private static let short = MetricsEndpoint.Limits.patient {
        $0.requestTimeout = .milliseconds(200)
    }

    @Test func aClientThatSaysNothingIsDropped() throws {
        try withEndpoint(Self.short) { port, _ in
            let client = try HTTPTestClient(port)
            let began = NIODeadline.now()
            #expect(try client.rest() == "")
            #expect(NIODeadline.now() - began > .milliseconds(150))
        }
    }

    @Test(arguments: ["G", "GET /metrics HTTP/1.1\r\nHost: a\r\n", "\r\n\r\n\r\n"])
    func halfARequestTimesOut(half: String) throws {
        try withEndpoint(Self.short) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(half)
            #expect(try client.response().status == 408)
            #expect(try client.rest() == "")
        }
    }

    /// Each byte must not begin the wait anew.
    @Test func aDripDoesNotHoldTheConnection() throws {
        try withEndpoint(Self.short) { port, _ in
            let client = try HTTPTestClient(port)
            // At a byte per millisecond, the limit is reached long before the end.
            #expect(drip("GET / HTTP/1.1\r\n" + String(repeating: "X", count: 5000), client) < 3000)
            #expect(try client.response().status == 408)
        }
    }

    @Test func aDripOfABodyDoesNotEither() throws {
        try withEndpoint(Self.short) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send("GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n")
            #expect(drip(String(repeating: "b", count: 5000), client) < 3000)
            #expect(try client.response().status == 408)
        }
    }

    /// Whether the second half-request comes on its own or right behind the first request.
    @Test(arguments: [true, false])
    func laterHalfRequestsTimeOutToo(together: Bool) throws {
        try withEndpoint(Self.short) { port, _ in
            let client = try HTTPTestClient(port)
            let whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
            if together {
                try client.send(whole + "GET / HT")
                #expect(try client.response().status == 200)
            } else {
                try client.send(whole)
                #expect(try client.response().status == 200)
                #expect(client.staysQuiet(milliseconds: 400))  // between requests is no half one
                try client.send("GET / HT")
            }
            #expect(try client.response().status == 408)
            #expect(try client.rest() == "")
        }
    }

    @Test func anIdleConnectionIsClosed() throws {
        try withEndpoint(.patient { $0.idleTimeout = .milliseconds(100) }) { port, _ in
            let client = try HTTPTestClient(port)
            #expect(try client.get("/metrics").status == 200)
            #expect(try client.rest() == "")
        }
    }

    /// The page is larger than the kernel's buffers.
    @Test func aReaderThatDoesNotReadIsCutOff() throws {
        let size = 32 << 20
        let page = String(repeating: "x", count: size)
        let limits = MetricsEndpoint.Limits.patient { $0.answerTimeout = .milliseconds(200) }
        try withEndpoint(limits, page: { _ in page }) { port, scrapes in
            let client = try HTTPTestClient(port, receiveBuffer: 4096)
            try client.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            #expect(eventually { scrapes.inFlight == 1 })
            #expect(eventually { scrapes.inFlight == 0 && scrapes.answered(.ok) == 1 })
            let received = (try? client.rest().utf8.count) ?? 0  // a reset is an end as well
            #expect(received < size)
            #expect(try HTTPTestClient(port).get("/-/healthy").status == 200)
        }
    }

    /// Pipelined answers are not made before the last one has gone.
    @Test func aPipelinerThatDoesNotReadHoldsOnePageAtMost() throws {
        let limits = MetricsEndpoint.Limits.patient { $0.answerTimeout = .seconds(2) }
        let page = String(repeating: "x", count: 16 << 20)
        let made = ScrapeCounts()
        try withEndpoint(
            limits,
            page: { _ in
                made.begin()
                return page
            }
        ) { port, scrapes in
            let client = try HTTPTestClient(port, receiveBuffer: 4096)
            try client.send(
                String(repeating: "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", count: 200))
            #expect(eventually { scrapes.inFlight == 1 })
            #expect(try HTTPTestClient(port).get("/-/healthy").status == 200)
            #expect(eventually { scrapes.inFlight == 0 })
            #expect(made.inFlight <= 2)
        }
    }

    @Test(arguments: [
        "garbage\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}", "\0\0\0\0\0\0",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0",
    ])
    func garbageIsRefused(garbage: String) throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(garbage)
            let response = try client.response()
            #expect(response.status == 400)
            #expect(response.headers["connection"] == "close")
            #expect(try client.rest() == "")
        }
    }

    @Test func requestsBeforeGarbageAreAnswered() throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            try client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\ngarbage\r\n\r\n")
            #expect(try client.response().status == 200)
            #expect(try client.response().status == 400)
            #expect(try client.rest() == "")
        }
    }

    @Test(arguments: [
        "GET / HTTP/1.1\r\nHost: a\r\nX: " + String(repeating: "x", count: 16_500) + "\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: " + String(repeating: "x", count: 100_000) + "\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n" + String(repeating: "X", count: 100_000) + ": x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n" + String(repeating: "X: 1234\r\n", count: 101) + "\r\n",
        "GET /" + String(repeating: "x", count: 16_500) + " HTTP/1.1\r\nHost: a\r\n\r\n",
    ])
    func largeHeadsAreRefused(head: String) throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(head)
            #expect(try client.response().status == 431)
            #expect(try client.rest() == "")
        }
    }

    @Test func endlessHeadsAreCutOff() throws {
        try withEndpoint(.patient()) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send("GET / HTTP/1.1\r\n")
            let line = String(repeating: "X: 1234567890\r\n", count: 100)
            #expect(throws: HTTPTestClient.Failure.self) {
                for _ in 0..<10_000 { try client.send(line) }
            }
        }
    }

    /// Empty lines before a request are skipped by the decoder, but not for ever.
    @Test func endlessEmptyLinesAreCutOff() throws {
        try withEndpoint(.patient()) { port, _ in
            let client = try HTTPTestClient(port)
            let lines = String(repeating: "\r\n", count: 10_000)
            #expect(throws: HTTPTestClient.Failure.self) {
                for _ in 0..<10_000 { try client.send(lines) }
            }
        }
    }

    @Test(arguments: [
        "Content-Length: 1000000\r\n\r\n" + String(repeating: "b", count: 1_000_000),
        "Transfer-Encoding: chunked\r\n\r\n"
            + String(repeating: "1000\r\n\(String(repeating: "b", count: 4096))\r\n", count: 50),
    ])
    func largeBodiesAreRefused(rest: String) throws {
        try withEndpoint(.patient { $0.lingerTimeout = .seconds(5) }) { port, _ in
            let client = try HTTPTestClient(port)
            do {
                try client.send("GET /metrics HTTP/1.1\r\nHost: a\r\n" + rest)
            } catch {}  // it may close while we send
            // The answer may be lost to a reset when there is far too much.
            if let response = try? client.response() { #expect(response.status == 413) }
            #expect(try HTTPTestClient(port).get("/").status == 200)
        }
    }

    /// One byte of body per chunk, each with a long extension that the decoder skips.
    @Test func endlessChunkExtensionsAreCutOff() throws {
        try withEndpoint(.patient()) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=")
            let piece = String(repeating: "x", count: 10_000)
            #expect(throws: HTTPTestClient.Failure.self) {
                for _ in 0..<10_000 { try client.send(piece) }
            }
        }
    }

    @Test func theOldestIdleClientMakesRoom() throws {
        try withEndpoint(.patient { $0.connectionsMax = 4 }) { port, _ in
            let half = try HTTPTestClient(port)  // the oldest of all, in the midst of a request
            try half.send("GET / HTTP/1.1\r\n")
            let idle = try (0..<3).map { _ in try HTTPTestClient(port) }
            for client in idle { #expect(try client.get("/metrics").status == 200) }
            #expect(try idle[0].get("/metrics").status == 200)  // now idle[1] is the oldest

            let new = try HTTPTestClient(port)
            #expect(try new.get("/metrics").status == 200)
            #expect(try idle[1].rest() == "")
            for client in [idle[0], idle[2], new] {
                #expect(try client.get("/metrics").status == 200)
            }
            try half.send("Host: a\r\n\r\n")
            #expect(try half.response().status == 200)
        }
    }

    /// A flood of clients that say nothing does not keep a scrape out.
    @Test func aFloodOfSilentClientsLeavesRoomForAScrape() throws {
        try withEndpoint(.patient { $0.connectionsMax = 8 }) { port, _ in
            var flood: [HTTPTestClient] = []
            for _ in 0..<100 {
                flood.append(try HTTPTestClient(port))
                if flood.count % 10 == 0 {
                    #expect(try HTTPTestClient(port).get("/metrics").status == 200)
                }
            }
            #expect(eventually { flood.filter { $0.staysQuiet(milliseconds: 0) }.count <= 8 })
        }
    }

    @Test func resetsInEveryStateLeaveItServing() throws {
        let page = String(repeating: "x", count: 4 << 20)
        try withEndpoint(page: { _ in page }) { port, scrapes in
            for beginning in ["", "GET", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"] {
                for _ in 0..<20 {
                    let client = try HTTPTestClient(port)
                    try client.send(beginning)
                    client.resetOnClose()
                }
            }
            #expect(try HTTPTestClient(port).get("/metrics").status == 200)
            #expect(eventually { scrapes.inFlight == 0 })
        }
    }
}

/// Sends a byte per millisecond.
///
/// - Returns: how many could be sent before the far end had enough, or answered.
private func drip(_ text: String, _ client: HTTPTestClient) -> Int {
    var sent = 0
    for byte in text.utf8 {
        guard client.staysQuiet(milliseconds: 1), (try? client.send([byte])) != nil else { break }
        sent += 1
    }
    return sent
}
