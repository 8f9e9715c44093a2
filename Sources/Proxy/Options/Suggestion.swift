// "Did you mean …?" for words that are nearly right.

/// The known word that a person most likely meant, nil if none is near.
///
/// Near is at most a third of the word in edits; other case costs nothing. A word that is known
/// is returned as it is.
public func nearest(to word: String, among known: [String]) -> String? {
    let letters = Array(word.lowercased().utf8)
    // The distance takes time in proportion to both lengths, and no key is this long.
    guard letters.count <= 64 else { return nil }
    var best: (word: String, distance: Int)?
    for candidate in known {
        let other = Array(candidate.lowercased().utf8)
        let distance = editDistance(letters, other)
        let allowed = max(1, other.count / 3)
        if distance <= allowed, distance < (best?.distance ?? .max) {
            best = (candidate, distance)
        }
    }
    return best?.word
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from one word to the
/// other (optimal string alignment).
private func editDistance(_ from: [UInt8], _ to: [UInt8]) -> Int {
    if from.isEmpty || to.isEmpty { return max(from.count, to.count) }
    var beforeLast: [Int] = []
    var last = Array(0...to.count)
    for row in 1...from.count {
        var current = [row]
        for column in 1...to.count {
            let replaced = last[column - 1] + (from[row - 1] == to[column - 1] ? 0 : 1)
            var distance = min(replaced, last[column] + 1, current[column - 1] + 1)
            if row > 1, column > 1, from[row - 1] == to[column - 2], from[row - 2] == to[column - 1]
            {
                distance = min(distance, beforeLast[column - 2] + 1)
            }
            current.append(distance)
        }
        beforeLast = last
        last = current
    }
    return last[to.count]
}

/// "a, b or c".
func oneOf(_ words: [String]) -> String {
    guard let last = words.last, words.count > 1 else { return words.first ?? "" }
    return words.dropLast().joined(separator: ", ") + " or " + last
}
