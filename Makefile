# A fresh machine needs Python >= 3.10 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart
WORKERS ?= 2
ROOMS := attacks callbacks checkpoints configs datamodules defenses detectors evaluation lightning_modules networks reproduce

help:  ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python >= 3.10 is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11 or the like")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

install: .venv/.installed  ## Create .venv and install the project with its test tools.

quickstart: .venv/.installed  ## Train ATENT and a standard classifier on digits, attack both, print one table.
	rm -rf $(RUN)
	$(BIN)/lightning fit --config quickstart_standard
	$(BIN)/lightning fit --config quickstart
	$(BIN)/lightning evaluate --checkpoint $(RUN)/standard/checkpoints/best.ckpt --suite quick --output $(RUN)/evaluation/standard
	$(BIN)/lightning evaluate --checkpoint $(RUN)/atent/checkpoints/best.ckpt --suite quick --output $(RUN)/evaluation/atent
	@$(BIN)/lightning compare $(RUN)/evaluation/standard $(RUN)/evaluation/atent --output $(RUN)
	@echo
	@echo 'Reports:     $(RUN)/compare.html, $(RUN)/evaluation/{standard,atent}/report.html (the same as .md)'
	@echo 'TensorBoard: $(BIN)/tensorboard --logdir $(RUN), then open http://localhost:6006'

test: .venv/.installed  ## Run all tests, on WORKERS processes.
	$(BIN)/python -m pytest -n $(WORKERS)

# A copy of the rooms as one package, for tools that follow folders: mypy and import-linter.
NAMESPACE := build/namespace
namespace:
	@rm -rf $(NAMESPACE) && mkdir -p $(NAMESPACE)
	@cp -rp adversarial_lightning $(NAMESPACE)/ && cp -rp $(ROOMS) $(NAMESPACE)/adversarial_lightning/

test-fast: .venv/.installed  ## Run the tests that start no process and take little time: under two minutes.
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not long"

lint: .venv/.installed  ## Style, types, and who may import whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types arrows

types: .venv/.installed namespace  ## Types.
	$(BIN)/mypy

arrows: .venv/.installed namespace  ## Who may import whom.
	cd $(NAMESPACE) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/setup.cfg

cases: .venv/.installed  ## Run the small programs of CASES (those whose names begin with ONLY) that each show a fault.
	@$(BIN)/python tests/cases.py $(CASES) $(ONLY)

mutants: .venv/.installed  ## Change the files (those whose paths begin with ONLY) one change at a time; see what no test notices.
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	$(BIN)/python tests/mutants.py $(ONLY)

readme: .venv/.installed  ## Write the tables of README.md, docs/, results/ and configs/ anew from catalogues and results.
	$(BIN)/python docs/tables.py

ONLY ?=
.PHONY: help install cases mutants test-fast namespace types arrows quickstart test lint readme
.DEFAULT_GOAL := help
