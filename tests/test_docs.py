"""The documentation: it builds to a site that needs nothing from elsewhere, its links hold, its examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import helpers
import pages
from safespawn import cli, guards

ROOT = helpers.ROOT
PAGES = sorted(path.name for path in pages.DOCS.glob("*.md"))
#: What is read in the repository beside them, and is on the site too.
OTHERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "threat-model.md", "examples/README.md")

# ------------------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a warning is an error."""
    where = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(where)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return where


class _Seen(HTMLParser):
    """What a page of the site refers to: what a browser loads, and where links lead; and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("src", "href", "data", "srcset", "action") and value:
                (self.links if tag == "a" else self.loads).append(value)


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """No page, style sheet or script of the site names another host to load from."""
    for path in site.rglob("*.html"):
        assert [one for one in _Seen(path).loads if "//" in one] == [], path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"url\((?!['\"]?data:)[^)]*//", text) + re.findall(r"@import", text) == [], path
    for path in site.rglob("*.js"):
        assert re.findall(r"(?:fetch|importScripts|open)\(['\"][^)]*//", path.read_text(encoding="utf-8")) == [], path


#: Where links may lead outside: how the changelog is written, and the theme's "built with".
OUTSIDE = {"https://keepachangelog.com/en/1.1.0/", "https://semver.org/", "https://www.mkdocs.org/"}


def test_links_of_the_site_hold(site: Path) -> None:
    """Every link of every page leads to a page of the site and an anchor in it."""
    seen = {path: _Seen(path) for path in site.rglob("*.html")}
    for path, page in seen.items():
        if path.name == "404.html":
            continue
        for link in set(page.links + page.loads) - OUTSIDE:
            where, _, anchor = link.partition("#")
            target = Path(os.path.normpath(path.parent / where)) if where else path
            assert target.is_file(), (path, link)
            assert not anchor or anchor in seen[target].anchors, (path, link)


def test_links_of_the_repository_hold() -> None:
    """Every relative link of every page leads to a file of the repository and a heading in it."""
    for name in [*(f"docs/{page}" for page in PAGES), *OTHERS]:
        path = ROOT / name
        for link in pages.links(path.read_text(encoding="utf-8")):
            where, _, anchor = link.partition("#")
            if ":" in where:
                continue
            target = path.parent / where if where else path
            assert target.is_file(), (name, link)
            assert not anchor or anchor in pages.anchors(target.read_text(encoding="utf-8")), (name, link)


# ------------------------------------------------------------------------------ examples

#: What the pages take for granted: names, files and programs that a reader has.
GIVEN = {
    "audit-exporters.md": """
import safespawn
from safespawn import audit
with audit.open("ledger.jsonl"):
    safespawn.run(["true"])
""",
}
#: A block that begins so is not run; a reader sees why.
NOT_RUN = "# Not run: "
_NOT_RUN_COUNT = 2

_RUN_PAGE = """
import doctest
os.chdir(scratch)
names = {"__name__": "__main__"}
exec(given, names)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
for text, line in blocks:
    if ">>> " in text:
        test = doctest.DocTestParser().get_doctest(text, names, page, page, line - 1)
        assert runner.run(test, clear_globs=False).failed == 0
        names = test.globs
    else:
        exec(compile("\\n" * (line - 1) + text, page, "exec"), names)
"""


def _python(name: str) -> list[tuple[str, int]]:
    """Return the blocks of Python of a page, with their lines."""
    path = ROOT / name if "/" in name else pages.DOCS / name
    return [
        (block.text, block.line)
        for block in pages.blocks(path.read_text(encoding="utf-8"))
        if block.language == "python"
    ]


WITH_PYTHON = [name for name in PAGES if _python(name)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pages start programs as other users")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_a_page_runs(page: str, public: Path) -> None:
    """The blocks of a page run from top to bottom, in a process and a directory of their own."""
    blocks = [block for block in _python(page) if not block[0].startswith(NOT_RUN)]
    helpers.run_snippet(_RUN_PAGE, page=page, blocks=blocks, given=GIVEN.get(page, ""), scratch=str(public))


def test_blocks_that_are_not_run_are_few() -> None:
    """They say so to the reader, and are counted here."""
    left_out = [text for name in PAGES for text, _ in _python(name) if text.startswith(NOT_RUN)]
    assert len(left_out) == _NOT_RUN_COUNT


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of ours in a block for a shell; of a synopsis the shortest form."""
    for line in text.replace("\\\n", " ").splitlines():
        plain = re.sub(r" +\[[^\]]*\]", "", line.removeprefix("$ ").partition(" #")[0])
        words = shlex.split(plain.partition(">")[0])
        for place, word in enumerate(words):
            if os.path.basename(word) == "safespawn" and words[place + 1 :]:
                yield [word.partition("|")[0] for word in words[place + 1 :]]
                break


SHELL = [
    (name, block)
    for name in [*PAGES, "../examples/README.md"]
    for block in pages.blocks(pages.text_of(name))
    if block.language in ("sh", "console")
]


@pytest.mark.parametrize(("page", "block"), SHELL, ids=[f"{name}:{block.line}" for name, block in SHELL])
def test_commands_of_a_page_are_right(page: str, block: pages.Block) -> None:
    """A shell can read the block, and our own parser takes the commands of ours in it."""
    text = "\n".join(line.removeprefix("$ ") for line in block.text.splitlines())
    assert subprocess.run(["bash", "-n"], input=text.encode(), check=False).returncode == 0
    for words in _commands(block.text):
        given = cli._parser().parse_args(words)
        assert given.call, (page, words)


# ------------------------------------------------------------------------------ the truth


def test_guards_of_the_page_are_those_of_the_registry() -> None:
    """docs/guards.md lists every guard with what it states, its threats and where it is enforced."""
    (table,) = [one for one in pages.tables(pages.text_of("guards.md")) if one.head[0] == "guard"]
    assert table.rows == [
        [f"`{one.id}`", one.statement, ", ".join(one.threats), ", ".join(one.enforced)]
        for one in guards.registry.values()
    ]


DRAWINGS = sorted((pages.DOCS / "drawings").glob("*.svg"))
_SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_drawing_is_fit_for_all_readers(path: Path) -> None:
    """A drawing is on a page, has a title and a description, knows dark screens, and loads nothing."""
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    title, told = root.find(f"{_SVG}title"), root.find(f"{_SVG}desc")
    assert title is not None and title.text and told is not None and len(told.text or "") > 80
    assert root.get("role") == "img" and root.get("aria-labelledby") == f"{title.get('id')} {told.get('id')}"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href|url\(\s*['\"]?http|@import", text.replace("http://www.w3.org/2000/svg", ""))
    assert any(f"drawings/{path.name}" in pages.text_of(page) for page in PAGES)
