// The unit that this process runs in.

/// A unit of the system's manager or of a user's.
struct ProcessUnit: Equatable {
    let name: String
    /// True exactly when the manager is a user's.
    let isUser: Bool

    init(name: String, isUser: Bool) {
        self.name = name
        self.isUser = isUser
    }

    /// The unit of this process; nil outside of systemd.
    ///
    /// Not by sd_pid_get_unit(3): it looks at process 1 as well, which ProtectProc= hides.
    static func ofThisProcess() -> ProcessUnit? {
        TextFile.read("/proc/self/cgroup").flatMap(ProcessUnit.init(cgroups:))
    }

    /// Reads /proc/PID/cgroup, cgroups(7): a line for each hierarchy, "id:controllers:path".
    init?(cgroups: String) {
        for line in cgroups.split(separator: "\n") {
            let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            // systemd's is the unified hierarchy, or one of its own name on older kernels.
            guard fields.count == 3, fields[1].isEmpty || fields[1] == "name=systemd",
                let unit = ProcessUnit(path: fields[2])
            else { continue }
            self = unit
            return
        }
        return nil
    }

    /// "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service": behind the slices
    /// stands the unit; behind a user's manager, the slices and the unit of that one.
    private init?(path: Substring) {
        var parts = path.split(separator: "/")[...]
        func nextUnit() -> Substring? {
            parts = parts.drop { $0.hasSuffix(".slice") }
            return parts.popFirst()
        }
        guard let unit = nextUnit(), unit.contains(".") else { return nil }
        let isManager = unit.hasPrefix("user@") && unit.hasSuffix(".service")
        if isManager, let own = nextUnit(), own.contains(".") {
            self.init(name: ProcessUnit.unescaped(own), isUser: true)
        } else {
            self.init(name: ProcessUnit.unescaped(unit), isUser: false)
        }
    }

    /// systemd puts "_" before a name that the kernel could take for a file of its own.
    private static func unescaped(_ name: Substring) -> String {
        String(name.first == "_" ? name.dropFirst() : name)
    }
}
