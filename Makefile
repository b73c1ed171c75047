# make install      environment in .venv
# make quickstart   environment, shapes data, training, evaluation and a picture of detections
# make test         the same environment, linters and the whole test suite
# make test-fast    linters, and the fast tests of arithmetic, data and configuration (under a minute)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of a file share slow fixtures, so one process runs them all.
IN_PARALLEL := -n logical --dist loadfile

.PHONY: install quickstart test test-fast lint clean

install: $(VENV)/installed

quickstart: $(VENV)/installed datasets/shapes/ImageSets/Main/val.txt
	$(BIN)/python train.py --config configs/quickstart.yaml --resume auto

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-fast: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -m "not slow" $(IN_PARALLEL) tests/test_layers.py tests/test_docs.py tests/ssd tests/data

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

datasets/shapes/ImageSets/Main/val.txt: $(VENV)/installed
	$(BIN)/python scripts/make_shapes.py datasets/shapes

$(VENV)/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
