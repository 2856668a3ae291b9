"""What the log of a directory says: how many rounds were played, and how they ended.

`racevisor run` and `stress` write an event for each round into driver.jsonl, beside the traces or below them.  A log may be cut
off anywhere, and may hold the runs of several cases; of a stress, whose log is bounded, the counts are in stress.json.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from racevisor.events import OLDER, older_file

LOG, COUNTS = "driver.jsonl", "stress.json"


@dataclass
class Rounds:
    """The rounds of one case."""

    case: str
    rounds: int = 0
    bad: int = 0
    stuck: int = 0
    aborted: int = 0
    messages: int = 0
    seconds: float = 0.0
    runs: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    bad_outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, event: dict[str, Any]) -> None:
        """One `round` event; raises KeyError or TypeError for what is none."""
        violations = event["violations"]
        outcome = str(event["outcome"])
        bad, stuck = bool(violations), any(violation["step"] is None for violation in violations)
        messages, seconds, run = int(event["messages"]), float(event["seconds"]), str(event.get("run", ""))
        self.rounds += 1
        self.outcomes[outcome] += 1
        self.bad += bad
        self.stuck += stuck
        self.messages += messages
        self.seconds += seconds
        self.runs.add(run)
        if bad:
            self.bad_outcomes[outcome] += 1


def rounds_of(directory: Path) -> list[Rounds]:
    """The rounds played in and below `directory`, by case, in the order in which the log has them."""
    found: dict[str, Rounds] = {}
    aborted = 0
    for event in _events(directory):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if event.get("event") == "aborted":
                aborted += len(event["rounds"])
            elif event.get("event") == "round":
                name = f"{event['scenario']} {event['variant']}/{event['setup']}/{event['memory']}"
                found.setdefault(name, Rounds(name)).add(event)
    cases = list(found.values())
    if cases:
        cases[0].aborted = aborted
    return [_whole(directory, cases[0]), *cases[1:]] if cases else []


def _whole(directory: Path, logged: Rounds) -> Rounds:
    """Of a stress: all its counts, also those whose lines the log has dropped."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        state = json.loads((directory / COUNTS).read_text(encoding="utf-8"))
        counts = state["counts"]
        if int(counts["rounds"]) > logged.rounds:
            return Rounds(
                logged.case,
                rounds=int(counts["rounds"]),
                bad=int(counts["bad"]),
                stuck=int(counts["stuck"]),
                aborted=int(counts["aborted"]),
                messages=int(counts["messages"]),
                seconds=float(state["seconds"]),
                runs=logged.runs,
                outcomes=_counts(state["outcomes"]),
                bad_outcomes=_counts(state["bad_outcomes"]),
            )
    return logged


def _counts(told: dict[str, Any]) -> Counter[str]:
    return Counter({str(name): int(count) for name, count in told.items()})


def _events(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.rglob(LOG)):
        for file in (*(older_file(path, number) for number in range(OLDER, 0, -1)), path):
            with contextlib.suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError):  # the last line may be cut off
                        event = json.loads(line)
                        if isinstance(event, dict):
                            yield event


def traces_in(directory: Path) -> list[Path]:
    """The traces in and below a directory in the order of their names, numbers as numbers; shrunk ones last."""

    def key(path: Path) -> tuple[bool, list[tuple[int, str]]]:
        parts = re.split(r"(\d+)", path.relative_to(directory).as_posix())
        return "shrunk" in path.stem, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(directory.rglob("*.trace"), key=key)
