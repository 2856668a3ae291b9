"""`racevisor conform`: recorded operations on the simulated machine, and how far the two agree."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from actors.apic_kernels import KERNELS
from racevisor.commands.output import Meter, console, print_json
from racevisor.conform.compare import Difference, compare, simulated
from racevisor.conform.vectors import Sequence, read
from racevisor.errors import UsageError

#: how many differences are shown in full
SHOWN = 5


class Wanted(NamedTuple):
    """Which sequences: of these files (none: the built-in ones), with one of these features, of these numbers, the first few."""

    files: tuple[Path, ...] = ()
    features: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    first: int | None = None


def conform(wanted: Wanted, kernel: str, as_json: bool) -> int:
    """Replay and compare; prints agreement per feature and the first differences; returns the exit status: 1 if any differs."""
    if kernel not in KERNELS:
        raise UsageError(f"there is no kernel {kernel!r}\n  kernels: {', '.join(KERNELS)}")
    sequences = list(select(wanted))
    began = time.perf_counter()
    results: list[tuple[Sequence, Difference | None]] = []
    with Meter("conform", len(sequences), "sequences") as meter:
        for sequence in sequences:
            results.append((sequence, compare(sequence, partial(simulated, kernel=kernel))))
            meter.update(len(results))
    return report(results, f"Linux {kernel}", time.perf_counter() - began, as_json)


def select(wanted: Wanted) -> Iterator[Sequence]:
    """The sequences wanted; raises UsageError if there are none, and for a feature that no sequence has."""
    known: set[str] = set()
    count = 0
    for sequence in _of_numbers(read(wanted.files), wanted.numbers):
        known.update(sequence["feat"], [sequence["mode"]])
        if wanted.features and not {*sequence["feat"], sequence["mode"]} & set(wanted.features):
            continue
        if wanted.first is not None and count >= wanted.first:
            break
        count += 1
        yield sequence
    unknown = sorted(set(wanted.features) - known)
    if unknown and (wanted.first is None or count < wanted.first):
        raise UsageError(f"no sequence has the feature {', '.join(unknown)}\n  features: {', '.join(sorted(known))}")
    if not count:
        asked = f" {', '.join(map(str, wanted.numbers))}" if wanted.numbers else ""
        raise UsageError(f"there is no sequence{asked}\n  all there are:  racevisor conform --json")


def _of_numbers(sequences: Iterable[Sequence], numbers: tuple[int, ...]) -> Iterator[Sequence]:
    return (sequence for sequence in sequences if not numbers or sequence["seq"] in numbers)


def report(results: list[tuple[Sequence, Difference | None]], against: str, seconds: float, as_json: bool) -> int:
    """Print how far `results` agree, `against` what; returns the exit status."""
    differences = [difference for _, difference in results if difference is not None]
    operations = sum(len(sequence["ops"]) for sequence, _ in results)
    rows = by_feature(results)
    if as_json:
        print_json(
            {
                "against": against,
                "sequences": len(results),
                "operations": operations,
                "agree": len(results) - len(differences),
                "features": {name: {"sequences": all_, "agree": good} for name, (all_, good) in rows.items()},
                "differences": [difference._asdict() for difference in differences],
                "seconds": seconds,
            }
        )
        return 1 if differences else 0
    out = console()
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    shown.add_column("feature")
    for heading in ("sequences", "agree", "differ"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, (all_, good) in rows.items():
        shown.add_row(name, f"{all_:,}", f"{good:,}", Text(f"{all_ - good:,}" if all_ > good else "", style="bold red"))
    out.print(shown)
    for difference in differences[:SHOWN]:
        out.print()
        out.print(str(difference), soft_wrap=True)
    if len(differences) > SHOWN:
        out.print(f"\n{len(differences) - SHOWN} more sequences differ: --json has them all")
    out.print()
    good = len(results) - len(differences)
    verdict = f"{good:,} of {len(results):,} sequences ({operations:,} operations) agree with {against}"
    out.print(Text(f"{verdict}  ({seconds:.1f} s)", style="bold red" if differences else "green"))
    return 1 if differences else 0


def by_feature(results: list[tuple[Sequence, Difference | None]]) -> dict[str, tuple[int, int]]:
    """(sequences, of those that agree) by mode, then by feature, then of all."""
    rows: dict[str, list[int]] = {}
    modes = sorted({sequence["mode"] for sequence, _ in results})
    features = sorted({feature for sequence, _ in results for feature in sequence["feat"]} - set(modes))
    for sequence, difference in results:
        for name in {sequence["mode"], *sequence["feat"], "all"}:
            row = rows.setdefault(name, [0, 0])
            row[0] += 1
            row[1] += difference is None
    return {name: (rows[name][0], rows[name][1]) for name in (*modes, *features, "all") if name in rows}
