"""`racevisor compare NAME V1 V2`: two versions of the code side by side, as text that can be pasted into a mail."""

from __future__ import annotations

from textwrap import wrap

import click

from racevisor.budget import parse
from racevisor.commands.output import Meter, print_json, quiet_if, reenact
from racevisor.picture import Picture, plain, sentences
from racevisor.reason import Wish
from racevisor.scenario import Case, default_setup, load, require
from racevisor.sides import Side, study

WIDTH = 72
_LABEL = 22


def compare_variants(
    name: str, one: str, other: str, setup: str | None, memory: str, vcpus: int | None, budget: str, as_json: bool, wish: Wish
) -> int:
    """Returns the exit status: 0 if both versions are as they are claimed to be."""
    with quiet_if(as_json):
        seconds = parse(budget)
        scenario, source = load(name)
        for variant in (one, other):
            require("variant", variant, scenario.variants, scenario.name)
        setup = setup or default_setup(scenario, one, memory)
        sides = []
        for variant in (one, other):
            case = Case(scenario, source, variant, setup, memory, vcpus)
            with Meter(str(case), None, "executions") as meter:
                sides.append(study(case, seconds, wish, meter.look))
    if as_json:
        print_json({"scenario": scenario.name, "setup": setup, "memory": memory, "sides": [side.to_json() for side in sides]})
    else:
        click.echo("\n".join(report(sides)))
    return 0 if all(side.verdict.confirmed for side in sides) else 1


def report(sides: list[Side]) -> list[str]:
    """The mail: no line is longer than 72 characters, unless a name is."""
    case = sides[0].case
    scenario = case.scenario
    names = [side.case.variant_name for side in sides]
    lines = [f"{scenario.name}: {names[0]} against {names[1]}", ""]
    if scenario.patch:
        lines += _text(f"Patch: {scenario.patch}")
    lines += _text(f"Set-up {case.setup}: {scenario.setups[case.setup].about}.")
    lines += _text(f"Memory model {case.memory}, {case.vcpus} vCPU{'' if case.vcpus == 1 else 's'}.")
    for side in sides:
        lines += _text(f"{side.case.variant_name}: {side.case.variant.about}")
    lines.append("")
    wide = (WIDTH - _LABEL) // 2
    rows = [("", *names)]
    rows.append(("bad outcome", *(side.verdict.finding for side in sides)))
    rows.append(("bad classes of all", *(side.classes for side in sides)))
    rows.append(("bad random walks", *(f"{side.walks.bad:,} of {side.walks.executions:,}" for side in sides)))
    rows.append(("verdict", *(side.verdict.verdict for side in sides)))
    rows.append(("shortest bad", *(_shortest(side) for side in sides)))
    for label, *values in rows:
        lines.append(f"{label:<{_LABEL}}{values[0]:<{wide}} {values[1]}".rstrip())
    for side in sides:
        lines += ["", *_one(side)]
    lines += ["", *_text(_counted(sides))]
    vcpus = "" if case.vcpus == scenario.vcpus else f" --vcpus {case.vcpus}"
    lines += ["", f"$ racevisor compare {case.source.path} {names[0]} {names[1]} \\"]
    lines += [f"      --setup {case.setup} --memory {case.memory}{vcpus}"]
    return lines


def _shortest(side: Side) -> str:
    told = side.reason
    if told is None:
        return "-"
    if told.shrunk is None:
        return f"{len(told.witness.schedule)} steps"
    size = told.shrunk.after
    return f"{size.steps} steps, {size.switches} switch{'' if size.switches == 1 else 'es'}"


def _one(side: Side) -> list[str]:
    """What there is to say of one version."""
    case, told = side.case, side.reason
    lines = _text(f"{case.variant_name}: {side.verdict.ledger.sentence()}")
    if told is None:
        return lines
    world, execution = reenact(case, told.witness.schedule, past_violations=told.past_violations)
    picture = Picture(case, world, execution)
    picture.marked |= told.pair
    lines += ["", *plain(picture.draw(WIDTH)).splitlines(), ""]
    for sentence in sentences(execution.violations):
        lines += _text(sentence)
    if told.shrunk is not None:
        assert told.explanation is not None
        lines += [*_text(f"({told.shrunk.sentence()})"), "", *told.explanation.why(WIDTH)]
    return lines


def _counted(sides: list[Side]) -> str:
    """How the classes were counted, and how far that came."""
    text = "Classes are Mazurkiewicz traces, counted by optimal DPOR"
    open_ = [f"of {side.case.variant_name} ({side.counted.ledger.reason})" for side in sides if not side.counted.ledger.exhausted]
    if not open_:
        return f"{text}, all of them; a class is bad if its executions break a check."
    whose = "its" if len(open_) == 1 else "their"
    return (
        f"{text}.  The count {' and that '.join(open_)} came to no end: {whose} numbers are lower limits, "
        "and their ratio says nothing of the whole."
    )


def _text(text: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
