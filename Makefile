# make pretrain and make test are all a newcomer needs; both install first.

PY := .venv/bin/python
# One thread a rank: several ranks share the cores of a small machine.
export OMP_NUM_THREADS ?= 1

.PHONY: install pretrain test test-all test-gpu lint format

install: .venv/.installed

.venv/.installed: setup.py .ci/install .ci/constraints.txt
	.ci/install

pretrain: install  ## train a small Grove model on real text and show what happened
	$(PY) examples/pretrain_text.py

test: install  ## what every change has to pass: under 15 minutes on 2 cores
	$(PY) -m pytest -q -m "not long" --ignore tests/gpu

test-all: install  ## the whole matrix on CPU: under 50 minutes on 2 cores
	$(PY) -m pytest -q --ignore tests/gpu

test-gpu: install  ## needs CUDA; each test skips with a reason without
	$(PY) -m pytest -q tests/gpu

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
