"""The policy: what a file may say, where it says what is wrong, and that all of it holds."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
from safespawn import _policy, _policy_file, _policy_lines, _policy_values, _spec, guards, policy

DOCUMENTATION = helpers.ROOT / "docs" / "policy.md"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another user")

#: Options that are about one program, or name a descriptor; `redact` has a table of its own.
NO_DEFAULT = {
    "executable", "stdin", "stdout", "stderr", "fds", "pass_fds", "controlling_terminal", "digest", "redact",
    "helper",
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Return a maker of policy files."""

    def make(text: str | bytes) -> Path:
        path = tmp_path / "safespawn.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def fault(path: Path) -> policy.PolicyError:
    """Return what is wrong with a file."""
    with pytest.raises(policy.PolicyError) as caught:
        policy.load(path)
    return caught.value


def applied(path: Path, snippet: str, **values: Any) -> dict[str, Any]:
    """Run a snippet in a process to which the policy of a file was applied."""
    begin = "from safespawn import policy\npolicy.apply(policy.load(policy_file))\n"
    return helpers.run_snippet(begin + snippet, policy_file=str(path), **values)


# ------------------------------------------------------------------------ the keys

VALUES: list[tuple[str, str, Any]] = [
    ("env", '{ A = "b" }', {"A": "b"}),
    ("cwd", '"/srv"', "/srv"),
    ("root", '"/srv"', "/srv"),
    ("start_new_session", "true", True),
    ("process_group", "0", 0),
    ("umask", '"027"', 0o27),
    ("nice", "5", 5),
    ("scheduler", '"batch"', os.SCHED_BATCH),
    ("scheduler", '"fifo:10"', (os.SCHED_FIFO, 10)),
    ("cpu_affinity", '"0,2-3"', [0, 2, 3]),
    ("cpu_affinity", "[0, 1]", [0, 1]),
    ("rlimits", "{ core = 0 }", {resource.RLIMIT_CORE: 0}),
    ("rlimits", '{ nofile = [256, "unlimited"] }', {resource.RLIMIT_NOFILE: (256, -1)}),
    ("cgroup", '"/sys/fs/cgroup/jobs"', "/sys/fs/cgroup/jobs"),
    ("pdeathsig", '"TERM"', signal.SIGTERM),
    ("restore_signals", "false", False),
    ("sigmask", '["SIGUSR1", "HUP"]', [signal.SIGUSR1, signal.SIGHUP]),
    ("sigdefault", '["SIGPIPE"]', [signal.SIGPIPE]),
    ("subreaper", "true", True),
    ("no_new_privs", "true", True),
    ("user", '"nobody"', "nobody"),
    ("group", "65534", 65534),
    ("extra_groups", '[5, "audio"]', [5, "audio"]),
    ("caps", '["net_bind_service"]', ["net_bind_service"]),
    ("securebits", '["noroot"]', ["noroot"]),
    ("namespaces", '["net", "ipc"]', ["net", "ipc"]),
    (
        "namespaces",
        "{ user = { users = [[0, 1000, 1]] }, mount = {} }",
        {"user": {"users": [(0, 1000, 1)]}, "mount": None},
    ),
    ("landlock", '{ abi = 1, read = ["/usr"] }', {"abi": 1, "read": ["/usr"]}),
    ("env_policy", '"scrub"', "scrub"),
    ("pin", "true", True),
    ("path_policy", '"trusted"', "trusted"),
    ("deadline", "2.5", 2.5),
    ("strategy", '"fork"', "fork"),
    ("on_unproven", '"refuse"', "refuse"),
    ("audit_tags", '{ service = "web" }', {"service": "web"}),
]


@pytest.mark.parametrize(("option", "text", "value"), VALUES)
def test_default_of_an_option(write: Any, option: str, text: str, value: Any) -> None:
    """A key of [spawn] is what the option of spawn takes."""
    assert policy.load(write(f"[spawn]\n{option} = {text}\n")).options == {option: value}


def test_every_option_has_a_key_or_a_reason() -> None:
    """An option of spawn has a default in the file, unless it is about one program or names a descriptor."""
    assert set(_policy_values.SPAWN) == set(_spec.SpawnOptions.__annotations__) - NO_DEFAULT


def test_every_key_of_spawn_is_tried_here() -> None:
    """No reader of a default goes without a test of what it makes of a value."""
    others = {"seccomp", "env_allow"}  # the one reads a file, the other needs env_policy
    assert {option for option, _, _ in VALUES} | others == set(_policy_values.SPAWN)


