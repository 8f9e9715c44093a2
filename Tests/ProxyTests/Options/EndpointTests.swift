import Testing

@testable import Proxy

@Suite struct EndpointTests {
    @Test(
        "An address is read, and written back",
        arguments: [
            ("127.0.0.1:3000", Endpoint.host("127.0.0.1", port: 3000), "127.0.0.1:3000"),
            ("localhost:1", .host("localhost", port: 1), "localhost:1"),
            ("db1.internal:65535", .host("db1.internal", port: 65535), "db1.internal:65535"),
            ("example.com.:80", .host("example.com.", port: 80), "example.com.:80"),
            ("_srv_host-1:80", .host("_srv_host-1", port: 80), "_srv_host-1:80"),
            ("1:80", .host("1", port: 80), "1:80"),
            ("3com.example:80", .host("3com.example", port: 80), "3com.example:80"),
            ("a:0080", .host("a", port: 80), "a:80"),
            (":3000", .host("", port: 3000), ":3000"),
            ("[::1]:80", .host("::1", port: 80), "[::1]:80"),
            ("[::]:80", .host("::", port: 80), "[::]:80"),
            ("[FE80::1%eth0]:80", .host("FE80::1%eth0", port: 80), "[FE80::1%eth0]:80"),
            ("[::ffff:10.0.0.1]:80", .host("::ffff:10.0.0.1", port: 80), "[::ffff:10.0.0.1]:80"),
            ("/run/app.sock", .path("/run/app.sock"), "/run/app.sock"),
            ("/run/a b:c", .path("/run/a b:c"), "/run/a b:c"),
            ("unix:/run/app.sock", .path("/run/app.sock"), "/run/app.sock"),
            ("@name", .abstract("name"), "@name"),
            ("@\u{0612}a", .abstract("\u{0612}a"), "@\u{0612}a"),  // a mark joins what is before it
            ("@/a:80", .abstract("/a:80"), "@/a:80"),
            ("unix:@name", .abstract("name"), "@name"),
        ])
    func reads(text: String, expected: Endpoint, written: String) throws {
        for role in [Endpoint.Role.listener, .target] {
            let endpoint = try Endpoint(parsing: text, as: role)
            #expect(endpoint == expected)
            #expect(endpoint.description == written)
            #expect(try Endpoint(parsing: written, as: role) == endpoint)
        }
    }

