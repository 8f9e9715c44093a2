import Testing

@testable import Proxy

@Suite struct TimeSpanTests {
    @Test(
        "A span of systemd.time(7) is read",
        arguments: [
            ("90", Duration.seconds(90)), ("90s", .seconds(90)), (" 90 s ", .seconds(90)),
            ("0", .zero), ("0s", .zero), ("007", .seconds(7)),
            ("5min 20s", .seconds(320)), ("1h30min", .seconds(5400)), ("2 h", .seconds(7200)),
            ("55s500ms", .milliseconds(55_500)), ("300ms20s 5day", .milliseconds(432_020_300)),
            ("1y 12month", .seconds(2 * 31_557_600)), ("48hr", .seconds(172_800)),
            ("1.5s", .milliseconds(1500)), (".5", .milliseconds(500)), ("0.5h", .seconds(1800)),
            ("1.2 .3", .milliseconds(1500)), ("5s.5", .milliseconds(5500)),
            ("5 5s", .seconds(10)), ("1us", .microseconds(1)), ("1.9us", .microseconds(1)),
            ("1.1234567s", .microseconds(1_123_456)), ("0.5M", .seconds(1_314_900)),
            ("100y", .seconds(3_155_760_000 as Int64)),
            ("1." + String(repeating: "0", count: 10_000), .seconds(1)),
        ])
    func reads(text: String, expected: Duration) throws {
        #expect(try TimeSpan.parse(text) == expected)
    }

    @Test(
        "Every name of a unit is known",
        arguments: [
            (["usec", "us", "µs", "μs"], 0.000_001), (["msec", "ms"], 0.001),
            (["seconds", "second", "sec", "s"], 1), (["minutes", "minute", "min", "m"], 60),
            (["hours", "hour", "hr", "h"], 3600), (["days", "day", "d"], 86_400),
            (["weeks", "week", "w"], 604_800), (["months", "month", "M"], 2_629_800),
            (["years", "year", "y"], 31_557_600),
        ] as [([String], Double)])
    func units(names: [String], seconds: Double) throws {
        for name in names {
            #expect(try TimeSpan.parse("3" + name) == .microseconds(Int64(seconds * 3_000_000)))
        }
    }

    @Test("Infinity is no limit", arguments: ["infinity", " infinity", "infinity\t"])
    func infinity(text: String) throws {
        #expect(try TimeSpan.parse(text) == nil)
    }

    @Test(
        "What is no span is refused",
        arguments: [
            "", " ", "s", "x", "5x", "5 x", "1.2.3", "1.", "1.s", "3. 1", ".", "+5", "-5", "5-",
            "-infinity", "infinity 5", "5 infinity", "Infinity", "5S", "5MIN", "5secs", "1,5s",
            "1e3", "0x10", "٣s", "5\0s", "5\u{FFFD}", "5sms", "never", "five",
            // Too long, at each place where a number could overflow.
            "101y", "100y 1us", "18446744073709551615", "18446744073709551616us",
            "99999999999999999999", "1 18446744073709551615us", "999999999999999999999999999y",
            String(repeating: "9", count: 100_000), "18446744073709551615us .9",
        ])
    func refuses(text: String) {
        let error = #expect(throws: OptionError.self) { try TimeSpan.parse(text) }
        #expect(error?.value == text)
    }

    @Test("A negative span is refused in words")
    func negative() {
        let error = #expect(throws: OptionError.self) { try TimeSpan.parse("-5s") }
        #expect(error?.expected == "a time span is not negative")
    }

    @Test(
        "A span is written as systemd does, and is read again",
        arguments: [
            (Duration.zero, "0"), (.seconds(90), "1min 30s"), (.seconds(5400), "1h 30min"),
            (.milliseconds(1500), "1s 500ms"), (.microseconds(1), "1us"), (.seconds(3600), "1h"),
            (.seconds(31_557_600 + 2_629_800 + 604_800 + 86_400), "1y 1month 1w 1d"),
            (TimeSpan.longest, "100y"),
        ])
    func writes(span: Duration, expected: String) throws {
        #expect(TimeSpan.format(span) == expected)
        #expect(try TimeSpan.parse(expected) == span)
    }

    @Test(
        "Spans that cannot be read are still written",
        arguments: [
            (nil, "infinity"), (Duration.seconds(-90), "-1min 30s"), (.milliseconds(-1), "-1ms"),
            (.nanoseconds(1), "0"), (.seconds(Int64.max), "9223372036854775807s"),
            (.seconds(Int64.min), "-9223372036854775808s"),
        ])
    func writesOdd(span: Duration?, expected: String) {
        #expect(TimeSpan.format(span) == expected)
    }
}
