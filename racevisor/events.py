"""Structured events, as JSON lines: one file per process in the run's directory, never a global configuration.

Each line has `event`, `level`, `time` and what the log was bound to (`run`, ...); a step adds `round`, `actor`, `step` (how many
steps its host has logged this round) and `clock` (Lamport), by which the files of many hosts merge.  Events are named like
KVM's tracepoints where the kernel has one.  This is the only module that imports structlog.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import structlog

from racevisor.errors import UsageError


class EventLog:
    """One file of events.  `debug` also writes the steps; fields given here are part of every line."""

    def __init__(self, directory: Path, name: str, *, debug: bool = False, **bound: Any) -> None:
        self.path = directory / f"{name}.jsonl"
        self.debugging = debug
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write the log {self.path}: {error.strerror or error}\n  choose another place:  --log-dir DIRECTORY"
            ) from error
        self._logger: Any = structlog.wrap_logger(
            structlog.WriteLogger(self._file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                structlog.processors.JSONRenderer(default=repr),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
            context_class=dict,
            cache_logger_on_first_use=True,
        ).bind(**bound)

    def info(self, event: str, **fields: Any) -> None:
        """What one wants to count and to plot: one event per round."""
        self._logger.info(event, **fields)

    def debug(self, event: str, **fields: Any) -> None:
        """What one wants when a round is looked at closely: steps, tracepoints."""
        self._logger.debug(event, **fields)

    def flush(self) -> None:
        """Hand what is buffered to the system: a process that is killed later loses nothing up to here."""
        self._file.flush()

    def close(self) -> None:
        """Write out what is buffered and close the file."""
        self._file.close()
