import Testing

@testable import Proxy

@Suite struct UnitFileTests {
    private func read(_ text: String) -> UnitFile {
        UnitFile(path: "/a.socket", contents: Array(text.utf8))
    }

    /// "section/key=value@line" for each assignment.
    private func summary(_ file: UnitFile) -> [String] {
        file.assignments.map { "\($0.section)/\($0.key)=\($0.value)@\($0.line)" }
    }

    @Test(
        "Sections, keys and values are read with the lines on which they stand",
        arguments: [
            ("", []),
            ("[S]\nA=1\nA=2\n[T]\nB=3", ["S/A=1@2", "S/A=2@3", "T/B=3@5"]),
            ("[S]\r\nA=1\r\n\r\nB=2\r\n", ["S/A=1@2", "S/B=2@4"]),
            ("[S]\rA=1\rB=2", ["S/A=1@2", "S/B=2@3"]),
            ("[S]\n\rA=1", ["S/A=1@2"]),
            ("\u{FEFF}[S]\nA=1", ["S/A=1@2"]),
            ("  [S]  \n \t A \t = \t b c \t ", ["S/A=b c@2"]),
            ("[S]\nA=", ["S/A=@2"]),
            ("[S]\nA==b=c", ["S/A==b=c@2"]),
            ("[S]\nA=\"b c\" 'd'", ["S/A=\"b c\" 'd'@2"]),
            ("[S]\nA=b # c ; d", ["S/A=b # c ; d@2"]),
            ("[S]\n#A=1\n;A=2\n  # A=3\n\n \t\nA=4", ["S/A=4@7"]),
            ("[X-Proxy]\nZiel=ä\u{1F600}", ["X-Proxy/Ziel=ä\u{1F600}@2"]),
            ("[S]\n[T]\nA=1\n[S]\nB=2", ["T/A=1@3", "S/B=2@5"]),
            ("[[S]]\nA=1", ["[S]/A=1@2"]),
        ])
    func reads(text: String, expected: [String]) {
        let file = read(text)
        #expect(summary(file) == expected)
        #expect(file.diagnostics.isEmpty)
    }

    @Test(
        "A backslash continues a line, over comments, and becomes a space",
        arguments: [
            ("[S]\nA=b \\\n  c\nB=d", ["S/A=b    c@2", "S/B=d@4"]),
            ("[S]\nA=b\\\n# no\n; no\nc", ["S/A=b c@2"]),
            ("[S]\nA=b\\\n\nB=c", ["S/A=b@2", "S/B=c@4"]),
            ("[S]\nA=b\\", ["S/A=b@2"]),
            ("[S]\nA=b\\\\\nB=c", ["S/A=b\\\\@2", "S/B=c@3"]),
            ("[S]\nA=b\\\\\\\nB=c", ["S/A=b\\\\ B=c@2"]),
            ("[S]\nA=b\\ \nB=c", ["S/A=b\\@2", "S/B=c@3"]),
            ("[S]\nA=\\\r\nb", ["S/A=b@2"]),
            ("[S]\nA\\\n=\\\nb", ["S/A=b@2"]),
            ("[S]\n\\\n\\\nA=1", ["S/A=1@2"]),
            ("[S\\\n]\nA=1", ["S /A=1@3"]),
            ("[S]\n#\\\nA=1", ["S/A=1@3"]),
        ])
    func continues(text: String, expected: [String]) {
        let file = read(text)
        #expect(summary(file) == expected)
        #expect(file.diagnostics.isEmpty)
    }

    @Test(
        "What makes no sense is diagnosed, and the rest is read",
        arguments: [
            ("A=1\n[S]\nB=2", ["S/B=2@3"], "/a.socket:1: warning: 'A=1': outside of a section"),
            ("[S]\nA\nB=2", ["S/B=2@3"], "/a.socket:2: warning: 'A': expected Key=value"),
            ("[S]\n=1\nB=2", ["S/B=2@3"], "/a.socket:2: warning: '=1': expected a key"),
            (
                "[S]\nA=1\n[T\nB=2\nC=3\n[U]\nD=4", ["S/A=1@2", "U/D=4@7"],
                "/a.socket:3: error: '[T': expected a section"
            ),
            ("[S] x\nA=1", [], "/a.socket:1: error: '[S] x': expected a section"),
            ("[\nA=1", [], "/a.socket:1: error: '[': expected a section"),
            ("[S\u{1}]\nA=1", [], "/a.socket:1: error: '[S\\u{01}]': expected a section"),
            ("[S]\nA=1\0B=2", ["S/A=1@2", "S/B=2@3"], "/a.socket: warning: holds NUL bytes"),
        ])
    func diagnoses(text: String, expected: [String], diagnostic: String) {
        let file = read(text)
        #expect(summary(file) == expected)
        #expect(file.diagnostics.count == 1)
        let first = file.diagnostics.first?.description ?? ""
        #expect(first.hasPrefix(diagnostic), "\(first)")
    }

