"""A run as JSON for the page: columns of numbers, and every text once.  10,000 steps have to fit in some hundred kilobytes."""

from __future__ import annotations

import json
from typing import Any

from racevisor.report.model import Run
from racevisor.report.watch import Function


class Texts:
    """Each text once, by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = len(self.all)
            self.all.append(text)
        return known


def encoded(runs: list[Run], functions: list[Function]) -> dict[str, Any]:
    """What page.js reads; see `decode` there."""
    texts = Texts()
    texts("")
    told = [_run(run, texts) for run in runs]
    return {
        "runs": told,
        "functions": [[f.name, f.file, f.first, list(f.lines)] for f in functions],
        "texts": texts.all,
    }


def _run(run: Run, texts: Texts) -> dict[str, Any]:
    events = run.events
    stacks: dict[tuple[int, ...], int] = {}
    return {
        "key": run.key,
        "title": run.title,
        "about": run.about,
        "case": str(run.case),
        "outcome": run.outcome,
        "bad": bool(run.broken),
        "broken": [[b.sentence, b.step, list(b.fatal)] for b in run.broken],
        "ordered": run.ordered,
        "pair": list(run.pair),
        "fatal": list(run.fatal),
        "lanes": [[lane.name, lane.kind] for lane in run.lanes],
        "cells": [[cell.label, cell.owner, texts(cell.initial), int(cell.contended)] for cell in run.cells],
        "n": len(events),
        "lane": [e.lane for e in events],
        "shape": "".join(e.shape for e in events),
        "words": [texts(e.words) for e in events],
        "cell": [-1 if e.cell is None else e.cell for e in events],
        "before": [texts(e.before) for e in events],
        "after": [texts(e.after) for e in events],
        "writes": "".join("1" if e.writes else "0" for e in events),
        "stack": [stacks.setdefault(e.stack, len(stacks)) for e in events],
        "stacks": [list(stack) for stack in stacks],
        "line": [e.line for e in events],
        "notes": {str(e.n): list(e.notes) for e in events if e.notes},
        "direct": [[e.n - m for m in e.direct] for e in events] if run.ordered else [],
        "arrows": [["isw".index(a.kind[0]), a.first, a.last] for a in run.arrows],
        "held": [[h.cell, h.lane, h.first, -1 if h.last is None else h.last] for h in run.held],
        "waits": [[w.lane, w.first, -1 if w.last is None else w.last, texts(w.words)] for w in run.waits],
    }


def embedded(value: Any) -> str:
    """JSON that may stand inside <script>: nothing in it ends the element, opens a comment, or is a line end of JavaScript."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))  # ASCII: no U+2028, no U+2029
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
