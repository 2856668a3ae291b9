"""The interleaving of one run, one column per actor that moved, as commit messages of the kernel draw it.

Time goes down.  A step stands in the column of the thread whose step it is; a posted store that reaches memory, and an IPI that
arrives, in the column of the thread that sent it.  What does not bear on the bad outcome is folded: steps on cells that no
other thread touches, and on cells that the broken check does not look at; `full` shows everything.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.actor import Actor, Cell
from actors.ops import Code
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step
from racevisor.words import tracepoint, value_name, words
from racevisor.world import Execution, World

LINES = 40  # a picture that is longer is read by nobody
_NARROW = 16  # columns with less room than this become a list

#: A line is a list of (text, style) pairs; the styles are named below and mean something to the command line only.
Line = list[tuple[str, str]]
PLAIN, FATAL, HEADING, DIM, TITLE = "", "fatal", "heading", "dim", "title"


@dataclass(frozen=True)
class Glyphs:
    """What to draw with."""

    bar: str = "|"
    rule: str = "-"
    cross: str = "+"
    fold: str = "..."
    fatal: str = ">"


ASCII = Glyphs()
UNICODE = Glyphs("│", "─", "┼", "…", "▶")


@dataclass
class _Shown:
    """One step as it will stand in its column."""

    step: Step
    function: str
    posted: bool = False  # only posted: others do not see it yet
    landed: bool = False  # reaches memory apart from the step that posted it
    was: str = ""  # what another thread had stored there


@dataclass
class _Row:
    """One line across all columns."""

    number: int | None
    fatal: bool
    cells: dict[str, tuple[str, str]] = field(default_factory=dict)


class Picture:
    """One execution of `case` in `world` (made with functions=True), ready to be drawn."""

    def __init__(self, case: Case, world: World, execution: Execution) -> None:
        self.steps = execution.steps
        self.violations = execution.violations
        self.world = world
        self.actors: dict[str, Actor] = {thread.actor.name: thread.actor for thread in world.threads}
        self.fatal = {n for violation in execution.violations for n in violation.fatal}
        #: steps that are drawn and marked as well, like the pair whose order decides
        self.marked: set[int] = set()
        #: the cells that it is about; if there are none, see `watched`
        self.about: set[Cell] = set()
        self.kernel_name = {function.__name__: name for name, function in case.variant.replaces.items()}
        self.landing, self.origin = _flights(self.steps)
        self.was = _overwritten(self.steps)
        #: set by draw(): is there a line that the legend must explain?
        self.landings_shown = False

    # ---- which steps are shown ----------------------------------------------------------------------------------------

    def draw(self, width: int = 80, *, full: bool = False, glyphs: Glyphs = ASCII, lines: int = LINES) -> list[Line]:
        """The lines of the picture."""
        if full:
            return self._layout([self._entry(step, merged=False) for step in self.steps], width, glyphs, True)
        cells = self.about or self.watched()
        drawn = self._draw_cells(cells, width, glyphs, 0)
        for cell in self._links(cells):
            wider = self._draw_cells({*cells, cell}, width, glyphs, 0)
            if len(wider) <= lines:
                cells, drawn = {*cells, cell}, wider
        start = 0
        while len(drawn) > lines and start < len(self.steps):  # still too long: only the last part of it
            start += max(1, (len(self.steps) - start) // 8)
            drawn = self._draw_cells(cells, width, glyphs, start)
        return drawn

    def watched(self) -> set[Cell]:
        """The cells that the bad outcome is about: those of its fatal steps and of the failed check, else all contended ones."""
        cells = {cell for n in self.fatal if (cell := self.steps[n].cell) is not None}
        broken = {v.check for v in self.violations if v.step is not None}
        stuck = any(v.step is None for v in self.violations)
        for monitor in self.world.monitors:
            if monitor.check in broken or stuck:
                cells.update(monitor.watches)
        return cells or set(self.contended())

    def contended(self) -> dict[Cell, set[str]]:
        """Cells that one thread wrote and another one accessed in this run, with those threads."""
        users: dict[Cell, set[str]] = defaultdict(set)
        written: set[Cell] = set()
        for step in self.steps:
            if step.cell is not None:
                users[step.cell].add(step.thread)
                if step.writes:
                    written.add(step.cell)
        return {cell: threads for cell, threads in users.items() if len(threads) > 1 and cell in written}

    def _links(self, cells: set[Cell]) -> list[Cell]:
        """For each thread that has no step on `cells` but wrote for others: the contended cell by which it is best known."""
        contended = self.contended()
        wrote: dict[str, dict[Cell, int]] = defaultdict(dict)
        writes: Counter[Cell] = Counter()
        seen: set[str] = set()
        for step in self.steps:
            if step.writes and step.cell is not None:
                writes[step.cell] += 1
            if step.cell in cells:
                seen.add(step.thread)
            elif step.writes and step.cell is not None and step.cell in contended:
                wrote[step.thread][step.cell] = step.n
        return [
            max(written, key=lambda cell: (len(contended[cell]), writes[cell], written[cell]))
            for thread, written in wrote.items()
            if thread not in seen
        ]

    def _draw_cells(self, cells: set[Cell], width: int, glyphs: Glyphs, start: int) -> list[Line]:
        return self._layout(self._choose(cells, start), width, glyphs, False)

    def _choose(self, cells: set[Cell], start: int) -> list[_Shown]:
        names = {cell.owner.name for cell in cells}
        kept = {
            step.n
            for step in self.steps
            if step.n in self.fatal | self.marked
            or (
                step.n >= start
                and (step.kind == CHOICE or step.cell in cells or (step.op.code == Code.SEND and step.op.a in names))
            )
        }
        kept -= self._repeats(kept)
        kept |= self._fences(kept)
        shown = []
        for step in self.steps:
            if step.n not in kept:
                continue
            landing = self.landing.get(step.n)
            if landing is not None and landing in kept and self._undisturbed(step, landing, kept):
                continue  # told where it lands
            origin = self.origin.get(step.n)
            merged = origin is not None and (origin not in kept or self._undisturbed(self.steps[origin], step.n, kept))
            shown.append(self._entry(step, merged=merged))
        return shown

    def _entry(self, step: Step, *, merged: bool) -> _Shown:
        origin = self.origin.get(step.n)
        function = self.steps[origin].function if origin is not None else step.function
        name = self.kernel_name.get(function, function)
        landed = step.kind == IPI or (origin is not None and not merged)
        return _Shown(step, name, step.posted, landed, self.was.get(step.n, ""))

    def _repeats(self, kept: set[int]) -> set[int]:
        """Loads that a later load of the same thread repeats with nothing in between: the last one tells the same."""
        repeats: set[int] = set()
        last: dict[tuple[str, Cell], Step] = {}
        for step in self.steps:
            cell = step.cell
            if cell is None:
                continue
            if step.writes:
                last = {key: value for key, value in last.items() if key[1] is not cell}
            if step.kind != THREAD or step.op.code != Code.LOAD:
                continue
            earlier = last.get((step.thread, cell))
            if (
                earlier is not None
                and earlier.result == step.result
                and earlier.n not in self.fatal | self.marked
                and step.n in kept
            ):
                repeats.add(earlier.n)
            last[step.thread, cell] = step
        return repeats

    def _fences(self, kept: set[int]) -> set[int]:
        """Barriers between two shown steps of their thread."""
        fences: set[int] = set()
        before: dict[str, bool] = {}
        pending: dict[str, list[int]] = defaultdict(list)
        for step in self.steps:
            if step.kind != THREAD:
                continue
            if step.op.code == Code.FENCE:
                if before.get(step.thread):
                    pending[step.thread].append(step.n)
                continue
            before[step.thread] = step.n in kept
            waiting = pending.pop(step.thread, [])
            if step.n in kept:
                fences.update(waiting)
        return fences

    def _undisturbed(self, post: Step, landing: int, kept: set[int]) -> bool:
        """Could the store as well have been visible at once?  Nobody else, and no access of its own, is shown in between."""
        for n in range(post.n + 1, landing):
            if n in kept:
                step = self.steps[n]
                if step.thread != post.thread or not (step.posted or step.kind == STORE_BUFFER):
                    return False
        return True

    # ---- where they stand -----------------------------------------------------------------------------------------------

    def _layout(self, shown: list[_Shown], width: int, glyphs: Glyphs, full: bool) -> list[Line]:
        self.landings_shown = any(entry.landed for entry in shown)
        moved = {entry.step.thread for entry in shown}
        columns = [name for name in self.actors if name in moved]
        digits = max(3, len(str(len(self.steps))))
        room = self._rooms(shown, columns, width - digits - 3 - 2 * len(columns))
        if not room:
            return self._as_list(shown, width, glyphs, digits)
        rows: list[_Row] = []
        used = dict.fromkeys(columns, -1)  # the last row with something in that column
        inside = dict.fromkeys(columns, "")
        told = {n for entry in shown for n in (entry.step.n, self.origin.get(entry.step.n, -1))}
        rest = {name: [step for step in self.steps if step.thread == name and step.n not in told] for name in columns}
        for entry in shown:
            name = entry.step.thread
            above: list[tuple[str, str]] = []
            folded = _take_until(rest[name], entry.step.n)
            if folded:
                above.append((_fold(folded, room[name], glyphs), DIM))
            function = entry.function
            if function and function != inside[name] and not entry.landed:
                inside[name] = function
                above.append((_fit(f"{function}()", room[name]), HEADING))
            _place_above(rows, used, name, above)
            fatal = entry.step.n in self.fatal | self.marked
            for i, text in enumerate(_wrapped(self._texts(entry), room[name] - 1, full)):
                cell = (" " + text, FATAL if fatal else PLAIN)
                rows.append(_Row(entry.step.n if i == 0 else None, fatal and i == 0, {name: cell}))
            used[name] = len(rows) - 1
        for name in columns:
            if rest[name]:
                _place_after(rows, used, name, (_fold(rest[name], room[name], glyphs), DIM))
        return [*_header(room, digits, glyphs), *(_line(row, room, digits, glyphs) for row in rows)]

    def _rooms(self, shown: list[_Shown], columns: list[str], available: int) -> dict[str, int]:
        """How wide each column is: what its shortest words need, then as much of its longest words as there is room for."""
        room = dict.fromkeys(columns, _NARROW)
        broken = dict.fromkeys(columns, _NARROW)  # enough if its lines are wrapped
        most = dict.fromkeys(columns, 2 * _NARROW)  # a fold with a tracepoint
        for entry in shown:
            name, forms = entry.step.thread, self._texts(entry)
            heading = len(entry.function)
            room[name] = max(room[name], heading, min(map(len, forms)) + 1)
            broken[name] = max(broken[name], heading, max(map(len, _glued(forms[-1]).split())) + 1)
            most[name] = max(most[name], heading + 2, max(map(len, forms)) + 1)
        if available < _NARROW * len(columns):
            return {}
        for name in sorted(columns, key=lambda name: -room[name]):
            if sum(room.values()) > available:
                room[name] = broken[name]
        while sum(room.values()) > available:
            room[max(columns, key=lambda name: room[name])] -= 1
        while sum(room.values()) < available and (narrow := [name for name in columns if room[name] < most[name]]):
            room[min(narrow, key=lambda name: room[name])] += 1
        return room

    def _as_list(self, shown: list[_Shown], width: int, glyphs: Glyphs, digits: int) -> list[Line]:
        """Too many actors for columns: one step a line, with the actor's name."""
        wide = max((len(entry.step.thread) for entry in shown), default=0)
        room = max(_NARROW, width - digits - wide - 4)
        lines: list[Line] = []
        last = ""
        for entry in shown:
            name = entry.step.thread
            if entry.function and not entry.landed and f"{name} {entry.function}" != last:
                last = f"{name} {entry.function}"
                lines.append([(f"{'':{digits + 2}} {name:<{wide}} ", PLAIN), (_fit(f"{entry.function}()", room), HEADING)])
            fatal = entry.step.n in self.fatal | self.marked
            for i, text in enumerate(_wrapped(self._texts(entry), room - 2, False)):
                number = f"{glyphs.fatal if fatal else '':<1} {entry.step.n:>{digits}}" if i == 0 else " " * (digits + 2)
                lines.append([(f"{number} {name:<{wide}}   {text}", FATAL if fatal else PLAIN)])
        return lines

    def _texts(self, entry: _Shown) -> list[str]:
        """Longest first."""
        forms = words(entry.step, self.actors[entry.step.thread])
        if entry.posted:
            return [f"{form} (posted)" for form in forms]
        if entry.landed:
            forms = [f"~ {form}" for form in forms]
        if entry.was and " = " in forms[0]:
            name, _, value = forms[0].partition(" = ")
            forms = [f"{forms[0]} (was {entry.was})", f"{name}: {entry.was} => {value}", *forms]
        return forms


