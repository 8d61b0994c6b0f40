"""`safespawn audit report`: what the page holds, and how it is written. How it behaves is in test_audit_page.py."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings

import ledgers
from ledgers import CROWDED, SECOND, START_NS, Chain
from safespawn.audit import _lines, _page_assets, _summary, _timeline, html_report, spawns
from safespawn.audit.html_report import Made, Summary
from test_audit_show import HOSTILE, command, view

MADE = Made("/var/log/ledger.jsonl", "", START_NS)


def numbers_only(uid: int) -> str:
    """Return a uid as it is."""
    return str(uid)


def summed(*pieces: bytes, rows: int = 2000) -> Summary:
    """Return the summary of some lines."""
    summary = Summary(rows)
    records = (_lines.parse(line, f"x:{n}") for n, line in enumerate(b"".join(pieces).splitlines(), 1))
    for entry in spawns.join(records):
        summary.add(entry)
    return summary


def page(*pieces: bytes, rows: int = 2000) -> str:
    """Return the page about some lines."""
    return html_report.page(summed(*pieces, rows=rows), MADE, numbers_only)


class Outline(HTMLParser):
    """What is on a page: elements, and the text of each section by its anchor."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"] or ""
        if tag not in ("meta", "input", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]


# ------------------------------------------------------------ what is on it


@pytest.fixture(scope="module")
def outline() -> Outline:
    """Return the outline of a page about one of everything."""
    return Outline(page(ledgers.eventful()))


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        ("summary", ["spawns", "20", "refused", "may have run", "fell back to fork", "1 breakglass"]),
        ("timeline", ["ran by vfork", "Spawns by minute"]),
        ("who", ["65534", "/bin/sh", "/srv/jobs/tool", "1000"]),
        ("strategies", ["launcher", "single-threaded", "drop-apart: the launcher changes"]),
        ("refusals", ["/srv/jobs/tool --now", "path-trusted: /srv/jobs is writable by others (mode 777)"]),
        ("fallbacks", ["/usr/bin/du -s /srv", "… threads, so a privilege could change"]),
        ("failures", ["/bin/nonexistent", "failed lookup ENOENT", "timed-out"]),
        ("unknown", ["/usr/bin/perhaps", "may have run"]),
        ("slowest", ["4.2 ms", "/usr/bin/du"]),
        ("changes", ["seteuid(65534)", "uids 0 → 0/65534/0/65534"]),
        ("losses", ["records lost: 3; No space left", "journald: EAGAIN", "chain.close"]),
        ("others", ["os.fork at app.py:12 work", "full disk: no room", "sealed", "new.event"]),
        ("tags", ["job=nightly", "build=7"]),
        ("all", ["/bin/true", "exit 0", "x:2", "job=nightly"]),
    ],
)
def test_section(outline: Outline, section: str, texts: list[str]) -> None:
    """Each section tells what it is for."""
    for text in texts:
        assert text in outline.sections[section], text


@pytest.mark.parametrize(
    ("section", "text"),
    [("fallbacks", "/bin/cat"), ("refusals", "/bin/true"), ("failures", "/bin/true"), ("others", "checkpoint")],
)
def test_section_has_nothing_else(outline: Outline, section: str, text: str) -> None:
    """A fork that was asked for is no fallback, what ran is no failure, routine is no event of note."""
    assert text not in outline.sections[section]


def test_page_of_nothing() -> None:
    """A ledger without records has a page that says so in every section."""
    outline = Outline(page())

    for section in outline.named("section")[1:]:
        assert "None." in outline.sections[section["id"] or ""]


def test_problems_are_told() -> None:
    """Lines that are no records are counted, and the first ones shown."""
    summary = summed(Chain().ran(["/bin/true"]))
    for number in range(150):
        summary.problem(_lines.parse(b"\x1b<b>garbage</b>", f"x:{number}"))
    outline = Outline(html_report.page(summary, MADE))

    assert "The first 100 of 150" in outline.sections["problems"]
    assert "\\x1b<b>garbage</b>" in outline.sections["problems"]
    assert not outline.named("b")


