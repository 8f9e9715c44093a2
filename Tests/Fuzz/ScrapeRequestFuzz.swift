// fuzz-sources: Sources/Proxy/Metrics/ScrapeRequest.swift Sources/Proxy/Metrics/Exposition.swift Sources/Proxy/Options
// What a scraper sends: request target and Accept headers. And what a label may hold.

func fuzz(_ bytes: [UInt8]) {
    let lines = bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        .map { String(decoding: $0, as: UTF8.self) }
    let target = lines.first ?? ""
    let accept = Array(lines.dropFirst())
    let reply = ScrapeReply.to(method: "GET", target: target, accept: accept)
    require(
        ScrapeReply.to(method: "HEAD", target: target, accept: accept) == reply,
        "HEAD is answered unlike GET")
    require(
        ScrapeReply.to(method: "POST", target: target, accept: accept) == .methodNotAllowed,
        "POST is allowed")
    if !target.hasPrefix("/metrics") && !target.contains("://") {
        if case .page = reply { require(false, "a page for \(target)") }
    }

    var page = Exposition(.prometheusText)
    page.gauge("x", help: target) { $0.sample(["label": target], 1) }
    let written = page.finished().utf8.filter { $0 == UInt8(ascii: "\n") }.count
    require(written == 3, "a label broke the page into \(written) lines")
}
