# make            build bin/proxy              make run           try it, before an echo of its own
# make test       every check but systemd's    make check-system  the package in a booted systemd
# make lint       format and style             make format        put the format right
# make bench      compare with the peers       make deb           the Debian package, into dist/
# make bench-restart  how long clients wait at a restart and at a crash
# make sanitize   the tests under sanitizers   make fuzz          each parser, for a minute
# make setup      what a fresh Debian needs for all of these

SWIFT ?= swift
PREFIX ?= /usr/local
# The linker's flags are for a small process: packed relocations, nothing exported, and the C++
# library linked in, so that fewer pages are touched at start.
LIBRARIES := .build/static-libraries
FLAGS := -c release --static-swift-stdlib --product proxy $(if $(JOBS),--jobs $(JOBS)) \
    -Xswiftc -use-ld=lld -Xswiftc -L$(CURDIR)/$(LIBRARIES) -Xlinker -z -Xlinker \
    pack-relative-relocs -Xlinker -z -Xlinker now -Xlinker --no-export-dynamic -Xlinker --icf=all
SOURCES := Package.swift Sources Tests
PYTEST := ./Tests/run-pytest

# Each tool by the Debian package that has it. Whoever only builds needs the first line.
BUILD_PACKAGES := gcc libc6-dev libstdc++-12-dev libsystemd-dev pkg-config make git
TEST_PACKAGES := python3-pytest curl netcat-openbsd socat procps iproute2 util-linux prometheus \
    nginx-light wrk iperf3 postgresql postgresql-contrib systemd man-db shellcheck
SYSTEM_PACKAGES := mmdebstrap systemd-container zstd debhelper lintian dpkg-dev fakeroot \
    dpkg-repack

.PHONY: all release toolchain setup setup-build setup-test setup-system run test unit-test \
    fault-test store-test client-test lint format check-system deb install bench bench-quick bench-restart bench-setup \
    sanitize fuzz clean

all: release

# The build decides itself what is out of date, so bin/proxy is always asked for.
release: toolchain
	@mkdir -p $(LIBRARIES)
	@ln -sf "$$(gcc -print-file-name=libstdc++.a)" $(LIBRARIES)/
	$(SWIFT) build $(FLAGS)
	@mkdir -p bin
	install -m 755 -s "$$($(SWIFT) build $(FLAGS) --show-bin-path)/proxy" bin/proxy

toolchain:
	@command -v $(SWIFT) >/dev/null || { \
	    echo "error: no $(SWIFT) on PATH: install a Swift 6.3 toolchain (swift.org)" >&2; exit 1; }

setup: setup-build setup-test setup-system bench-setup

setup-build:
	@./packaging/install-missing $(BUILD_PACKAGES)
setup-test: setup-build
	@./packaging/install-missing $(TEST_PACKAGES)
setup-system: setup-test
	@./packaging/install-missing $(SYSTEM_PACKAGES)
bench-setup:
	$(MAKE) -C Benchmarks setup

run: setup-build release
	@./packaging/install-missing socat netcat-openbsd curl
	@./packaging/try bin/proxy

# --- checks

test: setup-test lint release unit-test fault-test client-test

unit-test: toolchain
	$(SWIFT) test --disable-xctest $(if $(JOBS),--jobs $(JOBS))

# Some faults can only be had from a debug build, which is told of them by the environment.
fault-test: toolchain
	$(SWIFT) build $(if $(JOBS),--jobs $(JOBS))
	$(PYTEST) Tests/FaultTests

# The relay's own tests once more, with every connection in a ledger from its first byte.
store-test: release
	PYTHONPATH=Tests/FaultTests $(PYTEST) -p under_store Tests/FaultTests

client-test:
	$(PYTEST) Tests/ClientTests

lint: toolchain
	$(SWIFT) format lint --strict --parallel --recursive $(SOURCES)
	@shellcheck .ci/run packaging/install-missing packaging/try Benchmarks/setup.sh Tests/Fuzz/run.sh \
	    Tests/sanitize Tests/run-pytest

format: toolchain
	$(SWIFT) format --in-place --parallel --recursive $(SOURCES)

sanitize: setup-test
	./Tests/sanitize

fuzz: toolchain
	./Tests/Fuzz/run.sh 60

# Its tests have their own target: the package is built without them.
check-system: setup-system
	DEB_BUILD_OPTIONS="nocheck $(DEB_BUILD_OPTIONS)" $(MAKE) deb
	lintian --allow-root --fail-on error,warning dist/*.deb
	$(PYTEST) Tests/System

bench: release
	$(MAKE) -C Benchmarks bench
bench-quick: release
	$(MAKE) -C Benchmarks bench-quick
bench-restart: setup-system
	DEB_BUILD_OPTIONS="nocheck $(DEB_BUILD_OPTIONS)" $(MAKE) deb
	$(MAKE) -C Benchmarks bench-restart

# --- packages

# PREFIX=/usr is where systemd and journald look for units and catalogs.
UNITS := $(DESTDIR)$(PREFIX)/lib/systemd/system
CATALOG := $(DESTDIR)$(PREFIX)/lib/systemd/catalog
SHARE := $(DESTDIR)$(PREFIX)/share

install:
	@test -x bin/proxy || { echo "error: bin/proxy is missing: run make first" >&2; exit 1; }
	install -Dm 755 bin/proxy $(DESTDIR)$(PREFIX)/bin/tcp-metrics-proxy
	install -Dm 644 -t $(UNITS) packaging/systemd/tcp-metrics-proxy.service \
	    packaging/systemd/tcp-metrics-proxy.socket packaging/systemd/tcp-metrics-proxy-metrics.socket
	install -Dm 644 -t $(CATALOG) packaging/systemd/tcp-metrics-proxy.catalog
	install -Dm 644 -t $(SHARE)/man/man1 packaging/man/tcp-metrics-proxy.1
	install -Dm 644 -t $(SHARE)/man/man8 packaging/man/tcp-metrics-proxy.service.8
	@set -e; proxy=$(DESTDIR)$(PREFIX)/bin/tcp-metrics-proxy; \
	completion() { install -d "$$(dirname "$$2")"; "$$proxy" --generate-completion-script $$1 >"$$2"; }; \
	completion bash $(SHARE)/bash-completion/completions/tcp-metrics-proxy; \
	completion zsh $(SHARE)/zsh/vendor-completions/_tcp-metrics-proxy; \
	completion fish $(SHARE)/fish/vendor_completions.d/tcp-metrics-proxy.fish

deb: setup-system
	dpkg-buildpackage --build=binary --no-sign
	@mkdir -p dist
	mv ../tcp-metrics-proxy_*.deb ../tcp-metrics-proxy_*.buildinfo ../tcp-metrics-proxy_*.changes dist/

clean:
	rm -rf .build .build-* bin dist
	$(MAKE) -C Benchmarks clean
