"""The scenes whose system calls are made to fail: every strategy, with the options that take calls of their own."""

from __future__ import annotations

import signal
import struct
import subprocess
from typing import Any

from injecting import Scene

#: What changes no privileges. Descriptor 250 is the worker's socket.
UNPRIVILEGED: dict[str, Any] = {
    "capture_output": True,
    "stdin": subprocess.DEVNULL,
    "cwd": "/usr",
    "fds": {"3": 1, "4": 2, "5": 1},
    "pass_fds": [0],
    "start_new_session": True,
    "umask": 0o27,
    "nice": 5,
    "scheduler": 3,
    "cpu_affinity": [0],
    "rlimits": {"7": [100, 100]},
    "sigmask": [int(signal.SIGUSR1)],
    "sigdefault": [int(signal.SIGPIPE)],
    "pdeathsig": int(signal.SIGTERM),
    "no_new_privs": True,
    "subreaper": True,
}
del UNPRIVILEGED["pass_fds"]
PINNED = {"pin": True, "path_policy": "trusted", "stdin": subprocess.DEVNULL}
DROP: dict[str, Any] = {
    "user": 65534,
    "group": 65534,
    "extra_groups": [65534],
    "caps": ["net_bind_service"],
    "securebits": ["noroot"],
    "pdeathsig": int(signal.SIGTERM),
}
#: Allows everything: linux/filter.h, BPF_RET | BPF_K of SECCOMP_RET_ALLOW.
FILTER = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000).hex()
CONFINED: dict[str, Any] = {
    "namespaces": ["mount", "net", "ipc", "uts"],
    "root": "/",
    "landlock": {"read": ["/"], "execute": ["/"]},
    "seccomp": FILTER,
    "cgroup": "/sys/fs/cgroup/pids",
}
IN_USER_NAMESPACE: dict[str, Any] = {"namespaces": ["user", "mount"]}
MISSING = {"executable": "/no/such/program"}
#: Among other threads, with the lock as the proof.
THREADS = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
#: Seconds. Enough for all that comes before the call that is held.
LATE = 0.25
FAST = ("vfork", "clone", "fork", "posix_spawn")


def _scenes() -> list[Scene]:
    made = []
    for by in FAST:
        made.append(Scene(by, {"strategy": by}))
        made.append(Scene(f"{by}-missing", {"strategy": by, **MISSING}, fails=True))
    for by in ("vfork", "clone", "fork"):
        bounded = {"strategy": by, "deadline": 300}
        held = {"strategy": by, "deadline": LATE}
        made.append(Scene(f"{by}-options", {"strategy": by, **UNPRIVILEGED}))
        made.append(Scene(f"{by}-bounded", bounded, play="handle"))
        made.append(Scene(f"{by}-pinned", {"strategy": by, **PINNED}, program="/bin/true"))
        made.append(Scene(f"{by}-late", held, hold=("child", "execve"), fails=True))
        made.append(Scene(f"{by}-late-lookup", held, hold=("child", "openat2"), fails=True))
        made.append(Scene(f"{by}-group", {"strategy": by, "process_group": 0}))
        made.append(Scene(f"{by}-threads", {"strategy": by}, before=THREADS))
    for by in ("launcher", "fork"):
        made.append(Scene(f"{by}-drop", {"strategy": by, **DROP}))
        made.append(Scene(f"{by}-confined", {"strategy": by, **CONFINED}))
        made.append(Scene(f"{by}-userns", {"strategy": by, **IN_USER_NAMESPACE}))
    made.append(Scene("launcher-late", {"strategy": "launcher", **DROP, "deadline": LATE}, hold=("launcher", "execve"), fails=True))
    made.append(Scene("launcher-options", {"strategy": "launcher", **UNPRIVILEGED}))
    made.append(Scene("many", {}, play="many"))
    for by, pool in (("helper", 0), ("pool", 1)):
        through = {"helper": True, "pool": pool}
        made.append(Scene(by, {"strategy": by}, **through))
        made.append(Scene(f"{by}-missing", {"strategy": by, **MISSING}, fails=True, **through))
        made.append(Scene(f"{by}-options", {"strategy": by, **UNPRIVILEGED}, **through))
        made.append(Scene(f"{by}-drop", {"strategy": by, **DROP}, **through))
        made.append(Scene(f"{by}-confined", {"strategy": by, **CONFINED}, **through))
        made.append(Scene(f"{by}-late", {"strategy": by, "deadline": LATE}, hold=("helper-child", "execve"), fails=True, **through))
        made.append(Scene(f"{by}-life", {"strategy": by}, play="helper_life", pool=pool))
    for mode in ("best_effort", "require", "durable"):
        made.append(Scene(f"ledger-{mode}", {}, play="ledger_life", ledger=False, mode=mode))
        made.append(Scene(f"ledger-{mode}-keys", {}, play="ledger_life", ledger=False, mode=mode, keyed=True))
    return made


SCENES = _scenes()
