"""`prepare_fork`: what a fork costs is told, full memory becomes huge pages, and nothing else changes."""

from __future__ import annotations

import errno
import mmap
import re
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _mappings, _prepare

BLOCK = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
MIB = 1 << 20

needs_huge_pages = pytest.mark.skipif(not BLOCK.exists(), reason="needs a kernel with transparent huge pages")

#: For snippets: `mapping()` makes one of so many blocks, aligned to them, its pages written to by a rule;
#: `huge(address)` is what of a mapping is huge pages, `flags(address)` its VmFlags.
TOOLS = """
import ctypes, mmap
from safespawn import _mappings
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
BLOCK = int(open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read())
PAGE = mmap.PAGESIZE
NOHUGE, THP_DISABLE = 15, 41

def mapped(size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, fd=-1):
    at = libc.mmap(None, size, 3, flags, fd, 0)
    assert at != 2**64 - 1, ctypes.get_errno()
    return at

def mapping(blocks, wanted=lambda page: True, advice=None, **more):
    # One block more on either side, so that nothing that lies next to it is merged into it.
    whole = mapped((blocks + 2) * BLOCK, **more)
    at = whole + BLOCK - whole % BLOCK
    libc.munmap(whole, at - whole)
    libc.munmap(at + blocks * BLOCK, BLOCK)
    libc.prctl(THP_DISABLE, 1, 0, 0, 0)  # written page by page, whatever the machine's setting is
    for page in range(blocks * BLOCK // PAGE):
        if wanted(page):
            ctypes.c_char.from_address(at + page * PAGE).value = b"x"
    libc.prctl(THP_DISABLE, 0, 0, 0, 0)
    if advice is not None:
        assert libc.madvise(at, blocks * BLOCK, advice) == 0
    return at

def told(address):
    with open("/proc/self/smaps", "rb") as file:
        return next(one for one in _mappings.parse(file) if one.start <= address < one.end)

def huge(address):
    return told(address).huge

def flags(address):
    return [flag.decode() for flag in told(address).flags]
"""


def snippet(text: str, **values: Any) -> dict[str, Any]:
    """Run it in a fresh process with the tools."""
    return helpers.run_snippet(TOOLS + text, **values)


# ------------------------------------------------------------------ what it does


@needs_huge_pages
def test_full_memory_becomes_huge_pages() -> None:
    """Of some hundred MB that are in use nearly all is in huge pages afterwards, and takes no more memory."""
    out = snippet(
        """
at = mapping(100)
report = safespawn.prepare_fork()
out["huge"] = huge(at) == 100 * BLOCK
out["method"] = report.method
out["entries"] = [report.before.entries, report.after.entries]
out["grew"] = report.after.resident - report.before.resident
out["tables"] = [report.before.page_tables, report.after.page_tables]
out["taken"], out["candidates"], out["added"] = report.taken, report.candidates, report.added
out["times"] = [report.before.fork_ns, report.after.fork_ns, report.took_ns]
out["content"] = all(ctypes.c_char.from_address(at + i * PAGE).value == b"x" for i in range(100 * BLOCK // PAGE))
again = safespawn.prepare_fork()
out["again"], out["kept"] = again.taken, huge(at) == 100 * BLOCK
"""
    )

    if out["method"] != "collapse":
        pytest.skip("needs Linux 6.1 or newer")
    assert out["huge"] and out["content"] and out["kept"]
    before, after = out["entries"]
    assert before - after >= 200 * MIB // mmap.PAGESIZE * 99 // 100
    assert out["grew"] <= out["added"] + 4 * MIB  # and what the report itself has taken
    assert 200 * MIB <= out["taken"] <= out["candidates"]
    assert out["again"] == 0
    assert abs(out["tables"][1] - out["tables"][0]) < MIB  # the kernel keeps them in reserve
    assert all(time > 0 for time in out["times"])


