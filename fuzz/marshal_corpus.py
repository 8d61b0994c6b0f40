"""Makes fuzz/corpus/marshal anew: requests, and whether there is a plan.

python fuzz/marshal_corpus.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "marshal"

#: The names of those that take root's rights begin with "root".
INPUTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "plain": (["true"], {}, "plan"),
    "arguments": (["true", "", "a b", b"\xff", "caf\u00e9"], {}, "plan"),
    "environment": (["true"], {"env": {"A": "1", "EMPTY": "", b"\xfe": b"\xff", "B": "x=y"}}, "plan"),
    "numbers": (["true"], {"umask": 0o27, "nice": 5, "process_group": 0, "pdeathsig": 9}, "plan"),
    "numbers-zero": (["true"], {"umask": 0, "nice": 0}, "plan"),
    "flags": (["true"], {"start_new_session": True, "no_new_privs": True, "subreaper": True}, "plan"),
    "flags-off": (
        ["true"],
        {"start_new_session": False, "no_new_privs": False, "restore_signals": False},
        "plan",
    ),
    "signals": (["true"], {"sigmask": [1, 10, 64], "sigdefault": [2, 15]}, "plan"),
    "signals-none": (["true"], {"sigmask": []}, "plan"),
    "processors": (["true"], {"cpu_affinity": [0, 1, 7, 8, 63, 64]}, "plan"),
    "limits": (["true"], {"rlimits": {4: 0, 7: (64, 128)}}, "plan"),
    "descriptors": (["true"], {"fds": {3: 0, 9: 0, 5: 0, 300: 0}}, "plan"),
    "filter": (["true"], {"seccomp": bytes.fromhex("06000000 0000ff7f")}, "plan"),
    "deadline": (["true"], {"deadline": 30}, "plan"),
    "root-user": (["true"], {"user": 1000, "group": 1000, "extra_groups": [4, 24, 1000]}, "plan"),
    "root-no-groups": (["true"], {"user": 1000, "group": 1000, "extra_groups": []}, "plan"),
    "root-caps": (["true"], {"caps": [10, 21]}, "plan"),
    "bad-nothing": ([], {}, "refused"),
    "bad-nul": (["a\0b"], {}, "refused"),
    "bad-name": (["true"], {"env": {"A=B": "1"}}, "refused"),
    "bad-umask": (["true"], {"umask": 0o1000}, "refused"),
    "bad-signal": (["true"], {"sigmask": [65]}, "refused"),
    "bad-two-at-once": (["true"], {"start_new_session": True, "process_group": 0}, "refused"),
    "bad-filter": (["true"], {"seccomp": b"1234567"}, "refused"),
    "bad-descriptor": (["true"], {"fds": {3: 999}}, "refused"),
    "none-option": (["true"], {"cgroup": "/"}, "no input"),
}

SAID = {name: said for name, (_, _, said) in INPUTS.items()}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {name: repr((argv, options)).encode() for name, (argv, options, _) in INPUTS.items()}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
