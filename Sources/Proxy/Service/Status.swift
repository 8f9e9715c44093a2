// The sentences that `systemctl status` shows. Pure.

enum Status {
    /// "12 open, 48 210 served, 3 routes; 1.2 GiB in, 9.8 GiB out"
    static func serving(
        open: Int, served: UInt64, routes: Int, refused: Int, bytesIn: UInt64, bytesOut: UInt64
    ) -> String {
        "\(grouped(UInt64(max(open, 0)))) open, \(grouped(served)) served, "
            + count(routes, "route") + (refused == 0 ? "" : " (\(refused) refused)")
            + "; \(ByteCount.format(bytesIn)) in, \(ByteCount.format(bytesOut)) out"
    }

    /// "Draining: 17 left, the oldest for 42 s"
    static func draining(left: Int, oldest: UInt64?) -> String {
        "Draining: \(left) left" + (oldest.map { ", the oldest for \($0) s" } ?? "")
    }

    /// "1 route", "2 routes"
    static func count(_ number: Int, _ noun: String) -> String {
        "\(number) \(noun)\(number == 1 ? "" : "s")"
    }

    /// "48 210": digits in groups of three, as ISO 80000 writes them.
    static func grouped(_ number: UInt64) -> String {
        var text = ""
        let digits = String(number)
        for (index, digit) in digits.enumerated() {
            if index > 0 && (digits.count - index) % 3 == 0 { text += " " }
            text.append(digit)
        }
        return text
    }
}
