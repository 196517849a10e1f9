# CMAPKD from a fresh machine: `make paper` and `make test` set up all they need, and do nothing twice.
# Needs Linux, Python 3.11 to 3.13 and make. `make help` lists what there is.

PYTHON ?= python3
CONFIG ?= config/mini.yaml
CORES ?= all
SEEDS ?=
# A program that runs the unit tests as somebody else: CI runs them without root.
UNIT_AS ?=
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake --profile workflow/profiles/local --cores $(CORES) --configfile $(CONFIG) \
  $(if $(SEEDS),--config seeds="[$(shell seq -s , 0 $$(($(SEEDS) - 1)))]")
# Only a name that `cmapkd config check` accepts: the shell reads it.
REPORT ?= results/$(shell sed -nE 's/^name: *([A-Za-z0-9][A-Za-z0-9_.-]*) *$$/\1/p' $(CONFIG) | head -n 1)/report.html
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help setup paper test unit pipeline cluster workflow-tests lint format clean-environment

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20
	@echo "variables: CONFIG=$(CONFIG) (experiment), REPORT=$(REPORT), CORES=$(CORES), PYTHON=$(PYTHON), SEEDS=$(SEEDS) (number of seeds, 0, 1, ...; empty: as CONFIG says)"

setup: $(VENV)/.complete latex ## virtual environment with everything pinned, LaTeX where it can be installed

# The marker is written last, so an interrupted installation is taken up again. It depends on the lock alone.
$(VENV)/.complete: requirements.lock
	@scripts/setup-environment.sh "$(PYTHON)" "$(VENV)"

.PHONY: latex
latex:
	@scripts/setup-latex.sh

.PHONY: browser
browser:
	@scripts/setup-browser.sh

paper: setup ## run the experiment of CONFIG and make its paper
	@$(SNAKEMAKE)

.PHONY: report
report: paper ## put everything that `paper` makes into one HTML file to look through (REPORT)
	@PYTHONWARNINGS=ignore::RuntimeWarning $(SNAKEMAKE) --report $(REPORT)

.PHONY: tune
tune: setup ## search the settings of the runs of CONFIG on its validation split (hours)
	$(BIN)/cmapkd tune --experiment $(CONFIG)

test: setup lint docs unit workflow-tests ## everything that CI checks

unit: setup ## unit tests
	$(UNIT_AS) $(BIN)/python -m pytest tests/unit -q -m "not network" -n 2 --dist loadfile

pipeline: setup browser ## the real workflow on config/smoke.yaml
	$(BIN)/python -m pytest tests/pipeline -q

cluster: setup ## the same on a SLURM of our own on this machine (root on Debian or Ubuntu; skipped elsewhere)
	$(BIN)/python -m pytest tests/cluster -q

# In one session, because the numbers from SLURM are compared with those of the local run.
workflow-tests: setup
	$(BIN)/python -m pytest tests/pipeline tests/cluster -q

.PHONY: bench
bench: setup ## measure steps, caches, data, ranks and memory against references in the same run (BENCH="--only methods,data")
	$(BIN)/python -m benchmarks $(BENCH)

# NO_MKDOCS_2_WARNING: its advertisement; what is wrong with our pages ends the build (`strict`).
.PHONY: docs
docs: setup ## the documentation as a site in build/docs/ (index.html opens without a server)
	@PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@echo "build/docs/index.html"

.PHONY: soak
soak: setup ## disturb a training at random moments and compare it with one left alone (SOAK="--count 20 --ranks 2 --seed 0", SOAK=--slurm: as a job)
	$(BIN)/python -m tests.pipeline.soak $(SOAK)

.PHONY: fuzz
fuzz: setup ## read random and damaged files of every kind, and report what is not an explanation (FUZZ="--minutes 60")
	$(BIN)/python -m tests.fuzz $(FUZZ)

.PHONY: fullsize
fullsize: setup ## one step of each method with ViT-L/14 and ViT-B/16 on this machine (5 GB of memory): docs/fullsize.md
	$(BIN)/python scripts/fullsize.py

lint: setup ## formatting, static checks, generated documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/mypy
	$(BIN)/cmapkd config document
	$(BIN)/snakemake --lint

format: setup ## mend what lint would find, where that can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt workflow
	$(BIN)/cmapkd config document --fix

clean-environment: ## remove the virtual environment (results stay)
	rm -rf $(VENV)
