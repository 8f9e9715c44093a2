// Shared by the fuzz targets: each is one file that defines `fuzz(_:)`, and is built together with
// this one and the sources under test by run.sh.

/// What libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    // libFuzzer owns the bytes, for the length of this call only.
    fuzz(unsafe Array(UnsafeBufferPointer(start: start, count: count)))
    return 0
}

/// Traps, so that libFuzzer keeps the input, where a property does not hold.
func require(_ holds: Bool, _ property: @autoclosure () -> String) {
    if !holds { fatalError(property()) }
}

/// Every message must fit one line of a log, whatever was read.
func requireOneLine(_ message: String) {
    require(message.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7F }, "more than a line: \(message)")
    require(message.utf8.count < 4096, "a message of \(message.utf8.count) bytes")
}
