"""A trace in the JSON format of Chrome's trace viewer, which Perfetto opens: tracks with slices, flows and counters.

One process for each run, one track for each actor: calls of kernel functions as nested slices, in them the steps; messages as
flows.  A second process has a track for each contended cell: its values as slices.  Time is logical: a step takes a microsecond.
Source: "Trace Event Format", the document of the Chromium project that Perfetto's documentation refers to.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from racevisor.report.model import Event, Run
from racevisor.report.watch import Function
from racevisor.report.whole import Report

#: microseconds between two steps, and how long a step is drawn
STEP, LONG = 10, 8
#: flows by kind of arrow, as people call them
FLOWS = {"ipi": "IPI", "store": "store becomes visible", "wake": "lets it go on"}

Entry = dict[str, Any]


def perfetto(report: Report) -> str:
    """The whole JSON text; every flow that begins ends, and time never goes back."""
    named: list[Entry] = []
    timed: list[Entry] = []
    for number, run in enumerate(report.runs):
        _run(run, report.functions, 10 * number + 1, named, timed)
    # Slices that begin together: the longer one, which is around the other, comes first.
    timed.sort(key=lambda entry: (entry["ts"], -entry.get("dur", 0)))
    other = {"racevisor": report.title, "trace": report.drawn_trace, "time": f"logical: a step is {STEP} us"}
    return (
        json.dumps({"traceEvents": [*named, *timed], "displayTimeUnit": "ns", "otherData": other}, separators=(",", ":")) + "\n"
    )


def _run(run: Run, functions: list[Function], pid: int, named: list[Entry], timed: list[Entry]) -> None:
    named.append(_meta("process_name", pid, 0, name=f"{run.title}: {run.case}"))
    named.append(_meta("process_sort_index", pid, 0, sort_index=pid))
    for lane, one in enumerate(run.lanes):
        named.append(_meta("thread_name", pid, lane + 1, name=one.name))
        named.append(_meta("thread_sort_index", pid, lane + 1, sort_index=lane))
    lanes = {lane.name: at for at, lane in enumerate(run.lanes)}
    for span in run.spans:
        name = functions[span.function].name
        tid = lanes[span.thread] + 1
        length = (span.last - span.first) * STEP + LONG
        timed.append(_slice(f"{name}()", pid, tid, span.first * STEP, length, "function"))
    for event in run.events:
        timed.append(_slice(event.words, pid, event.lane + 1, event.n * STEP, LONG, "step", _arguments(run, event)))
    for number, arrow in enumerate(run.arrows):
        ids: Entry = {"name": FLOWS[arrow.kind], "cat": arrow.kind, "id": pid * 1_000_000 + number, "pid": pid}
        begin, end = run.events[arrow.first], run.events[arrow.last]
        timed.append({**ids, "ph": "s", "tid": begin.lane + 1, "ts": begin.n * STEP + LONG // 2})
        timed.append({**ids, "ph": "f", "bp": "e", "tid": end.lane + 1, "ts": end.n * STEP + LONG // 2})
    _cells(run, pid + 1, named, timed)


def _arguments(run: Run, event: Event) -> Entry:
    found: Entry = {"step": event.n}
    if event.cell is not None:
        found["cell"] = run.cells[event.cell].label
        found["before"], found["after"] = event.before, event.after
    if event.notes:
        found["tracepoints"] = ", ".join(event.notes)
    if event.n in run.pair:
        found["race"] = "one of the two steps whose order decides"
    elif event.n in run.fatal:
        found["race"] = "named by the check that broke"
    return found


def _cells(run: Run, pid: int, named: list[Entry], timed: list[Entry]) -> None:
    """The values of contended cells."""
    writes: dict[int, list[Event]] = defaultdict(list)
    for event in run.events:
        if event.writes and event.cell is not None and run.cells[event.cell].contended:
            writes[event.cell].append(event)
    if not writes:
        return
    named.append(_meta("process_name", pid, 0, name=f"{run.title}: cells"))
    named.append(_meta("process_sort_index", pid, 0, sort_index=pid))
    for cell, events in sorted(writes.items(), key=lambda one: run.cells[one[0]].label):
        named.append(_meta("thread_name", pid, cell + 1, name=run.cells[cell].label))
        values = [run.cells[cell].initial, *(event.after for event in events)]
        times = [0, *(event.n * STEP + LONG // 2 for event in events), len(run.events) * STEP]
        for value, begin, end in zip(values, times, times[1:], strict=False):
            if end > begin:
                timed.append(_slice(value, pid, cell + 1, begin, end - begin, "value"))


def _slice(name: str, pid: int, tid: int, ts: int, dur: int, cat: str, args: Entry | None = None) -> Entry:
    return {"ph": "X", "name": name, "cat": cat, "pid": pid, "tid": tid, "ts": ts, "dur": dur, **({"args": args} if args else {})}


def _meta(what: str, pid: int, tid: int, **args: Any) -> Entry:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}
