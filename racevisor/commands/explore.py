"""`racevisor explore`: a table of verdicts, a picture, traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Rows
from rich.text import Text

from racevisor import choose, trace
from racevisor.budget import parse, words
from racevisor.commands.output import (
    Meter,
    console,
    error_line,
    print_json,
    print_paste_lines,
    processors,
    quiet_if,
)
from racevisor.commands.why import print_reason
from racevisor.errors import RacevisorError, UsageError
from racevisor.explore import Verdict, Witness, cases, explore_case
from racevisor.ledger import BOUND_REACHED, short
from racevisor.reason import Reason, Wish, reason
from racevisor.scenario import Always, Case, Never
from racevisor.table import Table


def explore_scenario(
    name: str | None,
    variants: tuple[str, ...],
    setups: tuple[str, ...],
    memories: tuple[str, ...],
    budget: str | None,
    jobs: int | None,
    vcpus: int | None,
    trace_dir: Path | None,
    picture: bool,
    full: bool,
    as_json: bool,
    no_shrink: bool,
    shrink_budget: float,
    workers: int | None = None,
    address: str | None = None,
    directory: Path | None = None,
    resume: Path | None = None,
    make_crew: Callable[..., Any] | None = None,
    **options: Any,
) -> int:
    """Returns the exit status: 0 if every claim is confirmed.  `options` are the other fields of racevisor.choose.Wanted.

    With `workers`, `address`, `directory` or `resume` the search is shared out on Ray by `make_crew`.
    """
    out = console()
    verdicts: list[Verdict] = []
    reasons: dict[int, Reason] = {}
    wish = Wish(not no_shrink, shrink_budget)
    with quiet_if(as_json):
        if name is None and resume is None:
            raise UsageError("explore what?\n  racevisor explore NAME; the names:  racevisor list")
        options["budget"] = parse(budget) if budget is not None else None
        first = sharing = None
        problem: RacevisorError | None = None
        if make_crew is not None:
            from racevisor.commands import shared

            if jobs is not None:
                raise UsageError("--jobs is for a search without --workers\n  leave out one of the two")
            if resume is not None:
                if name is not None:
                    raise UsageError(f"{resume} knows what is searched there\n  racevisor explore --resume {resume}")
                sharing = shared.resumed(resume, workers=workers, address=address, make_crew=make_crew)
                asked = sharing.cases
            else:
                asked = cases(str(name), variants, setups, memories, vcpus)
                sharing = shared.begin(asked, options, workers=workers, address=address, directory=directory, make_crew=make_crew)
            options["seed"] = sharing.seed
            found = sharing.search()
            wanted, verdicts = [case for case, _ in found], [verdict for _, verdict in found]
            interrupted, problem = sharing.interrupted, sharing.problem
            if problem is not None and not verdicts:
                raise problem
        else:
            asked = cases(str(name), variants, setups, memories, vcpus)
            choose.kind(choose.Wanted(**options))
            first = (
                _First(out, asked, trace_dir, options["seed"], full, wish) if not as_json and _at_once(asked, picture) else None
            )
            wanted, interrupted = _search(asked, verdicts, jobs, options, first)
        shown = _to_draw(verdicts, picture)
        if shown is not None and (first is None or first.drawn != shown):
            try:
                told = reason(wanted[shown], _witness(verdicts[shown]), wish)
            except KeyboardInterrupt:  # what was found is saved and drawn all the same
                interrupted = True
                told = reason(wanted[shown], _witness(verdicts[shown]), Wish(False))
            reasons[shown] = told
            verdicts[shown].witness = told.witness
        traces, unsaved = _save(wanted, verdicts, trace_dir, options["seed"])
        problem = problem or unsaved or (first.problem if first is not None else None)
    cells = len(asked)
    confirmed = sum(v.confirmed for v in verdicts)
    status = 130 if interrupted else problem.exit_status if problem else 0 if confirmed == cells else 1
    if problem is not None:
        error_line(str(problem))
    if as_json:
        claims = [
            {**v.to_json(), "trace": _path(traces.get(i)), **(reasons[i].to_json() if i in reasons else {})}
            for i, v in enumerate(verdicts)
        ]
        error = {"error": str(problem)} if problem else {}
        kept = {} if sharing is None else {"dir": str(sharing.checkpoint.directory)}
        whole = claims_json(asked, verdicts, claims)
        print_json({**whole, "interrupted": interrupted, **kept, **error})
        return status
    if verdicts:
        print_table(out, verdicts)
    print_summary(out, cells, verdicts, interrupted)
    for line in _how(verdicts):
        out.print(Text(line, style="dim"))
    for line in _certificates(verdicts):
        out.print(line, soft_wrap=True)
    if sharing is not None and not sharing.finished:
        out.print(f"go on:  racevisor explore --resume {sharing.checkpoint.directory}", soft_wrap=True)
    if shown in reasons:
        out.print()
        _draw(out, reasons[shown], traces.get(shown), full)
    elif traces and shown is None:
        example = next(iter(traces.values()))
        out.print()
        out.print(f"{len(traces)} trace{'s' if len(traces) > 1 else ''} in {example.parent}/, for instance:", soft_wrap=True)
        out.print(f"  replay it:    racevisor replay {example}", soft_wrap=True)
    return status


def claims_json(wanted: list[Case], verdicts: list[Verdict], claims: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json says of one scenario."""
    return {
        "scenario": wanted[0].scenario.name,
        "source": wanted[0].source.path,
        "claims": claims,
        "confirmed": sum(v.confirmed for v in verdicts),
        "cells": len(wanted),
    }


