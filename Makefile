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
RANKS    ?=
NAME     ?=
GRID     ?=
PLAN     ?=
GPUS     ?=
PER_GPU  ?=
QUICK    ?=
KEEP     ?=
ENGINE   ?=
JOBS     ?=
ENGINE_ARGS ?=
RETRIES  ?=
SNAPSHOTS ?=
SCALE    ?=
EPOCHS   ?=
MORE     ?=
SCOPE    ?=
PATTERN  ?=
A        ?=
B        ?=
RUN      ?=
BATCH    ?=
THREADS  ?=
TO       ?=
N        ?= 200
PYTHON   ?= python3

# What a user gives goes to the commands through the environment, as it was given, and is quoted where it is used: no
# value is ever read as a line of make ($(value NAME)) or of the shell ("$$ASKED_NAME"). Exported under its own name it
# would be read by make, and a make that a command starts would take a default for a wish.
ASKED = METHOD SPARSITY TASK SEED DEVICE DATA WANDB ARGS PRECISION FRESH NAME GRID PLAN GPUS PER_GPU QUICK A B PYTHON \
    ENGINE JOBS ENGINE_ARGS RETRIES RUN BATCH THREADS TO N RANKS KEEP \
    SNAPSHOTS SCALE EPOCHS MORE SCOPE PATTERN
$(foreach name,$(ASKED),$(eval override export ASKED_$(name) := $$(value $(name))) $(eval unexport $(name)))
ifneq ($(value PRECISION),)
override ASKED_ARGS += precision=$(value PRECISION)
endif

override VENV  := .venv
override PY    := $(VENV)/bin/python
override READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install bench sweep table1 table2 table3 check-method mutants test test-slow check format lint types
.PHONY: leaderboard verify claim site perf-pages deviations methods pages new-method clean

# of latency and slim: how a network is timed
TIMED = $(if $(value BATCH),--batch "$$ASKED_BATCH") $(if $(value THREADS),--threads "$$ASKED_THREADS") --device "$$ASKED_DEVICE"
# $(call given,NAME,option): the option where the user set NAME, nothing where it has its default
given = $(if $(filter command environment,$(origin $(1))),--$(2) "$$ASKED_$(1)")
true  = $(filter 1 yes true,$(1))

help: ## this text
	@echo "make bench METHOD=granet SPARSITY=0.9   trains, prices and updates leaderboard/LEADERBOARD.md"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "variables of make bench (lists are comma-separated and run one after the other):"
	@echo "  METHOD=$$ASKED_METHOD     names from \`make methods\`, or paths of Python files; a list"
	@echo "  SPARSITY=$$ASKED_SPARSITY     in [0, 1); a list"
	@echo "  TASK=$$ASKED_TASK        a page of configs/ (\`make pages\`); auto: cifar10_vgg19 on a GPU, else digits_resnet20; a list"
	@echo "  SEED=$$ASKED_SEED           whole numbers; a list"
	@echo "  DEVICE=$$ASKED_DEVICE      auto, cpu or cuda"
	@echo "  DATA=$$ASKED_DATA        root folder of data sets"
	@echo "  WANDB=$$ASKED_WANDB        off, offline or online (offline where no key is set)"
	@echo "  ARGS='epochs=2'  settings of the page or the method, name=value"
	@echo "  PRECISION=       fp32, bf16, or fastest: the faster of the two by a probe; other than the page's: a table of its own"
	@echo "  FRESH=1          start over instead of continuing an interrupted run"
	@echo "  RANKS=4          processes that train each run together: on GPUs one GPU each"
	@echo "  SNAPSHOTS=5,10   epochs after which a snapshot is kept, to branch from"
	@echo
	@echo "of make sweep and make table1, table2, table3 (METHOD, SPARSITY, TASK and SEED, where given, narrow the grid):"
	@echo "  GRID=file        a grid file, such as configs/grids/digits.yaml; without it METHOD, SPARSITY, TASK, SEED, ARGS"
	@echo "  JOBS=2           workers, or auto: as many as cores, or as GPUs x PER_GPU"
	@echo "  ENGINE=local     where they run: local, ray or slurm; ENGINE_ARGS='key=value' its settings"
	@echo "  PER_GPU=2        workers that share a GPU"
	@echo "  RETRIES=2        how often a cell that failed is tried again"
	@echo "  PLAN=1           print runs, training FLOPs, memory and an estimated time, and run nothing"
	@echo "  GPUS=64          with PLAN=1: the time on so many devices; PER_GPU=4: with four runs on each"
	@echo
	@echo "of make plasticity (TASK, SEED, ARGS, JOBS and PLAN as above; SEED=0,1,2 where not given):"
	@echo "  SCALE=small      paper or small; small on the embedded digits where not given"
	@echo "  EPOCHS=4,7       epochs after which is pruned; MORE=3: those in which a network may recover"
	@echo "  SCOPE=layer      what is ranked together, global or layer; PATTERN=filters: whole filters"
	@echo
	@echo "of make claim (TASK and SPARSITY as above):"
	@echo "  A=granet B=gmp   two rows of the leaderboard; settings as in A=granet:start_sparsity=0"
	@echo
	@echo "of make latency and make slim (DEVICE and DATA as above):"
	@echo "  RUN=name         a finished run: the name of its record, without .json"
	@echo "  BATCH=1,64       images at once; THREADS=1: threads of torch; TO=folder: where slim writes"