def test_filter_is_read_from_its_file(write: Any, tmp_path: Path) -> None:
    """``seccomp`` names a file, and the bytes of that are the filter."""
    filter_ = tmp_path / "filter.bpf"
    filter_.write_bytes(bytes.fromhex("06000000 0000ff7f"))
    loaded = policy.load(write(f'[spawn]\nseccomp = "{filter_}"\n'))
    assert loaded.options == {"seccomp": bytes.fromhex("06000000 0000ff7f")}


def test_filter_that_others_can_write_is_refused(write: Any, tmp_path: Path) -> None:
    """A filter is judged as the policy is."""
    filter_ = tmp_path / "filter.bpf"
    filter_.write_bytes(bytes(8))
    filter_.chmod(0o666)
    assert "others can write the filter" in str(fault(write(f'[spawn]\nseccomp = "{filter_}"\n')))


def test_all_other_tables(write: Any) -> None:
    """The other tables are the arguments of guards.require, audit.open and audit.redact, and our own."""
    loaded = policy.load(
        write(
            """
[guards]
require = "sealed"
[programs]
refused = ["/usr/bin/nc", "/opt/*/nc", "nc"]
[subprocess]
preexec_fn = "refuse"
[audit]
path = "/var/log/x.jsonl"
mode = "durable"
keys = ""
max_bytes = 1000
max_seconds = 60.5
append_only = true
checkpoint_seconds = 5
late_failure = "kill"
[redaction]
patterns = ['card=(\\d+)']
[exec]
children = true
"""
        )
    )
    assert (loaded.require, loaded.preexec_fn, loaded.children) == ("sealed", "refuse", True)
    assert loaded.refused == ("/usr/bin/nc", "/opt/*/nc", "nc")
    assert loaded.redact == (r"card=(\d+)",)
    assert loaded.audit == {
        "path": "/var/log/x.jsonl", "mode": "durable", "keys": "", "max_bytes": 1000, "max_seconds": 60.5,
        "append_only": True, "checkpoint_seconds": 5, "late_failure": "kill",
    }  # fmt: skip


def test_empty_file_asks_for_nothing(write: Any) -> None:
    """A file without keys is a policy like one made of nothing."""
    loaded = policy.load(write("# nothing\n"))
    assert (loaded.options, loaded.audit, loaded.refused, loaded.require) == ({}, None, (), None)


