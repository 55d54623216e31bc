# make demo: the real job on real weights and real speech; make test: the tests. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-real test-cluster lint clean

demo: $(VENV)/.installed
	@git rev-parse --git-dir > /dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@PATH="$(CURDIR)/$(BIN):$$PATH" pipeline report

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=ci

test-real: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m real

test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/stages/teacher_cache/test_cluster.py -m "cluster or not cluster"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@
