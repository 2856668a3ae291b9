"""What the commands share: consoles, JSON, pictures, the lines to paste."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from racevisor.budget import words
from racevisor.estimate import Estimate
from racevisor.ledger import short
from racevisor.monitor import Violation
from racevisor.picture import ASCII, DIM, FATAL, HEADING, PLAIN, TITLE, UNICODE, Glyphs, Line, Picture, sentences
from racevisor.reenact import reenact as reenact
from racevisor.scenario import Case
from racevisor.world import Execution, World

REFRESH = 5  # times a second
_STYLES = {PLAIN: "", FATAL: "bold red", HEADING: "cyan", DIM: "dim", TITLE: "bold"}


def console() -> Console:
    """Standard output; plain where it is no terminal."""
    return Console(highlight=False, markup=False, emoji=False)


def glyphs(out: Console) -> Glyphs:
    """Box drawing on a terminal that can, ASCII for pipes and TERM=dumb."""
    return UNICODE if out.is_terminal and not out.is_dumb_terminal and "utf" in out.encoding.lower() else ASCII


def print_json(value: dict[str, Any]) -> None:
    """The one object of --json."""
    click.echo(json.dumps(value, indent=2))


def violation_json(violation: Violation) -> dict[str, Any]:
    """A violation for machines."""
    return {"check": violation.check, "text": violation.text, "step": violation.step, "fatal": list(violation.fatal)}


def error_line(message: str) -> None:
    """A message that is no result."""
    click.echo(f"racevisor: {message}", err=True)


def print_picture(
    out: Console, case: Case, world: World, execution: Execution, *, full: bool, marked: Iterable[int] = ()
) -> None:
    """The interleaving, then what is wrong with it; `marked` are steps to be shown and marked like those that the check names."""
    picture = Picture(case, world, execution)
    picture.marked.update(marked)
    for line in picture.draw(out.width, full=full, glyphs=glyphs(out)):
        out.print(_text(line), soft_wrap=True)
    if picture.landings_shown:
        out.print("  ~ a posted store reaches memory: from here on others see it", style="dim", soft_wrap=True)
    out.print()
    for sentence in sentences(execution.violations):
        out.print(Text(sentence, style="bold red"))
    if not execution.violations:
        out.print(Text("nothing wrong in this run", style="green"))
    if execution.outcome is not None:
        out.print(Text(f"ends with: {execution.outcome}"))


def _text(line: Line) -> Text:
    return Text.assemble(*((text, _STYLES[style]) for text, style in line))


def print_paste_lines(out: Console, case: Case, trace: Path | None) -> None:
    """Lines to paste: replay it, explain it, and run it live."""
    out.print()
    if trace is not None:
        out.print(f"  replay it:    racevisor replay {shlex.quote(str(trace))}", soft_wrap=True)
        out.print(f"  explain it:   racevisor explain {shlex.quote(str(trace))}", soft_wrap=True)
    out.print(f"  run it live:  racevisor run {live_arguments(case)}", soft_wrap=True)


def live_arguments(case: Case) -> str:
    """The arguments that name a case on the command line of `run`."""
    name = shlex.quote(case.source.path)
    vcpus = "" if case.vcpus == case.scenario.vcpus else f" --vcpus {case.vcpus}"
    return f"{name} --variant {case.variant_name} --setup {case.setup} --memory {case.memory}{vcpus} --rounds 200"


class Meter:
    """Progress on standard error: on a terminal once something has taken a second, at most five times a second.

    Where it is no terminal there is none, or a line every `plain` seconds.
    """

    def __init__(self, what: str, of: int | None, unit: str, plain: float | None = None) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        text = TextColumn("{task.fields[text]}")
        bar = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        self._progress = Progress(
            *(bar if of is not None else ()),
            text,
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=REFRESH,
        )
        self._next = 0.0
        self._begun = 0.0
        self._unit = unit
        self._what = what
        self._plain = plain if not self._console.is_terminal or self._console.is_dumb_terminal else None
        self._task = self._progress.add_task(what, total=of, text="")
        self._timer = threading.Timer(1.0, self._progress.start)
        self._timer.daemon = True

    def __enter__(self) -> Meter:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        if self._progress.live.is_started:  # stopping what never started would print an empty line
            self._progress.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Out of the way while something is printed."""
        shown = self._progress.live.is_started
        if shown:
            self._progress.stop()
        yield
        if shown:
            self._progress.start()

    def update(self, done: int, messages: int = 0, note: str = "") -> None:
        """So many are done, with so many messages, and something to note."""
        now = time.perf_counter()
        self._begun = self._begun or now
        seconds = now - self._begun
        rates = f"{done / seconds:,.1f} {self._unit}/s" if seconds else ""
        if messages and seconds:
            rates += f", {short(int(messages / seconds))} messages/s"
        text = ", ".join(filter(None, (rates, note)))
        if self._plain is not None and now >= self._next:
            if self._next:
                click.echo(f"{self._what}: {done} {self._unit} in {seconds:.0f} s: {text}", err=True)
            self._next = now + self._plain
        self._progress.update(self._task, completed=done, text=text)

    def look(
        self, executions: int, states: int, seconds: float, estimate: Callable[[], Estimate | None], workers: int = 0
    ) -> None:
        """One search is so far, with so many workers if it is shared out; the estimate is made only if it is shown."""
        if self._progress.live.is_started and seconds >= self._next:
            self._next = seconds + 1 / REFRESH
            line = progress_line(executions, states, seconds, estimate())
            self._progress.update(self._task, text=line + (f"  {workers} workers" if workers else ""))


def progress_line(executions: int, states: int, seconds: float, estimate: Estimate | None) -> str:
    """How far a search is, in one line of less than 70 characters."""
    parts = [f"{short(executions)} executions", *([f"{short(states)} states"] if states else [])]
    parts.append(f"{short(executions / seconds if seconds else 0)}/s")
    if estimate is not None:
        parts.append(f"of ~{short(estimate.total)} ({short(estimate.low)}-{short(estimate.high)})")
        if estimate.seconds_left is not None:
            parts.append(f"ETA {words(estimate.seconds_left)}")
    return "  ".join(parts)


def processors() -> int:
    """How many processes may run at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def quiet_if(as_json: bool) -> Iterator[None]:
    """With --json, whatever a scenario or a library prints goes to standard error."""
    if not as_json:
        yield
        return
    kept, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = kept