# The first call makes .venv and installs; later calls see the stamp and start at once.
$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	    echo "installing into $(VENV) with uv (first call only, some minutes)"; \
	    uv venv --quiet --allow-existing --python "$$ASKED_PYTHON" $(VENV) && \
	    uv pip install --quiet --python $(PY) -c constraints.txt -e '.[dev]'; \
	else \
	    echo "installing into $(VENV) with pip (first call only, some minutes)"; \
	    "$$ASKED_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 is needed, $$("$$ASKED_PYTHON" --version) was found; name another with PYTHON=..."; exit 2; }; \
	    "$$ASKED_PYTHON" -m venv $(VENV) && \
	    $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

install: $(READY) ## make .venv and install, without running anything

bench: $(READY) ## train, price, update the leaderboard
	@$(VENV)/bin/sparse-bench run --method "$$ASKED_METHOD" --sparsity "$$ASKED_SPARSITY" --task "$$ASKED_TASK" --seed "$$ASKED_SEED" \
	    --device "$$ASKED_DEVICE" --data "$$ASKED_DATA" --wandb "$$ASKED_WANDB" $(if $(ASKED_ARGS),--args "$$ASKED_ARGS") $(if $(call true,$(value FRESH)),--fresh) \
	    $(if $(value RANKS),--ranks "$$ASKED_RANKS") $(call given,SNAPSHOTS,snapshots)

SWEEP_OPTIONS = $(call given,METHOD,method) $(call given,SPARSITY,sparsity) $(call given,TASK,task) \
    $(call given,SEED,seed) $(if $(strip $(ASKED_ARGS)),--args "$$ASKED_ARGS") $(if $(call true,$(value PLAN)),--plan $(if $(value GPUS),--gpus "$$ASKED_GPUS")) \
    $(call given,ENGINE,engine) $(call given,JOBS,jobs) $(call given,PER_GPU,per-gpu) \
    $(call given,ENGINE_ARGS,engine-args) $(call given,RETRIES,retries) \
    --device "$$ASKED_DEVICE" --data "$$ASKED_DATA" --wandb "$$ASKED_WANDB"

sweep: $(READY) ## run what is not finished of a grid, GRID=file or lists, on JOBS workers; PLAN=1: what it costs
	@$(VENV)/bin/sparse-bench sweep $(if $(value GRID),"$$ASKED_GRID") $(SWEEP_OPTIONS)

table1: $(READY) ## run what is not finished of the GraNet paper's dense baselines, rebuild all pages; PLAN=1: the cost
table2: $(READY) ## likewise its CIFAR table
table3: $(READY) ## likewise its ImageNet table
table1 table2 table3:
	@status=0; $(VENV)/bin/sparse-bench sweep configs/paper/$@.yaml $(SWEEP_OPTIONS) || status=$$?; \
	$(if $(call true,$(value PLAN)),,[ $$status -eq 130 ] || $(PY) -m leaderboard build || status=$$?;) exit $$status