@needs_huge_pages
@pytest.mark.parametrize("every", [2, 4])
def test_sparse_memory_stays_sparse(every: int) -> None:
    """Where less than 7/8 of a block is in use nothing is done, so that memory does not grow."""
    out = snippet(
        """
at = mapping(20, lambda page: page % every == 0)
before = told(at).sizes[b"Rss"]
report = safespawn.prepare_fork(measure=False)
out["same"] = told(at).sizes[b"Rss"] == before
out["huge"], out["sparse"] = huge(at), report.sparse >= 20 * BLOCK
""",
        every=every,
    )

    assert out == {"same": True, "huge": 0, "sparse": True}


@needs_huge_pages
def test_memory_that_was_only_read_stays_unused() -> None:
    """Pages that are the kernel's one page of zeros count as not in use."""
    out = snippet(
        """
at = mapping(4, lambda page: False)
libc.prctl(THP_DISABLE, 1, 0, 0, 0)
for page in range(4 * BLOCK // PAGE):
    ctypes.c_char.from_address(at + page * PAGE).value
libc.prctl(THP_DISABLE, 0, 0, 0, 0)
report = safespawn.prepare_fork(measure=False)
out["huge"], out["own"] = huge(at), told(at).sizes[b"Anonymous"]
"""
    )

    assert out == {"huge": 0, "own": 0}


@needs_huge_pages
def test_memory_shared_with_a_child_of_fork_is_left() -> None:
    """What a forked child shares with us would be copied: it counts as not ours."""
    out = snippet(
        """
at = mapping(4)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.read(read, 1)
    os._exit(0)
out["shared"] = [safespawn.prepare_fork(measure=False).taken >= 4 * BLOCK, huge(at)]
os.write(write, b".")
os.waitpid(child, 0)
report = safespawn.prepare_fork(measure=False)
out["alone"] = huge(at) == 4 * BLOCK or report.method
"""
    )

    assert out["shared"] == [False, 0]
    assert out["alone"] in (True, "advise")


@needs_huge_pages
@pytest.mark.parametrize("room", [0, 3, 1000])
def test_bound_of_what_is_added(room: int) -> None:
    """Blocks with gaps grow by those; beyond ``max_added`` that is refused, and counted."""
    out = snippet(
        """
at = mapping(8, lambda page: page % 16)
gaps = BLOCK // PAGE // 16 * PAGE
report = safespawn.prepare_fork(measure=False, max_added=room * gaps)
out["huge"], out["method"] = huge(at) // BLOCK, report.method
out["within"] = report.added <= room * gaps
out["refused"] = [[one.errno, one.size // BLOCK >= 8 - room, "max_added" in one.why] for one in report.refused]
""",
        room=room,
    )

    # Memory of the interpreter's own may have taken of the room before.
    assert out["within"]
    if out["method"] != "advise":
        assert out["huge"] == 8 if room == 1000 else out["huge"] <= room
    assert out["refused"] == ([] if room == 1000 else [[errno.EDQUOT, True, True]])


@needs_huge_pages
def test_what_is_left_alone(tmp_path: Path) -> None:
    """Shared memory, files, locked memory, stacks and what was told to stay as it is: no page of it changes."""
    out = snippet(
        """
import threading
DONTFORK, WIPEONFORK = 10, 18
path = os.path.join(where, "file")
with open(path, "w+b") as file:
    file.truncate(6 * BLOCK)
    places = {
        "shared": mapping(4, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        "file": mapping(4, flags=mmap.MAP_PRIVATE, fd=file.fileno()),
        "nohuge": mapping(4, advice=NOHUGE),
        "dontfork": mapping(4, advice=DONTFORK),
        "wipeonfork": mapping(4, advice=WIPEONFORK),
        "locked": mapping(4),
        "guarded": mapping(4),
        "plain": mapping(4),
    }
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
assert libc.mlock(places["locked"], 4 * BLOCK) == 0
guard = libc.mmap(places["guarded"] - PAGE, PAGE, 0, 0x100000 | 0x22, -1, 0)
assert guard == places["guarded"] - PAGE
before = {name: told(at).huge for name, at in places.items()}
report = safespawn.prepare_fork(measure=False)
out["changed"] = [name for name, at in places.items() if told(at).huge != before[name]]
out["method"] = report.method
""",
        where=str(tmp_path),
    )

    assert out["changed"] == (["plain"] if out["method"] == "collapse" else [])


