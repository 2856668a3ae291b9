"""A recorded sequence against a machine: every field of every vCPU, after every operation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from racevisor.conform.machine import Machine
from racevisor.conform.vectors import FIELDS, Sequence


class Comparable(Protocol):
    """What carries out operations and shows its state: racevisor.conform.machine.Machine, or a real KVM."""

    def do(self, op: list[Any]) -> Any:
        """Carry out one operation; returns its result."""

    def visible(self) -> list[dict[str, Any]]:
        """The visible state of every vCPU."""


class Difference(NamedTuple):
    """The first thing in which a machine differs.  `vcpu` is None and `field` "r" if it is the result of the operation.

    `operation` counts from 0; -1 is the start state.
    """

    seq: int
    operation: int
    op: list[Any]
    vcpu: int | None
    field: str
    recorded: Any
    simulated: Any

    def __str__(self) -> str:
        what = f"operation {self.operation}, {self.op}" if self.operation >= 0 else "the start state"
        where = "its result" if self.vcpu is None else f"{self.field} of vCPU {self.vcpu}"
        return (
            f"sequence {self.seq}, {what}: {where}\n"
            f"  recorded   {shown(self.field, self.recorded)}\n"
            f"  simulated  {shown(self.field, self.simulated)}"
        )


def shown(field: str, value: Any) -> str:
    """A value as an APIC's registers are read: hexadecimal, but for counts and flags."""
    if field in ("r", "nmi", "inj", "linit"):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(shown(field, one) for one in value)}]"
    return f"{value:#x}" if isinstance(value, int) else str(value)


def simulated(sequence: Sequence, kernel: str = "6.18", replaced: dict[str, Callable[..., Any]] | None = None) -> Machine:
    """The simulated machine in the start state of a sequence; `replaced`: kernel functions broken on purpose."""
    return Machine(
        sequence["init"],
        mode=sequence["mode"],
        n=sequence["n"],
        ids=sequence["ids"],
        api=sequence["api"],
        kernel=kernel,
        replaced=replaced,
    )


def compare(sequence: Sequence, machine: Callable[[Sequence], Comparable] = simulated) -> Difference | None:
    """The first difference between what was recorded and what a fresh `machine(sequence)` does, or None."""
    expected = [{field: state[field] for field in FIELDS} for state in copy.deepcopy(sequence["init"])]
    tried = machine(sequence)
    found = partial(_difference, sequence["seq"])
    difference = found(-1, [], expected, tried.visible())
    for k, entry in enumerate(sequence["ops"]):
        if difference is not None:
            return difference
        op = entry["op"]
        result = tried.do(op)
        if type(result) is not type(entry["r"]) or result != entry["r"]:
            return Difference(sequence["seq"], k, op, None, "r", entry["r"], result)
        for i, fields in entry["d"].items():
            expected[int(i)].update(fields)
        difference = found(k, op, expected, tried.visible())
    return difference


def _difference(
    seq: int, k: int, op: list[Any], expected: list[dict[str, Any]], shown: list[dict[str, Any]]
) -> Difference | None:
    if expected == shown:
        return None
    for i, (recorded, state) in enumerate(zip(expected, shown, strict=True)):
        for field in FIELDS:
            if recorded[field] != state[field]:
                return Difference(seq, k, op, i, field, recorded[field], state[field])
    raise ValueError(f"a machine shows other fields than {', '.join(FIELDS)}")
