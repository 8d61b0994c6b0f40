#!/bin/bash
# Builds sdist and wheel, installs each in an empty environment, and runs the tests from there,
# against the installed package only: the tree's own must not be importable.
#
#   tests/packages.sh PYTHON
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --no-isolation --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
ls "$work/dist"
cp -r tests fuzz README.md threat-model.md pyproject.toml "$work/"
# Enough to see that a package is whole; the whole suite has run on the same sources. The wheel is made of the sdist: of that
# it is enough that it builds, and starts programs.
declare -A quick=(
	[whl]="test_run.py test_process.py test_public_api.py test_cli_exec.py test_helper.py::test_children_are_ours"
	[gz]="test_run.py test_public_api.py"
)
for package in "$work"/dist/*.tar.gz "$work"/dist/*.whl; do
	env="$work/env-${package##*.}"
	"$python" -m venv "$env"
	"$env/bin/python" -m pip install --quiet "$package" 'pytest>=8' 'hypothesis>=6.100'
	echo "testing $(basename "$package")"
	# That one reads the C text, which is in the tree and not in a wheel.
	tree_only=tests/test_public_api.py::test_every_guard_has_a_statement_a_threat_and_a_source
	(cd "$work" && "$env/bin/python" -c '
import safespawn, sys
assert "env-" in safespawn.__file__, safespawn.__file__
' && "$env/bin/python" -m pytest -q -m "not slow" --basetemp="$work/temporary" \
		--deselect "$tree_only" $(printf "tests/%s " ${quick[${package##*.}]}))
	# The programs that are measured are in the package, and what is measured finds it.
	(cd "$work" && "$env/bin/safespawn" bench --list | grep "C posix_spawn  .*can be measured")
done
