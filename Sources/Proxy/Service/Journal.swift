// Entries with fields, in the journal's native protocol: systemd.journal-fields(7).

import CSystemd
import Glibc

enum Journal {
    /// Where journald listens.
    private static let socket = "/run/systemd/journal/socket"

    /// True exactly when stderr leads to the journal, so that its reader expects us there.
    static func isStream(_ descriptor: CInt) -> Bool {
        guard let value = unsafe getenv("JOURNAL_STREAM") else { return false }
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else { return false }
        return unsafe String(cString: value) == "\(status.st_dev):\(status.st_ino)"
    }

    /// False while there is no journal: libsystemd then drops entries without a word.
    static var isThere: Bool { Folder.exists(socket) }

    /// Sends one entry. May wait while journald restarts, so never to be called by a worker.
    ///
    /// - Parameter fields: NAME and value each; names as journald takes them.
    /// - Returns: false if the journal did not take it.
    static func send(_ fields: [(name: String, value: String)]) -> Bool {
        var bytes: [UInt8] = []
        var ends: [Int] = []
        for field in fields {
            bytes += field.name.utf8
            bytes.append(UInt8(ascii: "="))
            bytes += field.value.utf8
            ends.append(bytes.count)
        }
        return unsafe bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return false }
            var vectors: [iovec] = unsafe []
            var start = 0
            for end in ends {
                unsafe vectors.append(iovec(iov_base: base + start, iov_len: end - start))
                start = end
            }
            return unsafe sd_journal_sendv(vectors, CInt(vectors.count)) >= 0
        }
    }

    /// The fields of an ended connection.
    static func fields(of record: ConnectionRecord) -> [(name: String, value: String)] {
        var fields = [
            (name: "PROXY_ROUTE", value: record.route.name),
            ("PROXY_CLIENT_ADDRESS", record.client.host),
            ("PROXY_LISTEN_ADDRESS", record.listen.description),
            ("PROXY_BYTES_IN", "\(record.bytesIn)"),
            ("PROXY_BYTES_OUT", "\(record.bytesOut)"),
            ("PROXY_DURATION_USEC", "\(record.duration / 1000)"),
            ("PROXY_CLOSE_REASON", record.reason.label),
            ("PROXY_CONNECTION_ID", "\(record.id)"),
        ]
        if !record.client.isUnix { fields.append(("PROXY_CLIENT_PORT", "\(record.client.port)")) }
        if record.target != .unnamed {
            fields.append(("PROXY_TARGET", record.target.description))
        }
        if let connect = record.connectDuration {
            fields.append(("PROXY_CONNECT_USEC", "\(connect / 1000)"))
        }
        return fields
    }
}
