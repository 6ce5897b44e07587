# make quickstart   install, render synthetic data, train, evaluate: about seven minutes on two cores
# make test         lint and all tests
# make test-quick   the tests that neither train nor start processes: for the edit loop
# make benchmark    of the accelerator at hand, against PyTorch, for MINUTES=30; called again it goes on with the rows that
#                   are missing. BENCH=PYTHON: one that has jax and torch for it. MORE=--small: a rehearsal on a CPU
# make install      .venv with pinned versions. DEVICE=cuda13 or tpu: JAX for that device. PYTHON=python3.12: another Python
# make reproduce    DATA=FOLDER: AP of the published models at hand beside the published AP. MORE='--download': fetches them

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
RUN = .venv/bin/python
DEVICE ?=
BENCH ?= $(RUN)
MINUTES ?= 30
QUICK = runs/quickstart
PARALLEL = --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: install quickstart test test-quick lint benchmark reproduce

# Python then keeps compiled modules: hundreds of processes import the same ones.
unexport PYTHONDONTWRITEBYTECODE

ifneq ($(filter-out cuda12 cuda13 tpu,$(DEVICE)),)
$(error DEVICE=$(DEVICE): must be cuda13, cuda12 or tpu, or empty for CPUs)
endif

install: .venv/installed$(DEVICE)

.venv/installed: requirements.txt setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip install --quiet --python $(RUN) --requirement requirements.txt
	.venv/bin/uv pip install --quiet --python $(RUN) --no-deps --editable .
	touch $@

# The plugin of the device beside the pinned JAX.
.venv/installedcuda12 .venv/installedcuda13 .venv/installedtpu: .venv/installed
	.venv/bin/uv pip install --quiet --python $(RUN) --constraint requirements.txt 'jax[$(DEVICE)]'
	touch $@

quickstart: install
	$(RUN) -m data_pipelines.synthetic --root runs/synthetic
	$(RUN) -m benchmarks.difficulty --root runs/synthetic
	$(RUN) -m hrnet_jax.train --config configs/quickstart.py --workdir $(QUICK)
	$(RUN) -m hrnet_jax.evaluate --checkpoint $(QUICK) --output $(QUICK)/annotated_boxes --config.data.eval.boxes=

test: install lint
	$(RUN) -m pytest $(PARALLEL)

test-quick: install
	$(RUN) -m pytest $(PARALLEL) -m 'not slow'

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

reproduce: install
	$(RUN) -m benchmarks.reproduce --data "$(DATA)" $(MORE)

benchmark:
	$(BENCH) -m benchmarks.accelerator --minutes $(MINUTES) --json runs/benchmarks/accelerator.json $(MORE)
