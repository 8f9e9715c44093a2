// An address as a person writes it, before any resolving: where to listen, or what to connect to.

/// An address of a stream socket.
public enum Endpoint: Sendable, Hashable, CustomStringConvertible {
    /// A host name or a literal address (IPv6 without brackets, possibly with `%scope`).
    ///
    /// The empty name is getaddrinfo(3)'s null node: every interface for a listener, the loopback
    /// addresses for a target.
    case host(String, port: UInt16)
    /// An absolute path of a unix socket, 1 to ``longestPath`` bytes.
    case path(String)
    /// A name in Linux's abstract namespace, without the `@`; 1 to ``longestPath`` bytes.
    case abstract(String)

    /// What the address is for.
    public enum Role: Sendable {
        /// Port 0 lets the kernel choose.
        case listener
        /// Port 0 is an error: nothing listens there.
        case target
    }

    /// Bytes: sun_path of unix(7) has 108, of which a path leaves one to the final NUL and an
    /// abstract name one to the leading NUL.
    public static let longestPath = 107

    /// Bytes: RFC 1035, section 2.3.4, without the root label.
    static let longestHostName = 253

    /// Reads `HOST:PORT`, `[V6]:PORT`, `:PORT`, `/path`, `unix:/path`, `@abstract` or
    /// `unix:@abstract`.
    ///
    /// - Parameter defaultPort: the port of a host without one; nil where a port must be written.
    public init(
        parsing text: String, as role: Role, defaultPort: UInt16? = nil
    ) throws(OptionError) {
        func failure(_ expected: String) -> OptionError {
            OptionError(value: text, expected: expected)
        }
        if text.isEmpty { throw failure("expected \(Endpoint.forms)") }
        if text.utf8.contains(0) { throw failure("an address has no NUL byte") }
        // Swift's arguments are repaired UTF-8: this would name another file than the user's.
        if text.unicodeScalars.contains("\u{FFFD}") { throw failure("not valid UTF-8") }

        let unprefixed = text.utf8.starts(with: "unix:".utf8) ? text.utf8.dropFirst(5) : nil
        let unixAddress = unprefixed.map(Substring.init) ?? text[...]
        switch unixAddress.utf8.first {
        case UInt8(ascii: "/"):
            self = .path(try Endpoint.path(unixAddress, failure))
            return
        case UInt8(ascii: "@"):
            self = .abstract(try Endpoint.abstractName(unixAddress, failure))
            return
        default:
            // Nor is a host of that name to be had: with its port it would be this.
            if unprefixed != nil || text == "unix" {
                throw failure("expected an absolute path or @name after unix:")
            }
        }

        let (host, portText) = try Endpoint.split(text, hasDefaultPort: defaultPort != nil, failure)
        let port: UInt16
        if let portText {
            port = try Endpoint.port(portText, role, failure)
        } else if let defaultPort {
            port = defaultPort
        } else {
            throw failure("the port is missing: expected \(Endpoint.forms)")
        }
        self = .host(host, port: port)
    }

    /// The address as it would be written for ``init(parsing:as:defaultPort:)``.
    public var description: String {
        switch self {
        case .host(let host, let port):
            host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .path(let path): path
        case .abstract(let name): "@\(name)"
        }
    }

    /// Named in errors and in help, so that both say the same.
    static let forms = "HOST:PORT, [IPV6]:PORT, :PORT, /PATH or @NAME"
}

// MARK: - Parts of an address

extension Endpoint {
    private typealias Failure = (String) -> OptionError

    private static let oneOnly = "expected one address without spaces: \(forms)"

    private static func path(_ text: Substring, _ failure: Failure) throws(OptionError) -> String {
        if text.utf8.count > longestPath {
            throw failure(
                "a unix path has at most \(longestPath) bytes, this one \(text.utf8.count)")
        }
        if text.utf8.last == UInt8(ascii: "/") {
            throw failure("expected the path of a socket, not of a directory")
        }
        return String(text)
    }

    private static func abstractName(
        _ text: Substring, _ failure: Failure
    ) throws(OptionError) -> String {
        let name = text.withoutFirstByte
        if name.isEmpty { throw failure("expected a name after @") }
        if name.utf8.count > longestPath {
            throw failure(
                "an abstract name has at most \(longestPath) bytes, this one \(name.utf8.count)")
        }
        return String(name)
    }

    private static func port(
        _ text: Substring, _ role: Role, _ failure: Failure
    ) throws(OptionError) -> UInt16 {
        let lowest: UInt16 = role == .target ? 1 : 0
        // Only digits: UInt16.init also takes a sign.
        guard text.utf8.allSatisfy(isDigit), let port = UInt16(text), port >= lowest else {
            throw failure("the port must be a number from \(lowest) to 65535")
        }
        return port
    }

