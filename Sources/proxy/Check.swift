import Proxy

/// Checks the routes' units, prints all that is wrong, and returns the exit status: 1 if there is
/// anything, be it a warning.
func checkUnits(_ units: [String]) -> Int32 {
    let report = RouteCheck().run(units)
    for diagnostic in report.diagnostics { print(diagnostic) }
    if report.units.isEmpty {
        print("no routes: no .socket unit leads to tcp-metrics-proxy.service")
    } else if report.diagnostics.isEmpty {
        print("\(report.units.count) checked, nothing wrong: \(list(report.units))")
    } else {
        let errors = report.diagnostics.filter { $0.severity == .error }.count
        let warnings = report.diagnostics.count - errors
        print("\(report.units.count) checked, \(errors) wrong, \(warnings) to look at")
    }
    return report.diagnostics.isEmpty ? 0 : 1
}

private func list(_ names: [String]) -> String { names.joined(separator: ", ") }
