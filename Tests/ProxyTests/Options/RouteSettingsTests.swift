import Testing

@testable import Proxy

@Suite struct RouteSettingsTests {
    private func read(_ texts: String..., defaults: Options = Options()) -> (
        settings: RouteSettings, diagnostics: [Diagnostic]
    ) {
        let files = texts.enumerated().map {
            (path: "/\($0.offset)", contents: Array($0.element.utf8))
        }
        return RouteSettings.read(MergedUnit(files), defaults: defaults)
    }

    @Test("Every key reaches its setting")
    func everyKey() {
        let (settings, diagnostics) = read(
            """
            [X-Proxy]
            Target=db1.internal:5432
            Target=[::1]:5432
            Target=/run/db.sock
            Target=@db
            ConnectTimeoutSec=3
            IdleTimeoutSec=1h 30min
            ConnectionsMax=100
            Preserve=Off
            PreserveAfterSec=500ms
            LogConnections=failures
            """)
        #expect(diagnostics.isEmpty)
        #expect(
            settings.targets == [
                .host("db1.internal", port: 5432), .host("::1", port: 5432), .path("/run/db.sock"),
                .abstract("db"),
            ])
        #expect(settings.connectTimeout == .seconds(3))
        #expect(settings.idleTimeout == .seconds(5400))
        #expect(settings.connectionsMax == 100)
        #expect(!settings.preserve && settings.preserveAfter == .milliseconds(500))
        #expect(settings.logConnections == .failures)
    }

    @Test("What a unit does not set, or resets, is as on the command line")
    func inherits() {
        var defaults = Options()
        defaults.connectTimeout = .seconds(1)
        defaults.idleTimeout = .seconds(2)
        defaults.connectionsMax = 3
        defaults.preserve = false
        defaults.preserveAfter = .seconds(4)
        defaults.logConnections = .none
        let reset = "IdleTimeoutSec=9\nIdleTimeoutSec=\nPreserveAfterSec=9\nPreserveAfterSec="
        for text in ["", "[X-Proxy]", "[X-Proxy]\n\(reset)"] {
            let (settings, diagnostics) = read(text, defaults: defaults)
            #expect(diagnostics.isEmpty && settings.targets.isEmpty)
            #expect(settings.connectTimeout == .seconds(1) && settings.idleTimeout == .seconds(2))
            #expect(!settings.preserve && settings.preserveAfter == .seconds(4))
            #expect(settings.logConnections == .none)
            #expect(settings.connectionsMax == nil, "the process's limit is not the route's")
        }
    }

    @Test("A unit may lift the command line's limits")
    func infinity() {
        var defaults = Options()
        defaults.idleTimeout = .seconds(2)
        let keys = ["ConnectTimeoutSec", "IdleTimeoutSec", "PreserveAfterSec"]
        let text = "[X-Proxy]\n" + keys.map { "\($0)=infinity\n" }.joined()
        let (settings, diagnostics) = read(text, defaults: defaults)
        #expect(diagnostics.isEmpty)
        #expect(settings.connectTimeout == nil && settings.idleTimeout == nil)
        #expect(settings.preserveAfter == nil)
    }

    @Test("The zero age preserves a connection from its start")
    func preserveAtOnce() {
        let (settings, diagnostics) = read("[X-Proxy]\nPreserveAfterSec=0")
        #expect(diagnostics.isEmpty && settings.preserveAfter == .zero)
    }

    @Test(
        "A route is preserved if both it and the process are to be",
        arguments: [
            (process: true, key: "", expected: true), (true, "Preserve=yes", true),
            (true, "Preserve=no", false), (true, "Preserve=no\nPreserve=", true),
            (false, "", false), (false, "Preserve=no", false), (false, "Preserve=yes", false),
        ])
    func preserve(process: Bool, key: String, expected: Bool) {
        var defaults = Options()
        defaults.preserve = process
        let (settings, diagnostics) = read("[X-Proxy]\n\(key)", defaults: defaults)
        #expect(diagnostics.isEmpty && settings.preserve == expected)
    }

    @Test("A drop-in replaces targets by resetting the list first")
    func dropIn() {
        let main = "[X-Proxy]\nTarget=a:1\nIdleTimeoutSec=x"
        let (settings, diagnostics) = read(main, "[X-Proxy]\nTarget=\nTarget=b:1\nIdleTimeoutSec=5")
        #expect(settings.targets == [.host("b", port: 1)])
        #expect(diagnostics.isEmpty, "what is overridden cannot be wrong")
    }

    @Test(
        "A wrong value is an error with file and line",
        arguments: [
            ("Target=a", "/0:2: error: Target= 'a': the port is missing: expected HOST:PORT"),
            ("Target=a:1 b:1", "/0:2: error: Target= 'a:1 b:1': expected one address"),
            ("Target=a:1 # first", "a comment has a line of its own"),
            ("Target=\"a:1\"", "/0:2: error: Target= '\"a:1\"': a host name has only letters"),
            ("Target=a:0", "the port must be a number from 1 to 65535"),
            ("ConnectTimeoutSec=x", "/0:2: error: ConnectTimeoutSec= 'x': expected a time span"),
            ("ConnectTimeoutSec=0", "ConnectTimeoutSec= '0': expected more than no time"),
            ("IdleTimeoutSec=-1", "IdleTimeoutSec= '-1': a time span is not negative"),
            ("ConnectionsMax=0", "ConnectionsMax= '0': expected a number from 1 to"),
            ("Preserve=always", "/0:2: error: Preserve= 'always': expected yes or no"),
            ("PreserveAfterSec=1 x", "PreserveAfterSec= '1 x': expected a time span"),
            ("PreserveAfterSec=-1", "PreserveAfterSec= '-1': a time span is not negative"),
            ("LogConnections=yes", "LogConnections= 'yes': expected all, failures or none"),
        ])
    func wrongValue(line: String, expected: String) {
        let diagnostics = read("[X-Proxy]\n\(line)").diagnostics
        #expect(diagnostics.count == 1 && diagnostics.first?.severity == .error)
        let text = diagnostics.first?.description ?? ""
        #expect(text.contains(expected), "\(text)")
    }

    @Test(
        "What will have no effect is a warning with a suggestion",
        arguments: [
            ("[X-Proxy]\nTraget=a:1", "/0:2: warning: unknown key 'Traget' in [X-Proxy], ignored"),
            ("[X-Proxy]\nTraget=a:1", "did you mean Target=?"),
            ("[X-Proxy]\ntarget=a:1", "did you mean Target=?"),
            ("[X-Proxy]\nIdleTimeout=1", "did you mean IdleTimeoutSec=?"),
            ("[X-Proxy]\npreserve=no", "did you mean Preserve=?"),
            ("[X-Proxy]\nPreserveAfter=1", "did you mean PreserveAfterSec=?"),
            ("[X-Proxy]\nMaxConnections=1", "did you mean ConnectionsMax=?"),
            ("[X-Proxy]\nFrob=1", "expected Target=, ConnectTimeoutSec=, IdleTimeoutSec=,"),
            ("[X-Proxy]\nFrob=", "unknown key 'Frob'"),
            ("[X-proxy]\nTarget=a:1", "/0:1: warning: section [X-proxy] is ignored"),
            ("[XProxy]", "did you mean [X-Proxy]?"),
            ("[Socket]\nTarget=a:1", "/0:2: warning: Target= in [Socket] is ignored"),
            ("[X-Proxy]\nTarget=a:1\nTarget=a:1", "/0:3: warning: Target= 'a:1': is listed"),
        ])
    func warns(text: String, expected: String) {
        let diagnostics = read(text).diagnostics
        #expect(diagnostics.first?.severity == .warning)
        #expect(diagnostics.contains { $0.description.contains(expected) }, "\(diagnostics)")
        #expect(!diagnostics.contains { $0.severity == .error })
    }

    @Test("Other sections are systemd's own business", arguments: ["X-Other", "Unit", "Install"])
    func otherSections(section: String) {
        #expect(read("[\(section)]\nFrob=1\nWantedBy=x").diagnostics.isEmpty)
    }

    @Test("Targets are limited, the limit itself being allowed", arguments: [64, 65, 20_000])
    func manyTargets(count: Int) {
        let text = "[X-Proxy]\n" + (1...count).map { "Target=h\($0):1\n" }.joined()
        let (settings, diagnostics) = read(text)
        #expect(settings.targets.count == 64)
        #expect(diagnostics.map(\.line) == (count > 64 ? [66] : []))
    }

    @Test("A file of unknown keys does not flood the log")
    func flood() {
        let text = "[X-Proxy]\n" + String(repeating: "frob=1\n", count: 10_000)
        #expect(read(text).diagnostics.count == UnitFile.mostDiagnostics)
    }
}

