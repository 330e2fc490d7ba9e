# sparse-bench: `make` prints this help.
#
# No value of a variable is ever read by make or the shell: benchmark/cli/targets.py takes what was typed from
# MAKEFLAGS, knows which target reads what, and refuses every other variable before anything runs.
override GIVEN := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(foreach name,$(GIVEN),$(eval unexport $$(name)))
override ASKED_PYTHON := $(or $(value PYTHON),python3)
override ASKED_GOALS := $(MAKECMDGOALS)
export ASKED_PYTHON ASKED_GOALS
override PY     := .venv/bin/python
override READY  := .venv/.installed
override TARGET := $(PY) -m benchmark.cli.targets
# each a command of benchmark/cli/targets.py
override COMMANDS := bench sweep table1 table2 table3 plasticity test test-slow format-check lint types leaderboard \
    verify claim latency slim site submit perf-sheets deviations flops check-method mutants perf gpu-check faults \
    methods pages new-method precision-study

.DEFAULT_GOAL := help
.PHONY: help install clean check format board-check asked $(COMMANDS)

help: ## this text
	@echo "make bench METHOD=granet SPARSITY=0.9   trains, prices and updates leaderboard/LEADERBOARD.md"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@sed -n 's/^#: \{0,1\}//p' Makefile

#: variables of make bench (lists are comma-separated and run one after the other):
#:   METHOD=granet    names from `make methods` (all; table2: those in that table), or paths of Python files; a list
#:   SPARSITY=0.9     in [0, 1); a list; SEED=0: whole numbers; a list
#:   TASK=auto        a page of configs/ (`make pages`); auto: cifar10_vgg19 on a GPU, else digits_resnet20; a list
#:   DEVICE=auto      auto, cpu, cuda; or another accelerator of torch's, such as cuda:1 or xpu
#:   DATA=data        root folder of data sets
#:   WANDB=off        off, offline or online (offline where no key is set)
#:   ARGS="epochs=2"  settings of the page or the method, name=value
#:   PRECISION=bf16   fp32, bf16, or fastest: the faster of the two by a probe; other than the page's: a table of its own
#:   FRESH=1          start over instead of continuing an interrupted run
#:   RANKS=4          processes that train each run together: on GPUs one GPU each
#:   SNAPSHOTS=5,10   epochs after which a snapshot is kept, to branch from
#:
#: of make sweep and make table1, table2, table3 (METHOD, SPARSITY, TASK and SEED, where given, narrow the grid):
#:   GRID=file        a grid file, such as configs/grids/digits.yaml; without it METHOD, SPARSITY, TASK, SEED, ARGS
#:   JOBS=2           workers, or auto: as many as cores, or as GPUs x PER_GPU
#:   WORKERS=local    where they run: local, ray or slurm; WORKERS_ARGS="key=value" their settings
#:   PER_GPU=2        workers that share a GPU; RETRIES=2: how often a cell that failed is tried again
#:   PLAN=1           print runs, training FLOPs, memory and an estimated time, and run nothing
#:   GPUS=64          with PLAN=1: the time on so many devices; PER_GPU=4: with four runs on each
#:
#: of make plasticity (TASK, SEED=0,1,2, ARGS, PRECISION, DEVICE, DATA, JOBS, PER_GPU, PLAN as above):
#:   SCALE=small      paper, small or photographs; EPOCHS=4,7: after which to prune; MORE=3: those of recovery
#:   SCOPE=layer      what is ranked together, global or layer; PATTERN=filters: whole filters
#: of make precision-study (METHOD=granet,rigl_itop SPARSITY=0.9,0.98 TASK=digits_resnet20 SEED=0,1,2, ARGS, DEVICE, DATA)
#: of make claim: A=granet B=gmp, two rows, settings as in A=granet:start_sparsity=0; TASK=page, SPARSITY=0.9
#: of make latency and make slim (DEVICE as above; for slim also DATA):
#:   RUN=name         a finished run: the name of its record, without .json
#:   BATCH=1,64       images at once; THREADS=1: threads of torch; TO=folder: where slim writes
#: of make gpu-check (DEVICE and FRESH as above; TO=folder of its report):
#:   PARTS=masks,bits what to measure, names from its report; a list; MINUTES=8: most that it takes
#:   QUICK=1          tiny sizes, as always on a CPU: does it run at all, in about 2 minutes
#: of make perf: QUICK=1, fewer rounds; KEEP=1, write the table of goals
#: of make check-method (METHOD as above): ONLY=resume, the checks to run by their names in its table; a list
#: A variable that a target does not read is an error. PYTHON=python3.12: what .venv is made with.

