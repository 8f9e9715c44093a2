// A unit as systemd sees it: its main file and its drop-ins, taken together.

/// The assignments of a unit's files, in order of precedence.
public struct MergedUnit: Sendable {
    /// All of them, later ones overriding earlier ones; resets (empty values) are still in it.
    public let assignments: [Assignment]
    /// Each section header with its place, in the same order.
    public let sections: [(name: String, file: String, line: Int)]
    /// What could not be understood of the files.
    public let diagnostics: [Diagnostic]

    /// - Parameter files: the main file, then the drop-ins in the order in which systemd applies
    ///   them (by file name).
    public init(_ files: [UnitFile]) {
        assignments = files.flatMap(\.assignments)
        sections = files.flatMap { file in
            file.sections.map { (name: $0.name, file: file.path, line: $0.line) }
        }
        diagnostics = files.flatMap(\.diagnostics)
    }

    /// Reads the files' contents, and merges them.
    public init(_ files: [(path: String, contents: [UInt8])]) {
        self.init(files.map { UnitFile(path: $0.path, contents: $0.contents) })
    }

    /// The values of a key that makes a list: those after its last reset.
    public func list(_ section: String, _ key: String) -> [Assignment] {
        var result: [Assignment] = []
        for assignment in assignments where assignment.section == section && assignment.key == key {
            if assignment.value.isEmpty {
                result.removeAll()
            } else {
                result.append(assignment)
            }
        }
        return result
    }

    /// The value of a key that has one: the last; nil if there is none or it was reset after.
    public func value(_ section: String, _ key: String) -> Assignment? {
        list(section, key).last
    }

    /// The assignments that no later reset takes back, in order.
    public var effective: [Assignment] {
        var isReset: Set<[String]> = []
        var result: [Assignment] = []
        for assignment in assignments.reversed() {
            let name = [assignment.section, assignment.key]
            if assignment.value.isEmpty {
                isReset.insert(name)
            } else if !isReset.contains(name) {
                result.append(assignment)
            }
        }
        return result.reversed()
    }

    /// True exactly when a file has a header of this section, be it empty.
    public func hasSection(_ name: String) -> Bool {
        sections.contains { $0.name == name }
    }
}
