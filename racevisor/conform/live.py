"""The simulated machine against the KVM of this machine: fresh random sequences, every field compared after every operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from racevisor.conform.compare import Comparable, Difference, compare, simulated
from racevisor.conform.generate import generate
from racevisor.conform.ioctls import DEVICE, Host, NoKvm, this_host, why_not
from racevisor.conform.record import line, record
from racevisor.conform.vectors import Sequence

#: findings that are shrunk; further ones are counted, and can be played again by seed and number
SHRUNK = 8

MachineFactory = Callable[[Sequence], Comparable]


@dataclass
class Tally:
    """Sequences with a feature: how many were compared, and how many of them differ."""

    compared: int = 0
    differ: int = 0


@dataclass(frozen=True)
class Finding:
    """A difference: where the random sequence had it, and what is left of the sequence when nothing can be dropped any more.

    `shrunk` is None where an earlier finding differs in the same way, or where the time was up.
    """

    number: int
    feat: list[str]
    difference: Difference
    shrunk: Sequence | None = None
    smallest: Difference | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """In what it differs: operation and field."""
        return kind(self.difference)

    def to_json(self) -> dict[str, Any]:
        """For machines; `sequence` is a line of a file that `racevisor conform` reads."""
        return {
            "number": self.number,
            "features": self.feat,
            "difference": self.difference._asdict(),
            "sequence": self.shrunk,
        }


@dataclass
class Report:
    """What a live comparison has come to."""

    host: Host
    seed: int
    wanted: int
    compared: int = 0
    operations: int = 0
    left_out: int = 0  # stores of vCPUs that did not run
    seconds: float = 0.0
    features: dict[str, Tally] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Was something compared, and did nothing differ?"""
        return self.compared > 0 and not self.findings

    @property
    def rate(self) -> float:
        """Sequences per second, without the time of shrinking."""
        return self.compared / self.seconds if self.seconds else 0.0

    def sentences(self) -> Iterator[str]:
        """For people, line by line: what was compared, with what, what differs and by which features, and the sequences."""
        good = self.compared - len(self.findings)
        played = f"{self.compared:,} random sequences ({self.operations:,} operations)"
        yield f"{good:,} of {played} agree with {self.host} in every field"
        yield f"seed {self.seed}, {self.rate:.0f} sequences a second; left out: {self.left_out:,} stores of vCPUs that do not run"
        if self.compared < self.wanted:
            yield f"the time was up after {self.compared:,} of {self.wanted:,}"
        for name, tally in sorted(self.features.items()):
            if tally.differ:
                yield f"  {name}: {tally.differ:,} of {tally.compared:,} differ"
        for finding in self.findings:
            if finding.shrunk is not None:
                yield ""
                yield str(finding.smallest or finding.difference)
                yield line(finding.shrunk)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "host": self.host._asdict(),
            "seed": self.seed,
            "wanted": self.wanted,
            "compared": self.compared,
            "operations": self.operations,
            "left_out": self.left_out,
            "seconds": self.seconds,
            "features": {name: vars(tally) for name, tally in sorted(self.features.items())},
            "findings": [finding.to_json() for finding in self.findings],
        }


def live(
    n: int,
    seed: int,
    machine_factory: MachineFactory = simulated,
    budget: float | None = None,
    *,
    swarm: bool = False,
    device: Path = DEVICE,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Play `n` random sequences of `seed` on the KVM of this machine and on `machine_factory(sequence)`, and compare.

    Args:
        n: number of sequences; sequence i is generate(seed, i).
        seed: of the generator.
        machine_factory: makes the machine that is to be judged, in the start state of a sequence.
        budget: seconds after which no further sequence is begun and no finding is shrunk further; None: no end.
        swarm: with a mix of operations for each sequence, as generate() says.
        device: KVM's device.
        progress: told after each sequence how many there were.

    Raises:
        NoKvm: there is no usable KVM; before anything was compared.
    """
    reason = why_not(device)
    if reason is not None:
        raise NoKvm(reason)
    report = Report(this_host(), seed, n)
    deadline = None if budget is None else time.perf_counter() + budget
    seen: set[tuple[str, str]] = set()
    for number in range(n):
        began = time.perf_counter()
        if deadline is not None and began >= deadline:
            break
        draft = generate(seed, number, swarm=swarm)
        recorded = record(draft, device)
        difference = compare(recorded, machine_factory)
        report.seconds += time.perf_counter() - began
        _count(report, draft, recorded, difference)
        if difference is not None:
            shrunk, smallest = None, None
            if kind(difference) not in seen and len(seen) < SHRUNK:
                seen.add(kind(difference))
                shrunk, smallest = shrink(recorded, difference, machine_factory, device=device, deadline=deadline)
            report.findings.append(Finding(number, draft["feat"], difference, shrunk, smallest))
        if progress is not None:
            progress(report.compared)
    return report


def kind(difference: Difference) -> tuple[str, str]:
    """In what a machine differs: after which operation, in which field."""
    return difference.op[0] if difference.op else "init", difference.field


def _count(report: Report, draft: Sequence, recorded: Sequence, difference: Difference | None) -> None:
    report.compared += 1
    report.operations += len(recorded["ops"])
    report.left_out += len(draft["ops"]) - len(recorded["ops"])
    for name in {*draft["feat"], draft["mode"]}:
        tally = report.features.setdefault(name, Tally())
        tally.compared += 1
        tally.differ += difference is not None


def shrink(
    sequence: Sequence,
    difference: Difference,
    machine_factory: MachineFactory = simulated,
    *,
    device: Path = DEVICE,
    deadline: float | None = None,
) -> tuple[Sequence, Difference]:
    """Drop operations while the two still differ in the same field after the same operation; none of what is left can go.

    Every candidate is recorded again, so what is left is a recording like any other.  Until `deadline`, of
    time.perf_counter(); then what is left so far.
    """
    best, found = sequence, difference

    def tried(ops: list[dict[str, Any]]) -> bool:
        nonlocal best, found
        candidate = record({**sequence, "ops": ops}, device)
        now = compare(candidate, machine_factory)
        if now is None or kind(now) != kind(difference):
            return False
        best, found = {**candidate, "ops": candidate["ops"][: now.operation + 1]}, now
        return True

    tried(sequence["ops"][: difference.operation + 1])
    size = max(len(best["ops"]) // 2, 1)
    while True:
        start, dropped = 0, False
        while start < len(best["ops"]):
            if deadline is not None and time.perf_counter() >= deadline:
                return best, found
            if tried(best["ops"][:start] + best["ops"][start + size :]):
                dropped = True
            else:
                start += size
        if size == 1 and not dropped:
            return best, found
        if not dropped:
            size //= 2
