"""`racevisor verify`: every claim of every scenario against what a search finds; and the page of all claims."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from racevisor import table
from racevisor.budget import parse, words
from racevisor.commands.catalogue import story
from racevisor.commands.explore import claims_json, duration, print_summary, print_table, refuted
from racevisor.commands.output import Meter, console, print_json, processors, quiet_if
from racevisor.errors import Unfinished
from racevisor.explore import Verdict, claimed_cells
from racevisor.ledger import short
from racevisor.memory import MODELS
from racevisor.scenario import Case, Never, Scenario, built_in, claim, in_table, load

#: so many claims that were not confirmed are named; of more only the number is
_NAMED = 20
_REFUTED, _OPEN = "!", "?"
_LEGEND = "Never, Always: all that can be reached was searched.  Sometimes: a bad and a good execution were met."
_MARKS = f"{_REFUTED} refuted   {_OPEN} not decided"


def verify(
    names: tuple[str, ...],
    variants: tuple[str, ...],
    setups: tuple[str, ...],
    memories: tuple[str, ...],
    budget: str | None,
    jobs: int | None,
    full: bool,
    as_json: bool,
) -> int:
    """Search every cell asked for; returns the exit status: 0 if every claim is confirmed."""
    began = time.perf_counter()
    failure: Exception | None = None
    interrupted = False
    with quiet_if(as_json):
        wanted = claimed_cells(names or built_in(), variants, setups, memories)
        options = {} if budget is None else {"budget": parse(budget)}
        found = _Found(wanted, None if as_json else console(), full)
        try:
            interrupted = found.search(jobs or min(processors(), len(wanted)), options)
        except Exception as error:
            failure = error
    elapsed = time.perf_counter() - began
    everything = [v for _, verdicts in found.scenarios for v in verdicts]
    confirmed = sum(v.confirmed for v in everything)
    if failure is not None and not everything:
        raise failure
    if not as_json:
        _print_end(console(), found, everything, elapsed, interrupted, failed=failure is not None)
    if failure is not None:
        message = (
            f"  stopped there, after {len(everything):,} of {len(wanted):,} cells; what was found before is on standard output"
        )
        raise Unfinished(message, _as_json(found, everything, elapsed, interrupted)) from failure
    if as_json:
        print_json(_as_json(found, everything, elapsed, interrupted))
    return 130 if interrupted else 0 if confirmed == len(wanted) else 1


class _Found:
    """The verdicts so far, scenario by scenario; each scenario's table is printed when it is complete."""

    def __init__(self, wanted: list[Case], out: Console | None, full: bool) -> None:
        self.wanted = wanted
        self.out = out
        self.full = full
        #: the cells of each scenario, and the verdicts on them
        self.scenarios = [(list(cells), list[Verdict]()) for _, cells in groupby(wanted, key=lambda case: case.source.path)]

    def search(self, jobs: int, options: dict[str, Any]) -> bool:
        """Fill `scenarios`; True if Ctrl-C ended it early.  If a scenario raises, what was found before it has been printed."""
        interrupted = False
        first = 0
        with (
            Meter("verifying", len(self.wanted), "cells") as meter,
            table.Table(self.wanted, jobs, lambda done, _: meter.update(done), options) as found,
        ):
            for cells, verdicts in self.scenarios:
                places = range(first, first + len(cells))
                first += len(cells)
                try:
                    if not interrupted:
                        for n in places:
                            verdicts.append(found.settle(n))
                except KeyboardInterrupt:
                    interrupted = True
                finally:
                    if interrupted:  # what was found before its turn came is not lost either
                        verdicts[:] = [found.done[n] for n in places if n in found.done]
                    if self.out is not None and verdicts:
                        with meter.aside():
                            self._print(self.out, cells[0].scenario, verdicts)
        return interrupted

    def _print(self, out: Console, scenario: Scenario, verdicts: list[Verdict]) -> None:
        out.print(Text(scenario.name, style="bold"), Text(f"  {scenario.patch}" if scenario.patch else "", style="dim"), sep="")
        if self.full:
            print_table(out, verdicts)
        else:
            _print_folded(out, verdicts)
        out.print()


