"""Another process, held by ptrace(2) at the system call that a test names. For a thread of its own: it waits."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

import credchanges

_SYSCALL, _DETACH = 24, 17
_SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 0x4206, 0x4207, 0x420E
_SYSGOOD, _ENTRY, _WALL = 1, 1, 0x40000000
_NR = {"x86_64": {"sendmsg": 46}, "aarch64": {"sendmsg": 211}}[credchanges.MACHINE]


class Traced:
    """A process that we trace; end it with `kill` or `let_go`, in the same thread."""

    def __init__(self, pid: int) -> None:
        """Stop it where it is."""
        self.pid = pid
        self._do(_SEIZE, _SYSGOOD)
        self._do(_INTERRUPT, 0)
        self._stopped()

    def _do(self, request: int, data: object, at: int = 0) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        answer: int = libc.ptrace(request, self.pid, ctypes.c_void_p(at), data if at else ctypes.c_void_p(data))
        if answer < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return answer

    def _stopped(self) -> int:
        _, status = os.waitpid(self.pid, _WALL)
        assert os.WIFSTOPPED(status), f"it has ended: {status}"
        return os.WSTOPSIG(status)

    def _enters(self) -> int:
        info = (ctypes.c_ubyte * 88)()
        self._do(_GET_SYSCALL_INFO, info, at=len(info))
        number: int = struct.unpack_from("Q", info, 24)[0]
        return number if info[0] == _ENTRY else -1

    def until(self, call: str, times: int = 1) -> None:
        """Let it run until it enters that system call for so many times: the last one is not made."""
        while times:
            self._do(_SYSCALL, 0)
            if self._stopped() == signal.SIGTRAP | 0x80 and self._enters() == _NR[call]:
                times -= 1

    def kill(self) -> None:
        """End it before it makes the call."""
        os.kill(self.pid, signal.SIGKILL)

    def let_go(self) -> None:
        """Have it go on by itself."""
        self._do(_DETACH, 0)
