# Sets up its own environment in .venv; nothing but Python 3.11, git and make is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

.PHONY: demo test check format lint types docs bench clean

demo: $(VENV)/ready
	$(BIN)/tts-compile demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: lint types test docs

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/ready
	$(BIN)/mypy

docs: $(VENV)/ready
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	$(BIN)/sphinx-build -q -W --keep-going -b doctest docs build/doctest

bench: $(VENV)/ready
	for subject in t3 flow vocoder voice load startup e2e batch; do $(BIN)/tts-compile bench $$subject --size full || exit 1; done

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[chatterbox,dev,docs]'
	touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
