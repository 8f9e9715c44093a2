# make            build bin/proxy           make run      try it: builds, starts it before an echo
# make test       all checks, no systemd    make lint     format and style
# make bench      compare with the peers    make deb      the Debian package, into dist/
# make setup      what a fresh Debian needs for all of these

SWIFT ?= swift
PREFIX ?= /usr/local
BUILD := $(SWIFT) build -c release --static-swift-stdlib --product proxy

.PHONY: all release
all: release

release:
	$(BUILD)
	@mkdir -p bin
	install -m 755 -s "$$($(BUILD) --show-bin-path)/proxy" bin/proxy
