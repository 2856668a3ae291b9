"""The guard: what a monitor looks at without having declared it is an error, not a wrong verdict.

A reduced search takes one of many orders, and which one it takes can differ in any cell that no monitor declared and in the
private attributes of every actor; under a stateful search the latter are not even those of the present state.  So while a
guarded call runs, reading `value` of an undeclared cell, or any name in `actor.state`, raises UndeclaredRead.

What is guarded: the first call with each input, in every World (of a search, a walk, a replay, the replay of a live round).
The input is all by which a monitor may judge: what the step did, the ghost variables, the values of the declared cells.  A
monitor that depends on nothing else goes the same way each time the input is the same, up to its first undeclared read; so
that read happens in a guarded call, and calls with a known input need no guard.

The one exception is for speed: after 1,024 calls in a row whose input was known, only every 13th call is looked at, until one
is new; then 1,024 in a row again.  So in a long search an input that turns up late and seldom may pass unguarded.  With
`always` none does: the audit strategy sets it in the Worlds in which it runs every schedule again.

What is not seen: what is no cell and no private attribute (a thread's coroutine, the guest program's position, a module's
variable; strategies/audit.py finds some of that), `vars(actor)`, and a monitor that decides by `step.n`, by `where`, or by what
it remembers outside `ghost`.
Judgements of end states (`check`, `stuck`, `exists`, `outcome`) may read anything: they are made where nothing can move, and
every reduction keeps those states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from actors.actor import Actor, Cell
from actors.vm import Vm
from racevisor.errors import UndeclaredRead
from racevisor.monitor import Monitor, Violation
from racevisor.step import Step

_KNOWN = 1 << 14  # inputs remembered per monitor; after that, it is guarded anew
_ROW = 1_024
_STRIDE = 13  # no multiple of the number of monitors that judge a step, or some would never be looked at

_caught: list[tuple[str, str]] = []  # what was read that should not have been, and what to type


class _HiddenCell(Cell):
    """A cell during a guarded call of a monitor that did not declare it."""

    __slots__ = ()

    def _read(self) -> NoReturn:
        _stop(self.label, f"add {self.label} to reads=   (or to watches=, if the check must be called at every step on it)")

    value = property(_read)


_hidden_kinds: dict[tuple[str, ...], dict[Any, type[Actor]]] = {}


def _hidden(kind: type[Actor], names: tuple[str, ...]) -> type[Actor]:
    """A class like `kind` whose private attributes cannot be read."""
    kinds = _hidden_kinds.setdefault(names, {})
    if kind not in kinds:
        kinds[kind] = type(kind.__name__, (kind,), {name: _forbidden(name) for name in names})
    return kinds[kind]


def _forbidden(name: str) -> property:
    def read(actor: Actor) -> NoReturn:
        _stop(
            f"{actor.name}.{name}",
            f"it is private state of {actor.name}: judge it where nothing can move (stuck, exists),\n"
            f"  or make it a cell of {actor.name} and add that to reads=",
        )

    return property(read)


def _stop(what: str, hint: str) -> NoReturn:
    _caught.append((what, hint))
    raise UndeclaredRead(what)


def _values(cells: list[Cell]) -> Callable[[], Any]:
    """What returns the present values; it is called at every judged step, and most monitors declare one or two cells."""
    if len(cells) == 1:
        (only,) = cells
        return lambda: only.value
    if len(cells) == 2:
        one, two = cells
        return lambda: (one.value, two.value)
    return lambda: tuple([cell.value for cell in cells])


def unguarded(monitor: Monitor, step: Step) -> Violation | None:
    """`monitor.on_step(step)`, for a World that repeats what was found elsewhere: to hide a machine of hundreds costs seconds."""
    return monitor.on_step(step)


class Guard:
    """Calls the monitors of one World."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.always = False
        self.row = 0  # calls in a row whose input was known
        self.unseen = 0  # calls to let pass before the next one is looked at
        #: per monitor: the inputs that it was called with, and what reads the values of the cells that it declared
        self.inputs: dict[Monitor, tuple[set[Any], Callable[[], Any]]] = {}

    def judge(self, monitor: Monitor, step: Step) -> Violation | None:
        """`monitor.on_step(step)`, guarded if the input is new.  Raises UndeclaredRead."""
        if self.unseen:
            self.unseen -= 1
            return monitor.on_step(step)
        inputs = self.inputs.get(monitor)
        if inputs is None:
            inputs = self.inputs[monitor] = (set(), _values([*monitor.watches, *monitor.reads]))
        known, values = inputs
        op = step.op
        ghost = monitor.ghost
        key = (
            step.channel, step.cell, op.code, op.fn, op.a, op.b, step.before, step.after, step.result,
            values(), (*ghost, *ghost.values()) if ghost else None,
        )  # fmt: skip
        try:
            if key in known:
                self.row += 1
                if self.row > _ROW and not self.always:
                    self.unseen = _STRIDE - 1
                return monitor.on_step(step)
            self.row = 0
            if len(known) == _KNOWN:
                known.clear()
            known.add(key)
        except TypeError:
            pass  # a value that cannot be hashed: guarded each time
        return self.guarded(monitor, step)

    def guarded(self, monitor: Monitor, step: Step) -> Violation | None:
        """`monitor.on_step(step)` with everything out of sight that it did not declare."""
        declared = {*monitor.watches, *monitor.reads}
        cells = [(cell, type(cell)) for cell in self.vm.cells if cell not in declared]
        actors = [(actor, type(actor)) for actor in self.vm.actors if actor.state]
        _caught.clear()
        for cell, _ in cells:
            cell.__class__ = _HiddenCell
        for actor, kind in actors:
            actor.__class__ = _hidden(kind, tuple(actor.state))
        try:
            violation = monitor.on_step(step)
        except UndeclaredRead:
            violation = None  # reported below, as is one that the monitor swallowed
        finally:
            for cell, sort in cells:
                cell.__class__ = sort
            for actor, kind in actors:
                actor.__class__ = kind
        if _caught:
            what, hint = _caught[0]
            raise UndeclaredRead(
                f"check {monitor.check or type(monitor).__name__} reads {what} at step {step.n} ({step.channel}: {step.label}),"
                f" and has not declared it\n"
                f"  a reduced search may then never visit the state in which the check fails\n  {hint}"
            )
        return violation