    /// Takes host and port apart and checks the host. A nil port was not written.
    private static func split(
        _ text: String, hasDefaultPort: Bool, _ failure: Failure
    ) throws(OptionError) -> (host: String, port: Substring?) {
        let bytes = text.utf8
        if bytes.first == UInt8(ascii: "[") {
            guard let end = bytes.firstIndex(of: UInt8(ascii: "]")) else {
                throw failure("the ] after the IPv6 address is missing")
            }
            let address = text[bytes.index(after: bytes.startIndex)..<end]
            guard isIPv6(address) else {
                throw failure("expected an IPv6 address in the brackets, as in [::1]:80")
            }
            let rest = text[bytes.index(after: end)...]
            if rest.isEmpty { return (String(address), nil) }
            guard rest.utf8.first == UInt8(ascii: ":") else {
                throw failure("expected :PORT after the ]")
            }
            return (String(address), rest.withoutFirstByte)
        }
        guard let colon = bytes.lastIndex(of: UInt8(ascii: ":")) else {
            try checkHost(text[...], failure)
            // A lone number is a port far more often than a host.
            if !hasDefaultPort, bytes.allSatisfy(isDigit) {
                throw failure("expected \(forms); a port alone is written :\(text)")
            }
            return (text, nil)
        }
        let host = text[..<colon]
        if host.utf8.contains(where: isSpace) { throw failure(oneOnly) }
        if host.utf8.contains(UInt8(ascii: ":")) {
            throw failure("an IPv6 address is written in brackets, as in [::1]:80")
        }
        if !host.isEmpty { try checkHost(host, failure) }
        return (String(host), text[bytes.index(after: colon)...])
    }

    private static func checkHost(_ host: Substring, _ failure: Failure) throws(OptionError) {
        guard host.utf8.count <= longestHostName else {
            throw failure("a host name has at most \(longestHostName) bytes")
        }
        if host.utf8.contains(where: { $0 >= 0x80 }) {
            throw failure("a host name is ASCII; international names are written as xn--…")
        }
        if host.utf8.contains(where: isSpace) { throw failure(oneOnly) }
        guard host.utf8.allSatisfy({ isLetterOrDigit($0) || "-_.".utf8.contains($0) }) else {
            throw failure("a host name has only letters, digits, '-', '_' and '.'")
        }
        var labels = host.split(separator: ".", omittingEmptySubsequences: false)
        if labels.count > 1, labels.last?.isEmpty == true { labels.removeLast() }  // the root
        guard labels.allSatisfy({ (1...63).contains($0.utf8.count) && $0.utf8.first != 0x2D })
        else { throw failure("each part of a host name has 1 to 63 characters, no '-' first") }
        // Name services read such "names" as addresses, each in its own way (inet_aton(3)).
        let looksNumeric = labels.allSatisfy { $0.utf8.allSatisfy(isDigit) }
        if looksNumeric, host.utf8.contains(UInt8(ascii: ".")), !isIPv4(host) {
            throw failure("an IPv4 address has four numbers from 0 to 255, without leading zeros")
        }
    }

    static func isIPv4(_ text: Substring) -> Bool {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4
            && parts.allSatisfy {
                $0.utf8.count <= 3 && $0.utf8.allSatisfy(isDigit) && UInt8($0) != nil
                    && ($0 == "0" || $0.utf8.first != UInt8(ascii: "0"))
            }
    }

    /// RFC 4291, section 2.2, with an optional `%scope` (RFC 4007, section 11).
    static func isIPv6(_ text: Substring) -> Bool {
        var address = text
        if let percent = text.utf8.firstIndex(of: UInt8(ascii: "%")) {
            let scope = text[percent...].withoutFirstByte
            // An interface's name or number. The kernel's dev_valid_name() also lets bytes through
            // that would garble a log; IFNAMSIZ is 16.
            guard (1...15).contains(scope.utf8.count),
                scope.utf8.allSatisfy({ (0x21..<0x7F).contains($0) && !"/:%".utf8.contains($0) })
            else { return false }
            address = text[..<percent]
        }
        let bytes = Array(address.utf8)
        let colon = UInt8(ascii: ":")
        let gap = bytes.indices.dropLast().first { bytes[$0] == colon && bytes[$0 + 1] == colon }
        guard let gap else { return groups(bytes[...], mayEndInIPv4: true) == 8 }
        guard let before = groups(bytes[..<gap], mayEndInIPv4: false),
            let after = groups(bytes[(gap + 2)...], mayEndInIPv4: true)
        else { return false }
        return before + after <= 7
    }

    /// How many 16-bit groups the text holds, nil if it holds anything else.
    private static func groups(_ bytes: ArraySlice<UInt8>, mayEndInIPv4: Bool) -> Int? {
        if bytes.isEmpty { return 0 }
        let parts = bytes.split(separator: UInt8(ascii: ":"), omittingEmptySubsequences: false)
        guard parts.count <= 8 else { return nil }
        var count = 0
        for (index, part) in parts.enumerated() {
            if (1...4).contains(part.count), part.allSatisfy(isHexDigit) {
                count += 1
            } else if mayEndInIPv4, index == parts.count - 1,
                isIPv4(Substring(String(decoding: part, as: UTF8.self)))
            {
                count += 2
            } else {
                return nil
            }
        }
        return count
    }
}

extension Substring {
    /// What follows an ASCII character that was found by its byte. As characters the two may be
    /// one: a combining mark joins whatever stands before it.
    fileprivate var withoutFirstByte: Substring { self[utf8.index(after: startIndex)...] }
}

// MARK: - ASCII

func isDigit(_ byte: UInt8) -> Bool { (0x30...0x39).contains(byte) }

func isHexDigit(_ byte: UInt8) -> Bool { isDigit(byte) || (0x61...0x66).contains(byte | 0x20) }

func isLetterOrDigit(_ byte: UInt8) -> Bool { isDigit(byte) || (0x61...0x7A).contains(byte | 0x20) }

/// As C's isspace(3) in the C locale.
func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0D).contains(byte) }
