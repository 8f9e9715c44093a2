import Glibc
import Testing

@testable import Proxy

@Suite("Socket addresses")
struct SocketAddressTests {
    private static let all: [(SocketAddress, String)] = [
        (.ipv4(0x7f00_0001, port: 80), "127.0.0.1:80"),
        (.ipv6(high: 0x2001_0db8_0000_0000, low: 1, port: 443, scope: 0), "[2001:db8::1]:443"),
        (.ipv6(high: 0xfe80_0000_0000_0000, low: 1, port: 1, scope: 1), "[fe80::1%1]:1"),
        (.ipv6(high: 0, low: 0xffff_7f00_0001, port: 80, scope: 0), "127.0.0.1:80"),
        (.ipv6(high: 0, low: 1, port: 80, scope: 0), "[::1]:80"),
        (.path("/run/x.sock"), "/run/x.sock"),
        (.abstract("name"), "@name"),
    ]

    @Test(
        "go to the kernel's form and back unchanged, and print as they are written", arguments: all)
    func roundTrip(address: SocketAddress, text: String) {
        #expect(address.description == text)
        let back = unsafe address.withSockaddr { pointer, length in
            var storage = sockaddr_storage()
            unsafe withUnsafeMutableBytes(of: &storage) { bytes in
                unsafe bytes.copyMemory(
                    from: UnsafeRawBufferPointer(start: pointer, count: Int(length)))
            }
            return SocketAddress(&storage, length: length)
        }
        #expect(back == address)
    }

    @Test("a too short or unknown kernel address is unnamed, not a trap", arguments: 0...16)
    func short(length: socklen_t) {
        var storage = sockaddr_storage()
        storage.ss_family = sa_family_t(AF_INET6)
        #expect(SocketAddress(&storage, length: length) == .unnamed)
    }
}
