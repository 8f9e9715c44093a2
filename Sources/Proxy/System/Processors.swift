// How many CPUs this process may use.

import CLinux
import Glibc

enum Processors {
    /// CPUs that the process may run on at once: its affinity, or less where its cgroup has a
    /// quota (cpu.max of cgroup v2). At least 1.
    static func available() -> Int {
        let allowed = max(Int(linux_cpus_allowed()), 1)
        guard let quota = cgroupQuota() else { return allowed }
        return max(min(allowed, Int(quota.rounded(.up))), 1)
    }

    /// The tightest quota, in CPUs, of the process's cgroup and those above it.
    private static func cgroupQuota() -> Double? {
        guard let groups = TextFile.read("/proc/self/cgroup"),
            let line = groups.split(separator: "\n").first(where: { $0.hasPrefix("0::") })
        else { return nil }
        var parts = line.dropFirst(3).split(separator: "/")
        var tightest: Double?
        while true {
            let path = "/sys/fs/cgroup/" + parts.joined(separator: "/") + "/cpu.max"
            if let quota = TextFile.read(path).flatMap(parseQuota) {
                tightest = min(tightest ?? quota, quota)
            }
            if parts.isEmpty { return tightest }
            parts.removeLast()
        }
    }

    /// Reads "MAX PERIOD" in microseconds; nil for "max PERIOD" or anything else.
    static func parseQuota(_ text: String) -> Double? {
        let fields = text.split(whereSeparator: \.isWhitespace)
        guard fields.count == 2, let most = Double(fields[0]), let period = Double(fields[1]),
            most > 0, period > 0
        else { return nil }
        return most / period
    }
}

/// Small files, read whole.
enum TextFile {
    /// nil if the file cannot be read, or is not UTF-8, or is larger than the limit.
    static func read(_ path: String, limit: Int = 1 << 20) -> String? {
        let raw = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard raw >= 0 else { return nil }
        let file = FileDescriptor(owning: raw)
        var bytes = [UInt8](repeating: 0, count: 4096)
        var text: [UInt8] = []
        while true {
            let count = unsafe bytes.withUnsafeMutableBytes {
                unsafe Glibc.read(file.rawValue, $0.baseAddress, $0.count)
            }
            if count < 0 && errno == EINTR { continue }
            if count < 0 || text.count + count > limit { return nil }
            if count == 0 { return String(validating: text, as: UTF8.self) }
            text += bytes[..<count]
        }
    }
}

/// Removes a file, if it is there.
func unlinkFile(_ path: String) { _ = unsafe unlink(path) }
