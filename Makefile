# Everything a checkout can do. Each target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
OUTER_PATH := $(PATH)
export PATH := $(BIN):$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.collections
export PYTHONPATH := $(CURDIR)
TREE := .collections/ansible_collections/sparkfleet/vllm
ASSETS := $(CURDIR)/.cache

# make demo DEMO=pair|ring3|switch runs that inventory on a fleet of its own.
DEMO := sim
DEMO_FLEET := $(patsubst %-sim,%,demo-$(DEMO))
DEMO_NODES := $(if $(filter sim,$(DEMO)),inventories/sim/nodes.yml,build/demo/$(DEMO).yml)
DEMO_UP_sim := --nodes 2 --topology pair
DEMO_UP_pair := --nodes 2 --topology pair
DEMO_UP_ring3 := --nodes 3 --topology ring
DEMO_UP_switch := --nodes 6 --topology switch
DEMO_SIMULATED := -i $(DEMO_NODES) -e @inventories/simulated.yml -e spark_assets=$(ASSETS)
DEMO_FLAGS := -i inventories/$(DEMO) $(if $(filter sim,$(DEMO)),,$(DEMO_SIMULATED))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

# --- what the others need ------------------------------------------------------------------------------------------

.venv/.done: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "make: Python's venv module is missing; install python3-venv" >&2; exit 1; }
	@echo "venv: installing requirements-dev.txt into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

# ansible finds sparkfleet.vllm in a checkout through this tree of one symlink (see ansible.cfg).
$(TREE):
	@mkdir -p $(dir $@) && ln -sfn ../../.. $@

.PHONY: setup
setup: .venv/.done $(TREE) ## Make .venv and the collection tree

.PHONY: engine
engine: setup ## Make sure that a Docker Engine answers
	@python -m simulator.engine

.PHONY: assets
assets: engine ## Download the wheels, make the base image and the tiny model of the simulation
	@python -m simulator.assets --dir $(ASSETS)

# --- the demo ------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: assets ## Two simulated Sparks, provisioned over SSH until a model answers; DEMO=ring3 and others too
	@test -n "$(DEMO_UP_$(DEMO))" || { echo "make: DEMO=$(DEMO): choose sim, pair, ring3 or switch" >&2; exit 1; }
	@python -m simulator up --name $(DEMO_FLEET) $(DEMO_UP_$(DEMO)) --no-addresses --rate 1gbit
	@python -m simulator inventory --name $(DEMO_FLEET) --output $(DEMO_NODES)
	@ansible-playbook site.yml $(DEMO_FLAGS)
	@ansible-playbook playbooks/status.yml $(DEMO_FLAGS)
	@ansible-playbook playbooks/fabric.yml $(DEMO_FLAGS)

.PHONY: demo-down
demo-down: setup ## Remove the demo's fleet
	@python -m simulator down --name $(DEMO_FLEET)

# --- the GPU kernels ------------------------------------------------------------------------------------------------

KERNELS := files/kernels
KERNELS_BIN := $(CURDIR)/.venv-kernels/bin
KERNELS_SOURCES := $(shell find $(KERNELS)/csrc $(KERNELS)/src $(KERNELS)/cmake ! -name '__pycache__' ! -name '*.pyc') \
  $(addprefix $(KERNELS)/,CMakeLists.txt README.md build.py pyproject.toml)
# make kernels KERNELS_NVCC=/usr/local/cuda/bin/nvcc takes that one instead of the one in .venv-kernels.
KERNELS_NVCC :=

