"""A long search on the disk: one file, replaced whole, from which it goes on after everybody was killed.

The file is msgpack: what it is, the scenario's path and the SHA-256 of its text, and what racevisor.share.search.Sharing saves.
Opening it runs nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgpack

from racevisor.errors import UsageError
from racevisor.scenario import load
from racevisor.share.search import Sharing
from racevisor.whole import write_whole

FORMAT, VERSION = "racevisor-search", 1
FILE = "search.msgpack"
#: how often it is written, in seconds; a slice of work that is under way then is not in it
EVERY = 3.0
_SUM = 32  # bytes of the SHA-256 in front: a file that was cut off or damaged is not read at all


class Checkpoint:
    """The directory of a search.  `clock` returns seconds and only grows."""

    def __init__(self, directory: Path, sharing: Sharing, clock: Callable[[], float] = time.perf_counter) -> None:
        self.directory = directory
        self.sharing = sharing
        self.clock = clock
        self.problem = ""  # why it could not be written last time
        self._saved = clock()
        self.cost = 0.0  # seconds that writing has taken, in all

    def save(self, *, now: bool = True) -> None:
        """Replace the file, if it is time or has to be `now`; UsageError if that does not succeed."""
        began = self.clock()
        if not now and began - self._saved < EVERY:
            return
        source = self.sharing.cells[0].case.source
        path = source.path
        if "/" in path or path.endswith(".py"):
            path = str(Path(path).resolve())
        what = {"format": FORMAT, "version": VERSION, "path": path, "sha256": source.digest, "search": self.sharing.save()}
        packed = msgpack.packb(what)
        file = self.directory / FILE
        try:
            write_whole(file, hashlib.sha256(packed).digest() + packed, alone=True)
        except OSError as error:
            raise UsageError(
                f"cannot write {file}: {error.strerror or error}\n  choose another place:  --dir DIRECTORY"
            ) from error
        self._saved = self.clock()
        self.cost += self._saved - began


def resume(directory: Path, workers: int, clock: Callable[[], float] = time.perf_counter) -> Checkpoint:
    """What was searched in `directory`, to go on with; UsageError if it is no search, damaged, or of another scenario."""
    file = directory / FILE
    begin = "  racevisor explore NAME --workers N begins a new one"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot resume {directory}: {file}: {error.strerror or error}\n{begin}") from error
    packed = data[_SUM:]
    if hashlib.sha256(packed).digest() != data[:_SUM]:
        raise UsageError(f"cannot resume {directory}: {file} is damaged, or none of racevisor's\n{begin}")
    try:
        what = msgpack.unpackb(packed)
        if (what["format"], what["version"]) != (FORMAT, VERSION):
            raise UsageError(f"cannot resume {directory}: {file} is of another version\n{begin}")
        scenario, source = load(what["path"])
        if source.digest != what["sha256"]:
            raise UsageError(
                f"cannot resume {directory}: {what['path']} has changed since, and two searches of two machines do not add up\n"
                f"  begin a new one:  racevisor explore {what['path']}"
            )
        return Checkpoint(directory, Sharing.load(scenario, source, what["search"], workers, clock), clock)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"cannot resume {directory}: {file} is damaged ({error!r})\n{begin}") from error
