// Finds unit files as the service manager does: search path, masks, templates, drop-ins.

import CSystemd
import Glibc

/// The unit files of one manager, read from the file system; see systemd.unit(5).
struct UnitSearch {
    /// Folders in order of priority: what stands in an earlier one hides what stands in a later.
    let folders: [String]

    init(folders: [String]) { self.folders = folders }

    /// The search path of the system's manager, or of the user's.
    static func ofManager(isUser: Bool) -> UnitSearch {
        var list: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = nil
        let kind =
            isUser
            ? UInt64(SD_PATH_SYSTEMD_SEARCH_USER_UNIT)
            : UInt64(SD_PATH_SYSTEMD_SEARCH_SYSTEM_UNIT)
        guard unsafe sd_path_lookup_strv(kind, nil, &list) >= 0, let entries = unsafe list else {
            return UnitSearch(folders: ["/etc/systemd/system", "/usr/lib/systemd/system"])
        }
        var folders: [String] = []
        var index = 0
        while let entry = unsafe entries[index] {
            folders.append(unsafe String(cString: entry))
            unsafe free(entry)
            index += 1
        }
        unsafe free(entries)
        return UnitSearch(folders: folders)
    }

    /// The names of all .socket units that are not masked, templates included, sorted.
    func socketNames() -> [String] {
        var names: Set<String> = []
        for folder in folders {
            for name in Folder.names(folder) where name.hasSuffix(".socket") { names.insert(name) }
        }
        return names.filter { fragment(of: $0) != nil }.sorted()
    }

    /// The path of a unit's main file; nil if there is none, or it is masked.
    func fragment(of name: String) -> String? {
        for candidate in [name, Self.template(of: name)].compactMap({ $0 }) {
            for folder in folders {
                let path = "\(folder)/\(candidate)"
                guard Folder.exists(path) else { continue }
                return Folder.isMask(path) ? nil : path
            }
        }
        return nil
    }

    /// The drop-ins of a unit, in the order in which they apply: by file name. A file hides
    /// those of its name in less specific or less important folders.
    func dropIns(of name: String) -> [String] {
        var byName: [String: String] = [:]
        for dropInFolder in Self.dropInFolders(of: name) {
            for folder in folders {
                let path = "\(folder)/\(dropInFolder)"
                for file in Folder.names(path) where file.hasSuffix(".conf") {
                    if byName[file] == nil { byName[file] = "\(path)/\(file)" }
                }
            }
        }
        return byName.sorted { $0.key < $1.key }.map(\.value).filter { !Folder.isMask($0) }
    }

    /// A unit's files, read and merged; nil if it has no main file.
    func unit(_ name: String) -> MergedUnit? {
        guard let fragment = fragment(of: name) else { return nil }
        let files = ([fragment] + dropIns(of: name)).map { path in
            (path: path, contents: Array((TextFile.read(path) ?? "").utf8))
        }
        return MergedUnit(files)
    }

    /// The drop-in folders of a unit, the most specific first: a-b@c.socket.d, a-b@.socket.d,
    /// a-.socket.d, socket.d.
    static func dropInFolders(of name: String) -> [String] {
        var names = [name]
        if let template = template(of: name) { names.append(template) }
        let suffix = name.split(separator: ".").last.map(String.init) ?? "socket"
        var prefix = Substring(name.dropLast(suffix.count + 1))
        if let at = prefix.firstIndex(of: "@") { prefix = prefix[..<at] }
        if prefix.last == "-" { prefix = prefix.dropLast() }
        while let dash = prefix.lastIndex(of: "-") {
            prefix = prefix[..<dash]
            if !prefix.isEmpty { names.append("\(prefix)-.\(suffix)") }
        }
        names.append(suffix)
        return names.map { $0 + ".d" }
    }

    /// "a@.socket" of "a@b.socket"; nil for a unit without an instance.
    static func template(of name: String) -> String? {
        guard let at = name.firstIndex(of: "@"), let dot = name.lastIndex(of: "."), at < dot,
            name.index(after: at) < dot
        else { return nil }
        return String(name[...at]) + String(name[dot...])
    }
}

/// Folders, as far as unit files need them.
enum Folder {
    /// The names in a folder, without "." and ".."; none if it cannot be read.
    static func names(_ path: String) -> [String] {
        guard let folder = unsafe opendir(path) else { return [] }
        defer { unsafe closedir(folder) }
        var names: [String] = []
        while let entry = unsafe readdir(folder) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) {
                    unsafe String(cString: $0)
                }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    static func exists(_ path: String) -> Bool {
        var status = stat()
        return unsafe lstat(path, &status) == 0
    }

    /// True exactly when a unit file or drop-in says that there is none: a link to /dev/null, or
    /// an empty file.
    static func isMask(_ path: String) -> Bool {
        var status = stat()
        guard unsafe stat(path, &status) == 0 else { return true }  // a link to nowhere
        return status.st_mode & S_IFMT == S_IFCHR
            || (status.st_mode & S_IFMT == S_IFREG && status.st_size == 0)
    }
}
