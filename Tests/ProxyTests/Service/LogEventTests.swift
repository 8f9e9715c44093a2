import Testing

@testable import Proxy

@Suite("Kinds of journal entries")
struct LogEventTests {
    private static let folder =
        #filePath.split(separator: "/").dropLast(4).map { "/\($0)" }.joined()
        + "/packaging/systemd/"

    @Test("each message id is explained in the catalog, and each explanation belongs to one")
    func catalog() throws {
        let text = try #require(TextFile.read(Self.folder + "tcp-metrics-proxy.catalog"))
        let explained = text.split(separator: "\n").filter { $0.hasPrefix("-- ") && $0.count > 30 }
            .map { String($0.dropFirst(3).prefix(32)) }
        let ids = LogEvent.allCases.map(\.messageID)
        #expect(Set(ids).count == ids.count, "an id stands for one kind")
        #expect(Set(ids).isSubset(of: explained))
        // Kept for entries that are to come.
        let listed = try #require(TextFile.read(Self.folder + "message-ids.txt"))
        for id in explained { #expect(listed.contains(id)) }
        for id in ids { #expect(listed.contains(id)) }
    }
}
