import ArgumentParser

/// Looks for everything that is wrong with the routes, in one go.
struct CheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Checks the routes: units, settings and targets.",
        usage: "\(programName) check [unit ...]",
        discussion: """
            Prints each problem with its file and line, and what to do about it.
            Exit status: 0 if all is well, 1 if there is a problem.
            """)

    @Argument(
        help: ArgumentHelp(
            "A .socket unit by name, or the path of its file. (default: all that belong to the service)",
            valueName: "unit"),
        completion: .file(extensions: ["socket"]))
    var units: [String] = []
}
