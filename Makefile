# `make help` lists the targets; README.md explains them.
#
# Debian's Rust toolchain builds everything: a rustup that comes first in PATH lacks the core
# library's source and cannot download it without a network.

export CARGO := /usr/bin/cargo
# The kernel is built with its own core library, which is an unstable feature.
export RUSTC_BOOTSTRAP := 1
export CARGO_TARGET_DIR := $(CURDIR)/target
export PATH := /usr/bin:/bin:/usr/sbin:/sbin:$(PATH)

# The guest that `make run` serves, and the port of this machine that leads to it.
APP ?= http
PORT ?= 8080
# Where the guest's sockets live: xensock (in dom0) or netfront (in the guest).
STACK ?= xensock
# The seconds for each fuzz target, and one target instead of all.
FUZZ_SECONDS ?= 60
TARGET ?=
# The rounds of `make bench`, the MiB of its transfers, and its connections that stay open, of which
# ten thousand take minutes. The order of IDC's rings. Some parts (sockets, tls, idc) instead of
# all, some rivals, or both, such as tls,xensock.
ROUNDS ?= 3
MB ?= 192
IDLE ?= 1000
ORDER ?= 5
ONLY ?=
# How often `make soak` kills the backend and saves the guest.
SOAK_ROUNDS ?= 100
# The preemptions in a model of `make loom`. Each one more takes ten times longer.
LOOM_MAX_PREEMPTIONS ?= 3
# Options for the lab, such as LAB="--memory 8192 --gdb 1234".
LAB ?=

# The version of all crates.
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: help setup kernel examples xensockd deb liar lab disk run shell test programs bench soak \
	tls debian fuzz loom clean

help:
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | while IFS='	' read -r name text; do \
		printf 'make %-9s %s\n' "$$name" "$$text"; \
	done

# Every target runs cargo, which decides what is up to date.
setup: ## installs missing Debian packages
	@.ci/setup

kernel: setup ## builds the guest: target/xensock-kernel
	cd kernel && $(CARGO) build --release
	$(call stripped,x86_64-xen-pvh/release/xensock-kernel,xensock-kernel,--strip-all)

tls: setup ## builds the guest with TLS: target/xensock-kernel-tls
	cd kernel && $(CARGO) build --release --features tls --bin xensock-kernel-tls
	$(call stripped,x86_64-xen-pvh/release/xensock-kernel-tls,xensock-kernel-tls,--strip-all)

examples: setup ## builds the images of kernel/examples, or one: EXAMPLE=hello
	cd kernel && $(CARGO) build --release $(if $(EXAMPLE),--example $(EXAMPLE),--examples)

xensockd: setup ## builds the backend daemon: target/xensockd, and target/xensockctl
	$(CARGO) build -p xensockd --profile host
	$(call stripped,host/xensockctl,xensockctl,--strip-debug)
	$(call stripped,host/xensockd,xensockd,--strip-debug)

deb: xensockd ## builds the daemon's Debian package, in target/debian
	$(CARGO) build -p xensockd --example manual --profile host
	xensockd/dist/debian/build target '$(VERSION)' target/host/examples/manual

liar: setup ## builds a backend that tests guests with invalid answers
	$(CARGO) build -p xensockd --example liar --profile host
	@strip --strip-debug target/host/examples/liar

lab: setup ## builds the lab: target/lab; `target/lab help` explains it
	$(CARGO) build -p lab
	$(call stripped,debug/lab,lab,--strip-debug)

disk: setup ## builds the programs for APP=disk: a server of a file, and a guest
	$(CARGO) build -p xen-linux --example disk --profile host
	cd kernel && $(CARGO) build --release --example disk

run: $(filter disk,$(APP))
run: kernel deb lab ## serves a guest: APP=http|echo|disk PORT=8080 STACK=xensock|netfront
	@target/lab run --app '$(APP)' --port '$(PORT)' --stack '$(STACK)' $(LAB)

shell: kernel deb lab ## boots Xen and opens a shell in dom0
	@target/lab shell $(LAB)

test: ## runs all checks and tests, or those in real Xen whose names contain TEST=
	@.ci/setup test
	@.ci/check '$(TEST)'

programs: setup ## builds the benchmarks' client, and the apps as a Linux program
	$(CARGO) build -p xen-tests --example client --example datagrams -p apps --example linux \
		--features apps/tls -p xen-linux --example idc --example disk --profile host
	@strip --strip-debug $(addprefix target/host/examples/,client datagrams linux idc disk)

bench: kernel tls deb programs ## XenSock and IDC beside others: ROUNDS=3 MB=192 IDLE=1000 ONLY=idc
	cd kernel && $(CARGO) build --release --example hello --example idc
	$(call stripped,x86_64-xen-pvh/release/examples/hello,hello,--strip-all)
	@mkdir -p target/bench
	$(CARGO) bench -p xensock --features testing --bench pair --profile host \
		>target/bench/pair.txt
	@cat target/bench/pair.txt
	$(CARGO) bench -p xen-idc --bench pair --profile host
	$(CARGO) bench -p xensockd --bench threads --profile host
	ROUNDS='$(ROUNDS)' MB='$(MB)' IDLE='$(IDLE)' ORDER='$(ORDER)' ONLY='$(ONLY)' \
		$(CARGO) bench -p xen-tests --profile host

soak: setup ## kills ends and the backend, saves guests under load: SOAK_ROUNDS=100
	SOAK_ROUNDS='$(SOAK_ROUNDS)' $(CARGO) test -p xen-idc under_load
	SOAK_ROUNDS='$(SOAK_ROUNDS)' .ci/check under_load

debian: kernel deb ## tries the package in a Debian dom0 with systemd, which takes ten minutes
	@.ci/setup debian
	@tests/debian/run

fuzz: setup ## tries hostile inputs by libFuzzer: FUZZ_SECONDS=60 TARGET=one
	@.ci/fuzz '$(FUZZ_SECONDS)' $(TARGET)

loom: setup ## models rings, events and grants in all interleavings: LOOM_MAX_PREEMPTIONS=3
	LOOM_MAX_PREEMPTIONS=$(LOOM_MAX_PREEMPTIONS) \
		$(CARGO) test --profile host -p xen-guest --features loom --test loom

# dom0's packages stay: nothing else needs the network.
clean: ## removes what was built, except dom0's packages
	@if [ -x target/lab ]; then target/lab down >/dev/null 2>&1 || true; fi
	@if [ -d target ]; then \
		find target -mindepth 1 -maxdepth 1 ! -name lab-cache -exec rm -rf {} +; \
	fi

# Puts a program of a build folder into target/, stripped. A running one is not overwritten.
define stripped
	@strip $(3) -o target/$(2).new target/$(1)
	@mv target/$(2).new target/$(2)
endef
