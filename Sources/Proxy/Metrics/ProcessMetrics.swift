import Glibc

/// The `process_*` metrics that Prometheus clients have in common, read from the kernel at each
/// scrape: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics
///
/// What it needs from /proc is opened once, at the start: a process that has run out of
/// descriptors must still be able to say so.
@safe final class ProcessMetrics: Sendable {
    /// Descriptor of /proc/self/stat, -1 where there is no /proc.
    private let stat: CInt
    /// The folder /proc/self/fd, whose file offset a listing moves; nil where there is no /proc.
    private let folder: Locked<OpaquePointer?>
    /// Seconds since the epoch, nil where there is no /proc.
    private let startTime: Double?

    init() {
        stat = unsafe open("/proc/self/stat", O_RDONLY | O_CLOEXEC)
        unsafe folder = Locked(opendir("/proc/self/fd"))
        startTime = Self.read(stat).map { status in
            // Start times are counted by a clock that runs through suspension.
            seconds(CLOCK_REALTIME) - seconds(CLOCK_BOOTTIME) + status.startedAfterBoot
        }
    }

    deinit {
        if stat >= 0 { _ = close(stat) }
        unsafe folder.withLock { if let open = unsafe $0 { _ = unsafe closedir(open) } }
    }

    /// Writes the families that can be read here and now, and no others.
    func write(to page: inout Exposition) {
        page.counter(
            "process_cpu_seconds_total", help: "Total user and system CPU time spent in seconds."
        ) {
            $0.sample(seconds(CLOCK_PROCESS_CPUTIME_ID))
        }
        if let open = openDescriptors() {
            page.gauge("process_open_fds", help: "Number of open file descriptors.") {
                $0.sample(open)
            }
        }
        if let limit = softLimit(RLIMIT_NOFILE) {
            page.gauge("process_max_fds", help: "Maximum number of open file descriptors.") {
                $0.sample(limit)
            }
        }
        if let status = Self.read(stat) {
            page.gauge("process_virtual_memory_bytes", help: "Virtual memory size in bytes.") {
                $0.sample(status.virtualBytes)
            }
            page.gauge("process_resident_memory_bytes", help: "Resident memory size in bytes.") {
                $0.sample(status.residentBytes)
            }
            page.gauge("process_threads", help: "Number of threads of the process.") {
                $0.sample(status.threads)
            }
        }
        if let limit = softLimit(RLIMIT_AS) {
            page.gauge(
                "process_virtual_memory_max_bytes",
                help: "Maximum amount of virtual memory available in bytes."
            ) {
                $0.sample(limit)
            }
        }
        if let startTime {
            page.gauge(
                "process_start_time_seconds",
                help: "Start time of the process since unix epoch in seconds."
            ) {
                $0.sample(startTime)
            }
        }
    }

    private static func read(_ descriptor: CInt) -> ProcessStatus? {
        guard descriptor >= 0 else { return nil }
        let text = unsafe [UInt8](unsafeUninitializedCapacity: 1024) { buffer, count in
            count = unsafe max(0, pread(descriptor, buffer.baseAddress, buffer.count, 0))
        }
        return ProcessStatus(
            parsing: text, ticksPerSecond: sysconf(CInt(_SC_CLK_TCK)),
            pageSize: sysconf(CInt(_SC_PAGESIZE)))
    }

    /// Nil where there is no /proc.
    private func openDescriptors() -> Int? {
        unsafe folder.withLock { folder in
            guard let folder = unsafe folder else { return nil }
            var status = Glibc.stat()
            // Since Linux 6.2 the folder's size is the number of descriptors; before, it is 0.
            if unsafe fstat(dirfd(folder), &status) == 0, status.st_size > 0 {
                return Int(status.st_size)
            }
            unsafe rewinddir(folder)
            var entries = 0
            while unsafe readdir(folder) != nil { entries += 1 }
            return entries - 2  // without "." and ".."
        }
    }
}

/// The fields of /proc/PID/stat that matter here; proc_pid_stat(5).
struct ProcessStatus: Equatable {
    let threads: Int
    let startedAfterBoot: Double  // seconds
    let virtualBytes: Int
    let residentBytes: Int

    /// Nil if `text` is not such a line.
    init?(parsing text: [UInt8], ticksPerSecond: Int, pageSize: Int) {
        // The second field is a name in parentheses, which may hold spaces and parentheses.
        guard let nameEnd = text.lastIndex(of: UInt8(ascii: ")")) else { return nil }
        let fields = text[(nameEnd + 1)...].split(separator: UInt8(ascii: " "))
        /// The manual page numbers the fields from 1; the third is the first one here.
        func field(_ number: Int) -> Int? {
            guard number - 3 < fields.count else { return nil }
            return Int(String(decoding: fields[number - 3], as: UTF8.self))
        }
        guard let threads = field(20), let ticks = field(22), let virtualBytes = field(23),
            let pages = field(24)
        else { return nil }
        self.threads = threads
        startedAfterBoot = Double(ticks) / Double(ticksPerSecond)
        self.virtualBytes = virtualBytes
        residentBytes = pages * pageSize
    }
}

/// What `clock` shows, in seconds; 0 if it cannot be read.
private func seconds(_ clock: clockid_t) -> Double {
    var time = timespec()
    guard unsafe clock_gettime(clock, &time) == 0 else { return 0 }
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

/// The limit in force now; nil if it cannot be read.
private func softLimit(_ resource: __rlimit_resource) -> UInt64? {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0 else { return nil }
    return UInt64(limit.rlim_cur)
}