    @Test(
        "A wrong address is refused with its value and what was expected",
        arguments: [
            ("", "expected HOST:PORT"),
            ("localhost", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("3000", "a port alone is written :3000"),
            ("localhost:", "must be a number from 1 to 65535"),
            ("localhost:http", "must be a number from 1 to 65535"),
            ("localhost:+80", "must be a number from 1 to 65535"),
            ("localhost:-1", "must be a number from 1 to 65535"),
            ("localhost: 80", "must be a number from 1 to 65535"),
            ("localhost:65536", "must be a number from 1 to 65535"),
            ("localhost:99999999999999999999", "must be a number from 1 to 65535"),
            ("localhost:0", "must be a number from 1 to 65535"),
            ("localhost:٣", "must be a number from 1 to 65535"),
            ("::1:80", "in brackets"),
            ("[::1:80", "the ] after"),
            ("[::1]80", "expected :PORT after the ]"),
            ("[]:80", "expected an IPv6 address in the brackets"),
            ("[127.0.0.1]:80", "expected an IPv6 address in the brackets"),
            ("[:::1]:80", "expected an IPv6 address in the brackets"),
            ("[1:2:3:4:5:6:7:8:9]:80", "expected an IPv6 address in the brackets"),
            ("[1:2:3:4:5:6:7]:80", "expected an IPv6 address in the brackets"),
            ("[1::2::3]:80", "expected an IPv6 address in the brackets"),
            ("[1:2:3:4::5:6:7:8]:80", "expected an IPv6 address in the brackets"),
            ("[12345::]:80", "expected an IPv6 address in the brackets"),
            ("[10.0.0.1::]:80", "expected an IPv6 address in the brackets"),
            ("[fe80::1%]:80", "expected an IPv6 address in the brackets"),
            ("[fe80::1%\u{0612}t0]:80", "expected an IPv6 address in the brackets"),
            ("[::1]:\u{0612}80", "must be a number from 1 to 65535"),
            ("[fe80::1%sixteen-bytes-it]:80", "expected an IPv6 address in the brackets"),
            ("300.1.1.1:80", "four numbers from 0 to 255"),
            ("127.1:80", "four numbers from 0 to 255"),
            ("127.0.0.01:80", "without leading zeros"),
            ("a..b:80", "1 to 63 characters"),
            (".:80", "1 to 63 characters"),
            ("-a:80", "no '-' first"),
            ("bücher.example:80", "xn--"),
            ("a b:80", "without spaces"),
            ("a/b:80", "only letters"),
            ("http://host:80", "in brackets"),
            ("\"host\":80", "only letters"),
            ("run/app.sock", "only letters"),
            ("unix:run/app.sock", "an absolute path"),
            ("unix:", "an absolute path"),
            ("unix:80", "an absolute path"),
            ("/", "not of a directory"),
            ("/run/", "not of a directory"),
            ("@", "a name after @"),
            ("/a\0b", "no NUL"),
            ("/a\u{FFFD}b", "not valid UTF-8"),
        ])
    func refuses(text: String, expected: String) {
        let error = #expect(throws: OptionError.self) { try Endpoint(parsing: text, as: .target) }
        #expect(error?.value == text)
        #expect(error?.expected.contains(expected) == true, "\(error?.expected ?? "")")
    }

    @Test("A listener may leave the port to the kernel")
    func portZero() throws {
        #expect(try Endpoint(parsing: "a:0", as: .listener) == .host("a", port: 0))
    }

    @Test(
        "A default port stands in for a missing one only",
        arguments: [
            ("host", Endpoint.host("host", port: 80)), ("host:81", .host("host", port: 81)),
            ("[::1]", .host("::1", port: 80)), ("127.0.0.1", .host("127.0.0.1", port: 80)),
            ("host:", nil), ("/path", .path("/path")), ("unix", nil),
        ])
    func defaultPort(text: String, expected: Endpoint?) {
        let endpoint = try? Endpoint(parsing: text, as: .target, defaultPort: 80)
        #expect(endpoint == expected)
    }

    @Test(
        "Lengths are held to the byte",
        arguments: [
            ("/" + String(repeating: "a", count: 106), true),
            ("/" + String(repeating: "a", count: 107), false),
            ("/" + String(repeating: "ä", count: 54), false),  // 109 bytes, 55 characters
            ("@" + String(repeating: "a", count: 107), true),
            ("@" + String(repeating: "a", count: 108), false),
            (String(repeating: "a", count: 63) + ":1", true),
            (String(repeating: "a", count: 64) + ":1", false),
            (String(repeating: "a.", count: 126) + "a:1", true),  // 253 bytes
            (String(repeating: "a.", count: 126) + "aa:1", false),
        ])
    func lengths(text: String, isValid: Bool) {
        let endpoint = try? Endpoint(parsing: text, as: .target)
        #expect((endpoint != nil) == isValid)
    }

    @Test(
        "IPv6 is told from what only looks like it",
        arguments: [
            ("::", true), ("1::", true), ("::8", true), ("1:2:3:4:5:6:7:8", true),
            ("1:2:3:4:5:6:7::", true), ("::2:3:4:5:6:7:8", true), ("1:2:3:4:5:6:1.2.3.4", true),
            ("::1.2.3.4", true), ("fe80::1%2", true), ("fe80::1%a.b-c_d", true),
            ("", false), (":", false), ("1:", false), (":1", false), ("1:2", false),
            ("::1:", false), ("1:2:3:4:5:6:7:1.2.3.4", false), ("::1.2.3", false),
            ("1.2.3.4::", false), ("1.2.3.4", false), ("::g", false), ("::%", false),
            ("%eth0", false), ("::%a b", false), ("::%a/b", false), ("::1::", false),
            ("::%a:b", false), ("::%a%b", false), ("::%a\u{80}", false), ("::%\u{1B}", false),
        ])
    func ipv6(text: String, expected: Bool) {
        #expect(Endpoint.isIPv6(text[...]) == expected)
    }
}
