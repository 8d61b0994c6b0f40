"""Start programs as fast as vfork does, never at the price of its security hole."""

from . import audit, guards
from ._errors import (
    AuditError,
    KilledBeforeExec,
    RaceDetected,
    SpawnError,
    SpawnTimeout,
    UnsafeSpawn,
)
from ._process import Process
from ._run import CompletedProcess, run
from ._secret import Secret
from ._spawn import spawn
from ._spec import DEVNULL, PIPE, STDOUT, SpawnReport

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AuditError",
    "CompletedProcess",
    "KilledBeforeExec",
    "Process",
    "RaceDetected",
    "Secret",
    "SpawnError",
    "SpawnReport",
    "SpawnTimeout",
    "UnsafeSpawn",
    "audit",
    "guards",
    "run",
    "spawn",
]
