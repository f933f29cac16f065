# `make help` lists the targets; README.md explains them.
#
# Debian's Rust toolchain builds everything: a rustup that comes first in PATH lacks the core library's
# source and cannot download it without a network.

export CARGO := /usr/bin/cargo
# The kernel is built with its own core library, which is an unstable feature.
export RUSTC_BOOTSTRAP := 1
export CARGO_TARGET_DIR := $(CURDIR)/target
export PATH := /usr/bin:/bin:/usr/sbin:/sbin:$(PATH)

# The guest that `make run` serves, and the port of this machine that leads to it.
APP ?= http
PORT ?= 8080
# Where the guest's sockets live: in dom0, by xensock, or in itself, by netfront.
STACK ?= xensock
# How long each of the fuzzer's targets takes, and which; all of them by default.
FUZZ_SECONDS ?= 60
TARGET ?=
# How often `make soak` kills the backend, and saves the guest.
SOAK_ROUNDS ?= 100
# How often a model's threads are interrupted where they need not wait. Each one more takes ten times longer.
LOOM_MAX_PREEMPTIONS ?= 3
# Options for the lab, such as LAB="--memory 8192 --gdb 1234".
LAB ?=

.DEFAULT_GOAL := help
.PHONY: help setup kernel examples xensockd liar lab run shell test bench soak fuzz loom clean

help:
	@echo 'make run         boots Xen and serves a guest: APP=http or echo, PORT=8080, STACK=xensock or netfront'
	@echo 'make shell       boots Xen and gives a prompt in dom0'
	@echo 'make test        checks, host tests, then tests in real Xen'
	@echo 'make test TEST=… only the tests in real Xen whose names contain this'
	@echo 'make bench       the rings against memcpy; how soon a guest serves; both stacks side by side'
	@echo 'make soak        the backend killed, and the guest saved, under load again and again: SOAK_ROUNDS=100'
	@echo 'make fuzz        hostile inputs by libFuzzer: FUZZ_SECONDS=60 each, TARGET=one'
	@echo 'make loom        rings, events and grants in all orders of their accesses: LOOM_MAX_PREEMPTIONS=3'
	@echo 'make kernel      builds the guest: target/xensock-kernel'
	@echo 'make examples    builds the images of kernel/examples'
	@echo 'make xensockd    builds the backend daemon: target/xensockd'
	@echo 'make lab         builds the lab: target/lab; `target/lab help` tells more'
	@echo 'make setup       installs what is missing from Debian'
	@echo 'make clean       removes all that was built, but for dom0'\''s packages'

# Each prerequisite is up to date or not by cargo's own judgement, so all of them are asked always.
setup:
	@.ci/setup

kernel: setup
	cd kernel && $(CARGO) build --release
	@strip -o target/xensock-kernel.new target/x86_64-xen-pvh/release/xensock-kernel
	@mv target/xensock-kernel.new target/xensock-kernel

# Guests with a program of their own, which tests boot.
examples: setup
	cd kernel && $(CARGO) build --release --examples

xensockd: setup
	$(CARGO) build -p xensockd --profile host
	@strip --strip-debug -o target/xensockd.new target/host/xensockd
	@mv target/xensockd.new target/xensockd

# A backend for tests of guests: it lies.
liar: setup
	$(CARGO) build -p xensockd --example liar --profile host
	@strip --strip-debug target/host/examples/liar

lab: setup
	$(CARGO) build -p lab --bin lab --profile host
	@strip --strip-debug -o target/lab.new target/host/lab
	@mv target/lab.new target/lab

run: kernel xensockd lab
	@target/lab run --app '$(APP)' --port '$(PORT)' --stack '$(STACK)' $(LAB)

shell: kernel xensockd lab
	@target/lab shell $(LAB)

test: setup
	@.ci/check '$(TEST)'

bench: kernel xensockd
	$(CARGO) build -p xen-tests --example client --profile host
	@strip --strip-debug target/host/examples/client
	$(CARGO) bench -p xensock --features testing --bench pair
	$(CARGO) bench -p xen-tests

fuzz: setup
	@.ci/fuzz '$(FUZZ_SECONDS)' $(TARGET)

soak: setup
	SOAK_ROUNDS='$(SOAK_ROUNDS)' .ci/check under_load

loom: setup
	LOOM_MAX_PREEMPTIONS=$(LOOM_MAX_PREEMPTIONS) $(CARGO) test --profile host -p xen-guest --features loom --test loom

# dom0's packages stay: they are the only part that needs the network.
clean:
	@if [ -x target/lab ]; then target/lab down >/dev/null 2>&1 || true; fi
	@if [ -d target ]; then \
		find target -mindepth 1 -maxdepth 1 ! -name lab-cache -exec rm -rf {} +; \
	fi
