// What a .socket unit says to systemd, as far as a route depends on it (systemd.socket(5)).

/// Settings of `[Socket]`, as they are written: specifiers such as `%t` are not expanded.
public struct SocketSettings: Sendable, Equatable {
    /// All `Listen…=` in order, with what follows the last reset of any of them.
    public var listeners: [Assignment] = []
    /// The unit that is started, nil for the service of the socket's own name.
    public var service: Assignment?
    /// The name under which the descriptors are passed, nil for the unit's own name.
    public var fileDescriptorName: Assignment?
    /// A boolean; nil is "no".
    public var accept: Assignment?
    /// A time span; nil is systemd's default, 2 s.
    public var triggerLimitInterval: Assignment?

    /// TCP ports and addresses, and unix stream sockets.
    public var listenStream: [Assignment] { listeners.filter { $0.key == "ListenStream" } }
    /// UDP and unix datagram sockets, which cannot be relayed.
    public var listenDatagram: [Assignment] { listeners.filter { $0.key == "ListenDatagram" } }
    /// Unix sockets that keep the bounds of messages, which cannot be relayed.
    public var listenSequentialPacket: [Assignment] {
        listeners.filter { $0.key == "ListenSequentialPacket" }
    }

    /// Reads the section of a unit.
    public init(_ unit: MergedUnit) {
        for assignment in unit.assignments where assignment.section == "Socket" {
            guard SocketSettings.listenKeys.contains(assignment.key) else { continue }
            if assignment.value.isEmpty {
                // In systemd any empty Listen…= takes back those of every kind.
                listeners.removeAll()
            } else {
                listeners.append(assignment)
            }
        }
        service = unit.value("Socket", "Service")
        fileDescriptorName = unit.value("Socket", "FileDescriptorName")
        accept = unit.value("Socket", "Accept")
        triggerLimitInterval = unit.value("Socket", "TriggerLimitIntervalSec")
    }

    private static let listenKeys: Set = [
        "ListenStream", "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial",
        "ListenNetlink", "ListenMessageQueue", "ListenUSBFunction",
    ]
}
