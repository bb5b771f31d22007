# All targets install into .venv, and change nothing else on the machine. `make` without a target prints the targets
# that have a text after ##.

PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo check test test-long coverage lint ruff mypy imports spelling c page workflows docs docs-external bench bench-full bench-compare bench-publish bench-stitch bench-detect bench-relay bench-storage image-usage first-sight calibration-trials soak kubernetes verify system-packages clean
.DEFAULT_GOAL := help

PYTEST := $(BIN)/python -m pytest
# The tests of a module run in one process, because they share fixtures; modules with slow tests come first. There are
# three processes for two cores, because tests wait for a third of their time.
PYTEST_BY_MODULE := pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer with venv is needed: set PYTHON=..., or apt-get install python3-venv" >&2; exit 1; }
	@echo 'making $(VENV)'
	@$(PYTHON) -m venv $(VENV)

# rich is installed first, because it draws the progress of the rest. It requires nothing else of this project.
INSTALL := $(BIN)/python -m services.supervisor.install

$(VENV)/installed-rich: $(BIN)/python constraints.txt
	@said=$$($(PIP) install --constraint constraints.txt rich 2>&1) || { echo "$$said" >&2; exit 1; }
	@touch $@

# Both distributions, editable: the library, and the services with all their dependencies.
SOURCES := pyproject.toml setup.py services/pyproject.toml services/setup.py constraints.txt \
  $(wildcard framebus/ring/_*.[ch] services/stitcher/rendering/_*.[ch])

$(VENV)/installed-all: $(SOURCES) | $(VENV)/installed-rich
	@$(INSTALL) 'framebus and its services' \
	  --constraint constraints.txt --editable '.[snapshot]' --editable './services[supervisor]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-all
	@$(INSTALL) 'what the tests need' --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed-dev
	@$(INSTALL) 'what makes the site' --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The libraries that the benchmark compares with: other brokers and transports, which no other test requires.
$(VENV)/installed-bench: $(VENV)/installed-dev
	@$(INSTALL) 'what the benchmarks compare with' --constraint constraints.txt --editable '.[bench]'
	@touch $@

install: $(VENV)/installed-all ## the library and the services, editable, with the commands framebus and framebus-SERVICE

demo: install ## the whole pipeline on five simulated cameras, and the URL of its page
	@export FRAMEBUS_STREAMER__PORT=$(PORT) FRAMEBUS_LOG__LEVEL=warning FRAMEBUS_LOG__FORMAT=text; \
	  exec $(BIN)/framebus-supervisor --config config/framebus.yaml

check: lint ## lint, types, import rules and the fast tests, in about a minute
	$(BIN)/python -m $(PYTEST_BY_MODULE) --hypothesis-profile quick -m "not slow and not long and not docker"

# The tests of the pipeline expect pictures in time, so no other test runs at the same time.
test: lint ## the same with the slow tests, in several minutes
	$(BIN)/python -m $(PYTEST_BY_MODULE) -m "not long" --durations 15 --ignore tests/e2e
	$(PYTEST) -m "not long" --durations 15 tests/e2e

# Installs the wheel into environments of each supported Python version, with dependencies from the registry.
# A whole pipeline needs both cores, so these tests run alone. The others wait for a part of their time, or use one core.
ALONE := $(addprefix tests/,bench deploy e2e examples services/relay/test_soak.py)
test-long: coverage $(VENV)/installed-bench $(VENV)/installed-docs ## the tests that take minutes: containers, faults put back, coverage
	$(PYTEST) --numprocesses 3 --dist worksteal -m long --durations 25 $(addprefix --ignore ,$(ALONE))
	$(PYTEST) -m long --durations 25 $(ALONE)

# The tests of the package run the library from another place. Processes of other users also write measurements.
coverage: $(VENV)/installed-dev ## branches of the library that its own tests reach, with FRAMEBUS_BACKEND=python
	rm -rf .cache/coverage
	install -d -m 1777 .cache/coverage
	FRAMEBUS_BACKEND=python $(BIN)/coverage run -m $(PYTEST_BY_MODULE) \
	  -m "not long" tests/framebus --ignore tests/framebus/test_packaging.py
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/installed-dev ## ruff, mypy, rules on imports, spelling, form of C and of the page, workflows
	@$(MAKE) --no-print-directory --jobs 2 --output-sync mypy imports ruff spelling c page workflows

mypy: $(VENV)/installed-dev
	$(BIN)/mypy

imports: $(VENV)/installed-dev
	$(BIN)/lint-imports --no-logo

ruff: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

spelling: $(VENV)/installed-dev
	$(BIN)/codespell

# The headers that 'python -m framebus.ring.c_headers' generates have their own format.
c: $(VENV)/installed-dev
	$(BIN)/clang-format --dry-run --Werror \
	  $(filter-out %/_layout.h %/_docs.h,$(wildcard framebus/ring/_*.[ch] services/stitcher/rendering/_*.[ch]))

page: $(VENV)/installed-dev
	$(BIN)/biome check services/streamer/page

workflows: $(VENV)/installed-dev
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms \
	  $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))

.PHONY: tidy
$(VENV)/installed-tidy: $(VENV)/installed-dev
	@$(INSTALL) 'clang-tidy' --constraint constraints.txt --editable '.[tidy]'
	@touch $@

tidy: $(VENV)/installed-tidy ## faults in the C that clang-tidy finds
	$(BIN)/clang-tidy --quiet framebus/ring/_ring_c.c services/stitcher/rendering/_warp_c.c -- -std=c11 \
	  -I$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))")