def test_same_input_same_page() -> None:
    """The page depends on the entries and on what is given, and on nothing else."""
    assert page(ledgers.eventful()) == page(ledgers.eventful())


def test_page_says_when_from_what_and_which() -> None:
    """The head has the file, the filter, the time, and that nothing was verified."""
    made = Made("/var/log/<led>ger", "program <x>", START_NS)
    outline = Outline(html_report.page(summed(), made))

    for text in ("/var/log/<led>ger", "program <x>", "2026-11-29 00:00:00 UTC", "safespawn audit verify"):
        assert text in outline.sections[""]


def test_users_have_their_numbers() -> None:
    """A name is this host's, so its number stands beside it."""
    text = html_report.page(summed(Chain().ran(["/bin/true"], as_uid=65534)), MADE, {0: "root", 65534: "nobody"}.__getitem__)

    assert "root (0)" in text
    assert "nobody (65534)" in text


def test_number_of_rows() -> None:
    """Only so many spawns are told one by one, the last ones, and the page says how many there are."""
    chain = Chain()
    outline = Outline(page(*(chain.ran([f"/bin/p{number}"]) for number in range(30)), rows=10))

    assert "The last 10 of 30" in outline.sections["all"]
    assert "/bin/p29" in outline.sections["all"]
    assert "/bin/p19" not in outline.sections["all"]
    assert len([row for row in outline.named("tr") if "data-kind" in row]) == 10 + 30  # the slowest windows too


def test_long_lists_are_cut_and_say_so() -> None:
    """Refusals beyond the room of their list are counted."""
    chain = Chain()
    outline = Outline(page(*(chain.denied([f"/bin/p{number}"]) for number in range(510)), rows=0))

    assert "The last 500 of 510" in outline.sections["refusals"]


def test_groups_are_cut_and_say_so() -> None:
    """Combinations beyond the room of a table are counted."""
    chain = Chain()
    outline = Outline(page(*(chain.ran([f"/bin/p{number}"]) for number in range(230)), rows=0))

    assert "230 combinations, the most frequent first; 30 are left out" in outline.sections["who"]


def test_slowest_windows_come_slowest_first() -> None:
    """The fifty longest windows are shown by length."""
    chain = Chain()
    lines = [chain.ran([f"/bin/p{number}"], window_ns=number * 1000) for number in range(1, 81)]
    summary = summed(*lines)

    assert [spawn.window_ns for spawn in summary.slowest()] == [number * 1000 for number in range(80, 30, -1)]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    """Fallbacks for seven threads and for eight are one line with both."""
    chain = Chain()
    lines = [chain.ran(["/bin/x"], how=chain.how("fork", (CROWDED.replace("7", str(n)),))) for n in (7, 8, 19)]
    ((_, line),) = summed(*lines).fallbacks.most(10)

    assert line.count == 3
    assert _summary.alike("digest is sha256:7faadececbd287e494595d6a, not 5") == "digest is sha256:…, not …"


# ---------------------------------------------------------- bounded memory


def test_tally_has_room_for_so_many_keys() -> None:
    """Keys beyond the room of a tally are counted together."""
    chain = Chain()
    (spawn,) = spawns.join([_lines.parse(line, "x") for line in chain.denied(["/bin/x"]).splitlines()])
    assert isinstance(spawn, spawns.Spawn)
    tally: _summary.Tally[str] = _summary.Tally(room=2)
    for key in "abacbd":
        tally.add(key, spawn)

    assert [(key, line.count) for key, line in tally.most(9)] == [("a", 2), ("b", 2)]
    assert (len(tally), tally.others, tally.count) == (2, 2, 6)


def test_names_are_counted_up_to_a_number() -> None:
    """A ledger with any number of names of events and outcomes takes bounded room."""
    chain = Chain()
    summary = summed(*(chain.record(f"e{number}", None) for number in range(300)))

    assert len(summary.events) == 201
    assert summary.events["others"] == 100


