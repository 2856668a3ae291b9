"""The plain data of a report: what happened in each run, step by step, and what is known of why.

It is made by running a schedule again in the World.  Nothing in here draws; the page and the exports read it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.actor import Cell
from actors.ops import AWAIT, Code, may_write
from racevisor.dependence import HappensBefore
from racevisor.explain import wanted
from racevisor.monitor import Violation
from racevisor.picture import sentences
from racevisor.reenact import reenact
from racevisor.report.watch import Sources, Span, Watch
from racevisor.reversals import Pick
from racevisor.scenario import Case
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step
from racevisor.words import tracepoint, value_name, words
from racevisor.world import Execution, World

#: of longer runs, what happens before what is not worked out: its memory grows with the square of the steps
LONGEST_ORDER = 20_000
KINDS = {THREAD: "step", STORE_BUFFER: "store buffer", IPI: "IPI", CHOICE: "choice"}


@dataclass(frozen=True)
class Lane:
    """An actor that runs; `kind` is its name without its number, by which hundreds are folded."""

    name: str
    kind: str


@dataclass
class Event:
    """One step in words.  `lane` is where it is drawn: an IPI arrives at the CPU it was sent to, all else is with its thread.

    `shape` says what to draw, see `_shape`; `before` and `after` are the cell's value around the step, or what a posted store
    will make of it; `stack` are functions by number, the innermost one last, and `line` is the line in that one.
    """

    n: int
    lane: int
    thread: str
    channel: str
    kind: int
    shape: str
    words: str
    cell: int | None
    before: str
    after: str
    writes: bool
    posted: bool
    stack: tuple[int, ...]
    line: int
    notes: tuple[str, ...]
    direct: tuple[int, ...] = ()  # the latest steps that happen before it


@dataclass(frozen=True)
class Arrow:
    """From one step to another: `ipi`, `store` (posted, then visible) or `wake` (what let a blocked thread go on)."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Held:
    """A lock: cell, lane, the step that took it, and the step that gave it up (None: held at the end)."""

    cell: int
    lane: int
    first: int
    last: int | None


@dataclass(frozen=True)
class Waiting:
    """A thread blocked from after step `first` (-1: from the start) to its step `last` (None: for ever), and on what."""

    lane: int
    first: int
    last: int | None
    words: str


@dataclass(frozen=True)
class CellRow:
    """A cell that the run touched; `contended`: one thread wrote it and another one accessed it."""

    label: str
    owner: str
    initial: str
    contended: bool


@dataclass(frozen=True)
class Broken:
    """A check that failed, as a sentence, with the steps that it names."""

    check: str
    text: str
    step: int | None
    fatal: tuple[int, ...]
    sentence: str


@dataclass
class Run:
    """One execution, ready to be shown."""

    key: str
    title: str
    about: str
    case: Case
    lanes: list[Lane]
    events: list[Event]
    arrows: list[Arrow]
    held: list[Held]
    waits: list[Waiting]
    cells: list[CellRow]
    spans: list[Span]
    broken: list[Broken]
    outcome: str
    ordered: bool  # is happens-before known?
    #: the racing pair, where it is known in this run, and all the steps that are marked
    pair: tuple[int, ...] = ()
    fatal: tuple[int, ...] = ()

    @property
    def marked(self) -> list[int]:
        """The steps that the explanation, or a broken check, names."""
        return sorted({*self.pair, *self.fatal})


@dataclass
class _Draft:
    """What is worked out on the way."""

    world: World
    steps: Sequence[Step]
    cells: dict[Cell, int] = field(default_factory=dict)
    lanes: dict[str, int] = field(default_factory=dict)


