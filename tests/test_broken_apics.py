"""APICs that are broken on purpose: the recorded vectors catch each one that a sequence of operations can tell."""

import sys
from functools import cache
from pathlib import Path

import pytest

from actors.apic_mutants import BROKEN, RACY
from racevisor.conform.compare import Difference, compare, simulated
from racevisor.conform.vectors import Sequence, read

PAGE = Path(__file__).resolve().parent.parent / "docs" / "conform.md"


@cache
def sequences() -> list[Sequence]:
    return list(read())


@cache
def caught(name: str) -> Difference | None:
    """The first difference of the first sequence that has one."""
    broken = {**BROKEN, **RACY}[name]
    for sequence in sequences():
        difference = compare(sequence, lambda of: simulated(of, replaced=dict(broken.replaces)))
        if difference is not None:
            return difference
    return None


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_apic_is_caught_by_the_vectors(name: str) -> None:
    """Agreement means something only if disagreement is possible."""
    assert caught(name) is not None


def row(name: str) -> str:
    difference = caught(name)
    assert difference is not None
    operation = " ".join(map(str, difference.op))
    where = f"{difference.seq}, operation {difference.operation}: `{operation}`"
    field = "its result" if difference.vcpu is None else f"{difference.field} of vCPU {difference.vcpu}"
    return f"| {name} | {BROKEN[name].about} | {where} | {field} |"


def test_the_page_has_the_table_of_what_catches_what() -> None:
    """Printed here as well: pytest -s."""
    table = "\n".join(row(name) for name in BROKEN)
    sys.stdout.write(f"{table}\n")
    assert len(BROKEN) >= 10
    assert table in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RACY)
def test_what_only_a_race_can_tell_agrees_with_every_sequence(name: str) -> None:
    """Right after every operation and wrong between two accesses: that is what scenarios are for, and vectors cannot replace."""
    assert caught(name) is None
