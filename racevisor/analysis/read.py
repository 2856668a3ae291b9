"""JSON lines to tables: every sound line is used, every damaged one is named by file and line.

A file is read in blocks.  A block is parsed as a whole, strictly; only one that is refused is looked at line by line.  What
follows the last newline of a log that is still being written is no damage: it is used if it is whole, and else left for later.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from racevisor.analysis import schema
from racevisor.errors import UsageError

#: Bytes that are parsed at a time, and the length of a line that no log of ours has.
BLOCK, LONGEST = 1 << 20, 16 << 20
#: So many damaged lines are named; all are counted.
NAMED = 1_000

_LOG = re.compile(r"(?P<host>.+)\.jsonl(?:\.(?P<older>\d+))?(?P<gz>\.gz)?$")
_TIME = "%Y-%m-%dT%H:%M:%S%.fZ"
_INTEGERS = {name for name, kind in schema.LINE.items() if kind == pl.Int64()}
_NUMBERS = {name for name, kind in schema.LINE.items() if kind == pl.Float64()}
_LISTS = {name for name, kind in schema.LINE.items() if isinstance(kind, pl.List)}


@dataclass(frozen=True)
class Damage:
    """A line that cannot be used: where it is, and what is wrong with it."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


@dataclass
class Logs:
    """What was read.  `events` are those of the hosts, `driver` those about whole rounds."""

    events: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schema.EVENT))
    driver: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=schema.DRIVER))
    files: list[str] = field(default_factory=list)
    lines: int = 0
    #: the first damaged lines, and how many there are
    damaged: list[Damage] = field(default_factory=list)
    damage: int = 0
    #: files whose last line is being written
    growing: list[str] = field(default_factory=list)
    #: files without any event of ours
    foreign: list[str] = field(default_factory=list)

    def note(self, file: str, line: int, why: str) -> None:
        """One more damaged line."""
        self.damage += 1
        if len(self.damaged) < NAMED:
            self.damaged.append(Damage(file, line, why))


def read(places: Sequence[Path]) -> Logs:
    """All logs in `places`, directories with all that is below them, or single files.

    Raises UsageError where a place does not exist or cannot be read, or where no place has a log of racevisor.
    """
    logs = Logs()
    events: list[pl.DataFrame] = []
    driver: list[pl.DataFrame] = []
    seen: set[tuple[int, int]] = set()
    while True:  # a log that is rotated while it is read has new names, and the same inodes
        fresh = [(path, key) for path in find(places) if (key := _key(path)) is not None and key not in seen]
        if not fresh:
            break
        for path, key in fresh:
            if key in seen:
                continue
            seen.add(key)
            _read_file(path, logs, events, driver)
    _refuse_strangers(places, logs, bool(events or driver))
    if events:
        logs.events = _once(pl.concat(events, rechunk=False))
    if driver:
        logs.driver = pl.concat(driver)
    return logs


def _once(events: pl.DataFrame) -> pl.DataFrame:
    """Without what a copy of a log says again.  A host that was replaced has two logs as well, but not of the same rounds."""
    files = events.group_by("run", "host").agg(pl.col("file").n_unique())
    if files["file"].max() == 1:
        return events
    return events.unique(["run", "host", "round", "clock", "line"], keep="first", maintain_order=True)


def find(places: Sequence[Path]) -> list[Path]:
    """The logs in `places`: NAME.jsonl, its older files NAME.jsonl.1 and so on, and either with .gz; the oldest first."""
    found: list[Path] = []
    for place in places:
        try:
            if place.is_dir():
                found += sorted(
                    (path for path in place.rglob("*") if _LOG.match(path.name) and path.is_file()), key=_oldest_first
                )
            elif place.exists():
                found.append(place)
            else:
                raise UsageError(f"there is no {place}\n  racevisor run NAME --log-dir {place} --log-steps makes logs there")
        except OSError as error:
            raise _unreadable(place, error) from error
    return found


def _oldest_first(path: Path) -> tuple[str, str, int]:
    match = _LOG.match(path.name)
    assert match is not None
    return str(path.parent), match["host"], -int(match["older"] or 0)


