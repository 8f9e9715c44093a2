// One timer for each place of a slab: a wheel of lists, linked by number.

/// Timers of coarse resolution that cost a few nanoseconds to set, move and clear.
///
/// Deadlines further away than one turn of the wheel stay in their slot and are looked at once a
/// turn.
struct Timers {
    /// Nanoseconds per slot. No timeout of the proxy needs to be finer.
    static let tick: UInt64 = 16_000_000
    private static let slots = 4096  // a turn takes 65 s
    private static let none = Int32(-1)

    private struct Entry {
        var next = Timers.none
        var previous = Timers.none
        /// In ticks; 0 while the timer is not set.
        var deadline: UInt64 = 0
    }

    private var entries: [Entry] = []
    private var heads = [Int32](repeating: none, count: slots)
    /// One bit per slot that has entries.
    private var occupied = [UInt64](repeating: 0, count: slots / 64)
    private var lastTick: UInt64
    private(set) var count = 0

    init(now: Instant) { lastTick = now.nanoseconds / Self.tick }

    /// Sets or moves a timer. It fires at the deadline or up to a tick later.
    mutating func set(_ index: Int, at deadline: Instant) {
        while entries.count <= index { entries.append(Entry()) }
        clear(index)
        if deadline.nanoseconds == .max { return }
        let due = max(deadline.nanoseconds / Self.tick + 1, lastTick + 1)
        let slot = Int(due % UInt64(Self.slots))
        let head = heads[slot]
        entries[index] = Entry(next: head, previous: Self.none, deadline: due)
        if head != Self.none { entries[Int(head)].previous = Int32(truncatingIfNeeded: index) }
        heads[slot] = Int32(truncatingIfNeeded: index)
        occupied[slot / 64] |= 1 << UInt64(slot % 64)
        count += 1
    }

    mutating func clear(_ index: Int) {
        guard index < entries.count, entries[index].deadline != 0 else { return }
        let entry = entries[index]
        let slot = Int(entry.deadline % UInt64(Self.slots))
        if entry.previous == Self.none {
            heads[slot] = entry.next
            if entry.next == Self.none { occupied[slot / 64] &= ~(1 << UInt64(slot % 64)) }
        } else {
            entries[Int(entry.previous)].next = entry.next
        }
        if entry.next != Self.none { entries[Int(entry.next)].previous = entry.previous }
        entries[index].deadline = 0
        count -= 1
    }

    /// Clears the timers that are due and returns their numbers.
    mutating func advance(to now: Instant) -> [Int] {
        let current = now.nanoseconds / Self.tick
        guard current > lastTick else { return [] }
        let first = lastTick + 1
        lastTick = current
        guard count > 0 else { return [] }
        var due: [Int] = []
        let last = min(current, first + UInt64(Self.slots) - 1)  // no slot is looked at twice
        for tick in first...last {
            let slot = Int(tick % UInt64(Self.slots))
            var index = heads[slot]
            while index != Self.none {
                let entry = entries[Int(index)]
                if entry.deadline <= current {
                    due.append(Int(index))
                    clear(Int(index))
                }
                index = entry.next
            }
        }
        return due
    }

    /// Milliseconds until the next slot that has entries; -1 if no timer is set.
    func milliseconds(from now: Instant) -> CInt {
        guard count > 0 else { return -1 }
        var tick = lastTick + 1
        let end = tick + UInt64(Self.slots)
        while tick < end {
            let slot = Int(tick % UInt64(Self.slots))
            let word = occupied[slot / 64] >> UInt64(slot % 64)
            if word != 0 {
                tick += UInt64(word.trailingZeroBitCount)
                break
            }
            tick += UInt64(64 - slot % 64)
        }
        let at = tick * Self.tick
        if at <= now.nanoseconds { return 0 }
        return CInt(truncatingIfNeeded: (at - now.nanoseconds + 999_999) / 1_000_000)
    }
}