def _draw(out: Console, told: Reason, path: Path | None, full: bool) -> None:
    witness = told.witness
    out.print(Text(f"{told.case}: run {witness.run}, {len(witness.schedule)} steps", style="bold"))
    out.print()
    print_reason(out, told, full=full)
    print_paste_lines(out, told.case, path)


def _witness(verdict: Verdict) -> Witness:
    assert verdict.witness is not None
    return verdict.witness


def _at_once(wanted: list[Case], picture: bool) -> bool:
    """Is the first interleaving drawn while the other cells are searched?  If all are about one variant."""
    return len(wanted) > 1 and (picture or len({case.variant_name for case in wanted}) == 1)


class _First:
    """Draws the first bad execution while the other cells are being searched."""

    def __init__(self, out: Console, wanted: list[Case], trace_dir: Path | None, seed: int, full: bool, wish: Wish) -> None:
        self.out = out
        self.wanted = wanted
        self.trace_dir = trace_dir
        self.seed = seed
        self.full = full
        self.wish = wish
        self.drawn: int | None = None
        self.problem: RacevisorError | None = None  # told at the end, when nothing can be lost by it

    def look(self, n: int, verdict: Verdict, meter: Meter) -> None:
        """A cell is settled; those before it have been shown."""
        if self.drawn is not None or verdict.witness is None:
            return
        self.drawn = n
        case = self.wanted[n]
        told = reason(case, verdict.witness, self.wish)
        verdict.witness = told.witness
        path, _ = record(case, verdict, self.trace_dir, self.seed)
        with meter.aside():
            try:
                _draw(self.out, told, path, self.full)
            except RacevisorError as error:
                self.problem = error
            self.out.print()


def _search(
    wanted: list[Case], verdicts: list[Verdict], jobs: int | None, options: dict[str, Any], first: _First | None
) -> tuple[list[Case], bool]:
    """Fill `verdicts`; (the cells that they are about, did Ctrl-C end it early?)."""
    if len(wanted) == 1:
        try:
            with Meter(str(wanted[0]), None, "executions") as meter:
                verdicts.append(explore_case(wanted[0], on_look=meter.look, **options))
        except KeyboardInterrupt:
            return [], True
        return wanted, False
    with (
        Meter(f"exploring {wanted[0].scenario.name}", len(wanted), "cells") as meter,
        Table(wanted, jobs or min(processors(), len(wanted)), lambda done, _: meter.update(done), options) as found,
    ):
        try:
            for n in range(len(wanted)):
                verdicts.append(found.settle(n))
                if first is not None:
                    first.look(n, verdicts[n], meter)
        except KeyboardInterrupt:  # what was found before its turn came is not lost either
            done = sorted(found.done)
            verdicts[:] = [found.done[n] for n in done]
            return [wanted[n] for n in done], True
    return wanted, False


def _save(
    wanted: list[Case], verdicts: list[Verdict], trace_dir: Path | None, seed: int
) -> tuple[dict[int, Path], RacevisorError | None]:
    """A trace for each bad witness; a disk that is full does not lose the verdicts."""
    saved: dict[int, Path] = {}
    for i, verdict in enumerate(verdicts):
        if verdict.witness is None:
            continue
        path, error = record(wanted[i], verdict, trace_dir, seed)
        if path is None:
            return saved, error
        saved[i] = path
    return saved, None


