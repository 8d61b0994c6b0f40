"""A playbook of ours under ansible-core: each task is a test."""

from __future__ import annotations

import tempfile
from pathlib import Path

import places

NAME, VERSION = "ansible-core", "2.19.14"  # the last that runs on Python 3.11
PLAY = Path(__file__).parent / "play"
#: Seconds for the playbook.
LIMIT = 300


class Playbook:
    """Runs the playbook on this machine, by ansible's local connection."""

    name = f"{NAME} {VERSION}"

    def prepare(self) -> None:
        directory = places.WHERE / f"{NAME}-{VERSION}"
        python = directory / "venv" / "bin" / "python"
        if place := places.fresh(NAME, VERSION):
            places.environment_with(python, (f"{NAME}=={VERSION}",))
            (place / "source").mkdir()
            (place / "ready").touch()
        self.place = places.Place(python, directory / "source", directory / "log")

    def run(self, way: str) -> places.Came:
        with tempfile.TemporaryDirectory(prefix="client") as work:
            take_over = "import safespawn_installed; " if way == "with" else ""
            program = take_over + "from ansible.cli.playbook import main; main()"
            more = {"CLIENT_PLACE": work, "ANSIBLE_CALLBACK_PLUGINS": str(PLAY), "ANSIBLE_STDOUT_CALLBACK": "task_outcomes"}
            argv = ["-c", program, "-i", "localhost,", "-c", "local", str(PLAY / "playbook.yml")]
            return self.place.run(argv, LIMIT, **more)
