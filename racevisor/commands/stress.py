"""`racevisor stress`: rounds until the time or a count is up, in a directory from which they can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from racevisor.book import Book, begun, carry_out, resumed
from racevisor.commands.output import console, error_line, print_json, quiet_if
from racevisor.commands.run import play, print_results, tally_json
from racevisor.errors import UsageError
from racevisor.reason import Wish
from racevisor.rounds import Tally

#: how often a line of progress is written where there is no terminal, in seconds
PLAIN_EVERY = 10.0


def stress(
    make_options: Callable[..., Any],
    make_run: Callable[..., Any],
    *,
    name: str | None,
    resume: Path | None,
    variant: str | None,
    setup: str | None,
    memory: str,
    vcpus: int | None,
    duration: str | None,
    rounds: int | None,
    directory: Path | None,
    full: bool,
    json_: bool,
    **live: Any,
) -> int:
    """Returns the exit status."""
    with quiet_if(json_):
        if resume is not None:
            if name is not None:
                raise UsageError(f"--resume {resume} goes on with what was played there\n  leave out {name}")
            book = resumed(resume, duration, rounds, live.get("address"))
        elif name is not None:
            book = begun(name, variant, setup, memory, vcpus, duration, rounds, directory, live)
        else:
            raise UsageError("what shall be stressed?\n  racevisor stress NAME, or racevisor stress --resume DIRECTORY")
        done = carry_out(book, make_options, make_run, _play)
    tally = book.tally
    played = book.before + tally.seconds
    if json_:
        found = tally_json(tally, played)
        print_json({**found, "aborted": book.aborted, "dir": str(book.directory), "vms": book.what["live"]["vms"]})
    elif tally.rounds or tally.problem is None:
        print_results(console(), tally, played, full, Wish())
        _print_directory(book, done)
    for problem in (tally.problem, tally.unsaved):
        if problem is not None:
            error_line(str(problem))
    return tally.exit_status


def _play(live: Any, tally: Tally, rounds: int | None, after: Callable[[Any], None]) -> None:
    play(live, tally, rounds, after=after, plain=PLAIN_EVERY)


def _print_directory(book: Book, done: bool) -> None:
    out = console()
    out.print()
    out.print(f"  counts and log:  {book.directory}/", soft_wrap=True)
    if not done:
        out.print(f"  go on:           racevisor stress --resume {book.directory}", soft_wrap=True)
