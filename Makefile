# make demo   the whole pipeline on five simulated cameras, and the URL of its page
# make test   every check: lint, types, import rules, tests; test-long those that take minutes
# make bench  the benchmarks, in five minutes; bench-full all of them; bench-compare against the last saved run;
#             bench-publish puts the last saved run into the documents
# make soak   ten thousand kills; MINUTES=10: after a race and a torture of ten minutes each
# make verify  the slot protocol and its mutants, state by state
# Everything is installed into .venv; nothing else on the machine is touched.

PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-long lint bench bench-full bench-compare bench-publish soak verify system-packages clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer with venv is needed: set PYTHON=..., or apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-all: $(BIN)/python pyproject.toml setup.py constraints.txt $(wildcard framebus/ring/_*.[ch])
	$(PIP) install --constraint constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-all
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The benchmark's peers: other brokers and transports, which no other test needs.
$(VENV)/installed-bench: $(VENV)/installed-dev
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	@touch $@

demo: $(VENV)/installed-all
	@export FRAMEBUS_STREAMER__PORT=$(PORT) FRAMEBUS_LOG__LEVEL=warning FRAMEBUS_LOG__FORMAT=text; \
	  exec $(BIN)/python -m services.supervisor --config config/framebus.yaml

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The pipeline's tests ask for pictures in time, so they have the machine for themselves.
test: lint
	$(BIN)/python -m pytest -m "not long" --ignore tests/e2e --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "not long" tests/e2e

# Installs the wheel into environments of each Python version that it is for, with dependencies from the registry.
test-long: $(VENV)/installed-bench
	$(BIN)/python -m pytest -m long

bench: $(VENV)/installed-bench
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-disable-gc --quiet
	$(BIN)/python -m bench run

bench-full: $(VENV)/installed-bench
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-disable-gc
	$(BIN)/python -m bench run --form full

bench-compare: $(VENV)/installed-bench
	$(BIN)/python -m bench compare

bench-publish: $(VENV)/installed-dev
	$(BIN)/python -m bench publish

# Race for MINUTES and torture for as long, then kill processes at every step of their work, KILLS times; a report as JSON.
MINUTES ?= 0
KILLS ?= 10000
soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.race.soak --minutes $(MINUTES) --kills $(KILLS)

verify: $(BIN)/python
	$(BIN)/python -m verification

# A C compiler for the steps of a hand-over, and what the tests and the benchmark drive for real: an RTSP server, a
# browser, Redis, RabbitMQ. Debian, as root.
system-packages:
	apt-get update --quiet=2
	DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends \
	  gcc libc6-dev python3-dev chromium python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	  gstreamer1.0-plugins-bad python3-gst-1.0 gir1.2-gst-plugins-base-1.0 redis-server rabbitmq-server

clean:
	rm -rf $(VENV) .cache build dist *.egg-info framebus/ring/*.so