def _key(path: Path) -> tuple[int, int] | None:
    try:
        known = path.stat()
    except FileNotFoundError:  # it has been rotated away since
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return known.st_dev, known.st_ino


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot read {path}: {error.strerror or error}\n  leave it out, or make it readable:  chmod -R u+rX {path}"
    )


def _refuse_strangers(places: Sequence[Path], logs: Logs, any_event: bool) -> None:
    if any_event:
        return
    where = " or ".join(map(str, places))
    if not logs.files:
        raise UsageError(
            f"there are no logs in {where}: a log is called NAME.jsonl\n"
            "  racevisor run NAME --log-dir DIR --log-steps makes some, and so does racevisor stress"
        )
    if logs.damage:
        first = logs.damaged[0]
        raise UsageError(
            f"none of the {logs.lines} lines in {where} is an event of racevisor; the first:\n  {first}\n"
            "  racevisor run and racevisor stress write logs: name the directory of one, see racevisor analyze --help"
        )
    raise UsageError(f"the logs in {where} are empty\n  if the run has just begun, ask again in a moment")


def _read_file(path: Path, logs: Logs, events: list[pl.DataFrame], driver: list[pl.DataFrame]) -> None:
    name = str(path)
    match = _LOG.match(path.name)
    host = match["host"] if match is not None else path.stem
    finished = match is not None and bool(match["older"] or match["gz"])
    logs.files.append(name)
    sound = damage = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            before = logs.damage
            for block, first in _blocks(file, name, finished, logs):
                frame = _parse(block, first, name, logs)
                sound += frame.height
                _sort_out(frame, block, host, name, events, driver)
            damage = logs.damage - before
    except OSError as error:
        raise _unreadable(path, error) from error
    if damage and not sound:
        logs.foreign.append(name)


def _blocks(file: BinaryIO | gzip.GzipFile, name: str, finished: bool, logs: Logs) -> Iterator[tuple[list[bytes], int]]:
    """Whole lines, some at a time, and the number of the first of them."""
    rest, number, skipping = b"", 1, False
    for chunk in (chunks := _Chunks(file)):
        data = rest + chunk
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if skipping and end:
            begin = data.find(b"\n") + 1
            data, end, number, skipping = data[begin:], end - begin, number + 1, False
        if end:
            lines = data[:end].split(b"\n")[:-1]
            first, number = number, number + len(lines)
            logs.lines += len(lines)
            yield lines, first
        if len(rest) > LONGEST or skipping:
            if not skipping:
                logs.lines += 1
                logs.note(name, number, f"longer than {LONGEST >> 20} MiB")
            rest, skipping = b"", True
    if chunks.damage:
        logs.lines += 1
        logs.note(name, number, f"what is compressed here is damaged: {chunks.damage}")
    elif not rest.strip():
        return
    elif finished or _wrong(rest) is None:
        logs.lines += 1
        yield [rest], number
    else:
        logs.growing.append(name)


