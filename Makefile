# Everything runs from .venv, which is installed from requirements.lock by hash.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PLUGINS := $(addprefix plugins/tlray-,attention-head efficientnet-lite keras-applications vgg16-weights)
PACKAGES := . $(PLUGINS)

.PHONY: install demo test test-fast test-plugins test-cluster test-deploy torture lint bench scale results lock image deploy

include deploy/.env

install: .venv/installed

.venv/installed: requirements.lock $(addsuffix /pyproject.toml,$(PACKAGES))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(addprefix --editable ,$(PACKAGES))
	touch $@

demo: install
	$(BIN)/tlray demo

test: install
	$(BIN)/python -m pytest -m "not cluster" tests --ignore=tests/cluster_jobs

test-fast: install
	$(BIN)/python -m pytest -m "not slow" tests --ignore=tests/cluster_jobs --ignore=tests/jobs

# The plugins in plugins/, by their own tests and the contract, and the guide to writing one.
test-plugins: install
	$(BIN)/python -m pytest tests/plugins/installed.py tests/packaging/plugin_guide.py $(addsuffix /tests,$(PLUGINS))

# Jobs on a Ray of several nodes on this machine, and jobs whose processes are killed.
test-cluster: install
	$(BIN)/python -m pytest tests/cluster_jobs && $(BIN)/python -m pytest -m cluster tests/jobs

# The installation of the image, and the guide of deploy/ as far as that goes here: some minutes.
test-deploy: install
	$(BIN)/python -m pytest tests/packaging/image.py

image:
	docker build --file deploy/Dockerfile --tag $(TLRAY_IMAGE):$(TLRAY_VERSION) .
	docker build --file deploy/Dockerfile --build-arg LOCK=image-gpu.lock --tag $(TLRAY_IMAGE):$(TLRAY_VERSION)-gpu .

deploy: install
	$(BIN)/python deploy/render.py

# Ten minutes on two cores. TORTURE="--seed 3 --kills 30 --images 1500" are the options of tests/cluster_jobs/torture.py.
torture: install
	$(BIN)/python -m tests.cluster_jobs.torture $(TORTURE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Half an hour on two cores, beside nothing else. BENCH="--photographs DIR" measures on your own.
bench: install
	$(BIN)/python -m tests.benchmarks.bench $(BENCH)

# For docs/scale.md. SCALE="--images 200000 --only runs" are options of the script.
scale: install
	$(BIN)/python -m tests.benchmarks.scale $(SCALE)

# An hour on two cores. The data are not part of the project: say in RESULTS where they are.
results: install
	$(BIN)/python -m tests.benchmarks.results $(RESULTS)

# Needs uv. The locks name versions and hashes, and no index; those of the images are parts of the first.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	$(addprefix --no-emit-package ,tlray $(notdir $(PLUGINS))) --extra cluster
PROJECTS := $(patsubst ./%,%,$(addsuffix /pyproject.toml,$(PACKAGES)))
lock:
	$(COMPILE) --extra tensorboard --group dev --output-file requirements.lock $(PROJECTS)
	$(COMPILE) --group build --group launcher --constraint requirements.lock --output-file deploy/image.lock $(PROJECTS)
	$(COMPILE) --group build --group launcher --constraint requirements.lock --extra gpu --output-file deploy/image-gpu.lock $(PROJECTS)
