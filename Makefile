# Two commands: `make demo` and `make test`. `make help` lists the rest. Installing happens as needed.
VENV ?= .venv
EXTRAS ?= demo,test,notebooks
WHEELHOUSE ?=
PLATFORM ?= manylinux_2_28_$(shell uname -m)
# Each worker holds torch and a model.
TEST_WORKERS ?= 2
METHOD = sampler memory_bank classifier roi_heads config trainer

# PYTHON may be a path, a name or just a version; for `make wheelhouse` it is the version of the machine to serve.
PYTHON ?=
ASKED := $(if $(filter wheelhouse,$(MAKECMDGOALS)),,$(PYTHON))
CANDIDATES := $(if $(ASKED),$(patsubst 3.%,python3.%,$(ASKED)),python3 python3.14 python3.13 python3.12 python3.11)
# Candidates must really run: version managers leave stubs that fail.
FIND_PYTHON = for python in $(CANDIDATES) ''; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 && break; done; \
	if [ -z "$$python" ]; then \
		echo 'rio needs Python 3.11 to 3.14; tried: $(CANDIDATES). Fix: make PYTHON=/path/to/python3.13' >&2; exit 1; fi
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
# One for each checkout and choice of extras: another one is installed anew.
STAMP := $(VENV)/rio-installed-$(shell echo '$(CURDIR) $(EXTRAS)' | cksum | cut -d' ' -f1)
PY = '$(VENV)/bin/python'
# One thread per process: the workers keep the cores busy.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lab app screenshots bench lint lines wheelhouse constraints clean distclean

help:
	@echo 'make demo        train a detector and 24 classifiers on the embedded data set, on the CPU; ends with an HTML report'
	@echo 'make test        run the tests (make test-slow: the long ones, which it leaves out; TEST_WORKERS=$(TEST_WORKERS))'
	@echo 'make lab         open the notebooks in JupyterLab'
	@echo 'make app         look at predictions in a browser: RUN=output/demo/rfs+bank-cosine-seed1  PORT=8866  (this machine only)'
	@echo 'make bench       measure against the peers; writes tests/benchmarks/RESULTS.md and the table in README.md (BENCH_ARGS="--only data")'
	@echo 'make install     make $(VENV) and install all into it; the others do it as needed'
	@echo '                 PYTHON=python3.13  VENV=.venv  EXTRAS=$(EXTRAS)'
	@echo '                 WHEELHOUSE=dir  without a network;  SYSTEM_SITE_PACKAGES=1  use the torch that python has'
	@echo '                 TAKE_OVER=1  also where another checkout is installed, which loses it'
	@echo 'make lint        check style and types (ruff, mypy);  make lines  count them'
	@echo 'make wheelhouse  PYTHON=3.13 [PLATFORM=$(PLATFORM)] [WHEELHOUSE=wheelhouse]: collect every wheel'
	@echo '                 but those of torch, for a machine without a network'
	@echo 'make screenshots draw notebooks/images/ anew, from real runs (needs chromium and playwright)'
	@echo 'make constraints pin the versions of $(VENV) in constraints.txt'
	@echo 'make clean       remove what was built and cached here (make distclean: $(VENV) too); data and runs stay'

$(VENV)/bin/python:
	@$(FIND_PYTHON); echo "install: making $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv $(if $(SYSTEM_SITE_PACKAGES),--system-site-packages) '$(VENV)' || { rm -rf '$(VENV)'; \
		echo "$$python cannot make an environment. Fix, on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.PHONY: same-python
same-python: | $(VENV)/bin/python
ifneq ($(ASKED),)
	@$(FIND_PYTHON); asked=$$("$$python" $(VERSION)); there=$$($(PY) $(VERSION)); if [ "$$asked" != "$$there" ]; then \
		echo "$(VENV) has Python $$there; asked for $$asked. Fix: rm -r $(VENV), or VENV=.venv-$$asked" >&2; exit 1; fi
endif

$(STAMP): rio/install.py pyproject.toml constraints.txt | same-python
	@$(PY) -m rio.install --extras '$(EXTRAS)' $(if $(WHEELHOUSE),--wheelhouse '$(WHEELHOUSE)') $(if $(TAKE_OVER),--take-over)
	@touch '$@'

install: $(STAMP) | same-python

