# The one environment is made from constraints.txt, which names what was tested together.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

QUICK := -m "not soak and not gpu and not multigpu"
# By whole files, so that what the tests of one share is made once.
ON_RAY := $(sort $(shell grep -rl --include='test_*.py' 'mark\.ray' tests))
RAY_LOG := build/test-on-ray.log

.PHONY: check test test-here test-on-ray soak gpu bench demo install clean
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

# Two at once, since tests that start Ray wait for most of their time. What those say is shown at the end.
test: $(STAMP)
	@$(MAKE) --no-print-directory --jobs=2 --keep-going test-here test-on-ray; code=$$?; cat $(RAY_LOG); exit $$code

test-here: $(STAMP)
	@$(BIN)/python -m pytest $(QUICK) $(addprefix --ignore=,$(ON_RAY))

test-on-ray: $(STAMP)
	@mkdir -p $(dir $(RAY_LOG))
	@$(BIN)/python -m pytest $(QUICK) $(ON_RAY) >$(RAY_LOG) 2>&1

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
