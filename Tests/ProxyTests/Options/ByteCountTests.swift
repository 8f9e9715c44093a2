import Testing

@testable import Proxy

@Suite struct ByteCountTests {
    @Test(
        "A count is written for people",
        arguments: [
            (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1075, "1.0 KiB"),
            (1076, "1.1 KiB"), (1_048_524, "1023.9 KiB"), (1_048_525, "1.0 MiB"),
            (1_048_576, "1.0 MiB"), (1_288_490_189, "1.2 GiB"), (1 << 40, "1.0 TiB"),
            (1 << 50, "1.0 PiB"), (1 << 60, "1.0 EiB"), (UInt64.max, "16.0 EiB"),
        ])
    func writes(bytes: UInt64, expected: String) {
        #expect(ByteCount.format(bytes) == expected)
    }

    @Test(
        "A size is read as systemd reads it",
        arguments: [
            ("0", 0), ("4096", 4096), ("64K", 65_536), ("1.5G", 1_610_612_736), ("2 M", 2_097_152),
            (" 1T ", 1 << 40), ("1P", 1 << 50), ("15E", 15 << 60), ("12B", 12), ("0.5K", 512),
            ("18446744073709551615", UInt64.max), ("15.5E", 31 << 59),
            ("1.0000000000000000000000000001K", 1024),
        ])
    func reads(text: String, expected: UInt64) throws {
        #expect(try ByteCount.parse(text) == expected)
    }

    @Test(
        "What is no size is refused",
        arguments: [
            "", " ", "K", "-1", "+1", "1KB", "1KiB", "1k", "1.K", ".5K", "1 2", "1..5", "1X", "٣",
            "16E", "18446744073709551616", "18014398509481984K", "17.5E", "1\0", "infinity",
            String(repeating: "9", count: 100_000),
        ])
    func refuses(text: String) {
        let error = #expect(throws: OptionError.self) { try ByteCount.parse(text) }
        #expect(error?.value == text)
    }
}
