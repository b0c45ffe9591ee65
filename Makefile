# make demo    draw a scene, map it, say where the map and its picture lie
# make test    run the tests (PYTEST='-m slow' for the slow ones)
# make gpu     on a machine with a CUDA device: the tests marked gpu, then the benchmark, to gpu.json
# make lint    style and types
# make mutants    change operators of the metrics one at a time: do the tests notice? (an hour)
# make docs    the documentation as a site, in build/site
# make qgis-plugin    the QGIS plugin as a zip, in dist
# make lock    versions and hashes of everything, for development, into requirements.lock
# make audit   known vulnerabilities of what is installed; a list of it (CycloneDX) in build/sbom.json
# Each makes its environment in .venv first; all that is needed is Python 3.11 or later.

VENV := .venv
BIN := $(VENV)/bin
PYTEST :=
MODULES :=
PYTHON := python3.13 python3.12 python3.11 python3.14 python3 python
RESOLUTION := highest

.PHONY: demo environment test gpu lint mutants docs qgis-plugin audit lock clean
.DELETE_ON_ERROR:

environment: $(VENV)/.ready

demo: $(VENV)/.ready
	$(BIN)/rsseg demo -o demo --overwrite

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST)

gpu: $(VENV)/.ready
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py $(PYTEST)
	$(BIN)/python benchmarks/gpu.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p rsseg_cli

mutants: $(VENV)/.ready
	$(BIN)/python benchmarks/mutants.py $(MODULES)

docs: $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]'
	$(BIN)/mkdocs build --strict

qgis-plugin:
	python3 qgis/package.py dist

audit: $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python pip-audit cyclonedx-bom
	mkdir -p build
	$(BIN)/cyclonedx-py environment --no-validate $(BIN)/python -o build/sbom.json
	$(BIN)/uv pip freeze --quiet --python $(BIN)/python --exclude-editable > build/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r build/installed.txt || { \
	  echo "make: what is installed has known vulnerabilities, or PyPI's list of them was not reached" >&2; exit 1; \
	}

lock: $(VENV)/.ready
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build demo dist *.egg-info

# The candidates are tried, not looked up: pyenv's shims exist for versions that do not run.
$(VENV)/.ready: pyproject.toml
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 or later found (tried $(PYTHON))" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version); the first time downloads PyTorch, about 3 GB"; \
	$$python -m venv --clear $(VENV) || { \
	  echo "make: 'python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	}
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution $(RESOLUTION) -e '.[dev]'
	@touch $@