.PHONY: plasticity
plasticity: $(READY) ## how well networks recover from pruning at different epochs (GraNet paper, Section 3); PLAN=1: the runs
	@$(VENV)/bin/sparse-bench plasticity $(call given,TASK,task) $(call given,SCALE,scale) $(call given,EPOCHS,epochs) \
	    $(call given,SEED,seed) $(call given,MORE,more) $(call given,SCOPE,scope) $(call given,PATTERN,pattern) \
	    $(call given,JOBS,jobs) $(if $(strip $(ASKED_ARGS)),--args "$$ASKED_ARGS") $(if $(call true,$(value PLAN)),--plan) \
	    --device "$$ASKED_DEVICE" --data "$$ASKED_DATA"

test: $(READY) ## run the tests (a few minutes)
	@$(PY) -m pytest

test-slow: $(READY) ## run the tests that take long, real photographs included
	@$(PY) -m pytest -m slow

check: format-check lint types test board-check ## everything CI checks: format, lint, types, tests, leaderboard, sheets

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
	@$(PY) -m benchmark.scale --check
	@$(PY) -m benchmark.flops --check

format: $(READY) ## rewrite the code in the project's format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

leaderboard: $(READY) ## rebuild every page and picture from the records alone; WANDB=offline or online logs them
	@$(PY) -m leaderboard build $(if $(filter-out off,$(value WANDB)),--wandb "$$ASKED_WANDB")

verify: $(READY) ## whether every record is whole, and every page what the records give
	@$(PY) -m leaderboard verify

claim: $(READY) ## A=granet B=gmp: whether one row is better than another, and how sure that is
	@$(PY) -m leaderboard claim --a "$$ASKED_A" --b "$$ASKED_B" --task "$$ASKED_TASK" $(call given,SPARSITY,sparsity)

.PHONY: latency
latency: $(READY) ## RUN=name: measure what a finished run's sparsity is worth on this machine, by several engines
	@test -n "$$ASKED_RUN" || { echo "error: name a run: make latency RUN=the name of a record, without .json"; exit 2; }
	@$(VENV)/bin/sparse-bench latency $(TIMED) "$$ASKED_RUN"

.PHONY: slim
slim: $(READY) ## RUN=name: write the really smaller network of a structured run, count and time it; TO=folder
	@test -n "$$ASKED_RUN" || { echo "error: name a run: make slim RUN=the name of a record, without .json"; exit 2; }
	@$(VENV)/bin/sparse-bench slim $(TIMED) $(if $(value TO),--to "$$ASKED_TO") --data "$$ASKED_DATA" "$$ASKED_RUN"

site: $(READY) ## write the leaderboard for a browser, one HTML file
	@$(PY) -m leaderboard site

perf-pages: $(READY) ## time and memory of all pages from 10,000 records
	@$(PY) -m tests.perf_pages

deviations: $(READY) ## rebuild methods/DEVIATIONS.md from the methods' docstrings
	@$(PY) -m benchmark.deviations

.PHONY: scale
scale: $(READY) ## rebuild docs/scale.md, what the paper's tables cost on many GPUs, from predictions and docs/scale.yaml
	@$(PY) -m benchmark.scale

.PHONY: flops
flops: $(READY) ## rebuild docs/flops.md, the FLOPs that the paper's ImageNet table prints, recounted without ImageNet
	@$(PY) -m benchmark.flops

check-method: $(READY) ## METHOD=name-or-path: hold a method to every promise, in under a minute
	@$(VENV)/bin/sparse-bench check "$$ASKED_METHOD"

mutants: $(READY) ## plant every known fault and show which check catches it
	@$(PY) -m tests.mutants

.PHONY: perf
perf: $(READY) ## measure the speed goals against a dense loop and the authors' way of masking; QUICK=1: under 3 minutes
	@$(PY) -m benchmark.perf $(if $(call true,$(value QUICK)),--quick) $(if $(call true,$(value KEEP)),--keep)

.PHONY: faults
faults: $(READY) ## play N=200 scenarios of kills, full disks and damaged files on small grids, from SEED=0 on
	@$(PY) -m tests.faults --count "$$ASKED_N" --seed "$$ASKED_SEED"

methods: $(READY) ## list the methods: paper, kind, what each needs
	@$(VENV)/bin/sparse-bench methods

pages: $(READY) ## list the pages of configs/
	@$(VENV)/bin/sparse-bench pages

new-method: $(READY) ## NAME=foo: write a small working method file to start from
	@$(VENV)/bin/sparse-bench new-method "$$ASKED_NAME"

clean: ## remove caches (not .venv, not runs/, not records)
	@rm -rf .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