def test_timeline_over_all_times_is_bounded() -> None:
    """Times all over the centuries take bounded room, and have a chart of bounded width."""
    summary = Summary(10)
    (spawn,) = spawns.join([_lines.parse(line, "x") for line in Chain().denied(["/bin/x"]).splitlines()])
    assert isinstance(spawn, spawns.Spawn)
    for number in range(20_000):
        spawn.when_ns = number * (1 << 63) // 20_000
        summary.add(spawn)
    chart, *parts = _timeline.charts(summary.times)

    assert len(summary.times.hours) == _summary.HOURS_MAX
    assert summary.times.minutes is None
    assert (len(chart.bars), len(parts)) == (400, 31)
    shown = sum(bar.kinds.total() for bar in chart.bars)
    assert shown + chart.left_out + summary.times.others == 20_000


# ------------------------------------------------------------- the timeline


def at(*minutes: float) -> _summary.Times:
    """Return the times of refused spawns so many minutes after the start."""
    times = _summary.Times()
    (spawn,) = spawns.join([_lines.parse(line, "x") for line in Chain().denied(["/bin/x"]).splitlines()])
    assert isinstance(spawn, spawns.Spawn)
    for minute in minutes:
        spawn.when_ns = START_NS + int(minute * 60 * SECOND)
        times.add(spawn)
    return times


def bars(chart: _timeline.Chart) -> dict[str, int]:
    """Return the bars that are not empty."""
    return {bar.label: bar.kinds.total() for bar in chart.bars if bar.kinds}


def test_short_time_is_shown_by_minute() -> None:
    """Up to three hours have one chart, by minute."""
    (chart,) = _timeline.charts(at(0, 0.5, 1, 119))

    assert (chart.title, len(chart.bars)) == ("Spawns by minute", 120)
    assert bars(chart) == {"2026-11-29 00:00": 2, "2026-11-29 00:01": 1, "2026-11-29 01:59": 1}


def test_days_are_shown_by_hour_and_each_hour_by_minute() -> None:
    """Up to three days have a chart by hour, and one by minute for each hour that has any, the last first."""
    whole, last, first = _timeline.charts(at(3, 4, 5 * 60 + 7))

    assert (whole.title, len(whole.bars)) == ("Spawns by hour", 6)
    assert bars(whole) == {"2026-11-29 00:00": 2, "2026-11-29 05:00": 1}
    assert (last.title, bars(last)) == ("2026-11-29 05:00", {"2026-11-29 05:07": 1})
    assert (first.title, bars(first)) == ("2026-11-29 00:00", {"2026-11-29 00:03": 1, "2026-11-29 00:04": 1})
    assert len(first.bars) == 60


def test_longer_is_shown_by_day_and_each_day_by_hour() -> None:
    """More than three days have a chart by day, and one by hour for each day that has any."""
    day = 24 * 60
    whole, last, first = _timeline.charts(at(60, 61, 5 * day + 120))

    assert (whole.title, len(whole.bars)) == ("Spawns by day", 6)
    assert bars(whole) == {"2026-11-29": 2, "2026-12-04": 1}
    assert (last.title, bars(last)) == ("2026-12-04", {"2026-12-04 02:00": 1})
    assert (first.title, bars(first), len(first.bars)) == ("2026-11-29", {"2026-11-29 01:00": 2}, 24)


def test_picture() -> None:
    """The tallest bar reaches the number at the top, others in proportion, kinds one on the other."""
    kinds = [Counter(vfork=6, refused=4), Counter(vfork=5), Counter()]
    chart = _timeline.Chart("x", [_timeline.Bar(f"2026-11-29 00:0{n}", one) for n, one in enumerate(kinds)])
    found = re.findall(r'<rect class="k-(\w+)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"/>', _timeline.svg(chart))

    assert [(kind, float(y), float(tall)) for kind, y, tall in found] == [
        ("vfork", 77.6, 98.4), ("refused", 12.0, 65.6), ("vfork", 94.0, 82.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "up"), [(1, 1), (2, 2), (3, 5), (7, 10), (11, 20), (500, 500), (501, 1000)])