def _flights(steps: list[Step]) -> tuple[dict[int, int], dict[int, int]]:
    """For each posted store the step in which it reached memory, and the other way round."""
    landing: dict[int, int] = {}
    origin: dict[int, int] = {}
    waiting: dict[tuple[str, Cell], list[int]] = defaultdict(list)
    for step in steps:
        if step.cell is None:
            continue
        if step.posted:
            waiting[step.thread, step.cell].append(step.n)
        elif step.kind == STORE_BUFFER:
            post = waiting[step.thread, step.cell].pop(0)
            landing[post] = step.n
            origin[step.n] = post
    return landing, origin


def _overwritten(steps: list[Step]) -> dict[int, str]:
    """Stores that replaced another value which another thread had stored."""
    writer: dict[Cell, str] = {}
    was: dict[int, str] = {}
    for step in steps:
        cell = step.cell
        if cell is None or not step.writes or step.kind == IPI:
            continue
        store = step.kind == STORE_BUFFER or step.op.code == Code.STORE
        if store and step.before != step.after and writer.get(cell, step.thread) != step.thread:
            was[step.n] = value_name(cell, step.before)
        writer[cell] = step.thread
    return was


def _take_until(steps: list[Step], n: int) -> list[Step]:
    taken = 0
    while taken < len(steps) and steps[taken].n < n:
        taken += 1
    head = steps[:taken]
    del steps[:taken]
    return head


