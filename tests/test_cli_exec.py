"""`safespawn exec`: an unmodified Python program that has everything in place from its first line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _cli_exec, _cli_python
from safespawn.cli import main

PATIENCE = 60.0
PACKAGE = Path(safespawn.__file__).parent
STARTUP = PACKAGE / "startup"

#: Prints what a program sees of what was done to it.
SEEN = """
import json, os, sys
from safespawn import policy, takeover
held = policy.applied()
print(json.dumps({
    "pid": os.getpid(),
    "installed": takeover.is_installed(),
    "policy": None if held is None else held.path,
    "variables": sorted(name for name in os.environ if name in ("PYTHONPATH", "SAFESPAWN_EXEC")),
    "PYTHONPATH": os.environ.get("PYTHONPATH"),
    "path": [entry for entry in sys.path if entry.endswith("startup")],
    "argv": sys.argv,
    "orig": sys.orig_argv,
}))
"""


@pytest.fixture(scope="session")
def place() -> str:
    """Return the directory that the package is imported from."""
    return str(PACKAGE.parent)


@pytest.fixture
def environment(place: str) -> dict[str, str]:
    """Return an environment in which every interpreter of ours finds the package."""
    return {**os.environ, "PYTHONPATH": place}


Exec = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def become(environment: dict[str, str], place: str) -> Exec:
    """Return a runner of `safespawn exec` with these words."""

    def run(*words: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "safespawn", "exec", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**environment, **(env or {})},
            **{"cwd": place, **options},
        )

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of Python scripts; `{python}` in a first line is our interpreter."""

    def make(text: str = SEEN, first: str = "#!{python}", name: str = "app.py") -> Path:
        path = tmp_path / name
        path.write_text(f"{first.format(python=sys.executable)}\n{text}")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Return a maker of policies."""

    def make(text: str) -> Path:
        path = tmp_path / "safespawn.toml"
        path.write_text(text)
        return path

    return make


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what the program printed."""
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


# ----------------------------------------------------------------- what the program has


def test_everything_is_in_place_before_the_first_line(become: Exec, script: Any, config: Any) -> None:
    """The program has the policy and the takeover when its first line runs."""
    path = config("[spawn]\nnice = 3\n")
    seen = told(become("--config", path, "--", sys.executable, script()))
    assert (seen["installed"], seen["policy"]) == (True, str(path))


def test_program_is_the_process(environment: dict[str, str], place: str, script: Any) -> None:
    """The program has the pid of the command: nothing is left in between."""
    with subprocess.Popen(
        [sys.executable, "-m", "safespawn", "exec", "--", sys.executable, str(script())],
        stdout=subprocess.PIPE, env=environment, cwd=place,
    ) as process:  # fmt: skip
        assert json.loads(process.communicate(timeout=PATIENCE)[0])["pid"] == process.pid


def test_words_of_the_program(become: Exec, script: Any) -> None:
    """The program has its own words and no others."""
    seen = told(become("--", sys.executable, "-u", path := script(), "--config", "x"))
    assert seen["argv"] == [str(path), "--config", "x"]
    assert seen["orig"] == [sys.executable, "-u", str(path), "--config", "x"]


def test_exit_code_of_the_program(become: Exec) -> None:
    """The exit code is the program's own."""
    assert become("--", sys.executable, "-c", "raise SystemExit(7)").returncode == 7


def test_program_has_no_trace_of_us(become: Exec, script: Any, place: str) -> None:
    """Neither the environment nor sys.path of the program has what led to it."""
    seen = told(become("--", sys.executable, script()))
    assert (seen["path"], seen["variables"], seen["PYTHONPATH"]) == ([], ["PYTHONPATH"], place)


def test_pythonpath_that_was_not_set_is_not_set(become: Exec, tmp_path: Path, place: str) -> None:
    """Where there was no PYTHONPATH the program has none."""
    text = "import os; print('PYTHONPATH' in os.environ)"
    # The interpreter finds the package without it, in an environment made for that.
    where = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path), "platbase": str(tmp_path)}))
    interpreter = _environment_with(tmp_path, where, place)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, "-m", "safespawn", "exec", "--", interpreter, "-c", text],
        capture_output=True, text=True, timeout=PATIENCE, check=False, env=env, cwd="/",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False\n", "")


