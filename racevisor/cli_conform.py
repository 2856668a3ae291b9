"""The options of `racevisor conform`."""

from __future__ import annotations

from pathlib import Path

import click

from racevisor.cli_options import as_json


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[FILE]...")
@click.option(
    "--feature", "features", multiple=True, metavar="F", help="Only sequences with this feature or mode; may be repeated."
)
@click.option("--sequence", "numbers", multiple=True, type=int, metavar="N", help="Only this sequence; may be repeated.")
@click.option("--first", type=click.IntRange(1), metavar="N", help="Only the first N of them.")
@click.option("--kernel", default="6.18", show_default=True, metavar="V", help="The era of the simulated machine.")
@click.option("--live", type=click.IntRange(1), metavar="N", help="N fresh random sequences, on this machine's KVM as well.")
@click.option("--record", type=click.Path(path_type=Path, dir_okay=False), metavar="TO", help="Record this machine's KVM.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random sequences.")
@click.option("--swarm", is_flag=True, help="Random sequences of odd mixes and values, up to 8 vCPUs.")
@click.option("--budget", metavar="TIME", help="--live: at most this long.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="TO", help="--live: where findings go, shrunk.")
@as_json
def conform(
    files: tuple[Path, ...],
    features: tuple[str, ...],
    numbers: tuple[int, ...],
    first: int | None,
    kernel: str,
    live: int | None,
    record: Path | None,
    seed: int,
    swarm: bool,
    budget: str | None,
    save: Path | None,
    as_json: bool,
) -> int:
    """Replay what local APICs of a real KVM did on the simulated machine, and compare all state after every operation.

    FILE: recorded sequences, JSON lines, plain or gzip; by default 1,000 of a Linux 6.18 that come with racevisor.  Exit status 1
    if any differs; the first difference of a sequence is shown with the operation, the field, and both values.

    With /dev/kvm: `--live N` compares the simulated machine with the real one on fresh sequences; `--record TO` records N
    sequences (--live N, else 1,000), or the operations of the files again, to check the kernel of another machine.
    """
    if record is not None:
        from racevisor.commands.conform_live import conform_record

        return conform_record(record, live or 1_000, seed, again=files, swarm=swarm)
    if live is not None:
        from racevisor.budget import parse
        from racevisor.commands.conform_live import conform_live

        seconds = None if budget is None else parse(budget)
        return conform_live(live, seed, kernel, budget=seconds, swarm=swarm, save=save, as_json=as_json)
    from racevisor.commands.conform import conform as compare_sequences
    from racevisor.conform.agreement import Wanted

    return compare_sequences(Wanted(files, features, numbers, first), kernel, as_json)
