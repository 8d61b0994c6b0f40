"""The options of `safespawn run`, spelled as in setpriv(1), prlimit(1), unshare(1) and systemd-run(1)."""

from __future__ import annotations

import argparse
from typing import Any

from . import _cli_types as types

#: Resources that have an option of their own, as in prlimit(1), and their units.
LIMITS = {
    "as": "bytes of address space",
    "core": "bytes of a core file",
    "cpu": "seconds of processor time",
    "data": "bytes of data",
    "fsize": "bytes of a file that it writes",
    "memlock": "bytes locked in memory",
    "msgqueue": "bytes in message queues",
    "nofile": "open files",
    "nproc": "processes of the user",
    "rss": "bytes in memory (without effect in Linux)",
    "rtprio": "real-time priority",
    "rttime": "microseconds of real-time work without a blocking call",
    "sigpending": "pending signals",
    "stack": "bytes of stack",
}


def add(run: argparse.ArgumentParser) -> None:
    """Add all options to the parser of `run`. What is not given stays None (a list stays empty)."""
    run.register("action", None, types.Once)
    _add_place(run.add_argument_group("where, and with what environment"))
    _add_process(run.add_argument_group("session and process"))
    _add_limits(run.add_argument_group("limits, as in prlimit(1): SOFT, SOFT:HARD, SOFT:, :HARD, unlimited"))
    _add_privileges(run.add_argument_group("privileges"))
    _add_file(run.add_argument_group("the program file"))
    _add_ways(run.add_argument_group("how, and what is told of it"))


def program(given: list[str], usage: str) -> list[str]:
    """Return the command behind the options. Raises ValueError if there is none."""
    words = given[1:] if given[:1] == ["--"] else given
    if not words:
        raise ValueError(f"no program given: {usage}")
    return words


def _add_list(group: Any, *names: str, **more: Any) -> None:
    group.add_argument(*names, action="append", default=[], **more)


def _add_place(group: Any) -> None:
    add = group.add_argument
    add("--cwd", "--working-directory", metavar="DIR", help="working directory of the program")
    add("--root", metavar="DIR", help="root directory; program and working directory are looked up inside it")
    _add_list(group, "--env", "--setenv", type=types.pair, metavar="NAME=VALUE", help="set a variable")
    add("--env-policy", choices=("inherit", "scrub", "user"))
    _add_list(group, "--env-allow", metavar="NAME", help="keep this one too when scrubbing")


def _add_process(group: Any) -> None:
    add = group.add_argument
    add("--new-session", dest="start_new_session", action="store_true", help="setsid")
    add("--umask", type=types.octal, help="octal")
    add("--nice", type=int, help="niceness, -20 to 19")
    add(
        "--scheduler",
        type=types.scheduler,
        metavar="POLICY[:PRIORITY]",
        help="other, batch, idle, or fifo and rr with a priority: fifo:10",
    )
    add(
        "--cpus",
        dest="cpu_affinity",
        type=types.processors,
        metavar="LIST",
        help="processors it may use, such as 0,2-3",
    )
    add("--cgroup", metavar="DIR", help="directory of the control group that it is in from the start")
    add(
        "--sigdefault",
        type=types.signal_numbers,
        metavar="LIST",
        help="signals that are default in it though we ignore them: hup,int",
    )
    add("--subreaper", action="store_true", help="orphans among its descendants become its children")
    add("--pdeathsig", type=types.signal_number, metavar="SIGNAL", help="sent to it when we die")


def _add_limits(group: Any) -> None:
    _add_list(
        group,
        "--rlimit",
        dest="limits",
        type=types.any_limit,
        metavar="NAME=LIMITS",
        help="such as nofile=256 or core=0, for any limit",
    )
    for name, what in LIMITS.items():
        _add_list(group, f"--{name}", dest="limits", type=types.limit(name), metavar="LIMITS", help=what)


def _add_privileges(group: Any) -> None:
    add = group.add_argument
    add("--user", "--uid", type=types.account, help="name or number: its uid, primary group and group list")
    add("--group", "--gid", type=types.account, help="name or number, instead of the user's primary group")
    add(
        "--groups",
        type=types.accounts,
        metavar="LIST",
        help="the supplementary groups, instead of the user's",
    )
    add("--clear-groups", action="store_true", help="no supplementary groups")
    add(
        "--caps",
        type=types.capabilities,
        metavar="LIST",
        help="capabilities to keep, all others go: net_bind_service,kill or none",
    )
    add(
        "--securebits",
        type=types.names,
        metavar="LIST",
        help="the whole set: +noroot,+noroot_locked or none",
    )
    add("--no-new-privs", action="store_true", help="nothing it runs gains privileges by exec")
    add(
        "--namespaces",
        type=types.namespaces,
        metavar="LIST",
        help="new ones, of mount,pid,net,ipc,uts,cgroup,time,user",
    )
    for kind in ("users", "groups"):
        _add_list(
            group,
            f"--map-{kind}",
            type=types.id_map,
            metavar="INNER:OUTER:COUNT",
            help=f"{kind} of the new user namespace",
        )
    _add_list(
        group,
        "--landlock-rule",
        type=types.landlock_rule,
        metavar="path-beneath:ACCESS[,ACCESS]:PATH",
        help="of files all is refused but what such rules allow: read, write, execute",
    )
    add("--landlock-abi", type=int, metavar="N", help="refuse what this version of Landlock knows")
    add("--seccomp-filter", metavar="FILE", help="filter of system calls: the bytes of a classic BPF program")


def _add_file(group: Any) -> None:
    add = group.add_argument
    add("--pin", action="store_true", help="run the very file that was looked at and hashed")
    add("--digest", metavar="sha256:HEX", help="refuse a program with another digest")
    add("--path-policy", choices=("any", "trusted"))


def _add_ways(group: Any) -> None:
    add = group.add_argument
    add("--deadline", type=float, metavar="SECONDS", help="give up if it is not running by then")
    add("--strategy", choices=("auto", "vfork", "clone", "launcher", "fork", "posix_spawn"))
    add("--on-unproven", choices=("fork", "refuse"))
    add("--audit", metavar="FILE", help="append the records to this ledger")
    add("--audit-mode", choices=("best_effort", "require", "durable"))
    _add_list(group, "--tag", type=types.pair, metavar="KEY=VALUE", help="goes into the records")
    _add_list(
        group,
        "--redact",
        type=types.pattern,
        metavar="PATTERN",
        help="regular expression: what it matches in an argument is in no record",
    )
    add("--report", action="store_true", help="print the decision to stderr as JSON")
