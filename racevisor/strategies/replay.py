"""Replay: take a recorded schedule again, and stop at the first step that is not the recorded one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from racevisor.errors import NotDeterministic
from racevisor.step import Step
from racevisor.world import Channel, Execution, World

#: Which channel moved and, if it was recorded, the label of what happened then.
Pick = tuple[str, str | None]

AGAIN = (
    "the scenario or the machine has changed since this was recorded\n"
    "  record it again:  racevisor explore SCENARIO --variant VARIANT --setup SETUP --memory MODEL"
)


class Replay:
    """Follows `schedule` and compares each step with its label.  It may end where heads can still move: a run that was cut.

    The last label, and an execution that ends before its schedule does, can only be judged by `end`: call it.
    """

    def __init__(self, schedule: Sequence[Pick], *, again: str = AGAIN) -> None:
        self.schedule = schedule
        self.again = again

    def begin(self, world: World, _run: int) -> None:
        """Set out from the first pick."""
        self.world = world
        self.at = 0

    def pick(self, movable: list[Channel]) -> Channel | None:
        """The recorded channel, if the step before did what was recorded and this one can move."""
        self._compare()
        if self.at == len(self.schedule):
            return None
        name, label = self.schedule[self.at]
        channel = self.world.channels.get(name)
        if channel is None or channel.at < 0:
            can = _listed(sorted(c.name for c in movable))
            if channel is None and name not in self.world.vm.by_name:
                can += f" can move; the threads here are {_listed([t.actor.name for t in self.world.threads])}"
            else:
                can += " can move"
            self._differs(self.at, name, label, f"only {can}")
        self.at += 1
        return channel

    def end(self, execution: Execution) -> bool:
        """Judge the last step, and whether all of the schedule was taken."""
        self._compare()
        if self.at < len(self.schedule):
            name, label = self.schedule[self.at]
            reason = {
                "terminal": "nothing can move any more",
                "violated": f"the run has ended with {execution.violations[:1]}",
                "bounded": f"the run was cut at the bound of {self.world.max_steps} steps",
            }.get(execution.status, f"the run has ended ({execution.status})")
            self._differs(self.at, name, label, reason)
        return False

    def _compare(self) -> None:
        steps: list[Step] = self.world.steps
        if not self.at or len(steps) < self.at:
            return
        name, label = self.schedule[self.at - 1]
        happened = steps[self.at - 1].label
        if label is not None and label != happened:
            self._differs(self.at - 1, name, label, f"what happens is  {happened}")

    def _differs(self, n: int, name: str, label: str | None, what: str) -> NoReturn:
        wanted = f"{name}:  {label}" if label is not None else name
        raise NotDeterministic(f"replay diverged: step {n} wants {wanted}\n  but {what}\n  {self.again}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Names as a sentence has them; a machine may have hundreds."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "nothing"
