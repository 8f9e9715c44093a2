// Threads. Workers block in epoll_wait, which no task of Swift's cooperative pool may do.

import CLinux
import Glibc

private final class ThreadBody: Sendable {
    let name: String
    let body: @Sendable () -> Void

    init(name: String, body: @escaping @Sendable () -> Void) {
        self.name = name
        self.body = body
    }
}

/// Starts a detached thread.
///
/// A plain function, not a closure at top level: there it would inherit the main actor and trap
/// on the new thread.
///
/// - Throws: EAGAIN at a limit on threads: TasksMax=, RLIMIT_NPROC.
func startThread(
    _ name: String, _ body: @escaping @Sendable () -> Void
) throws(SystemError) {
    let box = unsafe Unmanaged.passRetained(ThreadBody(name: name, body: body))
    var thread = pthread_t()
    let code = unsafe pthread_create(&thread, nil, threadMain, box.toOpaque())
    if code != 0 {
        unsafe box.release()
        throw SystemError(call: "pthread_create", code: code)
    }
    pthread_detach(thread)
}

/// Finds out whether a thread could be started now, for libraries that trap where none can.
func checkThreadCanStart() throws(SystemError) {
    var thread = pthread_t()
    let code = unsafe pthread_create(&thread, nil, { _ in nil }, nil)
    if code != 0 { throw SystemError(call: "pthread_create", code: code) }
    pthread_join(thread, nil)
}

private func threadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let argument = unsafe argument {
        let thread = unsafe Unmanaged<ThreadBody>.fromOpaque(argument).takeRetainedValue()
        unsafe linux_name_thread(thread.name)
        thread.body()
    }
    return nil
}
