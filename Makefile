# Two commands: `make demo` and `make test`.  `make help` lists the rest.
#
# Installing happens as needed; when nothing changed it is over in a moment (install.py).

VENV ?= .venv
EXTRAS ?= demo,test,notebooks
WHEELHOUSE ?=
PLATFORM ?=
# Two, the least a machine here has: each worker holds torch and a model.
TEST_WORKERS ?= 2

# PYTHON may be a path, a name or just a version. Candidates must really run: version managers leave stubs that fail.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(if $(filter 3.%,$(PYTHON)),python$(PYTHON),$(PYTHON)),$(VENV)/bin/python python3.12 python3.11 python3)
FIND_PYTHON = python=; for candidate in $(1); do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; then \
		python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
		echo 'rio needs Python 3.11 or 3.12; tried: $(1). Name one: make PYTHON=/path/to/python3.12' >&2; exit 1; fi

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lab app screenshots bench wheelhouse constraints clean distclean

help:
	@echo 'make demo        train three detectors on the embedded data set, on the CPU; ends with an HTML report'
	@echo 'make test        run the tests (make test-slow: the long ones, which it leaves out; TEST_WORKERS=$(TEST_WORKERS))'
	@echo 'make lab         open the notebooks in JupyterLab'
	@echo 'make app         look at predictions in a browser: RUN=output/demo/rio-seed1  PORT=8866  (this machine only)'
	@echo 'make bench       measure against the peers and write tests/benchmarks/RESULTS.md and the table in README.md (BENCH_ARGS="--only data")'
	@echo 'make install     make $(VENV) and install all into it; the others do it as needed'
	@echo '                 PYTHON=python3.12  VENV=.venv  EXTRAS=$(EXTRAS)'
	@echo '                 WHEELHOUSE=dir  without a network;  SYSTEM_SITE_PACKAGES=1  use the torch that python has'
	@echo 'make wheelhouse  PYTHON=3.12 [PLATFORM=manylinux_2_28_x86_64] [WHEELHOUSE=wheelhouse]: collect every wheel'
	@echo '                 but those of torch, for a machine without a network'
	@echo 'make screenshots draw notebooks/images/ anew, from real runs (needs chromium and playwright)'
	@echo 'make constraints pin the versions of $(VENV) in constraints.txt'
	@echo 'make clean       remove what was built and cached here (make distclean: $(VENV) too); data and runs stay'

install:
	@$(call FIND_PYTHON,$(CANDIDATES)); \
	"$$python" install.py --venv '$(VENV)' --extras '$(EXTRAS)' \
		$(if $(WHEELHOUSE),--wheelhouse '$(WHEELHOUSE)') $(if $(SYSTEM_SITE_PACKAGES),--system-site-packages)

demo: install
	@'$(VENV)/bin/python' -m rio demo

# One thread a process: the workers are what keeps the cores busy.
PYTEST = OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -n $(TEST_WORKERS) --dist loadfile

test: install
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: install
	@$(PYTEST) -m slow $(PYTEST_ARGS)

# Loopback only, each with a token of its own in the address that it prints.
lab: install
	@cd notebooks && '$(abspath $(VENV))/bin/python' -m jupyter lab --ServerApp.ip=127.0.0.1 $(LAB_ARGS)

app: install
	@'$(VENV)/bin/python' -m rio.widgets.app $(if $(RUN),--run '$(RUN)') $(if $(PORT),--port $(PORT)) $(APP_ARGS)

screenshots: install
	@'$(VENV)/bin/python' -m tests.screenshots

bench: install
	@OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m tests.benchmarks $(BENCH_ARGS)
	@'$(VENV)/bin/python' -m tests.readme

# PYTHON is here the version of the machine to serve; what runs this is any python that rio runs on.
wheelhouse:
	@$(call FIND_PYTHON,$(VENV)/bin/python python3.12 python3.11 python3); \
	"$$python" install.py --collect '$(or $(WHEELHOUSE),wheelhouse)' $(if $(PYTHON),--for-python '$(PYTHON)') \
		$(if $(PLATFORM),--platform '$(PLATFORM)')

constraints: install
	@'$(VENV)/bin/python' install.py --freeze

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis
	find rio tests notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf '$(VENV)'
