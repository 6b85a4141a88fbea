# The one environment is made from constraints.txt, which names what was tested together.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: check test soak gpu bench demo install clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/python -m pytest -m "not soak and not gpu and not multigpu"

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)
	@for script in $(filter-out benchmarks/card.py benchmarks/corpus.py benchmarks/models_on_card.py benchmarks/reference_parity.py benchmarks/step_on_card.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

demo: $(STAMP)
	$(BIN)/fuseline demo

clean:
	rm -rf $(VENV) build dist *.egg-info
