"""The story as a Mermaid sequence diagram, for mails and READMEs: the steps of the short picture, IPIs as arrows."""

from __future__ import annotations

from textwrap import wrap

from racevisor.errors import UsageError
from racevisor.report.model import Run
from racevisor.report.story import Story
from racevisor.report.whole import Report

#: characters that mean something to Mermaid or to Markdown around it, as Mermaid's entity codes
_SPECIAL = str.maketrans({c: f"#{ord(c)};" for c in "#;<>&\"'`\\{}[]|%"})
#: a diagram with more notes is read by nobody
STEPS = 60
#: characters of a line over two actors: Mermaid makes such a note as wide as they stand apart, whatever is in it
WIDE = 40
#: actors, where the picture shows no step of anybody
MOST = 6


def mermaid(report: Report) -> str:
    """The diagram of the bad execution that is shown, or of the run if nothing is wrong with it."""
    if not report.stories:
        raise UsageError(
            "the run is too long for a diagram, and it was not shrunk\n  what opens runs of any length:  --format perfetto"
        )
    told = report.stories[0]
    run = next(one for one in report.runs if one.key == told.key)
    numbers = _numbers(told, run)
    rows = {row.step: row for row in told.rows if row.step is not None}
    shown = {name for n in numbers for name in (run.events[n].thread, run.lanes[run.events[n].lane].name)}
    threads = [lane.name for lane in run.lanes if lane.name in shown] or [lane.name for lane in run.lanes[:MOST]]
    names = {name: f"A{i}" for i, name in enumerate(threads)}
    lines = ["sequenceDiagram", f"    accTitle: {_plain(report.title)}"]
    lines += [f"    participant {names[name]} as {_plain(name)}" for name in threads]
    inside: dict[str, str] = {}
    sent = {arrow.last: arrow.first for arrow in run.arrows if arrow.kind == "ipi"}
    marked = set(run.marked)
    for n in numbers:
        event = run.events[n]
        who = names[event.thread]
        column = told.columns.index(event.thread) if event.thread in told.columns else -1
        said = rows[n].cells[column][0].strip() if 0 <= column < len(rows[n].cells) else event.words
        text = _plain(f"{n}: {said}")
        function = told_function(report, run, n)
        if function and inside.get(who) != function:
            inside[who] = function
            text = f"{_plain(function)}()<br/>{text}"
        if n in sent:
            lines.append(f"    {who}-){names[run.lanes[event.lane].name]}: {text}")
        elif n in marked:
            lines += ["    rect rgba(214, 57, 57, 0.18)", f"    Note over {who}: {text}", "    end"]
        else:
            lines.append(f"    Note over {who}: {text}")
    if run.broken:
        over = f"{names[threads[0]]},{names[threads[-1]]}" if len(threads) > 1 else names[threads[0]]
        sentence = [_plain(line) for line in wrap(run.broken[0].sentence, WIDE)]
        lines.append(f"    Note over {over}: {'<br/>'.join(sentence)}")
    return "\n".join(lines) + "\n"


def told_function(report: Report, run: Run, n: int) -> str:
    """The innermost kernel function of a step, "" if it is in none."""
    stack = run.events[n].stack
    return report.functions[stack[-1]].name if stack else ""


def _numbers(told: Story, run: Run) -> list[int]:
    numbers = [row.step for row in told.rows if row.step is not None]
    if len(numbers) > STEPS:
        kept = set(run.marked) | set(numbers[-STEPS:])
        numbers = [n for n in numbers if n in kept]
    return numbers


def _plain(text: str) -> str:
    """Text that is only text: no character of it ends a statement, and no word ends a block."""
    return " ".join(text.split()).translate(_SPECIAL) or " "
