"""`racevisor stress`: rounds until the time or a count is up, in a directory from which they can be resumed.

The directory holds `stress.json` (what is played, and the counts), `driver.jsonl` (a line for each round; bounded in size) and
the traces of the first bad rounds.  `stress.json` is replaced, whole, now and then; what was finished since is in the log, so
that a driver that is killed at any moment loses no finished round.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from racevisor.commands.output import console, error_line, print_json, quiet_if
from racevisor.commands.run import play, print_results, tally_json
from racevisor.errors import UsageError
from racevisor.events import older_file
from racevisor.reason import Wish
from racevisor.rounds import Tally
from racevisor.scenario import Case, default_setup, load, require
from racevisor.whole import write_whole

FORMAT, VERSION = "racevisor-stress", 1
FILE = "stress.json"
#: how often the counts are written, in seconds
SAVE_EVERY = 1.0
#: how often a line of progress is written where there is no terminal, in seconds
PLAIN_EVERY = 10.0
#: vCPUs, if none are asked for and the scenario can have so many
VCPUS = 64
UNLIMITED = 2**53
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COUNTS = ("rounds", "bad", "stuck", "messages", "crossed", "aborted")


def seconds_of(text: str) -> float:
    """`90`, `90s`, `1.5m`, `2h` in seconds; UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found.group(2) not in _UNITS or not float(found.group(1)):
        raise UsageError(f"{text!r} is no duration\n  like this:  --duration 90s, --duration 10m, --duration 1.5h")
    return float(found.group(1)) * _UNITS[found.group(2)]


class Book:
    """The directory of a stress: what is played, and what came of it so far."""

    def __init__(self, directory: Path, tally: Tally, what: dict[str, Any]) -> None:
        self.directory = directory
        self.tally = tally
        self.what = what
        self.next = 0  # number of the next round to begin
        self.before = 0.0  # seconds that were played before this process
        self.aborted_before = 0
        self._saved = 0.0

    @property
    def aborted(self) -> int:
        """Rounds that were given up, in all."""
        return self.aborted_before + self.tally.aborted_rounds

    def state(self, seconds: float, done: bool) -> dict[str, Any]:
        """What stress.json holds."""
        tally = self.tally
        return {
            "format": FORMAT,
            "version": VERSION,
            "what": self.what,
            "next": self.next,
            "seconds": round(self.before + seconds, 3),
            "done": done,
            "counts": {name: getattr(tally, name) for name in _COUNTS if name != "aborted"} | {"aborted": self.aborted},
            "outcomes": dict(tally.outcomes),
            "bad_outcomes": dict(tally.bad_outcomes),
            "traces": [path.name for path in tally.traces],
        }

    def save(self, seconds: float, *, done: bool = False, now: bool = True) -> None:
        """Replace stress.json, whole; UsageError if that does not succeed."""
        if not now and time.perf_counter() - self._saved < SAVE_EVERY:
            return
        path = self.directory / FILE
        try:
            write_whole(path, (json.dumps(self.state(seconds, done), indent=1) + "\n").encode(), alone=True)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}: {error.strerror or error}\n  choose another place:  --dir DIRECTORY"
            ) from error
        self._saved = time.perf_counter()

    def load(self, state: dict[str, Any]) -> None:
        """Go on where stress.json stopped, and count what the log has since."""
        tally = self.tally
        self.next, self.before = state["next"], state["seconds"]
        for name in _COUNTS[:-1]:
            setattr(tally, name, state["counts"][name])
        self.aborted_before = state["counts"]["aborted"]
        tally.outcomes, tally.bad_outcomes = Counter(state["outcomes"]), Counter(state["bad_outcomes"])
        tally.traces = [self.directory / name for name in state["traces"]]
        for line in self._logged():
            if line["event"] == "aborted":
                numbers = [number for number in line["rounds"] if number >= self.next]
                self.aborted_before += len(numbers)
                self.next = max([self.next, *(number + 1 for number in numbers)])
            elif line["event"] == "round" and line["count"] > tally.rounds:
                stuck = any(violation["step"] is None for violation in line["violations"])
                tally.count(line["outcome"], bool(line["violations"]), stuck, line["messages"], line["crossed"])
                self.next = max(self.next, line["round"] + 1)

    def _logged(self) -> Iterator[dict[str, Any]]:
        """The events of the driver's log that are whole, from the last file but one on."""
        path = self.directory / "driver.jsonl"
        for file in (older_file(path, 1), path):
            with contextlib.suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as lines:
                for text in lines:
                    with contextlib.suppress(ValueError):  # the last line may be cut off
                        line = json.loads(text)
                        if isinstance(line, dict) and line.get("event") in ("round", "aborted"):
                            yield line


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
            book, seconds, wanted = _resumed(resume, duration, rounds)
            if live.get("address") is not None:  # the cluster of before may be gone for good
                book.what["live"]["address"] = live["address"]
        elif name is not None:
            book, seconds, wanted = _begun(name, variant, setup, memory, vcpus, duration, rounds, directory, live)
        else:
            raise UsageError("what shall be stressed?\n  racevisor stress NAME, or racevisor stress --resume DIRECTORY")
        tally, what = book.tally, book.what
        options = make_options(
            rounds=UNLIMITED if wanted is None else max(0, wanted - tally.rounds),
            duration=None if seconds is None else max(0.0, seconds - book.before),
            first=book.next,
            finished=tally.rounds,
            log_dir=book.directory,
            bounded_log=True,
            **what["live"],
        )
        if options.rounds and options.duration != 0.0:
            book.save(0.0)
            _play(make_run(tally.case, options), book, options)
        done = not (tally.interrupted or tally.problem)
        with contextlib.suppress(UsageError):  # the disk may be full: what there is to say is said below
            book.save(tally.seconds, done=done)
    played = book.before + tally.seconds
    if json_:
        found = tally_json(tally, played)
        print_json({**found, "aborted": book.aborted, "dir": str(book.directory), "vms": what["live"]["vms"]})
    elif tally.rounds or tally.problem is None:
        print_results(console(), tally, played, full, Wish())
        _print_directory(book, done)
    for problem in (tally.problem, tally.unsaved):
        if problem is not None:
            error_line(str(problem))
    return tally.exit_status