def _environment_with(where: Path, packages: Path, place: str) -> str:
    """Make a virtual environment whose .pth file leads to the package, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    packages.mkdir(parents=True, exist_ok=True)
    paths = [place, *(entry for entry in sys.path if entry.endswith("site-packages"))]
    (packages / "ours.pth").write_text("\n".join(paths) + "\n")
    return str(where / "bin" / "python")


def test_ledger_of_the_command_line(become: Exec, tmp_path: Path) -> None:
    """The ledger named on the command line is the program's, in the mode named there."""
    ledger = tmp_path / "ledger.jsonl"
    done = become(
        "--audit", ledger, "--audit-mode", "best_effort", "--", sys.executable, "-c",
        "import safespawn; safespawn.run(['/bin/true'])",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = helpers.records(ledger)
    assert [one["ev"] for one in records][:2] == ["chain.open", "spawn.intent"]
    assert records[0]["mode"] == "best_effort"


def test_ledger_of_the_command_line_beside_a_policy(become: Exec, config: Any, tmp_path: Path) -> None:
    """The command line's ledger takes the place of the policy's, whose other keys stay."""
    path = config(f'[audit]\npath = "{tmp_path}/not-this"\nmode = "best_effort"\nkeys = ""\n')
    done = become("--config", path, "--audit", "this", "--", sys.executable, "-c", "pass", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert helpers.records(tmp_path / "this")[0]["mode"] == "best_effort"
    assert not (tmp_path / "not-this").exists()


def test_refusal_reaches_the_program(become: Exec, config: Any) -> None:
    """What the policy refuses is refused to the program."""
    text = (
        "import safespawn\n"
        "try: safespawn.run(['true'])\n"
        "except safespawn.UnsafeSpawn as problem: print(problem.guard)\n"
    )
    done = become("--config", config('[programs]\nrefused = ["true"]\n'), "--", sys.executable, "-c", text)
    assert done.stdout == "program-allowed\n"


@pytest.mark.parametrize(
    ("start", "printed"),
    [
        ("subprocess.run(['/bin/sh', '-c', 'umask'], check=True)", "0027\n"),
        ("subprocess.run(['/bin/sh', '-c', 'umask'], check=True, umask=0o77)", "0077\n"),
        ("asyncio.run(main())", "0027\n"),
        ("subprocess.run(['true'])", "program-allowed\n"),
        ("os.posix_spawn('/bin/true', ['x'], {})", "program-allowed\n"),
        ("subprocess.run(['/bin/echo'], preexec_fn=print)", "child-raw-only\n"),
    ],
)
def test_standard_library_is_held_to_the_policy(become: Exec, config: Any, start: str, printed: str) -> None:
    """What an unmodified program starts has the policy's defaults, and what is refused is refused to it."""
    text = f"""
import asyncio, os, subprocess, sys
async def main():
    await (await asyncio.create_subprocess_exec('/bin/sh', '-c', 'umask')).wait()
try: {start}
except OSError as problem: print(problem.guard)
"""
    path = config("[spawn]\numask = '027'\n[programs]\nrefused = ['true']\n[subprocess]\npreexec_fn = 'refuse'\n")
    done = become("--config", path, "--", sys.executable, "-Wignore", "-c", text)
    assert done.stdout == printed, done.stderr


def test_child_is_left_alone(become: Exec) -> None:
    """A Python child of the program has nothing of us, unless the policy says so."""
    text = (
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-c', 'import sys, os;"
        " print(\"safespawn\" in sys.modules, os.environ.get(\"SAFESPAWN_EXEC\"))'],"
        " capture_output=True, text=True).stdout, end='')\n"
    )
    assert become("--", sys.executable, "-c", text).stdout == "False None\n"


def test_children_on_request(become: Exec, config: Any, script: Any) -> None:
    """With ``exec.children`` a Python child of the program has the policy too, and so have its own."""
    path = config("[exec]\nchildren = true\n")
    text = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(script())!r}]).returncode)"
    again = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {text!r}]).returncode)"
    seen = told(become("--config", path, "--", sys.executable, "-c", again))
    assert (seen["installed"], seen["policy"], seen["path"]) == (True, str(path), [])


def test_process_that_is_not_meant(environment: dict[str, str], place: str, script: Any) -> None:
    """A process whose pid is not the one that was told has nothing done to it, and no trace is left."""
    env = {
        **environment,
        "PYTHONPATH": f"{STARTUP}:{place}",
        "SAFESPAWN_EXEC": json.dumps({"pid": 1, "config": "/no/such", "audit": {}}),
    }
    done = subprocess.run(
        [sys.executable, str(script())], capture_output=True, text=True, check=False, env=env
    )
    seen = told(done)
    assert (seen["installed"], seen["policy"], seen["PYTHONPATH"], seen["variables"]) == (
        False, None, place, ["PYTHONPATH"],
    )  # fmt: skip


