# One command sets up what it needs: a .venv, the release build of the extension, the Python packages.
#
#   make demo   watch a small GPT learn and write
#   make test   every test
#   make help   the rest
#
# Needs Python >= 3.11, a C compiler and Rust. Written for GNU make >= 3.81, which macOS has.
# Variables: PYTHON=python3.12 picks the interpreter, TORCH_INDEX=https://download.pytorch.org/whl/cpu
# a small torch without CUDA for a new .venv, ARGS="..." goes to the demo, to pytest or to a benchmark.

PYTHON      ?= python3
ARGS        ?=
TORCH_INDEX ?=
# .ci/run sets --locked, so that a Cargo.lock that lags behind fails there and not in mid-edit.
LOCKED      ?=

VENV        := .venv
PY          := $(VENV)/bin/python
# A file here says that the step it names is done.
STAMPS      := $(VENV)/.stamps
# The first time, pip shows what it downloads.
PIP         := $(PY) -m pip --disable-pip-version-check $(if $(wildcard $(STAMPS)/ready),--quiet)
MATURIN     := $(VENV)/bin/maturin
# PyO3 asks this interpreter how to build, whether maturin or clippy drives cargo.
export PYO3_PYTHON := $(CURDIR)/$(VENV)/bin/python

# Two makes at once take turns; where there is no flock (macOS) they must not overlap.
TAKE_TURNS  := $(if $(shell command -v flock 2>/dev/null),flock Makefile,)

# Directories are listed too: their times change when a file is added or removed.
RUST_SOURCES   := Cargo.toml Cargo.lock $(shell find rust)
PYTHON_SOURCES := pyproject.toml README.md LICENSE $(shell find python -not -name '__pycache__' -not -name '*.pyc')

# On Linux the published wheel must run with an old glibc; zig links against it.
ZIG         := $(if $(filter Linux,$(shell uname -s)),--zig --compatibility manylinux2014,)

DEV_WHEELS  := target/wheels/dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help demo test test-explore test-rust test-aarch64 test-asan test-python fuzz bench-decoding bench-native bench-tokenizer build lint lint-rust lint-python wheel wheel-check lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: build ## train a small GPT on English text, then stream a completion
	$(VENV)/bin/gptrs demo $(ARGS)

test: build test-rust test-python ## every Rust and Python test

test-explore: build ## the same, properties on examples that no run had before
	$(MAKE) test-rust PROPTEST_RNG_SEED=$(shell date +%s)
	$(MAKE) test-python ARGS='--hypothesis-profile=explore $(ARGS)'

# Otherwise the same examples each time: what passes here passes elsewhere.
test-rust: export PROPTEST_RNG_SEED ?= 0
test-rust:
	@if cargo nextest --version >/dev/null 2>&1; then \
	    echo 'cargo nextest run' && cargo nextest run $(LOCKED) --status-level fail && \
	    echo 'cargo test --doc' && cargo test $(LOCKED) --quiet --doc; \
	else \
	    echo 'cargo test' && cargo test $(LOCKED) --quiet; \
	fi

# On any machine with qemu: `rustup target add aarch64-unknown-linux-musl` first.
AARCH64 := aarch64-unknown-linux-musl
test-aarch64: build ## the Rust tests as on aarch64 (NEON), in qemu
	@command -v qemu-aarch64-static >/dev/null || { echo 'needs qemu-aarch64-static (qemu-user-static)' >&2; exit 1; }
	@$(PIP) install --no-warn-conflicts --constraint constraints.txt --group wheel
	PYTHON=$(abspath $(PY)) CC_aarch64_unknown_linux_musl=$(CURDIR)/.ci/aarch64-cc \
	    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static PROPTEST_CASES=$(or $(CASES),64) \
	    cargo test $(LOCKED) -p gptrs-core --target $(AARCH64) --target-dir target/aarch64 --lib --test agreement $(ARGS)

# A stable compiler has the flag; RUSTC_BOOTSTRAP lets it be used.
ASAN_TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/host: //p')
test-asan: build ## the Rust tests of the core, with its unsafe code, and AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address PYTHON=$(abspath $(PY)) PROPTEST_CASES=$(or $(CASES),64) \
	    cargo test $(LOCKED) -p gptrs-core --target $(ASAN_TARGET) --target-dir target/asan --lib $(ARGS)

test-python: build
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 $(ARGS)

fuzz: fuzz-encode fuzz-decode fuzz-description fuzz-tokenizer_file fuzz-sampler ## fuzz-NAME or all, a minute each or ARGS=seconds (needs cargo-fuzz)

