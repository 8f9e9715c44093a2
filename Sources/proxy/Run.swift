import Glibc
import Proxy

/// Runs the proxy until it has drained, and returns the exit status.
func run(_ options: Options) -> Int32 {
    do throws(StartError) {
        return try Server(options).run()
    } catch {
        complain(error.description)
        StartFailure.tellManager(error, exitStatus: 1)
        return 1
    }
}
