# Every target sets itself up: a fresh machine needs only GNU make and Python 3.11 to 3.13.
#   make demo PYTHON=python3.12            another interpreter
#   make test PYTEST_FLAGS="-k funding"    more flags for pytest

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=

PY = $(VENV)/bin/python
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES = markets encoders envs agents scripts
PINS = setup.cfg pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test lint types coverage build clean

help:
	@echo "make demo | test | lint | types | coverage | build | clean"

demo: $(VENV)/.installed-demo
	$(VENV)/bin/regimegym demo

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n auto --dist loadfile $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .

types: $(VENV)/.installed-dev
	$(PY) -m mypy

# Coverage cannot see into machine code, so this run interprets what numba would compile: same numbers, slower.
coverage: $(VENV)/.installed-dev
	NUMBA_DISABLE_JIT=1 $(PY) -m pytest -m "not slow" --cov --cov-report=term-missing $(PYTEST_FLAGS)
	@echo "line coverage: `$(PY) -m coverage report --format=total` %"

build: $(VENV)/.installed-dev
	$(PY) -m build

# Leaves $(VENV) and runs/ alone.
clean:
	rm -rf build dist *.egg-info .overlay .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov junit*.xml
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf __pycache__

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		"RegimeGym needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(PINS) | $(VENV)/pyvenv.cfg
	$(INSTALL) -e '.[data,viz]'
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/pyvenv.cfg
	$(INSTALL) -e '.[data,viz,dev]'
	@touch $@ $(VENV)/.installed-demo
