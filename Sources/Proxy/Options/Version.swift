/// The version that `--version`, the log and `build_info` name; debian/changelog follows it.
public let proxyVersion = "0.1.0"
