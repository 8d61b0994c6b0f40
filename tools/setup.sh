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

packages=$(
	missing /usr/include/sys/capability.h libcap-dev
	missing gcc gcc
	missing objdump binutils
	missing unshare util-linux
	missing mount mount
	missing /usr/sbin/mkfs.ext4 e2fsprogs # the ledger is tried on a full disk
	missing make make
	missing chromium chromium # a page is tested in it
	missing strace strace
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
	'opentelemetry-sdk>=1.39' 'mypy>=1.11' 'ruff>=0.8' 'types-cffi' 'build>=1.2'