docs: $(VENV)/installed-docs ## the documents as a site, in .cache/docs/site; a dead link is an error
	$(BIN)/python -m website

docs-external: $(VENV)/installed-docs ## check the links of the documents to other sites
	$(BIN)/python -m website --external

bench: $(VENV)/installed-bench ## the benchmarks, in five minutes
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-disable-gc --quiet
	$(BIN)/python -m bench run

bench-full: $(VENV)/installed-bench ## all benchmarks
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-disable-gc
	$(BIN)/python -m bench run --form full

bench-compare: $(VENV)/installed-bench ## the benchmarks, compared with the last saved run
	$(BIN)/python -m bench compare

# STITCHING: Python of an environment with stitching-headless and OpenCV < 5, to compare with these too.
RUNS ?= 10
RIGS ?= 1000
calibration-trials: $(VENV)/installed-dev ## calibration against ground truth; RUNS=10 per cell, RIGS=1000 random ones
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.services.stitcher.calibration_trials --runs $(RUNS) --random $(RIGS) --peers \
	  $(if $(STITCHING),--stitching $(STITCHING))

bench-publish: $(VENV)/installed-dev ## the last saved run, put into the documents
	$(BIN)/python -m bench publish

# BEFORE=PATH: also the stitcher of another source tree, such as a git worktree.
bench-stitch: $(VENV)/installed-dev ## cost of a panorama, compared with decoding, memcpy and cv2.Stitcher
	$(BIN)/python -m bench.stitch $(if $(BEFORE),--before $(BEFORE))

# MODELS='PATH …': in addition to the default and, if ../shared/models has them, SSDLite and YOLOX-nano.
# SAHI: Python of an environment that has SAHI, to compare with it too.
bench-detect: $(VENV)/installed-dev ## what detectors find, by the height of people; cost of a tile; accuracy of tracks
	$(BIN)/python -m bench.detect $(MODELS)
	$(BIN)/python -m bench.track
	$(BIN)/python -m bench.slices $(if $(SAHI),--sahi $(SAHI))

bench-relay: $(VENV)/installed-bench ## cost of the relay, compared with its floor, RabbitMQ, Redis and the ring
	$(BIN)/python -m bench.relay $(if $(QUICK),--quick)

# Builds the images, and starts each compose file under its own project name. NAMES='stitcher single': only these.
image-usage: $(VENV)/installed-dev ## share of our container images that their work uses; as root, with a Docker engine
	$(BIN)/python -m bench.image_usage.ours $(NAMES)

# FORM=full: more rounds and larger images, in half an hour.
# SECTIONS: union drivers disks handover supervisors ring backup bundles.
# Mounts file systems and drops the machine's caches, so it runs as root; a second engine runs in addition to the
# machine's.
FORM ?= short
bench-storage: $(VENV)/installed-bench ## cost of layers, volumes, drivers and a full /dev/shm; as root, in minutes
	$(BIN)/python -m bench.storage $(SECTIONS) --form $(FORM) $(if $(IMAGE),--image $(IMAGE)) $(if $(PUBLISH),--publish)

first-sight: $(VENV)/installed-dev ## what a viewer of 'make demo' sees, in figures; MINUTES=1 for a shorter run
	$(BIN)/python -m tests.e2e.first_sight $(if $(filter-out 0,$(MINUTES)),--minutes $(MINUTES))

# Run the race and the torture for MINUTES each, then kill processes at every step of their work, KILLS times. Report as
# JSON.
MINUTES ?= 0
KILLS ?= 10000
soak: $(VENV)/installed-dev ## ten thousand kills; MINUTES=10: after a race and a torture of ten minutes each
	$(BIN)/python -m tests.race.soak --minutes $(MINUTES) --kills $(KILLS)

# Requires kubectl 1.27 or newer, but no cluster. OVERLAY=PATH: another folder with a kustomization.
kubernetes: $(VENV)/installed-dev ## the overlays of deploy/kubernetes, rendered, validated and checked offline
	$(BIN)/python -m deploy.kubernetes.validate $(OVERLAY)

# Three network namespaces as hosts, on which all programs are killed in turn; as root.
FRAMES ?= 10000
relay-soak: $(VENV)/installed-dev ## frames to detectors on other hosts while relay, detectors, broker and storage are killed; FRAMES=10000
	$(BIN)/python -m tests.services.relay.soak --frames $(FRAMES)

verify: $(BIN)/python ## the slot protocol and its mutants, state by state
	$(BIN)/python -m verification

# A C compiler for the steps of a hand-over and for the stitcher's renderer, and the programs that tests and benchmarks
# run: an RTSP server, a browser, reverse proxies, Prometheus' promtool, Redis, RabbitMQ. Debian, as root.
system-packages: ## the programs that tests and benchmarks run; on Debian, as root
	apt-get update --quiet=2
	DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends \
	  gcc libc6-dev python3-dev chromium python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	  gstreamer1.0-plugins-bad python3-gst-1.0 gir1.2-gst-plugins-base-1.0 redis-server rabbitmq-server \
	  nginx-light caddy prometheus openssl iproute2 iptables xfsprogs btrfs-progs

clean: ## remove everything that was installed, built or cached
	rm -rf $(VENV) .cache build dist *.egg-info services/build services/dist services/*.egg-info framebus/ring/*.so \
	  services/stitcher/rendering/*.so
