import Testing

@testable import Proxy

@Suite struct OptionsTests {
    private func words(_ change: (inout Options.Words) -> Void) -> Options.Words {
        var words = Options.Words()
        change(&words)
        return words
    }

    @Test("Without words there are the seed's addresses and no limits")
    func defaults() throws {
        let options = try Options(Options.Words())
        #expect(options == Options())
        #expect(options.listen.description == "127.0.0.1:3000")
        #expect(options.target.description == "127.0.0.1:3001")
        #expect(options.metrics?.description == "127.0.0.1:3002")
        #expect(options.connectTimeout == .seconds(10))
        #expect(options.idleTimeout == nil && options.drainTimeout == nil)
        #expect(options.exitIdleTime == nil && options.connectionsMax == nil)
        #expect(options.preserve && options.preserveAfter == .seconds(1))
        #expect(options.logConnections == .all)
        #expect(!options.isListenExplicit && !options.isTargetExplicit)
        #expect(!options.isMetricsExplicit)
    }

    @Test("Every word reaches its option")
    func everyWord() throws {
        let options = try Options(
            words {
                $0.listen = ":0"
                $0.target = "@a"
                $0.metrics = "[::1]:9"
                $0.routes = ["web=a:1", "web=b:2"]
                $0.connectionsMax = "7"
                $0.workers = "2"
                $0.connectTimeout = "1s"
                $0.idleTimeout = "2s"
                $0.drainTimeout = "3s"
                $0.exitIdleTime = "4s"
                $0.noPreserve = true
                $0.preserveAfter = "5s"
                $0.logConnections = "failures"
            })
        #expect(options.listen == .host("", port: 0) && options.isListenExplicit)
        #expect(options.target == .abstract("a") && options.isTargetExplicit)
        #expect(options.metrics == .host("::1", port: 9) && options.isMetricsExplicit)
        #expect(
            options.routes == [
                Options.Route(name: "web", target: .host("a", port: 1)),
                Options.Route(name: "web", target: .host("b", port: 2)),
            ])
        #expect(options.connectionsMax == 7 && options.workers == 2)
        #expect(options.connectTimeout == .seconds(1) && options.idleTimeout == .seconds(2))
        #expect(options.drainTimeout == .seconds(3) && options.exitIdleTime == .seconds(4))
        #expect(!options.preserve && options.preserveAfter == .seconds(5))
        #expect(options.logConnections == .failures)
    }

    @Test("Words for \"no limit\" are understood, and zero where it has a meaning")
    func noLimit() throws {
        let options = try Options(
            words {
                $0.metrics = "none"
                $0.connectionsMax = "infinity"
                $0.workers = "auto"
                $0.connectTimeout = "infinity"
                $0.preserveAfter = "infinity"
                $0.drainTimeout = "0"
                $0.exitIdleTime = "0"
            })
        #expect(options.metrics == nil && options.isMetricsExplicit)
        #expect(options.connectionsMax == nil && options.workers == nil)
        #expect(options.connectTimeout == nil && options.preserveAfter == nil)
        #expect(options.drainTimeout == .zero && options.exitIdleTime == .zero)
        #expect(try Options(words { $0.preserveAfter = "0" }).preserveAfter == .zero)
    }

    @Test(
        "A boolean is what systemd takes for one",
        arguments: [
            ("1", true), ("yes", true), ("y", true), ("true", true), ("t", true), ("on", true),
            ("YES", true), ("On", true), ("0", false), ("no", false), ("n", false),
            ("false", false), ("f", false), ("off", false), ("No", false), ("FALSE", false),
            ("", nil), ("2", nil), ("01", nil), ("ye", nil), ("yes ", nil), ("none", nil),
            ("auto", nil), ("yes\u{301}", nil),
        ])
    func boolean(text: String, expected: Bool?) {
        let value: Bool?
        do throws(OptionError) {
            value = try Options.parseBoolean(text)
        } catch {
            value = nil
            #expect(error.description == "\(quoted(text)): expected yes or no")
        }
        #expect(value == expected)
    }

    @Test(
        "A lone argument is the target, as in systemd-socket-proxyd",
        arguments: [
            ("127.0.0.1:8080", Endpoint.host("127.0.0.1", port: 8080)),
            ("/run/nginx/socket", .path("/run/nginx/socket")),
            ("localhost", .host("localhost", port: 80)),
        ])
    func positional(text: String, expected: Endpoint) throws {
        let options = try Options(words { $0.positional = text })
        #expect(options.target == expected && options.isTargetExplicit)
    }

    @Test(
        "A wrong word is named, with its option, its value and what was expected",
        arguments: [
            (\Options.Words.listen, "x", "--listen 'x': the port is missing"),
            (\.target, ":0", "--target ':0': the port must be a number from 1 to 65535"),
            (\.metrics, "x", "--metrics 'x': the port is missing"),
            (\.metrics, "off", "or none"),
            (\.positional, "a b:80", "target 'a b:80': expected one address without spaces"),
            (\.positional, "chekc", "did you mean 'check'?"),
            (\.connectionsMax, "0", "--connections-max '0': expected a number from 1 to"),
            (\.connectionsMax, "-1", "--connections-max '-1': expected a number from 1 to"),
            (\.connectionsMax, "+1", "--connections-max '+1': expected a number from 1 to"),
            (\.connectionsMax, "", "--connections-max '': expected a number from 1 to"),
            (\.connectionsMax, "99999999999999999999", "expected a number from 1 to"),
            (\.workers, "1025", "--workers '1025': expected a number from 1 to 1024, or auto"),
            (\.connectTimeout, "0", "--connect-timeout '0': expected more than no time"),
            (\.connectTimeout, "5 x", "--connect-timeout '5 x': expected a time span"),
            (\.idleTimeout, "0ms", "--idle-timeout '0ms': expected more than no time"),
            (\.drainTimeout, "", "--drain-timeout '': expected a time span"),
            (\.exitIdleTime, "-1", "--exit-idle-time '-1': a time span is not negative"),
            (\.preserveAfter, "soon", "--preserve-after 'soon': expected a time span"),
            (\.preserveAfter, "-1s", "--preserve-after '-1s': a time span is not negative"),
            (\.logConnections, "ALL", "--log-connections 'ALL': expected all, failures or none"),
        ] as [(WritableKeyPath<Options.Words, String?> & Sendable, String, String)])
    func wrongWord(
        key: WritableKeyPath<Options.Words, String?> & Sendable, text: String, message: String
    ) {
        let words = words { $0[keyPath: key] = text }
        let error = #expect(throws: OptionError.self) { try Options(words) }
        #expect(error?.description.contains(message) == true, "\(error?.description ?? "")")
    }

    @Test(
        "A route is NAME=TARGET",
        arguments: [
            ("web", "expected NAME=TARGET"), ("=a:1", "1 to 255 printable"),
            ("a:b=c:1", "1 to 255 printable"), ("a\tb=c:1", "1 to 255 printable"),
            (String(repeating: "a", count: 256) + "=c:1", "1 to 255 printable"),
            ("metrics=a:1", "serves metrics"), ("web=", "--route web= '': expected HOST:PORT"),
            ("web=a", "--route web= 'a': the port is missing"), ("web=a:0", "from 1 to 65535"),
        ])
    func wrongRoute(text: String, message: String) {
        let words = words { $0.routes = [text] }
        let error = #expect(throws: OptionError.self) { try Options(words) }
        #expect(error?.description.contains(message) == true, "\(error?.description ?? "")")
    }

    @Test("Two targets are one too many, even if they are the same")
    func twoTargets() {
        let words = words {
            $0.target = "a:1"
            $0.positional = "a:1"
        }
        let error = #expect(throws: OptionError.self) { try Options(words) }
        #expect(
            error?.description == "'a:1': expected one target, but --target 'a:1' is given as well")
    }

    @Test(
        "A message is one line, whatever the value holds",
        arguments: ["a\nb", "\u{1B}[2J", "a\r", "\u{202E}x", "\u{2028}", "\u{0}"])
    func oneLine(text: String) {
        let message = OptionError(value: text, expected: "x").description
        let scalars = message.unicodeScalars
        #expect(scalars.allSatisfy { $0.value >= 0x20 && $0 != "\u{202E}" && $0 != "\u{2028}" })
    }

    @Test("A long value is cut in its message")
    func longValue() {
        let text = "e" + String(repeating: "\u{301}", count: 1_000_000)  // one Character
        #expect(quoted(text).utf8.count < 400)
        #expect(quoted(String(repeating: "a", count: 120)).count == 122)
        #expect(quoted(String(repeating: "a", count: 121)).hasSuffix("a…'"))
    }
}

@Suite struct SuggestionTests {
    @Test(
        "The word that was meant is found",
        arguments: [
            ("Traget", "Target"), ("target", "Target"), ("Targets", "Target"), ("Target", "Target"),
            ("IdleTimeout", "IdleTimeoutSec"), ("idletimeoutsec", "IdleTimeoutSec"),
            ("MaxConnections", nil), ("", nil), ("X", nil), ("Address", nil),
            (String(repeating: "Target", count: 10_000), nil),
        ])
    func finds(word: String, expected: String?) {
        #expect(nearest(to: word, among: ["Target", "IdleTimeoutSec"]) == expected)
    }

    @Test("Words are listed as in a sentence")
    func lists() {
        #expect(oneOf([]) == "" && oneOf(["a"]) == "a")
        #expect(oneOf(["a", "b"]) == "a or b" && oneOf(["a", "b", "c"]) == "a, b or c")
    }
}
