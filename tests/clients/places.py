"""The directory of a client: its sdist, a virtual environment, and how a command is run there."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from table import Client

ROOT = Path(__file__).parents[2]
#: Outside of the tree: pytest and build tools would take its pyproject.toml and its git for the client's own.
WHERE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safespawn-clients"
#: What safespawn needs in an environment of which it is no part.
REQUIREMENTS = ("cffi>=1.17", "python-prctl>=1.8.1")

#: What the ledger has once for each program.
INTENT = b'"ev":"spawn.intent"'


class Came(NamedTuple):
    """What a run came to: the outcome of each test, and how many programs the ledger says that we started."""

    outcomes: dict[str, str]
    started: int


class Place(NamedTuple):
    """Where a client's command is run."""

    python: Path
    directory: Path
    log: Path

    def run(self, argv: list[str], limit: float, tty: bool = False, **more: str) -> Came:
        """Run Python in a session of its own, with a ledger if we are installed in it."""
        with tempfile.TemporaryDirectory(prefix="client", ignore_cleanup_errors=True) as home:
            outcomes, ledger = Path(home, "outcomes"), Path(home, "ledger")
            env = environment(self.python.parent, home) | more
            env |= {"CLIENT_OUTCOMES": str(outcomes), "SAFESPAWN_AUDIT": str(ledger)}
            argv = [str(self.python), *argv]
            if tty:
                argv = ["script", "-qec", shlex.join(argv), "/dev/null"]
            with self.log.open("ab") as output:
                code = ended(argv, self.directory, env, output.fileno(), limit)
            came = read(outcomes, f"the run itself: exit code {code}, see {self.log}")
            return Came(came, ledger.read_bytes().count(INTENT) if ledger.exists() else 0)


def environment(programs: Path, home: str) -> dict[str, str]:
    """Return a small environment: nothing of the shell's that a client could take as its own setting."""
    keep = {name: os.environ[name] for name in ("USER", "LOGNAME") if name in os.environ}
    path = f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return keep | {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TERM": "xterm"}


def ended(argv: list[str], directory: Path, env: dict[str, str], output: int, limit: float) -> int:
    """Run to the end or the limit, end whatever is left in the session, and return the exit code."""
    with subprocess.Popen(
        argv, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def read(outcomes: Path, ending: str) -> dict[str, str]:
    """Return the outcome of each test; one that started and did not end failed, and so did the run."""
    came, whole = {}, False
    for line in outcomes.read_text(encoding="utf-8").splitlines() if outcomes.exists() else ():
        fields = json.loads(line)
        whole = whole or "end" in fields
        if "id" in fields:
            came[fields["id"]] = fields.get("outcome", "hung or died")
    return came if whole else came | {ending: "failed"}


def environment_with(python: Path, requirements: tuple[str, ...]) -> None:
    """Make a virtual environment in which safespawn can be imported from the tree, last of all."""
    subprocess.run([sys._base_executable, "-m", "venv", str(python.parents[1])], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--root-user-action=ignore", *requirements, *REQUIREMENTS], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([str(python), "-c", where], text=True).strip()
    Path(packages, "safespawn-tree.pth").write_text(f"{ROOT}\n{Path(__file__).parent}\n", encoding="utf-8")


def fresh(name: str, version: str) -> Path | None:
    """Return an empty directory for the client, None if that version is there already."""
    place = WHERE / f"{name}-{version}"
    if (place / "ready").exists():
        return None
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def prepared(client: Client) -> Place:
    """Fetch the sdist, unpack it, and install it in place, in its environment: once."""
    directory = WHERE / f"{client.name}-{client.version}"
    python = directory / "venv" / "bin" / "python"
    if place := fresh(client.name, client.version):
        pin = f"{client.name}=={client.version}"
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", client.name, "--dest", str(place), pin]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        [sdist] = place.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(place / "source", filter="data")
        environment_with(python, ("--editable", str(tree(place)), *client.requires))
        (place / "ready").touch()
    return Place(python, tree(directory), directory / "log")


def tree(place: Path) -> Path:
    """Return the one directory that an sdist has."""
    [top] = (place / "source").iterdir()
    return top