def drawn(
    case: Case,
    picks: Sequence[Pick],
    sources: Sources,
    *,
    key: str,
    title: str,
    about: str = "",
    past_violations: bool = False,
    pair: Sequence[int | None] = (),
) -> tuple[Run, World, Execution]:
    """Run a schedule of `case` again, and everything there is to show of it.  Raises NotDeterministic where it differs."""
    watch = Watch(case, sources)
    world, execution = reenact(case, list(picks), past_violations=past_violations, watch=watch)
    draft = _Draft(world, execution.steps)
    lanes = _lanes(draft)
    events = [_event(draft, step, watch) for step in execution.steps]
    ordered = len(events) <= LONGEST_ORDER
    if ordered:
        _order(world, execution.steps, events)
    waits, wakes = _waits(draft)
    messages = _messages(execution.steps)
    for arrow in messages:
        if arrow.kind == "store":  # it reaches memory in no function: its line is the one that posted it
            landed, posted = events[arrow.last], events[arrow.first]
            landed.stack, landed.line = posted.stack, posted.line
    run = Run(
        key=key,
        title=title,
        about=about,
        case=case,
        lanes=lanes,
        events=events,
        arrows=[*messages, *wakes],
        held=_locks(draft),
        waits=waits,
        cells=_cells(draft),
        spans=watch.spans,
        broken=[_told(violation) for violation in execution.violations],
        outcome="" if execution.outcome is None else str(execution.outcome),
        ordered=ordered,
        pair=tuple(n for n in pair if n is not None and n < len(events)),
        fatal=tuple(sorted({n for violation in execution.violations for n in violation.fatal})),
    )
    return run, world, execution


def kind_of(name: str) -> str:
    """`vcpu12` is a vcpu."""
    return name.rstrip("0123456789") or name


def _told(violation: Violation) -> Broken:
    return Broken(violation.check, violation.text, violation.step, violation.fatal, sentences([violation])[0])


def _lanes(draft: _Draft) -> list[Lane]:
    """The threads; where an IPI arrives at a CPU that belongs to none of them, that CPU as well."""
    owners: dict[str, int] = {}
    for thread in draft.world.threads:
        name = thread.actor.name
        draft.lanes[name] = len(draft.lanes)
        pcpu = getattr(thread.actor, "pcpu", None)
        if pcpu is not None:
            owners.setdefault(pcpu.name, draft.lanes[name])
    names = list(draft.lanes)
    for step in draft.steps:
        if step.kind == IPI and step.cell is not None:
            cpu = step.cell.owner.name
            if cpu not in draft.lanes:
                if cpu not in owners:
                    owners[cpu] = len(names)
                    names.append(cpu)
                draft.lanes[cpu] = owners[cpu]
    return [Lane(name, kind_of(name)) for name in names]


def _event(draft: _Draft, step: Step, watch: Watch) -> Event:
    cell = step.cell
    mine = draft.world.vm.by_name[step.thread]
    text = words(step, mine)[0]
    before = after = ""
    if cell is not None:
        index = draft.cells.setdefault(cell, len(draft.cells))
        before = value_name(cell, step.before)
        after = value_name(cell, step.op.a if step.posted else step.after)
    else:
        index = None
    if step.posted:
        text += " (posted)"
    elif step.kind == STORE_BUFFER:
        text += " reaches memory"
    lane = draft.lanes[cell.owner.name if step.kind == IPI and cell is not None else step.thread]
    return Event(
        n=step.n,
        lane=lane,
        thread=step.thread,
        channel=step.channel,
        kind=step.kind,
        shape=_shape(step),
        words=text,
        cell=index,
        before=before,
        after=after,
        writes=step.writes,
        posted=step.posted,
        stack=watch.stacks.get(step.n, ()),
        line=watch.lines.get(step.n, 0),
        notes=tuple(tracepoint(name, fields) for name, fields in step.notes),
    )


def _shape(step: Step) -> str:
    """One letter: Load, Store, Posted, Visible, rmw (M), Await, Fence, Ipi sent, Taken, Choice."""
    if step.kind == STORE_BUFFER:
        return "V"
    if step.kind == IPI:
        return "T"
    if step.kind == CHOICE:
        return "C"
    if step.posted:
        return "P"
    letters = {
        Code.LOAD: "L",
        Code.STORE: "S",
        Code.RMW: "M",
        Code.FENCE: "F",
        Code.AWAIT: "A",
        Code.SEND: "I",
        Code.CHOOSE: "C",
    }
    return letters[step.op.code]


def _order(world: World, steps: Sequence[Step], events: list[Event]) -> None:
    """Happens-before by its covering edges: of each step, the latest steps of others that come before it."""
    order = HappensBefore(world)
    for step, event in zip(steps, events, strict=True):
        order.extend(world.channels[step.channel], step)
        rest = order.past[step.n]
        direct = []
        while rest:
            latest = rest.bit_length() - 1
            direct.append(latest)
            rest &= ~order.full[latest]
        event.direct = tuple(direct)


