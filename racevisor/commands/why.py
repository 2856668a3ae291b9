"""What explore, replay, run, explain and compare print of one bad execution: shrunk, drawn, explained."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from racevisor.commands.output import print_picture, reenact
from racevisor.reason import Reason


def print_reason(out: Console, told: Reason, *, full: bool) -> None:
    """The picture, what is wrong, how it was shrunk, why it goes wrong."""
    world, execution = reenact(told.case, told.witness.schedule, past_violations=told.past_violations)
    print_picture(out, told.case, world, execution, full=full, marked=told.pair)
    if told.shrunk is not None:
        out.print(Text(told.shrunk.sentence(), style="dim"), soft_wrap=True)
        assert told.explanation is not None
        out.print()
        for line in told.explanation.why(min(out.width, 100)):
            out.print(Text(line), soft_wrap=True)
