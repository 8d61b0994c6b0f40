"""A headless Chromium, driven over a pipe by the DevTools protocol, with what it said and asked for."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = "/usr/bin/chromium"
PATIENCE = 60.0


def _processes_of(profile: Path) -> list[int]:
    """Return the processes that were started for a profile: all have its path in their arguments."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(profile) in arguments:
            found.append(int(name))
    return found


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose numbers are none of those that the browser wants."""
    low = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low]
    for fd in low:
        os.close(fd)
    return high[0], high[1]


class Browser:
    """A browser. Each page has a context of its own, so that none sees what another left."""

    def __init__(self) -> None:
        # Below no directory of a test: the name of its socket there may have 107 bytes (unix(7)), and it
        # ends at its start where that is longer.
        profile = self.profile = Path(tempfile.mkdtemp(prefix="chromium-", dir="/tmp"))
        self._number = 0
        self._rest = b""
        self._told: dict[str, Page] = {}
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        commands, self._out = _high_pipe()
        self._in, answers = _high_pipe()
        # Nothing is asked of a network, whatever the browser would like to know at its start.
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--no-first-run", "--disable-breakpad", "--disable-crash-reporter", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-quic",
            "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        # The protocol is spoken on descriptors 3 and 4. A shell that stays is its parent: tests have no child
        # that they did not start.
        text = f'{{ "$0" "$@" 3<&{commands} 4>&{answers} {commands}<&- {answers}>&-; echo "it ended with $?" >&2; }} &'
        subprocess.run(
            ["/bin/bash", "-c", text, PROGRAM, *options],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            start_new_session=True,
            env={**os.environ, "HOME": str(profile), "TMPDIR": str(profile)},
            check=True,
        )
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def page(self) -> Page:
        """Return a new page that shows nothing yet."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._told[session] = Page(self, context, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while (answer := self.receive()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def receive(self) -> dict[str, Any]:
        """Return the next message of the browser; the page that it is about has noted it."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0], "no answer"
            piece = os.read(self._in, 1 << 16)
            assert piece, self._last_words()
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if page := self._told.get(message.get("sessionId", "")):
            page.note(message.get("method"), message.get("params", {}))
        return message

    def _last_words(self) -> str:
        """Return what it wrote, once it has ended."""
        self._wait_for_the_end()
        self._complaints.seek(0)
        return f"the browser ended: {self._complaints.read().decode(errors='replace')}"

    def _wait_for_the_end(self) -> list[int]:
        """Return the processes that are left when there is no more patience."""
        end = time.monotonic() + PATIENCE
        while (left := _processes_of(self.profile)) and time.monotonic() < end:
            time.sleep(0.01)
        return left

    def close(self) -> None:
        """End it, and every process that it started."""
        os.close(self._out)  # it ends when nobody speaks to it any more
        for pid in self._wait_for_the_end():
            os.kill(pid, signal.SIGKILL)
        left = self._wait_for_the_end()
        os.close(self._in)
        self._complaints.close()
        shutil.rmtree(self.profile)
        assert not left, f"left behind: {left}"


class Page:
    """A page. ``said`` are its messages and errors, ``asked`` the addresses it loaded."""

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self._browser, self._context, self._session = browser, context, session
        self.said: list[str] = []
        self.asked: list[str] = []
        self.loaded = 0

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *problem: object) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol about this page and return its result."""
        return self._browser.call(method, self._session, **parameters)

    def note(self, method: str | None, told: dict[str, Any]) -> None:
        """Take in what the browser told about this page."""
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(told))
        elif method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1

    def open(self, file: Path) -> None:
        """Show a file, and wait until it is there."""
        before = self.loaded
        self.call("Page.navigate", url=file.as_uri())
        while self.loaded == before:
            self._browser.receive()

    def run(self, text: str) -> Any:
        """Return the value of a JavaScript expression."""
        made = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        return made["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the first element of a selector as a mouse does."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Put the text into a field as a keyboard does, instead of what it has."""
        self.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        self.call("Input.insertText", text=text)

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Choose colours and size of the window."""
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        made = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(made["data"])