def test_scale(value: int, up: int) -> None:
    """The number at the top is the next round one."""
    assert _timeline._round_up(value) == up


# ---------------------------------------------------- the page as a document


def test_headings_tables_and_charts_have_names(outline: Outline) -> None:
    """There is one title, a heading for each section, a caption and column heads for each table, a name for each chart."""
    tables = outline.named("table")

    assert len(outline.named("h1")) == 1
    assert len(outline.named("h2")) == len(outline.named("section")) == 15
    assert len(tables) == len(outline.named("caption")) > 10
    assert {head.get("scope") for head in outline.named("th")} == {"col"}
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in outline.named("svg"))
    assert outline.named("html")[0]["lang"] == "en"
    assert outline.open == []


def test_links_lead_to_sections(outline: Outline) -> None:
    """Every link is to a section of the page."""
    sections = [f"#{section['id']}" for section in outline.named("section")]

    assert [link["href"] for link in outline.named("a")] == sections


def test_nothing_on_it_comes_from_elsewhere(outline: Outline) -> None:
    """No element names a source, and the policy allows the one style and the one script that are there."""
    (policy,) = [meta["content"] for meta in outline.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.strip().split(" ", 1) for part in (policy or "").split(";"))

    assert allowed.pop("default-src") == allowed.pop("base-uri") == allowed.pop("form-action") == "'none'"
    assert sorted(allowed) == ["script-src", "style-src"]
    assert all(re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", value) for value in allowed.values())
    for tag, attributes in outline.elements:
        assert tag not in ("img", "iframe", "object", "embed", "link", "base", "audio", "video", "source")
        assert not {"src", "srcset", "style", "action", "background", "poster"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert len(outline.named("script")) == len(outline.named("style")) == 1
    assert not re.search(r"url\(|@import|https?:", _page_assets.STYLE + _page_assets.SCRIPT)


@settings(deadline=None, max_examples=60)
@given(text=HOSTILE)
def test_nothing_of_a_record_is_markup(text: str) -> None:
    """Whatever a record holds, the page has the elements that it has for harmless text of the same kind."""
    def elements(text: str) -> list[str]:
        chain = Chain()
        made = page(
            chain.ran([text, text], tags={text: text}, how=chain.how("fork", (text,))),
            chain.failed([text], text, text, outcome=text),
            chain.denied([text], text),
            chain.record("new.event", None, x=text),
            chain.record("mirror.down", None, mirror=text, why=text),
            chain.record("cred.change", None, change={"call": text}),
        )
        assert all(char == "\n" or char.isprintable() for char in made)
        made.encode("utf-8")
        return [tag for tag, _ in Outline(made).elements]

    if text:
        assert elements(text) == elements("x")


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour: WCAG 2.1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours: WCAG 2.1."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast(scheme: int) -> None:
    """Text has a contrast of 4.5 on every background in both schemes, and bars one of 3 on the page."""
    block = re.findall(r":root \{(.*?)\}", _page_assets.STYLE, re.S)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))

    for ground in ("page", "raised"):
        for text in ("text", "soft", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for kind in _summary.KINDS:
        assert contrast(colours[kind], colours["page"]) >= 3, kind


# ------------------------------------------------------------- the command


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a ledger with one of everything."""
    return ledgers.write(tmp_path / "ledger.jsonl", ledgers.eventful())


def test_report(ledger: Path, tmp_path: Path) -> None:
    """The page is written, for its owner only, and nothing is said."""
    out = tmp_path / "out.html"
    done = view("report", ledger, "-o", out)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert str(ledger) in Outline(out.read_text(encoding="utf-8")).sections[""]
    assert sorted(os.listdir(tmp_path)) == ["ledger.jsonl", "out.html"]


def test_report_with_filters(ledger: Path, tmp_path: Path) -> None:
    """Only what is wanted is on the page, which says so."""
    out = tmp_path / "out.html"
    view("report", ledger, "-o", out, "--tag", "job=nightly", "--rows", "1")
    outline = Outline(out.read_text(encoding="utf-8"))

    assert "tags job=nightly" in outline.sections[""]
    assert "The last 1 of 2" in outline.sections["all"]
    assert "/bin/true" not in outline.sections["who"]


def test_report_tells_of_lines_that_are_no_records(ledger: Path, tmp_path: Path) -> None:
    """Lines that are no records are on the page and on stderr, and make exit code 1; the page is written."""
    out = tmp_path / "out.html"
    with open(ledger, "ab") as file:
        file.write(b"garbage\n")
    done = view("report", ledger, "-o", out)

    assert done.returncode == 1
    assert "ledger.jsonl:65: not the form" in done.stderr
    assert "ledger.jsonl:65" in Outline(out.read_text(encoding="utf-8")).sections["problems"]


def test_report_to_standard_output(ledger: Path) -> None:
    """- writes the page to standard output, and reads the ledger from standard input."""
    with open(ledger, "rb") as file:
        done = view("report", "-", "-o", "-", stdin=file)

    assert done.returncode == 0
    assert "standard input" in Outline(done.stdout).sections[""]


def test_earlier_page_is_replaced(ledger: Path, tmp_path: Path) -> None:
    """A page is written over an earlier one, not into it."""
    out = tmp_path / "out.html"
    view("report", ledger, "-o", out, "--program", "none")
    with open(out, encoding="utf-8") as before:
        done = view("report", ledger, "-o", out)
        assert done.returncode == 0
        assert "program none" in before.read()
    assert "program none" not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["ledger", "link", "segment", "state", "fifo", "device", "directory"])
def test_what_is_not_overwritten(ledger: Path, tmp_path: Path, target: str) -> None:
    """The ledger, by whatever name, its other files, and whatever is no page stay as they are."""
    out = tmp_path / "out"
    if target == "ledger":
        out = ledger
    elif target == "link":
        out.symlink_to(ledger)
    elif target == "fifo":
        os.mkfifo(out)
    elif target == "device":
        out = Path("/dev/null")
    elif target == "directory":
        out.mkdir()
    else:
        out = ledgers.write(tmp_path / f"ledger.jsonl.{'1' if target == 'segment' else 'state'}", b"SSSTATE1")
    before, data = os.stat(out), ledger.read_bytes()
    done = view("report", ledger, "-o", out)

    assert (done.returncode, done.stderr) == (
        2, f"safespawn audit report: {out}: not overwritten: it exists, and is no HTML page\n",
    )  # fmt: skip
    assert os.stat(out).st_ino == before.st_ino
    assert ledger.read_bytes() == data


def test_page_that_cannot_be_written(ledger: Path, tmp_path: Path) -> None:
    """A place where nothing can be written makes exit code 2, and nothing is left there."""
    done = view("report", ledger, "-o", tmp_path / "none" / "out.html")
    assert (done.returncode, "No such file or directory" in done.stderr) == (2, True)

    script = 'ulimit -f 1; exec "$@"'
    limited = subprocess.run(
        ["/bin/bash", "-c", script, "sh", *command("report", ledger, "-o", tmp_path / "out.html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (limited.returncode, "File too large" in limited.stderr) == (2, True)
    assert os.listdir(tmp_path) == ["ledger.jsonl"]


def test_ledger_that_is_not_there(tmp_path: Path) -> None:
    """Without a ledger there is no page, and exit code 2."""
    done = view("report", tmp_path / "none", "-o", tmp_path / "out.html")

    assert (done.returncode, os.listdir(tmp_path)) == (2, [])


@pytest.mark.parametrize("rows", ["-1", "x", "1000000"])
def test_bad_number_of_rows(ledger: Path, rows: str) -> None:
    """A number of rows that is none is bad usage."""
    done = view("report", ledger, "-o", "-", f"--rows={rows}")

    assert (done.returncode, f"not '{rows}'" in done.stderr) == (125, True)