def record(case: Case, verdict: Verdict, trace_dir: Path | None, seed: int) -> tuple[Path | None, RacevisorError | None]:
    """Where the witness is saved now, or why it could not be."""
    assert verdict.witness is not None
    path = trace.trace_folder(case, trace_dir) / trace.trace_name(case)
    recorded = trace.of(case, verdict.witness, seed=seed, strategy=verdict.strategy, recorded_by=trace.EXPLORE)
    try:
        trace.save(recorded, path)
    except RacevisorError as error:
        return None, error
    return path, None


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _to_draw(verdicts: list[Verdict], picture: bool) -> int | None:
    """Which verdict gets a picture: the first refuted one that has a witness, else the first with a witness, if one is due."""
    found = [i for i, v in enumerate(verdicts) if v.witness is not None]
    refuted = [i for i in found if verdicts[i].claimed == Never]
    one_race = len({(v.variant, v.setup) for v in verdicts}) == 1
    if refuted and (picture or one_race):
        return refuted[0]
    return found[0] if found and (picture or one_race) else None


def print_table(out: Console, verdicts: list[Verdict]) -> None:
    """One row for each cell."""
    wide = out.width >= 100
    table = Rows(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("variant", "set-up", "mem", "claimed", "found", "verdict"):
        table.add_column(heading)
    for heading in ("runs" if not wide else "executions", "states", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ("", "")
    for v in verdicts:
        here = (v.variant, v.setup)
        variant = v.variant if here[0] != last[0] else ""
        setup = v.setup if here != last else ""
        last = here
        style = "bold red" if refuted(v) else "" if v.confirmed else "yellow"
        table.add_row(
            Text(variant, style="bold"),
            Text(setup),
            v.memory,
            v.claimed,
            Text(v.finding, style=style),
            Text(v.verdict, style=style),
            short(v.executions),
            short(v.states) if v.states else "-",
            duration(v.seconds),
        )
    out.print(table)


def refuted(verdict: Verdict) -> bool:
    """Did the search find the opposite of the claim?  A search that only stopped early refutes nothing."""
    if verdict.claimed == Never:
        return verdict.bad > 0
    if verdict.claimed == Always:
        return verdict.executions > verdict.bad
    return not verdict.confirmed and verdict.verdict == "exhausted"


def print_summary(out: Console, cells: int, verdicts: list[Verdict], interrupted: bool, *more: str) -> None:
    """One line on `cells` claims, of which those of `verdicts` were searched, and what else there is to say."""
    wrong = sum(map(refuted, verdicts))
    confirmed = sum(v.confirmed for v in verdicts)
    open_ = len(verdicts) - confirmed - wrong
    parts = [f"{confirmed:,} of {cells:,} claims confirmed", *more]
    if wrong:
        parts.append(f"{wrong} refuted")
    if open_:
        parts.append(f"{open_} not decided: the search stopped before it was complete")
    if interrupted:
        parts.append(f"(interrupted after {len(verdicts)} cells)")
    out.print()
    out.print(Text("; ".join(parts), style="bold red" if wrong else "yellow" if open_ or interrupted else "green"))


#: so many ledgers are told in full; of more only the verdicts are counted
_TOLD = 3


def _how(verdicts: list[Verdict]) -> list[str]:
    """What the searches covered and what they did not: each ledger in full if they are few, else what they have in common."""
    if len(verdicts) == 1:
        return [verdicts[0].ledger.sentence()]
    told = [v for v in verdicts if not v.ledger.exhausted and not (v.bad and v.good is not None)]
    lines = [f"{v.variant}/{v.setup}/{v.memory}: {v.ledger.sentence()}" for v in told[:_TOLD]]
    if len(told) > _TOLD:
        lines.append(f"... and {len(told) - _TOLD} more that were not decided; --json has the ledger of each")
    rest = [v for v in verdicts if v not in told]
    reasons = sorted({f"{v.verdict}: {v.ledger.reason}" for v in rest})
    if len(reasons) > _TOLD:
        reasons = sorted({v.verdict for v in rest})
    if rest:
        strategies = sorted({v.strategy for v in rest})
        lines.append(f"strategy {', '.join(strategies)}; {'; '.join(reasons)}")
    return lines


def _certificates(verdicts: list[Verdict]) -> list[str]:
    """What a search that was shared out met, the same however it was shared."""
    lines = []
    for v in verdicts:
        cell = "" if len(verdicts) == 1 else f"{v.variant}/{v.setup}/{v.memory}  "
        if v.ledger.certificate:
            lines.append(f"certificate  {cell}{v.ledger.certificate}  ({v.ledger.certified})")
        elif v.ledger.workers and v.verdict == BOUND_REACHED and v.bad and v.good is not None:
            lines.append(f"no certificate  {cell}the search stopped when it had settled on Sometimes; --to-the-end goes on")
    return lines


def duration(seconds: float) -> str:
    """For a column of a table."""
    return f"{seconds:.1f}s" if seconds < 100 else words(seconds)
