# Every target works on a fresh Debian machine as root with a Rust toolchain.
#   make demo    the whole platform on this host, with a Rails and a Sinatra app; left running
#   make down    stops it, containers included
#   make test    lint, then every test; what .ci/run calls
#   make test-vm the kernel tests alone, in virtual machines with Debian's kernels

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

ASSETS := $(CURDIR)/.mogok
# Programs of the tests and of the demo.
DEBUG := target/debug
RELEASE := target/release
PACKAGES := mmdebstrap nginx-light nftables iproute2 e2fsprogs zstd git curl ca-certificates busybox-static gcc libc6-dev procps qemu-system-x86
PEERS := runc lxc bubblewrap strace
CARGO_DENY := 0.20.2
# Of each fuzz target.
SECONDS ?= 60

export MOGOK_ASSETS := $(ASSETS)

# Lives of `make soak`.
CYCLES ?= 5000

.PHONY: setup build release images lint test test-vm mutations faults soak security-report demo down bench \
  bench-container bench-vm bench-logs bench-deploy bench-density fuzz

setup:
	@tests/setup.sh $(PACKAGES)

build:
	cargo build --workspace --bins
	tests/static-shim.sh dev $(DEBUG)/protocol-1 --features protocol-1
	tests/static-shim.sh dev $(DEBUG)
	tests/static-probe.sh $(DEBUG)

release:
	cargo build --workspace --exclude mogok-tests --exclude mogok-probe --bins --release
	tests/static-shim.sh release $(RELEASE)

images: build
	@tests/images.sh $(DEBUG) $(ASSETS)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny --version $(CARGO_DENY)
	cargo deny --log-level error check bans licenses sources

test: setup lint images
	@tests/run.sh

test-vm: setup build
	cargo run --quiet -p mogok-tests --bin mogok-vm -- $(ASSETS)

# Which test misses a limit that is not written; writes docs/mutations.md.
mutations: setup build
	cargo run --quiet -p mogok-tests --bin mogok-vm -- $(ASSETS) --suite trixie --mutations docs/mutations.md

security-report: setup build
	@tests/setup.sh $(PEERS)
	MOGOK_BIN_DIR=$(CURDIR)/$(DEBUG) $(DEBUG)/security-report

# The tests that make steps fail, with an agent and a shim built for that.
faults:
	tests/static-shim.sh dev $(DEBUG)/failpoints --features failpoints
	cargo test -p mogok-agent --features failpoints --test node faults -- --nocapture

soak: build
	CYCLES=$(CYCLES) cargo test -p mogok-agent --test node soak -- --nocapture

demo: setup release
	@tests/images.sh $(RELEASE) $(ASSETS)
	@tests/demo.sh up $(RELEASE) $(ASSETS)

down:
	@tests/demo.sh down $(RELEASE) $(ASSETS)

bench: bench-container bench-vm bench-density bench-logs bench-deploy

bench-container: setup release
	@tests/setup.sh $(PEERS)
	cargo bench -p mogok-tests --bench container

# Beside crun, in a machine with cgroup v2 that is emulated: only the ratios mean something.
bench-vm: setup
	tests/static-shim.sh release $(RELEASE)
	cargo run --quiet -p mogok-tests --bin mogok-vm -- $(ASSETS) --suite trixie --bench

# A thousand containers: about three minutes, and 2 GiB of memory.
bench-density: setup release
	MOGOK_BIN_DIR=$(CURDIR)/$(RELEASE) cargo bench --profile dev -p mogok-tests --bench density

# The shim is the release one; the measuring program itself need not be.
bench-logs: setup
	tests/static-shim.sh release $(RELEASE)
	MOGOK_BIN_DIR=$(CURDIR)/$(RELEASE) cargo bench --profile dev -p mogok-tests --bench logs

# Each fuzz target for a while; what it finds is in tests/fuzz/artifacts.
fuzz: setup
	tests/fuzz.sh $(SECONDS) $(TARGETS)

bench-deploy: setup release
	@tests/images.sh $(RELEASE) $(ASSETS)
	MOGOK_BIN_DIR=$(CURDIR)/$(RELEASE) cargo bench -p mogok-tests --bench deploy
