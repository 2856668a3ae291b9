"""`racevisor conform` with a real KVM: fresh random sequences on both, and recording what this machine's KVM does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.text import Text

from actors.apic_kernels import KERNELS
from racevisor.commands.output import Meter, console, print_json
from racevisor.conform.compare import simulated
from racevisor.conform.ioctls import DEVICE, NoKvm, this_host, why_not
from racevisor.conform.live import live
from racevisor.conform.record import record, record_random, write
from racevisor.conform.vectors import Sequence, read
from racevisor.errors import UsageError


def conform_live(
    n: int,
    seed: int,
    kernel: str,
    *,
    budget: float | None = None,
    swarm: bool = False,
    save: Path | None = None,
    as_json: bool = False,
    device: Path = DEVICE,
) -> int:
    """Compare `n` random sequences and print what came of it; returns the exit status: 1 if any differs.

    `save` gets the shrunk sequences of the findings, for `racevisor conform FILE`.  Raises UsageError without a usable KVM.
    """
    if kernel not in KERNELS:
        raise UsageError(f"there is no kernel {kernel!r}\n  kernels: {', '.join(KERNELS)}")
    with Meter("conform --live", n, "sequences") as meter:
        report = live(n, seed, partial(simulated, kernel=kernel), budget, swarm=swarm, device=device, progress=meter.update)
    found = [finding.shrunk for finding in report.findings if finding.shrunk is not None]
    if save is not None and found:
        write(found, save)
    if as_json:
        print_json(report.to_json())
    else:
        out = console()
        first, *others = report.sentences()
        out.print(Text(first, style="green" if report.agree else "bold red"), soft_wrap=True)
        for sentence in others:
            out.print(sentence, soft_wrap=True)
        if found:
            out.print()
            where = f"saved; again:  racevisor conform {save}" if save is not None else "--save FILE writes them to a file"
            out.print(f"{len(found)} shrunk sequences: {where}", soft_wrap=True)
    return 0 if report.agree else 1


def conform_record(
    file: Path, n: int, seed: int, *, again: tuple[Path, ...] = (), swarm: bool = False, device: Path = DEVICE
) -> int:
    """Record `n` random sequences, or those of the files `again`, on the KVM of this machine; returns the exit status 0.

    Raises UsageError without a usable KVM, for a file of `again` that is not readable, and for a `file` that is not writable.
    """
    reason = why_not(device)
    if reason is not None:
        raise NoKvm(reason)
    if any(file.resolve() == source.resolve() for source in again):
        raise UsageError(f"{file} is what is to be recorded again, and would be overwritten\n  name another file")
    began = time.perf_counter()
    with Meter("conform --record", None if again else n, "sequences") as meter:
        source = (
            (record(sequence, device) for sequence in read(again))
            if again
            else record_random(n, seed, swarm=swarm, device=device)
        )
        written = write(_counted(source, meter), file)
    seconds = time.perf_counter() - began
    out = console()
    out.print(f"{file}: {written:,} sequences recorded on {this_host()}  ({seconds:.1f} s)", soft_wrap=True)
    out.print(f"  racevisor conform {file}", soft_wrap=True)
    return 0


def _counted(sequences: Iterator[Sequence], meter: Meter) -> Iterator[Sequence]:
    for number, sequence in enumerate(sequences, 1):
        yield sequence
        meter.update(number)
