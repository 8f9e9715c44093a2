import Glibc
import Testing

@testable import Proxy

/// Well-behaved clients, over real sockets.
@Suite struct MetricsEndpointTests {
    @Test func aScrapeGetsThePage() throws {
        try withEndpoint(page: { "page in \($0)\n" }) { port, _ in
            let response = try HTTPTestClient(port).get("/metrics")
            #expect(response.status == 200)
            #expect(response.body == "page in prometheusText\n")
            #expect(
                response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8")
            #expect(response.headers["content-length"] == "\(response.body.utf8.count)")
            #expect(response.headers["connection"] == nil)
            #expect(response.headers["date"]?.hasSuffix(" GMT") == true)
        }
    }

    @Test func openMetricsForWhoAsksForIt() throws {
        try withEndpoint(page: { "page in \($0)\n" }) { port, _ in
            let response = try HTTPTestClient(port).get(
                "/metrics", headers: "Accept: application/openmetrics-text; version=1.0.0\r\n")
            #expect(response.body == "page in openMetrics\n")
            #expect(
                response.headers["content-type"]
                    == "application/openmetrics-text; version=1.0.0; charset=utf-8")
        }
    }

    @Test(arguments: [
        ("GET", "/", 200, "href=\"/metrics\""), ("GET", "/-/healthy", 200, "ok\n"),
        ("GET", "/nothing", 404, "404 Not Found\n"),
        ("POST", "/metrics", 405, "405 Method Not Allowed\n"),
        ("DELETE", "/metrics", 405, "405 Method Not Allowed\n"),
        ("OPTIONS", "*", 405, "405 Method Not Allowed\n"),
    ])
    func otherRequests(method: String, target: String, status: Int, body: String) throws {
        try withEndpoint { port, _ in
            let response = try HTTPTestClient(port).get(target, method: method)
            #expect(response.status == status)
            #expect(response.body.contains(body))
            #expect(response.headers["allow"] == (status == 405 ? "GET, HEAD" : nil))
        }
    }

    @Test func headSendsTheHeadersOfGetAlone() throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            let head = try client.get("/metrics", method: "HEAD")
            let get = try client.get("/metrics")  // and nothing lies between the two
            #expect(head.status == 200)
            #expect(head.headers["content-length"] == "\(get.body.utf8.count)")
            #expect(head.headers["content-type"] == get.headers["content-type"])
        }
    }

    @Test func oneConnectionServesManyRequests() throws {
        try withEndpoint { port, scrapes in
            let client = try HTTPTestClient(port)
            for _ in 0..<100 { #expect(try client.get("/metrics").status == 200) }
            #expect(try client.get("/nothing").status == 404)
            #expect(try client.get("/-/healthy").status == 200)
            #expect(eventually { scrapes.answered(.ok) == 100 })  // scrapes alone count
        }
    }

    /// More requests than the queue takes, of a client that reads late: the rest waits in the
    /// kernel until there is room.
    @Test func pipelinedRequestsAreAnsweredInOrder() throws {
        let page = String(repeating: "x", count: 30_000)
        try withEndpoint(.patient(), page: { _ in page }) { port, scrapes in
            let client = try HTTPTestClient(port, receiveBuffer: 4096)
            let targets = (0..<3000).map { ["/metrics", "/nothing", "/-/healthy"][$0 % 3] }
            try client.send(
                targets.map { "GET \($0) HTTP/1.1\r\nHost: test\r\n\r\n" }.joined())
            var answered: UInt64 = 0
            let isStuck = eventually {
                defer { answered = scrapes.answered(.ok) }
                usleep(50_000)
                return scrapes.inFlight == 1 && scrapes.answered(.ok) == answered
            }
            #expect(isStuck)
            for target in targets {
                let status = try client.response().status
                try #require(status == (target == "/nothing" ? 404 : 200))
            }
            #expect(try client.get("/").status == 200)
        }
    }

    @Test func tooManyPipelinedRequestsEndTheConnectionAfterTheirAnswers() throws {
        try withEndpoint(.patient { $0.queuedRequests = 5 }) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(
                String(repeating: "GET / HTTP/1.1\r\nHost: test\r\n\r\n", count: 20))
            var answers = 0
            while try client.response().headers["connection"] != "close" { answers += 1 }
            #expect(answers == 5)
            #expect(try client.rest() == "")
        }
    }

    @Test(arguments: [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "close"),
        ("GET / HTTP/1.0\r\n\r\n", "close"),
        // What follows these is not HTTP/1.1, or may be a body.
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "close"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", "close"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            "close"
        ),
    ])
    func theConnectionEndsAfterTheAnswer(request: String, connection: String) throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(request + "GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
            #expect(try client.response().headers["connection"] == connection)
            #expect(try client.rest() == "")  // a FIN, no reset, no second answer
        }
    }

    @Test func oldClientsMayKeepTheirConnection() throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            for _ in 0..<2 {
                try client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                #expect(try client.response().headers["connection"] == "keep-alive")
            }
        }
    }

    /// `printf … | nc -N` and shell scripts close their side at once.
    @Test func requestsBeforeAHalfCloseAreAnswered() throws {
        try withEndpoint(page: { _ in String(repeating: "x", count: 3_000_000) }) { port, _ in
            let client = try HTTPTestClient(port)
            try client.send(
                String(repeating: "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", count: 3))
            client.sendFIN()
            for _ in 0..<3 { #expect(try client.response().body.utf8.count == 3_000_000) }
            #expect(try client.rest() == "")
        }
    }

    @Test func smallBodiesAreDiscarded() throws {
        try withEndpoint { port, _ in
            let client = try HTTPTestClient(port)
            let body = String(repeating: "b", count: 60_000)
            try client.send(
                "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n\(body)")
            #expect(try client.response().status == 405)
            try client.send(
                "GET /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + "5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n")
            #expect(try client.response().status == 200)
            #expect(try client.get("/").status == 200)
        }
    }

    /// A page that shows the counts shows its own scrape as in flight and not yet as answered.
    @Test func scrapesAreCounted() throws {
        let (descriptor, port) = try listenOnLoopback()
        let scrapes = ScrapeCounts()
        let endpoint = MetricsEndpoint(listeningOn: [descriptor], scrapes: scrapes) { format in
            var page = Exposition(format)
            scrapes.write(to: &page)
            return page.finished()
        }
        try endpoint.start()
        defer { endpoint.stop() }
        let client = try HTTPTestClient(port)
        for earlier in 0..<3 {
            let page = try client.get("/metrics").body
            #expect(page.contains("\npromhttp_metric_handler_requests_in_flight 1\n"))
            for (code, count) in [("200", earlier), ("500", 0), ("503", 0)] {
                let series = "\npromhttp_metric_handler_requests_total{code=\"\(code)\"} \(count)\n"
                #expect(page.contains(series))
            }
            _ = try client.get("/")  // not a scrape
        }
        #expect(eventually { scrapes.inFlight == 0 && scrapes.answered(.ok) == 3 })
    }

    @Test func unixSocketsServeAndStayInTheFileSystem() throws {
        let path = "/tmp/metrics-\(getpid())-\(UInt32.random(in: 0...UInt32.max)).sock"
        let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = unixAddress(path)
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0 && listen(descriptor, 16) == 0)
        defer { _ = unsafe unlink(path) }
        let (tcp, port) = try listenOnLoopback()
        let endpoint = MetricsEndpoint(listeningOn: [descriptor, tcp]) { _ in "up 1\n" }
        try endpoint.start()
        #expect(try HTTPTestClient(path: path).get("/metrics").body == "up 1\n")
        #expect(try HTTPTestClient(port).get("/metrics").body == "up 1\n")
        endpoint.stop()
        let stillThere = unsafe access(path, F_OK) == 0
        #expect(stillThere)
    }

    /// Sockets that systemd passed are also systemd's: they go on listening when we stop.
    @Test func stopEndsConnectionsAndLeavesTheSocketItself() throws {
        let (descriptor, port) = try listenOnLoopback()
        let held = dup(descriptor)
        let endpoint = MetricsEndpoint(listeningOn: [descriptor]) { _ in "up 1\n" }
        try endpoint.start()
        let client = try HTTPTestClient(port)
        #expect(try client.get("/metrics").status == 200)
        endpoint.stop()
        #expect(try client.rest() == "")
        #expect(throws: Never.self) { _ = try HTTPTestClient(port) }  // waits in the backlog
        Glibc.close(held)
        let refused = #expect(throws: HTTPTestClient.Failure.self) { try HTTPTestClient(port) }
        #expect(refused?.code == ECONNREFUSED)
        endpoint.stop()  // a second time: nothing happens
    }

    @Test func onlyListeningSocketsAreTaken() throws {
        let notListening = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        defer { Glibc.close(notListening) }
        for descriptor in [notListening, -1] {
            let endpoint = MetricsEndpoint(listeningOn: [descriptor]) { _ in "" }
            #expect(throws: MetricsEndpoint.Failure.notListening(descriptor)) {
                try endpoint.start()
            }
        }
    }
}
