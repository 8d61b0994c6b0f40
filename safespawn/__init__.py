"""Start programs as fast as vfork does, never at the price of its security hole."""

from . import audit, guards, policy, subprocess
from ._command import Command
from ._errors import (
    AuditError,
    KilledBeforeExec,
    RaceDetected,
    SpawnError,
    SpawnTimeout,
    UnsafeSpawn,
    UnsafeSpawnWarning,
)
from ._many import SpawnManyError, spawn_many
from ._prepare import ForkCost, ForkRefusal, ForkReport, prepare_fork
from ._process import Process
from ._run import CompletedProcess, run
from ._secret import Secret
from ._spawn import spawn
from ._spec import DEVNULL, PIPE, STDOUT, SpawnReport
from ._system import popen, system
from .helper import Helper
from .subprocess import (
    CalledProcessError,
    Popen,
    SubprocessError,
    TimeoutExpired,
    call,
    check_call,
    check_output,
    getoutput,
    getstatusoutput,
)
from .takeover import install, installed, uninstall

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AuditError",
    "CalledProcessError",
    "Command",
    "CompletedProcess",
    "ForkCost",
    "ForkRefusal",
    "ForkReport",
    "Helper",
    "KilledBeforeExec",
    "Popen",
    "Process",
    "RaceDetected",
    "Secret",
    "SpawnError",
    "SpawnManyError",
    "SpawnReport",
    "SpawnTimeout",
    "SubprocessError",
    "TimeoutExpired",
    "UnsafeSpawn",
    "UnsafeSpawnWarning",
    "audit",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "guards",
    "install",
    "installed",
    "policy",
    "popen",
    "prepare_fork",
    "run",
    "spawn",
    "spawn_many",
    "subprocess",
    "system",
    "uninstall",
]
