// Where a route leads.

/// One target of a route.
struct Target: Sendable {
    let endpoint: Endpoint
    /// The addresses, where no name has to be looked up for them.
    let fixed: [SocketAddress]?

    init(_ endpoint: Endpoint) {
        self.endpoint = endpoint
        fixed = endpoint.fixedAddresses
    }
}

extension Endpoint {
    /// The addresses that need no look-up: numbers, unix sockets, and this host for `:PORT`.
    var fixedAddresses: [SocketAddress]? {
        switch self {
        case .path(let path): return [.path(path)]
        case .abstract(let name): return [.abstract(name)]
        case .host("", let port):
            return [
                .ipv4(0x7f00_0001, port: port), .ipv6(high: 0, low: 1, port: port, scope: 0),
            ]
        case .host(let host, let port):
            let addresses = (try? Resolver.addresses(host: host, port: port, numeric: true)) ?? []
            return addresses.isEmpty ? nil : addresses
        }
    }

    /// The addresses to listen on: like `fixedAddresses`, but `:PORT` is every address.
    var fixedListenAddresses: [SocketAddress]? {
        if case .host("", let port) = self { return [.ipv6(high: 0, low: 0, port: port, scope: 0)] }
        return fixedAddresses
    }
}