@needs_huge_pages
def test_memory_that_another_thread_unmaps() -> None:
    """What is gone when its turn comes, whole or in part, is no error and no harm."""
    out = snippet(
        """
from safespawn import _binding
gone, half = mapping(8), mapping(8)
make = _binding.make_huge

def unmap_first(start, end, **more):
    libc.munmap(gone, 8 * BLOCK)
    libc.munmap(half, 4 * BLOCK)
    return make(start, end, **more)

_binding.make_huge = unmap_first
report = safespawn.prepare_fork(measure=False)
out["rest"] = huge(half + 4 * BLOCK) == 4 * BLOCK or report.method
with open("/proc/self/maps") as file:
    starts = {int(line.split("-")[0], 16) for line in file}
out["still gone"] = gone not in starts and half not in starts
"""
    )

    assert out["still gone"]
    assert out["rest"] in (True, "advise")


@needs_huge_pages
def test_threads_that_map_and_unmap_meanwhile() -> None:
    """Beside threads that map, write and unmap all the time it works, and no content changes."""
    out = snippet(
        """
import threading
stop = threading.Event()
rounds = [0, 0]

def churn(place):
    while not stop.is_set():
        with mmap.mmap(-1, 3 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[:] = b"y" * len(memory)
            assert memory[-1] == memory[0] == ord("y")
        rounds[place] += 1

threads = [threading.Thread(target=churn, args=(place,)) for place in range(2)]
for thread in threads:
    thread.start()
at = mapping(8)
tried = 0
while tried < 20 or min(rounds) < 20:
    report = safespawn.prepare_fork(measure=tried % 4 == 0)
    tried += 1
stop.set()
for thread in threads:
    thread.join()
out["content"] = all(ctypes.c_char.from_address(at + i * PAGE).value == b"x" for i in range(8 * BLOCK // PAGE))
out["odd"] = sorted({one.errno for one in report.refused} - {11, 12, 16, 22})
"""
    )

    assert out == {"content": True, "odd": []}


# ------------------------------------------------------------------ where it cannot be done


@needs_huge_pages
def test_huge_pages_that_are_off_for_the_process() -> None:
    """After PR_SET_THP_DISABLE the kernel refuses, and the report says what of."""
    out = snippet(
        """
at = mapping(8, lambda page: page % 16 != 0)
libc.prctl(THP_DISABLE, 1, 0, 0, 0)
report = safespawn.prepare_fork(measure=False)
out["huge"], out["taken"], out["method"] = huge(at), report.taken, report.method
out["added"] = report.added
out["refused"] = [[one.errno, "PR_SET_THP_DISABLE" in one.why] for one in report.refused]
out["enough"] = report.refused[0].size >= 8 * BLOCK
"""
    )

    if out["method"] == "advise":
        pytest.skip("needs Linux 6.1 or newer: before, advice is taken and of no use")
    refused = {"refused": [[errno.EINVAL, True]], "enough": True}
    assert out == {"huge": 0, "taken": 0, "added": 0, "method": None, **refused}


#: Makes madvise with that advice (-1: any) answer an errno, as an older kernel or a sandbox does: a filter of
#: classic BPF over struct seccomp_data, whose arguments lie at 16, 8 bytes each.
REFUSED = """
import struct
MADVISE = {"x86_64": 28}.get(os.uname().machine, 233)

def refuse(advice, number):
    code = [(0x20, 0, 0, 0), (0x15, 0, 1 if advice < 0 else 3, MADVISE)]
    if advice >= 0:
        code += [(0x20, 0, 0, 32), (0x15, 0, 1, advice)]
    code += [(0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
"""


@needs_huge_pages
def test_kernel_without_collapse() -> None:
    """Before Linux 6.1 the kernel is asked to do it in its time: the memory is marked for that."""
    out = snippet(
        REFUSED
        + """
at, sparse = mapping(8), mapping(8, lambda page: page % 2)
refuse(25, 22)
out["before"] = "hg" in flags(at)
report = safespawn.prepare_fork(measure=False)
out["method"], out["taken"] = report.method, report.taken >= 8 * BLOCK
out["marked"] = ["hg" in flags(place) for place in (at, sparse)]
out["refused"] = [one.errno for one in report.refused]
"""
    )

    assert out == {"before": False, "method": "advise", "taken": True, "marked": [True, False], "refused": []}


