"""The reports of this documentation: where a page shows `racevisor report NAME ... -o FILE.html`, the site has that report.

`make site` calls `on_files` and `on_page_markdown`, see mkdocs.yml; `make reports` writes the reports into a directory.  They are
made by the commands that the pages show, so they are never out of date, and none is kept.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import click

from racevisor.cli import cli

DOCS = Path(__file__).resolve().parent
FOLDER = "reports"
#: what is replaced by the list of all reports
LIST = "<!-- all reports -->"
STYLE = "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.6 serif}li{margin:1rem 0}:root{color-scheme:light dark}"
_BLOCK = re.compile(r"^```sh\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class Shown(NamedTuple):
    """A command that a page shows: its words, the file that it makes, and the page's title."""

    words: list[str]
    file: str
    title: str

    def make(self, directory: Path) -> Path:
        """Run it."""
        target = directory / self.file
        at = self.words.index("-o")
        cli.main([*self.words[1:at], "-o", str(target), *self.words[at + 2 :]], prog_name="racevisor", standalone_mode=False)
        return target


def shown_in(text: str) -> Iterator[Shown]:
    """The reports of scenarios that a page shows, in its order; those of traces are made where there is a trace."""
    title = re.search(r"^# (.*)$", text, re.MULTILINE)
    for block in _BLOCK.finditer(text):
        for line in block[1].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["racevisor", "report"] and "-o" in words and "/" not in words[2] and "." not in words[2]:
                file = words[words.index("-o") + 1]
                if file.endswith(".html"):
                    yield Shown(words, file, title[1] if title else file)


def all_shown() -> list[Shown]:
    """Those of all pages."""
    return [one for page in sorted(DOCS.rglob("*.md")) for one in shown_in(page.read_text(encoding="utf-8"))]


def on_files(files: Any, config: Any) -> Any:
    """Of mkdocs: the reports are files of the site."""
    from mkdocs.structure.files import File

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for one in all_shown():
            made = one.make(Path(folder)).read_text(encoding="utf-8")
            files.append(File.generated(config, f"{FOLDER}/{one.file}", content=made))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Of mkdocs: below each command stands a link to what it makes."""
    here = posixpath.dirname(page.file.src_uri)

    def link(one: Shown, text: str) -> str:
        return f"[{text}]({posixpath.relpath(f'{FOLDER}/{one.file}', here or '.')})"

    def linked(block: re.Match[str]) -> str:
        links = [f"{link(one, 'Open this report')}{{ .md-button }}\n" for one in shown_in(block[0])]
        return "\n".join([block[0], *links])

    listed = "\n".join(f"* {link(one, one.title)}" for one in all_shown()) if LIST in markdown else ""
    return _BLOCK.sub(linked, markdown).replace(LIST, listed)


def main(directory: Path) -> None:
    """All of them, and a front page."""
    reports = all_shown()
    for one in reports:
        one.make(directory)
    rows = "\n".join(
        f'<li><a href="{escape(one.file)}">{escape(one.title)}</a><br><code>{escape(shlex.join(one.words))}</code></li>'
        for one in reports
    )
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>racevisor: before and after</title><style>{STYLE}</style></head>
<body><h1>Before and after</h1><p>A race, why it is one, and the patch under the same schedule.</p><ul>
{rows}
</ul></body></html>
"""
    (directory / "index.html").write_text(text, encoding="utf-8")
    click.echo(f"racevisor: the list of them is {directory / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER))
