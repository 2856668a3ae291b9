"""Every command and snippet of the documentation is run, and what it shows is what comes out.

In a page, a block of `sh` is run line by line in a folder of the page's own, a block of `python` is executed, and one with a
title is written to that file.  A block of `text` stands for what the last command or snippet before it printed: a line `...` in
it stands for any lines, ` ...` at the end of a line for the rest of it.  What comes after `<!-- not run: reason -->` is left out.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import msgpack
import pytest

from racevisor import api
from racevisor.book import begun
from racevisor.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATED = {"verdicts.md"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name not in GENERATED)
FENCE = re.compile(r"^```(\w*) ?(.*)$")
STATUS = re.compile(r"# exit status (\d+)")


class Block(NamedTuple):
    line: int
    language: str
    title: str
    text: str
    skipped: bool


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    n, skipped = 0, False
    while n < len(lines):
        fence = FENCE.match(lines[n])
        if fence is None:
            if lines[n].startswith("<!-- not run:"):
                skipped = True
            n += 1
            continue
        end = lines.index("```", n + 1)
        title = re.search(r'title="([^"]+)"', fence[2])
        text = "\n".join(lines[n + 1 : end]) + "\n"
        yield Block(n + 1, fence[1], title[1] if title else "", text, skipped)
        n, skipped = end + 1, False


def commands(block: Block) -> Iterator[tuple[list[str], int]]:
    """(words, exit status) of each line."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        status = STATUS.search(line)
        if words:
            yield words, int(status[1]) if status else 0


def shown_in(expected: str, printed: str) -> bool:
    """Do the lines stand there, in this order, with a line `...` for any others?"""
    pattern = ""
    for line in expected.rstrip().splitlines():
        rest = ".*" if line.endswith(" ...") else "[ ]*"
        pattern += r"(?:.*\n)*?" if line.strip() == "..." else f"{re.escape(line.removesuffix(' ...').rstrip())}{rest}\n"
    return re.search("(?m)^" + pattern, printed + "\n") is not None


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    if words[0] == "pytest":
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-o", "asyncio_default_fixture_loop_scope=function", *words[1:]],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout
    assert words[0] == "racevisor", f"nobody runs {words[0]} here; mark the block as not run"
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int), err
    return ended.value.code, out if ended.value.code == 0 else out + err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_what_a_page_shows_is_what_happens(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """A page that has gone stale is worse than none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names: dict[str, object] = {}
    printed = ""
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.skipped:
            continue
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            for words, status in commands(block):
                if words[:2] in (["racevisor", "run"], ["racevisor", "stress"]) or "ray" in words:
                    request.getfixturevalue("embedded_ray")
                ended, printed = run(words, capsys)
                assert ended == status, f"{where}: {shlex.join(words)} ends with {ended}\n{printed}"
        elif block.language == "python":
            if "api.run(" in block.text:
                request.getfixturevalue("embedded_ray")
            exec(compile(block.text, where, "exec"), names)
            printed = capsys.readouterr().out
        elif block.language == "text":
            assert shown_in(block.text, printed), f"{where} shows\n{block.text}\nbut this is printed:\n{printed}"


def test_every_page_can_be_reached_and_every_link_between_pages_leads_somewhere() -> None:
    """The site's own build checks this as well; here it is checked without it."""
    broken = []
    for page in [*PAGES, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def described(page: str, heading: str) -> set[str]:
    """The names in the first column of the table below a heading of its own."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = re.search(rf"^\| {heading} \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    return {name for row in table[0].splitlines()[2:] for name in re.findall(r"`([\w.]+)`", row.split("|")[1])}


def test_the_page_about_files_names_every_field(tmp_path: Path) -> None:
    """Who writes a reader of his own has nothing else to go by."""
    found = api.explore(str(ROOT / "examples" / "message_passing.py"), "plain", memory="pso")
    found.save(tmp_path / "a.trace")
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed((tmp_path / "a.trace").read_bytes())
    assert described("files.md", "header") == set(unpacker.unpack())
    assert described("files.md", "body") == set(unpacker.unpack())
    assert described("files.md", "key") == set(
        begun("init_sipi", None, None, "tso", 2, None, 1, tmp_path, {"seed": 0}).state(0, True)
    )


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_of_the_five_stories_has_its_report_before_and_after_and_a_link_to_it() -> None:
    """The site makes them by the commands that the pages show, so a reader sees what these pages promise."""
    made = hooks().all_shown()
    stories = {page.name for page in (DOCS / "patches").glob("*.md")}
    assert {f"{Path(one.file).stem}.md" for one in made} == stories and len(made) == len(stories) == 5
    for one in made:
        assert "--variant before --against" in shlex.join(one.words)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="patches/synic.md"))
    shown = hooks().on_page_markdown((DOCS / "patches" / "synic.md").read_text(encoding="utf-8"), page)
    assert "```\n\n[Open this report](../reports/synic.html){ .md-button }\n" in shown
    page.file.src_uri = "reports.md"
    listed = hooks().on_page_markdown((DOCS / "reports.md").read_text(encoding="utf-8"), page)
    assert listed.count("](reports/") == 5
