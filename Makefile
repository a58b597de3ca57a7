# Every target builds the virtual environment it needs; only Python >= 3.11 and make are asked for.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO   ?= results/spiral-demo
BENCH  ?= full
EXPERIMENTS ?= memory adaptive classify flow series gradients stiff augment physics uneven

.PHONY: demo test test-all test-julia bench experiments hopper docs lint clean

demo: $(VENV)/.core
	$(BIN)/pynode experiment spiral --scale demo --out $(DEMO) --resume

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow"

test-julia: $(VENV)/.test
	$(BIN)/python -m pytest tests/julia -m julia -rs
	$(BIN)/pynode julia test

# Side by side with the peers, in an environment of its own; BENCH=quick ends within 5 minutes.
bench: .venv-bench/.ready
	.venv-bench/bin/python -m benchmarks.run $(if $(filter quick,$(BENCH)),--quick) $(BENCHARGS)

.venv-bench/.ready: pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint constraints.txt --constraint benchmarks/constraints.txt --editable '.[bench]'
	@touch $@

# All experiments but the spiral (make demo) at demo scale, into docs/; tables that pages show are renewed from them.
experiments: $(VENV)/.experiments
	for name in $(EXPERIMENTS); do \
	  $(BIN)/pynode experiment $$name --scale demo --out docs/$$name || exit 1; \
	done
	$(BIN)/python docs/refresh.py

# The series experiment on MuJoCo's hopper, into docs/hopper: 6 minutes, and dm_control.
hopper: $(VENV)/.experiments
	$(PIP) --editable '.[hopper]'
	$(BIN)/pynode experiment series --data hopper --scale demo --out docs/hopper

# The site, in site/: open site/index.html.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --quiet

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/julia/check_syntax.py

clean:
	rm -rf $(VENV) .venv-bench site .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pynode needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.experiments: $(VENV)/.core
	$(PIP) --editable '.[experiments]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev]'
	@touch $@
