# The project's habits as commands: `make help`.
# Everything is installed into .venv, once: stamps inside it remember what was done.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_OUTPUT ?= demo-output
SUBSET ?= full
WEIGHTS ?= default
SHARED ?= ../shared
SCORES_OUTPUT ?= scores

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input -c constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test exhaustive fuzz scores scores-plus bench-inference lint format licences audit sbom clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMPS)/demo  ## segment a real template brain with the shipped weights, into demo-output/
	@$(BIN)/synthseg demo -o $(DEMO_OUTPUT)

# One torch thread a worker: two workers on two cores, instead of four threads quarrelling over them.
test: $(STAMPS)/dev  ## run every test (PYTEST_ARGS="-m 'not slow'" leaves the slow ones out)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# A kill and a full disk at every single operation, hundreds of damaged files of every kind: an hour or two.
exhaustive: $(STAMPS)/dev  ## run the proofs that `make test` only samples
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m exhaustive $(PYTEST_ARGS)

# FUZZ_ARGS="--targets nifti,bank --seed 3 --files 5000"; findings, smallest first, in fuzz-out/.
FUZZ_ARGS ?= --files 1000
fuzz: $(STAMPS)/dev  ## give every reader files that are damaged in new ways
	@$(BIN)/python -m fuzz --out fuzz-out $(FUZZ_ARGS)

# Interrupted, it goes on where it was; other weights start afresh. Results are kept in $(SCORES_OUTPUT)/.
scores: $(STAMPS)/dev  ## score the weights on the validation scans, into docs/scores.md (SUBSET=quick, WEIGHTS=...)
	@$(BIN)/python -m benchmarks.scores --shared $(SHARED) --subset $(SUBSET) --weights $(WEIGHTS) --out $(SCORES_OUTPUT)

# The same for the robust hierarchy and what goes with it, into the second half of the page. Networks that are missing
# are said to be; others than the shipped: PLUS_ARGS="--weights tissues=PATH denoiser=PATH".
PLUS_ARGS ?=
scores-plus: $(STAMPS)/dev  ## prove the robust mode, the denoiser, quality control, parcels, ICV, into docs/scores.md
	@$(BIN)/python -m benchmarks.plus --shared $(SHARED) --subset $(SUBSET) --out $(SCORES_OUTPUT)/plus $(PLUS_ARGS)

# Some 25 minutes on two quiet cores; interrupted, it goes on where it was. More: INFERENCE_ARGS="--peers peers
# --paper WEIGHTS", see benchmarks/inference/__main__.py.
INFERENCE_ARGS ?=
bench-inference: $(STAMPS)/dev  ## measure inference against plain torch, peers and the original's figures
	@$(BIN)/python -m benchmarks.inference --shared $(SHARED) --out $(SCORES_OUTPUT)/inference --subset $(SUBSET) $(INFERENCE_ARGS)

# No cache: lint-imports' own goes stale when a module appears that an unchanged file imports.
lint: $(STAMPS)/dev  ## style, formatting, types, and which room may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@MYPYPATH=. $(BIN)/mypy experiments fuzz --namespace-packages --explicit-package-bases
	@$(BIN)/lint-imports --no-cache

format: $(STAMPS)/dev  ## mend style and formatting in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

licences: $(STAMPS)/dev  ## write docs/licences.md: what is used, under which licence
	@$(BIN)/python -m tools.licences

# Needs the network (PyPI's database; AUDIT_ARGS="-s osv" asks osv.dev). Without an answer it fails, and says so.
AUDIT_ARGS ?=
audit: $(STAMPS)/dev  ## look up known vulnerabilities of what is needed at run time
	@$(BIN)/python -m tools.audit $(AUDIT_ARGS)

# Of the whole environment, tools of development included; for what a site runs, make it there:
# cyclonedx-py environment PYTHON_OF_THE_SITE.
SBOM ?= build/sbom.cdx.json
sbom: $(STAMPS)/dev  ## list every package with its version, as CycloneDX JSON
	@mkdir -p $(dir $(SBOM))
	@$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type application --output-reproducible --of JSON -o $(SBOM)
	@echo $(SBOM)

clean:  ## remove the environment and everything built
	@rm -rf $(VENV) $(DEMO_OUTPUT) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "synthseg needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/demo: $(PINS) | $(STAMPS)/venv
	@echo "installing synthseg into $(VENV) (once; torch is large)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

# The development extra holds the demo's packages too, so that `make test` then `make demo` installs once.
$(STAMPS)/dev: $(PINS) | $(STAMPS)/venv
	@echo "installing synthseg and its development tools into $(VENV) (once; torch is large)"
	@$(INSTALL) -e '.[dev]'
	@touch $(STAMPS)/demo $@
