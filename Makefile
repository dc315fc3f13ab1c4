# make quickstart   install the core into .venv and let the small model answer and generate images
# make test         install everything that is tested, then lint and the fast tests
# make oldest       a quick subset of the tests with the oldest transformers that setup.py allows
# make lint         ruff and mypy
# make tutorials    run the tutorials: every command of "Your own data", and the notebook of the first hour
# make docs         build the documentation's site into build/site
# make nano         train the small model again, into runs/nano; DATA=folder (default data) holds the data
#                   sets, and those that are not there are fetched with git from their public repositories
# make ablations    the paper's comparisons at nano's size, after make nano; hours on a CPU
# make clean        remove .venv and every cache
#
# PYTHON=python3.12 picks the interpreter (3.11 or newer), VENV=folder another place for the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The data sets that `make nano` reads.
DATA ?= data
PYTEST_ARGS ?= -m "not slow and not gpu and not real" -n 2

# An installation is done again when one of these files changes, and only then.
KEY := $(shell cat setup.py constraints.txt | cksum | cut -d' ' -f1)
CORE := $(VENV)/core-$(KEY).stamp
DEV := $(VENV)/dev-$(KEY).stamp
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Laid over the environment by PYTHONPATH.
OLDEST := $(VENV)/oldest
OLDEST_TESTS := tests/test_nano_recorded.py tests/mllm/assembly/test_storage.py \
	tests/train/test_init_from.py::test_a_short_recipe_trains_resumes_and_exports_a_complete_folder

.PHONY: quickstart test oldest lint tutorials docs nano ablations clean
.DELETE_ON_ERROR:

quickstart: $(CORE)
	@$(BIN)/dualtoken quickstart

# The linters come first: they take seconds. The order of imports between the folders is tests/test_import_order.py.
test: $(DEV) lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Loads, answers, generates, saves, trains: what another version of transformers would break.
oldest: $(DEV) $(OLDEST)/stamp
	PYTHONPATH=$(OLDEST) $(BIN)/python -c "import transformers as t; print('transformers', t.__version__, t.__file__)"
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -n 2 $(OLDEST_TESTS)

# mypy checks the root as the package it is, so it needs a folder in which the root is called `dualtoken`.
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .lint && ln -sfn .. .lint/dualtoken
	MYPYPATH=.lint $(BIN)/mypy -p dualtoken

tutorials: $(DEV)
	$(BIN)/python -m pytest -m slow -n 2 tests/docs
	$(BIN)/python -m pytest --nbmake docs/tutorials

docs: $(DEV)
	$(BIN)/python -m mkdocs build --strict

nano: $(DEV)
	$(BIN)/python -m dualtoken.scripts.nano.make --data $(DATA)

ablations: $(DEV)
	$(BIN)/dualtoken ablate ablations/nano.yaml --runs runs/ablations --document docs/ablations.md

clean:
	rm -rf $(VENV) .lint build dist dualtoken.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "DualToken needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(CORE): | $(BIN)/python
	@echo "Installing DualToken and what it needs into $(VENV): a few minutes, several GB (torch)."
	@rm -f $(VENV)/*.stamp
	$(PIP_INSTALL) -e .
	@touch $@

$(DEV): | $(BIN)/python
	@echo "Installing DualToken with the extras train, eval, docs and dev into $(VENV)."
	@rm -f $(VENV)/*.stamp
	$(PIP_INSTALL) -e '.[train,eval,docs,dev]'
	@touch $(CORE) $@

$(OLDEST)/stamp: .ci/oldest.txt | $(DEV)
	@rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLDEST) -r .ci/oldest.txt
	@touch $@
