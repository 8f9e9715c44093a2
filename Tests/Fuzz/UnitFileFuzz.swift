// fuzz-sources: Sources/Proxy/Options
// A .socket unit and its drop-ins, from bytes to the settings of a route. 0xFF, which no text
// holds, parts the files.

func fuzz(_ bytes: [UInt8]) {
    let files = bytes.split(separator: 0xFF, omittingEmptySubsequences: false).prefix(8)
        .enumerated().map { UnitFile(path: "/\($0.offset)", contents: Array($0.element)) }
    for (file, contents) in zip(
        files, bytes.split(separator: 0xFF, omittingEmptySubsequences: false))
    {
        check(file, contents)
    }
    let unit = MergedUnit(files)
    check(unit)
    let (settings, diagnostics) = RouteSettings.read(unit)
    for diagnostic in diagnostics { requireOneLine(diagnostic.description) }
    require(Set(settings.targets).count == settings.targets.count, "a target is there twice")
    require(settings.connectionsMax.map { $0 > 0 } ?? true, "a limit of zero")
    require(settings.idleTimeout != .zero && settings.connectTimeout != .zero, "no time")
    let socket = SocketSettings(unit)
    require(socket.listeners.allSatisfy { !$0.value.isEmpty }, "a listener that was reset")
}

private func check(_ file: UnitFile, _ contents: ArraySlice<UInt8>) {
    require(file.diagnostics.count <= UnitFile.mostDiagnostics + 1, "a flood of diagnostics")
    for diagnostic in file.diagnostics { requireOneLine(diagnostic.description) }

    let ends = contents.count { $0 == 0x0A || $0 == 0x0D || $0 == 0 }
    var line = 0
    // What was read can be written, and reads as the same: nothing is lost, doubled or mixed up.
    var written = ""
    for assignment in file.assignments {
        require(assignment.line > line && assignment.line <= ends + 1, "line \(assignment.line)")
        line = assignment.line
        require(!assignment.key.isEmpty && !assignment.key.utf8.contains(0x3D), assignment.key)
        // The last space keeps a backslash from continuing the line.
        written += "[\(assignment.section)]\n\(assignment.key)=\(assignment.value) \n"
    }
    let again = UnitFile(path: file.path, contents: Array(written.utf8))
    require(again.diagnostics.isEmpty, "\(again.diagnostics)")
    let isSame = again.assignments.elementsEqual(file.assignments) {
        $0.section == $1.section && $0.key == $1.key && $0.value == $1.value
    }
    require(isSame, "\(again.assignments)")
}

private func check(_ unit: MergedUnit) {
    for assignment in unit.effective.prefix(32) {
        require(
            unit.list(assignment.section, assignment.key).contains(assignment),
            "\(assignment) is in force, but not in its list")
    }
    let count = Set(unit.assignments.map { [$0.section, $0.key] }).prefix(32)
        .allSatisfy { name in
            unit.list(name[0], name[1])
                == unit.effective.filter { $0.section == name[0] && $0.key == name[1] }
        }
    require(count, "a list differs from what is in force")
}
