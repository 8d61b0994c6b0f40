"""Makes fuzz/corpus/toml anew: policies that hold, and such with one thing wrong.

    python fuzz/toml_corpus.py

``SAID`` is what becomes of each: a policy, or the line and the key of what is wrong.
"""

from __future__ import annotations

from pathlib import Path

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "toml"

_EVERY_KEY = """\
[guards]
require = "locked"
[spawn]
env = { A = "b" }
cwd = "/srv"
start_new_session = true
umask = "027"
nice = 5
scheduler = "fifo:10"
cpu_affinity = "0,2-3"
rlimits = { core = 0, nofile = [256, "unlimited"] }
cgroup = "/sys/fs/cgroup/jobs"
pdeathsig = "TERM"
restore_signals = false
sigmask = ["SIGUSR1", "HUP"]
sigdefault = ["SIGPIPE"]
subreaper = true
no_new_privs = true
user = "nobody"
group = 65534
extra_groups = [5, "audio"]
caps = ["net_bind_service"]
securebits = ["noroot"]
namespaces = { user = { users = [[0, 1000, 1]], groups = [[0, 1000, 1]] }, mount = {} }
landlock = { abi = 1, read = ["/usr"], write = [], execute = ["/bin"] }
pin = true
deadline = 2.5
strategy = "fork"
on_unproven = "refuse"
audit_tags = { service = "web" }
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
children = false
"""

#: Text, and what becomes of it.
POLICIES: dict[str, tuple[str | bytes, str]] = {
    "good-empty": ("", "policy"),
    "good-remark": ("# nothing\n\n", "policy"),
    "good-every-key": (_EVERY_KEY, "policy"),
    "good-without-last-newline": ("[exec]\nchildren = true", "policy"),
    "good-carriage-returns": ("[spawn]\r\nnice = 1\r\n", "policy"),
    "good-dotted": ('spawn.rlimits.core = 0\nspawn."nice" = 1\n', "policy"),
    "good-scrub": ('[spawn]\nenv_policy = "scrub"\nenv_allow = ["A"]\npath_policy = "trusted"\n', "policy"),
    "good-affinity": ("[spawn]\ncpu_affinity = [0, 1]\nprocess_group = 0\n", "policy"),
    "good-root": ('[spawn]\nroot = "/srv"\ncwd = "/"\n', "policy"),
    "evil-table": ("[spwan]\n", "1: spwan"),
    "evil-no-table": ("spawn = 3\n", "1: spawn"),
    "evil-tables": ("[[spawn]]\nnice = 1\n", "1: spawn"),
    "evil-key": ('[spawn]\n\n\numsk = "022"\n', "4: spawn.umsk"),
    "evil-key-with-escapes": ('[spawn]\n"ni\\u0063e" = 99\n', "2: spawn.nice"),
    "evil-type": ("[spawn]\numask = 22\n", "2: spawn.umask"),
    "evil-value": ("[spawn]\nnice = 40\n", "2: spawn.nice"),
    "evil-value-far": ("[spawn]\nnice = 99999999999999999999999999999999\n", "2: spawn.nice"),
    "evil-float": ("[spawn]\ndeadline = nan\n", "2: spawn.deadline"),
    "evil-float-infinite": ("[spawn]\ndeadline = inf\n", "2: spawn.deadline"),
    "evil-date": ("[spawn]\nnice = 1979-05-27\n", "2: spawn.nice"),
    "evil-nul": ('[spawn]\ncwd = "/\\u0000"\n', "2: spawn.cwd"),
    "evil-lines": ('[spawn]\ncaps = [\n"kill",\n"sysadmin",\n]\n', "2: spawn.caps"),
    "evil-text-of-lines": ('[spawn]\nnice = 1\ncwd = """\nx\n"""\n', "3: spawn.cwd"),
    "evil-second-of-two": ("[spawn]\nnice = 1\n[spawn.rlimits]\ncore = 0\ncor = 1\n", "5: spawn.rlimits"),
    "evil-together": ("[spawn]\nstart_new_session = true\nnice = 1\nprocess_group = 0\n", "4: spawn"),
    "evil-no-ledger": ('[audit]\nmode = "require"\n', "1: audit.path"),
    "evil-children": ('[exec]\nchildren = true\n[spawn]\nenv_policy = "scrub"\n', "4: exec.children"),
    "evil-pattern": ("[redaction]\npatterns = ['(']\n", "2: redaction.patterns"),
    "evil-filter": ('[spawn]\nseccomp = "/no/such"\n', "2: spawn.seccomp"),
    "evil-maps": ("[spawn]\nnamespaces = { user = { users = [[0, 0]] } }\n", "2: spawn.namespaces"),
    "evil-syntax": ("[spawn]\nnice 5\n", "2: None"),
    "evil-string-without-end": ('[spawn]\ncwd = "/srv\n', "2: None"),
    "evil-end-of-file": ("[spawn]\nnice =", "2: None"),
    "evil-twice": ("[spawn]\nnice = 1\nnice = 2\n", "3: None"),
    "evil-bytes": (b"[spawn]\nnice = \xff\n", "2: None"),
    "evil-depth": ("[spawn]\nenv = " + "[" * 600 + "]" * 600, "None: None"),
    "evil-long": ("#" * 70000, "None: None"),
}  # fmt: skip

SAID = {name: said for name, (_, said) in POLICIES.items()}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {name: text if isinstance(text, bytes) else text.encode() for name, (text, _) in POLICIES.items()}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