def test_hidden_sitecustomize_runs(become: Exec, tmp_path: Path, place: str) -> None:
    """The sitecustomize that ours stands in front of runs all the same, behind it."""
    (tmp_path / "sitecustomize.py").write_text(
        "from safespawn import takeover\nimport builtins\nbuiltins.seen = takeover.is_installed()\n"
    )
    done = become(
        "--", sys.executable, "-c", "import sys; print(seen, sys.modules['sitecustomize'].__file__)",
        env={"PYTHONPATH": f"{tmp_path}:{place}"},
    )  # fmt: skip
    assert done.stdout == f"True {tmp_path}/sitecustomize.py\n"


def test_hidden_sitecustomize_that_fails(become: Exec, tmp_path: Path, place: str) -> None:
    """A sitecustomize that fails is told by Python as without us, and the program runs."""
    (tmp_path / "sitecustomize.py").write_text("raise ValueError('theirs')\n")
    done = become("--", sys.executable, "-c", "print(1)", env={"PYTHONPATH": f"{tmp_path}:{place}"})
    assert (done.returncode, done.stdout, "ValueError: theirs" in done.stderr) == (0, "1\n", True)


# ------------------------------------------------------------------- which programs


@pytest.mark.parametrize(
    "first", ["#!{python}", "#! \t{python} -u", "#!/usr/bin/env python3", "#!/usr/bin/env -S python3 -u"]
)
def test_script_of_python(become: Exec, script: Any, first: str) -> None:
    """A script whose first line leads to Python is a Python program."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    seen = told(become("--", script(first=first), env={"PATH": path}))
    assert seen["installed"] is True


def test_program_is_looked_for_in_path(become: Exec, script: Any, tmp_path: Path) -> None:
    """A name without a slash is looked for in PATH."""
    script(name="tool")
    seen = told(become("--", "tool", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}))
    assert seen["argv"] == [str(tmp_path / "tool")]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("#!/bin/sh", "is no Python interpreter; use `safespawn run`"),
        ("#!python3", "'python3' of"),
        ("#!/usr/bin/env sh", "is no Python interpreter"),
        ("#!/usr/bin/env no-such-python", "no-such-python"),
        ("#!/usr/bin/env -i", "what env makes of '-i'"),
        ("#!/usr/bin/env -S -u PYTHONPATH python3", "what env makes of"),
        ("#!/usr/bin/env -S PYTHONPATH=x python3", "what env makes of"),
        ("#!/usr/bin/env -S python3 ${{OPT}}", "what env makes of"),
        ("#!/usr/bin/env -S python3 \\_-I", "what env makes of"),
        ("#!/usr/bin/env -S python3 #", "what env makes of"),
        ("#!/usr/bin/env", "what env makes of ''"),
        ("#!{python} -I", "with -I"),
        ("#!{python} -sE", "with -sE"),
        ("#!/no/such/python", "unknown: [Errno 2]"),
        ("#!", "is no absolute path"),
    ],
)
def test_script_that_is_refused(become: Exec, script: Any, first: str, said: str) -> None:
    """A script in which nothing could be installed is refused, and it is said why."""
    done = become("--", script("print('ran')", first=first))
    assert (done.returncode, done.stdout) == (125, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-I", "app"], ["-E", "app"], ["-S", "app"], ["-IS", "app"], ["-uE"], ["-W", "x", "-S"], ["-Wx", "-S"],
        ["-X", "x", "-I"], ["-bX", "x", "-I"], ["--check-hash-based-pycs", "always", "-E"],
    ],
)  # fmt: skip
def test_options_that_keep_us_out(words: list[str]) -> None:
    """-I, -E and -S are found wherever Python would find them."""
    assert _cli_python.isolating(words) is not None


@pytest.mark.parametrize(
    "words",
    [
        [], ["-"], ["app", "-I"], ["-u", "app", "-I"], ["-c", "x", "-I"], ["-cI"], ["-m", "x", "-E"], ["-mS"],
        ["-uc", "S"], ["-W", "-I", "app"], ["-X", "-S", "app"], ["-WE", "app"], ["-XS"], ["--", "-I"], ["-s", "-P"],
    ],
)  # fmt: skip
def test_options_that_do_not(words: list[str]) -> None:
    """Letters of other options, of their values, and of the program are not taken for them."""
    assert _cli_python.isolating(words) is None


@pytest.mark.parametrize(
    ("program", "code"), [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126), ("/bin/sh", 125)]
)
def test_program_that_cannot_be_used(become: Exec, program: str, code: int) -> None:
    """A program that is missing, not executable, or no Python has the exit code of `safespawn run`, or 125."""
    done = become("--", program)
    assert (done.returncode, done.stdout) == (code, "")
    assert program in done.stderr


def test_no_program(become: Exec) -> None:
    """Without a program there is nothing to do, and it is said how to give one."""
    done = become()
    assert (done.returncode, "no program given: safespawn exec" in done.stderr) == (125, True)


def test_file_that_is_called_python_and_is_none(become: Exec, script: Any) -> None:
    """A script that is called python is judged by what interprets it."""
    done = become("--", script("exit 0", first="#!/bin/sh", name="python3"))
    assert (done.returncode, "no Python interpreter" in done.stderr) == (125, True)


def test_file_that_is_called_python_and_is_nothing(become: Exec, script: Any) -> None:
    """A file that is called python and is no program at all is told before the exec, which would only fail."""
    done = become("--", script("", first="print()", name="python3"))
    assert (done.returncode, "no Python interpreter" in done.stderr) == (125, True)


def test_interpreter_that_nobody_can_read() -> None:
    """What cannot be read is not taken for a Python program."""
    with pytest.raises(_cli_python.NotPythonError, match="unknown"):
        _cli_python.judge("/proc/self/attr", [], {})


# --------------------------------------------------------------------- what fails


def test_policy_that_is_wrong(become: Exec, config: Any) -> None:
    """A policy with a fault is told with line and key, before anything runs."""
    done = become("--config", path := config("[spawn]\n\nnice = 99\n"), "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{path}:3: spawn.nice must be from -20 to 19, not 99" in done.stderr


def test_policy_that_is_missing(become: Exec) -> None:
    """A policy that was named must be there."""
    done = become("--config", "/no/such/policy.toml", "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    assert "/no/such/policy.toml: cannot open the policy: No such file or directory" in done.stderr


def test_ledger_that_cannot_be_opened(become: Exec) -> None:
    """A program whose ledger cannot be opened does not run a line."""
    done = become("--audit", "/no/such/ledger", "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("safespawn exec: ") and "/no/such/ledger" in done.stderr


def test_mode_without_a_ledger(become: Exec) -> None:
    """A mode for no ledger is a mistake."""
    done = become("--audit-mode", "durable", "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    assert "--audit-mode durable, and no ledger" in done.stderr


def test_policy_that_goes_wrong_after_the_look(environment: dict[str, str], place: str) -> None:
    """What fails in the new process ends it: Python would go on without it."""
    env = {
        **environment,
        "PYTHONPATH": f"{STARTUP}:{place}",
        "SAFESPAWN_EXEC": json.dumps({"pid": None, "config": "/no/such.toml", "audit": {}}),
    }
    done = subprocess.run(
        [sys.executable, "-c", "print('ran')"], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("safespawn exec: /no/such.toml: ")


@pytest.mark.parametrize("text", ["{", "[]", '{"pid": null}'])
def test_order_that_cannot_be_read(environment: dict[str, str], place: str, text: str) -> None:
    """An order that makes no sense ends the process too."""
    env = {**environment, "PYTHONPATH": f"{STARTUP}:{place}", "SAFESPAWN_EXEC": text}
    done = subprocess.run(
        [sys.executable, "-c", "print('ran')"], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"safespawn exec: SAFESPAWN_EXEC makes no sense: {text!r}\n"


def test_interpreter_without_safespawn(place: str, become: Exec, tmp_path: Path) -> None:
    """An interpreter that has no safespawn says so, and runs nothing."""
    interpreter = tmp_path / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    launch = (
        f"import os, sys; sys.path.insert(0, {place!r}); os.environ.pop('PYTHONPATH');"
        f"from safespawn.cli import main; sys.exit(main(['exec', '--', {str(interpreter)!r}, '-c', 'print(1)']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", launch], capture_output=True, text=True, check=False, cwd="/",
        env={**os.environ, "PYTHONPATH": place},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{interpreter} has no safespawn that works: No module named 'safespawn'" in done.stderr


# ---------------------------------------------------------------------- which policy


def test_policy_of_the_working_directory_is_not_taken(place: str, script: Any, tmp_path: Path) -> None:
    """A policy that lies in the working directory, or that the environment names, is nobody's order."""
    (tmp_path / "safespawn.toml").write_text("[spawn]\nnice = 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "safespawn", "exec", "--", sys.executable, str(script())],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": place, "SAFESPAWN_CONFIG": str(tmp_path / "safespawn.toml")},
    )  # fmt: skip
    assert told(done)["policy"] is None


