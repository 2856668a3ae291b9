"""Options that several commands take."""

from __future__ import annotations

import os
from pathlib import Path

import click

#: columns of --wide
WIDE = 240


def _widen(_context: click.Context, _option: click.Parameter, wide: bool) -> None:
    if wide:
        os.environ["COLUMNS"] = str(WIDE)  # where consoles look before they ask the terminal


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, and nothing else there.")
of_vcpus = click.option("--vcpus", type=click.IntRange(1), metavar="N", help="How many vCPUs.  [default: the scenario's]")
in_full = click.option("--full", is_flag=True, help="Show every step of the interleaving; fold nothing.")
into_trace_dir = click.option(
    "--trace-dir", type=click.Path(path_type=Path, file_okay=False), help="Where traces are saved.  [default: runs/NAME]"
)
not_shrunk = click.option("--no-shrink", is_flag=True, help="Draw the interleaving as it was found, and do not explain it.")
shrink_budget = click.option(
    "--shrink-budget",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long shrinking may take, and explaining as long again; then the best so far is drawn.",
)
widely = click.option(
    "--wide", is_flag=True, expose_value=False, callback=_widen,
    help=f"Draw for {WIDE} columns, whatever the terminal has (less -S scrolls).",
)  # fmt: skip
