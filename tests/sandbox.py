"""A seccomp filter for the calling process: chosen system calls get a chosen answer."""

from __future__ import annotations

import ctypes
import os
import struct

import prctl

_X86_64 = {
    "clone3": 435,
    "close_range": 436,
    "faccessat2": 439,
    "execve": 59,
    "fdatasync": 75,
    "fallocate": 285,
    "move_pages": 279,
    "setresuid": 117,
    "unshare": 272,
    "set_robust_list": 273,
    "waitid": 247,
    "pidfd_send_signal": 424,
    "openat2": 437,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "pidfd_open": 434,
    "setns": 308,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "kcmp": 312,
    "rt_sigprocmask": 14,
    "process_vm_readv": 310,
    "ptrace": 101,
    "keyctl": 250,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "clone": 56,
    "memfd_create": 319,
    "getdents64": 217,
    "setgroups": 116,
    "setresgid": 119,
    "capset": 126,
}
_AARCH64 = {
    "clone3": 435,
    "close_range": 436,
    "faccessat2": 439,
    "execve": 221,
    "fdatasync": 83,
    "fallocate": 47,
    "move_pages": 239,
    "setresuid": 147,
    "unshare": 97,
    "set_robust_list": 99,
    "waitid": 95,
    "pidfd_send_signal": 424,
    "openat2": 437,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "pidfd_open": 434,
    "setns": 268,
    "mount": 40,
    "umount2": 39,
    "pivot_root": 41,
    "kcmp": 272,
    "rt_sigprocmask": 135,
    "process_vm_readv": 270,
    "ptrace": 117,
    "keyctl": 219,
    "userfaultfd": 282,
    "io_uring_setup": 425,
    "clone": 220,
    "memfd_create": 279,
    "getdents64": 61,
    "setgroups": 159,
    "setresgid": 149,
    "capset": 91,
}
NUMBERS = _X86_64 if os.uname().machine == "x86_64" else _AARCH64

# linux/filter.h and linux/seccomp.h
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_FIRST_ARGUMENT = 16  # struct seccomp_data: its lower half
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* of clone(2), but CLONE_NEWTIME, which it does not take


def answer(answers: dict[str, int], *, namespaces: int | None = None) -> None:
    """From now on each named call does nothing and answers that errno (0: success).

    With ``namespaces`` a clone(2) that would make a namespace answers that.
    """
    prctl.set_no_new_privs(True)
    rules = [(_LOAD, 0, 0, 0)]
    for name, number in answers.items():
        rules += [(_JUMP_EQUAL, 0, 1, NUMBERS[name]), (_RETURN, 0, 0, _ERRNO | number)]
    if namespaces is not None:
        rules += [
            (_JUMP_EQUAL, 0, 3, NUMBERS["clone"]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_SET, 0, 1, _NEW_NAMESPACES),
            (_RETURN, 0, 0, _ERRNO | namespaces),
        ]
    rules.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")
