# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
# Where torch comes from, such as https://download.pytorch.org/whl/cpu for the build without CUDA.
TORCH_INDEX ?=
BIN     = $(VENV)/bin
# One thread for each of the processes that share the tests, or they would get in each other's way.
# The tests of a file go to one process, which makes what they share once; tests/conftest.py says which files come first.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs bench openrecon clean

demo: $(VENV)/.installed
	mkdir -p demo
	$(BIN)/cinestream simulate demo/scan.h5 --overwrite
	for method in zero_filled cg_sense kt_sense; do \
		$(BIN)/cinestream replay demo/scan.h5 --pipeline $$method --output demo/$$method.h5 --overwrite || exit 1; done
	$(BIN)/cinestream evaluate demo/zero_filled.h5 demo/cg_sense.h5 demo/kt_sense.h5 --truth demo/scan_truth.npz \
		--gif demo/cine.gif --report demo/report.html

test: $(VENV)/.installed-dev
	@echo "The quick tests take about 7 minutes on 2 cores."
	$(PYTEST) -m "not slow and not cuda"

test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "not cuda"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.bench.stream
	$(BIN)/python -m tests.bench.start
	$(BIN)/python -m tests.bench.coils
	$(BIN)/python -m tests.bench.classical
	$(BIN)/python -m tests.bench.series
	$(BIN)/python -m tests.bench.consistency
	$(BIN)/python -m tests.bench.networks
	$(BIN)/python -m tests.bench.pace
	$(BIN)/python -m tests.bench.quality
	$(BIN)/python -m tests.bench.realtime
	$(BIN)/python -m tests.bench.monitor

# The package for a scanner. Needs Docker, 24 for XA60 and XA61; ACCELERATOR=cu118 makes it able to use a GPU.
ACCELERATOR ?= cpu
GPU          = $(if $(filter cpu,$(ACCELERATOR)),,--gpu)
TAG          = openrecon_cinestream_cinestream:v$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' gadgets/__init__.py)

openrecon: $(VENV)/.installed
	mkdir -p dist
	docker build --platform linux/amd64 --file containers/Dockerfile --target openrecon --tag $(TAG) \
		--build-arg ACCELERATOR=$(ACCELERATOR) \
		--build-arg OPENRECON_LABEL="$$($(BIN)/cinestream openrecon-label --base64 $(GPU))" .
	docker save --output dist/image.tar $(TAG)
	$(BIN)/python containers/package.py --output dist --image dist/image.tar $(GPU)

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
