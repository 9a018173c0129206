# make run · make test · make bench · make lint: each installs what it needs (tools/setup).

.PHONY: help run build test test-rdma bench lint testbed install-c install-tools clean

help:
	@echo "make run            build, run three examples on 4 ranks, and a short bench"
	@echo "make test           every test: unit, integration, process, documentation, loom"
	@echo "make bench          all_reduce on 2 ranks, 8 B to 16 MiB"
	@echo "make lint           format, clippy, documentation, licences"
	@echo "make testbed        a virtual machine with RDMA and memory that moves, and its self-test"
	@echo "make test-rdma      the tests that need RDMA, in that machine"
	@echo "make install-c      libwindlass, its header and its pkg-config file to PREFIX (/usr/local)"
	@echo "make install-tools  install what is missing, and nothing else"

# cargo may have been installed by tools/setup a moment ago, out of this shell's PATH.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:$(CURDIR)/.tools/bin
RELEASE := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release

PREFIX ?= /usr/local

install-c:
	@tools/setup --rdma
	tools/cargo build --release --locked -p windlass-c
	bindings/c/install $(RELEASE) $(PREFIX)

install-tools:
	@tools/setup --test --lint --deny --rdma

build:
	@tools/setup --rdma
	tools/cargo build --release --locked
	tools/cargo build --release --locked -p windlass-examples --examples

run: build
	$(RELEASE)/windlass run -n 4 -- $(RELEASE)/examples/histogram
	$(RELEASE)/windlass run -n 4 -- $(RELEASE)/examples/move_under_fire --seconds 3
	$(RELEASE)/windlass run -n 4 -- $(RELEASE)/examples/train_digits
	$(RELEASE)/windlass bench all_reduce -n 2 -b 8 -e 1M -f 8

test:
	@tools/setup --test --rdma
	@tools/test

bench: build
	$(RELEASE)/windlass bench all_reduce -n 2 -b 8 -e 16M -f 8

lint:
	@tools/setup --lint --rdma
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	tools/cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p windlass --features planted-fault --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" tools/cargo doc --locked --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check licenses bans sources; else echo "lint: skipped cargo deny: not installed (make install-tools)"; fi

testbed:
	@tools/setup --testbed
	deploy/testbed/run --hosts 2 testbed-selftest

test-rdma:
	@tools/setup --testbed --rdma
	@tools/test-rdma

clean:
	cargo clean
