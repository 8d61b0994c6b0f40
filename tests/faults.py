"""Makes every system call on the way of a spawn fail with every errno that its manual page lists.

    python tests/faults.py [--sample N] [--seed N] [--dump FILE] [SCENE...]    # all of it: make faults

Each scene of tests/scenes.py is played once to see its calls; then it is played again for each of them and
each errno of tests/errnos.py, and tests/fault_rules.py says whether what came of it is right. After each the
scene is played once more, without a fault: it has to work, and all has to be as it was before.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)] if __name__ in ("__main__", "__mp_main__") else []

import fault_rules  # noqa: E402 - after the place of the package is settled
import injecting  # noqa: E402 - as above
from errnos import ERRNOS  # noqa: E402 - as above
from injecting import Scene, Site, Worker  # noqa: E402 - as above
from scenes import SCENES  # noqa: E402 - as above

#: A loop makes one call again and again (a signal each, a capability each): so many of one kind are made to fail.
MOST_ALIKE = 4
#: How often a helper that was lost may be missed until another runs.
SETTLES = 4


@dataclass
class Result:
    """What came of the injections into one scene."""

    scene: str
    injections: int = 0
    missed: int = 0
    calls: set[str] = field(default_factory=set)
    errnos: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    seconds: float = 0


def chosen_sites(sites: Iterable[Site]) -> list[Site]:
    """Return the calls that are to fail: each once, of those that are alike the first and the last."""
    alike: dict[str, list[Site]] = {}
    for site in dict.fromkeys(sites):
        alike.setdefault(site.key, []).append(site)
    return [one for some in alike.values() for one in (some if len(some) <= MOST_ALIKE else [*some[: MOST_ALIKE - 1], some[-1]])]  # fmt: skip


def injections(scene: Scene, sites: list[Site]) -> list[tuple[Site, str]]:
    """Return all pairs of a call and an errno of its page. What comes before a call that is held has other scenes."""
    if scene.hold:
        held = [number for number, site in enumerate(sites) if (site.role, site.call) == scene.hold]
        sites = sites[held[0] + 1 :]
    unknown = {site.key for site in sites if site.call not in ERRNOS}
    assert not unknown, f"calls that tests/errnos.py lacks (see tests/manual_errnos.py): {unknown}"
    return [(site, name) for site in chosen_sites(sites) for name in ERRNOS[site.call]]


class Play:
    """One scene, with a worker that is made anew when it is not as it was."""

    def __init__(self, scene: Scene, place: Path) -> None:
        """Remember them."""
        self.scene, self.place = scene, place
        self.worker: Worker | None = None
        self.result = Result(scene.name)

    def begin(self) -> list[Site]:
        """Start a worker, and return its calls."""
        where = Path(tempfile.mkdtemp(dir=self.place))
        where.chmod(0o755)
        self.worker = Worker(self.scene, self.place, where)
        for _ in range(3):  # caches fill
            came = self.worker.play()
            self.plain = fault_rules.outcome(came)
            assert self._is_plain(came), f"{self.scene.name} without a fault: {came}"
        self.usual = self.worker.steady()
        return self.worker.sites()

    def _is_plain(self, came: injecting.Came) -> bool:
        return ("raised" in came.said) == self.scene.fails and "lost" not in came.said and not came.wrong

    def inject(self, site: Site, name: str) -> None:
        """Make one call fail, judge, and see that all goes on as before."""
        worker = self.worker
        assert worker is not None
        came = worker.play(site, getattr(errno, name))
        site = worker.met(site)
        self.result.injections += 1
        self.result.missed += not came.fired
        self.result.calls.add(site.call)
        self.result.errnos.add(name)
        said = fault_rules.judge(self.scene, site, name, came, self.plain)
        if not worker.broken and not came.unclean:
            said = said or self._afterwards(site)
        row = {"scene": self.scene.name, "key": site.key, "at": site.ordinal, "errno": name, "fired": came.fired, "plain": self.plain}
        self.result.rows.append({**row, "came": came.said, "programs": came.programs, "wrong": came.wrong, "judged": said})
        if said:
            self.result.problems.append(f"{self.scene.name}: {site.key} ({site.ordinal}) {name}: {said}")
        if worker.broken or came.unclean or said:
            self.renew()

    def _afterwards(self, site: Site) -> str:
        assert self.worker is not None
        for _ in range(SETTLES if self.scene.is_helped else 1):
            came = self.worker.play()
            now = self.worker.steady()
            if self._is_plain(came) and now == self.usual:
                return ""
        more, less = now - self.usual, self.usual - now
        said = f"more: {' '.join(sorted(more))}" if self._is_plain(came) and not less else came.said.get("text", "")
        if fault_rules.lasts(site, said):
            self.worker.kill()  # its successor is as it was
            return ""
        return f"afterwards: {came.said} {came.wrong}, more: {more}, less: {less}"

    def renew(self) -> None:
        """Have another worker: this one is not as it was."""
        assert self.worker is not None
        self.worker.kill()
        self.close()
        self.begin()

    def close(self) -> None:
        """End the worker."""
        if self.worker is not None:
            worker, self.worker = self.worker, None
            if said := worker.close():
                self.result.problems.append(f"{self.scene.name}: at its end: {said}")
            shutil.rmtree(worker.where, ignore_errors=True)


def run_scene(scene: Scene, place: Path, sample: int = 0, seed: int = 0, most: int = 0) -> Result:
    """Play a scene with all its faults, or with ``sample`` of them for each kind of call, and ``most`` in all."""
    start = time.monotonic()
    play = Play(scene, place)
    try:
        for site, name in pick(injections(scene, play.begin()), sample, f"{seed} {scene.name}", most):
            play.inject(site, name)
    except Exception:  # noqa: BLE001 - the other scenes go on
        play.result.problems.append(f"{scene.name}: {traceback.format_exc()}")
    finally:
        play.close()
    play.result.seconds = time.monotonic() - start
    return play.result


def pick(pairs: list[tuple[Site, str]], sample: int, seed: str, most: int = 0) -> list[tuple[Site, str]]:
    """Return all, or some of each kind of call, or of these ``most``, in order."""
    if not sample:
        return pairs
    chance = random.Random(seed)  # noqa: S311 - a sample
    kinds: dict[str, list[tuple[Site, str]]] = {}
    for pair in pairs:
        kinds.setdefault(pair[0].key, []).append(pair)
    picked = [pair for some in kinds.values() for pair in chance.sample(some, min(sample, len(some)))]
    if not most or len(picked) <= most:
        return picked
    return [picked[at] for at in sorted(chance.sample(range(len(picked)), most))]


def main() -> int:
    """Run, print a line for each scene and one for all; 1 if anything was not right."""
    parser = argparse.ArgumentParser(description="Make system calls fail.")
    parser.add_argument("--sample", type=int, default=0, help="faults for each kind of call; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--dump", type=Path, help="a file for all that came, a JSON object a line")
    parser.add_argument("scenes", nargs="*")
    asked = parser.parse_args()
    scenes = [scene for scene in SCENES if not asked.scenes or scene.name in asked.scenes]
    start, total = time.monotonic(), Counter[str]()
    calls: set[str] = set()
    errnos: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="safespawn-faults-", ignore_cleanup_errors=True) as name:
        place = injecting.build(Path(name))
        with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
            running = [pool.submit(run_scene, scene, place, asked.sample, asked.seed) for scene in scenes]
            for one in running:
                result = one.result()
                print(f"{result.scene}: {result.injections} injections, {result.missed} not reached, "
                      f"{len(result.problems)} problems, {result.seconds:.0f} s", flush=True)  # fmt: skip
                for problem in result.problems:
                    print(f"  {problem}", flush=True)
                total.update(injections=result.injections, missed=result.missed, problems=len(result.problems))
                calls |= result.calls
                errnos |= result.errnos
                if asked.dump:
                    with asked.dump.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in result.rows)
    print(f"faults: {total['injections']} injections into {len(scenes)} scenes, {len(calls)} system calls, "
          f"{len(errnos)} errnos, {total['missed']} not reached, {total['problems']} problems, "
          f"{time.monotonic() - start:.0f} s")  # fmt: skip
    return 1 if total["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
