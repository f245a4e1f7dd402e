# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.
PYTHON ?= python3
DIM ?= 8
DATASET ?=
TABLE ?=
FIGURE ?=
PROTOCOL ?= tuned
JOBS ?= 2
NOTEBOOK ?= notebooks/03_distill.ipynb
PORT ?= 8000
TESTS := -m pytest tests notebooks --nbval --nbval-current-env --nbval-cell-timeout=600 --durations=20
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
DEMO := runs/03_distill$(if $(DATASET),_$(DATASET))_dim$(DIM).ipynb
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Every process, and the tests start hundreds, would compile torch and pandas anew where the environment says not to keep it.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two pips must not write into .venv at once
.PHONY: help demo reproduce frontier refresh test coverage lint sanitize wheel lab bench bench-answer bench-serve book serve clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed-notebooks ## distil a student, show table and picture [DIM=16 DATASET=wn18rr]
	@mkdir -p runs
	$(BIN)/papermill notebooks/03_distill.ipynb $(DEMO) $(if $(DATASET),-p dataset $(DATASET) )-p dim $(DIM)
	@$(BIN)/python -W ignore::RuntimeWarning:runpy -m kgdistil.paper.last

reproduce: .venv/.installed-notebooks,cluster ## train what the paper's tables lack [TABLE=3 FIGURE=2 PROTOCOL=paper JOBS=2]
	$(BIN)/python -m kgdistil.paper.reproduce $(if $(TABLE),--table $(TABLE) )$(if $(FIGURE),--figure $(FIGURE) )--protocol $(PROTOCOL) --jobs $(JOBS)
	$(MAKE) refresh

frontier: .venv/.installed-notebooks,cluster ## train and measure what a byte buys [DATASET=wn18rr]
	$(BIN)/python -m kgdistil.paper.frontier $(if $(DATASET),--graph $(DATASET) )--jobs $(JOBS)
	$(MAKE) refresh

refresh: .venv/.installed-notebooks ## make anew what shows runs: tables, README, all notebooks
	$(BIN)/python -m kgdistil.paper.tables
	$(BIN)/python -m book.build.readme
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(wildcard notebooks/*.ipynb)

test: .venv/.installed-notebooks,book,dev ## run all tests and all notebooks, as CI does, two at a time
	GOMP_SPINCOUNT=0 OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1 $(BIN)/python $(TESTS) $(TOGETHER)

coverage: .venv/.installed-notebooks,book,dev ## the same, and which lines the tests reach
	$(BIN)/coverage run $(TESTS)
	$(BIN)/coverage report

lint: .venv/.installed-notebooks,book,dev ## check style, format, the way imports run, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

sanitize: .venv/.installed-notebooks,book,dev ## run the kernels at edge shapes under AddressSanitizer and UBSan (g++)
	KGDISTIL_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib _build/sanitized --build-temp _build/sanitized
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	KGDISTIL_SANITIZE=1 KGDISTIL_CACHE=$(CURDIR)/_build/sanitized $(BIN)/python -m pytest tests/test_edge_shapes.py -q

wheel: $(BIN)/pip ## build the wheel and ask a student where nothing else is installed [PYTHON=python3.13]
	rm -rf build dist _build/alone
	$(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv _build/alone
	_build/alone/bin/python -m pip install -q --no-compile -c constraints.txt "$$(echo dist/*.whl)[serve]"
	env -i HOME="$$HOME" PATH="$(CURDIR)/_build/alone/bin" _build/alone/bin/python tests/alone.py

lab: .venv/.installed-notebooks ## open JupyterLab on a notebook [NOTEBOOK=notebooks/03_distill.ipynb]
	$(BIN)/jupyter lab $(NOTEBOOK)

bench: .venv/.installed-notebooks,bench ## measure speed beside PyKEEN and TorchKGE
	$(BIN)/python -m kgdistil.paper.bench

bench-answer: .venv/.installed-notebooks,bench ## measure answers beside FAISS, usearch and numpy [LABELS=labels.txt]
	$(BIN)/python -m kgdistil.paper.bench.answer $(if $(LABELS),--labels $(LABELS))

bench-serve: .venv/.installed-notebooks,serve ## measure a server under load, ten minutes [DURATION=30]; needs wrk
	$(BIN)/python -m kgdistil.paper.bench.serve $(if $(DURATION),--seconds $(DURATION))

book: .venv/.installed-notebooks,book ## build the book into _build/html
	$(BIN)/python -m book.build

serve: .venv/.installed-notebooks,book ## show the book, built first where it is stale [PORT=8000]
	$(BIN)/python -m book.build --serve --port $(PORT)

clean: ## delete all caches; .venv, runs and results stay
	rm -rf _build build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .coverage .hypothesis .jupyter_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

# Python compiles what it imports, so pip need not. One stamp for each list of extras: set-up runs again only when the dependencies, their pins, or what it compiles change.
.venv/.installed-%: pyproject.toml constraints.txt setup.py kgdistil/answer/scan.cpp | $(BIN)/pip
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[$*]'
	@touch $@

# pip is the last thing venv writes, so an interrupted set-up is made again.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "kgdistil needs Python 3.11 to 3.13; '$(PYTHON)' was not found: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit("kgdistil needs Python 3.11 to 3.13; $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
