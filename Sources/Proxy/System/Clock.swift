// Time as the proxy counts it.

import Glibc

/// A moment of CLOCK_MONOTONIC, in nanoseconds.
struct Instant: Comparable, Sendable {
    var nanoseconds: UInt64

    static func now() -> Instant { Instant(nanoseconds: clock(CLOCK_MONOTONIC)) }

    static func < (left: Instant, right: Instant) -> Bool { left.nanoseconds < right.nanoseconds }

    /// Time since an earlier moment, 0 if it is not earlier.
    func nanoseconds(since earlier: Instant) -> UInt64 {
        nanoseconds > earlier.nanoseconds ? nanoseconds - earlier.nanoseconds : 0
    }

    func advanced(by span: Duration) -> Instant { advanced(byNanoseconds: span.nanoseconds) }

    /// For the data plane: a `Duration` computes with 128 bits.
    func advanced(byNanoseconds span: UInt64) -> Instant {
        let (sum, overflow) = nanoseconds.addingReportingOverflow(span)
        return Instant(nanoseconds: overflow ? .max : sum)
    }

    /// CPU time that the calling thread has used, in nanoseconds.
    static func threadCPU() -> UInt64 { clock(CLOCK_THREAD_CPUTIME_ID) }

    private static func clock(_ id: clockid_t) -> UInt64 {
        var time = timespec()
        unsafe clock_gettime(id, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

extension Duration {
    /// Whole nanoseconds; negative spans count as 0, and what does not fit as the largest value.
    var nanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 0 }
        let (product, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
        let (sum, carried) = product.addingReportingOverflow(UInt64(attoseconds) / 1_000_000_000)
        return overflow || carried ? .max : sum
    }
}
