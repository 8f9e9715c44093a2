import Testing

@testable import Proxy

@Suite struct ProcessUnitTests {
    @Test(
        "The unit is found behind its slices, in the hierarchy that is systemd's",
        arguments: [
            ("0::/system.slice/web.service\n", "web.service", false),
            ("0::/system.slice/system-web.slice/web@a.service\n", "web@a.service", false),
            ("0::/system.slice/web.service/payload/inner\n", "web.service", false),
            (
                "9:name=systemd:/\n1:cpu:/other\n0::/system.slice/web.service\n", "web.service",
                false
            ),
            ("4:pids:/x\n1:name=systemd:/system.slice/web.service\n0::/\n", "web.service", false),
            ("0::/system.slice/_cpu.service\n", "cpu.service", false),
            ("0::/system.slice/a:b.service\n", "a:b.service", false),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n",
                "web.service", true
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service\n", "user@1000.service", false
            ),
            ("0::/user.slice/user-1000.slice/session-1.scope\n", "session-1.scope", false),
        ])
    func found(cgroups: String, name: String, isUser: Bool) {
        #expect(ProcessUnit(cgroups: cgroups) == ProcessUnit(name: name, isUser: isUser))
    }

    @Test(
        "Outside of systemd there is none",
        arguments: ["", "0::/\n", "0::/docker/0123abc\n", "5:cpu:/system.slice/web.service\n", "x"])
    func none(cgroups: String) {
        #expect(ProcessUnit(cgroups: cgroups) == nil)
    }
}
