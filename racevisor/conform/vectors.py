"""Recorded sequences: one JSON object a line, gzip or plain.  The format is docs/conform.md."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from racevisor.errors import UsageError

#: what comes with racevisor: 1,000 sequences of a Linux 6.18
BUILT_IN = Path(__file__).parent / "vectors.jsonl.gz"

#: the visible state of a vCPU: 32-bit registers, lists of vectors, the others by themselves
REGISTERS = ("tpr", "ppr", "svr", "ldr", "dfr", "esr", "id")
VECTORS = ("irr", "isr", "tmr")
FIELDS = (*VECTORS, *REGISTERS, "icr", "lvt", "nmi", "inj", "linit", "base")
#: what a start state has besides: the rest of the result of `look`
HIDDEN = ("mp", "cs", "ip", "if")

MOST_VCPUS = 256
_U8, _U16, _U32, _U64 = 1 << 8, 1 << 16, 1 << 32, 1 << 64
_VCPU = 0
#: arguments of each operation: the bound of each, or _VCPU
_ARGUMENTS = {
    "wr": (_VCPU, 0x1000, _U64),
    "msi": (_U64, _U32),
    "nmi": (_VCPU,),
    "look": (_VCPU,),
    "step": (_VCPU,),
    "ack": (_VCPU,),
    "iret": (_VCPU,),
    "if": (_VCPU, 2),
    "setmp": (_VCPU, _U32),
    "sipivec": (_VCPU, _U8),
    "base": (_VCPU, _U64),
}
OPERATIONS = tuple(_ARGUMENTS)
_START_BOUNDS = {
    **dict.fromkeys(REGISTERS, _U32),
    "icr": _U64,
    "base": _U64,
    "linit": 2,
    "mp": _U32,
    "cs": _U16,
    "ip": _U64,
    "if": 2,
}

Sequence = dict[str, Any]


class Damaged(ValueError):
    """What is wrong with a line."""


def read(files: Iterable[Path] = ()) -> Iterator[Sequence]:
    """The sequences of `files`, in their order; of those that come with racevisor if there are none.

    Raises UsageError with file and line for a file that cannot be read and for a line that is not a sequence.
    """
    for file in list(files) or [BUILT_IN]:
        for n, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                sequence = json.loads(line)
                check(sequence)
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"{file}, line {n}: {error}\n  a line is one sequence, as docs/conform.md says; without it:  sed {n}d"
                ) from error
            yield sequence


def _lines(file: Path) -> Iterator[str]:
    """Line by line, so that what comes before the damage can be used."""
    n = 0
    try:
        with file.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            for raw in stream:
                n += 1
                yield raw.decode()
    except (OSError, EOFError, zlib.error) as error:
        where = f"cannot read {file}" if not n else f"{file}, after line {n}"
        raise UsageError(f"{where}: {error}\n  sequences are JSON lines, plain or gzip: see docs/conform.md") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}, line {n}: {error}\n  sequences are JSON lines, plain or gzip: see docs/conform.md") from error


def check(sequence: Any) -> None:
    """Raise Damaged if it is not a sequence that a machine can be made of and that can be compared."""
    _want(isinstance(sequence, dict), "it is no JSON object")
    for name, kind in (
        ("seq", int),
        ("mode", str),
        ("n", int),
        ("ids", list),
        ("api", int),
        ("feat", list),
        ("init", list),
        ("ops", list),
    ):
        _want(name in sequence, f"{name!r} is missing")
        _want(type(sequence[name]) is kind, f"{name!r} is no {kind.__name__}")
    n, ids = sequence["n"], sequence["ids"]
    _want(1 <= n <= MOST_VCPUS, f"'n' is {n}: 1 to {MOST_VCPUS} vCPUs")
    _want(len(ids) == n and all(_number(i, _U32) for i in ids) and len(set(ids)) == n, f"'ids' is not {n} different ids")
    _want(_number(sequence["api"], 4), "'api' is not 0 to 3")
    _want(all(isinstance(feature, str) for feature in sequence["feat"]), "'feat' is no list of names")
    _want(len(sequence["init"]) == n, f"'init' has not {n} states")
    for i, state in enumerate(sequence["init"]):
        _want(isinstance(state, dict), f"'init' of vCPU {i} is no state")
        for name in (*FIELDS, *HIDDEN):
            _want(name in state, f"'init' of vCPU {i} has no {name!r}")
        _fields(state, f"'init' of vCPU {i}")
    for k, entry in enumerate(sequence["ops"]):
        _operation(entry, n, f"operation {k}")


def _operation(entry: Any, n: int, where: str) -> None:
    _want(isinstance(entry, dict) and {"op", "r", "d"} <= entry.keys(), f"{where} has not 'op', 'r' and 'd'")
    op, changed = entry["op"], entry["d"]
    _want(isinstance(op, list) and bool(op) and isinstance(op[0], str), f"{where} has no name")
    _want(op[0] in _ARGUMENTS, f"{where}: there is no {op[0]!r}; there are {', '.join(OPERATIONS)}")
    bounds = _ARGUMENTS[op[0]]
    _want(
        len(op) == 1 + len(bounds) and all(_number(a, bound or n) for a, bound in zip(op[1:], bounds, strict=True)),
        f"{where}: the arguments of {op}",
    )
    _want(isinstance(changed, dict), f"{where}: 'd' is no object")
    for i, fields in changed.items():
        _want(i.isdecimal() and int(i) < n, f"{where}: 'd' names vCPU {i!r}")
        _want(isinstance(fields, dict), f"{where}: 'd' of vCPU {i} is no object")
        _want(fields.keys() <= set(FIELDS), f"{where}: 'd' of vCPU {i} has {', '.join(sorted(fields.keys() - set(FIELDS)))}")
        _fields(fields, f"{where}: 'd' of vCPU {i}")


def _fields(fields: dict[str, Any], where: str) -> None:
    for name, value in fields.items():
        if name in VECTORS:
            good = isinstance(value, list) and all(_number(v, _U8) for v in value)
        elif name == "lvt":
            good = isinstance(value, list) and len(value) == 6 and all(_number(v, _U32) for v in value)
        elif name == "nmi":
            good = isinstance(value, list) and len(value) == 3 and all(_number(v, 3) for v in value)
        elif name == "inj":
            good = value == -1 or _number(value, _U8)
        else:
            good = name not in _START_BOUNDS or _number(value, _START_BOUNDS[name])
        _want(good, f"{where}: {name!r} is {json.dumps(value)[:60]}")


def _number(value: Any, bound: int) -> bool:
    return type(value) is int and 0 <= value < bound


def _want(good: bool, otherwise: str) -> None:
    if not good:
        raise Damaged(otherwise)
