"""`racevisor explore --workers N`: the same table, searched by workers on Ray, with checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from racevisor.choose import Wanted
from racevisor.commands.output import Meter, error_line, processors
from racevisor.errors import RacevisorError, UsageError
from racevisor.explore import Verdict
from racevisor.scenario import Case
from racevisor.share.checkpoint import FILE, Checkpoint, resume
from racevisor.share.search import Sharing


class Shared:
    """What `explore` needs of a search that is shared out; `make_crew` is cluster.search.Crew."""

    def __init__(self, checkpoint: Checkpoint, make_crew: Callable[..., Any], address: str | None) -> None:
        self.checkpoint = checkpoint
        self.sharing = checkpoint.sharing
        self.make_crew = make_crew
        self.address = address
        self.problem: RacevisorError | None = None
        self.interrupted = False
        #: is nothing left to go on with?
        self.finished = False
        self._told = False

    @property
    def cases(self) -> list[Case]:
        """All cells."""
        return [cell.case for cell in self.sharing.cells]

    @property
    def seed(self) -> int:
        """As it was asked for when the search began."""
        return self.sharing.wanted.seed

    def search(self) -> list[tuple[Case, Verdict]]:
        """Search, and return what was found, whatever ended it: `problem`, or Ctrl-C (`interrupted`)."""
        sharing, directory = self.sharing, self.checkpoint.directory
        if not sharing.done:
            error_line(f"checkpoints in {directory}; whatever happens, go on with:  racevisor explore --resume {directory}")
            what = str(self.cases[0]) if len(self.cases) == 1 else f"exploring {self.cases[0].scenario.name}"
            try:
                self.checkpoint.save()
                with Meter(what, None, "executions") as meter:
                    crew = self.make_crew(
                        sharing, address=self.address, checkpoint=self.checkpoint, on_look=lambda crew: self._look(meter, crew)
                    )
                    with crew:
                        crew.run()
            except KeyboardInterrupt:
                self.interrupted = True
                self._stop("interrupted")
            except RacevisorError as error:
                self.problem = error
                self._stop("the search was stopped by an error")
            finally:
                sharing.close()
        self.finished = self.problem is None and not self.interrupted
        return sharing.verdicts()

    def _look(self, meter: Meter, crew: Any) -> None:
        if not self._told:
            self._told = True
            if self.sharing.workers > crew.cpus:
                with meter.aside():
                    error_line(f"{self.sharing.workers} workers share {crew.cpus} CPUs: more than that do not make it faster")
        executions, states, seconds, estimate = self.sharing.look()
        meter.look(executions, states, seconds, estimate, crew.alive)

    def _stop(self, why: str) -> None:
        self.sharing.give_up(why)


def begin(
    cases: list[Case],
    options: dict[str, Any],
    *,
    workers: int | None,
    address: str | None,
    directory: Path | None,
    make_crew: Callable[..., Any],
) -> Shared:
    """A search of these cells, in a directory of its own."""
    sharing = Sharing(cases, Wanted(**options), workers or processors())
    name = cases[0].scenario.name
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    directory = directory or Path("runs") / name / f"search-{stamp}-{os.getpid()}"
    if (directory / FILE).exists():
        raise UsageError(f"{directory} holds a search already\n  go on with it:  racevisor explore --resume {directory}")
    return Shared(Checkpoint(directory, sharing), make_crew, address)


def resumed(directory: Path, *, workers: int | None, address: str | None, make_crew: Callable[..., Any]) -> Shared:
    """The search of a directory, with any number of workers."""
    return Shared(resume(directory, workers or processors()), make_crew, address)
