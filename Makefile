PYTHON ?= python3
VENV ?= .venv
# One named release: a plain `torch` may resolve to a newer build that brings several
# gigabytes of CUDA packages along. Another build: `make TORCH="torch==2.9.1" ...`.
TORCH ?= torch==2.13.0
ARGS ?=

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check --quiet --quiet
installed := $(VENV)/.installed
cluster := $(abspath $(VENV))/cluster
cluster_import := PYTHONPATH=$(cluster) $(python) -c "import torch_cluster, torch_scatter"
cluster_install := $(pip) install --upgrade --target $(cluster) --no-build-isolation \
	--no-deps torch-cluster torch-scatter
sources := pyproject.toml CMakeLists.txt $(shell find csrc)

.PHONY: help setup demo test test-slow test-all lint fuzz sanitize portability test-cluster benchmark clean

help: ## list the targets
	@awk -F ":.*## " '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: $(installed) ## create the environment and build the package

demo: $(installed) ## train Erwin on cosmology; options by ARGS="--help"
	@echo "demo: predicting the velocities of dark-matter haloes"
	@$(python) examples/cosmology_velocities.py $(ARGS)

# A process for each core, up to four: most tests use one. Threads that wait leave the other
# processes their cores (docs/cpu.md).
pytest := GOMP_SPINCOUNT=1000 $(python) -m pytest --ignore=tests/interop \
	--numprocesses=auto --maxprocesses=4 --dist=worksteal

test: $(installed) ## run the tests and the doctests; options by ARGS="-k tree"
	@echo "test: running all tests but the slow ones"
	@$(pytest) -m "not slow" $(ARGS)

test-slow: $(installed) ## run the tests that 'test' leaves out
	@echo "test-slow: running the slow tests"
	@$(pytest) -m slow $(ARGS)

test-all: $(installed) ## run all tests, the slow ones too
	@echo "test-all: running all tests"
	@$(pytest) $(ARGS)

lint: $(installed) ## check style and types
	@echo "lint: ruff and mypy"
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

# The scripts build the library in other ways.
with_cmake := PATH="$(abspath $(VENV))/bin:$$PATH" PYTHON=$(abspath $(VENV))/bin/python

fuzz: $(installed) ## try random calls; options by ARGS="--seed 1 --cases 100000"
	@$(with_cmake) tools/fuzz.sh $(ARGS)

sanitize: $(installed) ## run fuzzers and native tests under sanitizers
	@$(with_cmake) tools/sanitize.sh

portability: $(installed) ## build by other compilers, compare bit by bit
	@$(with_cmake) tools/portability.sh

# torch-cluster stays out of the environment of the other targets, because importing
# torch_geometric beside it warns and a warning fails a test; here that one may pass.
# The second try is for a wheel in pip's cache that was compiled against another PyTorch.
test-cluster: $(installed) ## compare with torch-cluster, which takes minutes to compile
	@$(cluster_import) 2>/dev/null \
	|| { echo "test-cluster: compiling torch-cluster and torch-scatter (several minutes)"; \
	$(pip) install setuptools wheel && $(cluster_install); }
	@$(cluster_import) 2>/dev/null \
	|| { $(cluster_install) --no-cache-dir && $(cluster_import); }
	@echo "test-cluster: running the comparison"
	@PYTHONPATH=$(cluster) $(python) -m pytest tests/interop $(ARGS) \
	-W "ignore:'torch-cluster' is no longer necessary:DeprecationWarning"

benchmark: $(installed) ## measure against other packages; ARGS="all" or names, "--quick"
	@$(python) -c "import balltree, matplotlib, scipy, sklearn" 2>/dev/null \
	|| { echo "benchmark: installing what is compared with"; \
	$(pip) install --editable ".[benchmark]"; }
	@$(python) -m benchmark $(ARGS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	@echo "setup: creating the environment $(VENV)"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" \
	|| { echo "Python 3.10 or newer is needed; name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null \
	|| { echo "Python's venv is missing (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(installed): $(sources) | $(VENV)/bin/pip
	@$(python) -c "import torch" 2>/dev/null \
	|| { echo "setup: installing $(TORCH)"; $(pip) install "$(TORCH)"; }
	@echo "setup: building and installing the package"
	@$(pip) install --editable ".[test]"
	@touch $@
