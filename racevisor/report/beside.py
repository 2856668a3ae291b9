"""The fix beside the race: another variant of the same machine, under the schedule of the bad execution.

The two do not take the same steps, so a schedule of one is no schedule of the other.  Its channels are taken in their order as
far as they can move, a thread that is blocked is waited for, and the rest is the simplest there is: the reader sees the same
threads go on in the same order.  That it ends well shows nothing; that every execution does is said by the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import Cell
from racevisor.deviations import Player
from racevisor.errors import UsageError
from racevisor.explore import Witness, witness
from racevisor.picture import LINES, Picture
from racevisor.scenario import Case, in_table, require

#: at most so many cells are tried, in a picture of so many columns
NEWS, WIDTH = 16, 160


@dataclass
class Beside:
    """What the other variant does: is it bad as well, how does it end; `finding` and `search` say what a search found, if any."""

    variant: str
    about: str
    bad: bool
    outcome: str
    finding: str = ""
    search: str = ""


def other_case(case: Case, against: str | None) -> Case | None:
    """The cell of the variant that is asked for, or else of the scenario's fix; None if there is none to show beside `case`.

    Where a scenario does not say which variant is the fix, and has two, it is the other one.

    Raises UsageError for a variant that is not there, and for the one that is drawn already.
    """
    scenario = case.scenario
    if against is None:
        others = [name for name in scenario.variants if name != case.variant_name]
        fix = scenario.fixed if scenario.fixed in scenario.variants or len(others) != 1 else others[0]
        return case.like(fix) if fix in others and in_table(scenario, fix, case.setup) else None
    if require("variant", against, scenario.variants, scenario.name) == case.variant_name:
        raise UsageError(f"{against} is what is drawn\n  another one beside it:  {_others(case)}")
    return case.like(against)


def same_schedule(other: Case, channels: Sequence[str]) -> Witness:
    """One execution of `other` under the schedule of another variant, to its end."""
    world = other.world(automata=True)
    try:
        return witness(Player(world, "").follow(channels, patient=True).execution)
    finally:
        world.close()


def cells_alike(bad: Picture, picture: Picture) -> set[Cell]:
    """The cells of `picture` that `bad`, another execution or of another variant, is about.

    Those that only threads touch which moved in `bad`, if there are such: the others are on stage for the first time.  If none of
    them is touched, those of `judged_cells`; if there is none such either, the picture decides.
    """
    marked = {cell for n in bad.marked if (cell := bad.steps[n].cell) is not None}
    labels = {cell.label for cell in bad.watched() | marked}
    users: dict[Cell, set[str]] = {}
    for step in picture.steps:
        if step.cell is not None and step.cell.label in labels:
            users.setdefault(step.cell, set()).add(step.thread)
    moved = {step.thread for step in bad.steps}
    return {cell for cell, threads in users.items() if threads <= moved} or set(users) or judged_cells(picture)


def with_news(bad: Picture, picture: Picture, about: set[Cell]) -> set[Cell]:
    """`about`, and what a patch brings along: contended cells that `bad` knows nothing of, as long as the picture stays short."""
    known = {step.cell.label for step in bad.steps if step.cell is not None}
    moved = {step.thread for step in bad.steps}
    news = {cell for cell, threads in picture.contended().items() if cell.label not in known and threads <= moved} - about
    uses = Counter(step.cell for step in picture.steps if step.cell in news)
    shown = about
    for cell in sorted(news, key=lambda cell: (uses[cell], cell.label))[:NEWS]:
        picture.about = {*shown, cell}
        if len(picture.draw(WIDTH, lines=2 * LINES)) <= LINES:  # a picture that was cut to LINES would always fit
            shown = {*shown, cell}
    return shown


def judged_cells(picture: Picture) -> set[Cell]:
    """The cells of a good run that some check watches: what there is to see of it."""
    watched = {cell for monitor in picture.world.monitors for cell in monitor.watches}
    return {step.cell for step in picture.steps if step.cell is not None} & watched


def _others(case: Case) -> str:
    return " ".join(f"--against {name}" for name in case.scenario.variants if name != case.variant_name) or "there is none"
