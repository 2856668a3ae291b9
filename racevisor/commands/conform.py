"""`racevisor conform`: recorded operations on the simulated machine, and how far the two agree."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from racevisor.commands.output import Meter, console, print_json
from racevisor.conform.agreement import Agreement, Wanted, agreement, known_kernel, select

#: how many differences are shown in full
SHOWN = 5


def conform(wanted: Wanted, kernel: str, as_json: bool) -> int:
    """Replay and compare; prints agreement per feature and the first differences; returns the exit status: 1 if any differs."""
    known_kernel(kernel)
    sequences = list(select(wanted))
    with Meter("conform", len(sequences), "sequences") as meter:
        found = agreement(sequences, kernel, meter.update)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    return 1 if found.differences else 0


def _print(found: Agreement) -> None:
    out = console()
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    shown.add_column("feature")
    for heading in ("sequences", "agree", "differ"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, (all_, good) in found.features.items():
        shown.add_row(name, f"{all_:,}", f"{good:,}", Text(f"{all_ - good:,}" if all_ > good else "", style="bold red"))
    out.print(shown)
    for difference in found.differences[:SHOWN]:
        out.print()
        out.print(str(difference), soft_wrap=True)
    if len(found.differences) > SHOWN:
        out.print(f"\n{len(found.differences) - SHOWN} more sequences differ: --json has them all")
    out.print()
    verdict = f"{found.agree:,} of {found.sequences:,} sequences ({found.operations:,} operations) agree with {found.against}"
    out.print(Text(f"{verdict}  ({found.seconds:.1f} s)", style="bold red" if found.differences else "green"))