# RUSTC_BOOTSTRAP lets a stable compiler take the flags that fuzzing needs. Comparisons go untraced:
# most are the slow reference's. It takes quadratic time, so its texts are short.
fuzz-%:
	@command -v cargo-fuzz >/dev/null || { echo 'fuzzing needs cargo-fuzz: cargo install cargo-fuzz' >&2; exit 1; }
	cargo run $(LOCKED) --quiet --manifest-path fuzz/Cargo.toml --example seeds
	RUSTC_BOOTSTRAP=1 cargo fuzz run --no-trace-compares $* -- -max_total_time=$(or $(ARGS),60) \
	    -len_control=0 -max_len=$(if $(filter encode,$*),600,4096) $(addprefix -dict=,$(wildcard fuzz/$*.dict))

lint: lint-rust lint-python ## formatting, clippy, ruff, mypy, stubs, layers

lint-rust: build
	cargo fmt --all --check
	cargo clippy $(LOCKED) --quiet --workspace --all-targets -- -D warnings

lint-python: build
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/stubtest gptrs._core --mypy-config-file .ci/stubtest.ini \
	    --allowlist .ci/stubtest-allowlist.txt --ignore-unused-allowlist
	$(VENV)/bin/lint-imports --no-logo

# Other tokenizers need other versions of what .venv has.
bench-tokenizer: build
	@$(PY) benches/tokenizer_environment.py
	.venv-bench/bin/python benches/bench_tokenizer.py $(ARGS)

# llama.cpp is compiled for ten minutes the first time.
bench-native: build
	@$(PY) benches/native_environment.py
	$(PY) benches/bench_native.py $(ARGS)

bench-decoding: bench-sampling bench-generation ## the sampler, the loop and the engines beside their peers

bench-%: build ## run benches/bench_NAME.py
	$(PY) benches/bench_$(subst -,_,$*).py $(ARGS)

build: ## make .venv ready: the newest gptrs and everything the tests need
	@$(TAKE_TURNS) $(MAKE) --silent --no-print-directory $(STAMPS)/ready

# In order: the tools that build, the extension, gptrs itself, then whatever else is missing.

$(STAMPS)/tools: constraints.txt
	@command -v cargo >/dev/null || { echo 'gptrs needs Rust: https://rustup.rs' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "gptrs needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=..." >&2; exit 1; }
	@echo 'setting up $(VENV)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-warn-conflicts --constraint constraints.txt pip maturin
	@mkdir -p $(STAMPS) && touch $@

$(DEV_WHEELS)/built: $(STAMPS)/tools $(RUST_SOURCES) $(PYTHON_SOURCES)
	@echo 'building gptrs'
	@# The stamp is as old as the start, so that what is edited meanwhile is built next time.
	@rm -rf $(DEV_WHEELS) && mkdir -p $(DEV_WHEELS) && touch $@.started
	@$(MATURIN) build $(LOCKED) --quiet --release --compatibility linux --interpreter $(PY) --out $(DEV_WHEELS)
	@mv $@.started $@

$(STAMPS)/installed: $(DEV_WHEELS)/built
	@$(PIP) install --no-warn-conflicts --no-deps --force-reinstall $(DEV_WHEELS)/*.whl
	@touch $@

$(STAMPS)/ready: $(STAMPS)/installed pyproject.toml constraints.txt
	@if [ -n '$(TORCH_INDEX)' ]; then \
	    $(PIP) install --no-warn-conflicts --no-deps --constraint constraints.txt --index-url $(TORCH_INDEX) torch; fi
	@$(PIP) install --no-warn-conflicts --constraint constraints.txt --group dev 'gptrs[plots,parquet,distributed,search,train]'
	@$(PIP) install --no-warn-conflicts --no-deps --group oracle
	@touch $@

wheel: build ## the wheel to publish, built from the sdist, into dist/
	@rm -rf dist
	@# maturin looks for zig on the PATH; the shared target folder keeps what the sdist's build compiles.
	@# Files of an sdist have one fixed time, by which cargo takes changed ones for those it knows: ours go.
	@rm -rf target/wheel/release/build/gptrs-* target/wheel/release/.fingerprint/gptrs-* \
	    target/wheel/*/release/build/gptrs-* target/wheel/*/release/.fingerprint/gptrs-*
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" CARGO_TARGET_DIR=$(CURDIR)/target/wheel \
	    $(MATURIN) build $(LOCKED) --quiet --release --sdist --interpreter $(PY) --out dist $(ZIG)
	$(PY) .ci/check_wheel.py contents dist

wheel-check: wheel ## install that wheel in an empty environment, outside this tree, and use it
	$(PY) .ci/check_wheel.py install dist --constraint constraints.txt

lock: ## resolve constraints.txt anew (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --upgrade \
	    --no-annotate --custom-compile-command 'make lock' --quiet --output-file constraints.txt

clean: ## remove all that was built, and .venv
	rm -rf target fuzz/target dist $(VENV) .venv-bench .venv-bench-native .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
