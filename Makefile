# `make help` lists what there is. Every target works in a fresh clone and may be run again.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build tools demo test bench bench-affinity bench-decision bench-queue bench-simulate profile check fmt fmt-check clippy doc tables pictures deny shellcheck fuzz ci clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

build: ## release binary in target/release
	cargo build --locked --release

tools: ## install the daemons and clients that the tests and the demo run (root, Debian)
	tests/tools/program --all

demo: ## three real daemons behind one address, three builds, then stay until Ctrl-C (ONCE=1: end)
	@demo/run

test: ## every test, with a sum at the end; those with real daemons need root
	@tests/run

bench: ## measurements against real daemons
	benches/run

bench-affinity: ## 30 projects built again and again by each policy, on real daemons (ARGS=--quick)
	cargo bench --locked --bench affinity -- $(ARGS)

bench-decision: ## what one choice of a backend costs, for 1 to 1000 backends
	cargo bench --locked --bench decision

bench-queue: ## how builds wait for a slot, simulated and with the proxy itself (ARGS=--quick)
	cargo bench --locked --bench queue -- $(ARGS)

bench-simulate: ## fleets of 10 to 1000 daemons, simulated with the real policies (ARGS=--quick)
	cargo bench --locked --bench simulate -- $(ARGS)

profile: ## make anew the profile that release builds are optimised by (root, a quarter of an hour)
	pgo/train

check: fmt-check clippy doc tables deny shellcheck ## what a change must pass besides the tests

fmt: ## format the code
	cargo fmt --all

fmt-check: ## is the code formatted?
	cargo fmt --all --check

clippy: ## lints, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

doc: ## API documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

tables: ## write the tables of flags, metrics and chart values anew, from the code
	BUILDKIT_LB_UPDATE_TABLES=1 cargo test --quiet --locked --test docs the_tables_of_the_pages

pictures: ## take the pictures of the page in the documentation anew, in a real browser (root)
	BUILDKIT_LB_UPDATE_PICTURES=1 cargo test --quiet --locked --test page in_a_real_browser

fuzz: ## random inputs for every parser of bytes from outside (CASES=1000000: as many of each)
	.ci/fuzz

deny: ## licences, sources, duplicates and known vulnerabilities of the dependencies
	.ci/deny

shellcheck: ## lint every shell script
	.ci/shellcheck

ci: ## all of it, phase by phase with times, as CI runs it
	.ci/run

clean: ## remove what builds left in the clone
	cargo clean