# Before all else, `make -n` included: does a goal read each variable of the command line?
ifneq ($(GIVEN),)
help clean $(READY): | asked
endif
asked:
	+@if [ -x $(PY) ]; then exec $(TARGET); fi; \
	"$$ASKED_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || exit 0; \
	exec "$$ASKED_PYTHON" -m benchmark.cli.targets

# The first call makes .venv and installs; later calls see the stamp and start at once.
$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	    echo "installing into .venv with uv (first call only, some minutes)"; \
	    uv venv --quiet --seed --allow-existing --python "$$ASKED_PYTHON" .venv && \
	    uv pip install --quiet --python $(PY) -c constraints.txt -e '.[dev]'; \
	else \
	    echo "installing into .venv with pip (first call only, some minutes)"; \
	    "$$ASKED_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 is needed, $$("$$ASKED_PYTHON" --version) was found; name another with PYTHON=..."; exit 2; }; \
	    "$$ASKED_PYTHON" -m venv .venv && \
	    $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

install: $(READY) ## make .venv and install, without running anything

$(COMMANDS): $(READY)
	@$(TARGET) $@
bench: ## train, count FLOPs, rebuild the leaderboard
sweep: ## run the unfinished cells of a grid, GRID=file or lists, on JOBS workers; PLAN=1: what it costs
table1: ## run the unfinished cells of the GraNet paper's dense baselines, rebuild all sheets; PLAN=1: the cost
table2: ## likewise its CIFAR table
table3: ## likewise its ImageNet table
plasticity: ## how well networks recover from pruning at different epochs (GraNet paper, Section 3); PLAN=1: the runs
precision-study: ## what updates grow under bf16 against fp32, see leaderboard/PRECISION.md; `make leaderboard` afterwards
test: ## run the tests (a few minutes)
test-slow: ## run the tests that take long, real photographs included
check: format-check lint types test board-check ## everything CI checks: format, lint, types, tests, leaderboard, sheets
lint: ## ruff
types: ## mypy
format: $(READY) ## rewrite the code in the project's format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .
board-check: $(READY)
	@$(PY) -m leaderboard verify
	@$(PY) -m benchmark.recount.deviations --check
	@$(PY) -m benchmark.recount.flops --check
leaderboard: ## rebuild every sheet and picture from the records alone; WANDB=offline or online logs them
verify: ## check that every record is whole, and every sheet what the records give
claim: ## A=granet B=gmp: whether one row is better than another, and how sure that is
latency: ## RUN=name: measure what a finished run's sparsity is worth on this machine, with several kernels
slim: ## RUN=name: write the smaller network of a structured run, count and time it; TO=folder
site: ## write the leaderboard for a browser, one HTML file
submit: ## whether the records that this checkout adds can be merged; measures again where their weights are at hand
perf-sheets: ## time and memory of all sheets from 10,000 records
deviations: ## rebuild methods/DEVIATIONS.md from the methods' docstrings and the pages
flops: ## rebuild docs/flops.md, the FLOPs that the paper's ImageNet table prints, recounted without ImageNet
check-method: ## METHOD=name-or-path: test every promise of the interface, in under a minute
mutants: ## plant every known fault and show which check catches it
perf: ## measure the speed goals against a dense loop and the authors' way of masking; QUICK=1: under 3 minutes
gpu-check: ## what only a GPU can tell: same masks, same bits, speed, waits, memory; a report to send back
faults: ## play N=200 scenarios of kills, full disks and damaged files on small grids, from SEED=0 on
methods: ## list the methods by group: paper, what each needs, settings
pages: ## list the pages of configs/
new-method: ## NAME=foo: write a small working method file to start from
clean: ## remove caches (not .venv, not runs/, not records)
	@rm -rf .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
