# The two commands of README.md do all the set-up on a fresh Debian machine with Python 3.11 and gcc. All of these set
# up first; a whole run of one in the second list takes minutes to hours, and ends with a line that says what came of it.
#
#   make run      start a real command as another user from a big, threaded process
#   make test     every test, the built packages, and a part of what is below
#   make check    mypy, ruff, the native checks, and the cases that make test has no time for
#   make docs     the documentation as a site, in site/
#   make bench    our ways beside those of others: ten minutes, and the costs of our parts
#
#   make fuzz          all fuzz targets, for SECONDS in total (60)
#   make soak          everything at once for SECONDS (600), with a report in soak-report/
#   make stateful      the state machines of tests/stateful at length, EXAMPLES of each (300)
#   make model         every state of the model of the credential lock, with up to 2 GiB of memory
#   make faults        every system call of a spawn made to fail with every errno of its manual page
#   make sanitize      all tests that can, under sanitizers and valgrind
#   make mutants       faults and changes of the sources, and which test notices each
#   make environments  every interpreter that can be had, sandboxes, musl, aarch64
#   make clients       all of CPython's own tests that start programs, and those of programs that use subprocess

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

SOURCES := $(wildcard safespawn/*.py safespawn/*.c safespawn/*.h safespawn/*.txt safespawn/audit/*.py safespawn/bench/*.py \
	safespawn/audit/*/*.py safespawn/startup/*.py) \
	setup.py pyproject.toml

.PHONY: run test check docs bench fuzz fuzz-minute soak stateful model faults mutants environments clients cpython packages \
	sanitize sanitize-asan sanitize-asan-all sanitize-ubsan sanitize-tsan valgrind clean

run: $(VENV)/.built
	$(BIN)/python bench/demo.py

# Three at a time, for two processors: tests wait much. What one of them prints comes when it is done.
test: build/hooks/.built
	$(MAKE) -j3 --output-sync=target suite-d-k suite-l suite-a-c suite-m-r suite-s-z sanitize-asan cpython fuzz-minute \
		packages sanitize-ubsan

# The test files from one letter to another: all but the sanitizer builds and the packages. With a directory of its
# own: a run that begins beside another takes back the rights that tests have given to the one they share.
suite-% check: export SAFESPAWN_HOOKED_CORE := $(CURDIR)/build/hooks
suite-%: build/hooks/.built
	where=$$(mktemp -d); trap 'rm -rf "$$where"' EXIT; \
	SAFESPAWN_MUST_RUN=1 timeout 2400 $(BIN)/python -m pytest --durations=25 --basetemp="$$where" tests/test_[$*]*.py

# All fuzz targets, coverage-guided: fuzz/README.md. What one finds is kept in build/fuzz/found.
fuzz: $(VENV)/.built
	$(BIN)/python fuzz/all_targets.py --seconds $(or $(SECONDS),60)

# The part of it that every change gets.
fuzz-minute: $(VENV)/.built
	$(BIN)/python fuzz/all_targets.py --seconds 60

# CPython's own tests about starting programs, on every version that is here, with us in place of subprocess.
cpython: $(VENV)/.built
	$(BIN)/python tests/cpython/compare.py

# An hour. The rest of CPython's tests that start programs, Debian's newest Python, and other people's programs.
clients: $(VENV)/.built
	$(BIN)/python tests/cpython/compare.py --all
	tests/cpython/newest.sh --all
	$(BIN)/python tests/clients/compare_all.py

# Needs root. Spawners, changers of credentials, forkers, killers and a rotator at once; its last line is the result.
soak: $(VENV)/.built
	$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),600) --report soak-report

# Half an hour at first. Each interpreter that is here, Debian's newest with their debug builds, compiled and
# tested; what make test has of this, once more.
environments: $(VENV)/.built
	failed=0; $(BIN)/python tests/pythons/try_each.py || failed=1; \
	PYTHON=$(BIN)/python tests/pythons/debian.sh || failed=1; \
	$(BIN)/python -m pytest -q tests/test_environments.py tests/test_elsewhere.py tests/test_interpreters.py \
		tests/test_launcher_emulated.py tests/test_helper_emulated.py || failed=1; \
	echo "environments: $$( ((failed)) && echo some failed, see above || echo all passed)"; exit $$failed

# The state machines at length: EXAMPLES of each, other ones each time. A minute for a hundred of each.
stateful: $(VENV)/.built
	SAFESPAWN_STATEFUL=$(or $(EXAMPLES),300) $(BIN)/python -m pytest -q -k agree tests/test_stateful_*.py

check: build/hooks/.built
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff safespawn bench examples fuzz tools
	SAFESPAWN_LONG=1 $(BIN)/python -m pytest -q tests/test_native_section.py tests/test_layers.py tests/test_threat_model.py
	SAFESPAWN_LONG=1 $(BIN)/python -m pytest -q -m long tests
	$(BIN)/python -m doctest README.md

bench: $(VENV)/.built
	$(BIN)/safespawn bench --json bench.json --plots bench-plots
	$(BIN)/python bench/lock_cost.py
	$(BIN)/python bench/audit_cost.py
	$(BIN)/python bench/popen_cost.py
	$(BIN)/python bench/fork_cost.py
	$(BIN)/python bench/many.py

# Every state of the big form, and every step taken out (tests/model).
model: $(VENV)/.ready
	$(BIN)/python tests/model/check_all.py

# An hour or two. A line for each scene, and one for all; tests/test_faults.py is the ordinary part of it.
faults: $(VENV)/.built
	$(BIN)/python tests/faults.py

docs: $(VENV)/.ready
	$(BIN)/python -m mkdocs build --strict
	@echo "the documentation is in site/index.html"

# An hour. The ordinary tests on cores built with sanitizers (addresses, undefined behaviour, threads), and valgrind.
sanitize: sanitize-asan-all sanitize-ubsan sanitize-tsan valgrind
	@echo "sanitize: addresses, undefined behaviour, threads and valgrind found nothing"

sanitize-asan sanitize-asan-all sanitize-ubsan sanitize-tsan: sanitize-%: $(VENV)/.built
	tests/sanitize.sh $(BIN)/python $*

valgrind: $(VENV)/.built
	tests/valgrind.sh

# Every fault by name, then SAMPLE changes of each group of sources, for SECONDS at most: none may go unnoticed, or unexplained.
# The copies are built in memory: what is written to a disk takes most of the time else.
mutants: export TMPDIR := $(or $(TMPDIR),$(wildcard /dev/shm),/tmp)
mutants: $(VENV)/.built
	$(BIN)/python tests/mutation/seeded.py
	$(BIN)/python tests/mutation/mutate.py --sample $(or $(SAMPLE),100) --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),1)
	$(BIN)/python tests/mutation/survivors.py

# The sdist and the wheel, each installed in an empty environment and tested from there.
packages: $(VENV)/.built
	tests/packages.sh $(BIN)/python

# The core that has switches for its guards: once for all parts of the tests.
build/hooks/.built: $(VENV)/.built $(wildcard tests/hooks/*) tests/build_variant.py
	@mkdir -p $(@D)
	@$(BIN)/python tests/build_variant.py hooks $(@D)
	@touch $@

$(VENV)/.ready: pyproject.toml tools/setup.sh
	tools/setup.sh $(PYTHON) $(VENV)
	touch $@

$(VENV)/.built: $(VENV)/.ready $(SOURCES)
	@echo "set-up: compiling the core"
	@$(BIN)/python -m pip install --no-build-isolation --no-deps --editable . \
		--config-settings editable_mode=compat > $(VENV)/install.log 2>&1 \
		|| { cat $(VENV)/install.log; exit 1; }
	@# Tests start thousands of interpreters. Each would compile all of us where the environment forbids to keep that.
	@$(BIN)/python -m compileall -q safespawn tests
	touch $@

clean:
	rm -rf $(VENV) build dist site bench.json bench-plots soak-report *.egg-info safespawn/*.so safespawn/_native_ffi.c .mypy_cache .ruff_cache .hypothesis