def _begun(
    name: str,
    variant: str | None,
    setup: str | None,
    memory: str,
    vcpus: int | None,
    duration: str | None,
    rounds: int | None,
    directory: Path | None,
    live: dict[str, Any],
) -> tuple[Book, float | None, int | None]:
    scenario, source = load(name)
    variant = require("variant", variant or next(iter(scenario.variants)), scenario.variants, scenario.name)
    setup = setup or default_setup(scenario, variant, memory)
    if vcpus is None:
        vcpus = max(scenario.vcpus, min(VCPUS, scenario.max_vcpus))
    case = Case(scenario, source, variant, setup, memory, vcpus)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    directory = directory or Path("runs") / scenario.name / f"stress-{variant}-{stamp}-{os.getpid()}"
    if (directory / FILE).exists():
        raise UsageError(f"{directory} holds a stress already\n  go on with it:  racevisor stress --resume {directory}")
    if rounds is None and duration is None:
        duration = "60s"
    path = source.path if not ("/" in source.path or source.path.endswith(".py")) else str(Path(source.path).resolve())
    what = {
        "path": path,
        "sha256": source.digest,
        "variant": variant,
        "setup": setup,
        "memory": memory,
        "vcpus": case.vcpus,
        "duration": duration,
        "rounds": rounds,
        "live": live,
    }
    tally = Tally(case, live["seed"], directory, directory)
    return Book(directory, tally, what), seconds_of(duration) if duration is not None else None, rounds


def _resumed(directory: Path, duration: str | None, rounds: int | None) -> tuple[Book, float | None, int | None]:
    """What was played in `directory`; `duration` and `rounds` may say that more is wanted now."""
    path = directory / FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        sound = state["format"] == FORMAT and state["version"] == VERSION
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it is not one of racevisor's"
        raise UsageError(f"cannot resume {directory}: {path}: {reason}\n  racevisor stress NAME begins a new one") from error
    if not sound:
        raise UsageError(f"cannot resume {directory}: {path} is of another version\n  racevisor stress NAME begins a new one")
    try:
        what = state["what"]
        scenario, source = load(what["path"])
        if source.digest != what["sha256"]:
            raise UsageError(
                f"cannot resume {directory}: {what['path']} has changed since, and counts of two machines do not add up\n"
                f"  begin a new one:  racevisor stress {what['path']}"
            )
        case = Case(scenario, source, what["variant"], what["setup"], what["memory"], what["vcpus"])
        book = Book(directory, Tally(case, what["live"]["seed"], directory, directory), what)
        book.load(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot resume {directory}: {path} is damaged ({error!r})") from error
    if duration is not None or rounds is not None:
        what["duration"], what["rounds"] = duration, rounds
    elif state.get("done"):
        raise UsageError(
            f"what was asked for in {directory} is done: {book.tally.rounds} rounds\n"
            f"  more of it:  --duration or --rounds, both counted from the very beginning"
        )
    return book, seconds_of(what["duration"]) if what["duration"] is not None else None, what["rounds"]


def _play(live: Any, book: Book, options: Any) -> None:
    """Play, with the counts on the disk as they grow; the tally keeps what ended it."""

    def after(played: Any) -> None:
        book.next = max(book.next, played.number + 1)
        book.save(book.tally.seconds, now=False)

    try:
        play(live, book.tally, options.rounds if options.rounds < UNLIMITED else None, after=after, plain=PLAIN_EVERY)
    finally:
        for gone in book.tally.aborted:
            book.next = max([book.next, *(number + 1 for number in gone.numbers)])


def _print_directory(book: Book, done: bool) -> None:
    out = console()
    out.print()
    out.print(f"  counts and log:  {book.directory}/", soft_wrap=True)
    if not done:
        out.print(f"  go on:           racevisor stress --resume {book.directory}", soft_wrap=True)
