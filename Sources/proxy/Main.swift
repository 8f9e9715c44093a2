// The command line: from the arguments to `Options`, and from errors to one line and a status.

import ArgumentParser
import Glibc
import Proxy

/// Exit status of a command line that is not understood.
private let usageStatus: Int32 = 2

/// The name that the user called: the build's `proxy`, or the package's `tcp-metrics-proxy`.
let programName: String = {
    let path = CommandLine.arguments.first ?? ""
    let name = path.split(separator: "/").last.map(String.init) ?? ""
    return name == "tcp-metrics-proxy" ? name : "proxy"
}()

@main
enum Main {
    static func main() {
        Server.prepare()
        // A plain function, so that no thread started from here inherits the main actor.
        exit(start(Array(CommandLine.arguments.dropFirst())))
    }
}

private func start(_ arguments: [String]) -> Int32 {
    let line = Invocation(arguments)
    do {
        var command =
            switch line.command {
            case .run: try RunCommand.parseAsRoot(line.arguments)
            case .check: try CheckCommand.parseAsRoot(line.arguments)
            }
        switch (line.command, command) {
        case (.run, let command as RunCommand):
            return run(try Options(command.words))
        case (.check, let command as CheckCommand):
            return checkUnits(command.units)
        case (.run, is CheckCommand):  // found behind other arguments
            return refuse("a command comes first, as in '\(programName) check'")
        default:
            try command.run()  // ArgumentParser's own, for help: throws the text
            return 0
        }
    } catch let error as OptionError {
        return refuse(error.description)
    } catch {
        return answer(error, to: line.command)
    }
}

/// Prints what the user asked for (help, version, completions), or what is wrong.
private func answer(_ error: any Error, to command: Invocation.Command) -> Int32 {
    let type: any ParsableCommand.Type = command == .check ? CheckCommand.self : RunCommand.self
    if type.exitCode(for: error) == .success {
        print(type.fullMessage(for: error, columns: 80))
        return 0
    }
    return refuse(inOurForm(type.message(for: error)))
}

/// Says what is wrong with the command line, to a service manager as well.
private func refuse(_ message: String) -> Int32 {
    complain(message)
    return StartFailure().tellManager(
        StartError(description: message), exitStatus: usageStatus)
}

/// ArgumentParser's "Unknown option '--x'. Did you mean '--y'?" as the end of "proxy: …".
private func inOurForm(_ message: String) -> String {
    let line = message.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    let parts = line.split(separator: ". ", maxSplits: 1)
    var first = parts.first ?? ""
    if first.hasSuffix(".") { first.removeLast() }
    let advice =
        parts.count > 1
        ? parts[1].prefix(1).lowercased() + parts[1].dropFirst() : "see '\(programName) --help'"
    return first.prefix(1).lowercased() + first.dropFirst() + "; " + advice
}

/// One line on standard error, whatever is in the message.
func complain(_ message: String) {
    let bytes = Array("\(programName): \(oneLine(message))\n".utf8)
    // Nothing can be done about a standard error that takes nothing.
    _ = unsafe bytes.withUnsafeBytes { unsafe write(STDERR_FILENO, $0.baseAddress, $0.count) }
}
