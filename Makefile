# The two commands of README.md do all the set-up on a fresh Debian machine with Python 3.11 and gcc.
#
#   make run     set up, then start a real command as another user from a big, threaded process
#   make test    set up, then every test, the built packages and the sanitizer builds too
#   make check   set up, then mypy, ruff, the native checks
#   make bench   set up, then the costs side by side

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

SOURCES := $(wildcard safespawn/*.py safespawn/*.c safespawn/*.h safespawn/*.txt safespawn/audit/*.py \
	safespawn/audit/*/*.py) \
	setup.py pyproject.toml

.PHONY: run test check bench packages sanitize sanitize-asan sanitize-ubsan clean

run: $(VENV)/.built
	$(BIN)/python bench/demo.py

# Two at a time; what one of them prints comes when it is done.
test: $(VENV)/.built
	$(MAKE) -j2 --output-sync=target suite-l-z suite-a-k sanitize-asan sanitize-ubsan packages

# The test files from one letter to another: all but the sanitizer builds and the packages. With a directory of its
# own: a run that begins beside another takes back the rights that tests have given to the one they share.
suite-%: $(VENV)/.built
	where=$$(mktemp -d); trap 'rm -rf "$$where"' EXIT; \
	SAFESPAWN_MUST_RUN=1 timeout 2400 $(BIN)/python -m pytest --durations=25 --basetemp="$$where" tests/test_[$*]*.py

check: $(VENV)/.built
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff safespawn bench fuzz
	$(BIN)/python -m pytest -q tests/test_native_section.py tests/test_layers.py tests/test_threat_model.py
	$(BIN)/python -m doctest README.md

bench: $(VENV)/.built
	$(BIN)/python bench/spawn_cost.py
	$(BIN)/python bench/lock_cost.py
	$(BIN)/python bench/drop_cost.py
	$(BIN)/python bench/audit_cost.py

# The ordinary tests once more, on a core built with the address and undefined-behaviour sanitizers.
sanitize: sanitize-asan sanitize-ubsan

sanitize-asan sanitize-ubsan: sanitize-%: $(VENV)/.built
	tests/sanitize.sh $(BIN)/python $*

# The sdist and the wheel, each installed in an empty environment and tested from there.
packages: $(VENV)/.built
	tests/packages.sh $(BIN)/python

$(VENV)/.ready: pyproject.toml tools/setup.sh
	tools/setup.sh $(PYTHON) $(VENV)
	touch $@

$(VENV)/.built: $(VENV)/.ready $(SOURCES)
	@echo "set-up: compiling the core"
	@$(BIN)/python -m pip install --no-build-isolation --no-deps --editable . > $(VENV)/install.log 2>&1 \
		|| { cat $(VENV)/install.log; exit 1; }
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info safespawn/*.so safespawn/_native_ffi.c .mypy_cache .ruff_cache .hypothesis
