import Glibc
import Testing

@testable import Proxy

/// A folder of unit files that is removed with the test.
final class UnitFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/units.XXXXXX".utf8CString)
        let made = unsafe mkdtemp(&template)
        try #require(unsafe made != nil)
        path = String(decoding: template.dropLast().map(UInt8.init), as: UTF8.self)
    }

    func write(_ name: String, _ text: String) {
        if let slash = name.lastIndex(of: "/") {
            _ = unsafe mkdir("\(path)/\(name[..<slash])", 0o755)
        }
        let file = unsafe open("\(path)/\(name)", O_WRONLY | O_CREAT | O_TRUNC, 0o644)
        _ = unsafe Glibc.write(file, text, text.utf8.count)
        close(file)
    }

    func mask(_ name: String) { _ = unsafe symlink("/dev/null", "\(path)/\(name)") }

    deinit {
        for name in Folder.names(path) {
            for inner in Folder.names("\(path)/\(name)") { unlinkFile("\(path)/\(name)/\(inner)") }
            unlinkFile("\(path)/\(name)")
            _ = unsafe rmdir("\(path)/\(name)")
        }
        _ = unsafe rmdir(path)
    }
}

@Suite("Listeners are paired with the units that pass them")
struct RouteTableTests {
    private let folder: UnitFolder
    private static let service = "tcp-metrics-proxy.service"

    init() throws { folder = try UnitFolder() }

    private func routes(
        _ names: [String], addresses: [SocketAddress] = [], options: Options = Options()
    ) -> ([RouteDefinition], [RouteProblem]) {
        let table = RouteTable(
            search: UnitSearch(folders: [folder.path]), ownUnit: Self.service, options: options)
        let listeners = names.enumerated().map { index, name in
            (name: name, address: index < addresses.count ? addresses[index] : .unnamed)
        }
        return table.routes(for: listeners)
    }

    private func unit(_ target: String, socket: String = "") -> String {
        "[Socket]\nListenStream=1\nService=\(Self.service)\n\(socket)\n[X-Proxy]\n\(target)\n"
    }

    private let a = Endpoint.host("127.0.0.1", port: 1)
    private let b = Endpoint.host("127.0.0.1", port: 2)

    @Test("a descriptor is passed under its unit's name; the route is called after the unit")
    func byUnitName() {
        folder.write("db.socket", unit("Target=127.0.0.1:1\nTarget=127.0.0.1:2"))
        let (found, problems) = routes(["db.socket"])
        #expect(found.map(\.name) == ["db"])
        #expect(found.first?.settings?.targets == [a, b])
        #expect(problems.isEmpty)
    }

    @Test("FileDescriptorName= is found, and of two units of one name the one that listens there")
    func byDescriptorName() {
        folder.write(
            "one.socket",
            "[Socket]\nListenStream=127.0.0.1:81\nService=\(Self.service)\n"
                + "FileDescriptorName=web\n[X-Proxy]\nTarget=127.0.0.1:1\n")
        folder.write(
            "two.socket",
            "[Socket]\nListenStream=127.0.0.1:82\nService=\(Self.service)\n"
                + "FileDescriptorName=web\n[X-Proxy]\nTarget=127.0.0.1:2\n")
        let (found, _) = routes(
            ["web", "web"],
            addresses: [.ipv4(0x7f00_0001, port: 82), .ipv4(0x7f00_0001, port: 81)])
        #expect(found.map(\.name) == ["two", "one"])
        #expect(found.map(\.settings?.targets) == [[b], [a]])
    }

    @Test("a drop-in overrides, an empty value resets, and a masked drop-in is none")
    func dropIns() {
        folder.write("db.socket", unit("Target=127.0.0.1:1"))
        folder.write("db.socket.d/20-b.conf", "[X-Proxy]\nTarget=\nTarget=127.0.0.1:2\n")
        folder.write("socket.d/10-a.conf", "[X-Proxy]\nIdleTimeoutSec=5\n")
        folder.mask("db.socket.d/30-c.conf")
        let (found, _) = routes(["db.socket"])
        #expect(found.first?.settings?.targets == [b])
        #expect(found.first?.settings?.idleTimeout == .seconds(5))
    }

    @Test("a bad route is refused alone, with file and line")
    func refused() {
        folder.write("bad.socket", unit("Target=nonsense:port"))
        folder.write("good.socket", unit("Target=127.0.0.1:1"))
        let (found, problems) = routes(["bad.socket", "good.socket"])
        #expect(found.map { $0.settings == nil } == [true, false])
        #expect(problems.map(\.isError) == [true])
        #expect(problems.first?.text.contains("\(folder.path)/bad.socket:6: ") == true)
    }

    @Test("where no unit describes a descriptor, the command line does, by name first")
    func commandLine() {
        var options = Options()
        options.target = a
        options.isTargetExplicit = true
        options.routes = [Options.Route(name: "web", target: b)]
        let (found, _) = routes(["web", "unknown"], options: options)
        #expect(found.map(\.settings?.targets) == [[b], [a]])
    }

    @Test("without any target the route is refused, and the message says what to write")
    func noTarget() {
        let (found, problems) = routes(["x"])
        #expect(found.first?.settings == nil)
        #expect(problems.first?.text.contains("Target=") == true)
    }

    @Test(
        "a descriptor of a unit's name is that unit's, be it that the unit starts another service")
    func otherService() {
        folder.write(
            "web.socket", "[Socket]\nListenStream=1\nService=other.service\n[X-Proxy]\nTarget=:1\n")
        let (found, _) = routes(["web.socket", "web"])
        #expect(found.map { $0.settings == nil } == [false, true])
    }

    @Test("an instance of a template has the template's settings")
    func template() {
        folder.write("db@.socket", unit("Target=127.0.0.1:1"))
        let (found, _) = routes(["db@one.socket"])
        #expect(found.map(\.name) == ["db@one"])
        #expect(found.first?.settings?.targets == [a])
    }

    @Test(
        "drop-in folders, the most specific first",
        arguments: [
            ("a.socket", ["a.socket.d", "socket.d"]),
            ("a-b.socket", ["a-b.socket.d", "a-.socket.d", "socket.d"]),
            ("a-b@c.socket", ["a-b@c.socket.d", "a-b@.socket.d", "a-.socket.d", "socket.d"]),
        ])
    func folders(name: String, expected: [String]) {
        #expect(UnitSearch.dropInFolders(of: name) == expected)
    }

    @Test("an earlier folder hides a later one, and a mask hides the unit")
    func precedence() throws {
        let later = try UnitFolder()
        folder.write("a.socket", "[Socket]\nListenStream=1\n")
        later.write("a.socket", "[Socket]\nListenStream=2\n")
        later.write("b.socket", "[Socket]\nListenStream=3\n")
        folder.mask("b.socket")
        let search = UnitSearch(folders: [folder.path, later.path])
        #expect(search.socketNames() == ["a.socket"])
        #expect(search.fragment(of: "a.socket") == "\(folder.path)/a.socket")
        #expect(search.fragment(of: "b.socket") == nil)
    }
}
