"""A trace as a log for ShiViz: two lines for each step, host with vector clock, then what happened.

Hosts are the actors; stores on their way to memory happen beside their thread's program, so a store buffer is a host of its own,
and so is each CPU that takes IPIs.  The clocks are those of happens-before, see racevisor.dependence, and of what one host does
in a row.  Source: I. Beschastnikh et al.: Visualizing Distributed System Executions, ACM TOSEM 2020; the first line of the file
is the expression by which ShiViz takes it apart, the second one the expression that separates executions.
"""

from __future__ import annotations

import json

from racevisor.errors import UsageError
from racevisor.report.model import LONGEST_ORDER, Run
from racevisor.report.whole import Report
from racevisor.step import IPI, STORE_BUFFER

PARSER = r"(?<host>\S*) (?<clock>{.*})\n(?<event>.*)"
DELIMITER = r"^=== (?<trace>.*) ===$"


def shiviz(report: Report) -> str:
    """The whole log, one execution after the other; UsageError if what happens before what is not known."""
    lines = [PARSER, DELIMITER, ""]
    for run in report.runs:
        if not run.ordered:
            raise UsageError(
                f"the run has {len(run.events):,} steps; the order of more than {LONGEST_ORDER:,} is not worked out for ShiViz\n"
                "  what opens runs of any length:  --format perfetto"
            )
        lines.append(f"=== {run.title} ===")
        lines += _run(run)
    return "\n".join(lines) + "\n"


def _run(run: Run) -> list[str]:
    lines: list[str] = []
    clocks: list[dict[str, int]] = []
    last: dict[str, int] = {}
    for event in run.events:
        host = _host(run, event.n)
        clock: dict[str, int] = {}
        before = {*event.direct, *([last[host]] if host in last else [])}
        for n in before:
            for other, count in clocks[n].items():
                if clock.get(other, 0) < count:
                    clock[other] = count
        clock[host] = clock.get(host, 0) + 1
        clocks.append(clock)
        last[host] = event.n
        lines.append(f"{host} {json.dumps(clock)}")
        lines.append(" ".join(f"{event.n}: {event.words}".split()))
    return lines


def _host(run: Run, n: int) -> str:
    """A name without spaces."""
    event = run.events[n]
    if event.kind == STORE_BUFFER:
        name = f"{event.thread}.stores"
    elif event.kind == IPI:
        assert event.cell is not None
        name = run.cells[event.cell].owner
    else:
        name = event.thread
    return "".join("_" if c.isspace() else c for c in name)