def _fold(steps: list[Step], room: int, glyphs: Glyphs) -> str:
    """`... 14 steps: kvm_entry, kvm_exit(hlt)`: as many of the last tracepoints as there is room for."""
    text = f"{glyphs.fold} {len(steps)} step{'s' if len(steps) > 1 else ''}"
    points = [tracepoint(name, fields) for step in steps for name, fields in step.notes]
    points = [p for i, p in enumerate(points) if p not in points[i + 1 :]]
    while points:
        longer = f"{text}: {', '.join(points)}"
        if len(longer) <= room:
            return longer
        del points[0]
    return text


def _fit(text: str, room: int) -> str:
    if len(text) > room:
        text = text.removesuffix("()")
    return text if len(text) <= room else text[: room - 2] + ".."


def _wrapped(forms: list[str], room: int, full: bool) -> Iterable[str]:
    """The longest form that fits in one line, else the shortest in several."""
    for form in forms:
        if len(form) <= room:
            return [form]
    form = forms[0] if full else forms[-1]
    lines = textwrap.wrap(_glued(form), room, subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _glued(form: str) -> str:
    """Where a line may not break: between the sign and its word."""
    return form.replace("~ ", "~\0")


def _place_above(rows: list[_Row], used: dict[str, int], name: str, above: list[tuple[str, str]]) -> None:
    """Put what precedes a step beside the other columns' last steps if that place is free, else on lines of its own."""
    free = len(rows) - 1 - used[name]
    for _ in range(len(above) - free):
        rows.append(_Row(None, False))
    for row, cell in zip(rows[len(rows) - len(above) :], above, strict=True):
        row.cells[name] = cell
    if above:
        used[name] = len(rows) - 1


def _place_after(rows: list[_Row], used: dict[str, int], name: str, cell: tuple[str, str]) -> None:
    used[name] += 1
    if used[name] == len(rows):
        rows.append(_Row(None, False))
    rows[used[name]].cells[name] = cell


def _header(room: dict[str, int], digits: int, glyphs: Glyphs) -> list[Line]:
    title: Line = [(f"{'step':>{digits + 2}} ", DIM)]
    rule = glyphs.rule * (digits + 3)
    for name, wide in room.items():
        title += [(f"{glyphs.bar} ", DIM), (f"{_fit(name, wide):<{wide}}", TITLE)]
        rule += glyphs.cross + glyphs.rule * (wide + 1)
    return [_stripped(title), [(rule, DIM)]]


def _line(row: _Row, room: dict[str, int], digits: int, glyphs: Glyphs) -> Line:
    number = "" if row.number is None else str(row.number)
    line: Line = [(f"{glyphs.fatal if row.fatal else ' '} {number:>{digits}} ", FATAL if row.fatal else DIM)]
    for name, wide in room.items():
        text, style = row.cells.get(name, ("", PLAIN))
        line += [(f"{glyphs.bar} ", DIM), (f"{text:<{wide}}", style)]
    return _stripped(line)


def _stripped(line: Line) -> Line:
    """Without space at the end."""
    for i in (-1, -2):
        if not any(text for text, _ in line[i:][1:]):
            line[i] = (line[i][0].rstrip(), line[i][1])
    return line


def sentences(violations: list[Violation]) -> list[str]:
    """What is wrong, one sentence for each check that failed."""
    found = []
    for violation in violations:
        steps = ", ".join(str(n) for n in violation.fatal)
        at = f" (steps {steps})" if len(violation.fatal) > 1 else f" (step {steps})" if steps else ""
        if violation.step is None and violation.check != "exists":
            at += " (at the end, when nothing can move)" if violation.check != "livelock" else " (at the end)"
        name = "the outcome that is hunted" if violation.check == "exists" else violation.check
        found.append(f"{name}: {violation.text}{at}")
    return found


def plain(lines: list[Line]) -> str:
    """The picture without colours."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)
