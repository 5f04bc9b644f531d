# `make demo` runs the model that ships inside; `make test` runs the quick tests; `make check` is what CI runs.
# Everything lives in .venv. Setting up is done once and again when pyproject.toml or constraints.txt change.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

SCENE := examples/scene.png
FIND := Find the crown.
OUT := out
# Two processes, each with whole files of tests: what a file makes for its tests is made once.
SIDE_BY_SIDE := -n 2 --dist loadfile

.PHONY: help demo test test-all format check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      ask the small model that ships inside; writes $(OUT)/found.png"
	@echo "make test      quick tests"
	@echo "make test-all  quick and slow tests"
	@echo "make format    format and mend what ruff can"
	@echo "make check     everything that CI checks"
	@echo "make clean     remove what make made"

demo: $(VENV)/ready
	@mkdir -p $(OUT)
	$(BIN)/foveal ask --image $(SCENE) "Describe the image."
	$(BIN)/foveal ask --image $(SCENE) --draw $(OUT)/found.png "$(FIND)"
	@echo "The picture with its box: $(OUT)/found.png"

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-all: $(VENV)/ready-page $(VENV)/ready-npm
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

format: $(VENV)/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check:
	.ci/run

clean:
	rm -rf $(VENV) $(OUT) build dist

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python found. Install Python 3.11 or newer, or set PYTHON."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old. Install Python 3.11 or newer, or set PYTHON."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What running needs; PyAV is in, so that videos work too.
$(VENV)/ready: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[video]"
	@touch $@

# What working on it needs.
$(VENV)/ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/ready

# What the tests of the server's page need besides: a browser, Debian's Chromium unless one is there.
$(VENV)/ready-page: $(VENV)/ready-dev
	@command -v chromium >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| { echo "The page's tests need Chromium. Install it (apt-get install chromium) as root."; exit 1; }
	$(INSTALL) -e ".[dev,page]"
	@touch $@

# OpenAI's client for JavaScript, which a test lets ask the server; Debian's Node unless one is there.
$(VENV)/ready-npm: tests/serve/npm/package-lock.json | $(BIN)/python
	@command -v npm >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null; } \
		|| { echo "The test of the JavaScript client needs Node and npm. Install them (apt-get install npm) as root."; exit 1; }
	@mkdir -p $(VENV)/npm
	@cp tests/serve/npm/package.json tests/serve/npm/package-lock.json $(VENV)/npm/
	cd $(VENV)/npm && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@
