"""Makes fuzz/corpus/spec anew: arguments and options as Python literals, and whether they make a request.

python fuzz/spec_corpus.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "spec"

#: What is taken, by the option that it tries.
TAKEN: dict[str, Any] = {
    "argv-bytes": {},
    "env": {"env": {"A": "1", "": "", b"\xff": b"\xfe"}},
    "umask": {"umask": 0o27},
    "nice": {"nice": -20},
    "rlimits": {"rlimits": {4: 0, 7: (64, 128)}},
    "signals": {"sigmask": [1, 64], "sigdefault": [2], "restore_signals": False},
    "scheduler": {"scheduler": (1, 10)},
    "affinity": {"cpu_affinity": [0, 65535]},
    "caps": {"caps": ["net_bind_service", 0], "securebits": ["noroot"]},
    "namespaces": {"namespaces": {"user": {"users": [(0, 5, 2), (2, 3, 2)]}, "net": None}},
    "landlock": {"landlock": {"abi": 1, "read": ["/usr"]}},
    "seccomp": {"seccomp": bytes(8)},
    "user-surrogate": {"user": "\ud800"},  # the user database has the last word
    "identity": {"user": "nobody", "group": 4, "extra_groups": [5, "audio"]},
    "places": {"cwd": "/", "cgroup": "/", "root": "/"},
    "fds": {"fds": {5: 0, 9: 1}, "pass_fds": [7]},
    "confined": {"env_policy": "scrub", "env_allow": ["A"], "path_policy": "trusted", "pin": True},
    "deadline": {"deadline": 0.5, "strategy": "fork", "on_unproven": "refuse", "audit_tags": {"a": "b"}},
}
REFUSED: dict[str, Any] = {
    "option-unknown": {"": 1},
    "deadline-nan": {"deadline": -1},
    "deadline-far": {"deadline": 10**400},
    "umask-far": {"umask": 10**400},
    "nice-surrogate": {"nice": "\ud800"},
    "scheduler-text": {"scheduler": (0, "")},
    "caps-odd": {"caps": ["\ud800", 10**400]},
    "namespaces-list": {"namespaces": [["user"]]},
    "maps-largest": {"namespaces": {"user": {"users": [(0, 0, 2**32 - 1), (1, 1, 1)]}}},
    "maps-overlap": {"namespaces": {"user": {"users": [(0, 5, 2), (2, 4, 2)]}}},
    "landlock-far": {"landlock": {"abi": 10**400}},
    "root-and-trusted": {"root": "/", "path_policy": "trusted"},
    "seccomp-odd": {"seccomp": b"123456789"},
    "fds-twice": {"fds": {5: 0}, "pass_fds": [5]},
    "session-and-group": {"start_new_session": True, "process_group": 0},
}

SAID = {**dict.fromkeys(TAKEN, "request"), **dict.fromkeys(REFUSED, "refused")}
SAID |= {
    "argv-none": "refused",
    "argv-nul": "refused",
    "argv-surrogate": "request",
    "none-no-pair": "no input",
}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    files = {name: repr((["true", b"\xff"], options)) for name, options in {**TAKEN, **REFUSED}.items()}
    files |= {"argv-none": "([], {})", "argv-nul": "(['a\\0b'], {})", "argv-surrogate": "(['\\udcff'], {})"}
    files["none-no-pair"] = "['true']"
    return {name: text.encode("ascii") for name, text in files.items()}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
