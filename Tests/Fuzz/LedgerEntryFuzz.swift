// fuzz-sources: Sources/Proxy/Preserve/LedgerEntry.swift Sources/Proxy/System/Clock.swift Sources/Proxy/System/SocketAddress.swift
// A datagram of a ledger: written by another process, perhaps of another version.

func fuzz(_ bytes: [UInt8]) {
    // As it is read: from the front of a buffer, where the last one's bytes may follow.
    let buffer = bytes + [LedgerEntry.layout, 3, 0, 0, 0, 0, 0, 0, 0, 0]
    do throws(EntryDamage) {
        let entry = try LedgerEntry(buffer[..<bytes.count])
        require(entry.bytes == bytes, "\(entry) has other bytes: \(entry.bytes)")
        require((1...2).contains(entry.descriptorCount), "\(entry.descriptorCount) descriptors")
        let again = try? LedgerEntry(entry.bytes[...])
        require(again == entry, "\(entry) is read as \(String(describing: again))")
        let isRefused = (try? LedgerEntry(buffer[..<(bytes.count + 1)])) == nil
        require(isRefused, "a byte that follows is not seen")
    } catch {
        switch error {
        case .unknownLayout(let layout):
            require(layout == bytes.first && layout != LedgerEntry.layout, "layout \(layout)")
        case .damaged:
            require(bytes.isEmpty || bytes.first == LedgerEntry.layout, "another layout is damaged")
        }
    }
}
