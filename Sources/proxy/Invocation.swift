/// The arguments, sorted into a command and its own arguments, each option with two dashes.
struct Invocation {
    enum Command { case run, check }

    let command: Command
    let arguments: [String]

    init(_ words: [String]) {
        var words = words
        var wantsHelp = false
        if words.first == "help" {
            words.removeFirst()
            wantsHelp = true
        }
        switch words.first {
        case "check":
            command = .check
            words.removeFirst()
        case "run":
            command = .run
            words.removeFirst()
        default:
            command = .run
        }
        arguments = wantsHelp ? ["--help"] : Invocation.withTwoDashes(words)
    }

    /// Go's flags have one dash or two: `-listen=:80` becomes `--listen=:80`. Short options (`-c5`,
    /// `-h`) and everything after `--` stay as they are.
    private static func withTwoDashes(_ words: [String]) -> [String] {
        var result: [String] = []
        for (index, word) in words.enumerated() {
            if word == "--" { return result + words[index...] }
            let name = word.dropFirst().prefix { $0 != "=" }
            let isLong =
                word.first == "-" && name.count > 1
                && name.first?.isLetter == true
                && name.allSatisfy { $0.isASCII && ($0.isLetter || $0 == "-") }
            result.append(isLong ? "-" + word : word)
        }
        return result
    }
}
