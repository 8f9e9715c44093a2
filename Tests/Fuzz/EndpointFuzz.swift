// fuzz-sources: Sources/Proxy/Options
// An address from a command line or a unit file.

func fuzz(_ bytes: [UInt8]) {
    let text = String(decoding: bytes, as: UTF8.self)
    for role in [Endpoint.Role.listener, .target] {
        for port in [nil, 80] as [UInt16?] {
            do throws(OptionError) {
                check(try Endpoint(parsing: text, as: role, defaultPort: port), role)
            } catch {
                require(error.value == text, "the error names another value")
                requireOneLine(error.description)
            }
        }
    }
}

private func check(_ endpoint: Endpoint, _ role: Endpoint.Role) {
    switch endpoint {
    case .host(let host, let port):
        require(host.utf8.allSatisfy { (0x21..<0x7F).contains($0) }, "host \(host)")
        require(role == .listener || port != 0, "a target on port 0")
    case .path(let path):
        require((2...107).contains(path.utf8.count) && path.utf8.first == 0x2F, "path \(path)")
    case .abstract(let name):
        require((1...107).contains(name.utf8.count), "abstract \(name)")
    }
    let again = try? Endpoint(parsing: endpoint.description, as: role)
    require(again == endpoint, "\(endpoint) is read as \(String(describing: again))")
}
