PYTHON ?= python3
VENV ?= .venv
# The release is fixed, because plain `torch` may resolve to a newer build that also installs
# several gigabytes of CUDA packages. To use another one: `make TORCH="torch==2.9.1" ...`.
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

demo: $(installed) ## train Erwin on cosmology; pass options with ARGS="--help"
	@echo "demo: predicting the velocities of dark-matter haloes"
	@$(python) examples/cosmology_velocities.py $(ARGS)

# One process per core, up to four, because most tests use one core. Waiting threads go to
# sleep, so that they do not take cores from the other processes (docs/cpu.md).
pytest := GOMP_SPINCOUNT=1000 $(python) -m pytest --ignore=tests/interop \
	--numprocesses=auto --maxprocesses=4 --dist=worksteal

test: $(installed) ## run the tests and the doctests; pass options with ARGS="-k tree"
	@echo "test: running all tests but the slow ones"
	@$(pytest) -m "not slow" $(ARGS)

test-slow: $(installed) ## run the tests that 'test' leaves out
	@echo "test-slow: running the slow tests"
	@$(pytest) -m slow $(ARGS)

test-all: $(installed) ## run all tests, including the slow ones
	@echo "test-all: running all tests"
	@$(pytest) $(ARGS)

lint: $(installed) ## check style and types
	@echo "lint: ruff and mypy"
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

# These scripts build the library with other compilers and options.
with_cmake := PATH="$(abspath $(VENV))/bin:$$PATH" PYTHON=$(abspath $(VENV))/bin/python

fuzz: $(installed) ## try random calls; pass options with ARGS="--seed 1 --cases 100000"
	@$(with_cmake) tools/fuzz.sh $(ARGS)

sanitize: $(installed) ## run fuzzers and native tests under sanitizers
	@$(with_cmake) tools/sanitize.sh

portability: $(installed) ## build with other compilers, compare results bit by bit
	@$(with_cmake) tools/portability.sh

# torch-cluster is not installed for the other targets: with it, importing torch_geometric
# causes a warning, and a warning makes a test fail. This target allows that warning. The
# second try is for the case that pip's cache has a wheel compiled against another PyTorch.
test-cluster: $(installed) ## compare with torch-cluster, which takes minutes to compile
	@$(cluster_import) 2>/dev/null \
	|| { echo "test-cluster: compiling torch-cluster and torch-scatter (several minutes)"; \
	$(pip) install setuptools wheel && $(cluster_install); }
	@$(cluster_import) 2>/dev/null \
	|| { $(cluster_install) --no-cache-dir && $(cluster_import); }
	@echo "test-cluster: running the comparison"
	@PYTHONPATH=$(cluster) $(python) -m pytest tests/interop $(ARGS) \
	-W "ignore:'torch-cluster' is no longer necessary:DeprecationWarning"

benchmark: $(installed) ## compare with other packages; ARGS="all" or names, "--quick"
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
