import Testing

@testable import Proxy

@Suite struct RouteCheckTests {
    @Test(
        "Two values of ListenStream= overlap if only one of them can be listened on",
        arguments: [
            ("3000", "3000", true), ("3000", "127.0.0.1:3000", true), ("3000", "3001", false),
            ("3000", "[::1]:3000", true), ("127.0.0.1:3000", "127.0.0.2:3000", false),
            ("0.0.0.0:3000", "127.0.0.1:3000", true), ("0.0.0.0:3000", "[::1]:3000", false),
            ("[::]:3000", "127.0.0.1:3000", true), ("[::]:3000", "0.0.0.0:3000", true),
            ("/run/a", "/run/a", true), ("/run/a", "/run/b", false), ("@a", "/run/a", false),
            ("3000", "/run/a", false),
        ])
    func overlap(one: String, other: String, expected: Bool) {
        #expect(RouteCheck.overlap(one, other) == expected)
        #expect(RouteCheck.overlap(other, one) == expected)
    }
}
