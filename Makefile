# Every target sets up what it needs: on a fresh clone `make demo` and `make test` are all there is to type.
PYTHON ?= python3
PY := .venv/bin/python
PIPFLAGS ?= --disable-pip-version-check
BENCHFLAGS ?=
BUNDLE := build/vit_digits-w4a8
DIGITS := build/digits-eval
REAL_DATA := ../shared/data/imagenet-ccby/val
# Two processes of tests with one thread each, unless told otherwise; idle threads sleep: spinning ones cost a factor of
# ten on a busy machine. Builds and measurements use what the machine has.
TEST_THREADS := OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} OMP_NUM_THREADS=$${OMP_NUM_THREADS:-
TEST_PROCESSES ?= -n 2 --dist loadfile

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all test-emulated lint bench docs kernels clean

help:
	@echo "make demo      quantize a small real model, check it, time it (minutes, no training data)"
	@echo "make test      the quick tests"
	@echo "make test-all  every test, also the slow ones and those on ../shared/data"
	@echo "make test-emulated  the engines on processors that are not here: AVX2, SSE4, ARM64 (needs qemu-user, debootstrap)"
	@echo "make lint      ruff check, ruff format --check, mypy"
	@echo "make bench     measure again what benches/results lacks (BENCHFLAGS=--force: everything)"
	@echo "make docs      write the measured tables into README.md and docs/"
	@echo "make kernels   compile the CUDA kernels for every SM into build/kernels (needs nvcc, no GPU)"
	@echo "make clean     remove build products, keep .venv"

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install $(PIPFLAGS) -e '.[build,dev]'
	@touch $@

demo: .venv/.installed
	@printf '\n== 1/6  the evaluation pictures: handwritten digits no step of the build may see ==\n'
	$(PY) -m benches.digits --out $(DIGITS)
	@printf '\n== 2/6  build: 4-bit weights, 8-bit activations, calibrated on pictures made from the network itself ==\n'
	$(PY) -m toolchain.build --model vit_digits --bits w4a8 --eval $(DIGITS) --out $(BUNDLE)
	@printf '\n== 3/6  accuracy of the integer engine beside the float model ==\n'
	$(PY) -m runtime.accuracy $(BUNDLE) --data $(DIGITS) --json $(BUNDLE)/reports/accuracy.json
	@printf '\n== 4/6  parity: does the engine compute the very integers that were calibrated? ==\n'
	$(PY) -m runtime.parity $(BUNDLE) --ladder --json $(BUNDLE)/reports/ladder.json
	@printf '\n== 5/6  what runs as integers ==\n'
	$(PY) -m toolchain.inspect $(BUNDLE)
	@printf '\n== 6/6  latency beside the float model ==\n'
	$(PY) -m runtime.bench $(BUNDLE) --seconds 3 --json $(BUNDLE)/reports/bench.json
	$(PY) -m toolchain.report $(BUNDLE)
	@printf '\nThe bundle is in %s. All of this on one page: %s/report.html\n' $(BUNDLE) $(BUNDLE)

test: .venv/.installed
	$(TEST_THREADS)1} $(PY) -m pytest -q $(TEST_PROCESSES)

test-all: test
	$(TEST_THREADS)2} $(PY) -m pytest -q -m 'slow or real' --timeout=2400

test-emulated: .venv/.installed
	@test -d build/emulated/arm64 || $(PY) -m tests.emulated.arm64
	$(TEST_THREADS)1} $(PY) -m pytest -q -m slow --timeout=600 tests/emulated

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: .venv/.installed
	$(PY) -m benches.train_reference --check
	$(PY) -m benches.bench_repeat
	$(PY) -m benches.cpu_latency $(BENCHFLAGS)
	$(PY) -m benches.cpu_engines $(BENCHFLAGS)
	$(PY) -m benches.lowering_cost $(BENCHFLAGS)
	$(PY) -m benches.head_similarity
	@if $(PY) -c 'import tensorrt_rtx' 2>/dev/null; then \
		$(PY) -m benches.trt_plans $(BENCHFLAGS); \
	else \
		echo "trt_plans is left out: tensorrt-rtx is not installed"; \
	fi
	@if [ -d $(REAL_DATA) ]; then \
		$(PY) -m benches.real_accuracy $(BENCHFLAGS) && \
		$(PY) -m benches.build_cost $(BENCHFLAGS) && \
		$(PY) -m benches.synthesis_speed $(BENCHFLAGS) && \
		$(PY) -m benches.synthesis_accuracy $(BENCHFLAGS); \
	else \
		echo "real_accuracy, build_cost, synthesis_speed and synthesis_accuracy are left out: no photographs at $(REAL_DATA)"; \
	fi
	$(PY) -m benches.tables

docs: .venv/.installed
	$(PY) -m benches.tables

kernels: .venv/.installed
	$(PY) -m runtime.kernels.build --out build/kernels

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find calib toolchain runtime benches tests -type d -name __pycache__ -prune -exec rm -rf {} +
