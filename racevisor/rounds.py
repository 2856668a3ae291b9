"""What the rounds of a live run have shown so far, counted; the first bad ones are saved as traces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from racevisor import trace
from racevisor.errors import RacevisorError
from racevisor.scenario import Always, Case, Never
from racevisor.start import INTERRUPTED

#: bad rounds saved as traces; the others are counted
TRACES = 20
#: so many outcomes are counted each by itself, the rest as one
OUTCOMES = 1_000
OTHERS = "other outcomes"


def logs_of(case: Case, trace_dir: Path | None) -> Path:
    """Where a run's logs go unless it is said."""
    return trace.trace_folder(case, trace_dir) / "logs"


class Tally:
    """The results so far: they outlive whatever ends the run."""

    def __init__(self, case: Case, seed: int, trace_dir: Path | None, log_dir: Path) -> None:
        self.case = case
        self.seed = seed
        self.folder = trace.trace_folder(case, trace_dir)
        self.log_dir = log_dir
        self.run_id = ""
        self.rounds = self.bad = self.stuck = 0
        self.outcomes: Counter[str] = Counter()
        self.bad_outcomes: Counter[str] = Counter()
        self.traces: list[Path] = []
        self.first_bad: Any = None
        self.waiting: tuple[str, ...] = ()  # at its end, who waits for what
        self.first_number = 0
        self.placement = ""
        self.aborted: list[Any] = []  # rounds that were given up because a host was lost, as the live run counts them
        self.messages = self.crossed = 0
        self.interrupted = False
        self.problem: RacevisorError | None = None
        self.unsaved: RacevisorError | None = None
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the first round began."""
        return time.perf_counter() - self.started

    def rounds_of(self, live: Any) -> Iterator[Any]:
        """Play what is left of a live run that has begun; each round is given out once it is counted."""
        self.run_id = live.run
        self.placement, self.aborted = str(live.plan), live.aborted
        self.started = time.perf_counter()
        for played in live.rounds():
            self.add(played)
            yield played

    def add(self, played: Any) -> None:
        """One more round."""
        stuck = any(violation.step is None for violation in played.violations)
        self.count(played.outcome, bool(played.violations), stuck, played.messages, played.crossed)
        if not played.violations or (self.first_bad is not None and len(self.traces) >= TRACES):
            return
        recorded = trace.of(self.case, played, seed=self.seed, strategy="live", recorded_by=trace.LIVE)
        if self.first_bad is None:
            self.first_bad, self.first_number, self.waiting = recorded, played.number, played.waiting
        if len(self.traces) < TRACES and self.unsaved is None:
            path = self.folder / trace.trace_name(self.case, f"-live-{self.run_id}-{played.number}")
            try:
                trace.save(recorded, path)
                self.traces.append(path)
            except RacevisorError as error:
                self.unsaved = error

    def count(self, outcome: str, bad: bool, stuck: bool, messages: int, crossed: int) -> None:
        """One more round, in numbers."""
        if len(self.outcomes) >= OUTCOMES and outcome not in self.outcomes:
            outcome = OTHERS
        self.rounds += 1
        self.messages += messages
        self.crossed += crossed
        self.outcomes[outcome] += 1
        if bad:
            self.bad += 1
            self.bad_outcomes[outcome] += 1
            self.stuck += stuck

    @property
    def aborted_rounds(self) -> int:
        """How many rounds were given up; they are no outcomes."""
        return sum(len(gone.numbers) for gone in self.aborted)

    @property
    def as_claimed(self) -> bool:
        """Never: no bad round.  Always: no good one.  Sometimes: any number, for not meeting it refutes nothing."""
        if self.case.claimed == Never:
            return self.bad == 0
        return self.case.claimed != Always or self.bad == self.rounds

    @property
    def exit_status(self) -> int:
        """What ended the run early goes before what it found."""
        if self.interrupted:
            return INTERRUPTED
        problem = self.problem or self.unsaved
        return problem.exit_status if problem else 0 if self.as_claimed else 1
