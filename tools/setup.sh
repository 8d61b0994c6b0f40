#!/bin/bash
# Sets up what the tests and tools need, and says what it does. python-prctl is compiled here and
# needs the header of libcap; the tests compile too, and look at processes and system calls.
#
#   tools/setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2

missing() { # COMMAND_OR_FILE PACKAGE: prints PACKAGE unless the thing is here
	if [[ $1 == /* ]]; then
		[[ -e $1 ]] || echo "$2"
	else
		command -v "$1" > /dev/null || echo "$2"
	fi
}

fuzzer_runtime() { # the library that clang links for -fsanitize=fuzzer, if it is there
	compgen -G "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-$(uname -m).a" || true
}

packages=$(
	missing /usr/include/sys/capability.h libcap-dev
	missing gcc gcc
	missing clang clang
	[[ -n $(fuzzer_runtime) ]] || echo libclang-rt-dev # which the package of clang only recommends
	missing objdump binutils
	missing unshare util-linux
	missing mount mount
	missing /usr/sbin/mkfs.ext4 e2fsprogs # the ledger is tried on a full disk
	missing make make
	missing chromium chromium # a page is tested in it
	missing strace strace
	missing spin spin # the credential lock has a model
	missing /usr/share/man/man2/clone.2.gz manpages-dev # whose errnos the tests make system calls fail with
	missing musl-gcc musl-tools # the core is compiled for another libc, and run
	missing valgrind valgrind
	# What the audit mirrors and the shipped configurations are tested with.
	missing rsyslogd rsyslog
	missing "/usr/lib/$(uname -m)-linux-gnu/rsyslog/omrelp.so" rsyslog-relp
	missing auditd auditd
	missing journalctl systemd
	missing /lib/systemd/systemd-journal-upload systemd-journal-remote
	# The core is compiled for the other machine too, where this one can, and its launcher run.
	if [[ $(uname -m) == x86_64 ]]; then
		missing qemu-aarch64 qemu-user
		missing aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
		missing /usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross
	fi
	"$python" -c 'import ensurepip, venv' 2> /dev/null || echo python3-venv
	# Debian's interpreter comes without its own tests, which are run with us.
	"$python" -c 'import test.test_subprocess' 2> /dev/null || "$python" -c '
import sys
if sys.prefix == "/usr":
    print("libpython%d.%d-testsuite" % sys.version_info[:2])'
	header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
	missing "$header" python3-dev
)
if [[ -n $packages ]]; then
	as_root=
	[[ $EUID -eq 0 ]] || as_root=sudo
	echo "set-up: installing" $packages
	$as_root apt-get update -qq
	# shellcheck disable=SC2086 # one word each
	DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $packages > /dev/null
fi

echo "set-up: a virtual environment in $venv, with cffi, python-prctl and the test tools"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
"$venv/bin/python" -m pip install --quiet 'cffi>=1.17' 'python-prctl>=1.8.1' \
	'pytest>=8' 'hypothesis>=6.100' 'ocsf-json-schema>=1.2' 'jsonschema>=4.18' 'opentelemetry-proto>=1.40' \
	'opentelemetry-sdk>=1.39' 'mkdocs>=1.6' 'anyio>=4.4' 'eventlet>=0.37' 'gevent>=24.2' 'pexpect>=4.9' 'psutil>=6' \
	'pytest-subprocess>=1.5.2' 'sh>=2.1' 'trio>=0.26' 'uvloop>=0.21' 'wrapt>=1.16' 'matplotlib>=3.8' 'tqdm>=4.66' 'mypy>=1.11' 'ruff>=0.8' 'types-cffi' 'build>=1.2'
# Fuzzing Python takes Atheris, which has no wheel for every Python: without it hypothesis does that.
"$venv/bin/python" -m pip install --quiet --only-binary :all: 'atheris>=2.3' 2> /dev/null ||
	echo "set-up: no Atheris for this Python: its fuzz targets run under hypothesis"