@Suite struct SocketSettingsTests {
    private func read(_ text: String) -> SocketSettings {
        SocketSettings(MergedUnit([(path: "/a", contents: Array(text.utf8))]))
    }

    @Test("What a route depends on is found, with its line")
    func finds() {
        let socket = read(
            """
            [Socket]
            ListenStream=5432
            ListenStream=%t/db.sock
            ListenDatagram=53
            ListenSequentialPacket=/s
            ListenFIFO=/f
            Service=tcp-metrics-proxy.service
            FileDescriptorName=db
            Accept=no
            TriggerLimitIntervalSec=0
            [Install]
            ListenStream=1
            """)
        #expect(socket.listenStream.map(\.value) == ["5432", "%t/db.sock"])
        #expect(socket.listenStream.map(\.line) == [2, 3])
        #expect(socket.listenDatagram.map(\.value) == ["53"])
        #expect(socket.listenSequentialPacket.map(\.value) == ["/s"])
        #expect(socket.listeners.count == 5)
        #expect(socket.service?.value == "tcp-metrics-proxy.service" && socket.service?.line == 7)
        #expect(socket.fileDescriptorName?.value == "db")
        #expect(socket.accept?.value == "no")
        #expect(socket.triggerLimitInterval?.value == "0")
    }

    @Test("An empty Listen key takes back the listeners of every kind")
    func resets() {
        let socket = read("[Socket]\nListenStream=1\nListenDatagram=2\nListenFIFO=\nListenStream=3")
        #expect(socket.listeners.map(\.value) == ["3"])
    }

    @Test("An empty unit has nothing")
    func empty() {
        let socket = read("")
        #expect(socket.listeners.isEmpty && socket.service == nil && socket.accept == nil)
    }
}
