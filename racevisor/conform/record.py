"""Sequences recorded on the KVM of this machine, in the format of those that come with racevisor."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from racevisor.conform.generate import generate
from racevisor.conform.ioctls import DEVICE, this_host
from racevisor.conform.kvm import Kvm
from racevisor.errors import UsageError

#: seconds that one sequence may take: a hundred times what it takes
SECONDS = 10.0


def real(sequence: dict[str, Any], device: Path = DEVICE, seconds: float = SECONDS) -> Kvm:
    """The real KVM in the start state of a sequence; to be used with `with`, so that it is freed.

    Raises NoKvm if there is none, and UsageError for a start state that it does not take.
    """
    return Kvm(
        sequence["init"],
        mode=sequence["mode"],
        n=sequence["n"],
        ids=sequence["ids"],
        api=sequence["api"],
        device=device,
        seconds=seconds,
    )


def record(sequence: dict[str, Any], device: Path = DEVICE) -> dict[str, Any]:
    """The same sequence with the results and the changes that the KVM of this machine shows, and which KVM that is.

    Left out are operations that cannot be done where they stand: stores of vCPUs that do not run (Kvm.playable).

    Raises NoKvm if there is none, and UsageError for what it refuses.
    """
    with real(sequence, device) as machine:
        init = machine.whole()
        before = machine.visible()
        entries = []
        for op in (entry["op"] for entry in sequence["ops"]):
            if not machine.playable(op):
                continue
            result = machine.do(op)
            after = machine.visible()
            entries.append({"op": op, "r": result, "d": changes(before, after)})
            before = after
    return {**sequence, "init": init, "ops": entries, "host": str(this_host())}


def changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is other after an operation: by vCPU, the fields that changed and their new values."""
    found = {}
    for v, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            found[str(v)] = {field: value for field, value in new.items() if value != old[field]}
    return found


def record_random(n: int, seed: int, *, swarm: bool = False, device: Path = DEVICE) -> Iterator[dict[str, Any]]:
    """`n` random sequences of `seed`, recorded one after the other; `swarm` as for generate()."""
    for number in range(n):
        yield record(generate(seed, number, swarm=swarm), device)


def line(sequence: dict[str, Any]) -> str:
    """A sequence as the one line of JSON that a file has of it."""
    return json.dumps(sequence, separators=(",", ":"))


def write(sequences: Iterable[dict[str, Any]], file: Path) -> int:
    """Write sequences to `file`, one a line, packed if it ends in .gz; returns how many.

    The same sequences are the same bytes.  They are written as they come, so that an interrupted recording is a file of those
    that it had.

    Raises UsageError if the file cannot be written.
    """
    written = 0
    try:
        with file.open("wb") as plain:
            # Without name and time in its head, a gzip file depends on nothing but what is in it.
            packed = gzip.GzipFile("", "wb", fileobj=plain, mtime=0) if file.suffix == ".gz" else plain
            with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text:
                for sequence in sequences:
                    text.write(line(sequence) + "\n")
                    written += 1
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}\n  recorded until then: {written} sequences") from error
    return written
