# make pretrain and make test are all a newcomer needs; both install first.

PY := .venv/bin/python
LATEST := .venv-latest/bin/python
# One thread a rank: several ranks share the cores of a small machine.
export OMP_NUM_THREADS ?= 1

# Tests run in this many processes; a job of 2 or 4 ranks is one test.
WORKERS ?= 2
PYTEST := $(PY) -m pytest -q --numprocesses $(WORKERS) --dist worksteal
# Of another processor: none of its wide instructions, and MKL's oldest arithmetic.
PLAIN_CPU := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE
NUMERIC := tests/unit/functional tests/unit/kernels tests/unit/moe tests/integration/test_verify.py

.PHONY: install pretrain compare compare-moepp test test-all test-latest test-gpu gpu-bundle docs \
    lint format release

install: .venv/.installed

.venv/.installed: setup.py .ci/install .ci/constraints.txt
	.ci/install

pretrain: install  ## train a small Grove model on real text and show what happened
	$(PY) examples/pretrain_text.py

# ARGS=--update keeps the figures for the cards of parts.
compare: install  ## routers beside plain top-k on the same text: about 20 minutes on 2 idle cores
	$(PY) examples/compare.py routers $(ARGS)

compare-moepp: install  ## plain, Grove, MoE++ and both on the same text: under 20 minutes on 2 cores
	$(PY) examples/compare.py moepp

test: install  ## what every change has to pass: under 15 minutes on 2 cores
	$(PYTEST) -m "not long" --ignore tests/gpu

test-all: install  ## the whole matrix on CPU: under 50 minutes on 2 cores
	$(PLAIN_CPU) $(PYTEST) -m "not long" $(NUMERIC)
	$(PYTEST) --ignore tests/gpu

# Of another Python: make test-latest PYTHON=python3.13. Writes README's table, then fails if a
# test did.
test-latest:  ## make test with the newest versions that pip finds, in .venv-latest
	.ci/install latest
	$(subst $(PY),$(LATEST),$(PYTEST)) -m "not long" --ignore tests/gpu \
	    --junitxml runs/latest.xml; status=$$?; \
	    $(LATEST) tests/meta/versions.py runs/latest.xml && exit $$status

test-gpu: install  ## needs CUDA; each test skips with a reason without
	$(PY) -m pytest -q tests/gpu

# -E: what was read before is read again, so that every warning is seen.
docs: install  ## the site of the documents, in runs/docs/html; a broken link is an error
	$(PY) -m sphinx -E -W --keep-going -q -b html docs runs/docs/html
	@echo "runs/docs/html/index.html"

# TE=folder: with TransformerEngine's wheels there, in parts.
gpu-bundle: install  ## runs/gpu-bundle: tests and benchmarks for a GPU without a network
	$(PY) -m grove_megatron.benchmarks.kit.build $(if $(TE),--te $(TE))

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

release: install  ## the source distribution and the wheel of this commit, in runs/dist, and checked
	$(PY) -m tests.integration.distributions runs/dist
	GROVE_DIST=$(CURDIR)/runs/dist $(PY) -m pytest -q tests/meta tests/integration/test_release.py
