"""`racevisor explain FILE`: why the run of a trace went wrong, in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from racevisor.api import explain
from racevisor.commands.output import (
    console,
    glyphs,
    print_json,
    print_paste_lines,
    print_picture,
    quiet_if,
    reenact,
)
from racevisor.explain import Explanation, good_picture
from racevisor.picture import Picture, plain, sentences
from racevisor.reason import Reason, Wish


def explain_trace(file: Path, scenario: str | None, full: bool, as_json: bool, wish: Wish) -> int:
    """Returns the exit status: 0, or 3 if the run does not reproduce.  Raises UsageError for a trace with nothing wrong in it."""
    with quiet_if(as_json):
        told = explain(file, scenario, seconds=wish.seconds)
        case = told.case
        explanation = told.explanation
        assert explanation is not None
        assert told.shrunk is not None
    if as_json:
        print_json(_as_json(file, told))
        return 0
    out = console()
    world, shown = reenact(case, told.witness.schedule)
    out.print(Text(f"{case}: {told.shrunk.sentence()}", style="bold"), soft_wrap=True)
    out.print()
    good = _good(explanation, out, full)
    if good and out.width >= 160:
        picture = Picture(case, world, shown)
        picture.marked |= told.pair
        _beside(out, plain(picture.draw(out.width // 2 - 2, full=full, glyphs=glyphs(out))), good)
        out.print()
        for sentence in sentences(shown.violations):
            out.print(Text(sentence, style="bold red"))
    else:
        out.print(Text("The bad execution", style="bold"))
        print_picture(out, case, world, shown, full=full, marked=told.pair)
        if good:
            out.print()
            out.print(Text("The nearest good one", style="bold"))
            out.print(Text(good), soft_wrap=True)
            out.print(Text(f"ends with: {explanation.pairs[0].reversal.outcome}"))
    out.print()
    for line in explanation.whole(min(out.width, 100)):
        out.print(Text(line), soft_wrap=True)
    print_paste_lines(out, case, file)
    return 0


def _good(explanation: Explanation, out: Console, full: bool) -> str:
    """The picture of the nearest good execution; the pair is marked."""
    drawn = good_picture(explanation)
    if drawn is None:
        return ""
    picture, left = drawn
    lines = plain(picture.draw(out.width // 2 - 2 if out.width >= 160 else out.width, full=full, glyphs=glyphs(out)))
    return f"{lines}\n  ... and {left:,} more steps, in which nothing goes wrong" if left else lines


def _beside(out: Console, bad: str, good: str) -> None:
    left, right = bad.splitlines(), good.splitlines()
    wide = out.width // 2
    out.print(Text(f"{'The bad execution':<{wide}}The nearest good one", style="bold"))
    for n in range(max(len(left), len(right))):
        one = left[n] if n < len(left) else ""
        other = right[n] if n < len(right) else ""
        out.print(Text(f"{one:<{wide}}{other}"), soft_wrap=True)


def _as_json(file: Path, told: Reason) -> dict[str, Any]:
    case = told.case
    return {
        "trace": str(file),
        "scenario": case.scenario.name,
        "variant": case.variant_name,
        "setup": case.setup,
        "memory": case.memory,
        "vcpus": case.vcpus,
        "outcome": told.witness.outcome,
        "schedule": [list(pick) for pick in told.witness.schedule],
        **told.to_json(),
    }