def test_documented_example_loads_and_has_every_table(write: Any) -> None:
    """The example of docs/policy.md is a policy, and shows every table."""
    example = re.search(r"```toml\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert example is not None
    told = policy.load(write(example[1])).told
    assert {key.partition(".")[0] for key, _ in told} == set(_policy_values.KEYS)


def test_documentation_has_every_key() -> None:
    """docs/policy.md has a row for each key and for no other."""
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", DOCUMENTATION.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"{table}.{key}" for table, keys in _policy_values.KEYS.items() for key in keys)


# ---------------------------------------------------------------- what is wrong, and where

FAULTS: list[tuple[str, int, str | None, Any, str]] = [
    ("[spwan]\n", 1, "spwan", {}, "did you mean spawn"),
    ("[elephant]\n", 1, "elephant", {}, "known are guards, spawn"),
    ("spawn = 3\n", 1, "spawn", 3, "must be a table"),
    ("[guards]\n[[spawn]]\ncwd = '/'\n[[spawn]]\numask = 0\n", 2, "spawn", [{"cwd": "/"}, {"umask": 0}], "must be a table"),
    ("[spawn]\n\n\numsk = '022'\n", 4, "spawn.umsk", "022", "did you mean umask"),
    ("[spawn]\nfds = {}\n", 2, "spawn.fds", {}, "no such key"),
    ("[spawn]\numask = 22\n", 2, "spawn.umask", 22, "string of octal digits"),
    ("[spawn]\numask = '9'\n", 2, "spawn.umask", "9", "octal number needed, not '9'"),
    ("[spawn]\numask = '7777'\n", 2, "spawn.umask", "7777", "not 4095"),
    ("[spawn]\nnice = 40\n", 2, "spawn.nice", 40, "from -20 to 19, not 40"),
    ("[spawn]\npin = 'yes'\n", 2, "spawn.pin", "yes", "True or False, not 'yes'"),
    ("[spawn]\ncwd = 'srv'\n", 2, "spawn.cwd", "srv", "absolute path, not 'srv'"),
    ("[spawn]\ncwd = 7\n", 2, "spawn.cwd", 7, "must be a string, not 7"),
    ("[spawn]\nscheduler = 'fifo'\n", 2, "spawn.scheduler", "fifo", "not 'fifo'"),
    ("[spawn]\npdeathsig = 'TREM'\n", 2, "spawn.pdeathsig", "TREM", "no such signal: 'TREM'"),
    ("[spawn]\nsigmask = ['HUP', 'X']\n", 2, "spawn.sigmask", ["HUP", "X"], "sigmask[1]: no such signal: 'X'"),
    ("[spawn.rlimits]\ncore = 0\ncor = 1\n", 3, "spawn.rlimits", {"core": 0, "cor": 1}, "no such limit: 'cor'"),
    ("[spawn]\nrlimits.nofile = 'many'\n", 2, "spawn.rlimits", {"nofile": "many"}, "nofile must be a number"),
    ("[spawn]\nrlimits.nofile = [2, 1]\n", 2, "spawn.rlimits", {"nofile": [2, 1]}, "above hard"),
    ("[spawn]\nrlimits.nofile = -7\n", 2, "spawn.rlimits", {"nofile": -7}, "nofile must be from -1"),
    ("[spawn]\ncaps = ['sysadmin']\n", 2, "spawn.caps", ["sysadmin"], "unknown: 'sysadmin'"),
    ("[spawn]\nnamespaces = ['mnt']\n", 2, "spawn.namespaces", ["mnt"], "unknown: 'mnt'"),
    ("[spawn.landlock]\nread = ['usr']\n", 2, "spawn.landlock", {"read": ["usr"]}, "absolute path, not 'usr'"),
    ("[spawn]\nseccomp = '/no/such'\n", 2, "spawn.seccomp", "/no/such", "No such file"),
    ("[spawn]\nstrategy = 'fast'\n", 2, "spawn.strategy", "fast", "not 'fast'"),
    ("[spawn]\nenv = { A = 1 }\n", 2, "spawn.env", {"A": 1}, "not 1 (int)"),
    (
        "[spawn]\nstart_new_session = true\nnice = 1\nprocess_group = 0\n",
        4, "spawn", {"start_new_session": True, "nice": 1, "process_group": 0}, "process_group=0 and start_new_session",
    ),
    ("[guards]\nrequire = 'vfork'\n", 2, "guards.require", "vfork", "not 'vfork'"),
    ("[programs]\nrefused = ['bin/nc']\n", 2, "programs.refused", ["bin/nc"], "not 'bin/nc'"),
    ("[programs]\nrefused = ['/bin/../nc']\n", 2, "programs.refused", ["/bin/../nc"], "not '/bin/../nc'"),
    ("[programs]\nrefused = ['nc*']\n", 2, "programs.refused", ["nc*"], "such as /*/nc*"),
    ("[programs]\nrefused = ['/usr']\n", 2, "programs.refused", ["/usr"], "is a directory: '/usr'"),
    ("[programs]\nrefused = ['/usr/']\n", 2, "programs.refused", ["/usr/"], "names no program: '/usr/'"),
    ("[programs]\nrefused = [7]\n", 2, "programs.refused", [7], "refused[0] must be a path"),
    ("[programs]\nrefused = 'nc'\n", 2, "programs.refused", "nc", "must be a sequence, not 'nc'"),
    ("[subprocess]\npreexec_fn = 'maybe'\n", 2, "subprocess.preexec_fn", "maybe", "not 'maybe'"),
    ("[audit]\nmode = 'require'\n", 1, "audit.path", None, "audit.path is missing"),
    ("[audit]\n", 1, "audit.path", None, "audit.path is missing"),
    ("[audit]\npath = '/x'\nmode = 'always'\n", 3, "audit.mode", "always", "not 'always'"),
    ("[audit]\nmax_bytes = -1\npath = '/x'\n", 2, "audit.max_bytes", -1, "0 or more, and finite, not -1"),
    ("[audit]\nmax_bytes = 1.5\npath = '/x'\n", 2, "audit.max_bytes", 1.5, "must be a number, not 1.5"),
    ("[audit]\nmirrors = []\npath = '/x'\n", 2, "audit.mirrors", [], "no such key"),
    ("[redaction]\npatterns = ['(']\n", 2, "redaction.patterns", ["("], "no regular expression: '('"),
    ("[exec]\nchildren = 1\n", 2, "exec.children", 1, "True or False, not 1"),
    (
        "[exec]\nchildren = true\n[spawn]\nenv_policy = 'scrub'\n",
        4, "exec.children", True, "spawn.env_policy = 'scrub'",
    ),
    ("[spawn]\nnice = \n", 2, None, "nice = ", "no TOML: Invalid value"),
    ("[spawn]\nnice = 1\nnice = 2\n", 3, None, "nice = 2", "no TOML: Cannot overwrite"),
    ("[spawn]\ncwd = '''\n/srv\n", 3, None, "/srv", "no TOML: "),
    ("[spawn]\n\xe9 = 1\n", 2, None, "\xe9 = 1", "no TOML: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "key", "value", "said"), FAULTS, ids=[one[0] for one in FAULTS])
def test_fault_is_told_with_file_line_key_and_value(
    write: Any, text: str, line: int, key: str | None, value: Any, said: str
) -> None:
    """What is wrong is told with the line where it stands, the key, and the value."""
    seen = fault(path := write(text))
    assert (seen.path, seen.line, seen.key, seen.value) == (str(path), line, key, value)
    assert said in str(seen)
    assert str(seen).startswith(f"{path}:{line}: ")


def test_line_behind_strings_and_arrays_of_several_lines(write: Any) -> None:
    """Lines of strings that look like keys, and of arrays, do not shift the line of a statement."""
    text = '[spawn]\nenv.A = """\n[spawn]\nnice = 40\n"""\nsigmask = [\n  "HUP",\n\n  "USR1",\n]\nnice = 40\n'
    assert fault(write(text)).line == 11


def test_statement_of_several_lines_is_told_by_its_first(write: Any) -> None:
    """A value that goes over several lines is at the line of its key."""
    assert fault(write('[spawn]\nnice = 1\nsigmask = [\n  "HUP",\n  "NO",\n]\n')).line == 3


def test_key_of_a_table_that_is_opened_later(write: Any) -> None:
    """A fault in a table of a table is at its own line, wherever the outer one goes on."""
    assert fault(write("[spawn.rlimits]\ncore = 0\n[spawn]\nnice = 1\n[spawn.env]\nA = 1\n")).line == 6


def test_lines_that_end_as_in_windows(write: Any) -> None:
    """Lines that end in CR LF are counted as others are."""
    assert fault(write("[spawn]\r\nnice = 1\r\npin = 3\r\n")).line == 3


def test_bytes_that_are_no_text(write: Any) -> None:
    """What is no UTF-8 is told with its line."""
    seen = fault(write(b"[spawn]\nnice = 1\ncwd = '/\xff'\n"))
    assert (seen.line, "no UTF-8" in str(seen)) == (3, True)


def test_text_that_is_nested_too_deeply(write: Any) -> None:
    """A text that exhausts the parser is refused like another that cannot be read."""
    assert "no TOML" in str(fault(write("[spawn]\nenv = " + "[" * 20000 + "\n")))


def test_statements_of_a_text() -> None:
    """A text falls into its statements, each with the line where it begins."""
    text = 'a = 1\n# b\nc = [\n1,\n]\nd = """\n"""\n'
    lines = [line for line, _ in _policy_lines.statements(text, _policy_file._parsed)]
    assert lines == [1, 3, 6]


def test_lines_that_say_nothing_are_not_read_again() -> None:
    """Each reading is of all that comes before: comments and empty lines cost none."""
    read = []

    def parse(text: str) -> Any:
        read.append(len(text))
        return _policy_file._parsed(text)

    text = "# nothing\n\n" * 3000 + "[spawn]\n\n# more\nnice = 99\n"
    assert _policy_lines.of_fault(text, parse, lambda told: "nice" in told.get("spawn", {})) == 6004
    assert len(read) == 2


# ----------------------------------------------------------------------- the file


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_file_that_others_can_write(write: Any, mode: int) -> None:
    """A policy that its group or everybody can write is refused."""
    path = write("")
    path.chmod(mode)
    assert f"others can write the policy (uid {os.geteuid()}, mode {mode:o})" in str(fault(path))


@root_only
def test_file_of_another_user(write: Any) -> None:
    """A policy of another user is refused, whatever its mode."""
    path = write("")
    os.chown(path, 65534, 65534)
    assert "uid 65534" in str(fault(path))


def test_directory_that_others_can_write(write: Any, tmp_path: Path) -> None:
    """A policy in whose place others could put another one is refused."""
    path = write("")
    tmp_path.chmod(0o777)
    assert "the policy's path leads through" in str(fault(path))


def test_link_is_not_followed(write: Any, tmp_path: Path) -> None:
    """A policy is named itself."""
    link = tmp_path / "link.toml"
    link.symlink_to(write(""))
    assert "symbolic links" in str(fault(link))


def test_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """What is no regular file is refused at once."""
    os.mkfifo(tmp_path / "fifo")
    assert "must be a regular file" in str(fault(tmp_path / "fifo"))


def test_file_that_is_missing(tmp_path: Path) -> None:
    """A policy that is not there is refused by its path."""
    seen = fault(tmp_path / "none.toml")
    assert (seen.path, seen.line, str(seen)) == (
        str(tmp_path / "none.toml"), None, f"{tmp_path}/none.toml: No such file or directory",
    )  # fmt: skip


def test_file_that_is_too_long(write: Any) -> None:
    """A policy has a greatest length."""
    assert "more than 65536 bytes" in str(fault(write("#" * 65537)))


def test_python_that_reads_no_toml(write: Any) -> None:
    """Python 3.10 without tomli says what to install."""
    out = helpers.run_snippet(
        """
from safespawn import policy
sys.version_info, sys.modules["tomli"] = (3, 10), None
try:
    policy.load(file)
except policy.PolicyError as problem:
    out["said"] = str(problem)
""",
        file=str(path := write("")),
    )
    assert out["said"] == f"{path}: Python 3.10 reads no TOML: install tomli, as pip install 'safespawn[toml]' does"


# ---------------------------------------------------------------------- what holds


def test_options_without_a_policy_are_those_given() -> None:
    """Where no policy holds, the options of a caller go through as they are."""
    given = {"umask": 0}
    assert _policy.options(given) is given


@pytest.mark.parametrize(
    ("defaults", "given", "holds"),
    [
        ({"umask": 1}, {}, {"umask": 1}),
        ({"umask": 1}, {"umask": 2}, {"umask": 2}),
        ({"umask": 1}, {"umask": 0}, {"umask": 0}),
        ({"umask": 1}, {"umask": None}, {"umask": 1}),
        ({"pin": True}, {"pin": False}, {"pin": False}),
        ({"umask": 1}, {"nice": 2}, {"umask": 1, "nice": 2}),
        ({"process_group": 0}, {"start_new_session": True}, {"start_new_session": True}),
        ({"process_group": 0}, {"start_new_session": False}, {"start_new_session": False, "process_group": 0}),
        ({"start_new_session": True}, {"process_group": 0}, {"process_group": 0}),
        ({"env_policy": "scrub", "env_allow": ["A"]}, {"env_policy": "inherit"}, {"env_policy": "inherit"}),
        ({"cwd": "/srv"}, {"root": "/jail"}, {"root": "/jail"}),
        ({"user": "a", "group": "b", "extra_groups": ["c"]}, {"user": "d"}, {"user": "d"}),
        ({"user": "a", "extra_groups": ["c"]}, {"group": "d"}, {"user": "a", "group": "d", "extra_groups": ["c"]}),
    ],
)
def test_options_with_a_policy(defaults: Any, given: Any, holds: Any) -> None:
    """A default fills up what was not given, unless it would contradict that."""
    seen = helpers.run_snippet(
        """
from safespawn import _policy, policy
policy.apply(policy.Policy(options=defaults))
out["options"] = {name: value for name, value in _policy.options(given).items()}
""",
        defaults=defaults,
        given=given,
    )
    assert seen["options"] == holds


@pytest.mark.parametrize("call", ["safespawn.run(argv, capture_output=True).stdout", "spawned()"])
def test_default_holds_for_run_and_spawn(write: Any, call: str) -> None:
    """A program that run or spawn starts has the policy's default."""
    out = applied(
        write('[spawn]\numask = "027"\n'),
        f"""
def spawned():
    with safespawn.spawn(argv, stdout=safespawn.PIPE) as process:
        return process.communicate()[0]
out["umask"] = {call}.decode()
""",
        argv=["/bin/sh", "-c", "umask"],
    )
    assert out["umask"] == "0027\n"


def test_caller_wins_over_a_default(write: Any) -> None:
    """What a caller gives is what its program has."""
    out = applied(
        write('[spawn]\numask = "027"\n'),
        'out["umask"] = safespawn.run(["/bin/sh", "-c", "umask"], umask=0o77, capture_output=True).stdout.decode()\n',
    )
    assert out["umask"] == "0077\n"


def test_policy_is_applied_once(write: Any) -> None:
    """A second policy is refused, and the first one holds on."""
    out = applied(
        first := write('[spawn]\numask = "027"\n'),
        """
from safespawn import _policy
try:
    policy.apply(policy.Policy(options={"umask": 0}))
except RuntimeError as problem:
    out["said"] = str(problem)
out["options"] = dict(_policy.options({}))
""",
    )
    assert out == {
        "said": f"a policy holds in this process already ({first}): none takes its place", "options": {"umask": 0o27},
    }  # fmt: skip


def test_policy_made_by_hand_is_checked() -> None:
    """A policy that was not loaded is checked before any of it holds."""
    out = helpers.run_snippet(
        """
from safespawn import policy
for bad in ({"options": {"umask": 4096}}, {"refused": ("a/b",)}, {"redact": ("(",)}):
    try:
        policy.apply(policy.Policy(**bad))
    except ValueError as problem:
        out[next(iter(bad))] = str(problem)
out["applied"] = policy.applied()
"""
    )
    assert out.pop("applied") is None
    assert {name: word in out[name] for name, word in (("options", "4096"), ("refused", "a/b"), ("redact", "'('"))} == {
        "options": True, "refused": True, "redact": True,
    }  # fmt: skip


def test_proof_is_required(write: Any) -> None:
    """The proof of the policy is the weakest that the process accepts."""
    out = applied(
        write('[guards]\nrequire = "fork"\n'), 'out["strategy"] = safespawn.run(["/bin/true"]).report.strategy\n'
    )
    assert out["strategy"] == "fork"


def test_stronger_proof_that_was_required_stays(write: Any) -> None:
    """A policy that asks for less than the process did takes nothing away."""
    out = helpers.run_snippet(
        """
from safespawn import guards, policy
guards.require("fork")
policy.apply(policy.load(file))
out["required"] = guards.status()["required"]
""",
        file=str(write('[guards]\nrequire = "locked"\n')),
    )
    assert out["required"] == "fork"


def test_ledger_is_opened_and_tells_the_policy(write: Any, tmp_path: Path) -> None:
    """The ledger of the policy has the process's records, and its opening says which policy holds."""
    ledger = tmp_path / "ledger.jsonl"
    path = write(f'[audit]\npath = "{ledger}"\nkeys = ""\n[redaction]\npatterns = ["hush"]\n')
    applied(path, 'safespawn.run(["/bin/echo", "hush"], stdout=safespawn.DEVNULL)\n')
    records = helpers.records(ledger)
    opening = next(one for one in records if one["ev"] == "chain.open")
    assert opening["guards"]["policy"] == {"path": str(path), "sha256": policy.load(path).sha256}
    intent = next(one for one in records if one["ev"] == "spawn.intent")
    assert "hush" not in str(intent)


@pytest.mark.parametrize("text", ["", '[guards]\nrequire = "locked"\n'])
def test_ledger_that_was_open_before_is_told(write: Any, tmp_path: Path, text: str) -> None:
    """A ledger that the program had opened before gets a record of the policy that holds from now on."""
    helpers.run_snippet(
        """
from safespawn import audit, policy
audit.open(ledger, keys="")
policy.apply(policy.load(file))
""",
        ledger=str(ledger := tmp_path / "ledger.jsonl"),
        file=str(path := write(text)),
    )
    told = [one["guards"]["policy"]["path"] for one in helpers.records(ledger) if one["ev"] == "guard.config"]
    assert told == [str(path)]


def test_ledger_that_cannot_be_opened(write: Any) -> None:
    """A policy whose ledger cannot be opened raises, and the rest of it holds."""
    out = helpers.run_snippet(
        """
from safespawn import _policy, policy
try:
    policy.apply(policy.load(file))
except safespawn.AuditError as problem:
    out["errno"] = problem.errno
out["options"] = dict(_policy.options({}))
""",
        file=str(write('[audit]\npath = "/no/such/ledger"\n[spawn]\nnice = 3\n')),
    )
    assert out == {"errno": 2, "options": {"nice": 3}}


def test_forked_child_has_the_policy(write: Any) -> None:
    """A child that the process forks is held to the same."""
    out = applied(
        write('[programs]\nrefused = ["true"]\n'),
        """
read, said = os.pipe()
if os.fork() == 0:
    try:
        safespawn.run(["true"])
    except safespawn.UnsafeSpawn as refusal:
        os.write(said, refusal.guard.encode())
    os._exit(0)
os.wait()
out["guard"] = os.read(read, 100).decode()
""",
    )
    assert out["guard"] == "program-allowed"


def test_doctor_tells_the_policy(write: Any) -> None:
    """What doctor examines has the file of the policy that holds."""
    out = applied(
        path := write(""), "from safespawn import doctor\nseen = doctor.examine()\nout['policy'] = seen['policy']\n"
        "out['shown'] = seen['policy'] in doctor.table(seen)\n",
    )  # fmt: skip
    assert out == {"policy": str(path), "shown": True}


# ---------------------------------------------------------------------- preexec_fn


@pytest.mark.parametrize(
    ("text", "refuses", "why"),
    [
        ("", False, None),
        ("[subprocess]\npreexec_fn = 'refuse'\n", True, None),
        ("[spawn]\nstrategy = 'fork'\non_unproven = 'fork'\naudit_tags = {a = 'b'}\n", False, None),
        ("[spawn]\numask = '022'\n", False, "its default umask=18 cannot be had there"),
        ("[spawn]\nno_new_privs = true\n", False, "its default no_new_privs=True cannot be had there"),
        ("[spawn]\nuser = 'nobody'\n", False, "its default user='nobody' cannot be had there"),
        ("[spawn]\nstrategy = 'vfork'\n", False, "its default strategy='vfork' cannot be had there"),
        ("[spawn]\non_unproven = 'refuse'\n", False, "its default on_unproven='refuse' cannot be had there"),
        ("[programs]\nrefused = ['nc']\n", False, "it refuses programs, and which one CPython would start"),
    ],
)
def test_preexec_fn(write: Any, text: str, refuses: bool, why: str | None) -> None:
    """A start with preexec_fn is hindered by all that CPython's fork could not give the child."""
    out = applied(
        write(text),
        """
from safespawn import _policy
out.update(refuses=_policy.refuses_preexec(), hinders=_policy.hinders_preexec())
""",
    )
    assert out["refuses"] is refuses
    assert (out["hinders"] or "").startswith(why or "")
    assert (out["hinders"] is None) is (why is None)


# ------------------------------------------------------------------ refused programs

REFUSED = """
try:
    out["ran"] = safespawn.run(argv, capture_output=True, **options).stdout.decode()
except safespawn.UnsafeSpawn as refusal:
    out.update(guard=refusal.guard, said=str(refusal), outcome=refusal.report.outcome)
"""


def refused(path: Path, argv: list[str], **options: Any) -> dict[str, Any]:
    """Return what came of a program under a policy."""
    return applied(path, REFUSED, argv=argv, options=options)


def policy_of(*entries: object) -> str:
    """Return a policy that refuses these."""
    return f"[programs]\nrefused = {[str(one) for one in entries]!r}\n"


@pytest.mark.parametrize("options", [{}, {"deadline": 30.0}, {"strategy": "fork"}, {"strategy": "launcher"}, {"pin": True}])
def test_refused_path_by_every_way(write: Any, program: Any, options: dict[str, Any]) -> None:
    """A listed file does not run, however it would be started, and the refusal is a guard's."""
    target = program()
    out = refused(write(policy_of(target)), [str(target)], **options)
    assert (out["guard"], out["outcome"]) == ("program-allowed", "refused")
    assert f"{target} is refused as '{target}'" in out["said"]


@pytest.mark.parametrize("kind", ["link", "hard link", "name of a link that is listed", "loop of dots", "executable"])
def test_refused_file_by_other_names(write: Any, program: Any, tmp_path: Path, kind: str) -> None:
    """A file is refused by every name that leads to it."""
    target, other = program(), tmp_path / "other"
    options: dict[str, Any] = {}
    listed, argv = target, [str(other)]
    if kind == "link":
        other.symlink_to(target)
    elif kind == "hard link":
        os.link(target, other)
    elif kind == "name of a link that is listed":
        other.symlink_to(target)
        listed, argv = other, [str(target)]
    elif kind == "loop of dots":
        argv = [f"{tmp_path}/./../{tmp_path.name}/{target.name}"]
    else:
        argv, options = ["harmless"], {"executable": str(target)}
    assert refused(write(policy_of(listed)), argv, **options).get("guard") == "program-allowed"


def test_refused_glob(write: Any, program: Any, tmp_path: Path) -> None:
    """A glob refuses what its real path fits, slashes and all."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    os.rename(program(), below / "tool")
    (tmp_path / "link").symlink_to(below / "tool")
    assert refused(write(policy_of(f"{tmp_path}/a/*")), [str(tmp_path / "link")])["guard"] == "program-allowed"


def test_refused_name_wherever_it_lies(write: Any, program: Any) -> None:
    """A bare name refuses every file that is called so."""
    assert refused(write(policy_of("tool")), [str(program(name="tool"))])["guard"] == "program-allowed"


def test_refused_name_of_a_link(write: Any, program: Any, tmp_path: Path) -> None:
    """A bare name is the name of a link too: many programs are one file."""
    (tmp_path / "applet").symlink_to(program())
    assert refused(write(policy_of("applet")), [str(tmp_path / "applet")])["guard"] == "program-allowed"


def test_refused_name_of_a_hard_link_beside_path(write: Any, program: Any, tmp_path: Path) -> None:
    """Another name for the file that a bare name finds in PATH is refused too."""
    places = tmp_path / "places"
    places.mkdir()
    os.rename(program(name="tool"), places / "tool")
    os.link(places / "tool", tmp_path / "innocent")
    out = applied(
        write(policy_of("tool")),
        f"os.environ['PATH'] = {str(places)!r}\n" + REFUSED,
        argv=[str(tmp_path / "innocent")],
        options={},
    )
    assert out["guard"] == "program-allowed"


@pytest.mark.parametrize("steps", [1, 3])
def test_refused_interpreter(write: Any, program: Any, steps: int) -> None:
    """A script whose interpreter is refused does not run, nor does one of that by another script."""
    interpreter: object = "/bin/sh"
    for step in range(steps):
        interpreter = program(f"#!{interpreter}\necho ran\n", f"step{step}")
    out = refused(write(policy_of(os.path.realpath("/bin/sh"))), [str(interpreter)])
    assert "its interpreter" in out["said"]


def test_interpreter_that_is_missing(write: Any, program: Any) -> None:
    """A script whose interpreter nobody can look at is refused."""
    out = refused(write(policy_of("nc")), [str(program("#!/no/such\n"))])
    assert "/no/such: No such file" in out["said"]


def test_words_of_a_command_refuse_nothing(write: Any) -> None:
    """What is listed may stand in arguments and in argv[0]: only the file counts."""
    out = refused(write(policy_of("nc", "/usr/bin/nc")), ["nc", "/usr/bin/nc"], executable="/bin/echo")
    assert out == {"ran": "/usr/bin/nc\n"}


def test_copy_of_a_refused_program_runs(write: Any, program: Any) -> None:
    """A copy under another name is another file: R-44, and the documentation says so."""
    target, copy = program("#!/bin/sh\necho ran\n"), program("#!/bin/sh\necho ran\n", "copy")
    assert refused(write(policy_of(target)), [str(copy)]) == {"ran": "ran\n"}


def test_entry_for_a_file_that_is_not_there(write: Any) -> None:
    """What is listed need not exist, yet or any more."""
    assert refused(write(policy_of("/no/such/program", "/etc/passwd/x")), ["/bin/echo"]) == {"ran": "\n"}


@root_only
@pytest.mark.parametrize("what", ["program", "entry"])
def test_refused_in_doubt(program: Any, public: Path, what: str) -> None:
    """A program that cannot be read, or a listed file that cannot be looked at, means refusal."""
    hidden = public / "hidden"
    hidden.mkdir(mode=0o700)
    target = public / "tool"
    os.rename(program(), target)
    target.chmod(0o711 if what == "program" else 0o755)
    out = helpers.run_snippet(
        """
from safespawn import policy
policy.apply(policy.Policy(refused=(entry,)))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
        + REFUSED,
        entry=str(hidden / "tool") if what == "entry" else "/no/such",
        argv=[str(target)],
        options={},
    )
    assert ("cannot be told from" if what == "entry" else "cannot be read") in out["said"]


def test_program_of_another_root(write: Any, jail: Path) -> None:
    """The names of a program in another root are those inside it and those from outside."""
    for entry in ("/bin/whole", str(jail / "bin" / "whole"), "whole"):
        out = refused(write(policy_of(entry)), ["/bin/whole"], root=str(jail))
        assert out["guard"] == "program-allowed", entry


def test_refusal_is_recorded(write: Any, program: Any, tmp_path: Path) -> None:
    """A refused program leaves a record that names the guard and the file."""
    target, ledger = program(), tmp_path / "ledger.jsonl"
    text = policy_of(target) + f'[audit]\npath = "{ledger}"\nkeys = ""\n'
    refused(write(text), [str(target)])
    denied = [one for one in helpers.records(ledger) if one["ev"] == "spawn.denied"]
    assert [one["how"]["guards"][0]["g"] for one in denied] == ["program-allowed"]
    assert denied[0]["what"]["exe"]["real"] == str(target)


def test_allowed_program_says_so(write: Any) -> None:
    """The report of a program that runs under refusals says that it was judged."""
    out = applied(write(policy_of("nc")), 'out["why"] = safespawn.run(["/bin/true"]).report.reasons\n')
    assert any(why.startswith("program-allowed: ") for why in out["why"])


def test_guard_is_registered() -> None:
    """The guard is in the registry, and answers its threat."""
    assert guards.registry["program-allowed"].threats == ("T-35",)
