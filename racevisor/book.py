"""A stress: rounds until the time or a count is up, in a directory from which they can be resumed.

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

from racevisor.errors import UsageError
from racevisor.events import older_file
from racevisor.rounds import Tally
from racevisor.scenario import Case, default_setup, load, require
from racevisor.whole import write_whole

FORMAT, VERSION = "racevisor-stress", 1
FILE = "stress.json"
#: how often the counts are written, in seconds
SAVE_EVERY = 1.0
#: vCPUs, if none are asked for and the scenario can have so many
VCPUS = 64
UNLIMITED = 2**53
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COUNTS = ("rounds", "bad", "stuck", "messages", "crossed", "aborted")

#: plays a live run of at most so many rounds (None: no end), and calls what it is given after each; errors go to the tally
Player = Callable[[Any, Tally, int | None, Callable[[Any], None]], None]


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


def begun(
    name: str,
    variant: str | None,
    setup: str | None,
    memory: str,
    vcpus: int | None,
    duration: str | None,
    rounds: int | None,
    directory: Path | None,
    live: dict[str, Any],
) -> Book:
    """A new one; `duration` is 60 s unless that or `rounds` is said.  UsageError for a directory that holds one already."""
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
    return Book(directory, Tally(case, live["seed"], directory, directory), what)


def resumed(directory: Path, duration: str | None, rounds: int | None, address: str | None = None) -> Book:
    """What was played in `directory`; `duration` and `rounds` may say that more is wanted now, `address` that it is elsewhere."""
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
    if address is not None:  # the cluster of before may be gone for good
        what["live"]["address"] = address
    return book


def carry_out(book: Book, make_options: Callable[..., Any], make_run: Callable[..., Any], play: Player) -> bool:
    """Play what is left of it, with the counts on the disk as they grow; True if all that is wanted is done.

    `make_options` and `make_run` are cluster's LiveOptions and LiveRun.
    """
    tally, what = book.tally, book.what
    duration, wanted = what["duration"], what["rounds"]
    options = make_options(
        rounds=UNLIMITED if wanted is None else max(0, wanted - tally.rounds),
        duration=None if duration is None else max(0.0, seconds_of(duration) - book.before),
        first=book.next,
        finished=tally.rounds,
        log_dir=book.directory,
        bounded_log=True,
        **what["live"],
    )

    def after(played: Any) -> None:
        book.next = max(book.next, played.number + 1)
        book.save(tally.seconds, now=False)

    if options.rounds and options.duration != 0.0:
        book.save(0.0)
        try:
            play(make_run(tally.case, options), tally, options.rounds if options.rounds < UNLIMITED else None, after)
        finally:
            for gone in tally.aborted:
                book.next = max([book.next, *(number + 1 for number in gone.numbers)])
    done = not (tally.interrupted or tally.problem)
    with contextlib.suppress(UsageError):  # the disk may be full: what there is to say is said by the caller
        book.save(tally.seconds, done=done)
    return done
