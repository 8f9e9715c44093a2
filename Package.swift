// swift-tools-version: 6.2
import PackageDescription

/// Every target of ours is held to the same rules: unsafe code is marked, no warning passes.
let strict: [SwiftSetting] = [
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
]

let package = Package(
    name: "tcp-metrics-proxy",
    products: [.executable(name: "proxy", targets: ["proxy"])],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    ],
    targets: [
        .target(
            name: "CLinux",
            // In a header _GNU_SOURCE would clash with the way Swift imports Glibc.
            cSettings: [.define("_GNU_SOURCE"), .unsafeFlags(["-Wall", "-Wextra", "-Werror"])]),
        .systemLibrary(name: "CSystemd", pkgConfig: "libsystemd"),
        .target(
            name: "Proxy",
            dependencies: [
                "CLinux",
                "CSystemd",
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
            ],
            swiftSettings: strict),
        .executableTarget(
            name: "proxy",
            dependencies: [
                "Proxy",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .testTarget(name: "ProxyTests", dependencies: ["Proxy"], swiftSettings: strict),
    ]
)
