// Faults that tests ask a debug build for, in $TCP_PROXY_FAULT. A release build has none of it.

import CLinux
import Glibc

enum FaultInjection {
    #if DEBUG
        private static let name = unsafe getenv("TCP_PROXY_FAULT").map {
            unsafe String(cString: $0)
        }

        /// Pipes are entered in ledgers, but which connection's bytes they carry is not.
        static let mapsNoPipes = name == "no-pipe-mapping"
        private static let crashesAtPoison = name == "crash-at-poison"
        private static let diesHoldingBytes = name == "die-holding-bytes"

        /// Traps if the bytes that can be read next begin with "poison".
        static func lookAhead(_ fd: CInt) {
            guard crashesAtPoison else { return }
            var bytes = [UInt8](repeating: 0, count: 6)
            let count = unsafe recv(fd, &bytes, bytes.count, linux_MSG_PEEK)
            if count == 6 && bytes == Array("poison".utf8) { fatalError("poison") }
        }

        /// Dies by SIGKILL if these bytes, which are nowhere else now, begin with "hole!".
        static func holding(_ bytes: UnsafeMutableRawPointer, _ count: Int) {
            guard diesHoldingBytes, count >= 5 else { return }
            let found = unsafe UnsafeRawBufferPointer(start: bytes, count: 5)
            if unsafe found.elementsEqual("hole!".utf8) { kill(getpid(), SIGKILL) }
        }
    #else
        static var mapsNoPipes: Bool { false }
        @inline(__always) static func lookAhead(_: CInt) {}
        @inline(__always) static func holding(_: UnsafeMutableRawPointer, _: Int) {}
    #endif
}
