"""Recorded sequences on the simulated machine: which of them agree, by feature, and where the others first differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from actors.apic_kernels import KERNELS
from racevisor.conform.compare import Difference, compare, simulated
from racevisor.conform.vectors import Sequence, read
from racevisor.errors import UsageError


class Wanted(NamedTuple):
    """Which sequences: of these files (none: the built-in ones), with one of these features, of these numbers, the first few."""

    files: tuple[Path, ...] = ()
    features: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    first: int | None = None


@dataclass(frozen=True)
class Agreement:
    """What came of it: `against` which kernel, how many sequences and operations, and the first difference of each that differs.

    `features` has (sequences, of those that agree) by mode, then by feature, then of all.
    """

    against: str
    sequences: int
    operations: int
    differences: list[Difference]
    features: dict[str, tuple[int, int]]
    seconds: float

    @property
    def agree(self) -> int:
        """How many sequences do not differ."""
        return self.sequences - len(self.differences)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "against": self.against,
            "sequences": self.sequences,
            "operations": self.operations,
            "agree": self.agree,
            "features": {name: {"sequences": all_, "agree": good} for name, (all_, good) in self.features.items()},
            "differences": [difference._asdict() for difference in self.differences],
            "seconds": self.seconds,
        }


def known_kernel(kernel: str) -> str:
    """`kernel`, or a UsageError that lists the eras there are."""
    if kernel not in KERNELS:
        raise UsageError(f"there is no kernel {kernel!r}\n  kernels: {', '.join(KERNELS)}")
    return kernel


def agreement(
    sequences: Iterable[Sequence], kernel: str = "6.18", progress: Callable[[int], None] = lambda done: None
) -> Agreement:
    """Replay and compare each; `progress` is told how many are done."""
    machine = partial(simulated, kernel=known_kernel(kernel))
    began = time.perf_counter()
    results: list[tuple[Sequence, Difference | None]] = []
    for sequence in sequences:
        results.append((sequence, compare(sequence, machine)))
        progress(len(results))
    return Agreement(
        against=f"Linux {kernel}",
        sequences=len(results),
        operations=sum(len(sequence["ops"]) for sequence, _ in results),
        differences=[difference for _, difference in results if difference is not None],
        features=_by_feature(results),
        seconds=time.perf_counter() - began,
    )


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


def _by_feature(results: list[tuple[Sequence, Difference | None]]) -> dict[str, tuple[int, int]]:
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