def _messages(steps: Sequence[Step]) -> list[Arrow]:
    """IPIs from where they are sent to where they arrive, posted stores to where they reach memory: each channel is a FIFO."""
    flying: dict[str, list[int]] = defaultdict(list)
    arrows = []
    for step in steps:
        if step.kind == IPI:
            arrows.append(Arrow("ipi", flying[step.channel].pop(0), step.n))
        elif step.kind == STORE_BUFFER:
            arrows.append(Arrow("store", flying[f"{step.thread} {_label(step)}"].pop(0), step.n))
        elif step.posted:
            flying[f"{step.thread} {_label(step)}"].append(step.n)
        elif step.op.code == Code.SEND:
            flying[f"{step.thread}=>{step.op.a}"].append(step.n)
    return arrows


def _label(step: Step) -> str:
    assert step.cell is not None
    return step.cell.label


def _waits(draft: _Draft) -> tuple[list[Waiting], list[Arrow]]:
    """Who was blocked from when to when, and which step let it go on."""
    writes: dict[Cell, list[int]] = defaultdict(list)
    last: dict[str, int] = {}
    waits: list[Waiting] = []
    wakes: list[Arrow] = []
    steps = draft.steps

    def holds(step: Step, n: int) -> bool:
        """Does the condition of the await hold once step `n` was taken (-1: at the start)?"""
        assert step.cell is not None
        known = writes[step.cell]
        at = bisect_right(known, n)
        value = steps[known[at - 1]].after if at else step.cell.init
        return bool(AWAIT[step.op.fn](value, step.op.a))

    for step in steps:
        if step.kind == THREAD and step.op.code == Code.AWAIT and step.cell is not None:
            begin = last.get(step.thread, -1)
            known = writes[step.cell]
            between = known[bisect_left(known, begin + 1) :]
            while between and holds(step, between[-1]):
                woken = between.pop()
                if not holds(step, between[-1] if between else begin):
                    waits.append(Waiting(draft.lanes[step.thread], begin, step.n, wanted(step.op, step.cell)))
                    if steps[woken].thread != step.thread:
                        wakes.append(Arrow("wake", woken, step.n))
                    break
        if step.kind in (THREAD, CHOICE):
            last[step.thread] = step.n
        if step.writes and step.cell is not None:
            writes[step.cell].append(step.n)
    for thread in draft.world.threads:
        op = thread.op
        if op is not None and op.code == Code.AWAIT and op.cell is not None and not AWAIT[op.fn](op.cell.value, op.a):
            name = thread.actor.name
            waits.append(Waiting(draft.lanes[name], last.get(name, -1), None, wanted(op, op.cell)))
    return waits, wakes


def _locks(draft: _Draft) -> list[Held]:
    """Mutexes hold their owner's name; of a packed lock word, the one who took it holds it until he changes the word again."""
    found: list[Held] = []
    open_: dict[tuple[Cell, str], int] = {}
    for step in draft.steps:
        cell = step.cell
        if cell is None or not step.writes:
            continue
        for (held, name), first in list(open_.items()):
            if held is cell and (step.thread == name or step.before == name):
                found.append(Held(draft.cells[cell], draft.lanes[name], first, step.n))
                del open_[held, name]
        takes = step.kind == THREAD and step.op.code == Code.AWAIT and may_write(step.op)
        if takes and (step.op.fn == "await_masked" or step.op.b == step.thread):
            open_[cell, step.thread] = step.n
    found += [Held(draft.cells[cell], draft.lanes[name], first, None) for (cell, name), first in open_.items()]
    return sorted(found, key=lambda one: one.first)


def _cells(draft: _Draft) -> list[CellRow]:
    users: dict[Cell, set[str]] = defaultdict(set)
    written = set()
    for step in draft.steps:
        if step.cell is not None:
            users[step.cell].add(step.thread)
            if step.writes:
                written.add(step.cell)
    return [
        CellRow(cell.label, cell.owner.name, value_name(cell, cell.init), cell in written and len(users[cell]) > 1)
        for cell in draft.cells
    ]
