# Each target sets up what it needs in .venv. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SPELLED := .github docs presets pipeline stages cache tests README.md CONTRIBUTING.md CHANGELOG.md Makefile \
	params.yaml dvc.yaml pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test test-real test-cluster lint format check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## do the whole job on real weights and real Czech speech: 20 minutes on two cores with bf16, up to 45 without
	@git rev-parse --git-dir > /dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@PATH="$(CURDIR)/$(BIN):$$PATH" pipeline report

# Many tests start processes: with compiled sources they start in half the time.
test: $(VENV)/.installed-dev ## run the tests, two at a time; a part of them: make test T=tests/stages/shared
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=ci $(T)

test-real: $(VENV)/.installed-dev ## run the tests on the real whisper-base and real speech, which are downloaded
	$(BIN)/python -m pytest -m real

test-cluster: $(VENV)/.installed-dev ## run the tests on a Ray cluster of several processes: a minute or two
	$(BIN)/python -m pytest tests/stages/teacher_cache/test_cluster.py -m "cluster or not cluster"

lint: $(VENV)/.installed-dev ## check style, types, spelling, and the paths and links in the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $(SPELLED)
	$(BIN)/python tests/support/check_docs.py

format: $(VENV)/.installed-dev ## put the code into the project's format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: ## decide as for a change: lint and test in a fresh clone of what is committed
	.ci/run

clean: ## remove .venv and the tools' own folders; data and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@