def test_policy_of_the_host_is_taken(
    config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --config the policy in /etc is taken, if there is one."""
    assert _cli_exec.DEFAULT == "/etc/safespawn.toml"
    monkeypatch.setattr(_cli_exec, "DEFAULT", str(path := config("[spawn]\nnice = 3\n")))
    assert main(["exec", "--check"]) == 0
    assert capsys.readouterr().out == f"policy  {path}\n  spawn.nice  3\n"


# ---------------------------------------------------------------------------- --check


def test_check_shows_what_would_hold(config: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--check shows each key with its value, the command line's ledger in place of the policy's."""
    path = config(f'[guards]\nrequire = "locked"\n[audit]\npath = "{tmp_path}/x"\n[spawn]\numask = "027"\n')
    assert main(["exec", "--check", "--config", str(path), "--audit", "/var/log/y"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"policy  {path}",
        '  guards.require  "locked"',
        '  audit.path      "/var/log/y"',
        '  spawn.umask     "027"',
    ]


def test_check_starts_nothing(become: Exec, config: Any) -> None:
    """--check with a program looks at that too, and does not start it."""
    done = become("--check", "--config", config(""), "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, "ran" in done.stdout) == (0, False)


@pytest.mark.parametrize(("words", "code"), [(["/no/such"], 127), (["/bin/sh"], 125), ([sys.executable, "-I"], 125)])
def test_check_of_a_program_that_cannot_be_used(become: Exec, words: list[str], code: int) -> None:
    """--check has the exit codes that the start would have."""
    assert become("--check", "--", *words).returncode == code


def test_check_of_a_policy_that_is_wrong(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check of a policy with a fault says where, and exits with 125."""
    path = config("[spawn]\nnice = 99\n")
    assert main(["exec", "--check", "--config", str(path)]) == 125
    assert f"{path}:2: spawn.nice" in capsys.readouterr().err


# --------------------------------------------------------------------------- packaging


def test_startup_directory_has_nothing_else() -> None:
    """PYTHONPATH leads to our sitecustomize, and to no other module whose name anybody could mean."""
    names = sorted(one.name for one in STARTUP.iterdir() if one.name != "__pycache__")
    assert names == ["_safespawn_startup.py", "sitecustomize.py"]


@pytest.mark.parametrize("version", [(3, 0), (3, 6)])
def test_old_python_can_read_the_first_file(version: tuple[int, int]) -> None:
    """An interpreter that cannot read what follows must be able to end: what is no syntax to it site would pass over."""
    import ast

    text = (STARTUP / "sitecustomize.py").read_text(encoding="ascii")
    ast.parse(text, feature_version=version)
    assert "annotations" not in text
    assert 'f"' not in text


@pytest.mark.parametrize("name", ["python2.7", "python3.6"])
def test_old_python_runs_nothing(become: Exec, name: str) -> None:
    """A Python for which safespawn is not made ends before its program begins."""
    found = shutil.which(name)
    if found is None or subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode:
        return  # the test above holds what can be held without it
    done = become("--", found, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    assert "safespawn exec" in done.stderr


def test_package_without_its_startup_directory(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A package that was not installed whole refuses to start anything."""
    monkeypatch.setattr(_cli_exec, "STARTUP", "/no/such/startup")
    assert main(["exec", "--check", "--", sys.executable, "-c", "pass"]) == 125
    assert "has no sitecustomize.py" in capsys.readouterr().err


def test_startup_directory_that_pythonpath_cannot_name(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A path with a colon cannot be in PYTHONPATH, so nothing is started."""
    monkeypatch.setattr(_cli_exec, "STARTUP", "/a:b/startup")
    assert main(["exec", "--check", "--", sys.executable, "-c", "pass"]) == 125
    assert "':' in it" in capsys.readouterr().err


def test_site_of_others_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """With a ``site`` of its own in PYTHONPATH Python may never come to ours."""
    (tmp_path / "site.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["exec", "--", sys.executable, "-c", ""]) == 125
    assert "site of its own" in capsys.readouterr().err
