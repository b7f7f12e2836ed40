# Everything runs from .venv. `make install` installs it from requirements.lock and checks the hashes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PLUGINS := $(addprefix plugins/tlray-,attention-head efficientnet-lite keras-applications vgg16-weights)
PACKAGES := . $(PLUGINS)
ROOMS := tests --ignore=tests/jobs --ignore=tests/cluster_jobs
# The guides take minutes, so they begin first; by itself pytest-xdist would begin a file with few tests last.
PLUGIN_TESTS := --no-loadscope-reorder tests/packaging/guides.py tests/plugins/installed.py $(addsuffix /tests,$(PLUGINS))
# Two processes run the tests, and each test file runs in one of them.
PARALLEL := -n 2 --dist loadfile

.PHONY: install demo test test-fast test-plugins test-plugins-all test-cluster test-deploy torture lint bench scale results lock image deploy

include deploy/.env

install: .venv/installed

.venv/installed: requirements.lock $(addsuffix /pyproject.toml,$(PACKAGES))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(addprefix --editable ,$(PACKAGES))
	touch $@

demo: install
	$(BIN)/tlray demo

# Runs the tests of the rooms in two processes, then whole jobs on one Ray.
test: install
	$(BIN)/python -m pytest $(PARALLEL) $(ROOMS)
	$(BIN)/python -m pytest -m "not distributed" tests/jobs

test-fast: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ROOMS)

# Runs the plugins' own tests, checks plugins against the contract (of the networks one of each kind), and follows
# README.md and the guide to writing a plugin.
test-plugins: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not every_network" $(PLUGIN_TESTS)

# The same for every network: ten minutes.
test-plugins-all: install
	$(BIN)/python -m pytest $(PARALLEL) $(PLUGIN_TESTS)

# Runs jobs on a Ray of several nodes on this machine, trainings by several workers, and jobs whose processes are
# killed or that start a Ray of their own.
test-cluster: install
	$(BIN)/python -m pytest tests/cluster_jobs
	$(BIN)/python -m pytest -m distributed tests/jobs

# Runs the installation steps of the image, and the part of the guide in deploy/ that needs no Docker: some minutes.
test-deploy: install
	$(BIN)/python -m pytest tests/packaging/image.py

image:
	docker build --file deploy/Dockerfile --tag $(TLRAY_IMAGE):$(TLRAY_VERSION) .
	docker build --file deploy/Dockerfile --build-arg LOCK=image-gpu.lock --tag $(TLRAY_IMAGE):$(TLRAY_VERSION)-gpu .

deploy: install
	$(BIN)/python deploy/render.py

# Takes ten minutes on two cores. TORTURE holds options of tests/cluster_jobs/torture.py, for example
# TORTURE="--seed 3 --kills 30 --images 1500".
torture: install
	$(BIN)/python -m tests.cluster_jobs.torture $(TORTURE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Takes half an hour on two cores, on which nothing else should run. BENCH="--photographs DIR" measures with your own
# photographs.
bench: install
	$(BIN)/python -m tests.benchmarks.bench $(BENCH)

# Measures the figures of docs/scale.md. SCALE holds options of the script, for example
# SCALE="--images 200000 --only runs".
scale: install
	$(BIN)/python -m tests.benchmarks.scale $(SCALE)

# Takes an hour on two cores. The data are not part of the project: RESULTS holds the options that name their folders.
results: install
	$(BIN)/python -m tests.benchmarks.results $(RESULTS)

# Needs uv. The locks name versions and hashes, and no index. Packages in several locks have the same version in all.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	$(addprefix --no-emit-package ,tlray $(notdir $(PLUGINS))) --extra cluster --extra heic
PROJECTS := $(patsubst ./%,%,$(addsuffix /pyproject.toml,$(PACKAGES)))
lock:
	$(COMPILE) --extra tensorboard --group dev --output-file requirements.lock $(PROJECTS)
	$(COMPILE) --group build --group launcher --constraint requirements.lock --output-file deploy/image.lock $(PROJECTS)
	$(COMPILE) --group build --group launcher --constraint requirements.lock --extra gpu --output-file deploy/image-gpu.lock $(PROJECTS)
