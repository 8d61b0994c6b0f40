"""What mkdocs does not do by itself: pages that lie outside of docs/, and links that work in both views.

The pages link to each other as files of the repository. On the site those of docs/ lie at the top, and the
README is the page ``reference``; so a link is followed in the repository and written anew for the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Files outside of docs/ that are on the site, by their place in the repository.
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "threat-model.md",
    "fuzz/README.md",
    "examples/README.md",
    "examples/http_commands.py",
    "examples/job_runner.py",
    "examples/root_daemon.py",
)
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def _on_site(path: str) -> str:
    """Return where a file of the repository lies on the site."""
    return {"README.md": "reference.md", "LICENSE": "LICENSE.txt"}.get(path, path.removeprefix("docs/"))


def _in_repository(page: str) -> str:
    return next((path for path in OUTSIDE if _on_site(path) == page), f"docs/{page}")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to where things are on the site."""
    here = page.file.src_uri
    base = posixpath.dirname(_in_repository(here))

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(base, link[1]))
        return posixpath.relpath(_on_site(target), posixpath.dirname(here) or ".")

    return _LINK.sub(led, text)