    @Test("A line that is not UTF-8 is left out")
    func invalidUTF8() {
        let bytes = Array("[S]\nA=".utf8) + [0xC3, 0x28] + Array("\nB=1".utf8)
        let file = UnitFile(path: "/a", contents: bytes)
        #expect(summary(file) == ["S/B=1@3"])
        #expect(file.diagnostics.map(\.line) == [2])
    }

    @Test("A file of garbage does not flood the log")
    func flood() {
        let file = read(String(repeating: "x\n", count: 100_000))
        #expect(file.diagnostics.count == UnitFile.mostDiagnostics + 1)
        #expect(file.diagnostics.last?.message.contains("not listed") == true)
        #expect(file.diagnostics.last?.line == UnitFile.mostDiagnostics + 1)
    }

    @Test("A file is read up to a megabyte, whatever is in it", .timeLimit(.minutes(1)))
    func size() {
        let start = "[S]\nA="
        let fill = String(repeating: "x", count: UnitFile.largestFile - start.utf8.count)
        #expect(read(start + fill).assignments.first?.value == fill)
        let tooLarge = read(start + fill + "x")
        #expect(tooLarge.assignments.isEmpty && tooLarge.sections.isEmpty)
        #expect(tooLarge.diagnostics.map(\.severity) == [.error])

        for part in ["\\", "\\\n", "[", "=", "\n", "#", "[S]\nA=\\\n", "\0", "\r\n", "a=\n"] {
            let count = UnitFile.largestFile / 8 / part.utf8.count
            let file = read(String(repeating: part, count: count))
            #expect(file.diagnostics.count <= UnitFile.mostDiagnostics + 1)
        }
    }
}

@Suite struct MergedUnitTests {
    private func merge(_ texts: String...) -> MergedUnit {
        MergedUnit(
            texts.enumerated().map { (path: "/\($0.offset)", contents: Array($0.element.utf8)) })
    }

    private func summary(_ assignments: [Assignment]) -> [String] {
        assignments.map { "\($0.value)@\($0.file):\($0.line)" }
    }

    @Test("A drop-in adds to a list and overrides a value")
    func overrides() {
        let unit = merge("[S]\nA=1\nB=1", "[S]\nA=2", "[S]\n\nB=2")
        #expect(summary(unit.list("S", "A")) == ["1@/0:2", "2@/1:2"])
        #expect(unit.value("S", "A")?.value == "2")
        #expect(unit.value("S", "B")?.file == "/2" && unit.value("S", "B")?.line == 3)
    }

    @Test("An empty value takes back what came before it, in its section alone")
    func resets() {
        let unit = merge("[S]\nA=1\nA=2\n[T]\nA=3", "[S]\nA=\nA=4\nB=5\nB=")
        #expect(summary(unit.list("S", "A")) == ["4@/1:3"])
        #expect(summary(unit.list("T", "A")) == ["3@/0:5"])
        #expect(unit.value("S", "B") == nil)
        #expect(unit.value("S", "C") == nil)
        #expect(summary(unit.effective) == ["3@/0:5", "4@/1:3"])
    }

    @Test("Names are case-sensitive, and a section may be empty or come twice")
    func names() {
        let unit = merge("[S]\na=1\n[E]\n[S]\na=2")
        #expect(unit.list("S", "A").isEmpty && unit.list("s", "a").isEmpty)
        #expect(unit.list("S", "a").count == 2)
        #expect(unit.hasSection("E") && !unit.hasSection("e"))
    }

    @Test("Every file's problems are kept, with its name")
    func diagnostics() {
        let unit = merge("A=1", "[S]", "x")
        #expect(unit.diagnostics.map(\.file) == ["/0", "/2"])
    }
}
