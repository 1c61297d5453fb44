# make demo   sets up and runs the main job on this machine
# make test   sets up and runs the tests
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-slow check install bench bench-engine bench-engine-rivals bench-overhead bench-scaling bench-autoscaling prove-ssh bench-ledger bench-control-plane bench-mlperf check-report clean

demo: install
	nfold demo

test: install $(VENV)/bin/prometheus
	pytest

# What takes a minute or more each: a bench record, the autoscaler, a controller killed in mid-scale.
test-slow: install $(VENV)/bin/prometheus
	pytest -m slow

check: install
	ruff format --check .
	ruff check .
	basedpyright

install: $(VENV)/.installed

# torch first: with it in place nothing else fetches a build for another device.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check "$(TORCH)"
	pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve,bench,dev]"
	touch $@

$(VENV)/bin/prometheus: | $(VENV)/.installed
	bash tests/support/fetch_prometheus.sh $@

bench: bench-engine bench-overhead bench-scaling

bench-engine: install
	python benchmarks/engine_throughput.py

bench-engine-rivals: install
	python benchmarks/engine_throughput.py --rival vllm --rival openvino --dtype float32 --dtype bfloat16

bench-overhead: install
	python benchmarks/overhead.py

bench-scaling: install
	python benchmarks/scaling.py

bench-ledger: install
	python benchmarks/ledger_injection.py

bench-autoscaling: install
	python benchmarks/autoscaling.py
	python benchmarks/autoscaling.py --kill

# As root, with iproute2, util-linux, openssh-server and rsync.
prove-ssh: install
	python benchmarks/listed_hosts.py

# About two and a half hours; keeps each measurement's last line.
CONTROL_PLANE := offline server interactive peak rival mixed growth streams
bench-control-plane: install
	for name in $(CONTROL_PLANE); do python benchmarks/control_plane.py $$name --keep benchmarks/results || exit 1; done

# About four hours: ten LoadGen runs of ten minutes and more, each after one node alone. Those that are kept are not run
# again, so it may be cut off and called again.
bench-mlperf: install
	python benchmarks/mlperf_runs.py embedded llama2-70b gpt-oss-120b --baseline --keep benchmarks/results

# A page of `nfold report`, opened in a Chromium that is installed.
check-report: install
	pip install --quiet --disable-pip-version-check "playwright>=1.50,<2"
	python benchmarks/report_in_browser.py $(PAGE)

clean:
	rm -rf $(VENV) build dist *.egg-info
