# Everything a user or a developer needs, on a machine with Python 3.11 or newer, make and pip.
#   make demo        install, segment a drawn sample with a bundled model, score it, say where the picture is
#   make test        install what the tests need, run them all but the slow ones
#   make fuzz        5,000 damaged inputs of every format: right pixels or one line
#   make test-versions  the quick ones with the newest Python and packages there are, and with the lowest declared
#   make check       format, lint, type and layer checks
#   make site        build the documentation, strictly: build/site/html/index.html
#   make bench       measure: a page, its numbers and plots in benchmarks/results/short (ten minutes)
#   make bench-guard compare ratios with those in the repository: did anything get slower?
#   make bench-instructions  the same by counted instructions, where valgrind is installed

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-versions test-versions-all fuzz check format site bench bench-guard bench-instructions clean

demo: $(VENV)/.demo
	$(RUN)/tilelab demo

test: $(VENV)/.test
	$(RUN)/python -m pytest -n auto --dist loadfile

fuzz: $(VENV)/.test
	$(RUN)/python -m tests.fuzzing --count 5000

test-slow: $(VENV)/.test
	$(RUN)/python -m pytest -m slow

test-versions: $(VENV)/.made
	$(RUN)/python -m tests.versions

test-versions-all: $(VENV)/.made
	$(RUN)/python -m tests.versions --all

check: $(VENV)/.check
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python -m tests.house

format: $(VENV)/.check
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

site: $(VENV)/.site
	$(RUN)/python docs/make_site.py build/site

bench: $(VENV)/.bench
	$(RUN)/python -m benchmarks run

bench-guard: $(VENV)/.test
	$(RUN)/python -m benchmarks guard

bench-instructions: $(VENV)/.test
	$(RUN)/python -m benchmarks guard --instructions

clean:
	rm -rf $(VENV) .venv-versions demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.made
	$(PIP) --editable ".[cpu]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(PIP) --editable ".[cpu,train,cluster,test,docs]"
	@touch $@ $(VENV)/.demo

$(VENV)/.check: pyproject.toml | $(VENV)/.test
	$(PIP) --editable ".[cpu,train,cluster,test,docs,check]"
	@touch $@

$(VENV)/.site: pyproject.toml | $(VENV)/.made
	$(PIP) --editable ".[docs]"
	@touch $@

$(VENV)/.bench: pyproject.toml benchmarks/requirements.txt | $(VENV)/.test
	$(PIP) --editable ".[cpu,train,cluster,test]" -r benchmarks/requirements.txt
	@touch $@
