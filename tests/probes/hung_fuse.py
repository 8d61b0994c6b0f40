"""A FUSE file system with one program on it, that stops answering at a chosen request.

    hung_fuse.py MOUNTPOINT PROGRAM (open|read|lookup|silent) READY_FD

It serves the file PROGRAM as MOUNTPOINT/program. ``open``, ``read`` and ``lookup``: that
request is taken and never answered, so the asking process cannot even be killed while it
waits. ``silent``: after the mount nothing is taken any more. A byte on READY_FD says that
it is mounted. Structures: include/uapi/linux/fuse.h, protocol 7.31.
"""

import ctypes
import os
import signal
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
OPENDIR, ACCESS, INTERRUPT, BATCH_FORGET, GETXATTR = 27, 34, 36, 42, 22
ENOSYS, ENOENT = 38, 2


def attributes(node, size):
    """Return struct fuse_attr of the root (1) or of the program (2)."""
    mode = 0o40755 if node == 1 else 0o100755
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, size // 512 + 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def serve(fuse, data, hang):
    """Answer until the request that is to hang; then take requests and answer none."""
    hung = False
    while True:
        try:
            request = os.read(fuse, 1 << 20)
        except OSError:
            return
        _, code, unique, node = struct.unpack_from("<IIQQ", request)
        body = request[40:]
        if hung or code in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        if code == {"open": OPEN, "read": READ, "lookup": LOOKUP}.get(hang):
            hung = True
            continue
        answer(fuse, unique, *reply(code, node, body, data))


def reply(code, node, body, data):
    """Return (errno, bytes)."""
    if code == LOOKUP:
        if body.rstrip(b"\0") != b"program":
            return ENOENT, b""
        return 0, struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + attributes(2, len(data))
    if code == GETATTR:
        return 0, struct.pack("<QII", 0, 0, 0) + attributes(node, len(data))
    if code in (OPEN, OPENDIR):
        return 0, struct.pack("<QII", 1, 0, 0)
    if code == READ:
        offset, size = struct.unpack_from("<QI", body, 8)
        return 0, data[offset : offset + size]
    if code in (RELEASE, FLUSH, ACCESS):
        return 0, b""
    return ENOSYS, b""


def answer(fuse, unique, error, data):
    """Write struct fuse_out_header and the data."""
    os.write(fuse, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)


def main():
    """Mount, greet the kernel, say so, serve."""
    mountpoint, program, hang, ready = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    with open(program, "rb") as file:
        data = file.read()
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", mountpoint.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    request = os.read(fuse, 1 << 20)
    unique = struct.unpack_from("<IIQQ", request)[2]
    answer(fuse, unique, 0, struct.pack("<IIIIHHIIHHIIIIII", 7, 31, 65536, 0, 16, 12, 65536, 1, 32, 0, 0, 0, 0, 0, 0, 0))
    os.write(ready, b".")
    if hang == "silent":
        signal.pause()
    serve(fuse, data, hang)


if __name__ == "__main__":
    main()