# ---- tables -----------------------------------------------------------------------------------------------------------------


def _print_folded(out: Console, verdicts: list[Verdict]) -> None:
    """A row for each set-up, the memory models side by side; set-ups where all is Never, as claimed, share a row."""
    models = [model for model in MODELS if any(v.memory == model for v in verdicts)]
    shown = _plain_table()
    for heading in ("variant", "set-up"):
        shown.add_column(heading, overflow="fold")
    for model in models:
        shown.add_column(model, no_wrap=True, min_width=10)
    for heading in ("runs", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for variant, cells in groupby(verdicts, key=lambda v: v.variant):
        name = variant
        for setup, row in _rows(list(cells)):
            by_model = {model: [v for v in row if v.memory == model] for model in models}
            found = [_cell(those) for those in by_model.values()]
            runs, seconds = sum(v.executions for v in row), sum(v.seconds for v in row)
            shown.add_row(Text(name, style="bold"), Text(setup), *found, short(runs), duration(seconds))
            name = ""
    out.print(shown)


def _rows(verdicts: list[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    """(what to call it, its verdicts) for each row of one variant."""
    setups = [(setup, list(cells)) for setup, cells in groupby(verdicts, key=lambda v: v.setup)]
    quiet = [setup for setup, cells in setups if all(v.confirmed and v.found == Never for v in cells)]
    folded = quiet if len(quiet) > 1 else []
    for setup, cells in setups:
        if setup not in folded:
            yield setup, cells
    if folded:
        name = f"all {len(setups)}" if len(folded) == len(setups) else f"{len(folded)} others"
        yield name, [v for setup, cells in setups if setup in folded for v in cells]


def _cell(verdicts: list[Verdict]) -> Text:
    """The word found, with a mark if it does not bear the claim out."""
    if not verdicts:
        return Text("-", style="dim")
    worst = next((v for v in verdicts if not v.confirmed), verdicts[0])
    if worst.confirmed:
        return Text(worst.finding, style="dim" if worst.finding == Never else "")
    return Text(worst.finding + (_REFUTED if refuted(worst) else _OPEN), style="bold red" if refuted(worst) else "yellow")


def _plain_table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")


def _print_end(
    out: Console, found: _Found, everything: list[Verdict], elapsed: float, interrupted: bool, *, failed: bool
) -> None:
    """What must be on the last screen: a line for each scenario, what was not confirmed, the sum of it all."""
    totals = _plain_table()
    totals.add_column("scenario", overflow="fold")
    for heading in ("cells", "confirmed", "exhausted", "settled", "runs", "time"):
        totals.add_column(heading, justify="right", no_wrap=True)
    for cells, verdicts in found.scenarios:
        counts = (sum(v.confirmed for v in verdicts), *_verdicts(verdicts)[:2])
        runs, seconds = sum(v.executions for v in verdicts), sum(v.seconds for v in verdicts)
        row = [f"{number:,}" for number in (len(cells), *counts)]
        totals.add_row(Text(cells[0].scenario.name, style="bold"), *row, short(runs), duration(seconds))
    out.print(totals)
    wrong = [(cells[0].source.path, v) for cells, verdicts in found.scenarios for v in verdicts if not v.confirmed]
    if wrong:
        out.print()
    for path, v in sorted(wrong, key=lambda one: not refuted(one[1]))[:_NAMED]:
        how = "refuted" if refuted(v) else "not decided"
        text = f"{v.scenario} {v.variant}/{v.setup}/{v.memory}: claimed {v.claimed}, {v.finding} ({v.verdict}): {how}"
        out.print(Text(text, style="bold red" if refuted(v) else "yellow"), soft_wrap=True)
        arguments = f"{shlex.quote(path)} --variant {v.variant} --setup {v.setup} --memory {v.memory}"
        out.print(f"  look at it:  racevisor explore {arguments}", soft_wrap=True)
    if len(wrong) > _NAMED:
        out.print(f"... and {len(wrong) - _NAMED} more; --json has them all")
    more = [words(elapsed), *([f"(stopped by an error after {len(everything):,} cells)"] if failed else [])]
    print_summary(out, len(found.wanted), everything, interrupted, *more)
    for line in (_LEGEND, *([_MARKS] if wrong else [])):
        out.print(Text(line, style="dim"))


def _verdicts(verdicts: list[Verdict]) -> tuple[int, int, int]:
    """How many were exhausted; settled by a bad and a good execution; neither."""
    exhausted = sum(v.ledger.exhausted for v in verdicts)
    settled = sum(not v.ledger.exhausted and v.bad > 0 and v.good is not None for v in verdicts)
    return exhausted, settled, len(verdicts) - exhausted - settled


def _as_json(found: _Found, everything: list[Verdict], elapsed: float, interrupted: bool) -> dict[str, Any]:
    exhausted, settled, neither = _verdicts(everything)
    return {
        "scenarios": [claims_json(cells, verdicts, [v.to_json() for v in verdicts]) for cells, verdicts in found.scenarios],
        "cells": len(found.wanted),
        "confirmed": sum(v.confirmed for v in everything),
        "refuted": sum(map(refuted, everything)),
        "exhausted": exhausted,
        "settled": settled,
        "open": neither,
        "executions": sum(v.executions for v in everything),
        "states": sum(v.states for v in everything),
        "seconds": elapsed,
        "interrupted": interrupted,
    }


# ---- the page of all claims -------------------------------------------------------------------------------------------------

_INTRO = """\
# Verdicts

What every variant of every scenario claims: is the bad outcome reached *Never*, *Sometimes* or *Always*?  Written by `make docs`
from the scenario files; `racevisor verify` searches every cell and exits with 1 if one of these claims is not confirmed.

A word without a memory model holds for `sc`, `tso` (x86) and `pso`.  An empty cell is claimed by nobody: the set-up is there for
other variants.  *Never* and *Always* need an exhausted search, *Sometimes* a bad and a good execution.
"""


def print_page(names: tuple[str, ...]) -> int:
    """Print docs/verdicts.md, searching nothing; returns the exit status."""
    click.echo(page(names or tuple(built_in())), nl=False)
    return 0


def page(names: Iterable[str]) -> str:
    """The claims of these scenarios as Markdown."""
    parts = [_INTRO]
    for name in names:
        scenario, source = load(name)
        title = story(scenario, source).split("\n\n", 1)[0].replace("\n", " ")
        parts.append(f"## {scenario.name}\n\n{_markdown(title)}\n")
        parts.append("\n".join(f"* `{setup}`: {_markdown(about.about)}" for setup, about in scenario.setups.items()) + "\n")
        head = ("variant", "what it is", *(f"`{setup}`" for setup in scenario.setups))
        lines = [head, tuple("---" for _ in head)]
        for key, variant in scenario.variants.items():
            words_ = (_claimed(scenario, key, setup) for setup in scenario.setups)
            fixed = " (the fix)" if key == scenario.fixed else ""
            lines.append((f"`{key}`{fixed}", _markdown(variant.about), *words_))
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def _claimed(scenario: Scenario, variant: str, setup: str) -> str:
    """`**Sometimes** (pso)`; nothing if it is not claimed."""
    if not in_table(scenario, variant, setup):
        return ""
    by_word: dict[str, list[str]] = {}
    for memory in MODELS:
        by_word.setdefault(claim(scenario, scenario.variants[variant], setup, memory), []).append(memory)
    if list(by_word) == [Never]:
        return Never
    return ", ".join(
        f"**{word}**" + (f" ({', '.join(memories)})" if len(memories) < len(MODELS) else "")
        for word, memories in by_word.items()
        if word != Never
    )


def _markdown(text: str) -> str:
    """With a backslash before what Markdown would take for its own; an underscore within a word is none of that."""
    return re.sub(r"[\\|*<>`]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
