import Testing

@testable import Proxy

@Suite("Room for connections")
struct AdmissionLimitTests {
    @Test("exactly as many enter as the limit says, and again when one has left")
    func exact() {
        let limit = AdmissionLimit(limit: 2)
        #expect(limit.enter())
        #expect(limit.enter())
        #expect(!limit.enter())
        #expect(limit.count == 2)
        limit.leave()
        #expect(limit.enter())
        #expect(!limit.enter())
    }

    @Test("a lowered limit cuts nobody off and admits nobody before enough have left")
    func lowered() {
        let limit = AdmissionLimit(limit: 3)
        for _ in 0..<3 {
            let entered = limit.enter()
            #expect(entered)
        }
        limit.limit = 2
        limit.leave()
        #expect(!limit.enter())
        limit.leave()
        #expect(limit.enter())
    }

    @Test("descriptors are kept back for metrics and log, and some for pipes")
    func budget() {
        let budget = DescriptorBudget(limit: 1024, inUse: 24)
        var connections = 0
        while budget.takeForConnection() { connections += 1 }
        #expect(connections > 350 && connections < 460)
        #expect(!budget.hasRoom)
        #expect(budget.take(2), "a connection that is open still gets a pipe")
        for _ in 0..<100 { budget.giveBack(2) }
        #expect(budget.hasRoom)
    }

    @Test("even a very small limit lets some connections in", arguments: [40, 64, 100, 256])
    func small(limit: Int) {
        let budget = DescriptorBudget(limit: limit, inUse: 32)
        #expect(budget.total >= 2)
        #expect(budget.takeForConnection())
    }
}