# What the wheels are built and tested with: the simulation's wheels, among them torch and vLLM, beside nvcc and CMake.
.venv-kernels/.done: $(KERNELS)/requirements-build.lock $(KERNELS)/requirements-aarch64.lock \
  files/image/cpu/requirements-x86_64.lock | setup
	@test "$$(uname -m)" = x86_64 || { echo "make: the kernels' wheels are built on x86-64; $(KERNELS)/README.md says how to build on this machine for itself" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: the wheels that the kernels are tested with are for Python 3.11; set PYTHON=" >&2; exit 1; }
	@python -m simulator.assets --dir $(ASSETS) --only wheelhouse
	@echo "venv: installing $(KERNELS)/requirements-build.lock and the CPU image's lock into .venv-kernels"
	@rm -rf .venv-kernels && $(PYTHON) -m venv .venv-kernels
	@uv pip install --quiet --python .venv-kernels --no-deps --require-hashes --no-index --find-links $(ASSETS)/wheelhouse \
	  -r files/image/cpu/requirements-x86_64.lock
	@$(KERNELS_BIN)/pip install --quiet --no-deps --require-hashes -r $(KERNELS)/requirements-build.lock
	@touch $@

$(KERNELS)/dist/.done: $(KERNELS_SOURCES) .venv-kernels/.done
	@# Dated at the start: what is edited during the build is built next time.
	@mkdir -p $(@D) && touch $(@D)/.begun
	@python $(KERNELS)/build.py $(if $(KERNELS_NVCC),--nvcc $(KERNELS_NVCC))
	@mv $(@D)/.begun $@

.PHONY: kernels
kernels: setup $(KERNELS)/dist/.done ## Build the wheels of the GPU kernels, for x86-64 and aarch64

.PHONY: kernels-test
kernels-test: $(if $(READY),,kernels) ## The kernels' tests that need no GPU, on the built wheels
	@uv pip install --quiet --python .venv-kernels --no-deps --no-index --reinstall $(KERNELS)/dist/*_x86_64.whl
	@SPARKFLEET_KERNELS_BUILT=1 $(KERNELS_BIN)/python -m pytest $(KERNELS)/tests --ignore $(KERNELS)/tests/gpu

# Takes the built wheel of this machine and the torch of its own python3; neither .venv is needed.
.PHONY: kernels-gpu
kernels-gpu: ## The kernels' tests on this machine's GPU, with the torch of its python3
	@test -e $(KERNELS)/dist/*_$$(uname -m).whl || { echo "make: no wheel for $$(uname -m) in $(KERNELS)/dist; run make kernels on an x86-64 machine and copy it here" >&2; exit 1; }
	@rm -rf build/kernels/gpu && mkdir -p build/kernels/gpu
	@PATH="$(OUTER_PATH)" python3 -m zipfile -e $(KERNELS)/dist/*_$$(uname -m).whl build/kernels/gpu
	@PATH="$(OUTER_PATH)" PYTHONPATH=$(CURDIR)/build/kernels/gpu SPARKFLEET_KERNELS_BUILT=1 \
	  SPARKFLEET_KERNELS_GPU=1 python3 -m pytest $(KERNELS)/tests/gpu

# --- checks --------------------------------------------------------------------------------------------------------

CHECKS := molecule integration kernels-test sanity unit lint patches-check dist docs
# How many of them run at once; two, as much of what the fleets do is waiting.
JOBS := 2

# Set within make test, where the assets and the kernels' wheels are there: to ask for them again would cost molecule,
# which takes longest, its first turn.
READY :=

.PHONY: test
test: assets ## All nine kinds of check, each with its output when it ends, and a summary
	@rm -rf build/test
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --keep-going --output-sync=target $(CHECKS:%=checked-%) || true
	@bash tests/summary $(CHECKS)

# The wheels are built here, once: integration and kernels-test both take them, and may run at the same time.
checked-integration checked-kernels-test: kernels
CHECKED := $(CHECKS:%=checked-%)
.PHONY: $(CHECKED)
$(CHECKED): checked-%:
	@MAKE="$(MAKE)" bash tests/checked $* READY=yes

.PHONY: lint
lint: setup ## ansible-lint (production), yamllint, ruff, mypy
	@yamllint --strict .
	@ruff check . && ruff format --check .
	@mypy
	@ansible-lint

.PHONY: unit
unit: setup ## Unit tests
	@python -m pytest tests/unit

.PHONY: sanity
sanity: setup ## ansible-test sanity, in a copy outside the checkout
	@bash tests/sanity/run

.PHONY: docs
docs: setup ## Check the documentation: plugins, changelog, and the tables made from argument_specs
	@antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self --skip-rstcheck .
	@antsibull-changelog lint
	@python docs/variables.py --check
	@python docs/patch_table.py --check
	@python docs/memory_table.py --check
	@python docs/port_table.py --check

.PHONY: dist
dist: setup ## Build the tarball, install it into an empty path and use it from there
	@bash tests/dist/run

.PHONY: patches-check
patches-check: setup ## The patch catalogue against vLLM's real source distributions
	@python -m pytest tests/patches

.PHONY: integration
integration: $(if $(READY),,assets) ## The simulator, and every bad input against real nodes
	@python -m pytest tests/integration

.PHONY: molecule
molecule: $(if $(READY),,assets) ## Molecule scenarios on simulated Sparks
	@# What a run that failed left: molecule would take the fleet for created and skip making it.
	@python -m simulator down --name molecule && molecule reset --scenario-name default
	@molecule test --all --report

.PHONY: image-aarch64-check
image-aarch64-check: setup kernels ## Lay out the aarch64 image's packages and prove them (9 GB of disk while it runs)
	@python files/image/crosscheck.py

# make image-cuda-check CUDA_CHECK='--mirror URL --docker PROGRAM': see files/image/cudacheck.py --help.
CUDA_CHECK :=
.PHONY: image-cuda-check
image-cuda-check: engine kernels ## Build the CUDA image for x86-64 and prove it (35 GB of disk, 23 minutes on two busy cores)
	@python files/image/cudacheck.py $(CUDA_CHECK)

.PHONY: lock
lock: setup ## Resolve the locks of the image and the kernels anew
	@python files/image/lock.py
	@python $(KERNELS)/build.py --lock
	@python tests/nccl_names.py

.PHONY: bench
bench: assets ## Figures of a converged run, as counts and ratios
	@python tests/bench/converged.py
	@python tests/bench/planning.py
	@python tests/bench/delivery.py

.PHONY: clean
clean: ## Remove what make made here; the fleets have to be down
	@rm -rf .venv .venv-kernels .collections .cache .ansible build $(KERNELS)/dist .pytest_cache \
	  .mypy_cache .ruff_cache .hypothesis $(KERNELS)/.pytest_cache $(KERNELS)/.hypothesis
