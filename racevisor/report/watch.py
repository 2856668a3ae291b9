"""Where each step stands in the code: the chain of kernel functions and the line, read from suspended coroutines."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import actors
from racevisor.scenario import Case
from racevisor.step import CHOICE, THREAD
from racevisor.world import Channel, World

#: no kernel functions: what `async with` awaits
_NOT_SHOWN = ("__aenter__", "__aexit__")
_ROOT = Path(actors.__file__).resolve().parent.parent
#: of a longer function only so many lines are kept
LINES = 400


@dataclass(frozen=True)
class Function:
    """A function that was on some stack: its kernel name, where it is written, and its text."""

    name: str
    file: str
    first: int
    lines: tuple[str, ...]


@dataclass
class Span:
    """A call: thread, depth on its stack, function (an index), first and last step in it."""

    thread: str
    depth: int
    function: int
    first: int
    last: int


@dataclass
class Sources:
    """The functions met in all runs of one report, each once."""

    functions: list[Function] = field(default_factory=list)
    _known: dict[tuple[CodeType, str], int] = field(default_factory=dict)

    def index(self, code: CodeType, case: Case) -> int:
        """The number of the function that has this code."""
        names = {function.__name__: name for name, function in case.variant.replaces.items()}
        name = names.get(code.co_name, code.co_name)
        known = self._known.get((code, name))
        if known is None:
            known = self._known[code, name] = len(self.functions)
            self.functions.append(Function(name, _file(code, case), code.co_firstlineno, tuple(_text(code, case))))
        return known


class Watch:
    """Called before each step, see racevisor.reenact: keeps the stack and the line of each, and the calls as spans."""

    def __init__(self, case: Case, sources: Sources) -> None:
        self.case = case
        self.sources = sources
        #: by step: functions from the outermost to the innermost, and the line in the innermost
        self.stacks: dict[int, tuple[int, ...]] = {}
        self.lines: dict[int, int] = {}
        self.spans: list[Span] = []
        self._open: dict[str, list[tuple[Any, Span]]] = {}

    def __call__(self, world: World, channel: Channel) -> None:
        """The head of `channel` is about to move."""
        if channel.kind not in (THREAD, CHOICE):
            return
        n, thread = len(world.steps), channel.thread
        stack: list[tuple[Any, CodeType]] = []
        coroutine: Any = thread.coroutine
        while (code := getattr(coroutine, "cr_code", None)) is not None:
            if code.co_name not in _NOT_SHOWN:
                stack.append((coroutine, code))
                self.lines[n] = coroutine.cr_frame.f_lineno
            coroutine = coroutine.cr_await
        now = self._open.setdefault(thread.actor.name, [])
        same = 0
        while same < min(len(now), len(stack)) and now[same][0] is stack[same][0]:
            same += 1
        del now[same:]
        for depth, (one, code) in enumerate(stack[same:], same):
            span = Span(thread.actor.name, depth, self.sources.index(code, self.case), n, n)
            self.spans.append(span)
            now.append((one, span))
        for _, span in now:
            span.last = n
        self.stacks[n] = tuple(span.function for _, span in now)


def _file(code: CodeType, case: Case) -> str:
    """A name for people, without the place where this machine keeps it."""
    if code.co_filename == case.source.path:
        name = Path(case.source.path).name
        return name if name.endswith(".py") else f"scenarios/{name}.py"
    path = Path(code.co_filename)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name


def _text(code: CodeType, case: Case) -> list[str]:
    try:
        if code.co_filename == case.source.path:
            lines = inspect.getblock(case.source.text.splitlines(keepends=True)[code.co_firstlineno - 1 :])
        else:
            lines = inspect.getsourcelines(code)[0]
    except (OSError, TypeError):
        return []
    return [line.rstrip() for line in lines[:LINES]]
