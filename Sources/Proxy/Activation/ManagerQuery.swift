// Asks the system manager, over its bus, what it has loaded. Only for an administrator's `check`:
// the service itself reads files (a DynamicUser= is cut off by the bus).

import CSystemd
import Glibc

/// A connection to the system's bus; questions are answered with nil where there is none.
@safe final class ManagerQuery {
    private let bus: OpaquePointer

    /// nil where there is no bus.
    init?() {
        var bus: OpaquePointer? = nil
        guard unsafe sd_bus_open_system(&bus) >= 0, let open = unsafe bus else { return nil }
        unsafe self.bus = open
    }

    deinit { _ = unsafe sd_bus_flush_close_unref(bus) }

    /// True exactly when the manager has the unit loaded, and its files have changed since.
    func needsReload(_ unit: String) -> Bool? {
        var path: UnsafeMutablePointer<CChar>? = nil
        guard unsafe sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &path) >= 0
        else { return nil }
        defer { unsafe free(path) }
        var value: CInt = 0
        let code = unsafe withUnsafeMutablePointer(to: &value) { pointer in
            unsafe sd_bus_get_property_trivial(
                bus, "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Unit",
                "NeedDaemonReload", nil, CChar(UInt8(ascii: "b")), pointer)
        }
        return code >= 0 ? value != 0 : nil
    }
}
