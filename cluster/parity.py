"""The law of parity: what happened on Ray is an execution of the World, step for step, and ends in the same state."""

from __future__ import annotations

from typing import Any, NamedTuple

from racevisor.errors import NotDeterministic
from racevisor.scenario import Case
from racevisor.world import Execution, World


class Report(NamedTuple):
    """What one host brought home; `bounded`: it stopped at the step bound; `said`: how many messages it sent."""

    log: list[tuple[int, str, str]]
    cells: list[tuple[int, Any]]
    state: list[tuple[str, Any]]
    bounded: bool
    said: int


def merge(reports: list[Report]) -> list[tuple[str, str]]:
    """The (channel, label) of every step in one order: by Lamport clock, then by host.

    A step that follows from another has a later clock, and two steps on one cell are in the log of one host; so any such order
    is one in which the World could have picked.
    """
    entries = sorted((clock, host, channel, label) for host, report in enumerate(reports) for clock, channel, label in report.log)
    return [(channel, label) for _, _, channel, label in entries]


def replay(case: Case, world: World, round_: int, reports: list[Report], schedule: list[tuple[str, str]]) -> Execution:
    """Take the steps of a live round in the World, and compare every label, and the state at the end.

    Raises NotDeterministic where it differs.  Unlike a search, it goes on after a violation: the round did.
    """
    world.reset()
    where = f"live round {round_} of {case}"
    for n, (name, label) in enumerate(schedule):
        channel = world.channels.get(name)
        if channel is None or channel.at < 0:
            movable = ", ".join(sorted(c.name for c in world.movable)) or "nothing"
            raise NotDeterministic(f"{where}: step {n} was {name} ({label}), but in the World only {movable} can move there")
        step = world.step(channel)
        if step.label != label:
            raise NotDeterministic(f"{where}: step {n} of {name} was {label}, but in the World it is {step.label}")
    bounded = any(report.bounded for report in reports)
    if world.movable and not bounded:
        movable = ", ".join(sorted(c.name for c in world.movable))
        raise NotDeterministic(f"{where} ended after {len(schedule)} steps, but in the World {movable} can still move")
    _compare(where, world, reports)
    violations = list(world.violations)
    outcome = None
    status = "bounded" if bounded else "violated" if violations else "terminal"
    if not bounded:
        violations += case.check(world.vm)
        outcome = case.scenario.outcome(world.vm)
    return Execution(round_, world.steps, status, violations, outcome)


def _compare(where: str, world: World, reports: list[Report]) -> None:
    different: list[str] = []
    for report, actor in zip(reports, world.vm.actors, strict=True):
        for index, value in report.cells:
            cell = world.vm.cells[index]
            if cell.value != value:
                different.append(f"{cell.label} is {value!r} live and {cell.value!r} in the World")
        for name, value in report.state:
            own = getattr(actor, name)
            if own != value:
                different.append(f"{actor.name}.{name} (private) is {value!r} live and {own!r} in the World")
    if different:
        raise NotDeterministic(f"{where} ends in another state than its replay in the World:\n  " + "\n  ".join(different))