demo: install
	@$(PY) -m rio demo

test: install
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: install
	@$(PYTEST) -m slow $(PYTEST_ARGS)

lint:
	@$(MAKE) -s install EXTRAS='$(EXTRAS),lint'
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(METHOD:%=rio/%.py) rio/data rio/losses

lines:
	@find rio -name '*.py' -exec cat {} + | wc -l | xargs echo 'rio/             '
	@cat $(METHOD:%=rio/%.py) | wc -l | xargs echo 'the method       '
	@find tests -name '*.py' -exec cat {} + | wc -l | xargs echo 'tests/           '
	@find rio -name '*.py' -exec wc -l {} + | sort -n | tail -2 | head -1 | xargs echo 'the largest file '
	@wc -l $(METHOD:%=rio/%.py)

# Loopback only, each with a token of its own in the address that it prints.
lab: install
	@cd notebooks && '$(abspath $(VENV))/bin/python' -m jupyter lab --ServerApp.ip=127.0.0.1 \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS)

app: install
	@$(PY) -m rio.widgets.app $(if $(RUN),--run '$(RUN)') $(if $(PORT),--port $(PORT)) $(APP_ARGS)

screenshots: install
	@$(PY) -m tests.screenshots

bench: install
	@OMP_NUM_THREADS=1 $(PY) -m tests.benchmarks $(BENCH_ARGS)
	@$(PY) -m tests.readme

# pip takes platform tags literally: manylinux_2_28 gets all older ones too. Source releases (antlr4, fvcore, iopath) and
# rio are packed here; detectron2's wheel is corrected (rio/install.py). torch has to be on the other machine already.
wheelhouse: HOUSE = $(or $(WHEELHOUSE),wheelhouse)
wheelhouse: SOURCE_ONLY = antlr4-python3-runtime|fvcore|iopath
wheelhouse: $(VENV)/bin/python
	@mkdir -p '$(HOUSE)' build
	@grep -vE '^(#|torch|triton|nvidia-|cuda-|$(SOURCE_ONLY))' constraints.txt > build/wheels.txt
	@grep -E '^($(SOURCE_ONLY))=' constraints.txt > build/sources.txt
	@set -- $$(echo '$(PLATFORM)' | sed -nE 's/^manylinux_2_([0-9]+)_(.+)/\1 \2/p'); \
	tags=$$(for n in $$(seq $${1:-0} -1 5); do echo "--platform manylinux_2_$${n}_$$2"; done; \
		if [ -n "$$2" ]; then echo "--platform manylinux2014_$$2 --platform linux_$$2"; fi); \
	$(PY) -m pip download -q --no-deps --only-binary :all: --implementation cp --platform '$(PLATFORM)' $$tags \
		$(if $(PYTHON),--python-version '$(PYTHON)') --find-links '$(HOUSE)' -d '$(HOUSE)' -r build/wheels.txt
	@$(PY) -m pip wheel -q --no-deps --find-links '$(HOUSE)' -w build/pure -r build/sources.txt .
	@if ls build/pure/*.whl | grep -v -- -none-any.whl; then \
		echo 'the wheels above were built for this machine only' >&2; exit 1; fi
	@mv -f build/pure/*.whl '$(HOUSE)' && $(PY) -m rio.install --wheel '$(HOUSE)'
	@echo 'There: make install WHEELHOUSE=$(notdir $(HOUSE)) $(if $(PYTHON),PYTHON=$(PYTHON)) SYSTEM_SITE_PACKAGES=1'

constraints:
	@$(MAKE) -s install EXTRAS=boundary,browser,cluster,demo,lint,notebooks,test
	@mkdir -p build
	@echo '# Versions known to work together, for Python 3.11 to 3.14; only name==version.' > build/constraints.txt
	@echo '# Made by `make constraints` from an environment in which the tests passed.' >> build/constraints.txt
	@$(PY) -m pip freeze --all --exclude-editable --exclude detectron2 > build/freeze.txt
	@awk -F== '{gsub(/[_.]+/, "-", $$1); sub(/[+].*/, "", $$2); print tolower($$1) "==" $$2}' build/freeze.txt | LC_ALL=C sort -t= -k1,1 \
		>> build/constraints.txt
	@mv build/constraints.txt constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find rio tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean
	rm -rf '$(VENV)'
