"""The code of one function, as somebody wants to read it who asks what a variant changes.

Of a function that another one made (a closure, a partial, a lambda that calls a generic function) the code alone says nothing:
what makes it different are the values that it was made with.  So these are shown, and if they are a list of steps by name, the
steps in that order; then the code that goes through them.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from racevisor.scenario import Source

_BODY = re.compile(r"lambda[^:]*:\s*(.*)")
_PLAIN = (str, int, float, bool, tuple, frozenset, type(None))


def source_of(function: Callable[..., Any], source: Source) -> list[str]:
    """The lines of a function and of what it was made with; those of a scenario file come from the text that was loaded."""
    inner, given = _made_with(function)
    own = _lines(inner, source)
    if _is_lambda(inner):
        lines, others = [*own, ""], _called(inner)
        for value in _constants(inner):
            lines += _steps(inner, f"{value!r}", value, source)
    else:
        lines, others = [], [value for value in given.values() if inspect.isfunction(value)]
        for name, value in given.items():
            shown = f"made with {name} = {value!r}"
            lines += _steps(inner, shown, value, source) or ([shown] if isinstance(value, _PLAIN) else [])
        lines += ["", *own] if lines else own
    for other in others:
        lines += ["", *_lines(other, source)]
    while lines[-1] == "":
        lines.pop()
    return lines


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called, with the values that it was made with: `enter_in_order(accesses='mode, mb, check')`."""
    inner, given = _made_with(function)
    values = ", ".join(f"{name}={value!r}" for name, value in given.items() if isinstance(value, _PLAIN))
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return f"{name}({values})" if values else name


def _made_with(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(the function that has code, the values that were fixed when this one was made of it)."""
    given: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        given = {**{f"argument {n}": value for n, value in enumerate(function.args, 1)}, **function.keywords, **given}
        function = function.func
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is not None and cells:
        given = {**dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True)), **given}
    return function, given


def _is_lambda(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_name == "<lambda>"


def _constants(function: Callable[..., Any]) -> list[Any]:
    code: CodeType = function.__code__
    return list(code.co_consts)


def _called(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions of the same file that it names."""
    code: CodeType = function.__code__
    space: Mapping[str, Any] = function.__globals__
    named = [space.get(name) for name in code.co_names]
    return [one for one in named if inspect.isfunction(one) and one.__module__ == function.__module__]


def _steps(function: Callable[..., Any], what: str, value: Any, source: Source) -> list[str]:
    """If `value` names steps, "mode, mb, check" or ("mode", "mb"), that are in a table which the function uses: what they do."""
    steps = value.split(", ") if isinstance(value, str) else list(value) if isinstance(value, tuple) else []
    for one in (function, *(_called(function) if _is_lambda(function) else ())):
        code: CodeType | None = getattr(one, "__code__", None)
        for name in code.co_names if code is not None else ():
            table = one.__globals__.get(name)
            if steps and isinstance(table, Mapping) and all(callable(table.get(step)) for step in steps):
                wide = max(map(len, steps))
                does = (f"  {i}. {step:<{wide}}  {_one_line(table[step], source)}" for i, step in enumerate(steps, 1))
                return [f"{what}:", *(line.rstrip() for line in does)]
    return []


def _one_line(function: Callable[..., Any], source: Source) -> str:
    """What a step does: the body of a lambda, else a function's name and the first line of its docstring."""
    if _is_lambda(function):
        found = _BODY.search(_lines(function, source)[0])
        return found[1].rstrip(", ") if found is not None else ""
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    return f"{name_of(function)}()" + (f": {about}" if about else "")


def _lines(function: Callable[..., Any], source: Source) -> list[str]:
    code = getattr(function, "__code__", None)
    if code is not None and code.co_filename == source.path:
        block = inspect.getblock(source.text.splitlines(True)[code.co_firstlineno - 1 :])
        return textwrap.dedent("".join(block)).rstrip().splitlines()
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip().splitlines()
    except (OSError, TypeError):
        return [f"(no source for {function!r})"]
