import Glibc
import Proxy

/// Runs the proxy until it has drained, and returns the exit status.
func run(_ options: Options) -> Int32 {
    let failure = StartFailure()
    do throws(StartError) {
        return try Server(options).run()
    } catch {
        complain(error.description)
        return failure.tellManager(error, exitStatus: 1)
    }
}