class _Chunks:
    """The bytes of a file, a block at a time; of a damaged archive as far as they come, and then what the damage is."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self.file = file
        self.damage = ""

    def __iter__(self) -> Iterator[bytes]:
        while not self.damage and (data := self._some()):
            yield data

    def _some(self) -> bytes:
        if not isinstance(self.file, gzip.GzipFile):
            return self.file.read(BLOCK)
        parts, size = [], 0
        try:
            while size < BLOCK and (part := self.file.read1()):  # read(BLOCK) would drop what came before the damage
                parts.append(part)
                size += len(part)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.damage = str(error)
        return b"".join(parts)


def _parse(lines: list[bytes], first: int, name: str, logs: Logs) -> pl.DataFrame:
    """A table of the sound ones of `lines`, with their numbers in `line`; the others are taken out of `lines`."""
    numbered = list(enumerate(lines, first))
    frame = _strictly(lines)
    if frame is None:
        wrong: dict[int, str] = {}
        numbered = _sound(numbered, wrong)
        for number in sorted(wrong):
            logs.note(name, number, wrong[number])
        lines[:] = [line for _, line in numbered]
        frame = _strictly(lines)
        assert frame is not None
    return frame.with_columns(pl.Series("line", [number for number, _ in numbered], dtype=pl.Int64))


def _strictly(lines: Sequence[bytes]) -> pl.DataFrame | None:
    """A row for each line, or None if one of them is refused."""
    if not lines:
        return pl.DataFrame(schema=schema.LINE)
    try:
        frame = pl.read_ndjson(b"\n".join(lines), schema=schema.LINE)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.height != len(lines) or frame["event"].null_count():
        return None
    return frame


def _sound(lines: list[tuple[int, bytes]], wrong: dict[int, str]) -> list[tuple[int, bytes]]:
    """Those that the table takes; `wrong` gets what is wrong with the others."""
    some = [(number, line) for number, line in lines if line.strip()]
    wrong.update({number: why for number, line in some if (why := _wrong(line))})
    return _searched([one for one in some if one[0] not in wrong], wrong)


def _searched(lines: list[tuple[int, bytes]], wrong: dict[int, str]) -> list[tuple[int, bytes]]:
    """Leave out what only the table refuses, found by halving."""
    if _strictly([line for _, line in lines]) is not None:
        return lines
    if len(lines) == 1:
        wrong[lines[0][0]] = "a field has a value of another type than it should"
        return []
    half = len(lines) // 2
    return _searched(lines[:half], wrong) + _searched(lines[half:], wrong)


def _wrong(line: bytes) -> str | None:
    """What is wrong with a line, as far as can be told without a table; None if nothing is."""
    try:
        value: Any = json.loads(line, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        return "not JSON that anybody could read: too deep"
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(value, dict):
        return f"not an object, but {_short(value)}"
    if value.get("event") is None:
        return "no event of racevisor: it has no field `event`"
    for name, is_ in value.items():
        if is_ is None:
            continue
        if name in _INTEGERS and (type(is_) is not int or not -(2**63) <= is_ < 2**63):
            return f"its {name} is {_short(is_)}, which is no whole number"
        if name in _NUMBERS and type(is_) not in (int, float):
            return f"its {name} is {_short(is_)}, which is no number"
        if name in _LISTS and type(is_) is not list:
            return f"its {name} is {_short(is_)}, which is no list"
    return None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _sort_out(
    frame: pl.DataFrame, lines: list[bytes], host: str, name: str, events: list[pl.DataFrame], driver: list[pl.DataFrame]
) -> None:
    frame = frame.with_columns(pl.col("time").str.to_datetime(_TIME, time_unit="us", time_zone="UTC", strict=False))
    of_driver = frame["event"].is_in(schema.DRIVER_S)
    if of_driver.any():
        chosen = frame.filter(of_driver).with_columns(file=pl.lit(name))
        driver.append(chosen.select(pl.col(column).cast(kind, strict=False) for column, kind in schema.DRIVER.items()))
    if of_driver.all():
        return
    frame = frame.with_columns(fields=pl.Series(_fields(frame, lines), dtype=pl.String), host=pl.lit(host), file=pl.lit(name))
    # A number that is out of all range becomes null, not an error: this is a log, and its other fields may be sound.
    events.append(
        frame.filter(~of_driver).select(pl.col(column).cast(kind, strict=False) for column, kind in schema.EVENT.items())
    )


def _fields(frame: pl.DataFrame, lines: Sequence[bytes]) -> list[str | None]:
    """What the events without columns of their own say, as JSON; None for the others."""
    fields: list[str | None] = [None] * frame.height
    rows: Iterable[int] = (~frame["event"].is_in(schema.KNOWN)).arg_true()
    whole = lines if len(lines) == frame.height else [line for line in lines if line.strip()]
    for row in rows:
        value = json.loads(whole[row])
        own = {name: is_ for name, is_ in value.items() if name not in schema.LINE and name != "level"}
        fields[row] = json.dumps(own) if own else None
    return fields