@needs_huge_pages
def test_sandbox_without_madvise() -> None:
    """Where madvise is refused as a whole, that is told with its errno, and nothing was done."""
    out = snippet(
        REFUSED
        + """
at = mapping(8)
refuse(-1, 38)
report = safespawn.prepare_fork(measure=False)
out["method"], out["taken"], out["huge"] = report.method, report.taken, huge(at)
out["refused"] = [one.errno for one in report.refused]
"""
    )

    assert out == {"method": None, "taken": 0, "huge": 0, "refused": [errno.ENOSYS]}


def test_without_proc() -> None:
    """Where there is no /proc the fork is timed all the same, and the report says what was missing."""
    out = helpers.run_snippet(
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
report = safespawn.prepare_fork()
cost = report.before
out["cost"] = [cost.page_tables, cost.resident, cost.huge, cost.entries, cost.fork_ns > 0]
out["same"] = report.after == cost
out["refused"] = [[one.errno, "/proc/self/smaps" in one.why, one.size] for one in report.refused]
out["method"] = report.method
"""
    )

    if Path(BLOCK).exists():
        assert out["refused"] == [[errno.ENOENT, True, 0]]
    assert (out["cost"], out["same"], out["method"]) == ([None, None, None, None, True], True, None)


@needs_huge_pages
def test_after_a_drop_of_privileges() -> None:
    """Who became another user may not see his own pages (proc(5): dumpable): refused, and said."""
    out = snippet(
        """
at = mapping(8)
os.setresuid(65534, 65534, 65534)
report = safespawn.prepare_fork()
out["taken"], out["measured"] = report.taken, report.before.fork_ns > 0
out["refused"] = [[one.errno, "pagemap" in one.why] for one in report.refused]
"""
    )

    assert out == {"taken": 0, "measured": True, "refused": [[errno.EACCES, True]]}


# ------------------------------------------------------------------ the fork that is timed


def test_the_fork_is_nobodys_business() -> None:
    """It runs no handler of a fork and of no signal, no wait for any child sees it, and nothing is left."""
    out = helpers.run_snippet(
        """
seen = []
os.register_at_fork(before=lambda: seen.append("before"), after_in_parent=lambda: seen.append("parent"))
signal.signal(signal.SIGCHLD, lambda *_: seen.append("signal"))
before = sorted(os.listdir("/proc/self/fd"))
cost = safespawn.prepare_fork(collapse=False)
out["seen"], out["time"] = seen, cost.before.fork_ns > 0
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["children"] = 0
mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
out["mask"] = len(mask)
"""
    )

    assert out == {"seen": [], "time": True, "same": True, "children": 0, "mask": 0}


def test_without_measuring_there_is_no_fork(in_hooks: Any) -> None:
    """``measure=False`` makes none: the next pid is the next after ours."""
    report = safespawn.prepare_fork(collapse=False, measure=False)

    assert report.before.fork_ns is None
    assert (report.method, report.taken, report.mappings, report.refused) == (None, 0, 0, ())
    assert report.after == report.before


def test_fork_that_is_refused_is_none() -> None:
    """Where no process can be made the time is None, and the rest is told."""
    out = helpers.run_snippet(
        """
import resource
os.setresuid(12345, 12345, 12345)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
cost = safespawn.prepare_fork(collapse=False).before
out["time"], out["tables"] = cost.fork_ns, cost.page_tables > 0
"""
    )

    assert out == {"time": None, "tables": True}


# ------------------------------------------------------------------ arguments, doctor


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"collapse": 1}, TypeError, "collapse.*1"),
        ({"measure": "no"}, TypeError, "measure.*'no'"),
        ({"max_added": -1}, ValueError, "max_added.*-1"),
        ({"max_added": 2**63}, ValueError, "max_added.*9223372036854775808"),
        ({"max_added": 1.5}, TypeError, "max_added.*1.5"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    """What is wrong is named with its value."""
    with pytest.raises(kind, match=text):
        safespawn.prepare_fork(**options)


def test_report_is_frozen() -> None:
    """Nobody changes what was seen."""
    report = safespawn.prepare_fork(collapse=False, measure=False)

    with pytest.raises(AttributeError):
        report.taken = 1  # type: ignore[misc]
    assert isinstance(report, safespawn.ForkReport)
    assert isinstance(report.before, safespawn.ForkCost)


# ------------------------------------------------------------------ which mappings

SMAPS = b"""\
10000000-10400000 rw-p 00000000 00:00 0 %s
Rss:                4096 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac %s
"""


@pytest.mark.parametrize(
    ("name", "flags", "chosen"),
    [
        (b"", b"sd", True),
        (b"[heap]", b"", True),
        (b"[anon:my arena]", b"", True),
        (b"[stack]", b"gd", False),
        (b"[stack:123]", b"", False),
        (b"/some/file", b"", False),
        *[(b"", flag, False) for flag in (b"gd", b"nh", b"lo", b"ht", b"io", b"wf", b"dc", b"mg", b"um", b"uw")],
    ],
)
def test_candidates(name: bytes, flags: bytes, chosen: bool) -> None:
    """Data that is private and anonymous is chosen, by name and by the flags of the kernel."""
    found = list(_mappings.parse((SMAPS % (name, flags)).splitlines(keepends=True)))

    assert [(one.start, one.end, one.name, one.huge) for one in found] == [(0x10000000, 0x10400000, name, 2 * MIB)]
    assert bool(_mappings.candidates(found, 2 * MIB)) is chosen


@pytest.mark.parametrize(
    ("start", "end", "chosen"),
    [
        (0x200000, 0x400000, True),
        (0x200000, 0x3FF000, False),
        (0x201000, 0x400000, False),
        (0x201000, 0x5FF000, False),
        (0x201000, 0x600000, True),
        (0x1FF000, 0x401000, True),
    ],
)
def test_mapping_without_room_for_a_block(start: int, end: int, chosen: bool) -> None:
    """Only who has an aligned block within is a candidate."""
    one = _mappings.Mapping(start, end, b"rw-p", 0, b"")

    assert bool(_mappings.candidates([one], 2 * MIB)) is chosen


@pytest.mark.parametrize(
    ("permissions", "size", "gap", "chosen"),
    [(b"---p", 4096, 0, False), (b"---p", 65536, 0, False), (b"---p", 1 << 20, 0, True), (b"---p", 4096, 4096, True), (b"r--p", 4096, 0, True)],
)
def test_stack_by_its_guard(permissions: bytes, size: int, gap: int, chosen: bool) -> None:
    """What lies right above a small mapping that nobody may touch is the stack of a thread."""
    top = 64 * MIB
    guard = _mappings.Mapping(top - size - gap, top - gap, permissions, 0, b"")
    stack = _mappings.Mapping(top, top + 8 * MIB, b"rw-p", 0, b"")

    assert (stack in _mappings.candidates([guard, stack], 2 * MIB)) is chosen


def test_our_own_mappings_are_all_read() -> None:
    """The parser reads what this kernel writes: every mapping of the process, with its size."""
    with open("/proc/self/smaps", "rb") as file:
        lines = file.readlines()

    found = list(_mappings.parse(lines))

    assert len(found) == sum(bool(re.match(rb"[0-9a-f]+-[0-9a-f]+ ", line)) for line in lines) > 10
    assert all(one.sizes[b"Size"] == one.end - one.start for one in found)
    assert any(one.name == b"[stack]" and b"gd" in one.flags for one in found)


def test_pieces_cover_a_mapping_in_blocks() -> None:
    """A large mapping is done in pieces that begin at blocks and leave nothing out."""
    one = _mappings.Mapping(5 * MIB, 5 * MIB + 1000 * MIB, b"rw-p", 0, b"")

    pieces = list(_prepare._pieces(one, 2 * MIB))

    assert pieces[0][0] == 6 * MIB and pieces[-1][1] == one.end
    assert all(a[1] == b[0] and b[0] % (2 * MIB) == 0 for a, b in zip(pieces, pieces[1:], strict=False))
    assert max(end - start for start, end in pieces) == 64 * MIB
