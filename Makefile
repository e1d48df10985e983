# A fresh machine needs Python >= 3.10 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart
WORKERS ?= 2

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
	$(BIN)/lightning fit --config configs/experiments/quickstart_standard.yaml
	$(BIN)/lightning fit --config configs/experiments/quickstart.yaml
	$(BIN)/python evaluate.py --checkpoint $(RUN)/standard/checkpoints/best.ckpt --suite configs/suites/quick.yaml --output $(RUN)/evaluation/standard
	$(BIN)/python evaluate.py --checkpoint $(RUN)/atent/checkpoints/best.ckpt --suite configs/suites/quick.yaml --output $(RUN)/evaluation/atent
	@$(BIN)/python evaluate.py compare $(RUN)/evaluation/standard $(RUN)/evaluation/atent --output $(RUN)
	@echo
	@echo 'Reports:     $(RUN)/compare.html, $(RUN)/evaluation/{standard,atent}/report.html (the same as .md)'
	@echo 'TensorBoard: $(BIN)/tensorboard --logdir $(RUN), then open http://localhost:6006'

test: .venv/.installed  ## Run all tests, on WORKERS processes.
	$(BIN)/python -m pytest -n $(WORKERS)

lint: .venv/.installed  ## Style, types, and the arrows between the rooms.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

readme: .venv/.installed  ## Write the README's tables anew from catalogues and results.
	$(BIN)/python docs/readme_tables.py

.PHONY: help install quickstart test lint readme
.DEFAULT_GOAL := help
