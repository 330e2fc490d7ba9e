# sparse-bench: `make` prints this help.
METHOD   ?= granet
SPARSITY ?= 0.9
TASK     ?= auto
SEED     ?= 0
DEVICE   ?= auto
DATA     ?= data
WANDB    ?= off
ARGS     ?=
PRECISION ?=
FRESH    ?=
NAME     ?=
GRID     ?=
PLAN     ?=
A        ?=
B        ?=
PYTHON   ?= python3

ifneq ($(PRECISION),)
override ARGS += precision=$(PRECISION)
endif

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install bench grid table1 table2 table3 check-method mutants test test-slow check format lint types
.PHONY: leaderboard verify claim site perf-pages deviations methods pages new-method clean

# $(call given,NAME,option): the option where the user set NAME, nothing where it has its default
given = $(if $(filter command environment,$(origin $(1))),--$(2) '$($(1))')
true  = $(filter 1 yes true,$(1))

help: ## this text
	@echo "make bench METHOD=granet SPARSITY=0.9   trains, prices and updates leaderboard/LEADERBOARD.md"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "variables of make bench (lists are comma-separated and run one after the other):"
	@echo "  METHOD=$(METHOD)     names from \`make methods\`, or paths of Python files; a list"
	@echo "  SPARSITY=$(SPARSITY)     in [0, 1); a list"
	@echo "  TASK=$(TASK)        a page of configs/ (\`make pages\`); auto: cifar10_vgg19 on a GPU, else digits_resnet20; a list"
	@echo "  SEED=$(SEED)           whole numbers; a list"
	@echo "  DEVICE=$(DEVICE)      auto, cpu or cuda"
	@echo "  DATA=$(DATA)        root folder of data sets"
	@echo "  WANDB=$(WANDB)        off, offline or online (offline where no key is set)"
	@echo "  ARGS='epochs=2'  settings of the page or the method, name=value"
	@echo "  PRECISION=       fp32, bf16, or fastest: the faster of the two by a probe; other than the page's: a table of its own"
	@echo "  FRESH=1          start over instead of continuing an interrupted run"
	@echo
	@echo "of make grid and make table1, table2, table3 (METHOD, SPARSITY, TASK and SEED, where given, narrow the grid):"
	@echo "  GRID=file        a grid file, such as configs/grids/digits.yaml"
	@echo "  PLAN=1           print runs, training FLOPs and an estimated time, and run nothing"
	@echo
	@echo "of make claim (TASK and SPARSITY as above):"
	@echo "  A=granet B=gmp   two rows of the leaderboard; settings as in A=granet:start_sparsity=0"

# The first call makes .venv and installs; later calls see the stamp and start at once.
$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	    echo "installing into $(VENV) with uv (first call only, some minutes)"; \
	    uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	    uv pip install --quiet --python $(PY) -c constraints.txt -e '.[dev]'; \
	else \
	    echo "installing into $(VENV) with pip (first call only, some minutes)"; \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 is needed, $$($(PYTHON) --version) was found; name another with PYTHON=..."; exit 2; }; \
	    $(PYTHON) -m venv $(VENV) && \
	    $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

install: $(READY) ## make .venv and install, without running anything

bench: $(READY) ## train, price, update the leaderboard
	@$(VENV)/bin/sparse-bench run --method '$(METHOD)' --sparsity '$(SPARSITY)' --task '$(TASK)' --seed '$(SEED)' \
	    --device '$(DEVICE)' --data '$(DATA)' --wandb '$(WANDB)' $(if $(ARGS),--args '$(ARGS)') $(if $(call true,$(FRESH)),--fresh)

GRID_OPTIONS = $(call given,METHOD,method) $(call given,SPARSITY,sparsity) $(call given,TASK,task) \
    $(call given,SEED,seed) $(if $(call true,$(PLAN)),--plan) --device '$(DEVICE)' --data '$(DATA)' --wandb '$(WANDB)'

grid: $(READY) ## GRID=file: run what is not finished of a grid file; PLAN=1: what it costs
	@test -n '$(GRID)' || { echo "error: name a grid file: make grid GRID=configs/grids/digits.yaml"; exit 2; }
	@$(VENV)/bin/sparse-bench grid '$(GRID)' $(GRID_OPTIONS)

table1: $(READY) ## run what is not finished of the GraNet paper's dense baselines, rebuild all pages; PLAN=1: the cost
table2: $(READY) ## likewise its CIFAR table
table3: $(READY) ## likewise its ImageNet table
table1 table2 table3:
	@status=0; $(VENV)/bin/sparse-bench grid configs/paper/$@.yaml $(GRID_OPTIONS) || status=$$?; \
	$(if $(call true,$(PLAN)),,[ $$status -eq 130 ] || $(PY) -m leaderboard build || status=$$?;) exit $$status

test: $(READY) ## run the tests (a few minutes)
	@$(PY) -m pytest

test-slow: $(READY) ## run the tests that take long, real photographs included
	@$(PY) -m pytest -m slow

check: format-check lint types test board-check ## everything CI checks: format, lint, types, tests, leaderboard, deviations

.PHONY: format-check board-check
format-check: $(READY)
	@$(PY) -m ruff format --check .

lint: $(READY) ## ruff
	@$(PY) -m ruff check .

types: $(READY) ## mypy
	@$(PY) -m mypy

board-check: $(READY)
	@$(PY) -m leaderboard verify
	@$(PY) -m benchmark.deviations --check

format: $(READY) ## rewrite the code in the project's format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

leaderboard: $(READY) ## rebuild every page and picture from the records alone; WANDB=offline or online logs them
	@$(PY) -m leaderboard build $(if $(filter-out off,$(WANDB)),--wandb '$(WANDB)')

verify: $(READY) ## whether every record is whole, and every page what the records give
	@$(PY) -m leaderboard verify

claim: $(READY) ## A=granet B=gmp: whether one row is better than another, and how sure that is
	@$(PY) -m leaderboard claim --a '$(A)' --b '$(B)' --task '$(TASK)' $(call given,SPARSITY,sparsity)

site: $(READY) ## write the leaderboard for a browser, one HTML file
	@$(PY) -m leaderboard site

perf-pages: $(READY) ## time and memory of all pages from 10,000 records
	@$(PY) -m tests.perf_pages

deviations: $(READY) ## rebuild methods/DEVIATIONS.md from the methods' docstrings
	@$(PY) -m benchmark.deviations

check-method: $(READY) ## METHOD=name-or-path: hold a method to every promise, in under a minute
	@$(VENV)/bin/sparse-bench check '$(METHOD)'

mutants: $(READY) ## plant every known fault and show which check catches it
	@$(PY) -m tests.mutants

.PHONY: perf
perf: $(READY) ## measure the speed goals against a dense loop and the authors' way of masking; QUICK=1: under 3 minutes
	@$(PY) -m benchmark.perf $(if $(call true,$(QUICK)),--quick) $(if $(call true,$(KEEP)),--keep)

methods: $(READY) ## list the methods: paper, kind, what each needs
	@$(VENV)/bin/sparse-bench methods

pages: $(READY) ## list the pages of configs/
	@$(VENV)/bin/sparse-bench pages

new-method: $(READY) ## NAME=foo: write a small working method file to start from
	@$(VENV)/bin/sparse-bench new-method '$(NAME)'

clean: ## remove caches (not .venv, not runs/, not records)
	@rm -rf .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
