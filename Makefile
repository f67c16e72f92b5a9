# The few commands a developer runs, inside the environment of `pip install -e '.[dev]'`.

PYTHON ?= python
SPEED = benchmarks/run.py benchmarks/imports.py benchmarks/gyro_speed.py

.PHONY: help all export run test mutate lint bench

help:    ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

all: run lint test    ## everything that must hold before a change is handed over

export:    ## notebooks -> minima/ (cleaned first: cells need their ids)
	nbdev_clean
	nbdev_export

run: export    ## execute the notebooks and keep their outputs; NB=nbs/00_backend.ipynb for one
	$(PYTHON) tools/run_notebooks.py $(NB)

test:    ## all tests
	$(PYTHON) -m pytest

mutate:    ## break every rule in many small ways: the tests must notice; ARGS="--only tanh" for one
	$(PYTHON) tools/mutate.py $(ARGS)

lint:    ## ruff, on code and notebooks
	$(PYTHON) -m ruff check .

bench:    ## the benchmarks, as ratios to PyTorch on this machine
	set -e; for script in $(SPEED); do OMP_NUM_THREADS=1 $(PYTHON) $$script; done
