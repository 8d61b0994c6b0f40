"""Tries to get at another process and prints what came of it, as JSON: attacker.py PID ADDRESS FD TRIES WHO.

TRIES are names of the functions below, with commas; WHO is "capless" for a process that gives
up its capabilities first. ADDRESS is where "forged" is to be written, FD a descriptor that is
to be read through /proc.
"""

import ctypes
import errno
import json
import os
import signal
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
FORGED = b"forged"


def check(answer):
    """Raise OSError for the answer of a function of libc that failed."""
    if answer < 0:
        raise OSError(ctypes.get_errno(), "failed")


def give_up_capabilities():
    """Stay who we are, with no capability at all."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    check(libc.capset(header, ctypes.create_string_buffer(24)))


def stop(pid, address, fd):
    """Stop it."""
    os.kill(pid, signal.SIGSTOP)


def trace(pid, address, fd):
    """Become its tracer, until we end."""
    check(libc.ptrace(PTRACE_SEIZE, pid, None, None))


def write(pid, address, fd):
    """Write to its memory by process_vm_writev(2)."""
    text = ctypes.create_string_buffer(FORGED, len(FORGED))
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(text), len(FORGED))
    theirs = (ctypes.c_size_t * 2)(address, len(FORGED))
    check(libc.process_vm_writev(pid, ours, 1, theirs, 1, 0))


def mem(pid, address, fd):
    """Write to its memory by its file in /proc."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    os.pwrite(memory, FORGED, address)


def descriptor(pid, address, fd):
    """Read what it has open."""
    os.read(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY), 1)


def environment(pid, address, fd):
    """Read its environment."""
    os.read(os.open(f"/proc/{pid}/environ", os.O_RDONLY), 1)


def attempt(function, pid, address, fd):
    """Return "done", or the name of the errno."""
    try:
        function(pid, address, fd)
    except OSError as problem:
        return errno.errorcode[problem.errno]
    return "done"


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:4]]
    if sys.argv[5] == "capless":
        give_up_capabilities()
    print(json.dumps({name: attempt(globals()[name], *numbers) for name in sys.argv[4].split(",")}))
