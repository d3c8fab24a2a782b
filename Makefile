# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test test-all sanitize bench lint types format clean

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt setup.py src/pixfit/kernels/sources.py $(wildcard src/pixfit/kernels/native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/pixfit demo --output demo --store demo/pixfit-runs

test: venv
	$(BIN)/python -m pytest -m "not slow"

test-all: venv
	$(BIN)/python -m pytest

# The kernels with every access and every operation checked; the checks must be in the process before Python starts.
# LDFLAGS come last, so that -O1 is what counts: -O3 with checks takes six minutes to compile.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
sanitize: venv
	CXX=g++ CXXFLAGS="$(SANITIZE)" LDFLAGS=-O1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--upgrade --target build/sanitized .
	export PIXFIT_LIBRARY_DIR=build/sanitized/pixfit/kernels ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)"; \
	$(BIN)/python -c "from pixfit.kernels import library; assert library.isas(), library.why()" && \
	$(BIN)/python -m pytest --capture=sys tests/test_native.py tests/test_native_maps.py tests/test_rounded_maps.py

# Against the machine's limits; `make bench BENCH_SECONDS=60` for steadier numbers. Nothing is written.
BENCH_SECONDS ?= 20
bench: venv
	@for script in siren family render grid prior; do \
		echo "== $$script"; $(BIN)/python benchmarks/$$script.py --seconds $(BENCH_SECONDS) || exit 1; \
	done

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build demo src/*.egg-info src/pixfit/kernels/_native_*
