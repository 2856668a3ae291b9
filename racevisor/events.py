"""Structured events, as JSON lines: one file per process in the run's directory, never a global configuration.

Each line has `event`, `level`, `time` and what the log was bound to (`run`, ...); a step adds `round`, `actor`, `step` (how many
steps its host has logged this round) and `clock` (Lamport), by which the files of many hosts merge.  Events are named like
KVM's tracepoints where the kernel has one.  This is the only module that imports structlog.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import structlog

from racevisor.errors import UsageError

#: How long a file of a bounded log gets, in bytes, and how many older ones are kept.
FILE_BYTES, OLDER = 8 << 20, 7


class EventLog:
    """One file of events.  `debug` also writes the steps; fields given here are part of every line.

    A `bounded` log begins a new file when one is full, `NAME.jsonl.1` being the one before, and drops the oldest.
    Raises UsageError where it cannot be written, be it at the start or when the disk is full later.
    """

    def __init__(self, directory: Path, name: str, *, debug: bool = False, bounded: bool = False, **bound: Any) -> None:
        self.path = directory / f"{name}.jsonl"
        self.debugging = debug
        self.bounded = bounded
        self._bound = bound
        self._whole = 0  # where the file ended when it was last written out
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise self._unwritable(error) from error

    def _open(self) -> None:
        self._file = self.path.open("a", encoding="utf-8")
        self._whole = self._file.tell()
        self._logger: Any = structlog.wrap_logger(
            structlog.WriteLogger(self._file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                structlog.processors.JSONRenderer(default=repr),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if self.debugging else logging.INFO),
            context_class=dict,
            cache_logger_on_first_use=True,
        ).bind(**self._bound)

    def info(self, event: str, **fields: Any) -> None:
        """What one wants to count and to plot: one event per round."""
        try:
            self._logger.info(event, **fields)
        except OSError as error:
            raise self._unwritable(error) from error

    def debug(self, event: str, **fields: Any) -> None:
        """What one wants when a round is looked at closely: steps, tracepoints."""
        try:
            self._logger.debug(event, **fields)
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> None:
        """Hand what is buffered to the system: a process that is killed later loses nothing up to here."""
        try:
            self._file.flush()
            self._whole = self._file.tell()
            if self.bounded and self._whole > FILE_BYTES:
                self._rotate()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Write out what is buffered and close the file; what the disk does not take any more is lost, whole lines of it."""
        try:
            self._file.close()
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._whole)

    def _rotate(self) -> None:
        self._file.close()
        for number in range(OLDER - 1, 0, -1):
            older = older_file(self.path, number)
            if older.exists():
                older.replace(older_file(self.path, number + 1))
        self.path.replace(older_file(self.path, 1))
        self._open()

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot write the log {self.path}: {error.strerror or error}\n"
            f"  choose another place:  {'--dir' if self.bounded else '--log-dir'} DIRECTORY"
        )


def older_file(path: Path, number: int) -> Path:
    """Where the `number`-th file before the present one of a bounded log is."""
    return path.with_name(f"{path.name}.{number}")
