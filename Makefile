# make quickstart   install, render synthetic data, train, evaluate: about six minutes on two cores
# make test         the tests
# make install      .venv with pinned versions

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
RUN = .venv/bin/python
QUICK = runs/quickstart

.PHONY: install quickstart test lint

install: .venv/installed

.venv/installed: requirements.txt setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip install --quiet --python $(RUN) --requirement requirements.txt
	.venv/bin/uv pip install --quiet --python $(RUN) --no-deps --editable .
	touch $@

quickstart: install
	$(RUN) -m data_pipelines.synthetic --root runs/synthetic
	$(RUN) benchmarks/difficulty.py --root runs/synthetic
	$(RUN) -m hrnet_jax.train --config configs/quickstart.py --workdir $(QUICK)
	$(RUN) -m hrnet_jax.evaluate --checkpoint $(QUICK) --output $(QUICK)/annotated_boxes --config.data.eval.boxes=

test: install lint
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
